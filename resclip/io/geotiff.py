"""Maps of small numbers, written from the top as GeoTIFF, or as PNG.

What is written is complete or not there at all, and the same input always gives the same bytes.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from resclip.io.errors import without_warnings
from resclip.io.files import NewFile
from resclip.io.picture import NOWHERE, Georeference
from resclip.io.raster import cache_for, gdal

if TYPE_CHECKING:
    from typing_extensions import Self

TILE = 512
"""Rows and columns of a written tile. One row of tiles is held in memory: 15 MB for a width of 30,000 pixels."""

NAMES_TAG = "CLASS_NAMES"
"""Item of a file's metadata: its classes' names, by number, as a JSON list."""

# All that environment variables could change is spelled out. One thread, so that tiles are written in order.
_CREATION = {
    "driver": "GTiff", "count": 1, "tiled": True, "blockxsize": TILE, "blockysize": TILE,
    "compress": "deflate", "zlevel": 6, "bigtiff": "IF_SAFER", "num_threads": 1,
}  # fmt: skip
_LEVELS = {"uint8": 256, "uint16": 65536}
_PNG_END = b"IEND\xaeB`\x82"


class RasterWriter:
    """A map of small numbers, classes or scores, written from the top as a tiled GeoTIFF.

    It has one band in tiles of 512 x 512, deflate, and is a BigTIFF if it may pass 4 GB; one larger than a tile has
    overviews, each of half the size, down to one that fits into a tile, behind the map itself. Its bytes depend on the
    numbers alone, not on how they were cut into strips. It has a temporary name until `commit`, which first reads
    everything back: what GDAL writes as it closes a file may be lost on a full disk without an error. It needs memory
    for one row of tiles and GDAL's cache. As a context manager it aborts unless it was committed.

    Args:
        path: of the file; an existing one is replaced by `commit`.
        layout: what the map is like.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str], layout: Layout) -> None:
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
            self._tiles.add_overviews()
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


def encode_geotiff(labels: NDArray[Any], layout: Layout) -> bytes:
    """A small map, (H, W) of any integer dtype, as the bytes of a GeoTIFF: the same that a `RasterWriter` writes.

    Raises:
        ValueError, TypeError: the map does not fit the layout.
    """
    if labels.ndim != 2:
        raise ValueError(f"expected a map of shape (H, W), got {labels.shape}")
    layout.check(labels)
    with gdal() as rasterio, rasterio.MemoryFile() as memory:
        tiles = _Tiles(memory.name, layout)
        tiles.add(labels)
        tiles.close()
        tiles.add_overviews()
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
class Layout:
    """What a map is like, without its numbers.

    Args:
        height, width: in pixels.
        classes: upper bound, exclusive, of the numbers; at most 256 for uint8, 65,536 for uint16.
        dtype: "uint8" or "uint16".
        palette: (N, 3) uint8, N <= 256: RGB of each number; for uint8 alone.
        nodata: the number of pixels that have none, whatever `classes` is; None: all have one.
        georeference: where the map lies.
        names: of the classes, by number, which stand in the file's metadata as `NAMES_TAG`; empty: no such tag.
        resampling: of overviews: "nearest" for classes, "average" for amounts.

    Raises:
        ValueError: these do not fit together.
    """

    height: int
    width: int
    classes: int
    dtype: str = "uint8"
    palette: NDArray[np.uint8] | None = None
    nodata: int | None = None
    georeference: Georeference = NOWHERE
    names: tuple[str, ...] = ()
    resampling: Literal["nearest", "average"] = "nearest"

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

    @property
    def overviews(self) -> list[int]:
        """By how much each overview is smaller than the map; the last one fits into a tile."""
        steps = (max(self.height, self.width) - 1) // TILE
        return [2 << step for step in range(steps.bit_length())]

    def check(self, array: NDArray[Any]) -> None:
        """ValueError or TypeError unless the array is a run of this map's rows."""
        if array.ndim != 2 or array.shape[1] != self.width or len(array) > self.height:
            raise ValueError(
                f"expected rows of shape (up to {self.height}, {self.width}), got {array.shape}"
            )
        if not np.issubdtype(array.dtype, np.integer):
            raise TypeError(f"expected integers, got {array.dtype}")
        if array.size and self.nodata is not None and array.max() >= self.classes:
            array = array[array != self.nodata]
        if array.size and not 0 <= array.min() <= array.max() < self.classes:
            raise ValueError(
                f"expected numbers from 0 to {self.classes - 1}, got {array.min()} to {array.max()}"
            )


