"""Cutting and stitching."""

from __future__ import annotations

import pytest
import torch

from resclip.windows import Window, check_window, pad, padding, plan_windows, stitch, window_starts


@pytest.mark.parametrize(
    ("length", "window", "stride", "starts"),
    [
        (336, 224, 112, [0, 112]),
        (337, 224, 112, [0, 112, 113]),
        (224, 224, 112, [0]),
        (100, 224, 112, [0]),
        (448, 224, 224, [0, 224]),
        (500, 224, 224, [0, 224, 276]),
    ],
)
def test_the_last_window_ends_at_the_border(length, window, stride, starts) -> None:
    assert window_starts(length, window, stride) == starts


@pytest.mark.parametrize(("height", "width"), [(1, 1), (224, 500), (333, 777), (90, 1000)])
@pytest.mark.parametrize("stride", (50, 112, 224))
def test_windows_cover_every_pixel(height: int, width: int, stride: int) -> None:
    seen = torch.zeros(height, width)
    for window in plan_windows(height, width, 224, stride):
        seen[window.rows, window.columns] += 1
        assert window.top + window.height <= height
        assert window.left + window.width <= width
    assert (seen > 0).all()


def test_window_zero_is_the_whole_picture() -> None:
    assert plan_windows(300, 500, 0, 1) == [Window(0, 0, 300, 500)]


def test_stitching_takes_the_mean_where_windows_overlap() -> None:
    windows = plan_windows(4, 6, 4, 2)
    grids = [torch.full((2, 1, 1), float(number)) for number in range(len(windows))]
    stitched = stitch(grids, windows, 4, 6)
    assert stitched.shape == (2, 4, 6)
    assert stitched[0, 0].tolist() == [0, 0, 0.5, 0.5, 1, 1]


def test_the_order_of_windows_does_not_matter(seed: int) -> None:
    windows = plan_windows(40, 60, 24, 16)
    generator = torch.Generator().manual_seed(seed)
    grids = [torch.randn(3, 3, 3, generator=generator) for _ in windows]
    forward = stitch(grids, windows, 40, 60)
    backward = stitch(grids[::-1], windows[::-1], 40, 60)
    torch.testing.assert_close(forward, backward)


@pytest.mark.parametrize(
    ("window", "stride", "error", "message"),
    [
        (8, 8, ValueError, "at least a patch of 16 pixels; got 8"),
        (-1, 8, ValueError, "at least a patch"),
        (224, 225, ValueError, "parts of the picture are never seen; got 225"),
        (224, 0, ValueError, "between 1 and the window's 224"),
        (224.0, 112, TypeError, "window must be an integer"),
    ],
)
def test_windows_that_cannot_work(window, stride, error, message: str) -> None:
    with pytest.raises(error, match=message):
        check_window(window, stride, (16, 16))


@pytest.mark.parametrize(
    ("size", "multiple", "around"),
    [
        ((336, 448), 56, (0, 0, 0, 0)),
        ((336, 447), 56, (0, 0, 0, 1)),  # An odd pixel goes behind.
        ((100, 90), 56, (6, 11, 6, 11)),
        ((100, 90), 0, (0, 0, 0, 0)),
    ],
)
def test_padding_is_even_and_reaches_a_multiple(size, multiple, around) -> None:
    window = Window(3, 4, *size)
    assert tuple(padding(window, multiple)) == around
    padded = pad(torch.ones(2, *size), padding(window, multiple))
    assert padded.sum() == 2 * size[0] * size[1]
    assert multiple == 0 or padded.shape[1] % multiple == padded.shape[2] % multiple == 0


def test_what_lies_over_the_padding_is_cut_off() -> None:
    """A grid as fine as the pixels comes back as it was, wherever the padding lies."""
    planes = torch.randn(3, 10, 13)
    window = Window(0, 0, 10, 13)
    around = padding(window, 8)
    grid = pad(planes, around) + 7.0 * pad(torch.ones(1, 10, 13), around).logical_not()
    assert torch.equal(stitch([grid], [window], 10, 13, 8), planes)
