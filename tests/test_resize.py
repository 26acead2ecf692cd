"""Resizing as OpenCV does it, whole and by rows."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resclip.io.resize import resize, resize_rows, resize_shape, source_rows

SIDES = st.integers(1, 90)


@pytest.mark.parametrize(
    ("size", "short", "wanted"),
    [
        ((375, 500), 336, (336, 448)),
        ((500, 375), 336, (448, 336)),
        ((1024, 2048), 560, (560, 1120)),
        ((100, 1000), 336, (205, 2048)),  # The long side decides: 100 * 2.048 = 204.8.
        ((1, 5000), 336, (1, 2048)),  # 0.4 rounds to nothing; an image has at least one row.
        ((1, 1), 336, (336, 336)),
    ],
)
def test_resize_shape(size: tuple[int, int], short: int, wanted: tuple[int, int]) -> None:
    assert resize_shape(*size, short, 2048) == wanted


def test_resize_shape_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="at least 1 pixel"):
        resize_shape(0, 5, 336, 2048)


@given(
    old=st.tuples(SIDES, SIDES),
    new=st.tuples(SIDES, SIDES),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_resize_is_opencv_s_within_one_level(
    old: tuple[int, int], new: tuple[int, int], seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (*old, 3), dtype=np.uint8)
    wanted = cv2.resize(pixels, new[::-1], interpolation=cv2.INTER_LINEAR).astype(int)
    came = resize(pixels, new)
    assert came.shape == (*new, 3)
    assert came.dtype == np.uint8
    assert came.flags.c_contiguous
    assert np.abs(came - wanted).max() <= 1


@pytest.mark.parametrize("old", [(375, 500), (512, 683), (1080, 1920)])
def test_resize_is_opencv_s_but_for_one_value_in_a_thousand(old: tuple[int, int]) -> None:
    pixels = np.random.default_rng(7).integers(0, 256, (*old, 3), dtype=np.uint8)
    new = resize_shape(*old, 336, 2048)
    wanted = cv2.resize(pixels, new[::-1], interpolation=cv2.INTER_LINEAR)
    assert (resize(pixels, new) != wanted).mean() < 1e-3


def test_resize_to_the_same_size_and_to_nothing() -> None:
    pixels = np.zeros((20, 30, 3), np.uint8)
    assert resize(pixels, (20, 30)) is pixels
    for nothing in ((0, 3), (3, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            resize(pixels, nothing)


@given(
    old=st.tuples(SIDES, SIDES),
    new=st.tuples(SIDES, SIDES),
    cuts=st.lists(st.integers(0, 90), max_size=6),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=300, deadline=None)
def test_any_strips_are_the_whole(
    old: tuple[int, int], new: tuple[int, int], cuts: list[int], seed: int
) -> None:
    """Also where a strip has no row, or the size stays as it is on one side or both."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*old, 3), dtype=np.uint8)
    edges = sorted([0, *(min(cut, new[0]) for cut in cuts), new[0]])
    strips = []
    for first, last in itertools.pairwise(edges):
        start, end = source_rows(old[0], new[0], first, last)
        strips.append(resize_rows(pixels[start:end], start, old[0], new, first, last))
        assert strips[-1].shape == (last - first, new[1], 3)
    np.testing.assert_array_equal(np.concatenate(strips), resize(pixels, new))


@given(height=SIDES, new_height=SIDES, data=st.data())
@settings(max_examples=100, deadline=None)
def test_no_source_row_is_asked_for_in_vain(
    height: int, new_height: int, data: st.DataObject
) -> None:
    """With the first or the last of them at another value, the result is another."""
    first = data.draw(st.integers(0, new_height - 1))
    last = data.draw(st.integers(first + 1, new_height))
    start, end = source_rows(height, new_height, first, last)
    rows = np.zeros((end - start, 2, 3), np.uint8)
    size = (new_height, 2)
    plain = resize_rows(rows, start, height, size, first, last)
    for edge in (0, -1):
        other = rows.copy()
        other[edge] = 255
        assert (resize_rows(other, start, height, size, first, last) != plain).any()


def test_rows_of_an_image_of_the_same_height_need_no_others() -> None:
    assert source_rows(50, 50, 10, 20) == (10, 20)
    assert source_rows(50, 50, 7, 7) == (0, 0)


def test_more_source_rows_than_needed_change_nothing(seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 9, 3), dtype=np.uint8)
    wanted = resize(pixels, (13, 21))[4:9]
    start, end = source_rows(40, 13, 4, 9)
    np.testing.assert_array_equal(
        resize_rows(pixels[start - 3 : end + 2], start - 3, 40, (13, 21), 4, 9), wanted
    )


@pytest.mark.parametrize(
    ("first", "last", "given_first", "given_last", "words"),
    [
        (2, 1, 0, 10, "rows within 0 to 20"),
        (-1, 4, 0, 10, "rows within 0 to 20"),
        (0, 21, 0, 10, "rows within 0 to 20"),
        (10, 20, 0, 9, "source rows 4 to 10 to resize from, got 0 to 9"),
        (10, 20, 5, 10, "source rows 4 to 10 to resize from, got 5 to 10"),
    ],
)
def test_wrong_rows(first: int, last: int, given_first: int, given_last: int, words: str) -> None:
    pixels = np.zeros((10, 4, 3), np.uint8)
    with pytest.raises(ValueError, match=words):
        resize_rows(pixels[given_first:given_last], given_first, 10, (20, 4), first, last)
