"""What is added to the scores between patches, formed once an image for all heads: prior, window and τ_s·λ_s·Ŝ.

Each program of the attention would else form the same tiles again, for every head. A block of rows at a time is held,
so that memory stays bounded whatever the grid.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from resclip_kernels.launch import Options, Target, launch
from resclip_kernels.ops.semantic_feedback.state import SemanticFeedback
from resclip_kernels.ops.semantic_feedback.triton import (
    feedback_arguments,
    grid_arguments,
    tile_blocks,
)
from resclip_kernels.ops.semantic_feedback.triton_tiles import (
    FeedbackArguments,
    FeedbackTiles,
    feedback_rows,
    first_entries,
    patch_positions,
    smoothed_tile,
    smoothing_taps,
    weighted_tile,
)
from resclip_kernels.options.residual_attention import AttentionOptions

STORED_BYTES = 160 << 20
"""Most memory that terms take at a time: those of one image of 9,000 patches in float16."""
# A block's rows and columns are multiples of this, the last rows aside, and all programs' tiles divide it.
PADDING = 128
# Programs a multiprocessor that keep it busy, and the fewest columns of one: smoothing reads some 16 on either side.
PROGRAMS_WANTED = 4
LEAST_STRIP = 128
# The largest sum of terms (in base 2) that is rounded to float16, by at most 2^-10.
LARGEST_HALF = 4.0
# Where [CLS] stands among the patches: so far away that no prior reaches it.
NOWHERE = tl.constexpr(1e18)


class TermsPlan(NamedTuple):
    """Which terms there are."""

    has_feedback: bool
    has_prior: bool
    has_window: bool
    cls_tokens: int


class TermsWeights(NamedTuple):
    """Their factors; the terms of scores in base 2."""

    feedback: float
    """λ_s."""
    feedback_scale: float
    """τ_s · log2 e."""
    prior_rate: float
    prior_shift: float
    """log2 e · ω = 2^(rate · distance² + shift)."""
    window_reach: float


class Stored(NamedTuple):
    """Terms of some rows of some images, as kernels take them."""

    data: Any
    """(B or 1, rows, columns) float16 or float32: 0 in [CLS]'s row, −∞ past the last patch."""
    image: int
    """Elements from one image to the next; 0 where all share them."""
    columns: int


class Block(NamedTuple):
    """Rows of the attention that are computed together, and what is added to their scores."""

    images: slice
    first_row: int
    rows: int
    stored: Stored | None
    """None where nothing is."""


