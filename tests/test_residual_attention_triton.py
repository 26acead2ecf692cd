"""The residual attention's kernels: against the formula in float64, what they launch, what they never touch."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from kernel_support import (
    AttentionInputs,
    check_budget,
    kernel_device,
    nan_padded,
    pairwise,
    spoilt_memory,
)
from residual_attention_support import (
    DTYPES,
    GRID,
    all_terms,
    judge,
    only_launch,
    products_in_order,  # noqa: F401
    run,
    sample,
    state,
)
from torch import Tensor

from resclip_kernels import CORRELATIONS, FeedbackOptions, semantic_feedback
from resclip_kernels.launch import Target, watch
from resclip_kernels.ops.semantic_feedback import reference as feedback_reference

kernels = pytest.importorskip(
    "resclip_kernels.ops.residual_attention.triton", reason="needs triton"
)
from resclip_kernels.ops.residual_attention import additive_terms_triton, launch_table  # noqa: E402
from resclip_kernels.options.residual_attention import SCORES  # noqa: E402

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SCORED = [name for name in CORRELATIONS if SCORES[name]]
# Every shape of a program, whatever the device: the interpreter is given ones of its own.
PROGRAMS = {
    f"{program.heads}x{program.rows}x{program.columns}": program
    for row in launch_table.ROWS
    for program in (row.layers, row.base)
}

correlations_in_turn = pytest.mark.parametrize(
    ("correlation", "dtype"),
    [("kk", torch.float32), ("qq+kk", torch.float16), ("identity", torch.float32)],
    ids=str,
)


@pytest.mark.parametrize(
    ("correlation", "additive", "layers", "dtype"),
    # Of all combinations those in which any two meet. Three axes meet in no branch of a kernel: the layers' mean has a
    # kernel of its own and is added to the base's sum, the terms of a tile know nothing of which score they join, and
    # the dtype chooses loads and tiles. `all_terms` below runs everything at once, with every correlation.
    pairwise(SCORED, ("none", "prior", "feedback", "both"), (0, 1, 3), DTYPES),
    ids=str,
)
def test_combinations_of_terms(seed, correlation, additive, layers, dtype) -> None:
    inputs = sample(seed, dtype=dtype, layers=layers, heads=1 if dtype == torch.float32 else 2)
    arguments: dict[str, Any] = {"correlation": correlation}
    if additive in ("prior", "both"):
        arguments["neighbourhood_std"] = 3.0
    if additive in ("feedback", "both"):
        arguments["feedback"] = state(inputs)
    judge(inputs, GRID, arguments)


@pytest.mark.parametrize(
    ("layers", "dtype"),
    [(0, torch.float16), (1, torch.float32), (3, torch.float16)],
    ids=str,
)
def test_identity(seed: int, layers: int, dtype: torch.dtype) -> None:
    inputs = sample(seed, dtype=dtype, layers=layers, heads=2)
    judge(inputs, GRID, {"correlation": "identity", "cross_weight": 0.3, "cross_temperature": 2.0})


@pytest.mark.gpu
@ON_GPU
@pytest.mark.parametrize(
    ("correlation", "width", "dtype"),
    pairwise(SCORED, (64, 80, 128), DTYPES),
    ids=str,
)
def test_full_size(seed: int, correlation: str, width: int, dtype: torch.dtype) -> None:
    inputs = sample(seed, (24, 24), dtype, batch=3, heads=6, width=width, layers=4)
    judge(inputs, (24, 24), all_terms(inputs, correlation=correlation))


@pytest.mark.parametrize(
    ("grid", "width", "heads", "layers", "dtype"),
    # A shape decides masks and how a head is cut, a dtype how it is loaded: each shape in one dtype, in turn.
    [
        pytest.param((14, 14), 64, 1, 0, torch.float16, id="197-tokens-vit-b16"),
        pytest.param((4, 5), 40, 1, 1, torch.float32, id="width-of-no-power-of-two"),
        pytest.param((11, 3), 80, 1, 1, torch.float32, id="vit-h14-head-width-tall-grid"),
        pytest.param((3, 12), 88, 1, 1, torch.float16, id="vit-g14-head-width"),
        pytest.param((5, 7), 128, 1, 1, torch.float32, id="widest-head"),
        pytest.param((1, 9), 32, 3, 1, torch.float16, id="heads-no-multiple-of-a-programs"),
        pytest.param((2, 3), 16, 5, 1, torch.float32, id="five-heads-narrowest"),
        pytest.param((1, 1), 32, 2, 2, torch.float16, id="one-patch"),
    ],
)
def test_shapes(seed: int, grid, width: int, heads: int, layers: int, dtype: torch.dtype) -> None:
    inputs = sample(seed, grid, dtype, width=width, heads=heads, layers=layers)
    judge(inputs, grid, all_terms(inputs))


def test_cls_alone_keeps_its_value(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randn(3, 2, 1, 1, 32, generator=generator).to(kernel_device(), torch.float16)
    inputs = AttentionInputs(*flat, (), torch.empty(0))
    for correlation in CORRELATIONS:
        terms = len(SCORES[correlation]) or 1
        arguments = {"projections": [inputs.key]} if correlation in ("pp", "pp-sum") else {}
        output = run(inputs, (0, 0), correlation=correlation, **arguments).output
        assert torch.equal(output, terms * inputs.value), correlation


@pytest.mark.parametrize(
    ("dtype", "terms"),
    # The tiles' width depends on the dtype and the feedback, each of which meets every length once.
    [(torch.float32, all_terms), (torch.float16, lambda _: {"neighbourhood_std": 5.0})],
    ids=("float32-all-terms", "float16-prior"),
)
@pytest.mark.parametrize("beyond", (-1, 0, 1))
def test_lengths_around_a_column_block(seed: int, beyond: int, terms: Any, dtype: Any) -> None:
    small = sample(seed, dtype=dtype)
    columns = only_launch(small, **terms(small)).constants["BLOCK_N"]
    grid = (1, columns + beyond)
    inputs = sample(seed, grid, dtype)
    judge(inputs, grid, terms(inputs))


@pytest.mark.parametrize(("beyond", "dtype"), [(0, torch.float16), (1, torch.float32)], ids=str)
def test_lengths_around_a_row_block(seed: int, beyond: int, dtype: torch.dtype) -> None:
    small = sample(seed, dtype=dtype)
    rows = only_launch(small, **all_terms(small)).constants["BLOCK_M"]
    grid = (1, rows + beyond - 1)
    inputs = sample(seed, grid, dtype)
    assert only_launch(inputs, grid, **all_terms(inputs)).programs == 1 + beyond
    judge(inputs, grid, all_terms(inputs))


@pytest.mark.parametrize("normalise", (True, False))
# The rules differ in the bits alone, which this kernel only reads: some, or none.
@pytest.mark.parametrize("connectivity", ("line", None))
def test_feedback_rules(seed: int, connectivity, normalise: bool) -> None:
    rules = {"connectivity": connectivity, "normalise": normalise}
    for dtype in DTYPES:
        inputs = sample(seed, dtype=dtype, layers=0)
        arguments = all_terms(inputs, feedback=state(inputs, **rules))
        judge(inputs, GRID, arguments)
        if not normalise and dtype == torch.float32:
            # Nothing is rounded to float16, so that the kernel has to meet the exact Ŝ.
            plain = semantic_feedback(inputs.labels, implementation="reference", **rules)
            options = FeedbackOptions(**rules)
            exact = feedback_reference.semantic_feedback(inputs.labels, options, torch.float64)
            check_budget(
                run(inputs, **arguments).output,
                run(inputs, GRID, "reference", **{**arguments, "feedback": plain}).output,
                run(
                    inputs.to(torch.float64), GRID, "reference", **{**arguments, "feedback": exact}
                ).output,
            )


@pytest.mark.parametrize(
    ("std", "margin", "dtype"),
    # A dtype rounds the taps: both where there are most of them.
    [
        (0.0, 0, torch.float32),
        (2.0, 16, torch.float16),
        (5.0, 16, torch.float32),
        (12.0, 48, torch.float32),
        (12.0, 48, torch.float16),
    ],
    ids=str,
)
def test_every_margin_of_the_smoothing(seed, std: float, margin: int, dtype: torch.dtype) -> None:
    # 80 patches: σ = 12 has 73 taps, and its margin reaches past the next tile.
    inputs = sample(seed, (5, 16), dtype, layers=0)
    arguments = all_terms(inputs, feedback=state(inputs, smoothing_std=std))
    with watch(execute=False) as watcher:
        run(inputs, (5, 16), **arguments)
    (terms,) = (one for one in watcher.launches if one.kernel.__name__ == "additive_terms_kernel")
    assert terms.constants["TILES"].margin == margin
    judge(inputs, (5, 16), arguments)


def test_states_of_any_maker_and_labels_of_any_value(seed: int) -> None:
    inputs = sample(seed, (3, 6), torch.float16, layers=0)
    expected = run(inputs, (3, 6), **all_terms(inputs)).output
    # All equal in their lower 32 bits; some beyond int32, some negative.
    spread = inputs._replace(labels=(inputs.labels - 2) * 2**40 - 1)
    assert torch.equal(run(spread, (3, 6), **all_terms(spread)).output, expected)
    # Its sums may round otherwise, and then an entry of Ŝ: judged by the budget for its own.
    own = semantic_feedback(inputs.labels, implementation="triton")
    judge(inputs, (3, 6), all_terms(inputs, feedback=own))


@correlations_in_turn
def test_the_cross_layer_part_can_be_handed_back(seed, correlation: str, dtype) -> None:
    inputs = sample(seed, dtype=dtype, layers=2)
    arguments = {"correlation": correlation}
    first = run(inputs, **arguments)
    # It replaces the layers: these may be anything.
    other = inputs._replace(cross_layers=((inputs.value, inputs.key),))
    for handed in (first.cross_layer, nan_padded(first.cross_layer)):
        second = run(other, **arguments, cross_layer=handed)
        assert torch.equal(second.output, first.output)
        assert second.cross_layer is handed


def test_each_image_is_on_its_own(seed: int) -> None:
    inputs = sample(seed, (3, 5), torch.float16, batch=3)
    assert not torch.equal(inputs.labels[0], inputs.labels[1])
    together = run(inputs, (3, 5), **all_terms(inputs))

    def images(which: Any) -> AttentionInputs:
        layers = tuple((query[which], key[which]) for query, key in inputs.cross_layers)
        return AttentionInputs(*(t[which] for t in inputs[:3]), layers, inputs.labels[which])

    for which in ([2, 0, 1], [1]):
        some = run(images(which), (3, 5), **all_terms(images(which)))
        assert torch.equal(some.output, together.output[which])
        assert torch.equal(some.cross_layer, together.cross_layer[which])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_is_not_finite_stays_in_its_image_and_head(seed: int) -> None:
    inputs = sample(seed, (3, 5), torch.float16, batch=2, heads=2)
    clean = run(inputs, (3, 5), **all_terms(inputs))
    flat = [*inputs[:3], *inputs.cross_layers[0]]
    for tensor in flat:
        tensor[0, 0, 4:6] = torch.nan
        tensor[0, 0, 6] = torch.inf
    dirty = run(inputs, (3, 5), **all_terms(inputs))
    for got, expected in zip(dirty, clean, strict=True):
        assert not torch.isfinite(got[0, 0]).all()
        assert torch.equal(got[0, 1], expected[0, 1])
        assert torch.equal(got[1], expected[1])


@correlations_in_turn
def test_outputs_are_written_in_full(seed, correlation: str, dtype) -> None:
    inputs = sample(seed, (3, 6), dtype, heads=2)
    arguments = all_terms(inputs) if SCORES[correlation] else {}
    arguments["correlation"] = correlation
    expected = run(inputs, (3, 6), **arguments)
    with spoilt_memory():
        result = run(inputs, (3, 6), **arguments)
    for got, clean in zip(result, expected, strict=True):
        assert torch.isfinite(got).all()
        assert torch.equal(got, clean)


def test_strides_and_nan_around_change_nothing(seed: int) -> None:
    inputs = sample(seed, (3, 6), torch.float16, batch=2, heads=2, width=40)
    arguments = all_terms(inputs)
    expected = run(inputs, (3, 6), **arguments).output

    def turned(tensor: Tensor) -> Tensor:
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)

    ((layer_query, layer_key),) = inputs.cross_layers
    padded = AttentionInputs(
        *(nan_padded(tensor) for tensor in inputs[:3]),
        ((nan_padded(layer_query), nan_padded(layer_key)),),
        inputs.labels,
    )
    mixed = inputs._replace(
        query=turned(inputs.query),
        value=nan_padded(inputs.value),
        cross_layers=((layer_query.mT.contiguous().mT, layer_key),),
    )
    # One layout for all, but no head's width lies densely.
    sparse = AttentionInputs(
        *(tensor.mT.contiguous().mT for tensor in inputs[:3]),
        ((layer_query.mT.contiguous().mT, layer_key.mT.contiguous().mT),),
        inputs.labels,
    )
    # As a block's projections lie, token by token.
    tokens = torch.stack([*inputs[:3], layer_query, layer_key]).permute(1, 3, 0, 2, 4).contiguous()
    query, key, value, *layer = tokens.permute(2, 0, 3, 1, 4)
    views = AttentionInputs(query, key, value, (tuple(layer),), inputs.labels)
    # q is not compared, so that nothing is made of its strides.
    for other, number in ((padded, 0), (mixed, 1), (sparse, 4), (views, 0)):
        assert torch.equal(run(other, (3, 6), **arguments).output, expected)
        assert copies(other) == number
    launch = only_launch(views, (3, 6), **arguments)
    assert launch.arguments["value"].data.data_ptr() == value.data_ptr()


def copies(inputs: AttentionInputs) -> int:
    """How many tensors the launcher copies: of k, which is compared, of v, and of the layers' q and k."""
    groups = [
        [inputs.key],
        [inputs.value],
        [tensor for pair in inputs.cross_layers for tensor in pair],
    ]
    return sum(
        new is not old
        for group in groups
        for new, old in zip(kernels.with_common_strides(group), group, strict=True)
    )


