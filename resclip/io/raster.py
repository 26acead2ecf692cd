"""Images by GDAL: what is deep, tiled, georeferenced or of many bands, read by rows from a file or from bytes."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resclip.io.colour import NO_PROFILE_OF_BANDS, Profile
from resclip.io.errors import ImageError, check_size, damaged, without_warnings
from resclip.io.levels import BYTES, FULL_RANGES, Levels, find_levels
from resclip.io.picture import (
    ALPHA_BETWEEN,
    FILLING,
    NOWHERE,
    Georeference,
    Mask,
    Picture,
    ReadOptions,
    over_filling,
    runs_of,
    share_absent,
)
from resclip.io.resize import PixelArray

if TYPE_CHECKING:
    from typing_extensions import Self

try:
    import rasterio
    import rasterio.shutil
    from affine import Affine
    from rasterio._err import (
        CPLE_BaseError,
    )  # rasterio.shutil raises it, and exports no name for it.
    from rasterio.control import GroundControlPoint
    from rasterio.errors import RasterioError
except ImportError as error:
    raise ImportError(
        "expected rasterio, for GeoTIFFs and images that are deep, tiled or read by block, got none that can be "
        f'imported ({error}); pip install "resclip[geo]"'
    ) from error

MAX_BLOCK_PIXELS = 1 << 32
"""Images of more pixels, 4.3 thousand million, are refused even where they are read by block."""
CACHE_BYTES = 64 << 20
"""Bytes of GDAL's cache of decoded blocks, which by default takes 5 % of the machine's memory."""
LARGEST_ROW_OF_BLOCKS = 512 << 20
"""Bytes of the largest row of blocks that is read: 350,000 pixels wide in RGB tiles of 512 rows."""
STRIP_PIXELS = 1 << 22
"""Pixels that are decoded at a time where a whole file is gone through."""

DRIVERS = {
    "TIFF": "GTiff",
    "JPEG 2000": "JP2OpenJPEG",
    "PNG": "PNG",
    "JPEG": "JPEG",
    "BMP": "BMP",
    "GIF": "GIF",
    "WebP": "WEBP",
}
"""GDAL's driver for a kind of file, which alone may open it: a VRT or a web service under another name is not opened.
Pixels are read of the first three."""

# GDAL begins with the file's name, which of bytes is one that nobody knows.
_FILE = re.compile(r"^('[^']*'|\S*\.\w+:) ")

_COLOURS = ("red", "green", "blue")
_INKS = ("cyan", "magenta", "yellow", "black")
# Descriptions by which files name the bands of visible light: as words, and as Sentinel-2 and Landsat 8 number them.
_DESCRIBED = (_COLOURS, ("r", "g", "b"), ("b04", "b03", "b02"), ("b4", "b3", "b2"))


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
        raise OSError(_FILE.sub("", str(error.__cause__ or error))) from error


def open_raster(
    source: Path | bytes,
    name: str,
    kind: str,
    options: ReadOptions,
    *,
    max_pixels: int,
    orientation: int = 1,
) -> Raster:
    """Open an image whose rows are read on demand.

    Its header is read now, and all of it where its values have to be stretched.

    Args:
        source: a local file, or an encoded image.
        name: what errors call it.
        kind: a key of `DRIVERS`.
        options: how it becomes RGB.
        max_pixels: the most pixels.
        orientation: EXIF's number, 1 to 8.

    Raises:
        ImageError: it is damaged, too large, has bands that cannot be understood, or blocks too large to be read in
            pieces.
        OSError: GDAL does not open it; with the reason.
    """
    with ExitStack() as stack:
        # Nothing beside the file is opened with it: an overview or a mask there could be of any of GDAL's formats.
        with gdal(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR") as rasterio, without_warnings():
            if isinstance(source, bytes):
                memory = stack.enter_context(rasterio.MemoryFile(source))
                dataset = memory.open(driver=DRIVERS[kind])
            else:
                dataset = rasterio.open(source, driver=DRIVERS[kind])
            stack.enter_context(dataset)
        check_size(dataset.width, dataset.height, name, max_pixels)
        facts = _Facts.of(dataset)
        if isinstance(source, Path):
            facts = _Facts.beside(source, kind)
            facts.mask = _open_mask(source, name, dataset.shape, stack)
        raster = Raster(dataset, name, facts, options, orientation)
        raster.closing = stack.pop_all()
        raster.opening = partial(
            open_raster,
            source,
            name,
            kind,
            options,
            max_pixels=max_pixels,
            orientation=orientation,
        )
        return raster


def georeference_of(
    path: Path, kind: str, orientation: int, height: int, width: int
) -> Georeference:
    """Where an image lies by itself or by the files beside it, a world file or GDAL's .aux.xml; no pixel is read.

    Args:
        path: of the image.
        kind: as of `resclip.io.signatures`.
        orientation: EXIF's number, 1 to 8, by which it was turned.
        height, width: in pixels, as it is stored.
    """
    try:
        stored = _Facts.beside(path, kind).georeference
    except (OSError, KeyError):  # KeyError: of a kind that GDAL does not read.
        return NOWHERE
    return _Turn(orientation, height, width).georeference(stored)


def mask_beside(path: Path, name: str, orientation: int, height: int, width: int) -> Mask | None:
    """Where the .msk file beside an image hides it: (H, W) of the upright one; None where there is none of its size.

    Args: as of `georeference_of`; `name` is what errors call the image.

    Raises:
        ImageError: the mask is damaged.
    """
    with ExitStack() as stack:
        dataset = _open_mask(path, name, (height, width), stack)
        if dataset is None:
            return None
        try:
            with gdal():
                hidden: Mask = dataset.read(1) == 0
        except OSError as error:
            raise ImageError(damaged(f"{name}.msk", error)) from error
    return _Turn(orientation, height, width).upright(hidden)


def _open_mask(path: Path, name: str, shape: tuple[int, int], stack: ExitStack) -> Any:
    """The mask in a file beside an image, which `stack` closes; None where there is none of this shape.

    Raises:
        ImageError: it is damaged, or no TIFF.
    """
    mask_file = path.with_name(f"{path.name}.msk")
    if not mask_file.is_file():
        return None
    try:
        with gdal(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR") as rasterio, without_warnings():
            mask = stack.enter_context(rasterio.open(mask_file, driver="GTiff"))
    except OSError as error:
        raise ImageError(
            f"{name}.msk: expected the image's mask, as a TIFF, got another file or a damaged one; make it again or "
            "remove it"
        ) from error
    return mask if mask.shape == shape else None


@dataclass
class _Facts:
    """What a file, or another beside it, says about its bands and its place."""

    georeference: Georeference
    nodata: tuple[float | None, ...]
    descriptions: tuple[str, ...]
    meanings: tuple[str, ...]
    mask: Any = None
    """A dataset with the mask, where that is a file of its own."""

    @classmethod
    def of(cls, dataset: Any) -> _Facts:
        """Of a dataset that is open."""
        gcps, gcps_crs = dataset.gcps
        return cls(
            Georeference(
                dataset.crs,
                None if dataset.transform.is_identity else dataset.transform,
                tuple(gcps),
                gcps_crs if gcps else None,
                dataset.rpcs,
            ),
            tuple(dataset.nodatavals),
            tuple(" ".join((text or "").split()) for text in dataset.descriptions),
            tuple(meaning.name for meaning in dataset.colorinterp),
        )

    @classmethod
    def beside(cls, path: Path, kind: str) -> _Facts:
        """Of a file and those beside it, which GDAL reads for the place and the bands, but not for pixels."""
        with (
            gdal() as rasterio,
            without_warnings(),
            rasterio.open(path, driver=DRIVERS[kind]) as dataset,
        ):
            return cls.of(dataset)


class Raster:
    """An image whose rows are read on demand; made by `open_raster`, closed as a context manager.

    Any thread may read it, one at a time.

    Attributes:
        georeference: where it lies.
        record: what is done to read it, as values for JSON.
    """

    closing: ExitStack
    opening: Callable[[], Raster]

    def __init__(
        self, dataset: Any, name: str, facts: _Facts, options: ReadOptions, orientation: int
    ) -> None:
        self._dataset = dataset
        self._name = name
        self._facts = facts
        self._row_of_blocks = _row_of_blocks(dataset, name)
        self._turn = _Turn(orientation, int(dataset.height), int(dataset.width))
        self.record: dict[str, Any] = {"decoder": "GDAL"}
        if orientation != 1:
            self.record["orientation"] = orientation
        self._is_chosen = options.bands is not None
        self._bands = _choose_bands(dataset, name, facts, options, self._is_alpha)
        self.record |= self._bands.record
        self.georeference = self._turn.georeference(facts.georeference)
        if facts.georeference.rpcs is not None and self.georeference.rpcs is None:
            self.record["georeference"] = "RPCs left out: the image was turned upright"
        self._levels = self._find_levels(options)
        alpha = self._bands.alpha
        self._opacity = Levels(0.0, self._opaque(alpha), "alpha") if alpha else BYTES
        self._profile = self._find_profile()

    @property
    def height(self) -> int:
        """In pixels."""
        return self._turn.shape[0]

    @property
    def width(self) -> int:
        """In pixels."""
        return self._turn.shape[1]

    def rows(self, first: int, last: int) -> PixelArray:
        """(last − first, width, 3) uint8, C-contiguous.

        Raises:
            ImageError: the file is damaged there.
            ValueError: there are no such rows.
        """
        return self._read(first, last)[0]

    def absent_rows(self, first: int, last: int) -> Mask | None:
        """(last − first, width), where the image has no pixels; None where it cannot say so. Raises as `rows`."""
        if not self._can_be_absent:
            return None
        window = self._turn.window(first, last, self._name)
        planes, _ = self._planes(window)
        return self._turn.upright(self._absent(planes, window))

    def picture(self) -> Picture:
        """The whole image, which is closed. Raises as `rows`."""
        with self:
            pixels = np.empty((self.height, self.width, 3), np.uint8)
            absent = np.zeros((self.height, self.width), np.bool_)
            # Whole rows of blocks of an image that lies on its side are its columns.
            step = self.height if self._turn.is_sideways else max(1, STRIP_PIXELS // self.width)
            for first, last in runs_of(self.height, step):
                pixels[first:last], missing = self._read(first, last)
                if missing is not None:
                    absent[first:last] = missing
            found = absent if absent.any() else None
            if found is not None:
                self.record["absent"] = share_absent(found)
            return Picture(pixels, found, self.georeference, self.record)

    def close(self) -> None:
        """Close the file."""
        self.closing.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens it anew; what others wrote into the record stays."""
        return _opened_anew, (self.opening, self.record)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _can_be_absent(self) -> bool:
        bands = self._bands
        floats = any(np.dtype(self._dataset.dtypes[i - 1]).kind == "f" for i in bands.colours)
        return bool(floats or bands.nodata is not None or bands.alpha or self._mask is not None)

    @property
    def _mask(self) -> Any:
        """Reads the mask of a window: of a band in the file or of a file of its own; None where there is none."""
        if self._facts.mask is not None:
            return partial(self._facts.mask.read, 1)
        flags = self._dataset.mask_flag_enums[self._bands.colours[0] - 1]
        names = {flag.name for flag in flags}
        if "per_dataset" in names and "alpha" not in names:
            return partial(self._dataset.read_masks, self._bands.colours[0])
        return None

    def _read(self, first: int, last: int) -> tuple[PixelArray, Mask | None]:
        window = self._turn.window(first, last, self._name)
        if first == last:
            return np.empty((0, self.width, 3), np.uint8), None
        planes, alpha = self._planes(window)
        absent = self._absent(planes, window, alpha) if self._can_be_absent else None
        pixels = self._bands.to_rgb(planes, self._levels, self._profile)
        if alpha is not None:
            pixels = over_filling(pixels, self._opacity.to_bytes(alpha))
        if absent is not None:
            pixels[absent] = FILLING
            absent = self._turn.upright(absent)
        return np.ascontiguousarray(self._turn.upright(pixels)), absent

    def _planes(self, window: Any) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """(bands, h, w) of the colours, and (h, w) of the alpha band."""
        bands = self._bands
        indexes = (*bands.colours, bands.alpha) if bands.alpha else bands.colours
        planes = self._decoded(partial(self._dataset.read, indexes), window)
        return (planes[:-1], planes[-1]) if bands.alpha else (planes, None)

    def _absent(self, planes: NDArray[Any], window: Any, alpha: NDArray[Any] | None = None) -> Mask:
        """(h, w): hidden by a mask or clear, all colours at their nodata values, or any of them not a number."""
        absent = np.zeros(planes.shape[1:], np.bool_)
        nodata = self._bands.nodata
        if nodata is not None:
            hidden = [plane == value for plane, value in zip(planes, nodata, strict=True)]
            absent |= np.logical_and.reduce(hidden)
        if planes.dtype.kind == "f":
            absent |= ~np.isfinite(planes).all(axis=0)
        if self._bands.alpha:
            if alpha is None:
                alpha = self._decoded(partial(self._dataset.read, self._bands.alpha), window)
            absent |= alpha == 0
        if self._mask is not None:
            absent |= self._decoded(self._mask, window) == 0
        return absent

    def _decoded(self, read: Any, window: Any) -> NDArray[Any]:
        try:
            with gdal(cache_for(self._row_of_blocks)):
                values: NDArray[Any] = read(window=window)
        except OSError as error:
            raise ImageError(damaged(self._name, error)) from error
        return values

    def _windows(self) -> Iterator[Any]:
        """The whole file as stored, in runs of rows."""
        step = max(1, STRIP_PIXELS // self._dataset.width)
        for first, last in runs_of(int(self._dataset.height), step):
            yield rasterio.windows.Window(0, first, self._dataset.width, last - first)

    def _is_alpha(self, index: int) -> bool:
        """Whether a band that is marked as alpha is one.

        Of a file with a georeference, and beside bands that were named, it has to be clear or opaque nearly everywhere.
        """
        if not (self._facts.georeference.is_known or self._is_chosen):
            return True
        opaque = self._opaque(index)
        between = 0
        for window in self._windows():
            values = self._decoded(partial(self._dataset.read, index), window)
            between += int(((values != 0) & (values != opaque)).sum())
        return between <= ALPHA_BETWEEN * self.width * self.height

    def _opaque(self, index: int) -> float:
        """The value of opaque pixels in an alpha band: its type's white; or 255 or 1 if none in a deep file is larger.

        Masks of such numbers come beside colours of 16 bits.
        """
        dtype = np.dtype(self._dataset.dtypes[index - 1])
        white = FULL_RANGES.get(dtype.name) or float(np.iinfo(dtype).max)
        if dtype.itemsize == 1:
            return white
        reads = partial(self._dataset.read, index)
        highest = max(float(self._decoded(reads, window).max()) for window in self._windows())
        return next((level for level in (1.0, 255.0) if highest <= level), white)

    def _find_levels(self, options: ReadOptions) -> Levels:
        if self._bands.palette is not None:
            return BYTES
        if options.value_range is not None:
            levels = Levels(*options.value_range, "value_range")
        else:

            def blocks() -> Iterator[NDArray[Any]]:
                for window in self._windows():
                    planes, alpha = self._planes(window)
                    if self._can_be_absent:
                        yield planes[:, ~self._absent(planes, window, alpha)]
                    else:
                        yield planes

            kinds = [np.dtype(self._dataset.dtypes[i - 1]) for i in self._bands.colours]
            levels = find_levels(np.result_type(*kinds), blocks)
        if levels != BYTES:
            self.record["levels"] = [levels.low, levels.high]
            self.record["levels_by"] = levels.reason
        return levels

    def _find_profile(self) -> Profile | None:
        with gdal():
            stored = self._dataset.tags(ns="COLOR_PROFILE").get("SOURCE_ICC_PROFILE")
        if stored is None:
            return None
        if self._bands.record.get("bands") is not None:
            self.record["profile"] = NO_PROFILE_OF_BANDS
            return None
        profile = Profile(base64.b64decode(stored), self._bands.model)
        if profile.remark:
            self.record["profile"] = profile.remark
        return profile if profile.is_applied else None


def _opened_anew(opening: Callable[[], Raster], record: dict[str, Any]) -> Raster:
    raster = opening()
    raster.record = record
    return raster


@dataclass(frozen=True, eq=False)
class _Bands:
    """The bands that are read, and their meaning.

    Args:
        colours: indexes from 1.
        alpha: index of the alpha band; 0 for none.
        model: "L", "RGB" or "CMYK".
        palette: (levels, 3) uint8, RGB for each value of a single band, or None.
        inverted: whether 0 is white.
        nodata: the value of each colour where the image has no pixel; None if one of them has no such value.
        record: what was chosen, where it is not obvious.
    """

    colours: tuple[int, ...]
    alpha: int
    model: str
    palette: PixelArray | None
    inverted: bool
    nodata: tuple[float, ...] | None
    record: dict[str, Any]

    def to_rgb(self, planes: NDArray[Any], levels: Levels, profile: Profile | None) -> PixelArray:
        """(bands, h, w) → (h, w, 3) sRGB."""
        if self.palette is not None:
            pixels: PixelArray = self.palette[planes[0]]
        else:
            layers = levels.to_bytes(planes)
            if self.inverted:
                layers = 255 - layers
            if self.model == "L":
                layers = layers if profile is not None else layers.repeat(3, axis=0)
            pixels = np.ascontiguousarray(np.moveaxis(layers, 0, 2))
        if profile is None and self.model != "CMYK":
            return pixels
        image = Image.frombytes(self.model, pixels.shape[1::-1], pixels.tobytes())
        if profile is not None:
            image = profile.to_srgb(image)
        return np.array(image.convert("RGB"))


def _choose_bands(
    dataset: Any, name: str, facts: _Facts, options: ReadOptions, is_alpha: Any
) -> _Bands:
    described = [text.lower() for text in facts.descriptions]
    meanings = list(facts.meanings)
    record: dict[str, Any] = {}
    palette = _palette(dataset) if options.bands is None else None
    chosen = [_band_number(band, name, dataset, facts) for band in options.bands or ()]
    marked = [index for index, meaning in enumerate(meanings, 1) if meaning == "alpha"]
    alpha = 0
    # A band that is asked for as a colour is no alpha.
    if marked and marked[0] not in chosen:
        if is_alpha(marked[0]):
            alpha = marked[0]
        else:
            record["alpha"] = f"band {marked[0]} is marked as alpha, but holds other values"
    others = tuple(index for index in range(1, dataset.count + 1) if index != alpha)
    model = "RGB"
    by_name = next((names for names in _DESCRIBED if set(names) <= set(described)), None)
    colours: tuple[int, ...]
    if chosen:
        colours = tuple(chosen)
        model = "RGB" if len(colours) == 3 else "L"
        record["bands"] = list(colours)
    elif palette is not None:
        colours = (1,)
    elif set(_INKS) <= set(meanings):
        model, colours = "CMYK", tuple(meanings.index(ink) + 1 for ink in _INKS)
    elif by_name is not None:
        colours = tuple(described.index(word) + 1 for word in by_name)
        if colours != (1, 2, 3):
            record["bands"] = list(colours)
            record["bands_by"] = "the bands' descriptions"
    elif set(_COLOURS) <= set(meanings):
        colours = tuple(meanings.index(colour) + 1 for colour in _COLOURS)
        if colours != (1, 2, 3):
            record["bands"] = list(colours)
            record["bands_by"] = "the colour interpretation"
    elif len(others) >= 3:
        colours = others[:3]
        if len(others) > 3:
            record["bands"] = list(colours)
            record["bands_by"] = "a guess: the file does not say which are red, green and blue"
    elif len(others) == 1:
        model, colours = "L", others
    else:
        titles = ", ".join(filter(None, facts.descriptions)) or "no descriptions"
        raise ImageError(
            f"{name}: expected one band (grey), three or more (colour), and perhaps alpha, got "
            f"{len(others)} ({titles[:80]}); choose one as grey or three as colours with bands="
        )
    kinds = sorted({dataset.dtypes[index - 1] for index in colours})
    if any(np.dtype(kind).kind not in "uif" for kind in kinds):
        raise ImageError(
            f"{name}: expected real numbers, got {', '.join(kinds)}; convert the image first"
        )
    values = [facts.nodata[index - 1] for index in colours]
    known = [value for value in values if value is not None]
    nodata = None
    # A nodata value that is no number is found among those that are not finite.
    if known and len(known) == len(values) and not any(map(math.isnan, known)):
        nodata = tuple(known)
    inverted = dataset.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES" and model == "L"
    return _Bands(colours, alpha, model, palette, inverted and palette is None, nodata, record)


def _band_number(band: int | str, name: str, dataset: Any, facts: _Facts) -> int:
    """The index of a band that was asked for by number or name."""
    if isinstance(band, str) and not band.isdecimal():
        for names in (facts.descriptions, facts.meanings):
            folded = [text.casefold() for text in names]
            if band.casefold() in folded:
                return folded.index(band.casefold()) + 1
        known = ", ".join(filter(None, (*facts.descriptions, *facts.meanings)))
        raise ImageError(
            f"{name}: expected a band called {band!r}, got {dataset.count} bands ({known[:120]}); choose by number"
        )
    if not 1 <= int(band) <= dataset.count:
        raise ImageError(
            f"{name}: expected a band {band}, got {dataset.count} bands; choose others"
        )
    return int(band)


def _palette(dataset: Any) -> PixelArray | None:
    """RGB of each value of the first band; None if the values are levels."""
    if dataset.count == 0 or dataset.dtypes[0] not in ("uint8", "uint16"):
        return None
    is_inverted = dataset.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"
    bits = int(dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8))
    try:
        # GDAL makes up a palette of grey where 0 is white.
        entries = {} if is_inverted else dataset.colormap(1)
    except ValueError:
        entries = {}
    if not entries:
        if bits >= 8 or dataset.count > 1:
            return None
        level = 255 // (2**bits - 1)  # 2 and 4 bits, which GDAL leaves as they are.
        entries = {value: (value * level,) * 3 + (255,) for value in range(2**bits)}
        if is_inverted:
            entries = {value: (255 - rgb[0],) * 3 + (255,) for value, rgb in entries.items()}
    colours = np.zeros((np.iinfo(dataset.dtypes[0]).max + 1, 4), np.uint8)
    colours[:, 3] = 255
    colours[list(entries)] = list(entries.values())
    return over_filling(colours[:, :3], colours[:, 3])


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


