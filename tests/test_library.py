"""`implementation="library"`: PyTorch's own attention gives what the op is, in every mode; other ops are "torch"."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kernel_support import AttentionInputs, attention_inputs, pairwise
from residual_attention_support import compare, run
from torch import Tensor

import resclip
from resclip.io.images import read_image
from resclip_kernels import (
    CORRELATIONS,
    SemanticFeedback,
    feedback_matrix,
    laplacian_propagation,
    pamr,
    patch_labels,
    proxy_attention,
    residual_attention,
    semantic_feedback,
    similarity_aggregation,
    upsample_argmax,
)
from resclip_kernels.ops.residual_attention import library
from resclip_kernels.ops.semantic_feedback.portable import feedback_rows

GRID = (3, 6)
TERMS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "prior": {"neighbourhood_std": 2.0},
    "line": {"feedback": {"connectivity": "line"}},
    "prefix": {"feedback": {"connectivity": "prefix"}, "feedback_weight": 0.3},
    "unconnected": {"feedback": {"connectivity": None}, "neighbourhood_std": 2.0},
    "not-normalised": {"feedback": {"normalise": False}, "window": 3},
    "window": {"window": 3},
    "sharp": {"score_temperature": 0.25},
    "everything": {
        "feedback": {}, "neighbourhood_std": 5.0, "window": 5, "score_temperature": 0.7,
        "cross_weight": 0.3, "cross_temperature": 1.5,
    },
}  # fmt: skip
MODES = pairwise(list(TERMS), (True, False), (0, 1, 3, "handed back"), (GRID, (1, 1)))


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention's formula without the half second in which it is traced, where torch has this switch."""
    name = "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"
    monkeypatch.setattr(torch.nn.attention.flex_attention, name, True, raising=False)


def inputs_of(grid: tuple[int, int], cls: bool, layers: int, dtype: Any) -> AttentionInputs:
    inputs = attention_inputs(0, grid=grid, width=32, layers=layers).to(dtype)
    if cls:
        return inputs
    pairs = tuple((query[:, :, 1:], key[:, :, 1:]) for query, key in inputs.cross_layers)
    return AttentionInputs(*(tensor[:, :, 1:] for tensor in inputs[:3]), pairs, inputs.labels)


def arguments_of(inputs: AttentionInputs, correlation: str, terms: str) -> dict[str, Any]:
    """The op's keywords, Ŝ as the torch implementation forms it."""
    arguments = {**TERMS[terms], "correlation": correlation}
    if correlation in ("pp", "pp-sum"):
        arguments["projections"] = [inputs.key, inputs.value, inputs.query.flip(2)]
    if "feedback" in arguments:
        feedback = semantic_feedback(inputs.labels, **arguments["feedback"])
        matrix = feedback_rows(feedback, 0, feedback.patches)
        arguments["feedback"] = dataclasses.replace(feedback, dense=matrix)
    return arguments


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("correlation", CORRELATIONS)
def test_every_mode_is_that_of_torch(correlation: str) -> None:
    for terms, cls, layers, grid in MODES:
        if correlation == "identity" and terms != "nothing":
            continue
        handed = layers == "handed back"
        inputs = inputs_of(grid, cls, 2 if handed else layers, torch.float32)
        arguments = arguments_of(inputs, correlation, terms)
        if handed:
            arguments["cross_layer"] = run(inputs, grid, "torch", **arguments).cross_layer
        got, expected = (run(inputs, grid, name, **arguments) for name in ("library", "torch"))
        case = (terms, cls, layers, grid)
        for ours, other in zip(got, expected, strict=True):
            assert (ours is None) == (other is None), case
            if ours is not None:
                assert ours.shape == other.shape, case
                assert (ours - other).abs().max() <= 1e-5 * max(1, other.abs().max()), case
        if handed:
            assert got.cross_layer is arguments["cross_layer"]


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize(
    ("correlation", "terms", "cls", "layers"),
    # Any term with any number of layers and with and without [CLS]; the correlations in turn.
    [
        (("qk", "pp", "qq+kk", "none")[number % 4], *row)
        for number, row in enumerate(pairwise(list(TERMS), (True, False), (0, 1, 3)))
    ],
)
def test_half_precision_is_within_budget(correlation, terms, cls, layers, dtype) -> None:
    inputs = inputs_of(GRID, cls, layers, dtype)
    arguments = arguments_of(inputs, correlation, terms)
    compare(run(inputs, GRID, "library", **arguments), inputs, GRID, arguments)


def test_float64() -> None:
    inputs = inputs_of(GRID, True, 2, torch.float64)
    arguments = arguments_of(inputs, "qk", "everything")
    got, exact = (run(inputs, GRID, name, **arguments).output for name in ("library", "reference"))
    assert got.dtype == torch.float64
    assert (got - exact).abs().max() <= 1e-13


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("std", (1e-300, 1e20))
@pytest.mark.parametrize("implementation", ("library", "torch", "triton", "reference"))
def test_a_prior_of_any_width(implementation: str, std: float) -> None:
    """Its square is no number: each patch alone has a prior, or all the same."""
    pytest.importorskip("triton")
    inputs = inputs_of((2, 3), True, 0, torch.float16)
    got = run(inputs, (2, 3), implementation, neighbourhood_std=std).output
    limit = 1e-2 if std < 1 else 1e4
    expected = run(inputs, (2, 3), "torch", neighbourhood_std=limit).output
    torch.testing.assert_close(got, expected, rtol=0, atol=4e-3)


