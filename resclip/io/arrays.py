"""Images as arrays of numbers: NumPy's and torch's become RGB bytes, or one sentence says why they are no image."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resclip.io.errors import ImageError, check_whole
from resclip.io.levels import BYTES, Levels, find_levels
from resclip.io.picture import (
    FILLING,
    Mask,
    Picture,
    ReadOptions,
    over_filling,
    share_absent,
)
from resclip.io.resize import PixelArray

if TYPE_CHECKING:
    from typing import TypeGuard

    from torch import Tensor

CHANNELS = (1, 3, 4)
"""Grey, colours, and colours with opacity."""

SLACK = 1e-3
"""Fractions may be so far below 0 or above 1, a quarter of a level: arithmetic such as undoing a normalisation errs."""

FRACTIONS = Levels(0.0, 1.0, "fractions")

_CONVERT = "convert it with .astype(numpy.uint8) if its values are 0 to 255, or give value_range=(low, high)"


def is_tensor(source: object) -> TypeGuard[Tensor]:
    """Whether it is torch's; torch is not imported for it: who holds a tensor has done so."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.Tensor)


def array_of(tensor: Tensor, name: str | None) -> NDArray[Any]:
    """A torch tensor, (C, H, W) or (H, W) on any device, as an array, (H, W, C) or (H, W).

    Raises:
        ImageError: another shape or layout, or a tensor without values.
    """
    prefix = f"{name}: " if name else ""
    shape = tuple(tensor.shape)
    if tensor.ndim == 4:
        raise ImageError(_is_batch(prefix, shape, "(3, height, width)"))
    if tensor.ndim not in (2, 3) or (tensor.ndim == 3 and shape[0] not in CHANNELS):
        advice = "put the three colour channels first"
        if tensor.ndim == 3 and shape[2] in CHANNELS:
            advice = "put the channels first with .permute(2, 0, 1)"
        raise ImageError(
            f"{prefix}expected a tensor of shape (3, height, width), with 1 channel for grey or 4 with opacity, or "
            f"(height, width), got {shape}; {advice}"
        )
    if tensor.device.type == "meta" or str(tensor.layout) != "torch.strided":
        came = "no values" if tensor.device.type == "meta" else f"the layout {tensor.layout}"
        raise ImageError(f"{prefix}expected a dense tensor with values, got {came}; make it one")
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":  # NumPy has none.
        tensor = tensor.float()
    try:
        array: NDArray[Any] = tensor.resolve_conj().resolve_neg().numpy()
    except TypeError as error:
        raise ImageError(
            f"{prefix}expected a tensor of uint8 (0 to 255), uint16 or float (0 to 1), got {tensor.dtype}; convert it "
            "with .float() and scale it to 0 to 1"
        ) from error
    return array if array.ndim == 2 else np.moveaxis(array, 0, 2)


