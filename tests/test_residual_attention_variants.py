"""The residual attention's further options: no [CLS], projections, no score, score temperature and window.

Every implementation against float64, pairwise; then what must not depend on these options.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from kernel_support import AttentionInputs, kernel_device, nan_padded, pairwise
from residual_attention_support import (
    DTYPES,
    all_terms,
    compare,
    judge,
    only_launch,
    products_in_order,  # noqa: F401
    run,
    sample,
    state,
)
from torch import Tensor

from resclip_kernels import AttentionOptions, residual_attention
from resclip_kernels.ops.residual_attention import portable, reference

pytest.importorskip("resclip_kernels.ops.residual_attention.triton", reason="needs triton")

# Not square; 36 patches are one whole tile of 32 columns and a masked one, with and without [CLS].
GRID = (4, 9)
both = pytest.mark.parametrize("implementation", ("torch", "triton"))
# A property of the formula: the budgets below hold every implementation to the reference with [CLS] and without.
kernel_and_formula = pytest.mark.parametrize("implementation", ("triton", "reference"))
formula = pytest.mark.parametrize(
    ("implementation", "cls"), [("torch", False), ("triton", True), ("reference", True)]
)
sequences = pytest.mark.parametrize("cls", (True, False), ids=("cls", "patches-alone"))

SWITCHES = {
    "sharp": {"correlation": "qk", "score_temperature": 0.25},
    "sum": {"correlation": "qq+kk"},
    "identity": {"correlation": "identity"},
    "projections": {"correlation": "pp"},
    "sum-of-projections": {"correlation": "pp-sum"},
    "none": {"correlation": "none"},
    "sharp-window-of-projections": {"correlation": "pp", "score_temperature": 0.5, "window": 5},
    "window-of-a-sum": {"correlation": "qq+kk", "window": 3},
    "window-alone": {"correlation": "none", "window": 3},
    "window-of-one-patch": {"correlation": "qk", "window": 1},
    "window-past-the-grid": {"correlation": "kk", "window": 99},
}


def without_cls(inputs: AttentionInputs) -> AttentionInputs:
    """The patches alone, as views."""
    layers = tuple((query[:, :, 1:], key[:, :, 1:]) for query, key in inputs.cross_layers)
    return AttentionInputs(*(tensor[:, :, 1:] for tensor in inputs[:3]), layers, inputs.labels)


def variant(
    seed: int, cls: bool, dtype: torch.dtype = torch.float32, **sizes: Any
) -> AttentionInputs:
    inputs = sample(seed, sizes.pop("grid", GRID), dtype, **sizes)
    return inputs if cls else without_cls(inputs)


def given(inputs: AttentionInputs, switch: str) -> dict[str, Any]:
    """The switch's arguments; three projections for "pp", of which two are the sample's own tensors."""
    arguments: dict[str, Any] = dict(SWITCHES[switch])
    if arguments.get("correlation") in ("pp", "pp-sum"):
        arguments["projections"] = [inputs.key, inputs.value, inputs.query.flip(2)]
    return arguments


def check(
    inputs: AttentionInputs,
    implementation: str,
    arguments: dict[str, Any],
    grid: tuple[int, int] = GRID,
) -> None:
    if implementation == "triton":
        judge(inputs, grid, arguments)
    else:
        compare(run(inputs, grid, "torch", **arguments), inputs, grid, arguments)


# A switch changes what is compared and masked, [CLS] where the patches begin, a dtype the loads, and the kernel forms
# scores with terms in other branches than without: any two of these meet in the kernel. In torch a term is one more
# addend of the bias: a switch meets [CLS] and each dtype, and terms by turns.
CASES = [
    *(("triton", *row) for row in pairwise(list(SWITCHES), (False, True), (True, False), DTYPES)),
    *(
        ("torch", switch, number % 2 == 0, cls, dtype)
        for number, (switch, cls, dtype) in enumerate(
            pairwise(list(SWITCHES), (True, False), DTYPES)
        )
    ),
]


@pytest.mark.parametrize(("implementation", "switch", "terms", "cls", "dtype"), CASES, ids=str)
def test_switches_are_within_budget(
    seed: int, implementation: str, switch: str, terms: bool, cls: bool, dtype
) -> None:
    terms = terms and switch != "identity"
    heads = 1 if terms or dtype == torch.float32 else 2
    inputs = variant(seed, cls, dtype, layers=int(terms), heads=heads)
    arguments = given(inputs, switch)
    check(inputs, implementation, all_terms(inputs, **arguments) if terms else arguments)


@both
@pytest.mark.parametrize(("switch", "cls"), [("none", True), ("window-of-a-sum", False)])
def test_prior_alone_and_feedback_alone(seed, switch: str, cls: bool, implementation: str) -> None:
    inputs = variant(seed, cls, layers=0)
    check(inputs, implementation, {"neighbourhood_std": 2.0, **given(inputs, switch)})
    check(inputs, implementation, {"feedback": state(inputs), **given(inputs, switch)})


@pytest.mark.parametrize(
    ("grid", "heads", "layers"),
    [
        pytest.param((2, 16), 3, 1, id="whole-tiles-and-heads-no-multiple-of-a-programs"),
        pytest.param((5, 13), 1, 1, id="65-tokens-one-past-a-row-block"),
        pytest.param((1, 1), 2, 2, id="one-token"),
    ],
)
def test_shapes_without_cls(seed: int, grid, heads: int, layers: int) -> None:
    """Tiles are the kernel's alone; torch has no case but one of a single token, which the last one is."""
    inputs = variant(seed, False, grid=grid, heads=heads, layers=layers)
    check(inputs, "triton", all_terms(inputs), grid)
    if grid == (1, 1):
        check(inputs, "torch", all_terms(inputs), grid)


