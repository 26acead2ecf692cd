"""What a single image may take: bounds against files that are made, by mistake or on purpose, to exhaust a machine."""

from __future__ import annotations

from dataclasses import dataclass

from resclip_kernels import check_count, check_positive


@dataclass(frozen=True)
class Limits:
    """Bounds of one image; small, and can be pickled.

    Args:
        max_pixels: the most pixels, height × width; None: `MAX_PIXELS` for an image that is decoded whole, and
            `MAX_BLOCK_PIXELS` for one that is read by block.
        max_bytes: the most encoded bytes that are held in memory for it: a remote file, a member of an archive, a cell
            of a table. A local file is not held.
        timeout: seconds that a server may take to connect, or be silent, before its file counts as unreadable.

    Raises:
        TypeError, ValueError: a value that is no positive number.
    """

    max_pixels: int | None = None
    max_bytes: int = 1 << 30
    timeout: float = 60.0

    def __post_init__(self) -> None:
        if self.max_pixels is not None:
            check_count("max_pixels", self.max_pixels, 1)
        check_count("max_bytes", self.max_bytes, 1)
        check_positive("timeout", self.timeout)


DEFAULT_LIMITS = Limits()
"""What holds where nobody says otherwise."""
