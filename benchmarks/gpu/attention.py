"""Cases of `residual_attention` and `semantic_feedback` by number of tokens, beside what PyTorch offers instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from benchmarks.gpu.case import Bench, Case, missing, tried
from benchmarks.gpu.counts import Attention, Feedback
from benchmarks.gpu.inputs import FUSED, AttentionTensors, feedback_state, with_matrix
from benchmarks.gpu.timing import Variant
from resclip_kernels import (
    AttentionOptions,
    SemanticFeedback,
    feedback_matrix,
    residual_attention,
    semantic_feedback,
)
from resclip_kernels.ops.residual_attention import portable, reference
from resclip_kernels.ops.semantic_feedback.portable import row_blocks

GRIDS = (
    (64, (14, 14)),
    (16, (21, 28)),
    (1, (32, 32)),
    (1, (64, 64)),
    (1, (128, 128)),
    (1, (256, 256)),
)
"""(batch, grid): windows of 224, images of 336 × 448, and squares of 512, 1,024, 2,048 and 4,096 pixels."""
TINY_GRIDS = ((2, (3, 4)), (1, (5, 5)))
FIGURE_TOKENS = 4097
"""Tokens from which on the attention must keep up with plain attention."""


def attention_options(shape: Attention) -> AttentionOptions:
    """NACLIP with both of ResCLIP's modules, by the released weights."""
    return AttentionOptions(grid=shape.grid, neighbourhood_std=5.0)


def attention_cases(*, tiny: bool) -> list[Case]:
    """kk with prior and feedback, and four cross layers: five branches of 12 heads of 64."""
    cases = []
    for batch, grid in TINY_GRIDS if tiny else GRIDS:
        shape = Attention(batch, 2 if tiny else 12, grid, layers=2 if tiny else 4)
        cases.append(
            Case(
                "residual_attention",
                f"L = {shape.tokens:,}, batch {batch}",
                shape.flops,
                shape.bytes,
                partial(attention_variants, shape=shape),
                {**asdict(shape), "tokens": shape.tokens},
                rank=0 if shape.tokens >= FIGURE_TOKENS else 1,
            )
        )
    return cases


def attention_variants(bench: Bench, shape: Attention) -> list[Variant]:
    """The fused op, the same by other means, and attention without prior or feedback."""
    dtype = bench.dtype(torch.float16)
    tensors = bench.device.attention(shape, dtype)
    shape = replace(shape, element=tensors.value.element_size())
    state = feedback_state(bench.device.labels(shape.batch, shape.grid))
    held = (*tensors[1:3], *(tensor for pair in tensors.cross_layers for tensor in pair))
    bits = tuple(t for t in (state.far, state.labels, state.row_sums) if t is not None)

    def run(implementation: str, feedback: SemanticFeedback) -> Any:
        return residual_attention(
            *tensors[:3],
            attention_options(shape),
            feedback=feedback,
            cross_layers=tensors.cross_layers,
            implementation=implementation,
        )

    fused = Variant(FUSED, lambda: run(FUSED, state), held=(*held, *bits), essential=True)
    torch_path = Variant("torch", lambda: run("torch", state), held=(*held, *bits))
    plain = Variant("sdpa", lambda: plain_attention(tensors), held=held, essential=True)
    return [
        fused,
        torch_path,
        *reference_variants(bench, shape, tensors, state, held),
        plain,
        tried("flex", lambda: flex_variant(bench, shape, tensors, state, held)),
    ]


def plain_attention(tensors: AttentionTensors) -> list[Tensor]:
    """One plain scaled_dot_product_attention a branch, results not even added: nothing of ResCLIP but its products."""
    pairs = ((tensors.key, tensors.key), *tensors.cross_layers)
    return [F.scaled_dot_product_attention(left, right, tensors.value) for left, right in pairs]