def test_batches_and_grids_of_nothing() -> None:
    inputs = inputs_of(GRID, True, 1, torch.float32)
    layers = tuple((query[:0], key[:0]) for query, key in inputs.cross_layers)
    empty = AttentionInputs(*(tensor[:0] for tensor in inputs[:3]), layers, inputs.labels[:0])
    terms = arguments_of(empty, "qk", "everything")
    assert run(empty, GRID, "library", **terms).output.shape == empty.value.shape
    for tokens in (0, 1):
        alone = inputs.value[:, :, :tokens]
        for terms in (TERMS["prior"], TERMS["window"]):
            output = residual_attention(
                alone, alone, alone, grid=(0, 0), implementation="library", **terms
            ).output
            assert torch.equal(output, alone)


@pytest.mark.parametrize("terms", ("nothing", "everything"))
def test_nan_stays_in_its_image(terms: str) -> None:
    inputs = inputs_of(GRID, True, 1, torch.float32)
    arguments = arguments_of(inputs, "qk", terms)
    clean = run(inputs, GRID, "library", **arguments)
    for tensor in (*inputs[:3], *inputs.cross_layers[0]):
        tensor[0, :, 3] = torch.nan
    dirty = run(inputs, GRID, "library", **arguments)
    for got, expected in zip(dirty, clean, strict=True):
        assert torch.isnan(got[0]).any()
        assert torch.equal(got[1], expected[1])


def test_a_compiled_caller() -> None:
    inputs = inputs_of(GRID, True, 1, torch.float32)
    feedback = semantic_feedback(inputs.labels)

    def caller(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return 2 * residual_attention(
            query,
            key,
            value,
            grid=GRID,
            neighbourhood_std=2.0,
            feedback=feedback,
            cross_layers=[(key, query)],
            implementation="library",
        ).output  # fmt: skip

    compiled = torch.compile(caller, fullgraph=True, backend="eager")
    assert torch.equal(compiled(*inputs[:3]), caller(*inputs[:3]))


@pytest.mark.parametrize("terms", ({}, {"window": 3}))
def test_gradients_are_refused_in_words(terms: dict[str, Any]) -> None:
    inputs = inputs_of(GRID, True, 0, torch.float32)
    inputs.value.requires_grad_()
    with pytest.raises(ValueError, match="'library' cannot run: .*inference.*use 'torch', or"):
        run(inputs, GRID, "library", **terms)
    with torch.no_grad():
        run(inputs, GRID, "library", **terms)


def test_without_terms_no_flexattention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain attention is every backend's fastest, and nothing is traced for it."""
    monkeypatch.setattr(library, "flexible", None)
    inputs = inputs_of(GRID, True, 1, torch.float32)
    for correlation in ("qk", "qq+kk", "identity", "none"):
        run(inputs, GRID, "library", correlation=correlation)


def test_other_ops_are_those_of_torch(seed: int) -> None:
    """Bit by bit: no library has them."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    labels = torch.randint(3, (2, 4, 5), generator=generator)
    image, masks = random(1, 3, 12, 15).sigmoid(), random(1, 2, 12, 15)
    logits, picture = random(2, 6, 4, 5), random(2, 3, 12, 15).sigmoid()
    features, values = random(2, 8, 4, 5), random(2, 2, 20, 16)

    def results(name: str) -> list[Any]:
        state = semantic_feedback(labels, implementation=name)
        return [
            state,
            feedback_matrix(state, implementation=name),
            pamr(image, masks, iterations=2, implementation=name),
            patch_labels(logits, picture, patch_size=(3, 3), implementation=name),
            proxy_attention(features, values, grid=(4, 5), implementation=name),
            laplacian_propagation(
                masks, image, features[0, :2].flatten(1), iterations=2, implementation=name
            ),
            similarity_aggregation(
                features.flatten(2).mT, values[:, 0], threshold=0.2, implementation=name
            ),
            *upsample_argmax(logits, (9, 11), implementation=name),
        ]

    for ours, other in zip(results("library"), results("torch"), strict=True):
        if isinstance(ours, SemanticFeedback):
            assert torch.equal(ours.row_sums, other.row_sums)
        else:
            assert torch.equal(ours, other)


def test_the_builtin_model_gives_the_same_labels() -> None:
    scene = read_image(Path(__file__).parent.parent / "docs/scene.png")[112:224, 112:224]
    labels = [
        resclip.load("builtin", classes=["sky", "grass", "tree"], implementation=name)
        .segment(scene)
        .labels
        for name in ("library", "torch")
    ]
    assert len(np.unique(labels[1])) > 1
    np.testing.assert_array_equal(*labels)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_compiled_flexattention(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU runs, as far as a CPU has it: half a minute of a C++ compiler."""
    monkeypatch.setattr(library, "flexible", lambda _: library.compiled_flex())
    inputs = inputs_of(GRID, True, 1, dtype)
    arguments = arguments_of(inputs, "qk", "everything")
    compare(run(inputs, GRID, "library", **arguments), inputs, GRID, arguments)
