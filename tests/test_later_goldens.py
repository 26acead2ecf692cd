"""Every number of recorded cases of SC-CLIP, SFP, DIH-CLIP, PEARL, RF-CLIP, FreeCP and cross-window keys.

The tower has random weights. In the first three [CLS] makes up most of a token, so that tokens are also judged without
the mean that they share.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
import pytest
import torch
from golden import FOLDER, tower
from kernel_support import kernel_device
from torch import Tensor

from resclip import RCS, SFR, DenseEncoder, Segmenter, Vocabulary
from resclip.encoder.outliers import find_outliers, outlier_factor
from resclip.methods.pieces import (
    Aggregation,
    Denoising,
    HeadSelection,
    KeyAlignment,
    LayerFusion,
    OutlierRepair,
    PatchAttention,
    Pieces,
    Refocusing,
    SecondStream,
    SimilarityBranch,
)
from resclip.methods.steps import (
    AreaRule,
    ClassPurification,
    CrossWindowKeys,
    LaplacianPropagation,
    Steps,
    TextAdjustment,
)
from resclip_kernels.launch import watch

LATER = FOLDER / "later"
ENCODED = ("sc_clip", "sfp", "dih_clip", "pearl", "rf_clip")
DETECTORS = {"SOM": "salience", "L2": "norm"}


@functools.cache
def later_cases() -> dict[str, dict[str, Any]]:
    return {case["name"]: case for case in json.loads((LATER / "cases.json").read_text())["cases"]}


@functools.cache
def recorded(name: str) -> dict[str, Tensor]:
    with np.load(LATER / f"{name}.npz") as archive:
        return {key: torch.from_numpy(archive[key]) for key in archive.files}


def repair(case: dict[str, Any]) -> Pieces:
    """SC-CLIP's family."""
    method, layer = case["method"], case.get("pre_block", 9)
    first, last = case.get("multi_blocks", (4, 10))
    outliers = heads = None
    if method == "sc_clip":
        outliers = OutlierRepair("lof", case["lof_neighbours"], case["lof_share"])
    elif method == "sfp":
        detector: Any = DETECTORS[case["detector"]]
        outliers = OutlierRepair(detector, salience=5 * case["cls_weight"], isolated="zero")
    else:
        heads = HeadSelection(case["heads_kept"])
    return Pieces(
        outliers=outliers,
        aggregation=Aggregation(case.get("beta", 0.4), layer, case.get("post_block", 4)),
        patches=PatchAttention(case["cls_weight"]),
        branch=SimilarityBranch(layer, cut=0.4 if method == "sfp" else None),
        heads=heads,
        stream=SecondStream(f"{first}-{last}", scores=method != "sfp"),
    )


def pieces(case: dict[str, Any]) -> Pieces:
    if case["method"] == "pearl":
        return Pieces(
            alignment=KeyAlignment(case["kk_weight"], iterations=case["polar_iterations"])
        )
    if case["method"] == "rf_clip":
        refocus = case["refocus"]
        return Pieces(
            denoising=Denoising(tuple(case["channels"]), case["sigma"], case["alpha"]),
            refocusing=refocus and Refocusing(refocus["threshold"], refocus["beta"]),
            fusion=LayerFusion(case["beta"]),
        )
    return repair(case)


def modules(case: dict[str, Any]) -> dict[str, Any]:
    if "rcs" not in case:
        return {}
    rcs, sfr = case["rcs"], case["sfr"]
    return {
        "rcs": RCS(layers=(6, 7, 8, 9), temperature=rcs[0], weight=rcs[1]),
        "sfr": SFR(
            temperature=sfr[0],
            weight=sfr[1],
            label_threshold=case["label_threshold"],
            smoothing_std=case["gaussian_std"],
            connectivity=case["connectivity"],
            logit_scale=case["logit_scale"],
        ),
    }


