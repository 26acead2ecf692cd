"""Images in and out: any source becomes one `Picture`, and a PIL image becomes a file.

What reads a file follows from its content, never from its name: Pillow, limited to the one format that the first bytes
announce, or GDAL (`resclip.io.raster`) for what Pillow cannot give: georeferenced, deep, tiled and many-banded TIFFs,
JPEG 2000 and 16-bit PNGs. Where the first gives up the other is tried. Whatever can be wrong with an image is reported
as an `ImageError` of one sentence.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from resclip.io.arrays import (
    array_of,
    chosen_bands,
    is_tensor,
    picture_of_array,
    stretched,
)
from resclip.io.colour import NO_PROFILE_OF_BANDS, Profile, lab_to_srgb
from resclip.io.errors import MAX_PIXELS as MAX_PIXELS  # noqa: PLC0414 - exported from here too
from resclip.io.errors import ImageError as ImageError  # noqa: PLC0414
from resclip.io.errors import (
    check_bytes,
    check_file,
    check_whole,
    damaged,
    decoding,
    too_large,
    unknown_format,
    unreachable,
    without_warnings,
)
from resclip.io.files import write_atomically
from resclip.io.levels import Levels, find_levels
from resclip.io.limits import Limits
from resclip.io.picture import (
    ALPHA_BETWEEN,
    DEFAULT_OPTIONS,
    FILLING,
    NOWHERE,
    Mask,
    Picture,
    ReadOptions,
    over_filling,
    share_absent,
)
from resclip.io.resize import PixelArray as PixelArray  # noqa: PLC0414 - exported from here too
from resclip.io.signatures import SIGNATURE_BYTES, kind_of_image
from resclip.io.tags import ORIENTATION, Tags, orientation_of, png_orientation, tiff_pages

if TYPE_CHECKING:
    from torch import Tensor

    from resclip.io.raster import Raster


class Readable(Protocol):
    """A file that is opened for bytes, or whatever is read like one."""

    def read(self, size: int, /) -> bytes:
        """At most so many further bytes; none at the end."""


Encoded: TypeAlias = "bytes | bytearray | memoryview | Readable"
"""An encoded image that is no file by its name."""

ImageSource: TypeAlias = (
    "str | os.PathLike[str] | Encoded | Image.Image | NDArray[Any] | Tensor | Picture"
)
"""What one image may be; `read_picture` says how each is taken."""

# By kind: Pillow's formats that are meant. No other is tried, since some start programs or open further files.
_PILLOW_FORMATS = {
    "PNG": ("PNG",),
    "JPEG": ("JPEG", "MPO"),
    "WebP": ("WEBP",),
    "TIFF": ("TIFF",),
    "GIF": ("GIF",),
    "BMP": ("BMP",),
    "AVIF": ("AVIF",),
    "HEIC": ("HEIF",),
    "JPEG 2000": ("JPEG2000",),
    "PNM": ("PPM",),
    "QOI": ("QOI",),
}

# Tags of TIFF: the layout of its pixels; GDAL's nodata value; a georeference in five forms.
_SUBFILE, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _SAMPLES, _SAMPLE_FORMAT, _TILES = (
    254, 256, 257, 258, 262, 277, 339, 322,
)  # fmt: skip
_READ_TAGS = {
    ORIENTATION, _SUBFILE, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _SAMPLES, _SAMPLE_FORMAT,
}  # fmt: skip
_NODATA = 42113
_PLACE = (33550, 33922, 34264, 34735, 50844)
_DESCRIPTIONS = 42112
_YCBCR = 6
_LAB = (8, 9, 10)
_PLACE_NOT_READ = 'not read: pip install "resclip[geo]"'
_MASK = 4
"""A bit of _SUBFILE: the page is a mask."""


SCENE_MARK = ("Source", "a drawn scene of resclip")
"""Key and text by which a PNG, or a PIL image's `info`, says that it is a scene of the built-in model's kind."""


def read_image(
    source: ImageSource, *, max_pixels: int = MAX_PIXELS, name: str | None = None
) -> PixelArray:
    """The pixels of `read_picture` alone: (H, W, 3) uint8."""
    options = ReadOptions(limits=Limits(max_pixels=max_pixels))
    return read_picture(source, options, name=name).pixels


def read_picture(
    source: ImageSource, options: ReadOptions = DEFAULT_OPTIONS, *, name: str | None = None
) -> Picture:
    """Read an image whole: upright sRGB bytes, where it has no pixels, where it lies, and what was done.

    Args:
        source: one of
            a path; an encoded image's bytes; or a file opened for bytes, which is read from where it is to its end;
            a PIL image of any mode;
            an array, (H, W), (H, W, 1), (H, W, 3) or, with opacity, (H, W, 4): uint8, uint16, or floats from 0 to 1;
            other channels and numbers where `bands` and `value_range` say what they mean. Of a masked array the pixels
            are absent whose colours are all masked;
            a torch tensor, (1, H, W), (3, H, W), (4, H, W) or (H, W), of the same types, on any device;
            a picture that is read already.
        options: bands, value range and limits.
        name: what errors call the image; by default its path.

    The orientation that EXIF or TIFF name is applied, an embedded colour profile converted to sRGB. Animated images
    give their first frame. Fully transparent pixels, and those that a nodata value or a mask hides, are absent and hold
    the neutral `FILLING`, over which partly transparent ones are composited. Deep images become 8 bits by
    `resclip.io.levels`; floats of an array are never stretched unasked. Of several bands those are taken that the file
    calls red, green and blue. Greyscale, palette and CMYK images are converted; a CMYK JPEG is taken as inverted, as
    Adobe and browsers do, whether it says so or not. The pixels are a copy of an array or a tensor.

    Raises:
        ImageError: the file is missing, empty, special, damaged, no image or over a limit; the array has another shape
            or dtype, or floats beyond 0 to 1; bands that cannot be understood.
        TypeError: `source` is something else altogether.
    """
    found = open_picture(source, options, name=name)
    return found if isinstance(found, Picture) else found.picture()


def open_picture(
    source: ImageSource,
    options: ReadOptions = DEFAULT_OPTIONS,
    *,
    name: str | None = None,
    block_pixels: int | None = None,
) -> Picture | Raster:
    """`read_picture`, but TIFF and JPEG 2000 of more than `block_pixels` are opened to be read by rows.

    Args:
        source, options, name: as of `read_picture`.
        block_pixels: None: every image is read whole.

    Raises: as `read_picture`.
    """
    if isinstance(source, Picture):
        return source
    if isinstance(source, np.ndarray):
        return picture_of_array(source, name, options)
    if is_tensor(source):
        return picture_of_array(array_of(source, name), name, options)
    if isinstance(source, Image.Image):
        name = name or "the image"
        check_whole(source.width, source.height, name, options.limits)
        return _decode(source, name, options, {})
    if isinstance(source, (bytes, bytearray, memoryview)):
        name = name or "the image"
        if not len(source):
            raise ImageError(f"{name}: expected an image, got no bytes; get the file again")
        check_bytes(len(source), name, options.limits.max_bytes)
        return _Encoded(bytes(source), name, options, block_pixels).open()
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        check_file(path, name or str(path))
        return _Encoded(path, name or str(path), options, block_pixels).open()
    if hasattr(source, "read"):
        name = name or _file_name(source)
        return _Encoded(_read_file(source, name, options), name, options, block_pixels).open()
    raise TypeError(
        "expected a path, bytes, a file opened for bytes, a PIL image, an (H, W, 3) array or a (3, H, W) tensor, "
        f"got {type(source).__module__}.{type(source).__qualname__}; convert the image first"
    )


def is_one_image(source: object) -> bool:
    """Whether something is one image, as `read_picture` takes it, and not several.

    Arrays and tensors of more than three axes are several, and so is any other iterable.
    """
    if isinstance(source, np.ndarray) or is_tensor(source):
        return source.ndim <= 3
    known = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, Picture)
    return isinstance(source, known) or hasattr(source, "read")


def is_lasting(source: object) -> bool:
    """Whether an image can still be read later as it is now: nobody fills it anew, and no position moves on."""
    return isinstance(source, (str, os.PathLike, bytes, Picture))


def is_marked(image: Image.Image) -> bool:
    """Whether an image says of itself that it is a drawn scene of the built-in model."""
    key, value = SCENE_MARK
    return bool(image.info.get(key) == value)


def encode_png(image: Image.Image) -> bytes:
    """`image` as the bytes of a PNG file, which says so where it is a drawn scene."""
    buffer = io.BytesIO()
    texts = PngInfo()
    if is_marked(image):
        texts.add_text(*SCENE_MARK)
    image.save(buffer, format="PNG", pnginfo=texts)
    return buffer.getvalue()


def save_png(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write `image` as a PNG file, whole or not at all.

    Raises:
        OSError: the directory is missing, is not writable or is full.
    """
    write_atomically(path, encode_png(image))


