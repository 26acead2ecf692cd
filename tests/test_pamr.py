"""PAMR: against the unfolded formula in float64, and its properties."""

from __future__ import annotations

import pytest
import torch
from kernel_support import check_budget, nan_padded

from resclip_kernels import pamr
from resclip_kernels.ops.pamr import portable, reference


def inputs(seed: int, height: int, width: int, planes: int = 5, batch: int = 2):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(batch, 3, height, width, generator=generator)
    return image, torch.randn(batch, planes, height, width, generator=generator)


@pytest.mark.parametrize(
    ("height", "width", "dtype"),
    # A size decides what is clamped, whatever the dtype.
    [
        pytest.param(7, 50, torch.float32, id="lower-than-a-dilation"),
        pytest.param(1, 1, torch.float32, id="one-pixel"),
        *((30, 41, dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)),
    ],
)
def test_torch_is_within_budget(seed: int, height: int, width: int, dtype: torch.dtype) -> None:
    image, masks = (tensor.to(dtype) for tensor in inputs(seed, height, width))
    for arguments in ({}, {"iterations": 1, "dilations": (1,)}, {"dilations": (2, 5, 9)}):
        oracle = pamr(image.double(), masks.double(), implementation="reference", **arguments)
        plain = pamr(image, masks, implementation="reference", **arguments)
        check_budget(pamr(image, masks, implementation="torch", **arguments), plain, oracle)


def test_weights_sum_to_one(seed: int) -> None:
    image, _ = inputs(seed, 30, 30)
    weights = portable.pamr_weights(image, (8, 16))
    assert weights.shape == (16, 2, 1, 30, 30)
    assert torch.allclose(weights.sum(dim=0), torch.ones(()), atol=1e-6)


def test_a_constant_plane_stays_and_a_flat_image_averages() -> None:
    flat = torch.zeros(1, 3, 20, 20)
    masks = torch.full((1, 2, 20, 20), 0.25)
    assert torch.allclose(pamr(flat, masks), masks, atol=1e-6)
    spike = torch.zeros(1, 1, 41, 41)
    spike[0, 0, 20, 20] = 1.0
    spread = pamr(flat.new_zeros(1, 3, 41, 41), spike, iterations=1)
    assert torch.allclose(spread[spread > 0], torch.tensor(1 / 16))
    assert (spread > 0).sum() == 16


def test_an_edge_in_the_image_holds_the_masks_apart() -> None:
    image = torch.zeros(1, 3, 64, 64)
    image[..., 32:] = 1.0
    masks = torch.zeros(1, 1, 64, 64)
    masks[..., 34:] = 1.0
    refined = pamr(image, masks)
    assert refined[0, 0, 32, :32].max() < 0.05
    assert refined[0, 0, 32, 40:].min() > 0.9


def test_batch_and_groups_do_not_matter(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image, masks = inputs(seed, 33, 21, planes=7)
    exact = pamr(image.double(), masks.double(), implementation="reference")
    plain = pamr(image, masks, implementation="reference")
    # Vectorised loops round the last elements of a run otherwise, so that bits may depend on the batch; errors may not.
    check_budget(pamr(image, masks), plain, exact)
    check_budget(pamr(image[1:], masks[1:]), plain[1:], exact[1:])
    monkeypatch.setattr(portable, "PLANE_BYTES", 1)
    check_budget(pamr(image, masks), plain, exact)


def test_views_and_nan_around_them_change_nothing(seed: int) -> None:
    image, masks = inputs(seed, 20, 20)
    refined = pamr(nan_padded(image), nan_padded(masks))
    torch.testing.assert_close(refined, pamr(image, masks), rtol=1e-5, atol=1e-6)


def test_nothing_to_do() -> None:
    image, masks = torch.rand(1, 3, 8, 8), torch.rand(1, 2, 8, 8)
    assert torch.equal(pamr(image, masks, iterations=0), masks)
    for implementation in ("reference", "torch"):
        refined = pamr(image, masks[:, :0], implementation=implementation)
        assert refined.shape == (1, 0, 8, 8)


def test_unfolded_neighbours_are_clamped() -> None:
    plane = torch.arange(12.0).view(1, 1, 3, 4)
    around = reference.neighbours(plane, (1,))
    assert around[0, 0, :, 0, 0].tolist() == [0, 0, 1, 0, 1, 4, 4, 5]


IMAGE, MASKS = torch.rand(1, 3, 8, 8), torch.rand(1, 2, 8, 8)


@pytest.mark.parametrize(
    ("image", "masks", "arguments", "error", "message"),
    [
        (IMAGE[0], MASKS, {}, ValueError, "4 dimensions"),
        (IMAGE, MASKS[..., :7], {}, ValueError, "one height and width"),
        (IMAGE.expand(2, -1, -1, -1), MASKS, {}, ValueError, "same number of images"),
        (IMAGE, MASKS.int(), {}, TypeError, "floating point"),
        (IMAGE, MASKS, {"iterations": -1}, ValueError, "iterations must be at least 0"),
        (IMAGE, MASKS, {"dilations": ()}, ValueError, "dilation.* at least"),
        (IMAGE, MASKS, {"dilations": (0,)}, ValueError, "dilation.* at least 1"),
    ],
)
def test_errors_say_what_was_expected(image, masks, arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        pamr(image, masks, **arguments)
