"""Cases of `residual_attention` and `semantic_feedback` by number of tokens, beside what PyTorch offers instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from benchmarks.gpu.case import (
    AUTO,
    BASE,
    LAYERS,
    LIBRARY,
    PLAIN,
    Bench,
    Case,
    missing,
    tried,
)
from benchmarks.gpu.counts import Attention, Feedback
from benchmarks.gpu.inputs import FUSED, AttentionTensors, feedback_state, with_matrix
from benchmarks.gpu.timing import Tier, Variant
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
    (1, (32, 32)),
    (64, (14, 14)),
    (1, (64, 64)),
    (1, (128, 128)),
    (16, (21, 28)),
    (1, (256, 256)),
)
"""(batch, grid), what is worth most first: squares of 512, 1,024, 2,048 and 4,096 pixels, windows of 224, images of
336 × 448."""
FIGURE_GRIDS = GRIDS[:4]
"""Those at which the attention must keep up with plain attention."""
TINY_GRIDS = ((2, (3, 4)),)
BACKENDS = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
)
"""Those of `PLAIN`; "math", which holds every score in memory, is no rival."""


def attention_options(shape: Attention) -> AttentionOptions:
    """NACLIP with both of ResCLIP's modules, by the released weights."""
    return AttentionOptions(grid=shape.grid, neighbourhood_std=5.0)


def attention_shape(batch: int, grid: tuple[int, int], *, tiny: bool) -> Attention:
    """kk with prior and feedback, and four cross layers: five branches of 12 heads of 64."""
    return Attention(batch, 2 if tiny else 12, grid, layers=2 if tiny else 4)


def attention_name(batch: int, tokens: int) -> str:
    """How a case is called."""
    return f"L = {tokens:,}, batch {batch}"


def attention_cases(*, tiny: bool) -> list[Case]:
    """One a grid."""
    cases = []
    for batch, grid in TINY_GRIDS if tiny else GRIDS:
        shape = attention_shape(batch, grid, tiny=tiny)
        cases.append(
            Case(
                "residual_attention",
                attention_name(batch, shape.tokens),
                shape.flops,
                shape.bytes,
                partial(attention_variants, shape=shape),
                {**asdict(shape), "tokens": shape.tokens},
                rank=0 if (batch, grid) in (*FIGURE_GRIDS, *TINY_GRIDS) else 1,
                tiers=tuple(Tier),
            )
        )
    return cases


def attention_variants(bench: Bench, shape: Attention) -> list[Variant]:
    """The op whole and by parts, the same by other means, and attention without prior or feedback."""
    dtype = bench.dtype(torch.float16)
    tensors = bench.device.attention(shape, dtype)
    shape = replace(shape, element=tensors.value.element_size())
    state = feedback_state(bench.device.labels(shape.batch, shape.grid))
    held = (*tensors[1:3], *(tensor for pair in tensors.cross_layers for tensor in pair))
    bits = tuple(t for t in (state.far, state.labels, state.row_sums) if t is not None)

    def call(implementation: str, **parts: Any) -> Any:
        return residual_attention(
            *tensors[:3],
            attention_options(shape),
            feedback=state,
            implementation=implementation,
            **(parts or {"cross_layers": tensors.cross_layers}),
        )

    def layers_alone() -> Any:
        return residual_attention(
            *tensors[:3],
            grid=shape.grid,
            correlation="identity",
            cross_layers=tensors.cross_layers,
            implementation=FUSED,
        )

    def variant(name: str, tier: Tier, *, captured: bool, implementation: str = "") -> Variant:
        run = partial(call, implementation or name)
        return Variant(name, run, held=(*held, *bits), tier=tier, captured=captured)

    # As far as its time goes, any values are a mean of layers.
    base_alone = partial(call, FUSED, cross_layer=tensors.value)

    return [
        variant(FUSED, Tier.FIGURE, captured=True),
        variant(AUTO, Tier.FIGURE, captured=True),
        *(
            Variant(
                name,
                partial(plain_attention, tensors, SDPBackend.MATH if bench.dry_run else backend),
                held=held,
                tier=Tier.FIGURE,
                captured=True,
            )
            for name, backend in zip(PLAIN, BACKENDS, strict=True)
        ),
        Variant(LAYERS, layers_alone, held=held, tier=Tier.RIVAL, captured=True),
        Variant(BASE, base_alone, held=(*held, *bits), tier=Tier.RIVAL, captured=True),
        replace(variant(LIBRARY, Tier.RIVAL, captured=True), compiles=True),
        tried("flex", lambda: flex_variant(bench, shape, tensors, state, held), Tier.RIVAL),
        variant("torch", Tier.REST, captured=False),
        *reference_variants(bench, shape, tensors, state, held),
    ]


def plain_attention(tensors: AttentionTensors, backend: SDPBackend) -> list[Tensor]:
    """One plain scaled_dot_product_attention a branch, results not even added: nothing of ResCLIP but its products."""
    pairs = ((tensors.key, tensors.key), *tensors.cross_layers)
    with sdpa_kernel(backend):
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

    @cache
    def dense_state() -> SemanticFeedback:
        return with_matrix(state, feedback_matrix(state))

    def variant(name: str, function: Any) -> Variant:
        feedback = dense_state()
        arguments = (attention_options(shape), (), feedback, tensors.cross_layers, None)
        return Variant(
            name,
            lambda: function(*tensors[:3], *arguments),
            held=(*held, *(t for t in (feedback.dense,) if t is not None)),
            needs_bytes=needs,
            compiles=name == "compiled",
        )

    function = reference.residual_attention
    return [
        tried("reference", lambda: variant("reference", function)),
        tried("compiled", lambda: variant("compiled", bench.compile(function))),
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

    return Variant(
        "flex", run, held=(*held, bias), tier=Tier.RIVAL, compiles=True, captured=not bench.dry_run
    )


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
                dtypes=("int64",),
            )
        )
    return cases


def feedback_variants(bench: Bench, shape: Feedback) -> Sequence[Variant]:
    """The three implementations."""
    labels = bench.device.labels(shape.batch, shape.grid)
    needs = {"reference": shape.reference_bytes}
    return [
        *(
            Variant(
                name,
                partial(semantic_feedback, labels, implementation=name),
                held=(labels,),
                needs_bytes=needs.get(name, 0),
                tier=Tier.FIGURE if name == FUSED else Tier.REST,
                captured=name == FUSED,
            )
            for name in (FUSED, "torch", "reference")
        ),
        missing("compiled", "the reference loops over images in Python, one graph each"),
    ]