def reference_variants(
    bench: Bench,
    shape: Attention,
    tensors: AttentionTensors,
    state: SemanticFeedback,
    held: tuple[Tensor, ...],
) -> list[Variant]:
    """The reference with Ŝ in memory, as it is and by torch.compile; no Ŝ is made where they could not run."""
    needs = shape.reference_bytes
    if needs + shape.dense_bytes > total_memory(bench):
        reason = f"needs {(needs + shape.dense_bytes) / 1e9:,.0f} GB by prediction"
        return [missing(name, reason) for name in ("reference", "compiled")]
    feedback = with_matrix(state, feedback_matrix(state))
    compiled = bench.compile(reference.residual_attention)
    dense = () if feedback.dense is None else (feedback.dense,)

    def run(function: Any) -> Any:
        return function(
            *tensors[:3], attention_options(shape), (), feedback, tensors.cross_layers, None
        )

    return [
        Variant(
            "reference",
            lambda: run(reference.residual_attention),
            held=(*held, *dense),
            needs_bytes=needs,
            essential=shape.tokens >= FIGURE_TOKENS,
        ),
        Variant(
            "compiled",
            lambda: run(compiled),
            held=(*held, *dense),
            needs_bytes=needs,
            compiles=True,
        ),
    ]


def flex_variant(
    bench: Bench,
    shape: Attention,
    tensors: AttentionTensors,
    state: SemanticFeedback,
    held: tuple[Tensor, ...],
) -> Variant:
    """FlexAttention for the branch with terms, plain attention for the others.

    A score_mod may read a captured tensor, but it cannot form Ŝ: an entry is a sum of 31 neighbours' equal labels and
    path tests over its row's sum and the image's maximum. So Ŝ must lie in memory, (B, L, L) in the tensors' dtype,
    and ω with it, which is one load in place of an exponential. Making that matrix is not timed; its memory counts.
    """
    entries = shape.batch * shape.tokens**2
    if entries >= 1 << 31:
        # Compiled templates may index with 32 bits, and a stray load would end the process's use of the device.
        return missing(
            "flex",
            f"its matrix would have {entries / 1e9:.1f} billion entries: past 32-bit offsets",
        )
    options = attention_options(shape)
    bias = tensors.value.new_zeros(shape.batch, shape.tokens, shape.tokens)
    for first, last in row_blocks(shape.patches, shape.batch * shape.patches):
        rows = portable.additive_rows(options, state, first, last, tensors.value)
        bias[:, 1 + first : 1 + last, 1:] = rows.to(bias.dtype)
    scale = options.scale(shape.width, has_feedback=True)

    def add_bias(score: Tensor, image: Tensor, _: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return score + bias[image, row, column]

    def attend(key: Tensor, value: Tensor) -> Tensor:
        result: Tensor = flex_attention(key, key, value, score_mod=add_bias, scale=scale)
        return result

    compiled = bench.compile(attend)

    def run() -> list[Tensor]:
        others = [
            F.scaled_dot_product_attention(left, right, tensors.value)
            for left, right in tensors.cross_layers
        ]
        return [compiled(tensors.key, tensors.value), *others]

    return Variant("flex", run, held=(*held, bias), compiles=True)


def total_memory(bench: Bench) -> int:
    """Of the device, in bytes; a few gigabytes where the interpreter stands in."""
    if bench.dry_run:
        return 1 << 32
    return int(torch.cuda.get_device_properties(0).total_memory)


def feedback_cases(*, tiny: bool) -> list[Case]:
    """The state of semantic feedback with the released rule."""
    cases = []
    for batch, grid in TINY_GRIDS if tiny else GRIDS:
        shape = Feedback(batch, grid)
        cases.append(
            Case(
                "semantic_feedback",
                f"{grid[0]} × {grid[1]} patches, batch {batch}",
                shape.flops,
                shape.bytes,
                partial(feedback_variants, shape=shape),
                asdict(shape),
            )
        )
    return cases


def feedback_variants(bench: Bench, shape: Feedback) -> Sequence[Variant]:
    """The three implementations; attention kernels and torch.compile have nothing to offer here."""
    labels = bench.device.labels(shape.batch, shape.grid)
    needs = {"reference": shape.reference_bytes}
    return [
        *(
            Variant(
                name,
                partial(semantic_feedback, labels, implementation=name),
                held=(labels,),
                needs_bytes=needs.get(name, 0),
                essential=name == FUSED,
            )
            for name in (FUSED, "torch", "reference")
        ),
        missing("compiled", "the reference loops over images in Python, one graph each"),
        missing("sdpa", "no attention"),
        missing("flex", "no attention"),
    ]
