"""The residual attention: against the materialised formula in float64, and its properties."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_support import AttentionInputs, attention_inputs, check_budget, kernel_device

from resclip_kernels import CORRELATIONS, AttentionOptions, residual_attention, semantic_feedback
from resclip_kernels.launch import Target, watch
from resclip_kernels.ops.residual_attention import portable, reference
from resclip_kernels.ops.residual_attention.options import SCORES
from resclip_kernels.ops.semantic_feedback import portable as feedback_portable

SCORED = [name for name in CORRELATIONS if SCORES[name]]


def run(inputs: AttentionInputs, grid: tuple[int, int], implementation: str, **arguments: Any):
    return residual_attention(
        inputs.query,
        inputs.key,
        inputs.value,
        grid=grid,
        cross_layers=inputs.cross_layers,
        implementation=implementation,
        **arguments,
    )


def everything(inputs: AttentionInputs, **changes: Any) -> dict[str, Any]:
    """All terms at once, with the released weights."""
    return {
        "feedback": semantic_feedback(inputs.labels),
        "neighbourhood_std": 5.0,
        **changes,
    }


def check(inputs: AttentionInputs, grid: tuple[int, int], arguments: dict[str, Any]) -> None:
    oracle = run(inputs.to(torch.float64), grid, "reference", **arguments)
    plain = run(inputs, grid, "reference", **arguments)
    got = run(inputs, grid, "torch", **arguments)
    check_budget(got.output, plain.output, oracle.output)
    if inputs.cross_layers:
        check_budget(got.cross_layer, plain.cross_layer, oracle.cross_layer)
    else:
        assert got.cross_layer is None


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize("correlation", SCORED)
def test_all_terms_are_within_budget(seed: int, correlation: str, dtype: torch.dtype) -> None:
    inputs = attention_inputs(seed, grid=(5, 7)).to(dtype)
    check(inputs, (5, 7), everything(inputs, correlation=correlation))


@pytest.mark.parametrize(
    ("grid", "width", "heads"),
    [
        pytest.param((14, 14), 64, 2, id="197-tokens-vit-b16"),
        pytest.param((7, 7), 80, 1, id="vit-h14-head-width"),
        pytest.param((3, 16), 88, 1, id="wide-grid-vit-g14-head-width"),
        pytest.param((4, 4), 128, 1, id="widest-head"),
        pytest.param((4, 4), 32, 3, id="narrowest-head"),
        pytest.param((1, 1), 64, 2, id="one-patch"),
        pytest.param((1, 5), 64, 2, id="one-row"),
    ],
)
def test_shapes(seed: int, grid: tuple[int, int], width: int, heads: int) -> None:
    inputs = attention_inputs(seed, grid=grid, width=width, heads=heads)
    check(inputs, grid, everything(inputs))


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({}, id="score-alone"),
        pytest.param({"neighbourhood_std": 3.0}, id="prior"),
        pytest.param({"correlation": "identity"}, id="identity"),
        pytest.param({"correlation": "qq+kk", "cross_weight": 1.0}, id="cross-layer-alone"),
    ],
)
@pytest.mark.parametrize("layers", (0, 1, 3))
def test_terms_one_by_one(seed: int, arguments: dict[str, Any], layers: int) -> None:
    check(attention_inputs(seed, layers=layers), (5, 7), arguments)


@pytest.mark.parametrize("normalise", (True, False))
@pytest.mark.parametrize("connectivity", ("prefix", "line", "component", None))
def test_every_feedback_rule(seed: int, connectivity, normalise: bool) -> None:
    inputs = attention_inputs(seed)
    feedback = semantic_feedback(inputs.labels, connectivity=connectivity, normalise=normalise)
    check(inputs, (5, 7), everything(inputs, feedback=feedback))


@pytest.mark.parametrize("implementation", ("torch", "triton", "reference"))
def test_weight_zero_and_temperature_one_turn_a_module_off(seed: int, implementation: str) -> None:
    inputs = attention_inputs(seed, heads=1, layers=1, device=kernel_device())
    without = run(inputs._replace(cross_layers=()), (5, 7), implementation).output
    neutral = run(inputs, (5, 7), implementation, cross_weight=0.0, cross_temperature=1.0).output
    assert torch.equal(without, neutral)
    neutral = run(
        inputs._replace(cross_layers=()),
        (5, 7),
        implementation,
        feedback=semantic_feedback(inputs.labels, implementation=implementation),
        feedback_weight=0.0,
        feedback_temperature=1.0,
    ).output
    assert torch.allclose(without, neutral, atol=1e-5)


def test_the_cross_layer_part_can_be_handed_back(seed: int) -> None:
    inputs = attention_inputs(seed)
    first = run(inputs, (5, 7), "torch")
    second = run(inputs._replace(cross_layers=()), (5, 7), "torch", cross_layer=first.cross_layer)
    assert torch.equal(first.output, second.output)
    assert torch.equal(first.cross_layer, second.cross_layer)


@pytest.mark.parametrize("implementation", ("torch", "triton", "reference"))
def test_cls_row_sees_neither_prior_nor_feedback(seed: int, implementation: str) -> None:
    inputs = attention_inputs(seed, heads=1, layers=0, device=kernel_device())
    plain = run(inputs, (5, 7), implementation).output
    # λ_s and τ_s that leave a score without Ŝ as it is.
    terms = {"feedback_weight": 0.5, "feedback_temperature": 2.0, "neighbourhood_std": 5.0}
    feedback = semantic_feedback(inputs.labels, implementation="torch")
    changed = run(inputs, (5, 7), implementation, feedback=feedback, **terms).output
    assert torch.allclose(plain[:, :, 0], changed[:, :, 0], atol=2e-6)
    assert not torch.allclose(plain[:, :, 1:], changed[:, :, 1:])


def test_each_image_is_on_its_own(seed: int) -> None:
    inputs = attention_inputs(seed, batch=4)
    together = run(inputs, (5, 7), "torch", **everything(inputs)).output
    for number in range(4):
        one = slice(number, number + 1)
        alone = AttentionInputs(
            inputs.query[one],
            inputs.key[one],
            inputs.value[one],
            tuple((query[one], key[one]) for query, key in inputs.cross_layers),
            inputs.labels[one],
        )
        output = run(alone, (5, 7), "torch", **everything(alone)).output
        assert torch.allclose(output[0], together[number], atol=2e-6)


def test_row_blocks_and_strides_do_not_matter(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = attention_inputs(seed)
    expected = run(inputs, (5, 7), "torch", **everything(inputs)).output
    strided = inputs._replace(
        query=inputs.query.transpose(1, 2).contiguous().transpose(1, 2),
        value=torch.cat([inputs.value, torch.full_like(inputs.value, torch.nan)], dim=-1)[..., :64],
    )
    monkeypatch.setattr(feedback_portable, "PAIRS_PER_BLOCK", 200)
    output = run(strided, (5, 7), "torch", **everything(inputs)).output
    assert torch.allclose(output, expected, atol=2e-6)


def test_no_map_of_all_heads_exists(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = attention_inputs(seed, grid=(20, 20), heads=4)
    largest = 0
    attend = torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, attn_mask=None, **rest):
        nonlocal largest
        if attn_mask is not None:
            largest = max(largest, attn_mask.numel())
        return attend(query, key, value, attn_mask=attn_mask, **rest)

    monkeypatch.setattr(portable.F, "scaled_dot_product_attention", spy)
    run(inputs, (20, 20), "torch", **everything(inputs))
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


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"correlation": "vv"}, ValueError, "'qk', 'qq', 'kk', 'qq\\+kk', .*'identity'; got 'vv'"),
        ({"grid": (5, 6)}, ValueError, "5 × 6 patches has 31 tokens with .CLS.; query has 36"),
        ({"correlation": "identity", "neighbourhood_std": 5.0}, ValueError, "has no score"),
        ({"neighbourhood_std": 0.0}, ValueError, "above 0; got 0.0"),
        ({"cross_weight": 1.5}, ValueError, "between 0 and 1; got 1.5"),
        ({"feedback_temperature": -1.0}, ValueError, "above 0; got -1.0"),
        ({"key": torch.zeros(2, 2, 36, 32)}, ValueError, r"key must have query's shape"),
        ({"value": torch.zeros(2, 2, 36, 64).half()}, TypeError, "must be torch.float32"),
        ({"feedback": semantic_feedback(torch.zeros(1, 5, 7).long())}, ValueError, "for 1 images"),
        ({"cross_layer": torch.zeros(1)}, ValueError, "cross_layer must have query's shape"),
    ],
)
def test_errors_say_what_was_expected(arguments: dict[str, Any], error, message: str) -> None:
    inputs = attention_inputs(0, layers=0)
    tensors = {"query": inputs.query, "key": inputs.key, "value": inputs.value, "grid": (5, 7)}
    with pytest.raises(error, match=message):
        residual_attention(**{**tensors, **arguments})


@pytest.mark.parametrize(
    ("target", "width", "dtype", "launches"),
    [
        (("cuda", 90), 64, torch.float16, 1),
        (("cuda", 90), 80, torch.float16, 1),
        (("cuda", 90), 80, torch.float32, 2),
        (("cuda", 80), 64, torch.float16, 1),
        (("cuda", 80), 80, torch.float16, 2),
        (("hip", "gfx942"), 64, torch.float16, 2),
    ],
)
def test_launches_a_call(
    target: tuple[str, Any], width: int, dtype: torch.dtype, launches: int
) -> None:
    """One kernel for all terms at once; two where the registers do not hold both stages."""
    inputs = attention_inputs(0, width=width)
    meta = AttentionInputs(
        inputs.query.to("meta", dtype),
        inputs.key.to("meta", dtype),
        inputs.value.to("meta", dtype),
        tuple(
            (query.to("meta", dtype), key.to("meta", dtype)) for query, key in inputs.cross_layers
        ),
        inputs.labels.to("meta"),
    )
    with watch(execute=False, target=Target(*target)) as watcher:
        feedback = semantic_feedback(meta.labels, implementation="triton")
        run(meta, (5, 7), "triton", feedback=feedback, neighbourhood_std=5.0)
    assert watcher.names().count("residual_attention_kernel") == launches