class _Turn:
    """From an image as it is stored to one that is upright, by EXIF's orientation."""

    def __init__(self, orientation: int, height: int, width: int) -> None:
        self.stored = height, width
        self.is_sideways = orientation >= 5
        # A sideways image is transposed at the end: until then its rows are columns.
        self.flips_columns = orientation in (2, 3, 7, 8)
        self.flips_rows = orientation in (3, 4, 6, 7)
        self.shape = (width, height) if self.is_sideways else (height, width)

    def window(self, first: int, last: int, name: str) -> Any:
        """The stored pixels of rows of the upright image."""
        if not 0 <= first <= last <= self.shape[0]:
            raise ValueError(
                f"{name}: expected rows within 0 to {self.shape[0]}, got {first} to {last}"
            )
        height, width = self.stored
        if self.is_sideways:
            start = width - last if self.flips_columns else first
            return rasterio.windows.Window(start, 0, last - first, height)
        start = height - last if self.flips_rows else first
        return rasterio.windows.Window(0, start, width, last - first)

    def upright(self, values: NDArray[Any]) -> NDArray[Any]:
        """(h, w, …) of a window → (n, width, …) of the upright image."""
        if self.flips_rows:
            values = values[::-1]
        if self.flips_columns:
            values = values[:, ::-1]
        return values.swapaxes(0, 1) if self.is_sideways else values

    def georeference(self, stored: Georeference) -> Georeference:
        """Of the upright image."""
        if not (self.is_sideways or self.flips_rows or self.flips_columns):
            return stored
        height, width = self.stored
        # (column, row, 1) of the upright image to that of the stored one.
        back = np.eye(3)
        if self.flips_rows:
            back[1] = 0, -1, height
        if self.flips_columns:
            back[0] = -1, 0, width
        if self.is_sideways:
            back = back[:, [1, 0, 2]]
        gcps = []
        for point in stored.gcps:
            column, row, _ = np.linalg.solve(back, (point.col, point.row, 1.0)).tolist()
            gcps.append(GroundControlPoint(row, column, point.x, point.y, point.z, point.id))
        transform = None
        if stored.transform is not None:
            matrix = np.array(stored.transform).reshape(3, 3) @ back
            transform = Affine(*matrix[:2].ravel().tolist())
        return Georeference(stored.crs, transform, tuple(gcps), stored.gcps_crs, None)