@kernel_and_formula
def test_patches_alone_are_those_of_a_sequence_whose_cls_nobody_sees(seed, implementation) -> None:
    inputs = variant(seed, True, layers=0)
    terms = all_terms(inputs, correlation="qq+kk", score_temperature=0.7)
    masked = run(inputs, GRID, implementation, **terms, window=99).output
    alone = run(without_cls(inputs), GRID, implementation, **terms).output
    torch.testing.assert_close(masked[:, :, 1:], alone)


@kernel_and_formula
def test_the_row_of_cls_sees_past_the_window(seed: int, implementation: str) -> None:
    inputs = variant(seed, True)
    for correlation in ("kk", "none"):
        limited = run(inputs, GRID, implementation, correlation=correlation, window=3).output
        free = run(inputs, GRID, implementation, correlation=correlation).output
        torch.testing.assert_close(limited[:, :, 0], free[:, :, 0])
        assert not torch.allclose(limited[:, :, 1:], free[:, :, 1:])


@formula
def test_projections_of_query_and_key(seed: int, cls: bool, implementation: str) -> None:
    inputs = variant(seed, cls)
    terms = all_terms(inputs) if cls else {"neighbourhood_std": 5.0}

    def output(correlation: str, *projections: Tensor) -> Tensor:
        names = {"correlation": correlation, "projections": projections}
        return run(inputs, GRID, implementation, **terms, **names).output

    assert torch.equal(output("pp", inputs.query), output("qq"))
    assert torch.equal(output("pp", inputs.key), output("kk"))
    once, twice = output("pp", inputs.value), output("pp", inputs.value, inputs.value)
    torch.testing.assert_close(twice, once)
    ordered = output("pp", inputs.query, inputs.key)
    torch.testing.assert_close(output("pp", inputs.key, inputs.query), ordered)
    assert not torch.allclose(ordered, once)


