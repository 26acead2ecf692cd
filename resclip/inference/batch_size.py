"""The largest batch of windows that fits into memory, by an upper estimate of what encoding takes."""

from __future__ import annotations

import bisect
import itertools
import math

from torch import nn

from resclip.encoder.dense_encoder import DenseEncoder
from resclip.encoder.trace import MAP_BYTES
from resclip.inference.memory import format_bytes, free_memory, held_memory
from resclip.methods.catalogue import SFR
from resclip.models.proxy_models import ColourProxy, TimmProxy, whole_patches
from resclip_kernels import Implementation

MOST_WINDOWS = 1 << 16
"""The largest batch, whatever is asked for: far fewer keep any device busy."""

SHARE = 0.7
"""Share of the free memory that a batch may take; the rest is for images, results and gaps between tensors."""

FRAGMENTATION = 1.5
"""Resident bytes of a CPU process per byte of its tensors: malloc keeps what was freed between them. Measured: up to
1.6 where only the blocks ran (naclip, 8 windows of 224), whose estimate is a third too high."""

WORKSPACES = {"cpu": 24 << 20, "cuda": 64 << 20}
"""Bytes that libraries take for themselves at first, whatever the batch: on a CPU 4 MB per thread for matrix products
were measured, and up to 19 MB of malloc's arenas, more or less from run to run; cuBLAS takes 32 MiB on Hopper."""

FLOAT = 4
"""Bytes of a float32 value; labels are computed in float32 whatever the tower's dtype."""

PAIRS = 1 << 21
"""Largest number of pairs of patches that the portable ops hold at a time."""

PAIR_BYTES = 40
"""Bytes that the portable ops hold per pair of patches while they smooth and round rows of the feedback: 12 to 39 were
measured, on label maps of one label, of two at random, and of dots."""


def weights_bytes(encoder: DenseEncoder) -> int:
    """Bytes of the parameters and buffers of the encoder and its proxy, and of a correlation's own projections."""
    matrices = encoder.final.random_projections, encoder.final.learned_projection
    own = (matrix for matrix in matrices if matrix is not None)
    tensors = itertools.chain(encoder.parameters(), encoder.buffers(), own)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def window_bytes(encoder: DenseEncoder, size: tuple[int, int], queries: int, count: int = 1) -> int:
    """An upper estimate of the bytes that a batch of windows takes, from its pixels to its logits.

    It is the sum of what is kept throughout and of the largest stage. Some stages work on a few megabytes at a time
    however many windows there are, so a batch takes less than its windows one by one. It leaves out proxies that are
    not from `resclip.models.proxy_models`, and the maps of implementation "reference".

    Args:
        encoder: the dense encoder.
        size: (height, width) of a window in pixels, padding included.
        queries: number of the vocabulary's queries.
        count: number of windows in the batch.
    """
    tower = encoder.tower
    height, width = size
    element = tower.dtype.itemsize
    pixels = count * height * width
    patches = math.prod(tower.grid(height, width))
    row = tower.width * element  # Bytes of a token.
    tokens = count * (patches + tower.has_cls) * row
    # The windows, the batch that they are stacked into, and the batch in the weights' dtype.
    kept = pixels * 3 * (2 * FLOAT + element)
    # RCS keeps q and k of its blocks: views of one projection that holds v too, or rotated copies, which the kernel
    # copies once more into v's layout. ViT-B/16 at 224: four blocks, 16 × 0.6 MB per window.
    kept += 4 * len(encoder.layers) * tokens
    kept += encoder.final.kept_tokens * tokens
    stages = [
        # A block's input, its norm, q, k and v, and the second norm before the MLP, which holds its hidden layer twice,
        # or three times with QuickGELU. Measured on ViT-B/16: 14 × 0.6 MB per window at 224.
        8 * tokens + 3 * tokens * widest_layer(tower) // tower.width,
    ]
    if isinstance(encoder.proxy, (ColourProxy, TimmProxy)):
        grid, proxy = proxy_bytes(encoder.proxy, size, count)
        stages.append(proxy)
        patches = math.prod(grid)
        tokens = max(tokens, count * patches * row)
    # Logits of the first pass and of the result; features in float32 and as unit rows.
    kept += 2 * count * patches * queries * FLOAT
    features = 4 * count * patches * tower.output_dim * FLOAT
    # The final block's input, q, k and v, and the correlation's own projections with their inputs.
    final = (4 + 2 * encoder.correlation.projections) * tokens
    if encoder.final.needs_trace:
        # Each stream's tokens, q, k, v and attended values; what is averaged, compared and filled.
        final += (8 * encoder.final.streams + 8) * tokens
        # Maps that are read a few rows at a time, a softmax of them, and distances between patches.
        final += 6 * min(MAP_BYTES, FLOAT * count * tower.heads * patches**2)
    if encoder.overview is not None:
        # The coarse pass's keys (two for "qq+kk") and values, once per image and once per window.
        side = encoder.overview.side or math.sqrt(height * width)
        coarse = int(side**2) // math.prod(tower.patch_size) + 1
        final += 6 * count * coarse * row + 3 * tokens
    kernels = uses_kernels(encoder)
    # The attended values of each branch, their sums and projections.
    attended = 8 * tokens + map_bytes(encoder, patches, count, kernels)
    stages.append(final + max(attended, features))
    if encoder.sfr is not None:
        # Beside the final block's inputs, the first pass's features and A_c·v.
        first = final + tokens + features // 4
        stages.append(first + features)
        plane = pixels * FLOAT
        guided = encoder.sfr.refine_iterations > 0
        stages.append(first + label_bytes(plane, size, queries, patches, guided, kernels))
        stages.append(first + feedback_bytes(encoder.sfr, patches, count, kernels))
    tensors = kept + max(stages)
    device = tower.device.type
    return WORKSPACES.get(device, 0) + int(tensors * (FRAGMENTATION if device == "cpu" else 1))


