"""Patch labels by fused kernels: the best query of each pixel, then the majority of each patch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from resclip_kernels.launch import Options, launch
from resclip_kernels.online_softmax_triton import Result, best_query
from resclip_kernels.options.patch_labels import PatchLabelsOptions

# Every pixel is compared with every pixel, 4 instructions each: at 16 × 16 that is 8,192 for one warp. With 4 warps a
# patch, 196 patches give each of a GPU's 528 schedulers one or two of them, of 2,048.
MAJORITY = Options(num_warps=4)

# Fewer pixels than 4 warps have threads.
MAJORITY_SMALL = Options(num_warps=1)


class MajorityPlan(NamedTuple):
    """What is compiled into `majority_kernel`."""

    height: int
    width: int
    """Of a patch."""
    block: int
    """Its pixels, as a power of 2."""


@triton.jit(do_not_specialize=["stride_image", "stride_row", "rows", "columns"])
def majority_kernel(
    labels,
    result,
    stride_image,
    stride_row,
    stride_column,
    rows,
    columns,
    PLAN: tl.constexpr,
):
    """The most frequent label of one patch, the smallest one on a tie: every pixel counts those like itself."""
    BLOCK: tl.constexpr = PLAN.block
    column = tl.program_id(0) % columns
    row = tl.program_id(0) // columns % rows
    image = (tl.program_id(0) // columns // rows).to(tl.int64)
    corner = labels + image * stride_image
    corner += (row * PLAN.height).to(tl.int64) * stride_row
    corner += (column * PLAN.width).to(tl.int64) * stride_column
    offs_p = tl.arange(0, BLOCK)  # [BLOCK]
    inside = offs_p < PLAN.height * PLAN.width
    offset = offs_p // PLAN.width * stride_row + offs_p % PLAN.width * stride_column
    own = tl.load(corner + offset, mask=inside, other=0)
    count = tl.zeros([BLOCK], tl.int32)
    for y in range(PLAN.height):
        line = corner + y * stride_row
        for x in range(PLAN.width):
            count = tl.where(own == tl.load(line + x * stride_column), count + 1, count)
    count = tl.where(inside, count, 0)
    winners = inside & (count == tl.max(count, axis=0))
    label = tl.min(tl.where(winners, own.to(tl.int64), 0x7FFFFFFFFFFFFFFF), axis=0)
    tl.store(result + tl.program_id(0), label)


def patch_labels(
    logits: Tensor,
    image: Tensor,
    options: PatchLabelsOptions,
) -> Tensor:
    """The formula of `resclip_kernels.patch_labels`; computes in float32 whatever the logits' dtype."""
    size = (image.shape[2], image.shape[3])
    label = logits.new_empty((logits.shape[0], *size), dtype=torch.int32)
    best_query(
        logits,
        size,
        Result(options.logit_scale, options.threshold, label, None),
        guide=image,
        refine_iterations=options.refine_iterations,
        dilations=options.dilations,
    )
    return majority(label, options.patch_size)


def majority(labels: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """(B, H, W) integer pixel labels → (B, h, w) int64: the most frequent one of each patch, the smallest on a tie."""
    rows, columns = labels.shape[1] // patch_size[0], labels.shape[2] // patch_size[1]
    result = labels.new_empty((labels.shape[0], rows, columns), dtype=torch.int64)
    pixels = patch_size[0] * patch_size[1]
    stride_image, stride_row, stride_column = labels.stride()
    launch(
        majority_kernel,
        result.numel(),
        {
            "labels": labels,
            "result": result,
            "stride_image": stride_image,
            "stride_row": stride_row,
            "stride_column": stride_column,
            "rows": rows,
            "columns": columns,
        },
        {"PLAN": MajorityPlan(*patch_size, triton.next_power_of_2(pixels))},
        MAJORITY if pixels >= 128 else MAJORITY_SMALL,
        on=labels,
    )
    return result
