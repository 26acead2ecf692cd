"""Cases of the ops on planes and features: `pamr`, `patch_labels`, `upsample_argmax`, `proxy_attention`.

Knows these ops' shapes in the released protocols.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.case import Bench, Case, missing
from benchmarks.gpu.counts import Pamr, PatchLabels, Proxy, Upsample
from benchmarks.gpu.inputs import FUSED
from benchmarks.gpu.timing import Variant
from resclip_kernels import (
    ProxyAttentionOptions,
    pamr,
    patch_labels,
    proxy_attention,
    upsample_argmax,
)
from resclip_kernels.ops.pamr import reference as pamr_reference
from resclip_kernels.ops.proxy_attention import reference as proxy_reference

FIGURE_PAMR = "150 planes of 336 × 448, fp32"
READS_VALUES = (
    "the reference decides by tensor values in Python, image by image: no graph to compile"
)


def implementations(
    run: Callable[[str], Any],
    held: tuple[Tensor, ...],
    reference_bytes: int,
    *,
    essential: bool = False,
) -> list[Variant]:
    """The op's own three; with `essential` the reference too."""
    return [
        Variant(
            name,
            partial(run, name),
            held=held,
            needs_bytes=reference_bytes if name == "reference" else 0,
            essential=name == FUSED or (essential and name == "reference"),
        )
        for name in (FUSED, "torch", "reference")
    ]


def no_attention() -> list[Variant]:
    """Rows that stay empty."""
    return [missing(name, "no attention") for name in ("sdpa", "flex")]


def pamr_cases(*, tiny: bool) -> list[Case]:
    """ADE20K's names on a whole image, as float32 and float16, and a few names on a large one."""
    shapes = [
        (FIGURE_PAMR, Pamr(1, 150, (336, 448)), torch.float32),
        ("150 planes of 336 × 448, fp16", Pamr(1, 150, (336, 448), element=2), torch.float16),
        ("20 planes of 2048 × 2048, fp32", Pamr(1, 20, (2048, 2048)), torch.float32),
    ]
    if tiny:
        shapes = [(FIGURE_PAMR, Pamr(1, 2, (9, 8), iterations=1), torch.float32)]
    return [
        Case(
            "pamr",
            name,
            shape.flops,
            shape.bytes,
            partial(pamr_variants, shape=shape, dtype=dtype),
            asdict(shape),
            rank=0 if name == FIGURE_PAMR else 1,
        )
        for name, shape, dtype in shapes
    ]


def pamr_variants(bench: Bench, shape: Pamr, dtype: torch.dtype) -> Sequence[Variant]:
    """The op, and the reference by torch.compile."""
    image = bench.device.images(shape.batch, shape.size, dtype)
    masks = bench.device.normal(shape.batch, shape.queries, *shape.size, dtype=dtype)
    compiled = bench.compile(pamr_reference.pamr)

    def run(name: str) -> Tensor:
        return pamr(image, masks, iterations=shape.iterations, implementation=name)

    held = (image, masks)
    essential = dtype is torch.float32 and shape.queries != 20
    return [
        *implementations(run, held, shape.reference_bytes, essential=essential),
        Variant(
            "compiled",
            lambda: compiled(image, masks, shape.iterations, (8, 16)),
            held=held,
            needs_bytes=shape.reference_bytes,
            compiles=True,
        ),
        *no_attention(),
    ]


def patch_label_cases(*, tiny: bool) -> list[Case]:
    """A batch of windows, and a whole image."""
    shapes = [PatchLabels(16, 150, (224, 224)), PatchLabels(1, 150, (336, 448))]
    if tiny:
        shapes = [PatchLabels(1, 3, (8, 12), patch=4)]
    return [
        Case(
            "patch_labels",
            f"{shape.queries} queries, {shape.size[0]} × {shape.size[1]}, batch {shape.batch}",
            shape.flops,
            shape.bytes,
            partial(patch_label_variants, shape=shape),
            asdict(shape),
        )
        for shape in shapes
    ]


