"""Which kind of image a file is, by its first bytes, whatever its name."""

from __future__ import annotations

import re

SIGNATURE_BYTES = 160
"""So many first bytes are enough to know a kind."""

# What a file of a kind begins with.
_STARTS = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    # BigTIFF: offsets of 8 bytes.
    (b"II+\0\x08\0", "TIFF"),
    (b"MM\0+\0\x08", "TIFF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"8BPS\0\x01", "PSD"),
    (b"8BPS\0\x02", "PSD"),
    (b"qoif", "QOI"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"#?RGBE", "Radiance HDR"),
    (b"DDS |\0\0\0", "DDS"),
    (b"II\xbc", "JPEG XR"),
    (b"gimp xcf ", "XCF"),
    (b"FUJIFILMCCD-RAW", "camera raw"),
    (b"IIU\0", "camera raw"),
    (b"IIRO", "camera raw"),
    (b"IIRS", "camera raw"),
    (b"MMOR", "camera raw"),
    (b"\0MRM", "camera raw"),
    (b"FOVb", "camera raw"),
)

# What a file of a kind has elsewhere in its beginning; two bytes at its start would be too few.
_PATTERNS = (
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "WebP"),
    (re.compile(rb"P[1-6]\s(?:\s*#|\s*\d+\s+(?:\d|#))"), "PNM"),
    (re.compile(rb"P7\s"), "PNM"),
    (re.compile(rb"P[Ff]\s\s*\d+\s+\d"), "PNM"),
    # A bitmap's reserved bytes are 0, and its second header has one of these lengths.
    (re.compile(rb"BM.{4}\0{4}.{4}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0{3}", re.DOTALL), "BMP"),
    # 1 to 255 icons, of which the first has a reserved 0, and at most one plane of at most 32 bits.
    (re.compile(rb"\0\0\x01\0[^\0]\0...\0[\0\x01]\0[\0-\x20]\0", re.DOTALL), "ICO"),
    (re.compile(rb".{6}HEAPCCDR", re.DOTALL), "camera raw"),
    (re.compile(rb".{128}DICM", re.DOTALL), "DICOM"),
)

_AVIF = (b"avif", b"avis")
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
_RAW = (b"crx ",)


def kind_of_image(start: bytes) -> str | None:
    """The kind of an image.

    Args:
        start: the first bytes of a file: all, or at least `SIGNATURE_BYTES`.

    Returns:
        "PNG", "JPEG", "GIF", "WebP", "BMP", "TIFF", "JPEG 2000", "PNM", "AVIF", "HEIC", "JPEG XL", "PSD", "QOI",
        "camera raw" and others; None for what is no image of a known kind. Whether this library decodes the kind is
        another matter, and camera raws that are TIFFs in their beginning are "TIFF".
    """
    if start[4:8] == b"ftyp":
        return _kind_by_brands(start)
    for signature, kind in _STARTS:
        if start.startswith(signature):
            return kind
    return next((kind for pattern, kind in _PATTERNS if pattern.match(start)), None)


def looks_like_image(start: bytes) -> bool:
    """Whether a file that begins with these bytes is an image; see `kind_of_image`."""
    return kind_of_image(start) is not None


def _kind_by_brands(start: bytes) -> str | None:
    """Of a file in ISO's base format, which films have too: by its main brand and those that it is compatible with."""
    size = int.from_bytes(start[:4], "big")
    box = start[8 : max(12, size)]
    brands = [box[:4], *(box[at : at + 4] for at in range(8, len(box) - 3, 4))]
    # "mif1" alone says no more than that it is an image.
    for known, kind in ((_RAW, "camera raw"), (_AVIF, "AVIF"), (_HEIC, "HEIC")):
        if any(brand in known for brand in brands):
            return kind
    return None