@triton.jit
def additive_terms_kernel(
    stored,
    feedback,
    patch_grid,
    first_image,
    first_row,
    rows,
    tokens,
    strip,
    weights,
    PLAN: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """BLOCK_M rows and `strip` columns of one image: one program."""
    strips = tl.cdiv(stored.columns, strip)
    blocks = tl.cdiv(rows, BLOCK_M)
    block = tl.program_id(0) // strips
    image = (block // blocks).to(tl.int64)
    row = block % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    start = tl.program_id(0) % strips * strip
    token = first_row + row
    patch = tl.maximum(token - PLAN.cls_tokens, 0)
    patches = tokens - PLAN.cls_tokens
    row_y, row_x = patch_positions(patch, patch_grid)
    row_reach = tl.zeros(row.shape, tl.float32) + weights.window_reach
    if PLAN.cls_tokens > 0:
        # [CLS] has no prior, and sees everything.
        row_y = tl.where(token > 0, row_y, NOWHERE)
        row_reach = tl.where(token > 0, row_reach, float("inf"))
    labelled = row
    taps = ()
    carried = ()
    if PLAN.has_feedback:
        inside = (token >= PLAN.cls_tokens) & (token < tokens)
        labelled = feedback_rows(
            feedback, first_image + image, patch, inside, row_y, row_x, patches, TILES
        )
        taps = smoothing_taps(feedback, TILES, BLOCK_N)
        carried = first_entries(feedback, patch_grid, labelled, start, patches, TILES)
    row_ptrs = stored.data + image * stored.image + row.to(tl.int64) * stored.columns
    for first in tl.range(start, tl.minimum(start + strip, stored.columns), BLOCK_N):
        column = first + tl.arange(0, BLOCK_N)
        terms = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        y, x = patch_positions(column, patch_grid)
        down = row_y[:, None] - y[None, :]
        across = row_x[:, None] - x[None, :]
        if PLAN.has_prior:
            squared = down * down + across * across
            terms = tl.exp2(weights.prior_rate * squared + weights.prior_shift)
        if PLAN.has_feedback:
            smooth, carried = smoothed_tile(
                carried, feedback, patch_grid, labelled, taps, first, patches, TILES, BLOCK_N
            )
            bonus = weighted_tile(smooth, labelled, weights.feedback, TILES)
            terms = tl.fma(bonus, weights.feedback_scale, terms)
        seen = (column < patches)[None, :]
        if PLAN.has_window:
            distance = tl.maximum(tl.abs(down), tl.abs(across))
            seen = seen & (distance <= row_reach[:, None])
        terms = tl.where(seen, terms, -float("inf")).to(stored.data.dtype.element_ty)
        mask = (row < rows)[:, None] & (column < stored.columns)[None, :]
        tl.store(row_ptrs[:, None] + column[None, :], terms, mask=mask)


def blocks_of_rows(
    options: AttentionOptions, feedback: SemanticFeedback | None, value: Tensor, target: Target
) -> Iterator[Block]:
    """All rows of all images, block by block with their terms; one block where there are none.

    Float16 holds the terms of attention in half precision, as an attention mask in PyTorch does, and float32 those of
    float32, or of any weights that make them large.
    """
    batch, _, tokens, _ = value.shape
    plan = TermsPlan(
        has_feedback=feedback is not None,
        has_prior=options.neighbourhood_std is not None,
        has_window=options.window is not None,
        cls_tokens=options.cls_tokens(tokens),
    )
    if not (plan.has_feedback or plan.has_prior or plan.has_window):
        yield Block(slice(0, batch), 0, tokens, None)
        return
    log2_e = math.log2(math.e)
    weight, temperature = options.mixing if plan.has_feedback else (0.0, 1.0)
    weights = TermsWeights(
        feedback=weight,
        feedback_scale=temperature * log2_e,
        prior_rate=-log2_e / (2 * options.prior_std**2) if plan.has_prior else 0.0,
        prior_shift=math.log2(log2_e),
        window_reach=0.0 if options.window is None else float(options.reach),
    )
    is_large = (weight * temperature + plan.has_prior) * log2_e > LARGEST_HALF
    dtype = torch.float32 if value.dtype == torch.float32 or is_large else torch.float16
    columns = max(1, triton.cdiv(tokens - plan.cls_tokens, PADDING)) * PADDING
    row_bytes = columns * dtype.itemsize
    # Blocks as even as they can be: a last one of few rows would leave most of the device idle.
    blocks = triton.cdiv(tokens, max(PADDING, STORED_BYTES // row_bytes // PADDING * PADDING))
    rows = triton.cdiv(triton.cdiv(tokens, blocks), PADDING) * PADDING
    # Without feedback the images share their terms.
    step = max(1, STORED_BYTES // (row_bytes * tokens)) if plan.has_feedback else max(1, batch)
    arguments: FeedbackArguments | None = None
    tiles: FeedbackTiles | None = None
    if feedback is not None:
        arguments, tiles = feedback_arguments(feedback, value.dtype, target)
    programs = tile_blocks(value.dtype, target)
    # One block after the other in the same memory: the device runs what reads it before it is written again.
    different = min(step, batch) if plan.has_feedback else 1
    held = value.new_empty(different * min(rows, tokens) * columns, dtype=dtype)
    for first_image, first_row in itertools.product(range(0, batch, step), range(0, tokens, rows)):
        images = slice(first_image, min(batch, first_image + step))
        count = min(rows, tokens - first_row)
        different = images.stop - first_image if plan.has_feedback else 1
        data = held[: different * count * columns].view(different, count, columns)
        stored = Stored(data, count * columns if plan.has_feedback else 0, columns)
        row_blocks = different * triton.cdiv(count, programs.rows)
        strip = strip_of(columns, row_blocks, target)
        launch(
            additive_terms_kernel,
            row_blocks * triton.cdiv(columns, strip),
            {
                "stored": stored,
                "feedback": arguments,
                "patch_grid": grid_arguments(options.grid),
                "first_image": first_image,
                "first_row": first_row,
                "rows": count,
                "tokens": tokens,
                "strip": strip,
                "weights": weights,
            },
            {
                "PLAN": plan,
                "TILES": tiles,
                "BLOCK_M": programs.rows,
                "BLOCK_N": programs.columns,
            },
            Options(num_warps=4, num_stages=2),
            on=value,
        )
        yield Block(images, first_row, count, stored)


def strip_of(columns: int, blocks: int, target: Target) -> int:
    """Columns of a program: as many programs as the device wants, none so narrow that its edges outweigh it."""
    wanted = max(1, PROGRAMS_WANTED * target.programs_at_once // max(1, blocks))
    return max(LEAST_STRIP, -(-columns // (wanted * PADDING)) * PADDING)
