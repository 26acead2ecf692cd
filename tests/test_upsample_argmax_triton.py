"""The label map's kernels: against the plain formula in float64, and their properties."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from kernel_support import (
    check_budget,
    distinct_logits,
    kernel_device,
    nan_padded,
    pairwise,
    spoilt_memory,
)

from resclip_kernels import pamr, upsample_argmax
from resclip_kernels.launch import Target, watch

triton = pytest.importorskip("triton")
streaming = pytest.importorskip("resclip_kernels.online_softmax_triton")

DEVICE = kernel_device()

# Of scaled logits (scale 40, |logit| under 0.6, float32): 8 roundings of 2^-24 a value, weights of two resizes off by
# 2^-23 an axis between neighbours up to 1.2 apart, and 3 steps of PAMR, each 16 more roundings:
# 40 · ((8 + 48) · 0.6 · 2^-24 + 4 · 1.2 · 2^-23) = 1.1e-4.
MARGIN = 1.1e-4


def grid_logits(
    seed: int, queries: int = 7, grid: tuple[int, int] = (5, 6), batch: int = 2
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return distinct_logits(generator, batch, queries, grid).to(DEVICE)


def judge(logits: torch.Tensor, size: tuple[int, int], **arguments) -> None:
    """Labels equal the float64 formula's but within MARGIN of a tie or of the threshold; probabilities by budget."""
    wide = dict(arguments)
    if wide.get("guide") is not None:
        wide["guide"] = wide["guide"].double()
    expected = upsample_argmax(logits.double(), size, implementation="reference", **wide)
    plain = upsample_argmax(logits, size, implementation="reference", **arguments)
    label, probability = upsample_argmax(logits, size, implementation="triton", **arguments)
    assert label.dtype is torch.int64
    assert label.is_contiguous()
    check_budget(probability, plain[1], expected[1])
    # Without its first class the runner-up shows: how far it is behind decides whether rounding may swap the two.
    classes = arguments.get("query_to_class")
    if classes is None:
        classes = torch.arange(logits.shape[1], device=logits.device)
    above = upsample_argmax(
        logits.double(), size, implementation="reference", **{**wide, "threshold": 0.0}
    )
    margin = torch.full_like(expected[1], torch.inf)
    for number in above[0].unique():
        rest = logits.double().clone()
        rest[:, classes == number] = -torch.inf
        if (classes != number).any():
            runner_up = reference_peak(rest, size, **wide)
            peak = reference_peak(logits.double(), size, **wide)
            margin = torch.where(above[0] == number, peak - runner_up, margin)
    clear = (margin > MARGIN) & ((expected[1] - arguments.get("threshold", 0.0)).abs() > MARGIN)
    assert torch.equal(label[clear], expected[0][clear])
    # So that there is something to judge.
    assert (~clear).sum() <= max(2, 0.05 * clear.numel())


def reference_peak(logits: torch.Tensor, size: tuple[int, int], **arguments) -> torch.Tensor:
    """Largest scaled logit a pixel, in float64."""
    planes = logits.clamp(min=-1e30)
    for step in (arguments.get("through"), size):
        if step is not None:
            planes = F.interpolate(planes, size=step, mode="bilinear", align_corners=False)
    if arguments.get("guide") is not None:
        count = arguments["refine_iterations"]
        planes = pamr(arguments["guide"], planes, iterations=count, implementation="reference")
    return 40.0 * planes.amax(dim=1)


@pytest.mark.parametrize(
    ("grid", "size", "through"),
    [
        pytest.param((5, 6), (14, 37), None, id="larger"),
        pytest.param((5, 6), (3, 4), None, id="smaller"),
        pytest.param((5, 6), (2, 90), None, id="one-way-each"),
        pytest.param((1, 1), (9, 8), None, id="one-patch"),
        pytest.param((5, 6), (1, 1), None, id="one-pixel"),
        pytest.param((5, 6), (14, 37), (12, 31), id="through-larger"),
        pytest.param((9, 12), (14, 37), (4, 5), id="through-smaller"),
        pytest.param((9, 12), (6, 7), (4, 31), id="through-one-way-each"),
        pytest.param((5, 6), (14, 37), (5, 6), id="through-the-grid"),
    ],
)
def test_sizes(seed: int, grid, size, through) -> None:
    judge(grid_logits(seed, grid=grid), size, through=through)