class _Tiles:
    """An open TIFF that is filled from the top by whole rows of tiles, so that GDAL writes each tile once."""

    def __init__(self, name: str, layout: Layout) -> None:
        self.name = name
        self.layout = layout
        self.rows = 0
        self.closed = False
        self.waiting = np.empty((min(TILE, layout.height), layout.width), layout.dtype)
        self.checksums: list[int] = []
        # A tile is padded at the right and lower edge.
        self.cache = cache_for((layout.width + TILE) * TILE * self.waiting.itemsize)
        options = dict(_CREATION, height=layout.height, width=layout.width, dtype=layout.dtype)
        place = layout.georeference
        special = {"crs": place.crs, "transform": place.transform, "nodata": layout.nodata}
        options |= {option: value for option, value in special.items() if value is not None}
        if layout.palette is not None:
            options["photometric"] = "palette"
        with gdal(self.cache) as rasterio, without_warnings():
            self.dataset: Any = rasterio.open(name, "w", **options)
            if layout.palette is not None:
                colours = {value: (*rgb, 255) for value, rgb in enumerate(layout.palette.tolist())}
                if layout.nodata is not None:
                    colours[layout.nodata] = (0, 0, 0, 0)
                self.dataset.write_colormap(1, colours)
            # A file has place for one of the two.
            if place.gcps and place.transform is None:
                self.dataset.gcps = list(place.gcps), place.gcps_crs
            if place.rpcs is not None:
                self.dataset.rpcs = place.rpcs
            if layout.names:
                # JSON in ASCII: XML, in which a TIFF keeps its metadata, has no place for control characters.
                self.dataset.update_tags(**{NAMES_TAG: json.dumps(layout.names)})

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

    def add_overviews(self) -> None:
        """Put overviews into the closed file; OSError if they cannot be written.

        GDAL reads the file again, some rows of tiles at a time.
        """
        factors = self.layout.overviews
        if not factors:
            return
        with (
            gdal(self.cache, GDAL_NUM_THREADS="1", GDAL_TIFF_OVR_BLOCKSIZE=str(TILE)) as rasterio,
            without_warnings(),
            rasterio.open(self.name, "r+") as dataset,
        ):
            way = rasterio.enums.Resampling[self.layout.resampling]
            dataset.build_overviews(factors, way)

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
            if dataset.overviews(1) != self.layout.overviews or not all(self._tiles_end(dataset)):
                raise OSError("its overviews are not whole")

    def _tiles_end(self, dataset: Any) -> Iterator[bool]:
        """Of each tile of the overviews, whether it was written, and ends within the file."""
        size = Path(self.name).stat().st_size
        for level, factor in enumerate(self.layout.overviews):
            rows = -(-self.layout.height // (factor * TILE))
            columns = -(-self.layout.width // (factor * TILE))
            for place in (f"{column}_{row}" for row in range(rows) for column in range(columns)):
                offset, length = (
                    int(
                        dataset.get_tag_item(f"BLOCK_{what}_{place}", "TIFF", bidx=1, ovr=level)
                        or 0
                    )
                    for what in ("OFFSET", "SIZE")
                )
                yield 0 < offset < offset + length <= size


def _check_png_end(path: Path) -> None:
    """OSError for a PNG that was cut short: it is written from front to back."""
    with path.open("rb") as stream:
        stream.seek(-min(len(_PNG_END), path.stat().st_size), os.SEEK_END)
        if stream.read() != _PNG_END:
            raise OSError("its end is missing")
