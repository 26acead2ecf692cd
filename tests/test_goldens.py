"""Every number of the released program's recorded cases, for the implementations that run anywhere."""

from __future__ import annotations

import pytest
import torch
from golden import arrays, cases, encoder, tower
from kernel_support import kernel_device

from resclip import DenseEncoder, Segmenter, Vocabulary
from resclip.encoder.similarity import similarity
from resclip.methods.catalogue import ProxyAttention
from resclip_kernels import feedback_matrix, semantic_feedback
from resclip_kernels.launch import watch
from resclip_kernels.online_softmax import best_query
from resclip_kernels.ops.patch_labels.reference import pixel_probabilities

IMPLEMENTATIONS = ("torch", "reference")
TOKEN_CASES = [name for name in cases() if not name.startswith("seg_")]
FEEDBACK_CASES = [name for name in TOKEN_CASES if cases()[name]["sfr"]]
SEGMENTATION_CASES = [name for name in cases() if name.startswith("seg_")]


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


def check_tokens(tokens: torch.Tensor, recorded: torch.Tensor) -> None:
    """As a whole and at the worst element."""
    assert relative_error(tokens, recorded) <= 1e-5
    assert (tokens - recorded).abs().max() / recorded.abs().max() <= 1e-5


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", TOKEN_CASES)
def test_tokens_and_feedback_labels(name: str, implementation: str) -> None:
    recorded = arrays(name)
    text = recorded["text"] if cases()[name]["sfr"] else None
    features = encoder(cases()[name], implementation)(recorded["image"][None], text)
    tokens = torch.cat([features.cls[0, None], features.patches[0].flatten(0, 1)])
    check_tokens(tokens, recorded["tokens"])
    if cases()[name]["sfr"]:
        assert features.feedback_labels is not None
        assert torch.equal(features.feedback_labels[0], recorded["labels"].long())


@pytest.mark.parametrize("implementation", ("torch", "reference", "triton"))
@pytest.mark.parametrize("name", ("proxyclip_same_grid", "proxyclip_finer_grid"))
def test_tokens_by_a_proxys_attention(name: str, implementation: str) -> None:
    recorded = arrays(name)
    device = kernel_device() if implementation == "triton" else torch.device("cpu")
    dense = DenseEncoder(
        tower().to(device),
        base="proxyclip",
        proxy=lambda _: recorded["features"][None].to(device),
        proxy_attention=ProxyAttention(
            beta=recorded["beta"].item(), gamma=recorded["gamma"].item()
        ),
        implementation=implementation,
    )
    features = dense(recorded["image"][None].to(device))
    assert features.cls is None
    assert features.patches.shape[1:3] == recorded["features"].shape[1:]
    tokens = features.patches[0].flatten(0, 1).cpu()
    check_tokens(tokens, recorded["tokens"])


