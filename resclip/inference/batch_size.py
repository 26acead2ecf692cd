"""What a batch of windows takes of memory while it is encoded, and how large a batch may therefore be.

Knows the encoder's stages and what each of them holds at its worst. Knows no image and no stream.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import nn

from resclip.encoder.dense_encoder import DenseEncoder
from resclip.inference.memory import format_bytes, free_memory, held_memory
from resclip.methods.catalogue import SFR
from resclip.models.proxy_models import ColourProxy, TimmProxy, whole_patches
from resclip_kernels import Implementation

SHARE = 0.7
"""Of what is free, the most that a batch may take; the rest is for images, results and holes between tensors."""

HOLES = 1.5
"""Resident pages of a CPU process a byte of its tensors: malloc keeps what was freed between them. Measured: up to 1.6
where nothing but the blocks ran (naclip, 8 windows of 224), whose estimate is a third too high."""

WORKSPACES = {"cpu": 8 << 20, "cuda": 64 << 20}
"""Bytes that the libraries of matrix products take for themselves at the first one: on a CPU 4 MB were measured for a
thread; cuBLAS takes 32 MiB on Hopper."""

FLOAT = 4
"""Bytes of a float32, in which labels are found whatever the tower computes in."""

PAIRS = 1 << 21
"""Pairs of patches that the portable ops hold at a time."""

ROWS = 40
"""Bytes a pair of the feedback's rows, with what they are smoothed and rounded by: 12 to 39 measured, on label maps of
one label, of two at random, and of dots."""


def weights_bytes(encoder: DenseEncoder) -> int:
    """Bytes of the encoder's parameters and buffers, its proxy's with them."""
    tensors = itertools.chain(encoder.parameters(), encoder.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def window_bytes(encoder: DenseEncoder, size: tuple[int, int], queries: int, count: int = 1) -> int:
    """The most bytes that `count` windows take together, from their pixels to their logits.

    An upper estimate: what is kept throughout and the largest of the stages. Some stages work on a few megabytes at a
    time however many windows there are, so that a batch takes less than its windows one by one. Not counted are what a
    proxy takes that `resclip.models.proxy_models` has not made, and the maps that implementation "reference" holds.

    Args:
        encoder: whose stages run.
        size: (height, width) of a window in pixels, padding included.
        queries: of the vocabulary.
        count: windows of the batch.
    """
    tower = encoder.tower
    height, width = size
    element = tower.dtype.itemsize
    pixels = count * height * width
    patches = math.prod(tower.grid(height, width))
    row = tower.width * element  # Bytes of a token.
    tokens = count * (patches + tower.has_cls) * row
    # Windows and the batch they are stacked into, and the batch in the weights' dtype.
    kept = pixels * 3 * (2 * FLOAT + element)
    # RCS keeps q and k of its blocks: views of one projection, with v in it, or rotated copies, which the kernel copies
    # once more to lie as v does. ViT-B/16 at 224: four blocks, 16 × 0.6 MB a window.
    kept += 4 * len(encoder.layers) * tokens
    stages = [
        # The block's input, its norm, q, k and v, and a second norm, before the MLP; this holds its hidden layer
        # twice, or three times with QuickGELU. Measured on ViT-B/16: 14 × 0.6 MB a window at 224.
        8 * tokens + 3 * tokens * widest_layer(tower) // tower.width,
    ]
    if isinstance(encoder.proxy, (ColourProxy, TimmProxy)):
        grid, proxy = proxy_bytes(encoder.proxy, size, count)
        stages.append(proxy)
        patches = math.prod(grid)
        tokens = max(tokens, count * patches * row)
    # Features, in float32 and as unit rows, and logits: the first pass's and the result's.
    kept += 2 * count * patches * queries * FLOAT
    features = 4 * count * patches * tower.output_dim * FLOAT
    # The final block's input, q, k and v, projections of its own and what they are drawn from.
    final = (4 + 2 * encoder.correlation.projections) * tokens
    if encoder.overview is not None:
        # Coarse keys, two of them for "qq+kk", and values, as kept and as picked for each window.
        side = encoder.overview.side or math.sqrt(height * width)
        coarse = int(side**2) // math.prod(tower.patch_size) + 1
        final += 6 * count * coarse * row + 3 * tokens
    kernels = uses_kernels(encoder)
    # Attended values of each branch, their sums and projections.
    attended = 8 * tokens + map_bytes(encoder, patches, count, kernels)
    stages.append(final + max(attended, features))
    if encoder.sfr is not None:
        # Beside what the final block reads, the first pass's features and A_c·v.
        first = final + tokens + features // 4
        stages.append(first + features)
        plane = pixels * FLOAT
        guided = encoder.sfr.refine_iterations > 0
        stages.append(first + label_bytes(plane, size, queries, guided, kernels))
        stages.append(first + feedback_bytes(encoder.sfr, patches, count, kernels))
    tensors = kept + max(stages)
    place = tower.device.type
    return WORKSPACES.get(place, 0) + int(tensors * (HOLES if place == "cpu" else 1))


def plan_batch_size(
    encoder: DenseEncoder,
    size: tuple[int, int],
    queries: int,
    *,
    device: torch.device | str,
    most: int,
    max_memory: int | None = None,
) -> int:
    """The largest batch of windows that takes at most `SHARE` of the memory there is.

    Args:
        encoder, size, queries: as in `window_bytes`; the encoder's weights are loaded.
        device: that it runs on.
        most: never more windows than that.
        max_memory: bytes that the process may hold in all, its weights included; None: what is free decides.

    Raises:
        ValueError: there is not enough for one window.
    """
    there = free_memory(device)
    if max_memory is not None:
        # Weights that are mapped from a file are resident when they have been read.
        held = max(held_memory(device), weights_bytes(encoder))
        there = min(there, max(0, max_memory - held))
    usable = int(SHARE * there)
    fitting = next(
        (n for n in range(most, 0, -1) if window_bytes(encoder, size, queries, n) <= usable), 0
    )
    if fitting:
        return fitting
    needed = math.ceil(window_bytes(encoder, size, queries) / SHARE)
    limit = "" if max_memory is None else f" of the {format_bytes(max_memory)} allowed"
    raise ValueError(
        f"one window of {size[0]} × {size[1]} pixels with {queries} queries needs about {format_bytes(needed)} of "
        f"memory, and {format_bytes(there)}{limit} are left: take a smaller --window or --short-side, --precision "
        "fp16 on a GPU, or fewer classes"
    )


def uses_kernels(encoder: DenseEncoder) -> bool:
    """Whether the ops run as Triton kernels."""
    if encoder.implementation is Implementation.AUTO:
        return encoder.tower.device.type == "cuda"
    return encoder.implementation is Implementation.TRITON


def widest_layer(module: nn.Module) -> int:
    """Output features of the widest linear layer: the hidden one of an MLP; two of them side by side in SwiGLU."""
    return max(
        (layer.out_features for layer in module.modules() if isinstance(layer, nn.Linear)),
        default=0,
    )


def proxy_bytes(
    proxy: ColourProxy | TimmProxy, size: tuple[int, int], count: int
) -> tuple[tuple[int, int], int]:
    """((H_v, W_v), bytes at its worst) of a proxy."""
    seen = whole_patches(*size, proxy.patch, proxy.input_size)
    grid = seen[0] // proxy.patch, seen[1] // proxy.patch
    pixels = count * math.prod(seen)
    # Colours taken back, resized, normalised, and two steps between.
    images = 5 * 3 * pixels * FLOAT
    if isinstance(proxy, ColourProxy):
        return grid, images
    element = proxy.dtype.itemsize
    if proxy.patch >= 32:
        # A pyramid's first stage: 58 numbers a pixel in ResNet-50, 94 in ConvNeXt-B.
        return grid, images + 96 * pixels * element
    # A transformer's block: 14 numbers a pixel in a ViT-Ti/16, where 7 widths of its MLP make 21; 75 and 84 in SAM's.
    return grid, images + 7 * count * math.prod(grid) * widest_layer(proxy) * element


def map_bytes(encoder: DenseEncoder, patches: int, count: int, kernels: bool) -> int:
    """Rows of the final block's map, or of what is added to its scores: the kernels form them in registers."""
    if kernels:
        return 0
    # Per pair of patches, in float32: the prior, its padded copy and its factors; or a proxy's scores and softmax.
    rows = 16 * min(patches**2, PAIRS)
    return rows if encoder.sfr is None else rows + ROWS * min(count * patches**2, PAIRS)