def encoder(name: str, implementation: str, **changes: Any) -> DenseEncoder:
    case = later_cases()[name]
    settings = {"pieces": pieces(case), **modules(case), **changes}
    base = case["method"].replace("_", "-")
    return DenseEncoder(
        tower(heads=case["heads"]), base=base, implementation=implementation, **settings
    )


def check_tokens(features: Any, recorded_tokens: Tensor) -> None:
    patches = features.patches[0].flatten(0, 1).cpu()
    tokens = patches if features.cls is None else torch.cat([features.cls.cpu(), patches])
    assert (tokens - recorded_tokens).norm() <= 1e-5 * recorded_tokens.norm()
    wanted = recorded_tokens[-len(patches) :]
    spread = (wanted - wanted.mean(dim=0)).norm()
    assert (patches - wanted).norm() <= 1e-4 * spread


TOKENS = [
    name
    for name, case in later_cases().items()
    if case["method"] in ENCODED and not name.endswith("_segment")
]


@pytest.mark.parametrize("implementation", ("torch", "reference"))
@pytest.mark.parametrize("name", TOKENS)
def test_tokens(name: str, implementation: str) -> None:
    case, arrays_of = later_cases()[name], recorded(name)
    dense = encoder(name, implementation)
    features = dense(arrays_of["image"][None], arrays_of["text"])
    check_tokens(features, arrays_of["tokens"])
    if "labels" in arrays_of:
        assert torch.equal(features.feedback_labels[0], arrays_of["labels"].long())
        first = encoder(name, implementation, sfr=None)(arrays_of["image"][None])
        check_tokens(first, arrays_of["tokens_first_pass"])
    if "image_vector" in arrays_of:
        vector = dense.image_vectors(arrays_of["image"][None])[0]
        assert (vector - arrays_of["image_vector"]).norm() <= 1e-5 * vector.norm()
    assert (features.cls is None) == (case["method"] != "pearl")


SLOW = pytest.mark.slow
BY_KERNELS = [
    pytest.param(name, marks=[] if name == "sfp_norm" else [SLOW])
    for name in TOKENS
    if later_cases()[name]["method"] != "dih_clip"
]


