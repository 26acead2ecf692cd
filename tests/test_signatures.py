"""Kinds of images by their first bytes: those that Pillow writes, those that it does not, and what only looks so."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image, features

from resclip.io.signatures import SIGNATURE_BYTES, kind_of_image, looks_like_image

WRITTEN: list[tuple[str, str, dict[str, Any]]] = [
    ("PNG", "PNG", {}),
    ("JPEG", "JPEG", {}),
    ("GIF", "GIF", {}),
    ("WEBP", "WebP", {}),
    ("BMP", "BMP", {}),
    ("TIFF", "TIFF", {}),
    ("TIFF", "TIFF", {"big_tiff": True}),
    ("PPM", "PNM", {}),
    ("ICO", "ICO", {"sizes": [(16, 16)]}),
    ("QOI", "QOI", {}),
    ("DDS", "DDS", {}),
]


@pytest.mark.parametrize(("form", "kind", "options"), WRITTEN)
def test_what_pillow_writes(form: str, kind: str, options: dict[str, Any]) -> None:
    data = io.BytesIO()
    Image.new("RGB", (32, 24), (200, 30, 90)).save(data, form, **options)
    assert kind_of_image(data.getvalue()) == kind
    assert kind_of_image(data.getvalue()[:SIGNATURE_BYTES]) == kind


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow writes no AVIF")
def test_avif() -> None:
    data = io.BytesIO()
    Image.new("RGB", (32, 24)).save(data, "AVIF")
    assert kind_of_image(data.getvalue()) == "AVIF"


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"MM\0*\0\0\0\x08", "TIFF"),
        (b"MM\0+\0\x08\0\0", "TIFF"),
        (b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 ", "JPEG 2000"),
        (b"\xff\x4f\xff\x51\0\x2f", "JPEG 2000"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"P1\n# made by hand\n2 2\n", "PNM"),
        (b"P6 640 480 255 ", "PNM"),
        (b"P7\nWIDTH 2\n", "PNM"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0avifmiaf", "AVIF"),
        (b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom", "camera raw"),
        (b"FUJIFILMCCD-RAW 0201", "camera raw"),
        (b"8BPS\0\x01\0\0", "PSD"),
    ],
)
def test_other_kinds(start: bytes, kind: str) -> None:
    assert kind_of_image(start) == kind
    assert looks_like_image(start)


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"P",
        b"\xff\xd8",
        b"BMW is a maker of cars, and so on and on.",
        b"P5 of the report, page 2",
        b"P1",
        b"<svg xmlns='http://www.w3.org/2000/svg'>",
        b"\0\0\0\x18ftypisom\0\0\0\0isomavc1",
        b"\0\0\0\x18ftyp",
        b"\0\0\1\0",
        b"RIFF\x10\0\0\0WAVEfmt ",
        b"II",
        b"PAR1",
        b"\x93NUMPY\x01\0",
        bytes(512),
        b"%PDF-1.7",
    ],
)
def test_what_is_none(start: bytes) -> None:
    assert kind_of_image(start) is None
    assert not looks_like_image(start)