def picture_of_array(array: NDArray[Any], name: str | None, options: ReadOptions) -> Picture:
    """An array of numbers as a picture; its values are copied: a camera's buffer is filled with the next frame.

    Args:
        array: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), of which the last has opacity; more channels where `bands`
            says which. uint8; uint16, which becomes 8 bits as a file's does; float16, 32 or 64 from 0 to 1; any other
            numbers by a `value_range`. Pixels of opacity 0 are absent, and those of a masked array whose colours are
            all masked, or all no number where a `value_range` was given.
        name: what errors call it.
        options: bands, value range and limits.

    Raises:
        ImageError: another shape or dtype, or values that are not from 0 to 1.
    """
    prefix = f"{name}: " if name else ""
    name = name or "the array"
    if array.ndim == 2:
        array = array[:, :, None]
    _check_shape(array, prefix, options)
    check_whole(array.shape[1], array.shape[0], name, options.limits)
    _check_type(array.dtype, prefix, options)
    values = np.asarray(array).astype(array.dtype.newbyteorder("="), copy=False)
    record: dict[str, Any] = {}
    layers = list(np.moveaxis(values, 2, 0))
    opacity = layers[3] if len(layers) == 4 else None
    if options.bands is not None:
        layers = chosen_bands(layers, name, options, record)
        opacity = None if 4 in record["bands"] else opacity
        numbers = [number - 1 for number in record["bands"]]
    else:
        layers = layers[:3]
        numbers = list(range(len(layers)))
    hidden: list[Mask] = []
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        mask = np.ma.getmaskarray(array)
        hidden = [mask[..., number] for number in numbers]
    shown = [layer[~mask] for layer, mask in zip(layers, hidden, strict=False)] or layers
    levels = _levels(values.dtype, shown, prefix, options)
    if levels is not BYTES and levels is not FRACTIONS:
        record["levels"] = [levels.low, levels.high]
        record["levels_by"] = levels.reason
    bytes_ = [levels.to_bytes(layer) for layer in layers]
    pixels: PixelArray = np.stack(bytes_ * (3 // len(bytes_)), axis=2)
    absent = np.zeros(pixels.shape[:2], np.bool_)
    if opacity is not None:
        as_bytes = _opacity(opacity, prefix, options)
        pixels = over_filling(pixels, as_bytes) if as_bytes.min() < 255 else pixels
        absent |= as_bytes == 0
    if hidden:
        # As by a nodata value: in all colours.
        absent |= np.logical_and.reduce(hidden)
    if values.dtype.kind == "f":
        absent |= np.logical_and.reduce([np.isnan(layer) for layer in layers])
    return _with_absent(pixels, absent, record)


def chosen_bands(
    layers: list[NDArray[Any]], name: str, options: ReadOptions, record: dict[str, Any]
) -> list[NDArray[Any]]:
    """The bands that were asked for, of a decoded image's; all of them if none were."""
    if options.bands is None:
        return layers
    chosen = []
    for band in options.bands:
        if isinstance(band, str) and not band.isdecimal():
            raise ImageError(
                f"{name}: expected a file that names its bands, got one without names for {band!r}; choose bands by "
                "number"
            )
        if not 1 <= int(band) <= len(layers):
            raise ImageError(
                f"{name}: expected a band {band}, got {len(layers)} bands; choose others"
            )
        chosen.append(layers[int(band) - 1])
    record["bands"] = [int(band) for band in options.bands]
    return chosen if len(chosen) == 3 else chosen * 3


def stretched(pixels: NDArray[Any], options: ReadOptions, record: dict[str, Any]) -> PixelArray:
    """Bytes stretched by the value range that was asked for."""
    assert options.value_range is not None
    levels = Levels(*options.value_range, "value_range")
    record["levels"] = [levels.low, levels.high]
    record["levels_by"] = levels.reason
    return levels.to_bytes(pixels)


def _check_shape(array: NDArray[Any], prefix: str, options: ReadOptions) -> None:
    shape = array.shape
    if array.ndim == 4:
        raise ImageError(_is_batch(prefix, shape, "(height, width, 3)"))
    if array.ndim != 3 or (options.bands is None and shape[2] not in CHANNELS):
        advice = "put the three colour channels last"
        if array.ndim == 3 and shape[0] in CHANNELS:
            advice = "put the channels last with .transpose(1, 2, 0)"
        elif array.ndim == 3:
            advice = "say by bands= which channels are red, green and blue"
        raise ImageError(
            f"{prefix}expected an image of shape (height, width, 3), with 1 channel for grey or 4 with opacity, or "
            f"(height, width), got {shape}; {advice}"
        )
    if array.size == 0:
        raise ImageError(f"{prefix}expected at least one pixel, got an image of shape {shape}")


def _check_type(dtype: np.dtype[Any], prefix: str, options: ReadOptions) -> None:
    if dtype.kind == "b":
        raise ImageError(
            f"{prefix}expected an image of numbers, got truth values as of a mask; multiply it by 255 and convert it "
            "with .astype(numpy.uint8) if it is what to segment"
        )
    if dtype.kind not in "uif" or dtype.itemsize > 8:
        raise ImageError(
            f"{prefix}expected an image of dtype uint8 (0 to 255), uint16 or float (0 to 1), got {dtype}; make numbers "
            "of one of these of it"
        )
    if dtype.kind != "f" and dtype.name not in ("uint8", "uint16") and options.value_range is None:
        raise ImageError(
            f"{prefix}expected an image of dtype uint8 (0 to 255), uint16 or float (0 to 1), got {dtype}; {_CONVERT}"
        )


def _levels(
    dtype: np.dtype[Any], layers: list[NDArray[Any]], prefix: str, options: ReadOptions
) -> Levels:
    """Which values are black and white; ImageError for fractions that are none."""
    if options.value_range is not None:
        return Levels(*options.value_range, "value_range")
    if dtype == np.uint8:
        return BYTES
    if dtype == np.uint16:
        return find_levels(dtype, lambda: layers)
    _check_fractions(layers, prefix, "image")
    return FRACTIONS


def _check_fractions(layers: list[NDArray[Any]], prefix: str, what: str) -> None:
    layers = [layer for layer in layers if layer.size]
    if not layers:
        return
    # NumPy's and not Python's, which pass over NaN.
    low = float(np.min([layer.min() for layer in layers]))
    high = float(np.max([layer.max() for layer in layers]))
    if np.isnan(low):
        raise ImageError(
            f"{prefix}expected an {what} of floats from 0 to 1, got NaN among them; replace it, or pass "
            "numpy.ma.masked_invalid(array) to leave these pixels unlabelled"
        )
    if low >= -SLACK and high <= 1 + SLACK:
        return
    advice = "scale it, or give value_range=(low, high) of what becomes black and white"
    if low >= 0 and high <= 255:
        advice = "divide it by 255, or give value_range=(0, 255)"
    elif low < 0:
        advice = "undo its normalisation, or give value_range=(low, high) of what becomes black and white"
    raise ImageError(
        f"{prefix}expected an {what} of floats from 0 to 1, got values from {low:g} to {high:g}; {advice}"
    )


def _opacity(values: NDArray[Any], prefix: str, options: ReadOptions) -> NDArray[np.uint8]:
    """Opacity from 0 to 255, of the fourth channel, whatever range the colours have.

    Fractions among fractions. Else its own range is that of bytes where no value is above 255 and some are above 1, in
    whatever type they come; or from 0 to 1, or to the largest 16 bits. ImageError for any other.
    """
    if values.dtype == np.uint8:
        return values
    is_fraction = values.dtype.kind == "f" and options.value_range is None
    if is_fraction or not np.isfinite(values).all():
        _check_fractions([values], prefix, "opacity, the fourth channel,")
    low, high = float(values.min()), float(values.max())
    tops = [top for top in (1.0, 255.0, 65_535.0) if high <= top * (1 + SLACK)]
    if low < -SLACK or not tops:
        raise ImageError(
            f"{prefix}expected an opacity, the fourth channel, from 0 to 1, 255 or 65,535, got values from {low:g} to "
            f"{high:g}; scale it, or leave the channel out"
        )
    return Levels(0.0, tops[0], "opacity").to_bytes(values)


def _with_absent(pixels: PixelArray, absent: Mask, record: dict[str, Any]) -> Picture:
    if not absent.any():
        return Picture(pixels, None, record=record)
    pixels[absent] = FILLING
    record["absent"] = share_absent(absent)
    return Picture(pixels, absent, record=record)


def _is_batch(prefix: str, shape: tuple[int, ...], wanted: str) -> str:
    return (
        f"{prefix}expected one image of shape {wanted}, got {shape}, as of a batch; pass images[0] for the first of "
        "them, or list(images) for all"
    )
