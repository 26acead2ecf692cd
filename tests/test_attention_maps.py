"""Rows of the attention maps: what they gather is the op's own result, and each map is what it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_support import AttentionInputs, attention_inputs, check_budget
from torch import Tensor

from resclip_kernels import (
    attention_maps,
    cross_layer_rows,
    feedback_matrix,
    residual_attention,
    semantic_feedback,
)

# Not square, and two images: a transposed or swapped index shows.
GRID = (3, 5)
PATCHES = 15
ROWS = torch.tensor([0, 7, 14, 3, 7])

SWITCHES: dict[str, dict[str, Any]] = {
    "qk": {"correlation": "qk"},
    "qq": {"correlation": "qq"},
    "kk": {"correlation": "kk"},
    "sum": {"correlation": "qq+kk"},
    "projections": {"correlation": "pp"},
    "none": {"correlation": "none"},
    "identity": {"correlation": "identity"},
    "sharp": {"score_temperature": 0.3},
    "window": {"window": 3},
    "window-of-sharp-projections": {"correlation": "pp", "window": 3, "score_temperature": 0.5},
    "window-alone": {"correlation": "none", "window": 3},
}
sequences = pytest.mark.parametrize("cls", (True, False), ids=("cls", "patches-alone"))


def sample(seed: int, cls: bool = True, layers: int = 2) -> AttentionInputs:
    inputs = attention_inputs(seed, grid=GRID, width=16, layers=layers)
    if cls:
        return inputs
    pairs = tuple((query[:, :, 1:], key[:, :, 1:]) for query, key in inputs.cross_layers)
    return AttentionInputs(*(tensor[:, :, 1:] for tensor in inputs[:3]), pairs, inputs.labels)


def arguments_of(inputs: AttentionInputs, switch: str, *, terms: bool = True) -> dict[str, Any]:
    """The switch, with every term that it allows."""
    arguments: dict[str, Any] = {"grid": GRID, **SWITCHES[switch]}
    if arguments.get("correlation") in ("pp", "pp-sum"):
        arguments["projections"] = [inputs.value, inputs.key]
    if not terms:
        return arguments
    arguments |= {"cross_layers": inputs.cross_layers, "cross_weight": 0.4}
    arguments |= {"cross_temperature": 2.0}
    if switch != "identity":
        # With Ŝ in the state, its rounding to float16 cannot depend on how many rows are formed together.
        feedback = semantic_feedback(inputs.labels, implementation="reference")
        arguments |= {"feedback": feedback, "feedback_weight": 0.6, "feedback_temperature": 2.1}
        arguments |= {"neighbourhood_std": 2.0}
    return arguments


# Every switch with all terms; alone and without [CLS] those whose scores are made otherwise.
@pytest.mark.parametrize(
    ("switch", "terms", "cls"),
    [
        *((switch, True, True) for switch in SWITCHES),
        *((switch, True, False) for switch in ("sum", "identity", "window-alone")),
        *((switch, False, False) for switch in ("none", "window-of-sharp-projections")),
        ("qq", False, True),
    ],
)
def test_final_rows_gather_what_the_op_returns(seed, switch: str, terms: bool, cls: bool) -> None:
    inputs = sample(seed, cls)
    arguments = arguments_of(inputs, switch, terms=terms)
    final = attention_maps(inputs.query, inputs.key, ROWS, **arguments).final
    assert final.shape == (2, 2, 5, PATCHES + cls)
    plain = residual_attention(*inputs[:3], **arguments, implementation="reference").output
    exact = inputs.to(torch.float64)
    switches = {**arguments}
    if terms:
        switches["cross_layers"] = exact.cross_layers
    if "projections" in arguments:
        switches["projections"] = [projection.double() for projection in arguments["projections"]]
    oracle = residual_attention(*exact[:3], **switches, implementation="reference").output
    check_budget(final @ inputs.value, plain[:, :, ROWS], oracle[:, :, ROWS])


@sequences
def test_every_map_is_its_own(seed: int, cls: bool) -> None:
    inputs = sample(seed, cls)
    arguments = arguments_of(inputs, "sum")
    maps = attention_maps(inputs.query, inputs.key, ROWS, **arguments)
    bare = {**arguments, "feedback": None, "cross_layers": ()}
    base = attention_maps(inputs.query, inputs.key, ROWS, **bare)
    assert torch.equal(maps.base, base.final)
    assert base.cross_layer is None
    assert base.feedback is None
    # Heads are 16 wide.
    layers = [(query @ key.mT / 4.0).softmax(dim=-1) for query, key in inputs.cross_layers]
    torch.testing.assert_close(maps.cross_layer, torch.stack(layers).mean(dim=0)[:, :, ROWS])
    skip = int(cls)
    whole = torch.nn.functional.pad(feedback_matrix(arguments["feedback"]), (skip, 0, skip, 0))
    assert torch.equal(maps.feedback, whole[:, ROWS])
    # 2 · (0.6 · 2 + 0.4 · 1) = 3.2.
    for planes, mass in ((maps.base, 2.0), (maps.cross_layer, 1.0), (maps.final, 3.2)):
        torch.testing.assert_close(planes.sum(-1), torch.full(planes.shape[:3], mass))


def test_the_portable_ops_state_too(seed: int) -> None:
    inputs = sample(seed)
    feedback = semantic_feedback(inputs.labels, connectivity="line", implementation="torch")
    maps = attention_maps(inputs.query, inputs.key, ROWS, grid=GRID, feedback=feedback)
    whole = torch.nn.functional.pad(feedback_matrix(feedback), (1, 0, 1, 0))
    # One step of float16: a row formed alone may be rounded to the other side.
    torch.testing.assert_close(maps.feedback, whole[:, ROWS], rtol=1e-3, atol=1e-7)


def test_no_more_than_a_row_of_scores_is_held_and_no_gradient(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = sample(seed)
    inputs.query.requires_grad_()
    largest = 0
    softmax = Tensor.softmax

    def spy(scores: Tensor, *arguments: Any, **named: Any) -> Tensor:
        nonlocal largest
        largest = max(largest, scores.numel())
        return softmax(scores, *arguments, **named)

    monkeypatch.setattr(Tensor, "softmax", spy)
    maps = attention_maps(inputs.query, inputs.key, ROWS, **arguments_of(inputs, "sum"))
    assert not maps.final.requires_grad
    assert largest == 2 * 2 * (1 + PATCHES)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float64), ids=str)
def test_half_precision_is_widened(seed: int, dtype: torch.dtype) -> None:
    inputs = sample(seed).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    arguments = arguments_of(inputs, "projections")
    maps = attention_maps(inputs.query, inputs.key, ROWS, **arguments)
    assert maps.base.dtype == maps.cross_layer.dtype == maps.final.dtype == wide
    widened = arguments_of(inputs.to(wide), "projections")
    same = attention_maps(inputs.query.to(wide), inputs.key.to(wide), ROWS, **widened)
    assert torch.equal(maps.final, same.final)
    rows = cross_layer_rows(inputs.cross_layers, ROWS)
    assert torch.equal(rows, maps.cross_layer)


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([0, 1], TypeError, "int64 tensor .* got list"),
        (torch.tensor([0.0]), TypeError, "got torch.float32"),
        (torch.tensor([[0]]), ValueError, r"must be \(R,\).* got \(1, 1\)"),
        (torch.tensor([], dtype=torch.int64), ValueError, r"got \(0,\)"),
        (torch.tensor([3, 16]), ValueError, "between 0 and 15; got 16"),
        (torch.tensor([-1]), ValueError, "got -1"),
    ],
)
def test_rows_that_do_not_fit(rows: Any, error: type[Exception], message: str) -> None:
    inputs = sample(0)
    with pytest.raises(error, match=message):
        attention_maps(inputs.query, inputs.key, rows, grid=GRID)
    with pytest.raises(error, match=message):
        cross_layer_rows(inputs.cross_layers, rows)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"grid": (3, 4)}, ValueError, "has 13 tokens with .CLS.; query has 16 .without"),
        ({"correlation": "identity", "window": 3}, ValueError, "no score that a window could"),
        ({"correlation": "pp"}, ValueError, "got none: pass projections"),
        ({"cross_layers": [(torch.zeros(1), torch.zeros(1))]}, ValueError, "must have query's"),
    ],
)
def test_arguments_that_do_not_fit(arguments, error: type[Exception], message: str) -> None:
    inputs = sample(0)
    with pytest.raises(error, match=message):
        attention_maps(inputs.query, inputs.key, ROWS, **{"grid": GRID, **arguments})
    with pytest.raises(ValueError, match="at least one .query, key.; got none"):
        cross_layer_rows((), ROWS)