def _file_name(file: Any) -> str:
    """What errors call an open file."""
    name = getattr(file, "name", None)
    return str(name) if isinstance(name, (str, os.PathLike)) and str(name) else "the file"


def _read_file(file: Any, name: str, options: ReadOptions) -> bytes:
    """The rest of an open file, which may give less at a time than is asked for."""
    most = options.limits.max_bytes
    parts: list[bytes] = []
    size = 0
    while size <= most:
        try:
            part = file.read(most + 1 - size)
        except Exception as error:  # Whatever a network's, or an archive's, file raises.
            raise ImageError(unreachable(name, error)) from error
        if not isinstance(part, (bytes, bytearray, memoryview)):
            advice = 'open it with "rb"' if isinstance(part, str) else "pass its bytes"
            if hasattr(part, "close"):  # A coroutine, which would warn that nobody waited for it.
                part.close()
            came = "text" if isinstance(part, str) else type(part).__name__
            raise ImageError(f"{name}: expected bytes from its read(), got {came}; {advice}")
        if not len(part):
            break
        parts.append(bytes(part))
        size += len(part)
    if not size:
        raise ImageError(
            f"{name}: expected an image, got a file at its end; go back with .seek(0), or get the file again"
        )
    check_bytes(size, name, most)
    return b"".join(parts)


