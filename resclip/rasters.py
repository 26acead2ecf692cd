"""Pictures too large for memory, read by block: GeoTIFF, JPEG 2000 and whatever else GDAL opens.

Knows bands, palettes, masks and how they become RGB. Knows no window, no model and no class; label maps are written
by raster_writer.py.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resclip.gdal import cache_for, gdal
from resclip.image_errors import (
    ImageError,
    check_file,
    check_size,
    damaged,
    unknown_format,
    unreachable,
    without_warnings,
)
from resclip.images import PixelArray, over_white, to_8_bits
from resclip.raster_writer import RasterWriter, encode_geotiff, raster_to_png

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Raster", "RasterWriter", "encode_geotiff", "open_raster", "raster_to_png"]

LARGEST_ROW_OF_BLOCKS = 512 << 20
"""Bytes of one row of blocks that are thought readable in pieces: 350,000 pixels wide in RGB tiles of 512 rows."""


def open_raster(path: str | os.PathLike[str], *, max_pixels: int | None = None) -> Raster:
    """Open a picture of which rows are read on demand; nothing but its header is read now.

    Args:
        path: of a local file that GDAL reads: GeoTIFF best, with tiles or strips.
        max_pixels: the largest H * W; None for any.

    Rows are those of `read_image`, where it reads the same file: one band is grey, a palette is applied, CMYK is
    converted, an alpha band is composited over white. Of several bands those marked red, green and blue are taken,
    else the first three. 16 bits become the nearest of 8, in colour too (where `read_image` keeps the high byte: one
    level of difference at most). Unlike there, what a nodata value or a mask band hides becomes white, an EXIF
    orientation is not applied, and all 32-bit pictures are refused.

    Raises:
        ImageError: the file is missing, empty, damaged, no raster or over `max_pixels`; its bands are neither grey,
            colour nor 8 or 16 bits; or its blocks are too large to be read in pieces.
        ImportError: rasterio is missing.
    """
    path = Path(path)
    name = str(path)
    check_file(path, name)
    try:
        with path.open("rb") as stream:
            start = stream.read(16)
    except OSError as error:
        raise ImageError(unreachable(name, error)) from error
    try:
        with gdal() as rasterio, without_warnings():  # Most pictures have no georeference.
            dataset = rasterio.open(path)
    except OSError:
        raise ImageError(unknown_format(name, start)) from None
    try:
        check_size(dataset.width, dataset.height, name, max_pixels)
        return Raster(dataset, name)
    except BaseException:
        dataset.close()
        raise


class Raster:
    """A `Picture` on disk, and a context manager; made by `open_raster`.

    One thread at a time may read it, any thread.

    Attributes:
        crs: its coordinate reference system (rasterio's CRS), or None.
        transform: from pixels to coordinates (affine.Affine), or None where it has none.
    """

    def __init__(self, dataset: Any, name: str) -> None:
        self._dataset = dataset
        self._name = name
        self._row_of_blocks = _row_of_blocks(dataset, name)
        self._bands = _choose_bands(dataset, name)
        self.crs: Any = dataset.crs
        self.transform: Any = None if dataset.transform.is_identity else dataset.transform

    @property
    def height(self) -> int:
        """In pixels."""
        return int(self._dataset.height)

    @property
    def width(self) -> int:
        """In pixels."""
        return int(self._dataset.width)

    def rows(self, first: int, last: int) -> PixelArray:
        """(last − first, width, 3) uint8, C-contiguous.

        Raises:
            ImageError: the file is damaged there.
            ValueError: there are no such rows.
        """
        if not 0 <= first <= last <= self.height:
            raise ValueError(
                f"{self._name}: expected rows within 0 to {self.height}, got {first} to {last}"
            )
        if first == last:
            return np.empty((0, self.width, 3), np.uint8)
        bands = self._bands
        try:
            with gdal(cache_for(self._row_of_blocks)) as rasterio:
                window = rasterio.windows.Window(0, first, self.width, last - first)
                planes = self._dataset.read(bands.indexes, window=window)
                mask = self._dataset.dataset_mask(window=window) if bands.masked else None
        except OSError as error:
            raise ImageError(damaged(self._name, error)) from error
        pixels = bands.to_rgb(planes)
        if mask is not None:
            pixels[mask == 0] = 255
        return pixels

    def close(self) -> None:
        """Close the file."""
        self._dataset.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True, eq=False)
class _Bands:
    """Which bands are read, and what they are.

    Args:
        indexes: from 1: the colours, then the alpha band if there is one.
        model: "L", "RGB" or "CMYK".
        palette: (levels, 3) uint8, RGB for each value of a single band, or None.
        has_alpha: whether the last one is an alpha band.
        masked: whether the file has another mask.
    """

    indexes: tuple[int, ...]
    model: str
    palette: PixelArray | None
    has_alpha: bool
    masked: bool

    def to_rgb(self, planes: NDArray[Any]) -> PixelArray:
        """(bands, n, W) uint8 or uint16 → (n, W, 3) uint8."""
        colours, alpha = (planes[:-1], planes[-1]) if self.has_alpha else (planes, None)
        if self.palette is not None:
            pixels: PixelArray = self.palette[colours[0]]
        else:
            pixels = np.ascontiguousarray(np.moveaxis(_in_8_bits(colours), 0, 2))
            if self.model == "CMYK":
                pixels = np.array(Image.fromarray(pixels, "CMYK").convert("RGB"))
            elif self.model == "L":
                pixels = np.repeat(pixels, 3, axis=2)
        if alpha is not None:
            layer = Image.fromarray(np.dstack((pixels, _in_8_bits(alpha))))
            pixels = np.array(over_white(layer).convert("RGB"))
        return pixels


def _choose_bands(dataset: Any, name: str) -> _Bands:
    meanings = [meaning.name for meaning in dataset.colorinterp]
    alpha = tuple(i for i, meaning in enumerate(meanings, 1) if meaning == "alpha")[:1]
    others = tuple(i for i, meaning in enumerate(meanings, 1) if meaning != "alpha")
    palette = _palette(dataset)
    colours: tuple[int, ...]
    if palette is not None:
        model, colours = "RGB", (1,)
    elif {"cyan", "magenta", "yellow", "black"} <= set(meanings):
        model, colours = "CMYK", _named(meanings, ("cyan", "magenta", "yellow", "black"))
    elif {"red", "green", "blue"} <= set(meanings):
        model, colours = "RGB", _named(meanings, ("red", "green", "blue"))
    elif len(others) >= 3:
        model, colours = "RGB", others[:3]
    elif len(others) == 1:
        model, colours = "L", others
    else:
        raise ImageError(
            f"{name}: expected one band (grey), three or more (colour), and perhaps alpha, got "
            f"{len(others)}; choose bands with gdal_translate -b"
        )
    indexes = colours + alpha
    kinds = sorted({dataset.dtypes[index - 1] for index in indexes} - {"uint8", "uint16"})
    if kinds:
        raise ImageError(
            f"{name}: expected 8 or 16 bits a channel (uint8, uint16), got {', '.join(kinds)}; "
            "convert the picture to 8 bits first (gdal_translate -ot Byte -scale)"
        )
    valid = all("all_valid" in [f.name for f in dataset.mask_flag_enums[i - 1]] for i in colours)
    return _Bands(indexes, model, palette, bool(alpha), not alpha and not valid)


def _named(meanings: list[str], wanted: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(meanings.index(meaning) + 1 for meaning in wanted)


def _palette(dataset: Any) -> PixelArray | None:
    """RGB for each value of the first band, transparent ones over white; None where the values are levels."""
    if dataset.count == 0 or dataset.dtypes[0] not in ("uint8", "uint16"):
        return None
    bits = int(dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8))
    try:
        entries = dataset.colormap(1)
    except ValueError:
        if bits >= 8 or dataset.count > 1:
            return None
        level = 255 // (2**bits - 1)  # 2 and 4 bits, which GDAL leaves as they are.
        entries = {value: (value * level,) * 3 + (255,) for value in range(2**bits)}
    colours = np.zeros((1, np.iinfo(dataset.dtypes[0]).max + 1, 4), np.uint8)
    colours[..., 3] = 255
    colours[0, list(entries)] = list(entries.values())
    return np.array(over_white(Image.fromarray(colours)).convert("RGB")).reshape(-1, 3)


def _row_of_blocks(dataset: Any, name: str) -> int:
    """Bytes that one row of blocks takes, decoded; all bands of a pixel may share a block."""
    if dataset.count == 0:
        raise ImageError(f"{name}: expected a picture, got a file without bands; name its parts")
    height, width = dataset.block_shapes[0]
    pixel = sum(np.dtype(kind).itemsize for kind in dataset.dtypes)
    size = -(-dataset.width // width) * width * height * pixel
    if size > LARGEST_ROW_OF_BLOCKS:
        raise ImageError(
            f"{name}: expected a picture in tiles or strips, got blocks of {height:,} rows that take "
            f"{size / 2**30:.1f} GiB at once; store it in tiles (gdal_translate -co TILED=YES)"
        )
    return int(size)


def _in_8_bits(values: NDArray[Any]) -> PixelArray:
    return values if values.dtype == np.uint8 else to_8_bits(values)