@pytest.mark.parametrize("shape", PROGRAMS)
def test_program_sizes_do_not_matter(
    seed: int, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = PROGRAMS[shape]
    inputs = sample(seed, heads=2)
    arguments = all_terms(inputs, correlation="qq+kk")
    default = only_launch(inputs, **arguments).constants["BLOCK_N"]
    expected = run(inputs, **arguments)
    patch_programs(monkeypatch, layers=program, base=program)
    constants = only_launch(inputs, **arguments).constants
    came = (constants["PLAN"].heads, constants["BLOCK_M"], constants["BLOCK_N"])
    assert came == (program.heads, program.rows, program.columns)
    judge(inputs, GRID, arguments)
    if program.columns == default:
        for got, other in zip(run(inputs, **arguments), expected, strict=True):
            rounding = torch.finfo(torch.float32).eps * other.abs().max()
            assert (got - other).abs().max() <= 2 * rounding


def patch_programs(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Other programs than the launch table's."""
    own = kernels.row_for

    def row_for(*arguments: Any) -> launch_table.Row:
        return dataclasses.replace(own(*arguments), **changes)

    monkeypatch.setattr(kernels, "row_for", row_for)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_in_programs_of_their_own_change_no_bit(
    seed: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether they are depends on the batch, which a result may not."""
    inputs = sample(seed, dtype=dtype, layers=3, batch=2, heads=2)
    arguments = all_terms(inputs)
    launches = {}
    results = []
    for apart in (False, True):
        monkeypatch.setattr(kernels, "layers_apart", lambda *_, apart=apart: apart)
        with watch() as watcher:
            results.append(run(inputs, **arguments))
        (launches[apart],) = (
            one for one in watcher.launches if one.kernel.__name__ == "cross_layer_kernel"
        )
    assert launches[True].programs == 3 * launches[False].programs
    for together, apart in zip(*results, strict=True):
        assert torch.equal(together, apart)


def test_layers_are_apart_where_the_device_would_be_idle() -> None:
    target = Target("cuda", 90, 132)
    row = launch_table.row_for(target, torch.float16, 64, 197)
    # 12 heads of 4 blocks of rows: 48 programs for 132 multiprocessors.
    assert launch_table.layers_apart(row, target, 12, 197, 4)
    # 64 images fill the device either way.
    assert not launch_table.layers_apart(row, target, 12 * 64, 197, 4)
    assert not launch_table.layers_apart(row, target, 12, 197, 1)


@pytest.mark.parametrize(
    ("terms", "dtype"),
    [
        # Each kind of terms in one dtype: they are stored in float32 and in float16.
        pytest.param(terms, dtype, marks=[] if dtype is usual else pytest.mark.slow)
        for terms, usual in (({"window": 3}, torch.float32), ({}, torch.float16))
        for dtype in DTYPES
    ],
)
def test_blocks_of_stored_terms_change_no_bit(
    seed: int, dtype: torch.dtype, terms: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As few rows at a time as there can be, of one image at a time."""
    inputs = sample(seed, (12, 12), dtype, batch=2, layers=1)
    arguments = {"neighbourhood_std": 5.0, **terms} if terms else all_terms(inputs)
    expected = run(inputs, (12, 12), **arguments)
    monkeypatch.setattr(additive_terms_triton, "STORED_BYTES", 1)
    with watch() as watcher:
        got = run(inputs, (12, 12), **arguments)
    # 145 rows are two blocks; without feedback the images share them.
    assert watcher.names().count("base_kernel") == (2 if terms else 4)
    assert torch.equal(got.output, expected.output)
    judged = [one for one in watcher.launches if one.kernel.__name__ == "additive_terms_kernel"]
    assert all(one.arguments["rows"] <= additive_terms_triton.PADDING for one in judged)


def test_large_terms_are_not_rounded_to_half_precision(seed: int) -> None:
    """A temperature of 5,000 would pass float16's largest number."""
    inputs = sample(seed, dtype=torch.float16, layers=0)
    arguments = all_terms(inputs, feedback_temperature=5000.0)
    stored = {
        temperature: only_launch(inputs, **{**arguments, "feedback_temperature": temperature})
        .arguments["stored"]
        .data.dtype
        for temperature in (2.1, 5000.0)
    }
    assert stored == {2.1: torch.float16, 5000.0: torch.float32}
    assert torch.isfinite(run(inputs, **arguments).output).all()


def test_heads_are_merged_without_a_copy(seed: int) -> None:
    inputs = sample(seed, dtype=torch.float16, heads=2)
    output = run(inputs, **all_terms(inputs)).output
    assert output.transpose(1, 2).is_contiguous()