class _Encoded:
    """An image as a file or as bytes, and the decoders that its content calls for."""

    def __init__(
        self, source: Path | bytes, name: str, options: ReadOptions, block_pixels: int | None
    ) -> None:
        self.source = source
        self.name = name
        self.options = options
        self.block_pixels = block_pixels
        self.record: dict[str, Any] = {}
        self.orientation = 1
        """Of what GDAL reads, which passes it over."""
        with self.stream() as stream:
            try:
                self.start = stream.read(SIGNATURE_BYTES)
                self.kind = kind_of_image(self.start)
                pages = tiff_pages(stream, _READ_TAGS) if self.kind == "TIFF" else []
                if self.is_deep_png:
                    self.orientation = png_orientation(stream)
            except OSError as error:
                raise ImageError(unreachable(name, error)) from error
        self.tags: Tags = pages[0] if pages else {}
        self.is_masked = any(_first(page, _SUBFILE) & _MASK for page in pages[1:])
        if self.kind == "TIFF":
            self.orientation = orientation_of(self.tags)

    def stream(self) -> BinaryIO:
        """The encoded bytes."""
        if isinstance(self.source, bytes):
            return io.BytesIO(self.source)
        try:
            return self.source.open("rb")
        except OSError as error:
            raise ImageError(unreachable(self.name, error)) from error

    def open(self) -> Picture | Raster:
        """The image, by the first decoder that can give it.

        Raises:
            ImageError: none can; with the reason of the one that should.
        """
        if self.kind not in _PILLOW_FORMATS:
            raise ImageError(unknown_format(self.name, self.start))
        self.record["format"] = self.kind
        errors = []
        for decoder in self.decoders():
            try:
                return decoder()
            except ImageError as error:
                errors.append(error)
        # What the first one says: it is the one that is made for such files; unless another package would read it.
        raise next((error for error in errors if isinstance(error, _ReaderMissing)), errors[0])

    def decoders(self) -> list[Callable[[], Picture | Raster]]:
        """What is tried, in order."""
        if self.kind == "TIFF":
            if _first(self.tags, _PHOTOMETRIC) in _LAB:
                return [self.by_pillow]
            # Pillow would show what is hidden, or take colours for others: it is no second decoder then.
            if self.is_masked or _is_beyond_pillow(self.tags):
                return [self.by_gdal]
            ways = [self.by_pillow, self.by_gdal]
            return ways[::-1] if self.is_special() else ways
        if self.kind == "JPEG 2000":
            return [self.by_gdal, self.by_pillow]
        # Of 16-bit colour Pillow gives the high bytes alone.
        if self.is_deep_png:
            return [self.by_gdal, self.by_high_bytes]
        return [self.by_pillow]

    @property
    def is_deep_png(self) -> bool:
        """Whether it is a PNG whose pixels are colours, or grey with opacity, of 16 bits each."""
        return self.kind == "PNG" and self.start[24:26] in (
            b"\x10\x02",
            b"\x10\x04",
            b"\x10\x06",
        )

    def is_special(self) -> bool:
        """Whether a TIFF is large, tiled, says where it lies or what its bands are, or is asked for some of them."""
        pixels = _first(self.tags, _HEIGHT) * _first(self.tags, _WIDTH)
        is_large = self.block_pixels is not None and pixels > self.block_pixels
        is_described = any(tag in self.tags for tag in (_TILES, _DESCRIPTIONS, *_PLACE))
        is_chosen = self.options.bands is not None
        # The decoders differ in how they enlarge the colours of a JPEG: one of them has to be for all sizes.
        is_jpeg = _first(self.tags, _PHOTOMETRIC) == _YCBCR
        return is_large or is_described or is_chosen or is_jpeg or self.has_companions()

    def has_companions(self) -> bool:
        """Whether files beside it say where the image lies, or what of it is hidden."""
        if isinstance(self.source, bytes):
            return False
        path = self.source
        suffix = path.suffix
        # "x.tfw" and "x.tifw" belong to "x.tif".
        world = [f"{suffix[:2]}{suffix[-1]}w", f"{suffix}w"] if len(suffix) > 2 else []
        world = [*world, ".wld"]
        return any(
            path.with_suffix(ending).exists()
            for ending in (*world, *map(str.lower, world), *map(str.upper, world))
        ) or any(path.with_name(path.name + ending).exists() for ending in (".aux.xml", ".msk"))

    def by_gdal(self) -> Picture | Raster:
        """By GDAL; by rows where the image is large."""
        try:
            from resclip.io.raster import MAX_BLOCK_PIXELS, open_raster
        except ImportError as error:
            raise _ReaderMissing(
                f"{self.name}: expected rasterio, which reads {self.kind} of this kind (deep, tiled, "
                'georeferenced or with hidden pixels), found none; pip install "resclip[geo]"'
            ) from error
        by_block = self.block_pixels is not None and self.kind != "PNG"
        max_pixels = self.options.limits.max_pixels or (
            MAX_BLOCK_PIXELS if by_block else MAX_PIXELS
        )
        try:
            raster = open_raster(
                self.source,
                self.name,
                str(self.kind),
                self.options,
                max_pixels=max_pixels,
                orientation=self.orientation,
            )
        except OSError as error:
            raise ImageError(damaged(self.name, error)) from error
        raster.record = {**self.record, **raster.record}
        is_large = by_block and raster.height * raster.width > (self.block_pixels or 0)
        if is_large:
            return raster
        try:
            check_whole(raster.width, raster.height, self.name, self.options.limits)
            return raster.picture()
        finally:
            raster.close()

    def by_high_bytes(self) -> Picture:
        """A 16-bit PNG by Pillow, where GDAL is missing: right if the file uses its range."""
        picture = self.by_pillow()
        if picture.pixels.max() < 128:
            raise _ReaderMissing(
                f"{self.name}: expected rasterio, which reads 16-bit colour that does not use its range, found "
                'none; pip install "resclip[geo]", or convert the image to 8 bits'
            )
        return picture

    def by_pillow(self) -> Picture:
        """By Pillow, limited to the format that the content announces."""
        limits = self.options.limits
        if isinstance(self.source, Path):
            check_bytes(check_file(self.source, self.name), self.name, limits.max_bytes)
        if self.kind == "HEIC":
            _register_heif(self.name, self.start)
        with self.stream() as stream:
            image = self.identified(stream, limits.max_pixels or MAX_PIXELS)
            with image:
                check_whole(image.width, image.height, self.name, limits)
                self.mend_transparency(image)
                picture = _decode(image, self.name, self.options, self.record, self.tags)
        return self.placed(picture)

    def mend_transparency(self, image: Image.Image) -> None:
        """Of a PNG of 2 or 4 bits of grey: Pillow spreads its levels to 255, but not the one that is transparent."""
        level = image.info.get("transparency")
        if self.kind == "PNG" and self.start[24:26] in (b"\x02\0", b"\x04\0") and level is not None:
            highest = 2 ** self.start[24] - 1
            if level <= highest:
                image.info["transparency"] = level * (255 // highest)

    def identified(self, stream: BinaryIO, max_pixels: int) -> Image.Image:
        """Image.open, with `max_pixels` in place of its own limit; it stops at twice that many.

        It reads the header alone, but for WebP, whose canvas it makes.
        """
        with decoding(self.name), without_warnings():
            former = Image.MAX_IMAGE_PIXELS
            Image.MAX_IMAGE_PIXELS = max_pixels
            try:
                return Image.open(stream, formats=_PILLOW_FORMATS[str(self.kind)])
            except Image.DecompressionBombError as error:
                came = "more than twice as many"
                raise ImageError(too_large(self.name, came, max_pixels)) from error
            except UnidentifiedImageError as error:
                raise ImageError(_rare(self.name, str(self.kind))) from error
            finally:
                Image.MAX_IMAGE_PIXELS = former

    def placed(self, picture: Picture) -> Picture:
        """With what Pillow passes over: files beside the image that say where it lies and what of it is hidden."""
        if isinstance(self.source, bytes) or not self.has_companions():
            if any(tag in self.tags for tag in _PLACE):
                picture.record["georeference"] = _PLACE_NOT_READ
            return picture
        try:
            from resclip.io.raster import georeference_of, mask_beside
        except ImportError:
            if self.source.with_name(f"{self.source.name}.msk").exists():
                # Not without: what the mask hides would be shown.
                raise _ReaderMissing(
                    f"{self.name}: expected rasterio, which reads the mask beside it, found none; "
                    'pip install "resclip[geo]", or remove the .msk file'
                ) from None
            picture.record["georeference"] = _PLACE_NOT_READ
            return picture
        orientation = picture.record.get("orientation", 1)
        size = (picture.height, picture.width)
        stored = size[::-1] if orientation >= 5 else size
        place = georeference_of(self.source, str(self.kind), orientation, *stored)
        absent = picture.absent
        hidden = mask_beside(self.source, self.name, orientation, *stored)
        if hidden is not None and hidden.any():
            absent = hidden if absent is None else hidden | absent
            picture.pixels[hidden] = FILLING
            picture.record["absent"] = share_absent(absent)
        return Picture(picture.pixels, absent, place, picture.record)


class _ReaderMissing(ImageError):
    """An image that could be read with a package that is not installed."""


def _rare(name: str, kind: str) -> str:
    return (
        f"{name}: expected {kind} of a common kind, got one whose header is damaged or that stores its pixels in a "
        "rare way; get the file again or convert it to 8-bit PNG"
    )


def _register_heif(name: str, start: bytes) -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise ImageError(unknown_format(name, start)) from error
    register_heif_opener()


def _first(tags: Tags, tag: int, missing: int = 0) -> int:
    """The first value of a tag; `missing` where a page has none."""
    return (tags.get(tag) or (missing,))[0]


def _is_beyond_pillow(tags: Tags) -> bool:
    """Whether a TIFF says something that Pillow would get wrong: of its depth, its bands or its nodata."""
    return (
        max(tags.get(_BITS) or (1,)) > 8
        or any(kind != 1 for kind in tags.get(_SAMPLE_FORMAT, ()))
        or _first(tags, _SAMPLES, 1) not in (1, 3, 4)
        or _NODATA in tags
    )


def _decode(
    image: Image.Image,
    name: str,
    options: ReadOptions,
    record: dict[str, Any],
    tags: Tags | None = None,
) -> Picture:
    """The first frame of an image that Pillow has opened."""
    with decoding(name):
        turned = _stored_orientation(image)
        image.load()
        if is_marked(image):
            record["scene"] = True
        if turned != 1:
            record["orientation"] = turned
            with without_warnings():
                image = ImageOps.exif_transpose(image)
        # Pillow shows numbers without colours as black.
        if image.mode in ("P", "PA") and not image.getpalette():
            raise ImageError(
                f"{name}: expected a palette with the colours of its numbers, got none; get the file again"
            )
        if image.mode == "LAB":
            image = lab_to_srgb(image)
        profile_data = image.info.get("icc_profile")
        absent: Mask | None = None
        if image.mode.startswith(("I", "F")):
            white_is_zero = _first(tags or {}, _PHOTOMETRIC, 1) == 0
            image, absent = _grey(image, options, record, white_is_zero=white_is_zero)
        bands = image if options.bands is None else image.copy()
        image, opacity = _without_opacity(image)
        if options.bands is not None:
            layers = [np.asarray(layer) for layer in bands.split()]
            chosen = chosen_bands(layers, name, options, record)
            if opacity is not None and bands.getbands()[-1] == "A":
                # Of several files this band is another colour: infrared, as it may be.
                between = float(((opacity > 0) & (opacity < 255)).mean())
                if len(layers) in record["bands"] or between > ALPHA_BETWEEN:
                    opacity = None
            image = Image.fromarray(np.stack(chosen, axis=2))
            if profile_data:
                record["profile"] = NO_PROFILE_OF_BANDS
        elif profile_data:
            profile = Profile(profile_data, image.mode)
            if profile.remark:
                record["profile"] = profile.remark
            image = profile.to_srgb(image)
        pixels = np.array(image.convert("RGB"), dtype=np.uint8, order="C")
        if options.value_range is not None and "levels" not in record:
            pixels = stretched(pixels, options, record)
        if opacity is not None and opacity.min() < 255:
            pixels = over_filling(pixels, opacity)
            absent = opacity == 0
        if absent is not None and absent.any():
            pixels[absent] = FILLING
            record["absent"] = share_absent(absent)
        else:
            absent = None
        return Picture(pixels, absent, NOWHERE, record)


def _without_opacity(image: Image.Image) -> tuple[Image.Image, NDArray[np.uint8] | None]:
    """Colours, grey or inks alone, and the opacity of each pixel, (H, W); None where all are opaque."""
    if image.mode == "La":  # Pillow turns it into no other.
        image = image.convert("LA")
    opacity = None
    if image.has_transparency_data:
        is_grey = image.mode in ("1", "L", "LA")
        layer = image.convert("RGBA")
        opacity = np.asarray(layer.getchannel("A"))
        image = layer.convert("RGB").convert("L") if is_grey else layer.convert("RGB")
    elif image.mode in ("1", "P", "LA", "PA", "I;16"):
        image = image.convert("RGB" if image.mode in ("P", "PA") else "L")
    return image, opacity


def _stored_orientation(image: Image.Image) -> int:
    """EXIF's number, 1 to 8; 1 if the EXIF block is damaged, of which Pillow warns once for each tag."""
    try:
        with decoding("EXIF"), without_warnings():
            value = image.getexif().get(ORIENTATION)
    except ImageError:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _grey(
    image: Image.Image,
    options: ReadOptions,
    record: dict[str, Any],
    *,
    white_is_zero: bool,
) -> tuple[Image.Image, Mask | None]:
    """Deep greyscale in 8 bits, and where it has the one value that a PNG calls transparent, or no number."""
    values = np.asarray(image)
    if values.dtype == np.int32 and values.min() >= 0 and values.max() <= 65535:
        # Pillow's usual way to hold 16 bits without a sign.
        values = values.astype(np.uint16)
    absent = values == image.info.get("transparency", -1)
    if values.dtype.kind == "f":
        absent = absent | ~np.isfinite(values)
    if options.value_range is not None:
        levels = Levels(*options.value_range, "value_range")
    else:
        levels = find_levels(values.dtype, lambda: [values[~absent]])
    record["levels"] = [levels.low, levels.high]
    record["levels_by"] = levels.reason
    grey = levels.to_bytes(values)
    if white_is_zero:  # Pillow inverts shallower images itself, and these not.
        grey = 255 - grey
    return Image.fromarray(grey), absent
