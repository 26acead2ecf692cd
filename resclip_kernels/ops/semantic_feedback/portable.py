"""Semantic feedback in lean torch: row blocks, one bit per pair, and paths followed only where they can break.

Let r be a patch's Chebyshev distance to the nearest differently labelled patch. No path can break within r − 1
patches of it, so most pairs need no look-up and a path that is followed skips ahead by the radius at each stop.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip_kernels.ops.semantic_feedback.state import (
    ROW_SUM_EPSILON,
    SemanticFeedback,
    gaussian_kernel,
    line_coordinate,
    path_table,
)
from resclip_kernels.options.semantic_feedback import Connectivity, FeedbackOptions

# Pairs held at a time: about ten temporaries of this many elements live at once.
PAIRS_PER_BLOCK = 1 << 21
# Smoothing multiplies segments of a row by a banded Toeplitz matrix of this many columns.
SEGMENT = 64


def semantic_feedback(labels: Tensor, options: FeedbackOptions) -> SemanticFeedback:
    """The formula of `resclip_kernels.semantic_feedback` without an n × n matrix."""
    batch, height, width = labels.shape
    patches = height * width
    far = None
    rule = options.connectivity
    if rule is not None and patches > 1 and batch > 0:
        far = torch.stack([far_pairs(image, rule) for image in labels])
    sums = torch.zeros(batch, patches, device=labels.device)
    state = SemanticFeedback(labels, options, far, sums, sums.new_ones(batch))
    if not options.normalise or batch == 0:
        return state
    largest = sums.new_zeros(batch)
    for first, last in row_blocks(patches, batch * patches):
        rows = smoothed_rows(state, first, last)
        sums[:, first:last] = rows.sum(dim=-1)
        peaks = rows.amax(dim=-1) / (sums[:, first:last] + ROW_SUM_EPSILON)
        largest = torch.maximum(largest, peaks.amax(dim=-1))
    return SemanticFeedback(labels, options, far, sums, largest)


def feedback_rows(feedback: SemanticFeedback, first: int, last: int) -> Tensor:
    """Rows first … last − 1 of Ŝ: (B, last − first, n) float32, already rounded to float16 where Ŝ is normalised."""
    if feedback.dense is not None:
        return feedback.dense[:, first:last]
    rows = smoothed_rows(feedback, first, last)
    if not feedback.options.normalise:
        return rows
    rows /= feedback.row_sums[:, first:last, None] + ROW_SUM_EPSILON
    rows /= feedback.maximum[:, None, None]
    return rows.half().float()


def feedback_matrix(feedback: SemanticFeedback) -> Tensor:
    """Ŝ of every image: (B, n, n) float32."""
    return feedback_rows(feedback, 0, feedback.patches)


def row_blocks(rows: int, elements_a_row: int) -> list[tuple[int, int]]:
    """Split rows into (first, last) blocks of about `PAIRS_PER_BLOCK` elements."""
    block = max(1, PAIRS_PER_BLOCK // max(1, elements_a_row))
    return [(first, min(first + block, rows)) for first in range(0, rows, block)]


def smoothed_rows(feedback: SemanticFeedback, first: int, last: int) -> Tensor:
    """Rows of the smoothed same-class matrix before any division: (B, last − first, n) float32."""
    flat = feedback.labels.flatten(1)
    rows = (flat[:, first:last, None] == flat[:, None, :]).float()
    if feedback.far is not None:
        height, width = feedback.grid
        image, row, column = unpack(feedback.far[:, first:last], feedback.patches).nonzero(
            as_tuple=True
        )
        distance = chebyshev(row + first, column, width)
        rows[image, row, column] = torch.exp(-distance.float() / (max(height, width) - 1))
    return smooth(rows, feedback.options.smoothing_std)


def smooth(rows: Tensor, smoothing_std: float) -> Tensor:
    """Zero-padded Gaussian convolution of (B, R, n) rows along n, as products with a banded Toeplitz matrix.

    A one-channel conv1d runs the same sum 4 to 10 times slower on a CPU.
    """
    patches = rows.shape[-1]
    if smoothing_std == 0:
        return rows
    kernel = gaussian_kernel(smoothing_std, patches).to(rows)
    margin = len(kernel) // 2
    reach = SEGMENT + 2 * margin
    offset = torch.arange(reach, device=rows.device)[:, None] - torch.arange(
        SEGMENT, device=rows.device
    )
    inside = (offset >= 0) & (offset < len(kernel))
    toeplitz = torch.where(inside, kernel[offset.clamp(0, len(kernel) - 1)], 0.0)
    spare = -patches % SEGMENT
    segments = F.pad(rows, (margin, margin + spare)).unfold(-1, reach, SEGMENT)
    return (segments @ toeplitz).flatten(-2)[..., :patches]


def far_pairs(labels: Tensor, connectivity: Connectivity) -> Tensor:
    """(h, w) labels → (n, ⌈n/8⌉) uint8: the pairs of one label that path decay weakens, one bit each."""
    height, width = labels.shape
    flat = labels.flatten()
    patches = flat.numel()
    steps = max(height, width) - 1
    position = torch.arange(patches, device=labels.device)
    y, x = position // width, position % width
    if connectivity == "component":
        component = connected_components(labels).flatten()
    else:
        radius = boundary_distance(labels).flatten()
    packed = []
    for first, last in row_blocks(patches, patches):
        rows = slice(first, last)
        far = flat[rows, None] == flat
        if connectivity == "component":
            packed.append(pack(far & (component[rows, None] != component)))
            continue
        distance = torch.maximum((y[rows, None] - y).abs(), (x[rows, None] - x).abs())
        if connectivity == "prefix":
            far &= (radius[rows, None] - 0.6) * steps < distance * (distance + 1)
            unconnected = prefix_breaks
        else:
            far &= radius[rows, None] + radius <= distance
            unconnected = line_breaks
        row, column = far.nonzero(as_tuple=True)
        far[row, column] = unconnected(labels, radius, row + first, column)
        packed.append(pack(far))
    return torch.cat(packed)


def prefix_breaks(labels: Tensor, radius: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Which pairs the released path test finds unconnected: samples k = 0 … d of M + 1, so the first d/M of the path.

    Sample k lies within k·d/M + 1/2 of the start (1/2 for its rounding) and samples k and k + s within s·d/M + 1 of
    each other, so with radius r the samples before (r − 1/2)·M/d, or before k + (r − 1)·M/d, need no look-up. The
    bounds below are a tenth smaller, which no rounding of the float32 coordinates reaches.
    """
    height, width = labels.shape
    steps = max(height, width) - 1
    flat = labels.flatten()
    tables = [
        path_table(size, steps, "prefix").to(labels.device).flatten() for size in (height, width)
    ]
    distance = chebyshev(row, column, width)
    samples_per_patch = steps / distance
    k = ((radius[row] - 0.6) * samples_per_patch).floor().long().clamp(min=1)
    broken = torch.zeros_like(row, dtype=torch.bool)
    pair = (k <= distance).nonzero().squeeze(1)
    row, column, distance, k = row[pair], column[pair], distance[pair], k[pair]
    samples_per_patch = samples_per_patch[pair]
    while pair.numel():
        y = tables[0][(k * height + row // width) * height + column // width]
        x = tables[1][(k * width + row % width) * width + column % width]
        point = y.long() * width + x
        differs = flat[point] != flat[row]
        broken[pair[differs]] = True
        k = k + ((radius[point] - 1.1) * samples_per_patch).floor().long().clamp(min=1)
        going = (~differs & (k <= distance)).nonzero().squeeze(1)
        pair, row, column = pair[going], row[going], column[going]
        distance, k, samples_per_patch = distance[going], k[going], samples_per_patch[going]
    return broken


def line_breaks(labels: Tensor, radius: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Which pairs have a differently labelled patch on the whole segment between them.

    Sample k of d lies exactly k patches from one end and d − k from the other, so only radius_i … d − radius_j of the
    samples can differ, and from a stop of radius r the next r − 1 cannot.
    """
    width = labels.shape[1]
    flat = labels.flatten()
    distance = chebyshev(row, column, width)
    k = radius[row]
    end = distance - radius[column]
    broken = torch.zeros_like(row, dtype=torch.bool)
    pair = (k <= end).nonzero().squeeze(1)
    row, column, distance, k, end = row[pair], column[pair], distance[pair], k[pair], end[pair]
    while pair.numel():
        y = line_coordinate(row // width, column // width, k, distance)
        x = line_coordinate(row % width, column % width, k, distance)
        point = y * width + x
        differs = flat[point] != flat[row]
        broken[pair[differs]] = True
        k = k + radius[point]
        going = (~differs & (k <= end)).nonzero().squeeze(1)
        pair, row, column = pair[going], row[going], column[going]
        distance, k, end = distance[going], k[going], end[going]
    return broken


def chebyshev(row: Tensor, column: Tensor, width: int) -> Tensor:
    """Chebyshev distance of flattened patch indices, elementwise."""
    vertical = (row // width - column // width).abs()
    return torch.maximum(vertical, (row % width - column % width).abs())


def boundary_distance(labels: Tensor) -> Tensor:
    """(h, w) labels → (h, w) int64: Chebyshev distance to the nearest other label, max(h, w) where there is none."""
    # Numbered from 0, labels of any value are exact in float32; some devices have no float64.
    numbers = labels.unique(return_inverse=True)[1]
    planes = torch.stack([numbers, -numbers]).unsqueeze(1).float()
    centre = planes.clone()
    distance = torch.ones_like(labels)
    uniform = torch.ones_like(labels, dtype=torch.bool)
    for _ in range(max(labels.shape) - 1):
        planes = F.max_pool2d(planes, 3, stride=1, padding=1)
        uniform = (planes == centre).all(dim=0).squeeze(0)
        if not uniform.any():
            break
        distance += uniform
    return distance


def connected_components(labels: Tensor) -> Tensor:
    """(h, w) labels → (h, w) int64: the smallest flattened index of each patch's 8-connected component.

    Every round takes the smallest number among the neighbours of equal label, then follows the numbers as pointers,
    so a winding region needs about log(length) rounds.
    """
    height, width = labels.shape
    patches = height * width
    number = torch.arange(patches, device=labels.device).view(height, width)
    shifts = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
    padded_labels = F.pad(labels, (1, 1, 1, 1), value=int(labels.min()) - 1)
    while True:
        padded = F.pad(number, (1, 1, 1, 1), value=patches)
        smallest = number
        for dy, dx in shifts:
            window = (slice(1 + dy, 1 + dy + height), slice(1 + dx, 1 + dx + width))
            candidate = torch.where(padded_labels[window] == labels, padded[window], patches)
            smallest = torch.minimum(smallest, candidate)
        # The patch whose index a component bears learns of smaller neighbours too, so whole chains shorten at once.
        pointer = torch.arange(patches, device=labels.device)
        pointer = pointer.scatter_reduce(0, number.flatten(), smallest.flatten(), "amin")
        pointer = torch.minimum(pointer, smallest.flatten())
        pointer = pointer[pointer][pointer]
        if torch.equal(pointer, number.flatten()):
            return number
        number = pointer.view(height, width)


def pack(bits: Tensor) -> Tensor:
    """(R, n) bool → (R, ⌈n/8⌉) uint8, bit j % 8 of byte j // 8."""
    spare = -bits.shape[1] % 8
    octets: Tensor = F.pad(bits, (0, spare)).unflatten(1, (-1, 8))
    weights = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8, device=bits.device)
    return (octets.to(torch.uint8) * weights).sum(dim=-1, dtype=torch.uint8)


def unpack(octets: Tensor, count: int) -> Tensor:
    """(…, ⌈count/8⌉) uint8 → (…, count) bool."""
    bits = torch.arange(8, dtype=torch.uint8, device=octets.device)
    return ((octets.unsqueeze(-1) >> bits) & 1).bool().flatten(-2)[..., :count]
