"""Heat maps of free texts, one a text at the picture's size as GEM and CLIP Surgery show them, and points for SAM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args, overload

import torch
from torch import Tensor

from resclip.encoder.dense_encoder import DenseEncoder, DenseFeatures, check_pixels, check_text
from resclip.encoder.feature_surgery import redundant_similarity
from resclip_kernels import (
    check_choice,
    check_count,
    check_flag,
    check_float,
    check_fraction,
    check_pair,
    check_type,
    resize_planes,
)

Order = Literal["pixels", "patches"]


@overload
def heat_maps(
    encoder: DenseEncoder,
    pixels: Tensor,
    text: Tensor,
    *,
    order: Order = ...,
    normalise: bool = ...,
    redundant: Tensor | None = ...,
    size: tuple[int, int] | None = ...,
) -> Tensor: ...
@overload
def heat_maps(
    encoder: DenseEncoder,
    pixels: Tensor,
    text: Sequence[Tensor],
    *,
    order: Order = ...,
    normalise: bool = ...,
    redundant: Tensor | None = ...,
    size: tuple[int, int] | None = ...,
) -> list[Tensor]: ...
@torch.no_grad()
def heat_maps(
    encoder: DenseEncoder,
    pixels: Tensor,
    text: Tensor | Sequence[Tensor],
    *,
    order: Order = "pixels",
    normalise: bool = True,
    redundant: Tensor | None = None,
    size: tuple[int, int] | None = None,
) -> Tensor | list[Tensor]:
    """Where each text is in each picture, in [0, 1] from the map's least to its largest value.

    The maps are the method's logits, resized bilinearly (`align_corners=False`) to the picture: cosines, or with base
    "clipsurgery" CLIP Surgery's, for which an image's texts are compared with each other. Each map of an image is
    stretched to [0, 1] by itself, so that it says where its text is likeliest, not whether it is there; a map that is
    the same everywhere is 0.

    Args:
        encoder: of any method; GEM (Bousselham et al., CVPR 2024) is base "gem", CLIP Surgery (Li et al., arXiv
            2304.05653) "clipsurgery".
        pixels: (B, 3, H, W), normalised, as `DenseEncoder` takes them.
        text: (Q, E) unit rows, for all images; or B of these with any Q each, an image's own, which may be rows of
            one matrix that was encoded once.
        order: maps are stretched after resizing, over "pixels" (GEM), or before, over "patches" (CLIP Surgery).
        normalise: False gives the resized logits themselves.
        redundant: (E,), the embedding of the empty text, which is taken from every text's; for texts that stand
            alone, as CLIP Surgery does with a single text (`resclip.encoder.feature_surgery.redundant_similarity`).
        size: (H', W') in pixels of the maps; None: the pixels' own.

    Returns:
        (B, Q, H', W') float32 or wider; with an image's own texts a list of B maps (Q, H', W').

    Raises:
        TypeError, ValueError: shapes that do not fit, an encoder whose features no text is compared with.
    """
    check_type("encoder", encoder, DenseEncoder, "a DenseEncoder")
    check_choice("order", order, get_args(Order))
    check_flag("normalise", normalise)
    if encoder.tower.text_obstacle is not None:
        raise ValueError(
            f"heat maps compare patches with text, and {encoder.tower.text_obstacle}: use another model"
        )
    check_pixels(pixels, encoder.tower)
    shape = (pixels.shape[2], pixels.shape[3])
    if size is not None:
        shape = check_pair("size", size, "(H', W') in pixels", 1)
    texts = check_texts(text, len(pixels), encoder.tower.output_dim)

    def maps_of(features: DenseFeatures, own: Tensor) -> Tensor:
        if redundant is None:
            maps = encoder.final.logits(features.patches, features.cls, own)
        else:
            maps = redundant_similarity(features.patches, own, redundant)
        if normalise and order == "patches":
            maps = stretched(maps)
        maps = resize_planes(maps, shape)
        return stretched(maps) if normalise and order == "pixels" else maps

    if isinstance(text, Tensor):
        return maps_of(encoder(pixels, text), text)
    if encoder.sfr is None:
        singles = images_of(encoder(pixels))
    else:
        # SFR segments by an image's own texts before there are tokens.
        singles = [encoder(pixels[one : one + 1], own) for one, own in enumerate(texts)]
    return [maps_of(features, own)[0] for features, own in zip(singles, texts, strict=True)]


def images_of(features: DenseFeatures) -> list[DenseFeatures]:
    """A batch's features, image by image."""
    patches = features.patches.split(1)
    cls = [None] * len(patches) if features.cls is None else features.cls.split(1)
    return [DenseFeatures(one, of_image, None) for one, of_image in zip(patches, cls, strict=True)]


