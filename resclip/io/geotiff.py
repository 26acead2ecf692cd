"""Rasters by block: any that GDAL opens is read by rows, label maps are written from the top as GeoTIFF, or as PNG.

What is written is complete or not there at all, and the same input always gives the same bytes.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resclip.io.files import NewFile
from resclip.io.images import (
    ImageError,
    PixelArray,
    check_file,
    check_size,
    damaged,
    over_white,
    to_8_bits,
    unknown_format,
    unreachable,
    without_warnings,
)

if TYPE_CHECKING:
    from typing_extensions import Self

try:
    import rasterio
    import rasterio.shutil
    from rasterio._err import (
        CPLE_BaseError,
    )  # rasterio.shutil raises it, and exports no name for it.
    from rasterio.errors import RasterioError
except ImportError as error:
    raise ImportError(
        "expected rasterio, for images that are read or written by block, got none that can be "
        f'imported ({error}); pip install "resclip[geo]"'
    ) from error

CACHE_BYTES = 64 << 20
"""Bytes of GDAL's cache of decoded blocks, which by default takes 5 % of the machine's memory."""
LARGEST_ROW_OF_BLOCKS = 512 << 20
"""Bytes of the largest row of blocks that is read: 350,000 pixels wide in RGB tiles of 512 rows."""
TILE = 512
"""Rows and columns of a written tile. One row of tiles is held in memory: 15 MB for a width of 30,000 pixels."""

# All that environment variables could change is spelled out. One thread, so that tiles are written in order.
_CREATION = {
    "driver": "GTiff", "count": 1, "tiled": True, "blockxsize": TILE, "blockysize": TILE,
    "compress": "deflate", "zlevel": 6, "bigtiff": "IF_SAFER", "num_threads": 1,
}  # fmt: skip
_LEVELS = {"uint8": 256, "uint16": 65536}
_PNG_END = b"IEND\xaeB`\x82"


def cache_for(row_of_blocks: int) -> int:
    """Bytes of cache for a raster whose rows of blocks take `row_of_blocks` bytes each.

    Rows are read and written in runs that cross from one row of blocks to the next: a cache of less than two of them
    would decode every block again for each run.
    """
    return max(CACHE_BYTES, 2 * row_of_blocks)


@contextmanager
def gdal(cache: int = CACHE_BYTES, **options: Any) -> Iterator[Any]:
    """rasterio, with GDAL set up for this thread; all errors of GDAL are raised as OSError.

    Args:
        cache: bytes of GDAL's cache of blocks, shared by all rasters of the process.
        options: further settings of GDAL, by name.

    Raises:
        OSError: GDAL failed; with the reason, without errno and the file's name.
    """
    try:
        with rasterio.Env(GDAL_CACHEMAX=cache, **options):
            yield rasterio
    except (RasterioError, CPLE_BaseError) as error:
        # rasterio's own words are often just "See previous exception for details."
        raise OSError(str(error.__cause__ or error)) from error


def open_raster(path: str | os.PathLike[str], *, max_pixels: int | None = None) -> Raster:
    """Open an image whose rows are read on demand; only its header is read now.

    Args:
        path: of a local file that GDAL reads; GeoTIFF in tiles or strips is best.
        max_pixels: the largest H * W; None for any.

    Rows are the same as by `read_image`, for files that it reads too: one band is grey, a palette is applied, CMYK is
    converted, an alpha band is composited over white. Of several bands those marked red, green and blue are taken,
    else the first three. 16 bits become the nearest of 8, in colour too (where `read_image` keeps the high byte: one
    level of difference at most). Unlike by `read_image`, what a nodata value or a mask band hides becomes white, an
    EXIF orientation is not applied, and all 32-bit images are refused.

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
        with gdal() as rasterio, without_warnings():  # Most images have no georeference.
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
    """An image on disk whose rows are read on demand; made by `open_raster`, closed as a context manager.

    Any thread may read it, one at a time.

    Attributes:
        crs: its coordinate reference system (rasterio's CRS), or None.
        transform: from pixels to coordinates (affine.Affine), or None.
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

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, eq=False)
class _Bands:
    """The bands that are read, and their meaning.

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
            f"{name}: expected 8 or 16 bits per channel (uint8, uint16), got {', '.join(kinds)}; "
            "convert the image to 8 bits first (gdal_translate -ot Byte -scale)"
        )
    valid = all("all_valid" in [f.name for f in dataset.mask_flag_enums[i - 1]] for i in colours)
    return _Bands(indexes, model, palette, bool(alpha), not alpha and not valid)


