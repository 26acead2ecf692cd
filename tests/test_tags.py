"""The tags of TIFFs: as writers write them, and as nobody should."""

from __future__ import annotations

import io
import struct
import time

import numpy as np
import pytest
from PIL import Image

from resclip.io.tags import exif_orientation, tiff_pages


@pytest.mark.parametrize("is_big", [False, True])
def test_pages_of_a_file(is_big: bool) -> None:
    stream = io.BytesIO()
    image = Image.fromarray(np.zeros((3, 5, 3), np.uint8))
    image.save(
        stream, "TIFF", save_all=True, append_images=[image.resize((2, 2))], big_tiff=is_big,
        tiffinfo={274: 6},
    )  # fmt: skip
    first, second = tiff_pages(stream, {256, 258, 274})
    assert (first[256], first[258], first[274], first[262]) == ((5,), (8, 8, 8), (6,), ())
    assert second[256] == (2,)
    assert 999 not in first


def test_orientation_in_exif() -> None:
    for order, mark in (("<", b"II*\0"), (">", b"MM\0*")):
        block = mark + struct.pack(f"{order}IHHHIHHI", 8, 1, 274, 3, 1, 8, 0, 0)
        assert exif_orientation(b"Exif\0\0" + block) == exif_orientation(block) == 8
        assert exif_orientation(block[:20]) == 1
    assert exif_orientation(b"") == exif_orientation(b"II*\0\xff\xff\xff\xff") == 1


def test_a_file_that_says_the_same_again_and_again_takes_no_time() -> None:
    """Each of many tags claims all of the file, on pages that overlap and that lead back to the first."""
    count = 60_000
    tags = np.zeros(count, [("tag", "<u2"), ("kind", "<u2"), ("count", "<u4"), ("at", "<u4")])
    tags["tag"], tags["kind"], tags["count"], tags["at"] = np.arange(count) % 400, 3, 1 << 16, 8
    data = b"II*\0" + struct.pack("<IH", 8, count) + tags.tobytes() + struct.pack("<I", 8)
    started = time.perf_counter()
    (page,) = tiff_pages(io.BytesIO(data), {256, 257})
    assert time.perf_counter() - started < 1
    assert (len(page), len(page[256]), page[300]) == (400, 1 << 16, ())