def check_texts(text: Tensor | Sequence[Tensor], images: int, width: int) -> list[Tensor]:
    """The texts of each image, or one that goes for all; TypeError or ValueError for anything else."""
    if isinstance(text, Tensor):
        check_text(text, width)
        return [text]
    check_type("text", text, (list, tuple), "a tensor (Q, E), or one tensor (Q, E) for each image")
    if len(text) != images:
        raise ValueError(
            f"expected the texts of each of {images} images; got {len(text)}: pass one tensor (Q, E) an image, or one "
            "tensor for all"
        )
    for own in text:
        check_type("text of an image", own, Tensor, "a tensor (Q, E)")
        check_text(own, width)
    return list(text)


def stretched(maps: Tensor) -> Tensor:
    """Each plane of (…, h, w) from its least to its largest value in [0, 1]; 0 where these are the same."""
    least = maps.amin(dim=(-2, -1), keepdim=True)
    span = maps.amax(dim=(-2, -1), keepdim=True) - least
    return torch.where(span == 0, 0, (maps - least) / span)


class Points(NamedTuple):
    """Points of a picture, as SAM takes them."""

    coordinates: Tensor
    """(k, 2) int64: x and y in pixels."""
    labels: Tensor
    """(k,) int64: 1 for points on the object, 0 for points off it."""


def points(
    maps: Tensor, size: tuple[int, int], *, threshold: float = 0.8, downsample: int = 2
) -> Points:
    """Prompts for SAM: where a text is likeliest, and where it is least likely (CLIP Surgery, arXiv 2304.05653).

    The map is resized bilinearly to (h // 2, w // 2) cells and stretched to [0, 1]. Cells that reach the threshold,
    but at most half of all, are positive points, and as many cells from the bottom are negative ones. A cell's point
    is its centre.

    Args:
        maps: (h, w), the logits of one text patch by patch, such as a method's or `redundant_similarity`'s; or
            (T, h, w) of T texts that name one object: each gives positive points, their mean map the negative ones.
        size: (H, W) in pixels of the picture.
        threshold: in [0, 1].
        downsample: how many patches a cell is high and wide.

    Returns:
        Positive points, text by text, then negative ones; each by rising likelihood.

    Raises:
        TypeError, ValueError: shapes or options that do not fit.
    """
    several = isinstance(maps, Tensor) and maps.ndim == 3
    check_float("maps", maps, 3 if several else 2, "(T, h, w)" if several else "(h, w)")
    if 0 in maps.shape:
        raise ValueError(f"maps must hold a text and a patch, at least; got {tuple(maps.shape)}")
    height, width = check_pair("size", size, "(H, W) in pixels", 1)
    check_fraction("threshold", threshold)
    check_count("downsample", downsample, 1)
    if not several:
        top, bottom = ranked_cells(maps, threshold, downsample)
        positive = [top]
    else:
        each = stretched(maps)
        positive = [ranked_cells(one, threshold, downsample)[0] for one in each]
        _, bottom = ranked_cells(each.mean(dim=0), threshold, downsample)
    cells = torch.cat([*positive, bottom])
    rows, columns = (max(1, side // downsample) for side in maps.shape[-2:])
    x = centres(cells % columns, columns, width)
    y = centres(cells // columns, rows, height)
    labels = torch.ones_like(cells)
    labels[len(cells) - len(bottom) :] = 0
    return Points(torch.stack([x, y], dim=1), labels)


def ranked_cells(plane: Tensor, threshold: float, downsample: int) -> tuple[Tensor, Tensor]:
    """Numbers of the cells of (h, w) that are positive points, and of those that are negative ones."""
    rows, columns = (max(1, side // downsample) for side in plane.shape)
    wide = plane.to(torch.promote_types(plane.dtype, torch.float32))
    flat = stretched(resize_planes(wide[None, None], (rows, columns))[0, 0]).flatten()
    order = flat.argsort(stable=True)
    count = min(int((flat >= threshold).sum()), len(flat) // 2)
    return order[len(flat) - count :], order[:count]


def centres(cells: Tensor, count: int, length: int) -> Tensor:
    """The pixel of `length` at the centre of each of these of `count` cells."""
    exact = (cells.double() + 0.5) * (length / count)
    return exact.clamp(max=length - 1).long()