def patch_label_variants(bench: Bench, shape: PatchLabels) -> Sequence[Variant]:
    """Logits in float32, as `similarity` returns them; the guide in the tower's dtype."""
    height, width = shape.size
    grid = (height // shape.patch, width // shape.patch)
    image = bench.device.images(shape.batch, shape.size, bench.dtype(torch.float16))
    logits = bench.device.logits(shape.batch, shape.queries, grid, torch.float32)

    def run(name: str) -> Tensor:
        return patch_labels(
            logits, image, patch_size=(shape.patch, shape.patch), implementation=name
        )

    return [
        *implementations(run, (image, logits), shape.reference_bytes),
        missing("compiled", READS_VALUES),
        *no_attention(),
    ]


def upsample_cases(*, tiny: bool) -> list[Case]:
    """ADE20K's images with 150 and 847 names from stitched logits, and a large image from its small grid."""
    shapes = [
        Upsample(1, 150, (336, 448), (512, 683)),
        Upsample(1, 847, (336, 448), (512, 683)),
        Upsample(1, 20, (256, 256), (4096, 4096)),
    ]
    if tiny:
        shapes = [Upsample(1, 3, (4, 5), (16, 21))]
    return [
        Case(
            "upsample_argmax",
            f"{shape.queries} queries to {shape.size[0]} × {shape.size[1]}",
            shape.flops,
            shape.bytes,
            partial(upsample_variants, shape=shape),
            asdict(shape),
        )
        for shape in shapes
    ]


def upsample_variants(bench: Bench, shape: Upsample) -> Sequence[Variant]:
    """One class a query."""
    logits = bench.device.logits(shape.batch, shape.queries, shape.grid, torch.float32)

    def run(name: str) -> tuple[Tensor, Tensor]:
        return upsample_argmax(logits, shape.size, implementation=name)

    return [
        *implementations(run, (logits,), shape.reference_bytes),
        missing("compiled", READS_VALUES),
        *no_attention(),
    ]


def proxy_cases(*, tiny: bool) -> list[Case]:
    """DINO's ViT-B/8 on windows of 336 beside CLIP's ViT-B/16, and a finer grid."""
    shapes = [
        Proxy(8, 12, 768, (42, 42), (21, 21)),
        Proxy(1, 12, 768, (128, 128), (64, 64)),
    ]
    if tiny:
        shapes = [Proxy(1, 2, 32, (6, 5), (3, 3))]
    return [
        Case(
            "proxy_attention",
            f"{shape.fine[0]} × {shape.fine[1]} positions of {shape.channels}, batch {shape.batch}",
            shape.flops,
            shape.bytes,
            partial(proxy_variants, shape=shape),
            asdict(shape),
        )
        for shape in shapes
    ]


def proxy_variants(bench: Bench, shape: Proxy) -> Sequence[Variant]:
    """The op, and the reference by torch.compile."""
    dtype = bench.dtype(torch.float16)
    features = bench.device.features(shape.batch, shape.channels, shape.fine, dtype)
    cells = shape.grid[0] * shape.grid[1]
    value = bench.device.normal(shape.batch, shape.heads, cells, shape.width, dtype=dtype)
    compiled = bench.compile(proxy_reference.proxy_attention)

    def run(name: str) -> Tensor:
        return proxy_attention(features, value, grid=shape.grid, implementation=name)

    held = (features, value)
    masked = "its mask is where X Xᵀ exceeds the image's mean: as a score_mod it needs heads of 768 for q and k"
    return [
        *implementations(run, held, shape.reference_bytes),
        Variant(
            "compiled",
            lambda: compiled(features, value, shape.grid, ProxyAttentionOptions()),
            held=held,
            needs_bytes=shape.reference_bytes,
            compiles=True,
        ),
        missing("sdpa", "one map for all heads, its entries under 0 left out"),
        missing("flex", masked),
    ]