@pytest.mark.parametrize(
    ("switch", "implementation", "cls"),
    # The budgets hold every implementation to the reference: each switch once, and each implementation in turn.
    [
        (switch, implementation, cls)
        for switch, (cls, implementation) in zip(
            SWITCHES,
            itertools.cycle(itertools.product((True, False), ("torch", "triton", "reference"))),
            strict=False,
        )
    ],
)
def test_rows_sum_to_their_mass(seed: int, switch: str, implementation: str, cls: bool) -> None:
    inputs = variant(seed, cls)
    ones = inputs._replace(value=torch.ones_like(inputs.value))
    arguments = given(inputs, switch)
    terms = {} if switch == "identity" else all_terms(inputs)
    output = run(ones, GRID, implementation, **{**terms, **arguments}).output
    masses = {"qq+kk": 2, "pp-sum": len(arguments.get("projections", ()))}
    mass = masses.get(arguments.get("correlation"), 1)
    assert ((output / (2.0 * (0.6 * mass + 0.4)) - 1).abs() <= 2e-6).all()


@kernel_and_formula
def test_score_temperature_divides_the_bases_own_scores(seed: int, implementation: str) -> None:
    inputs = variant(seed, True)
    terms = all_terms(inputs, correlation="qk")
    sharp = run(inputs, GRID, implementation, **terms, score_temperature=0.25)
    # A power of two scales without rounding.
    scaled = run(inputs._replace(query=4 * inputs.query), GRID, implementation, **terms)
    torch.testing.assert_close(sharp.output, scaled.output)
    plain = run(inputs, GRID, implementation, **terms)
    assert torch.equal(sharp.cross_layer, plain.cross_layer)
    assert not torch.allclose(sharp.output, plain.output)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("implementation", "poison"),
    [("torch", torch.nan), ("triton", torch.nan), ("triton", torch.inf)],
)
def test_window_keeps_cls_from_the_patches(seed: int, poison: float, implementation: str) -> None:
    inputs = variant(seed, True, layers=0, heads=2)
    for correlation in ("kk", "none"):
        arguments = {"correlation": correlation, "window": 3, "neighbourhood_std": 2.0}
        clean = run(inputs, GRID, implementation, **arguments).output
        dirty = AttentionInputs(*(tensor.clone() for tensor in inputs[:3]), (), inputs.labels)
        for tensor in dirty[:3]:
            tensor[:, :, 0] = poison
        got = run(dirty, GRID, implementation, **arguments).output
        assert torch.equal(got[:, :, 1:], clean[:, :, 1:])
        assert not torch.isfinite(got[:, :, 0]).any()


@formula
def test_no_score_reads_neither_query_nor_key(seed, cls: bool, implementation: str) -> None:
    inputs = variant(seed, cls, layers=0)
    garbage = torch.full_like(inputs.query, torch.nan)
    dirty = inputs._replace(query=garbage, key=garbage)
    for terms in ({}, all_terms(inputs)):
        arguments = {**terms, "correlation": "none"}
        clean = run(inputs, GRID, implementation, **arguments).output
        assert torch.equal(run(dirty, GRID, implementation, **arguments).output, clean)


@sequences
def test_strides_and_nan_around_change_nothing(seed: int, cls: bool) -> None:
    inputs = variant(seed, cls, layers=0, heads=2)
    projections = [inputs.query, inputs.key]
    terms = all_terms(inputs, correlation="pp", window=5)
    expected = run(inputs, GRID, **terms, projections=projections).output
    padded = inputs._replace(value=nan_padded(inputs.value))
    turned = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in projections]
    for given_inputs, given_projections in (
        (padded, [nan_padded(tensor) for tensor in projections]),
        (inputs, turned),
    ):
        got = run(given_inputs, GRID, **terms, projections=given_projections).output
        assert torch.equal(got, expected)
    # Query and key are not read: layouts of their own make no copies.
    odd = padded._replace(query=inputs.query.mT.contiguous().mT, key=inputs.key)
    in_place = [nan_padded(tensor) for tensor in projections]
    launch = only_launch(odd, GRID, **terms, projections=in_place)
    assert launch.arguments["value"].data.data_ptr() == odd.value.data_ptr()
    scores = launch.arguments["scores"]
    places = tuple(projection.data_ptr() for projection in in_place)
    assert tuple(left.data_ptr() for left in scores.lefts) == places
    assert tuple(right.data_ptr() for right in scores.rights) == places


