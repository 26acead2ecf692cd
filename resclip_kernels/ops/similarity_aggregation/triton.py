"""The aggregation over similar tokens on a GPU: a chunk of the similarities' rows at a time.

It is the proxy attention with other weights: tokens lie in rows as there, `aggregation_weights_kernel` writes what is
left of a tile of U Uᵀ in the values' dtype, and the proxy attention's second product multiplies these by the values. A
single kernel would form every tile of similarities anew for each block of columns of the values: they are as many as
the channels, and its sums would not fit in registers.

Every sum is formed in an order that neither the batch nor the chunks change.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from resclip_kernels.launch import launch, target_of
from resclip_kernels.ops.proxy_attention.triton import (
    CHUNK_ROWS,
    Plan,
    chunk_rows,
    grouped_tile,
    multiply,
    score_blocks,
    similarity_tile,
)
from resclip_kernels.ops.proxy_attention.triton_layout import lay_out_positions, resize_values
from resclip_kernels.options.similarity_aggregation import SimilarityAggregationOptions

# Added to a row's sum.
EPSILON = 1e-6


def similarity_aggregation(
    features: Tensor, value: Tensor, options: SimilarityAggregationOptions
) -> Tensor:
    """The formula of `resclip_kernels.similarity_aggregation`.

    Beside the arguments it takes O(B·n·(C + D)) of memory, and the proxy attention's `CHUNK_BYTES` for weights.
    """
    batch, count, _ = features.shape
    target = target_of(features)
    blocks = score_blocks(features.dtype, target, feedback=False)
    # A line of n positions.
    positions = lay_out_positions(features.mT.unsqueeze(2), max(CHUNK_ROWS, blocks.columns))
    values = resize_values(value.unsqueeze(1), (1, count), (1, count))
    output = value.new_empty(value.shape)
    padded = positions.inverse_length.shape[1]
    rows, column_blocks = batch * padded, padded // blocks.columns
    # One after the other, they share their buffers.
    chunk = chunk_rows(rows, padded * output.element_size())
    weights = output.new_empty((min(chunk, rows), padded))
    sums = positions.inverse_length.new_empty((column_blocks, len(weights)))
    for first in range(0, rows, chunk):
        held = min(chunk, rows - first)
        launch(
            aggregation_weights_kernel,
            held // blocks.rows * column_blocks,
            {
                "data": positions,
                "weights": weights,
                "sums": sums,
                "threshold": options.threshold,
                "padded_positions": padded,
                "first_row": first,
                "held_rows": held,
                "sums_tile": len(weights),
            },
            {
                "PLAN": Plan(
                    positions.rows.shape[2],
                    has_feedback=False,
                    has_cut=True,
                    precision=target.dot_precision,
                ),
                "BLOCK_M": blocks.rows,
                "BLOCK_N": blocks.columns,
                "BLOCK_C": blocks.depth,
            },
            blocks.options,
            on=output,
        )
        divisors, epsilon = (sums, EPSILON) if options.normalise else (None, None)
        multiply(weights[:held], values, output, count, padded, first, divisors, epsilon)
    return output


@triton.jit
def aggregation_weights_kernel(
    data,
    weights,
    sums,
    threshold,
    padded_positions,
    first_row,
    held_rows,
    sums_tile,
    PLAN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One tile of U Uᵀ, entries below the threshold as 0, and its rows' sums."""
    # Past the last token too: the second product reads whatever stands there.
    column_blocks = padded_positions // BLOCK_N
    block, column_block = grouped_tile(tl.program_id(0), held_rows // BLOCK_M, column_blocks)
    held_row = block * BLOCK_M
    first = column_block * BLOCK_N
    image = ((first_row + held_row) // padded_positions).to(tl.int64)
    start = (first_row + held_row) % padded_positions
    row = tl.arange(0, BLOCK_M)
    key = tl.arange(0, BLOCK_N)
    score, _, _, key_inverse = similarity_tile(
        data, image, start, first, padded_positions, threshold, PLAN, BLOCK_M, BLOCK_N, BLOCK_C
    )
    score = tl.where((key_inverse < 0.0)[None, :], 0.0, score)
    weight = score.to(weights.dtype.element_ty)  # [BLOCK_M, BLOCK_N]
    target = weights + tl.cast(held_row, tl.int64) * padded_positions + first
    tl.store(target + row[:, None] * padded_positions + key[None, :], weight)
    # Of the weights as they were rounded: what they are divided by is what they add up to.
    tl.store(
        sums + tl.cast(column_block, tl.int64) * sums_tile + held_row + row,
        tl.sum(weight.to(tl.float32), 1),
    )