def plan_batch_size(
    encoder: DenseEncoder,
    size: tuple[int, int],
    queries: int,
    *,
    batch_size: int,
    max_memory: int | None = None,
) -> int:
    """The largest batch of windows that takes at most `SHARE` of the free memory.

    Args:
        encoder, size, queries: as in `window_bytes`; the encoder's weights are loaded.
        batch_size: the result's upper limit.
        max_memory: bytes that the process may hold in all, weights included; None: what is free decides.

    Raises:
        ValueError: there is not enough memory for one window.
    """
    device = encoder.tower.device
    free = free_memory(device)
    if max_memory is not None:
        # Weights that are mapped from a file only count as held once they have been read.
        held = max(held_memory(device), weights_bytes(encoder))
        free = min(free, max(0, max_memory - held))
    counts = range(1, min(batch_size, MOST_WINDOWS) + 1)
    fitting = bisect.bisect_right(
        counts,
        int(SHARE * free),
        key=lambda count: window_bytes(encoder, size, queries, count),
    )
    if fitting:
        return fitting
    needed = math.ceil(window_bytes(encoder, size, queries) / SHARE)
    allowed = "" if max_memory is None else f" of the {format_bytes(max_memory)} allowed"
    raise ValueError(
        f"one window of {size[0]} × {size[1]} pixels with {queries} queries needs about {format_bytes(needed)} of "
        f"memory, and {format_bytes(free)}{allowed} are left: take a smaller window= or short_side=, "
        'precision="fp16" on a GPU, or fewer classes'
    )


def uses_kernels(encoder: DenseEncoder) -> bool:
    """Whether the ops run as Triton kernels."""
    if encoder.implementation is Implementation.AUTO:
        return encoder.tower.device.type == "cuda"
    return encoder.implementation is Implementation.TRITON


def widest_layer(module: nn.Module) -> int:
    """Output width of the widest linear layer: an MLP's hidden one, which SwiGLU has twice side by side."""
    return max(
        (layer.out_features for layer in module.modules() if isinstance(layer, nn.Linear)),
        default=0,
    )


def proxy_bytes(
    proxy: ColourProxy | TimmProxy, size: tuple[int, int], count: int
) -> tuple[tuple[int, int], int]:
    """((H_v, W_v), bytes of its largest stage) of a proxy."""
    resized = whole_patches(*size, proxy.patch, proxy.input_size)
    grid = resized[0] // proxy.patch, resized[1] // proxy.patch
    pixels = count * math.prod(resized)
    # The image without CLIP's normalisation, resized, normalised anew, and two steps between.
    images = 5 * 3 * pixels * FLOAT
    if isinstance(proxy, ColourProxy):
        return grid, images
    element = proxy.dtype.itemsize
    if proxy.patch >= 32:
        # A pyramid's first stage: 58 values per pixel in ResNet-50, 94 in ConvNeXt-B.
        return grid, images + 96 * pixels * element
    # A transformer's block: 14 values per pixel in a ViT-Ti/16, where 7 widths of its MLP make 21; 75 and 84 in SAM's.
    return grid, images + 7 * count * math.prod(grid) * widest_layer(proxy) * element


def map_bytes(encoder: DenseEncoder, patches: int, count: int, kernels: bool) -> int:
    """Rows of the final block's attention map or of what is added to its scores; the kernels need none."""
    if kernels:
        return 0
    # Per pair of patches, in float32: the prior, its padded copy and its factors; or a proxy's scores and softmax.
    rows = 16 * min(patches**2, PAIRS)
    return rows if encoder.sfr is None else rows + PAIR_BYTES * min(count * patches**2, PAIRS)


def label_bytes(
    plane: int, size: tuple[int, int], queries: int, patches: int, guided: bool, kernels: bool
) -> int:
    """Patch labels from logits, where `plane` is one float32 per pixel of the batch.

    Both paths hold a running maximum, a sum and a label per pixel, 20 planes with PAMR's 16 weights or with the sorted
    labels, and then planes of the queries in groups: the kernels of the batch, the portable code of an image.
    """
    if kernels:
        # Groups of 16 planes or 16 MiB, whichever is more: before refinement, after it, and a buffer.
        return 20 * plane + 3 * min(queries * plane, max(16 * plane, 1 << 24))
    # Values of a megabyte, their exponentials, and where their neighbours stand.
    streamed = 20 * plane + (1 << 23)
    if not guided:
        return streamed
    image = FLOAT * size[0] * size[1]
    # Its weights; and twice, before a step and after it, 8 planes, or up to 32 if they take no more than 32 MiB.
    group = max(8 * image, min(32 * image, 1 << 25))
    refined = 16 * image + 2 * min(queries * image, group)
    if patches < queries:
        # One plane a patch in place of one a query, where these take no more than 64 MiB.
        refined += min(patches * image, 1 << 26)
    return streamed + refined


def feedback_bytes(sfr: SFR, patches: int, count: int, kernels: bool) -> int:
    """Making the semantic feedback's state: one bit per pair of patches, and the search for them."""
    bits = 2 * count * patches**2 // 8
    if kernels:
        return bits
    # Bytes per pair of patches for the indices and steps of paths. Measured: 25 on a map of one label, 142 on one of
    # scattered dots.
    path_bytes = 144 if sfr.connectivity in ("prefix", "line") else 18
    return bits + max(
        path_bytes * min(patches**2, PAIRS),
        PAIR_BYTES * min(count * patches**2, PAIRS),
    )