@both
def test_no_token(implementation: str) -> None:
    nothing = torch.zeros(2, 1, 0, 32, device=kernel_device())
    options = {"grid": (0, 0), "implementation": implementation}
    assert residual_attention(nothing, nothing, nothing, **options).output.shape == nothing.shape


def test_window_is_a_square_around_each_patch() -> None:
    height, width, reach = 3, 5, 1
    options = AttentionOptions(grid=(height, width), window=2 * reach + 1)
    points = [(y, x) for y in range(height) for x in range(width)]
    expected = torch.tensor(
        [[abs(y - v) <= reach and abs(x - u) <= reach for v, u in points] for y, x in points]
    )
    device = torch.device("cpu")
    assert torch.equal(portable.window_rows(options, 0, 15, device), expected)
    assert torch.equal(portable.window_rows(options, 4, 9, device), expected[4:9])
    outside = reference.outside_window(options, range(16), 16, device)
    assert torch.equal(~outside[1:, 1:], expected)
    assert outside[1:, 0].all()
    assert not outside[0].any()


@pytest.mark.parametrize("width", (8, 32, 48), ids=("narrower", "as-wide", "wider"))
@pytest.mark.parametrize("implementation", ("torch", "library", "triton"))
def test_scores_of_another_width_than_the_values(
    seed: int, implementation: str, width: int
) -> None:
    """Scores stay over the root of their own width, and A_c's over that of the values."""
    inputs = sample(seed, GRID, layers=2)
    generator = torch.Generator().manual_seed(seed)
    shape = (*inputs.query.shape[:3], width)
    query, key = (torch.randn(shape, generator=generator).to(inputs.query) for _ in range(2))
    for correlation in ("qk", "qq+kk"):
        results = [
            residual_attention(
                query,
                key,
                inputs.value,
                grid=GRID,
                correlation=correlation,
                cross_layers=inputs.cross_layers,
                implementation=name,
                **all_terms(inputs),
            )
            for name in (implementation, "reference")
        ]
        for got, wanted in zip(*results, strict=True):
            assert got is not None
            assert wanted is not None
            torch.testing.assert_close(got, wanted, rtol=2e-4, atol=2e-5)
    wide = torch.nn.functional.pad(query, (0, 5)), torch.nn.functional.pad(key, (0, 5))
    padded = residual_attention(
        *wide,
        inputs.value,
        grid=GRID,
        correlation="qk",
        score_temperature=(width / (width + 5)) ** 0.5,
        implementation=implementation,
    )
    plain = residual_attention(
        query, key, inputs.value, grid=GRID, correlation="qk", implementation=implementation
    )
    torch.testing.assert_close(padded.output, plain.output, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("implementation", ("torch", "library", "triton"))
def test_middle_blocks_of_another_width_than_the_values(seed: int, implementation: str) -> None:
    inputs = sample(seed, GRID, layers=2)
    first, second = inputs.cross_layers
    for layers in (
        ((first[0][..., :8], first[1][..., :8]), second),
        tuple((torch.cat(pair, -1), torch.cat(pair[::-1], -1)) for pair in (first, second)),
    ):
        results = [
            residual_attention(*inputs[:3], grid=GRID, cross_layers=layers, implementation=name)
            for name in (implementation, "reference")
        ]
        for got, wanted in zip(*results, strict=True):
            assert got is not None
            assert wanted is not None
            torch.testing.assert_close(got, wanted, rtol=2e-4, atol=2e-5)


def test_a_middle_blocks_query_and_key_are_alike() -> None:
    inputs = sample(2, GRID)
    query, key = inputs.cross_layers[0]
    with pytest.raises(ValueError, match=r"cross_layers\[0\]'s key must have cross_layers\[0\]'s"):
        residual_attention(*inputs[:3], grid=GRID, cross_layers=[(query, key[..., :8])])