@pytest.mark.parametrize("through", (None, (1, 35_000)))
def test_far_along_a_row_positions_are_exact(seed: int, through) -> None:
    """Of whole numbers past 2³¹ the remainder is kept; a position rounded to float32 is off by 1e-3 of a cell there."""
    logits = grid_logits(seed, queries=2, grid=(1, 30_000), batch=1)
    expected = upsample_argmax(
        logits.double(), (1, 40_000), through=through, implementation="reference"
    )
    _, probability = upsample_argmax(logits, (1, 40_000), through=through, implementation="triton")
    torch.testing.assert_close(probability.double(), expected[1], atol=3e-6, rtol=0)


@pytest.mark.parametrize(
    ("queries", "threshold", "dtype"),
    pairwise((1, 2, 150), (0.0, 0.3), (torch.float32, torch.float16, torch.bfloat16)),
    ids=str,
)
def test_queries_thresholds_and_dtypes(seed: int, queries: int, threshold: float, dtype) -> None:
    judge(grid_logits(seed, queries).to(dtype), (11, 13), threshold=threshold)


def test_several_names_a_class(seed: int) -> None:
    classes = torch.tensor([2, 0, 1, 1, 2, 0, 3], device=DEVICE)
    judge(grid_logits(seed), (14, 37), query_to_class=classes, threshold=0.3, through=(14, 15))