def _named(meanings: list[str], wanted: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(meanings.index(meaning) + 1 for meaning in wanted)


def _palette(dataset: Any) -> PixelArray | None:
    """RGB of each value of the first band, transparent ones over white; None if the values are levels."""
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
    """Bytes of one decoded row of blocks, with all bands, since these may share a block."""
    if dataset.count == 0:
        raise ImageError(f"{name}: expected an image, got a file without bands; name its parts")
    height, width = dataset.block_shapes[0]
    pixel = sum(np.dtype(kind).itemsize for kind in dataset.dtypes)
    size = -(-dataset.width // width) * width * height * pixel
    if size > LARGEST_ROW_OF_BLOCKS:
        raise ImageError(
            f"{name}: expected an image in tiles or strips, got blocks of {height:,} rows that take "
            f"{size / 2**30:.1f} GiB at once; store it in tiles (gdal_translate -co TILED=YES)"
        )
    return int(size)


def _in_8_bits(values: NDArray[Any]) -> PixelArray:
    return values if values.dtype == np.uint8 else to_8_bits(values)


class RasterWriter:
    """A map of small numbers, classes or scores, written from the top as a tiled GeoTIFF.

    It has one band in tiles of 512 x 512, deflate, and is a BigTIFF if it may pass 4 GB. Its bytes depend on the
    numbers alone, not on how they were cut into strips. It has a temporary name until `commit`, which first reads
    everything back: what GDAL writes as it closes a file may be lost on a full disk without an error. It needs memory
    for one row of tiles and GDAL's cache. As a context manager it aborts unless it was committed.

    Args:
        path: of the file; an existing one is replaced by `commit`.
        height, width: in pixels.
        classes: upper bound, exclusive, of the numbers; at most 256 for uint8, 65,536 for uint16.
        palette: (N, 3) uint8, N <= 256: RGB of each number; for uint8 alone.
        crs: coordinate reference system (rasterio's CRS, or what it takes for one), or None.
        transform: from pixels to coordinates (affine.Affine), or None.
        dtype: "uint8" or "uint16".

    Raises:
        ValueError: these do not fit together.
        OSError: the file cannot be made.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        height: int,
        width: int,
        *,
        classes: int,
        palette: NDArray[np.uint8] | None = None,
        crs: Any = None,
        transform: Any = None,
        dtype: str = "uint8",
    ) -> None:
        layout = _Layout(height, width, classes, palette, crs, transform, dtype)
        self._file = NewFile(path)
        try:
            self._tiles = _Tiles(str(self._file.path), layout)
        except BaseException as error:
            self._file.discard()
            if isinstance(error, OSError):
                raise self._file.failure(error) from error
            raise

    def write(self, first_row: int, array: NDArray[Any]) -> None:
        """The next rows, (n, width) of any integer dtype, starting at `first_row`, where the last ones ended.

        Raises:
            ValueError: they are not the next rows, do not fit, or a number is not below `classes`.
            TypeError: they are not integers.
            OSError: the disk is full or fails.
        """
        self._check_open()
        self._tiles.layout.check(array)
        if first_row != self._tiles.rows:
            raise ValueError(
                f"{self._file.target}: expected rows from {self._tiles.rows} on, got {first_row}"
            )
        try:
            self._tiles.add(array)
        except OSError as error:
            raise self._file.failure(error) from error

    def commit(self) -> None:
        """Give the file its name, after all its rows are on the disk and read back.

        Raises:
            ValueError: a row is missing.
            OSError: the disk is full or fails; no file is left behind.
        """
        self._check_open()
        height = self._tiles.layout.height
        if self._tiles.rows != height:
            raise ValueError(
                f"{self._file.target}: expected {height} rows before the file is finished, got "
                f"{self._tiles.rows}; write the others, or abort"
            )
        with self._file as file:
            self._tiles.close()
            self._tiles.verify()
            file.publish()

    def abort(self) -> None:
        """Remove what was written; does nothing after `commit`."""
        with suppress(OSError):
            self._tiles.close()
        self._file.discard()

    def _check_open(self) -> None:
        if self._tiles.closed:
            raise ValueError(
                f"{self._file.target}: expected an open file, got one that is finished"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()


def encode_geotiff(
    labels: NDArray[Any],
    *,
    classes: int,
    palette: NDArray[np.uint8] | None = None,
    crs: Any = None,
    transform: Any = None,
    dtype: str = "uint8",
) -> bytes:
    """A small map as the bytes of a GeoTIFF: the same that a `RasterWriter` writes.

    Args:
        labels: (H, W) of any integer dtype.
        classes, palette, crs, transform, dtype: see `RasterWriter`.

    Raises:
        ValueError, TypeError: these do not fit together.
    """
    if labels.ndim != 2:
        raise ValueError(f"expected a map of shape (H, W), got {labels.shape}")
    height, width = labels.shape
    layout = _Layout(height, width, classes, palette, crs, transform, dtype)
    layout.check(labels)
    with gdal() as rasterio, rasterio.MemoryFile() as memory:
        tiles = _Tiles(memory.name, layout)
        tiles.add(labels)
        tiles.close()
        return bytes(memory.getbuffer())


def raster_to_png(tiff_path: str | os.PathLike[str], png_path: str | os.PathLike[str]) -> None:
    """Write a finished map as PNG too, with its palette if it has one, row by row; complete or not at all.

    Raises:
        OSError: the map cannot be read, or the PNG cannot be written.
    """
    with NewFile(png_path) as file:
        with gdal() as rasterio, without_warnings(), rasterio.open(tiff_path) as source:
            row_of_tiles = source.block_shapes[0][0] * source.width * 2
        # Unless this is off, GDAL puts a file with metadata beside the PNG.
        with gdal(cache_for(row_of_tiles), GDAL_PAM_ENABLED=False) as rasterio:
            rasterio.shutil.copy(str(tiff_path), str(file.path), driver="PNG")
        _check_png_end(file.path)
        file.publish()


@dataclass(frozen=True, eq=False)
class _Layout:
    """The properties of a map without its numbers; see `RasterWriter`."""

    height: int
    width: int
    classes: int
    palette: NDArray[np.uint8] | None
    crs: Any
    transform: Any
    dtype: str

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"expected at least one pixel, got {self.height} x {self.width}")
        if self.dtype not in _LEVELS:
            raise ValueError(f'expected dtype "uint8" or "uint16", got {self.dtype!r}')
        if not 1 <= self.classes <= _LEVELS[self.dtype]:
            raise ValueError(
                f"expected 1 to {_LEVELS[self.dtype]:,} classes in {self.dtype}, got {self.classes:,}"
            )
        if self.palette is None:
            return
        if self.dtype != "uint8":
            raise ValueError("expected no palette for uint16; a palette has 256 colours")
        shape = self.palette.shape
        if self.palette.dtype != np.uint8 or shape[1:] != (3,) or not 1 <= len(self.palette) <= 256:
            raise ValueError(
                f"expected a palette of shape (1 to 256, 3), uint8, got {shape}, {self.palette.dtype}"
            )

    def check(self, array: NDArray[Any]) -> None:
        """ValueError or TypeError unless the array is a run of this map's rows."""
        if array.ndim != 2 or array.shape[1] != self.width or len(array) > self.height:
            raise ValueError(
                f"expected rows of shape (up to {self.height}, {self.width}), got {array.shape}"
            )
        if not np.issubdtype(array.dtype, np.integer):
            raise TypeError(f"expected integers, got {array.dtype}")
        if array.size and not 0 <= array.min() <= array.max() < self.classes:
            raise ValueError(
                f"expected numbers from 0 to {self.classes - 1}, got {array.min()} to {array.max()}"
            )


class _Tiles:
    """An open TIFF that is filled from the top by whole rows of tiles, so that GDAL writes each tile once."""

    def __init__(self, name: str, layout: _Layout) -> None:
        self.name = name
        self.layout = layout
        self.rows = 0
        self.closed = False
        self.waiting = np.empty((min(TILE, layout.height), layout.width), layout.dtype)
        self.checksums: list[int] = []
        # A tile is padded at the right and lower edge.
        self.cache = cache_for((layout.width + TILE) * TILE * self.waiting.itemsize)
        options = dict(_CREATION, height=layout.height, width=layout.width, dtype=layout.dtype)
        if layout.crs is not None:
            options["crs"] = layout.crs
        if layout.transform is not None:
            options["transform"] = layout.transform
        if layout.palette is not None:
            options["photometric"] = "palette"
        with gdal(self.cache) as rasterio, without_warnings():
            self.dataset: Any = rasterio.open(name, "w", **options)
            if layout.palette is not None:
                colours = {value: (*rgb, 255) for value, rgb in enumerate(layout.palette.tolist())}
                self.dataset.write_colormap(1, colours)

    def add(self, rows: NDArray[Any]) -> None:
        """Append rows; OSError if they cannot be written."""
        if self.rows + len(rows) > self.layout.height:
            raise ValueError(
                f"expected {self.layout.height} rows in all, got {self.rows + len(rows)}"
            )
        while len(rows):
            start = self.rows % TILE
            part = rows[: TILE - start]
            self.waiting[start : start + len(part)] = part
            self.rows += len(part)
            rows = rows[len(part) :]
            if self.rows % TILE == 0 or self.rows == self.layout.height:
                self._write_tiles(start + len(part))

    def _write_tiles(self, count: int) -> None:
        rows = self.waiting[:count]
        self.checksums.append(zlib.crc32(rows.data))
        with gdal(self.cache) as rasterio:
            window = rasterio.windows.Window(0, self.rows - count, self.layout.width, count)
            self.dataset.write(rows, 1, window=window)

    def close(self) -> None:
        """Close the file."""
        self.closed = True
        with gdal(self.cache):
            self.dataset.close()

    def verify(self) -> None:
        """Read the closed file back; OSError if it differs from what was written."""
        with gdal(self.cache) as rasterio, without_warnings():
            dataset = rasterio.open(self.name)
        with gdal(self.cache) as rasterio, dataset:
            for number, checksum in enumerate(self.checksums):
                first = number * TILE
                count = min(TILE, self.layout.height - first)
                window = rasterio.windows.Window(0, first, self.layout.width, count)
                if zlib.crc32(dataset.read(1, window=window)) != checksum:
                    raise OSError("it does not read back as it was written")


def _check_png_end(path: Path) -> None:
    """OSError for a PNG that was cut short: it is written from front to back."""
    with path.open("rb") as stream:
        stream.seek(-min(len(_PNG_END), path.stat().st_size), os.SEEK_END)
        if stream.read() != _PNG_END:
            raise OSError("its end is missing")