def label_bytes(
    plane: int, size: tuple[int, int], queries: int, guided: bool, kernels: bool
) -> int:
    """Patch labels from logits, where `plane` is one float32 a pixel of the batch.

    Both paths hold PAMR's 16 weights, a running maximum, a sum and a label a pixel, and then planes of the queries in
    groups: together with the sorted labels 20 planes.
    """
    if kernels:
        # Groups of 16 planes or 16 MiB, whichever is more: as they are, refined, and to refine into.
        return 20 * plane + 3 * min(queries * plane, max(16 * plane, 1 << 24))
    # Groups of 8 planes or 8 MiB: as they are, refined in pieces, and these joined.
    streamed = 20 * plane + 3 * min(queries * plane, max(8 * plane, 1 << 23))
    if not guided:
        return streamed
    height, width = size
    padded = (height + 32) * (width + 32) / (height * width)  # By 16 on each side.
    # A piece is one plane or 2 MiB: its border and sums of its neighbours.
    piece = min(queries * plane, max(plane, 1 << 21))
    # The weights are made from a list of 16, stacked, and their softmax, beside mean, variance and scale of three
    # channels. Measured: 61 planes at 224.
    return max(int((58 + 3 * padded) * plane), streamed + int((6 + padded) * piece))


def feedback_bytes(sfr: SFR, patches: int, count: int, kernels: bool) -> int:
    """Making the semantic feedback's state: bits of pairs, and what they are found by."""
    bits = 2 * count * patches**2 // 8
    if kernels:
        return bits
    # Per pair of an image, the indices and steps of paths that are followed. Measured: 25 on a map of one label, 142 on
    # one of scattered dots.
    followed = 144 if sfr.connectivity in ("prefix", "line") else 18
    return bits + max(
        followed * min(patches**2, PAIRS),
        ROWS * min(count * patches**2, PAIRS),
    )
