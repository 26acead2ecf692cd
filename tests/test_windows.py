"""Where windows lie, stitching, and resizing by rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from resclip.inference import windows as windows_module
from resclip.inference.windows import (
    LogitStitcher,
    Window,
    check_window,
    downsample,
    interpolate_rows,
    pad,
    padding,
    plan_windows,
    source_range,
    window_starts,
)


@pytest.mark.parametrize(
    ("length", "window", "stride", "starts"),
    [
        (336, 224, 112, [0, 112]),
        (337, 224, 112, [0, 112, 113]),
        (100, 224, 112, [0]),
        (500, 224, 224, [0, 224, 276]),
    ],
)
def test_the_last_window_ends_at_the_border(length, window, stride, starts) -> None:
    assert window_starts(length, window, stride) == starts


@pytest.mark.parametrize(
    ("height", "width", "stride"),
    # Under a window, exactly one high with strides of a window, and no multiple of the stride.
    [(1, 1, 112), (224, 500, 224), (333, 777, 50)],
)
def test_windows_cover_every_pixel(height: int, width: int, stride: int) -> None:
    seen = torch.zeros(height, width)
    for window in plan_windows(height, width, 224, stride):
        seen[window.rows, window.columns] += 1
        assert window.top + window.height <= height
        assert window.left + window.width <= width
    assert (seen > 0).all()


def test_window_zero_is_the_whole_image() -> None:
    assert plan_windows(300, 500, 0, 1) == [Window(0, 0, 300, 500)]


def stitched(
    windows: list[Window],
    size: tuple[int, int],
    seed: int,
    multiple: int = 0,
    grid: tuple[int, int] = (3, 5),
) -> LogitStitcher:
    """Random logits of three queries."""
    generator = torch.Generator().manual_seed(seed)
    stitcher = LogitStitcher(*size, windows, multiple)
    for window in windows:
        stitcher.add(window, torch.randn(3, *grid, generator=generator))
    return stitcher


def test_rows_are_complete_when_no_missing_window_reaches_them() -> None:
    """Windows of 4 × 4 at rows 0, 2 and 4, two in each."""
    windows = plan_windows(8, 6, 4, 2)
    stitcher = LogitStitcher(8, 6, windows)
    complete = []
    for index in (0, 2, 1, 3, 5, 4):
        stitcher.add(windows[index], torch.zeros(1, 1, 1))
        complete.append(stitcher.complete_rows)
    assert complete == [0, 0, 2, 4, 4, 8]
    assert not stitcher.is_single
    assert LogitStitcher(8, 6, [Window(0, 0, 8, 6)]).is_single
    assert not LogitStitcher(8, 6, [Window(0, 0, 8, 6)], 4).is_single, "it is padded"


# Without and with padding; one patch, and more cells than a window has rows.
@pytest.mark.parametrize(
    ("multiple", "grid"), [(0, (3, 5)), (7, (3, 5)), (0, (1, 1)), (7, (40, 24))]
)
def test_stitching_is_the_mean_of_whole_planes(
    seed: int, multiple: int, grid: tuple[int, int]
) -> None:
    windows = plan_windows(41, 60, 24, 16)
    stitcher = stitched(windows, (41, 60), seed, multiple, grid)
    total = torch.zeros(3, 41, 60, dtype=torch.float64)
    count = torch.zeros(41, 60)
    for window in windows:
        around = padding(window, multiple)
        size = (
            window.height + around.top + around.bottom,
            window.width + around.left + around.right,
        )
        plane = F.interpolate(stitcher.grids[window].double()[None], size=size, mode="bilinear")[0]
        inner = plane[:, around.top :, around.left :][:, : window.height, : window.width]
        total[:, window.rows, window.columns] += inner
        count[window.rows, window.columns] += 1
    torch.testing.assert_close(stitcher.rows(0, 41), (total / count).float(), atol=1e-6, rtol=0)


def test_the_order_in_which_windows_are_added_does_not_matter(seed: int) -> None:
    windows = plan_windows(40, 60, 24, 16)
    forward = stitched(windows, (40, 60), seed)
    backward = LogitStitcher(40, 60, windows)
    for window in windows[::-1]:
        backward.add(window, forward.grids[window])
    assert torch.equal(forward.rows(0, 40), backward.rows(0, 40))


def test_rows_alone_are_the_rows_of_the_whole(seed: int) -> None:
    windows = plan_windows(70, 33, 24, 16)
    stitcher = stitched(windows, (70, 33), seed)
    whole = stitcher.rows(0, 70)
    for first, last in ((0, 1), (13, 57), (69, 70)):
        torch.testing.assert_close(
            stitcher.rows(first, last), whole[:, first:last], atol=1e-6, rtol=0
        )
    stitcher.drop_above(40)
    assert min(window.top + window.height for window in stitcher.grids) == 56
    assert len(stitcher.grids) < len(windows)
    torch.testing.assert_close(stitcher.rows(46, 70), whole[:, 46:], atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="no window covers the rows 0 to 16"):
        stitcher.rows(0, 16)


@pytest.mark.parametrize(("length", "new"), [(40, 97), (97, 40), (1, 9), (9, 1)])
def test_rows_of_a_resized_plane_need_only_their_own_source(
    seed: int, length: int, new: int
) -> None:
    plane = torch.randn(2, length, 5, generator=torch.Generator().manual_seed(seed))
    resized = F.interpolate(plane[None].double(), size=(new, 5), mode="bilinear")[0].float()
    asked = []

    def read(first: int, last: int) -> torch.Tensor:
        asked.append((first, last))
        return plane[:, first:last]

    for first in range(0, new, 7):
        last = min(first + 7, new)
        rows = interpolate_rows(read, length, new, first, last)
        torch.testing.assert_close(rows, resized[:, first:last], atol=1e-6, rtol=0)
        assert asked[-1] == source_range(length, new, first, last)
        assert asked[-1][1] - asked[-1][0] <= 8 * max(1, length / new) + 1


def test_downsampling_by_rows_is_antialiased(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows_module, "DOWNSAMPLE_ROWS", 16)
    image = torch.randn(3, 70, 45, generator=torch.Generator().manual_seed(seed))
    small = downsample(lambda first, last: image[:, first:last], (70, 45), (9, 20))
    wanted = F.interpolate(image[None], size=(9, 20), mode="bilinear", antialias=True)[0]
    torch.testing.assert_close(small, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("window", "stride", "error", "message"),
    [
        (8, 8, ValueError, "window must .* a patch of 16 pixels; got 8"),
        (224, 225, ValueError, "stride must .* got 225"),
        (224, 0, ValueError, "stride must .* between 1 and the window's 224"),
        (224.0, 112, TypeError, "window must be an integer"),
    ],
)
def test_windows_that_cannot_work(window, stride, error, message: str) -> None:
    with pytest.raises(error, match=message):
        check_window(window, stride, (16, 16))


@pytest.mark.parametrize(
    ("size", "multiple", "around"),
    [
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