@pytest.mark.parametrize("name", BY_KERNELS)
def test_tokens_by_the_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the recorded labels on: interpreted, the refinement alone takes minutes, and has tests of its own."""
    arrays_of = {key: value.to(kernel_device()) for key, value in recorded(name).items()}
    dense = encoder(name, "triton").to(kernel_device())
    if "labels" in arrays_of:
        labels = arrays_of["labels"].long()[None]
        monkeypatch.setattr(dense.final, "segment_patches", lambda *_: labels)
    with watch() as watcher:
        features = dense(arrays_of["image"][None], arrays_of["text"])
    check_tokens(features, recorded(name)["tokens"])
    assert "base_kernel" in watcher.names()


@pytest.mark.parametrize("name", ("sc_clip", "sc_clip_wide", "sfp", "sfp_norm", "sfp_wide"))
def test_outliers(name: str) -> None:
    """Those of the recording, from tokens that are computed here."""
    arrays_of, seen = recorded(name), []
    dense = encoder(name, "torch")
    finish = dense.final.make_traced_inputs

    def keep(block: Any, tokens: Tensor, trace: Any) -> Any:
        seen.append((tokens, trace))
        return finish(block, tokens, trace)

    dense.final.make_traced_inputs = keep  # type: ignore[method-assign]
    dense(arrays_of["image"][None])
    tokens, trace = seen[0]
    last = None if trace.last is None else (trace.last.query, trace.last.key)
    piece = dense.pieces.outliers
    assert piece is not None
    outliers = find_outliers(piece, tokens[:, 1:], last)
    assert torch.equal(outliers[0].nonzero()[:, 0], arrays_of["outliers"].sort().values)
    if piece.detector == "lof":
        scores = outlier_factor(tokens[0, 1:], piece.neighbours)
        # One neighbour exchanged at a tie moves a score by 1e-3.
        assert torch.allclose(scores.float(), arrays_of["lof"], rtol=2e-3)


def segmenter(name: str, steps: Steps, **changes: Any) -> Segmenter:
    case, arrays_of = later_cases()[name], recorded(name)
    text = arrays_of["text"]
    classes = arrays_of.get("query_to_class", torch.arange(len(text))).long()
    names = [f"class {number}" for number in range(int(classes.max()) + 1)]
    settings = {
        "window": case["window"],
        "stride": case["stride"],
        "logit_scale": case.get("logit_scale", 40.0),
        "probability_threshold": case.get("probability_threshold", 0.0),
        "refine_iterations": case.get("pamr_iterations", 0),
        "steps": steps,
        **changes,
    }
    vocabulary = settings.pop("vocabulary", Vocabulary(text, classes, names))
    dense = settings.pop("encoder", None) or encoder(name, "torch")
    return Segmenter(dense, vocabulary, **settings)


SEGMENTED = {
    "sc_clip_segment": Steps(area=AreaRule(0.15)),
    "pearl_segment": Steps(laplacian=LaplacianPropagation(80)),
    "rf_clip_segment": Steps(adjustment=TextAdjustment(0.25, 0.15, 0.5)),
}


@pytest.mark.parametrize("name", SEGMENTED)
def test_label_maps(name: str) -> None:
    case, arrays_of = later_cases()[name], recorded(name)
    size = (case["output_size"][0], case["output_size"][1])
    labels, _ = segmenter(name, SEGMENTED[name]).predict_many([arrays_of["image"]], [size])[0]
    assert (labels == arrays_of["prediction"]).float().mean() >= 0.999


@pytest.mark.parametrize("name", ("freecp_clearclip", "freecp_sclip"))
def test_purified_label_maps(name: str) -> None:
    case, arrays_of = later_cases()[name], recorded(name)
    base, background = case["base"], case["background_queries"]
    queries = len(arrays_of["text"])
    classes = [0] * background + list(
        range(bool(background), queries - background + bool(background))
    )
    names = ["background"] * bool(background) + [
        f"class {number}" for number in range(queries - background)
    ]
    dense = DenseEncoder(
        tower(heads=case["heads"]),
        base=base,
        final_block="attention_and_mlp" if base == "sclip" else None,
    )
    step = ClassPurification(case["redundancy_threshold"], case["ambiguity_threshold"])
    made = segmenter(
        name,
        Steps(purification=step),
        encoder=dense,
        vocabulary=Vocabulary(arrays_of["text"], torch.tensor(classes), names),
        second_text=arrays_of["text_llm"],
    )
    size = (case["output_size"][0], case["output_size"][1])
    labels, _ = made.predict_many([arrays_of["image"]], [size])[0]
    assert (labels == arrays_of["prediction"]).float().mean() >= 0.999


@pytest.mark.parametrize("name", ("windows_clearclip", "windows_proxy"))
def test_logits_with_keys_of_other_windows(name: str) -> None:
    case, arrays_of = later_cases()[name], recorded(name)
    settings: dict[str, Any] = {}
    base = "clearclip"
    if case["base"] == "proxy":
        base = "proxyclip"
        given = iter(arrays_of["features"])
        settings["proxy"] = lambda pixels: torch.stack([next(given) for _ in pixels])
    dense = DenseEncoder(tower(heads=case["heads"]), base=base, **settings)
    step = CrossWindowKeys(
        case["anchor_threshold"],
        case["anchor_steps"],
        beta=case["beta"] if case["beta_alpha"] is None else None,
    )
    made = segmenter(name, Steps(windows=step), encoder=dense, batch_size=4)
    logits = made.logits(arrays_of["image"][None], upsample=True)
    size = tuple(case["output_size"])
    resized = torch.nn.functional.interpolate(logits, size=size, mode="bilinear")
    found, wanted = resized[0, :, ::8, ::8], arrays_of["logits_every_8"]
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
