"""The residual attention: against the materialised formula in float64, and its properties."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_support import AttentionInputs, attention_inputs, kernel_device, nan_padded
from residual_attention_support import all_terms, compare, run

from resclip_kernels import CORRELATIONS, AttentionOptions, residual_attention, semantic_feedback
from resclip_kernels.launch import Target, watch
from resclip_kernels.ops.residual_attention import portable, reference
from resclip_kernels.ops.semantic_feedback import portable as feedback_portable
from resclip_kernels.options.residual_attention import SCORES

GRID = (5, 7)
SCORED = [name for name in CORRELATIONS if SCORES[name]]
every = pytest.mark.parametrize("implementation", ("torch", "triton", "reference"))


def check(inputs: AttentionInputs, grid: tuple[int, int], arguments: dict[str, Any]) -> None:
    compare(run(inputs, grid, "torch", **arguments), inputs, grid, arguments)


@pytest.mark.parametrize(
    ("correlation", "dtype"),
    # A correlation only chooses the operands, whatever their dtype: each meets float32, and one sum the other dtypes.
    [
        *((correlation, torch.float32) for correlation in SCORED),
        ("qq+kk", torch.float16),
        ("qq+kk", torch.bfloat16),
    ],
    ids=str,
)
def test_all_terms_are_within_budget(seed: int, correlation: str, dtype: torch.dtype) -> None:
    inputs = attention_inputs(seed).to(dtype)
    check(inputs, GRID, all_terms(inputs, correlation=correlation))


@pytest.mark.parametrize(
    ("grid", "width", "heads"),
    [
        pytest.param((14, 14), 64, 2, id="197-tokens-vit-b16"),
        pytest.param((3, 16), 88, 1, id="wide-grid-vit-g14-head-width"),
        pytest.param((1, 1), 64, 2, id="one-patch"),
        pytest.param((5, 1), 32, 3, id="one-column"),
    ],
)
def test_shapes(seed: int, grid: tuple[int, int], width: int, heads: int) -> None:
    inputs = attention_inputs(seed, grid=grid, width=width, heads=heads)
    check(inputs, grid, all_terms(inputs))


@pytest.mark.parametrize(
    ("arguments", "layers"),
    # The layers' mean is formed apart from the base: each number of layers with a base of one term, and one of none.
    [
        pytest.param({}, 0, id="score-alone"),
        pytest.param({"neighbourhood_std": 3.0}, 3, id="prior"),
        pytest.param({"correlation": "identity"}, 0, id="nothing"),
        pytest.param({"correlation": "identity"}, 1, id="identity"),
        pytest.param({"correlation": "qq+kk", "cross_weight": 1.0}, 3, id="cross-layer-alone"),
    ],
)
def test_terms_one_by_one(seed: int, arguments: dict[str, Any], layers: int) -> None:
    check(attention_inputs(seed, layers=layers), GRID, arguments)


@pytest.mark.parametrize(
    ("connectivity", "normalise"), [("prefix", False), ("line", True), (None, False), (None, True)]
)
def test_feedback_rules(seed: int, connectivity, normalise: bool) -> None:
    inputs = attention_inputs(seed)
    feedback = semantic_feedback(inputs.labels, connectivity=connectivity, normalise=normalise)
    check(inputs, GRID, all_terms(inputs, feedback=feedback))


@every
def test_weight_zero_and_temperature_one_turn_a_module_off(seed: int, implementation: str) -> None:
    inputs = attention_inputs(seed, batch=1, heads=1, layers=1, device=kernel_device())
    without = run(inputs, GRID, implementation, cross_layers=()).output
    neutral = run(inputs, GRID, implementation, cross_weight=0.0, cross_temperature=1.0).output
    assert torch.equal(without, neutral)
    neutral = run(
        inputs,
        GRID,
        implementation,
        cross_layers=(),
        feedback=semantic_feedback(inputs.labels, implementation=implementation),
        feedback_weight=0.0,
        feedback_temperature=1.0,
    ).output
    assert torch.allclose(without, neutral, atol=1e-5)


def test_the_cross_layer_part_can_be_handed_back(seed: int) -> None:
    inputs = attention_inputs(seed)
    first = run(inputs, GRID, "torch")
    second = run(inputs._replace(cross_layers=()), GRID, "torch", cross_layer=first.cross_layer)
    assert torch.equal(first.output, second.output)
    assert torch.equal(first.cross_layer, second.cross_layer)


@every
def test_cls_row_sees_neither_prior_nor_feedback(seed: int, implementation: str) -> None:
    inputs = attention_inputs(seed, batch=1, heads=1, layers=0, device=kernel_device())
    plain = run(inputs, GRID, implementation).output
    # λ_s and τ_s that leave a score without Ŝ as it is.
    terms = {"feedback_weight": 0.5, "feedback_temperature": 2.0, "neighbourhood_std": 5.0}
    feedback = semantic_feedback(inputs.labels, implementation="torch")
    changed = run(inputs, GRID, implementation, feedback=feedback, **terms).output
    assert torch.allclose(plain[:, :, 0], changed[:, :, 0], atol=2e-6)
    assert not torch.allclose(plain[:, :, 1:], changed[:, :, 1:])


def test_each_image_is_on_its_own(seed: int) -> None:
    inputs = attention_inputs(seed, batch=3)
    together = run(inputs, GRID, "torch", **all_terms(inputs)).output
    layers = tuple((query[1:2], key[1:2]) for query, key in inputs.cross_layers)
    alone = AttentionInputs(*(tensor[1:2] for tensor in inputs[:3]), layers, inputs.labels[1:2])
    output = run(alone, GRID, "torch", **all_terms(alone)).output
    assert torch.allclose(output, together[1:2], atol=2e-6)


def test_row_blocks_and_strides_do_not_matter(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = attention_inputs(seed)
    # Rounded to float16, an entry of Ŝ could depend on the rows that are formed with it.
    plain = semantic_feedback(inputs.labels, normalise=False)
    terms = all_terms(inputs, window=5, feedback=plain)
    expected = run(inputs, GRID, "torch", **terms).output
    strided = inputs._replace(
        query=inputs.query.transpose(1, 2).contiguous().transpose(1, 2),
        value=nan_padded(inputs.value),
    )
    monkeypatch.setattr(feedback_portable, "PAIRS_PER_BLOCK", 200)
    output = run(strided, GRID, "torch", **terms).output
    assert torch.allclose(output, expected, atol=2e-6)


def test_no_map_of_all_heads_exists(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = attention_inputs(seed, grid=(20, 20), heads=4, layers=1)
    largest = 0
    attend = torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, attn_mask=None, **rest):
        nonlocal largest
        if attn_mask is not None:
            largest = max(largest, attn_mask.numel())
        return attend(query, key, value, attn_mask=attn_mask, **rest)

    monkeypatch.setattr(portable.F, "scaled_dot_product_attention", spy)
    run(inputs, (20, 20), "torch", **all_terms(inputs))
    assert 0 < largest <= 2 * 400 * 401


def test_prior_is_the_papers_gaussian() -> None:
    options = AttentionOptions(grid=(3, 4), neighbourhood_std=2.0)
    prior = reference.neighbourhood_prior(options, torch.zeros(1))
    points = [(y, x) for y in range(3) for x in range(4)]
    for i, (y, x) in enumerate(points):
        for j, (other_y, other_x) in enumerate(points):
            squared = (y - other_y) ** 2 + (x - other_x) ** 2
            expected = torch.exp(torch.tensor(-squared / 8.0))
            assert prior[i, j].item() == pytest.approx(expected.item(), rel=1e-6)
    rows = portable.neighbourhood_rows(options, 2, 9, torch.zeros(1))
    assert torch.allclose(rows[0], prior[2:9])


INPUTS = attention_inputs(0, layers=0)
OF_ONE_IMAGE = semantic_feedback(torch.zeros(1, *GRID, dtype=torch.int64))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"correlation": "vv"}, ValueError, "'qk', 'qq', 'kk', 'qq\\+kk', .*'identity'; got 'vv'"),
        (
            {"grid": (5, 6)},
            ValueError,
            r"5 × 6 patches has 31 tokens with \[CLS\]; query has 36 .*would be 30",
        ),
        ({"correlation": "identity", "neighbourhood_std": 5.0}, ValueError, "neighbourhood prior"),
        ({"correlation": "identity", "window": 3}, ValueError, "no score that a window could"),
        ({"correlation": "identity", "score_temperature": 0.5}, ValueError, "a score temperature"),
        ({"neighbourhood_std": 0.0}, ValueError, "neighbourhood_std .* above 0; got 0.0"),
        ({"cross_weight": 1.5}, ValueError, "cross_weight .*between 0 and 1; got 1.5"),
        ({"cross_temperature": float("inf")}, ValueError, "cross_temperature"),
        ({"feedback_weight": -0.1}, ValueError, "feedback_weight"),
        ({"feedback_temperature": -1.0}, ValueError, "feedback_temperature .* above 0; got -1.0"),
        ({"score_temperature": 0.0}, ValueError, "score_temperature .* above 0; got 0.0"),
        ({"window": 4}, ValueError, "window must be odd.*got 4"),
        ({"window": 0}, ValueError, "window must be at least 1; got 0"),
        ({"window": 3.0}, TypeError, "window must be an integer; got 3.0"),
        ({"key": INPUTS.key[..., :32]}, ValueError, "key must have query's shape"),
        ({"value": INPUTS.value.half()}, TypeError, "value must be torch.float32"),
        ({"feedback": OF_ONE_IMAGE}, ValueError, "feedback is for 1 images"),
        ({"cross_layer": torch.zeros(1)}, ValueError, "cross_layer must have value's shape"),
        ({"correlation": "pp"}, ValueError, "projections with themselves; got none: pass"),
        ({"projections": [INPUTS.key]}, ValueError, "only correlation 'pp' takes projections; got"),
        (
            {"correlation": "pp", "projections": [INPUTS.key, INPUTS.key[:, :, 1:]]},
            ValueError,
            r"projections\[1\] must have",
        ),
        ({"correlation": "pp", "projections": [[1.0]]}, TypeError, "torch.Tensor; got list"),
    ],
)
def test_errors_say_what_was_expected(arguments: dict[str, Any], error, message: str) -> None:
    tensors = {"query": INPUTS.query, "key": INPUTS.key, "value": INPUTS.value, "grid": GRID}
    with pytest.raises(error, match=message):
        residual_attention(**{**tensors, **arguments})


@pytest.mark.parametrize(
    ("target", "width", "dtype"),
    [
        (("cuda", 90), 64, torch.float16),
        (("cuda", 90), 80, torch.float32),
        (("cuda", 80), 80, torch.bfloat16),
        (("cuda", 100), 80, torch.float16),
        (("hip", "gfx942"), 64, torch.float32),
    ],
)
def test_launches_a_call(target: tuple[str, Any], width: int, dtype: torch.dtype) -> None:
    """The same on every device: the layers, what is added to the scores, the base."""
    meta = meta_inputs(dtype, width=width)
    with watch(target=Target(*target), execute=False) as watcher:
        feedback = semantic_feedback(meta.labels, implementation="triton")
        watcher.launches.clear()
        run(meta, GRID, "triton", feedback=feedback, neighbourhood_std=5.0)
    assert watcher.names() == [
        "cross_layer_kernel",
        "class_numbers_kernel",
        "additive_terms_kernel",
        "base_kernel",
    ]


def meta_inputs(dtype: torch.dtype, **sizes: Any) -> AttentionInputs:
    inputs = attention_inputs(0, **sizes)
    return AttentionInputs(
        inputs.query.to("meta", dtype),
        inputs.key.to("meta", dtype),
        inputs.value.to("meta", dtype),
        tuple(
            (query.to("meta", dtype), key.to("meta", dtype)) for query, key in inputs.cross_layers
        ),
        inputs.labels.to("meta"),
    )


@pytest.mark.parametrize("function", ("residual_attention", "fastest_attention"))
def test_auto_alone_leaves_long_layers_to_pytorch(function: str) -> None:
    """Where the launch table says that this is faster; by name only this project's kernels run."""
    kernels = pytest.importorskip("resclip_kernels.ops.residual_attention.triton")
    grid = (64, 64)
    meta = meta_inputs(torch.float16, grid=grid, heads=1, batch=1)
    options = AttentionOptions(grid=grid, neighbourhood_std=5.0)
    with watch(target=Target("cuda", 90), execute=False) as watcher:
        output, cross_layer = getattr(kernels, function)(
            *meta[:3], options, (), None, meta.cross_layers, None
        )
    assert output.shape == cross_layer.shape == meta.value.shape
    mine = [] if function == "fastest_attention" else ["cross_layer_kernel"]
    assert watcher.names() == [*mine, "additive_terms_kernel", "base_kernel"]


def test_heads_without_width_are_refused() -> None:
    nothing = torch.zeros(1, 1, 7, 0)
    with pytest.raises(ValueError, match="the width of query's heads must be at least 1; got 0"):
        residual_attention(nothing, nothing, nothing, grid=(2, 3))