@pytest.mark.parametrize("through", (None, (14, 15)))
def test_refined(seed: int, through) -> None:
    guide = torch.randn(2, 3, 12, 20, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    classes = torch.tensor([2, 0, 1, 1, 2, 0, 3], device=DEVICE)
    judge(
        grid_logits(seed),
        (12, 20),
        query_to_class=classes,
        through=through,
        guide=guide,
        refine_iterations=3,
        threshold=0.2,
    )


@pytest.mark.parametrize(
    ("dtype", "merged", "through"),
    [
        (torch.float32, False, None),
        (torch.float32, True, (8, 9)),
        (torch.float16, True, None),
        (torch.bfloat16, False, (3, 2)),
    ],
    ids=str,
)
def test_products_of_basis_planes(seed: int, dtype, merged: bool, through) -> None:
    """More queries than cells, so that one plane a cell is refined; 70 make two tiles, 12 cells one not full."""
    generator = torch.Generator().manual_seed(seed)
    guide = torch.randn(2, 3, 10, 14, generator=generator).to(DEVICE)
    arguments = {"through": through, "guide": guide, "refine_iterations": 2, "threshold": 0.03}
    if merged:
        arguments["query_to_class"] = torch.randint(9, (70,), generator=generator).to(DEVICE)
    # Logits as far apart as 7 queries' are, or half of the pixels would lie near a tie.
    logits = 4 * grid_logits(seed, queries=70, grid=(3, 4)).to(dtype)
    with watch() as watcher:
        judge(logits, (10, 14), **arguments)
    assert watcher.names().count("fold_basis_kernel") == 2


def test_products_and_planes_agree_on_minus_infinity_batches_and_strides(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = torch.randn(2, 3, 10, 14, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    logits = grid_logits(seed, queries=30, grid=(3, 4))
    logits[0, :12] = -torch.inf
    logits[1, 4:20, :2, 1:] = -torch.inf

    def run(logits: torch.Tensor, guide: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        options = {"guide": guide, "refine_iterations": 1, "dilations": (2,)}
        return upsample_argmax(logits, (10, 14), implementation="triton", **options)

    labels, probabilities = run(logits, guide)
    alone = run(logits[1:], guide[1:])
    turned = run(nan_padded(logits.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), guide)
    with spoilt_memory():
        again = run(logits, guide)
    for same in (turned, again):
        assert all(map(torch.equal, same, (labels, probabilities)))
    assert torch.equal(alone[0], labels[1:])
    assert torch.equal(alone[1], probabilities[1:])
    assert (labels[0] >= 12).all()
    monkeypatch.setattr(streaming, "BASIS_BYTES", 0)
    with watch() as watcher:
        expected = run(logits, guide)
    assert "fold_planes_kernel" in watcher.names()
    assert (labels == expected[0]).float().mean() > 0.98
    torch.testing.assert_close(probabilities, expected[1], rtol=1e-4, atol=1e-6)


def test_of_equal_queries_the_first_of_a_product_wins(seed: int) -> None:
    guide = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    one = grid_logits(seed, queries=10, grid=(2, 2), batch=1)
    arguments = {"guide": guide, "refine_iterations": 1, "dilations": (1,)}
    arguments["implementation"] = "triton"
    with watch() as watcher:
        labels, _ = upsample_argmax(torch.cat([one] * 8, dim=1), (8, 8), **arguments)
        wanted, _ = upsample_argmax(one, (8, 8), **arguments)
    assert watcher.names().count("fold_basis_kernel") == 2
    assert torch.equal(labels, wanted)


def test_of_equal_queries_the_smallest_class_wins(seed: int) -> None:
    logits = grid_logits(seed, queries=3)
    logits = torch.cat([logits, logits, logits], dim=1)
    classes = torch.tensor([8, 3, 6, 7, 4, 5, 2, 9, 1], device=DEVICE)
    label, _ = upsample_argmax(logits, (9, 9), query_to_class=classes, implementation="triton")
    winner, _ = upsample_argmax(logits[:, :3], (9, 9), implementation="triton")
    assert torch.equal(label, torch.tensor([2, 3, 1], device=DEVICE)[winner])
    first, _ = upsample_argmax(logits, (9, 9), implementation="triton")
    assert torch.equal(first, winner)


# Both read the logits in one function: a refined map directly, the other through a size between.
@pytest.mark.parametrize(("refined", "through"), [(False, (7, 9)), (True, None)])
def test_strides_and_what_lies_around_do_not_matter(seed: int, refined: bool, through) -> None:
    logits = grid_logits(seed)
    guide = torch.randn(2, 3, 10, 12, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    arguments = {"through": through, "guide": guide, "refine_iterations": 2 if refined else 0}
    expected = upsample_argmax(logits, (10, 12), implementation="triton", **arguments)
    for same in (nan_padded(logits), logits.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)):
        got = upsample_argmax(same, (10, 12), implementation="triton", **arguments)
        assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize("refined", (False, True))
def test_batch_and_groups_change_no_bit(
    seed: int, refined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = grid_logits(seed, queries=11, batch=3)
    guide = torch.randn(3, 3, 6, 7, generator=torch.Generator().manual_seed(seed)).to(DEVICE)

    def run(*images: int) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = list(images)
        return upsample_argmax(
            logits[chosen],
            (6, 7),
            guide=guide[chosen],
            refine_iterations=int(refined),
            implementation="triton",
        )

    expected = run(0, 1, 2)
    for some, together in zip(run(2, 1), expected, strict=True):
        assert torch.equal(some, together[[2, 1]])
    monkeypatch.setattr(streaming, "planes_per_group", lambda *_: 5)
    monkeypatch.setattr(streaming, "INTERPRETED", streaming.PixelLaunch(16, streaming.Options()))
    with watch() as watcher:
        assert all(map(torch.equal, run(0, 1, 2), expected))
    assert watcher.names().count("fold_planes_kernel") == (3 if refined else 0)


def test_groups_are_bounded_and_even() -> None:
    megabytes = 4 * 224 * 224 / (1 << 20)
    group = streaming.planes_per_group(1, 847, 224 * 224, 16)
    assert group * megabytes <= 16 < 2 * group * megabytes
    assert streaming.planes_per_group(1, 150, 224 * 224, 16) == 75
    assert streaming.planes_per_group(4, 150, 2048 * 1024, 16) == 15
    assert streaming.planes_per_group(0, 3, 4, 16) == 3


def test_every_element_is_written(seed: int) -> None:
    logits = grid_logits(seed)
    expected = upsample_argmax(logits, (13, 15), implementation="triton")
    with spoilt_memory():
        got = upsample_argmax(logits, (13, 15), implementation="triton")
    assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize(
    ("implementation", "sizes", "refined"),
    [
        *pairwise(
            ("triton", "torch", "reference"), [((9, 10), None), ((9, 10), (20, 6))], (False, True)
        ),
        ("triton", ((5, 6), None), False),
    ],
)
def test_minus_infinity_rules_a_query_out(seed: int, implementation, sizes, refined) -> None:
    size, through = sizes
    logits = grid_logits(seed)
    logits[:, 0] = -torch.inf
    arguments = {"through": through, "implementation": implementation}
    if refined:
        guide = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
        arguments |= {"guide": guide, "refine_iterations": 2}
    label, probability = upsample_argmax(logits, size, **arguments)
    without = upsample_argmax(logits[:, 1:], size, **arguments)
    assert torch.equal(label, without[0] + 1)
    assert torch.allclose(probability, without[1], rtol=1e-6)


def test_an_undefined_softmax_is_nan_and_stays_in_its_image(seed: int) -> None:
    logits = grid_logits(seed)
    expected = upsample_argmax(logits, (9, 10), implementation="triton")
    logits[0] = -torch.inf
    logits[1, 2, 0, 0] = torch.inf
    label, probability = upsample_argmax(logits, (9, 10), implementation="triton")
    assert probability[0].isnan().all()
    assert (label[0] == 0).all()
    assert probability[1, 0, 0].isnan()
    assert torch.equal(probability[1, 4:], expected[1][1, 4:])


def test_nan_is_refused_with_its_images(seed: int) -> None:
    logits = grid_logits(seed, batch=4)
    logits[1, 2, 3, 3] = logits[3, 0, 0, 0] = torch.nan
    message = "NaN; they do in image 1, 3 of the batch: check"
    for implementation in ("auto", "triton", "torch", "reference"):
        with pytest.raises(ValueError, match=message):
            upsample_argmax(logits, (8, 8), implementation=implementation)
    compiled = torch.compile(upsample_argmax, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match=message):
        compiled(logits, (8, 8), implementation="triton")


def launches(size: tuple[int, int], **arguments) -> list[tuple[str, int]]:
    logits = torch.empty(1, 847, 14, 14, device="meta")
    with watch(execute=False, target=Target("cuda", 90)) as watcher:
        upsample_argmax(logits, size, implementation="triton", **arguments)
    return [(launch.kernel.__name__, launch.programs) for launch in watcher.launches]


def test_one_launch_whatever_the_number_of_queries_and_groups_where_it_is_refined() -> None:
    classes = torch.empty(847, dtype=torch.int64, device="meta")
    for through in (None, (224, 224)):
        ran = launches((375, 500), through=through, query_to_class=classes)
        assert ran == [("upsample_best_kernel", -(-375 * 500 // 128))]
    # Planes of all 196 patches would take more than they may: groups of queries are refined.
    guide = torch.empty(1, 3, 600, 600, device="meta")
    names = [name for name, _ in launches((600, 600), guide=guide, refine_iterations=2)]
    group = ["upsample_planes_kernel", "pamr_step_kernel", "pamr_step_kernel", "fold_planes_kernel"]
    assert names == ["pamr_weights_kernel", *(53 * group)]


def test_more_pixels_than_32_bits_number_are_refused() -> None:
    logits = torch.empty(1, 2, 4, 4, device="meta")
    with pytest.raises(ValueError, match="at most 2\\^31 − 1 pixels"):
        upsample_argmax(logits, (1 << 16, 1 << 16), implementation="triton")