@pytest.mark.parametrize("name", ("naclip_rcs", "naclip_sfr"))
def test_tokens_by_the_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the recorded labels on: interpreted, the refinement alone takes minutes, and has tests of its own."""
    case, recorded = cases()[name], arrays(name)
    device = kernel_device()
    kernels = encoder(case, "triton").to(device)
    text = None
    if case["sfr"]:
        text = recorded["text"].to(device)
        labels = recorded["labels"].long()[None].to(device)
        monkeypatch.setattr(kernels.final, "segment_patches", lambda *_: labels)
    with watch() as watcher:
        features = kernels(recorded["image"][None].to(device), text)
    assert watcher.names().count("base_kernel") == (2 if case["sfr"] else 1)
    tokens = torch.cat([features.cls[0, None], features.patches[0].flatten(0, 1)]).cpu()
    check_tokens(tokens, recorded["tokens"])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", FEEDBACK_CASES)
def test_feedback_matrix_before_its_division(name: str, implementation: str) -> None:
    case, recorded = cases()[name], arrays(name)
    feedback = semantic_feedback(
        recorded["labels"].long()[None],
        connectivity="prefix" if case["path_decay"] else None,
        smoothing_std=case["gaussian_std"],
        implementation=implementation,
    )
    # The recorded matrix is the one before the division by its maximum and the rounding to float16.
    matrix = feedback_matrix(feedback)[0] * feedback.maximum
    stored = torch.nn.functional.pad(matrix, (1, 0, 1, 0))[:: case["row_stride_of_stored_matrices"]]
    assert torch.allclose(stored, recorded["attn_sfr"], rtol=2**-11, atol=1e-7)


@pytest.mark.parametrize("name", FEEDBACK_CASES)
@pytest.mark.parametrize(
    "streaming", (True, pytest.param(False, marks=pytest.mark.slow)), ids=("torch", "reference")
)
def test_refined_pixel_probabilities(name: str, streaming: bool) -> None:
    case, recorded = cases()[name], arrays(name)
    first_pass = encoder(case, "torch", sfr=None)(recorded["image"][None])
    logits = similarity(first_pass.patches, recorded["text"])
    image = recorded["image"][None]
    if streaming:
        best, label = best_query(
            logits, image.shape[2:], logit_scale=40.0, guide=image, refine_iterations=10
        )
    else:
        best, label = pixel_probabilities(logits, image, 40.0, 10, (8, 16))
    assert (label[0] == recorded["probs_argmax"]).float().mean() >= 0.999
    assert (best[0] - recorded["probs_max"].float()).abs().max() <= 1e-3


@pytest.mark.parametrize("name", [name for name in FEEDBACK_CASES if cases()[name]["rcs"]])
def test_cross_layer_attention(name: str) -> None:
    case, recorded = cases()[name], arrays(name)
    dense = encoder(case, "reference")
    inputs = dense.run_blocks(recorded["image"][None])
    width = inputs.query.shape[-1]
    maps = [(q @ k.mT / width**0.5).softmax(-1) for q, k in inputs.cross_layers]
    stored = torch.stack(maps).mean(0)[0, :, :: case["row_stride_of_stored_matrices"]]
    assert torch.allclose(stored, recorded["attn_rcs"], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "implementation"),
    [
        # The reference refines the labels of many windows in a quarter of a minute.
        pytest.param(name, implementation, marks=pytest.mark.slow)
        if implementation == "reference" and cases()[name]["window"]
        else (name, implementation)
        for name in SEGMENTATION_CASES
        for implementation in IMPLEMENTATIONS
    ],
)
def test_predictions(name: str, implementation: str) -> None:
    case, recorded = cases()[name], arrays(name)
    query_to_class = recorded["query_to_class"].long()
    names = [f"class {number}" for number in range(int(query_to_class.max()) + 1)]
    segmenter = Segmenter(
        encoder(case, implementation),
        Vocabulary(recorded["text"], query_to_class, names),
        window=case["window"],
        stride=case["stride"],
        probability_threshold=case["probability_threshold"],
        refine_iterations=case["pamr_iterations"],
        logit_scale=case["logit_scale"],
    )
    prediction = segmenter.predict(recorded["image"][None])[0]
    assert (prediction == recorded["prediction"]).float().mean() >= 0.9999


@pytest.mark.parametrize(
    "name", (pytest.param("naclip_resclip", marks=pytest.mark.slow), "sclip_resclip")
)
def test_float64_agrees_with_the_float32_recording(name: str) -> None:
    recorded = arrays(name)
    dense = encoder(cases()[name], "reference", dtype=torch.float64)
    features = dense(recorded["image"][None].double(), recorded["text"].double())
    assert features.patches.dtype is torch.float64
    assert relative_error(features.patches[0].flatten(0, 1), recorded["tokens"][1:]) <= 1e-5


def test_recorded_weights_fill_the_whole_tower() -> None:
    assert set(arrays("vit")) == set(tower().state_dict())
