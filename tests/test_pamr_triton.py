"""PAMR's Triton kernels: against the formula in float64, what they launch, and what they never touch."""

from __future__ import annotations

import pytest
import torch
from kernel_support import check_budget, kernel_device, nan_padded, spoilt_memory
from torch import Tensor

from resclip_kernels import pamr
from resclip_kernels.launch import Target, watch
from resclip_kernels.ops.pamr import portable, tiles

triton = pytest.importorskip("resclip_kernels.ops.pamr.triton", reason="needs triton")

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def inputs(seed: int, height: int, width: int, planes: int = 1, batch: int = 1):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(batch, 3, height, width, generator=generator)
    masks = torch.randn(batch, planes, height, width, generator=generator)
    return image.to(kernel_device()), masks.to(kernel_device())


def judge(image: Tensor, masks: Tensor, iterations: int, dilations: tuple[int, ...]) -> None:
    arguments = {"iterations": iterations, "dilations": dilations}
    oracle = pamr(image.double(), masks.double(), implementation="reference", **arguments)
    plain = pamr(image, masks, implementation="reference", **arguments)
    got = pamr(image, masks, implementation="triton", **arguments)
    check_budget(got, plain, oracle)


@pytest.mark.parametrize(
    ("size", "planes", "iterations", "dilations", "dtype"),
    # A shape decides what is clamped and masked, a dtype the loads: each in turn.
    [
        pytest.param((40, 97), 2, 2, (8, 16), torch.float32, id="odd-width-two-tiles"),
        pytest.param((11, 30), 1, 3, (8, 16), torch.float16, id="every-column-near-an-edge"),
        pytest.param((3, 66), 5, 2, (1,), torch.float32, id="one-dilation-several-chunks"),
        pytest.param((17, 97), 1, 3, (8, 16), torch.bfloat16, id="two-tiles"),
        pytest.param((9, 90), 1, 1, (2, 5, 9), torch.float16, id="dilations-without-a-common-step"),
        # Enough planes and few steps: of 6 pixels after 10 steps the reference's error was under half of an honest
        # one in 2 of 60 draws; here the worst of 60 took 0.6 of the budget.
        pytest.param((2, 3), 12, 3, (8, 16), torch.float32, id="smaller-than-a-dilation"),
    ],
)
def test_is_within_budget(seed, size, planes, iterations, dilations, dtype) -> None:
    image, masks = (tensor.to(dtype) for tensor in inputs(seed, *size, planes))
    judge(image, masks, iterations, dilations)


def test_one_pixel_keeps_its_value(seed: int) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        image, masks = (tensor.to(dtype) for tensor in inputs(seed, 1, 1, planes=3))
        assert torch.equal(pamr(image, masks, iterations=3, implementation="triton"), masks)


@pytest.mark.gpu
@ON_GPU
@pytest.mark.parametrize(
    ("width", "dtype"),
    [(448, torch.float32), (333, torch.float16), (333, torch.bfloat16)],
    ids=str,
)
def test_full_size_is_within_budget(seed: int, width: int, dtype: torch.dtype) -> None:
    image, masks = (tensor.to(dtype) for tensor in inputs(seed, 336, width, planes=37, batch=2))
    judge(image, masks, 10, (8, 16))


def test_weights_are_those_of_the_formula(seed: int) -> None:
    image, _ = inputs(seed, 13, 21, batch=2)
    image[:, :, 4:, 8:] = (
        1000 + 1e-3 * image[:, :, 4:, 8:]
    )  # Nearly flat: a sum of squares would keep no digit.
    for dilations in ((2, 4), (3,)):
        weights = triton.pamr_weights(image, dilations)
        assert weights.shape == (2, 8 * len(dilations), 13, 21)
        oracle, plain = (
            portable.pamr_weights(guide, dilations)[:, :, 0].transpose(0, 1)
            for guide in (image.double(), image)
        )
        check_budget(weights, plain, oracle)
        torch.testing.assert_close(weights.sum(dim=1), torch.ones_like(weights[:, 0]))


def test_one_launch_for_the_weights_and_one_an_iteration(seed: int) -> None:
    image, masks = inputs(seed, 6, 7)
    kept = masks.clone()
    for iterations in (1, 2, 3):
        with watch() as watcher:
            refined = pamr(image, masks, iterations=iterations, implementation="triton")
        assert watcher.names() == ["pamr_weights_kernel"] + ["pamr_step_kernel"] * iterations
        assert refined.data_ptr() != masks.data_ptr()
        assert torch.equal(masks, kept)


def test_outputs_are_written_in_full(seed: int) -> None:
    image, masks = inputs(seed, 20, 101)
    with spoilt_memory():
        assert torch.isfinite(triton.pamr(image, masks, 1, (8, 16))).all()


def test_views_and_nan_around_them_change_nothing(seed: int) -> None:
    image, masks = inputs(seed, 9, 83, planes=2)
    expected = triton.pamr(image, masks, 1, (8,))
    assert torch.equal(triton.pamr(nan_padded(image), nan_padded(masks), 1, (8,)), expected)
    turned = [tensor.mT.contiguous().mT for tensor in (image, masks)]
    assert torch.equal(triton.pamr(*turned, 1, (8,)), expected)


def test_images_and_planes_do_not_touch_one_another(seed: int) -> None:
    image, masks = inputs(seed, 5, 12, planes=2, batch=3)
    alone = triton.pamr(image[1:2], masks[1:2], 2, (2, 4))
    image[0, 0, 2, 3] = torch.nan
    masks[2] = torch.nan
    masks[1, 1] = torch.nan
    together = triton.pamr(image, masks, 2, (2, 4))
    assert torch.equal(together[1, 0], alone[0, 0])
    assert torch.isnan(together[0]).any()
    assert torch.isnan(together[1, 1]).all()


def test_no_iteration_and_no_plane() -> None:
    masks, weights = torch.rand(1, 2, 8, 8), torch.rand(1, 16, 8, 8)
    assert triton.refine(masks, weights, 0, (8, 16)) is masks
    with watch() as watcher:
        assert triton.refine(masks[:, :0], weights, 1, (8, 16)).shape == (1, 0, 8, 8)
    assert all(launch.programs == 0 for launch in watcher.launches)


def test_large_planes_are_addressed_in_64_bits_and_too_large_ones_refused() -> None:
    image = torch.empty(2, 3, 2000, 3000, device="meta")
    masks = torch.empty(2, 600, 2000, 3000, device="meta", dtype=torch.float16)
    with watch(execute=False, target=Target("cuda", 90)) as watcher:
        assert triton.pamr(image, masks, 1, (8, 16)).shape == masks.shape
    assert watcher.launches[1].arguments["stride_image"] == 600 * 2000 * 3000 > 1 << 31
    wide = torch.empty(1, 1, 1 << 16, 1 << 15, device="meta")
    with pytest.raises(ValueError, match="2\\*\\*31"):
        pamr(wide, wide, implementation="triton")


def test_every_neighbour_is_read_once() -> None:
    reads = tiles.strip_reads((8, 16), 4)
    assert len(reads.places) == 36
    for pixel, terms in enumerate(reads.terms):
        for term, (dy, dx) in zip(terms, tiles.shifts((8, 16)), strict=True):
            row, column = reads.places[term]
            assert (reads.rows[row], column) == (8 * pixel + dy, dx)
