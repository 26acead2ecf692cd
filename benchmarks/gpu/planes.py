"""Cases of the ops on planes and features: `pamr`, `patch_labels`, `upsample_argmax`, `proxy_attention` and others.

Their shapes are those of the released protocols.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.case import Bench, Case, missing
from benchmarks.gpu.counts import (
    Aggregation,
    Pamr,
    PatchLabels,
    Propagation,
    Proxy,
    Upsample,
)
from benchmarks.gpu.inputs import FUSED
from benchmarks.gpu.timing import Tier, Variant
from resclip_kernels import (
    ProxyAttentionOptions,
    laplacian_propagation,
    pamr,
    patch_labels,
    proxy_attention,
    similarity_aggregation,
    upsample_argmax,
)
from resclip_kernels.ops.pamr import reference as pamr_reference
from resclip_kernels.ops.proxy_attention import reference as proxy_reference

FIGURE_PAMR = "150 planes of 336 × 448, fp32"
READS_VALUES = (
    "the reference decides by tensor values in Python, image by image: no graph to compile"
)


def case_of(
    op: str, name: str, shape: Any, variants: Callable[..., Sequence[Variant]], **more: Any
) -> Case:
    """The case of a shape of `counts`, which `variants` gets as well."""
    make = partial(variants, shape=shape)
    return Case(op, name, shape.flops, shape.bytes, make, asdict(shape), **more)


def variants_of(
    run: Callable[[str], Any],
    held: tuple[Tensor, ...],
    reference_bytes: int,
    *,
    compiled: Callable[[], Any] | None = None,
    impossible: Mapping[str, str] = MappingProxyType({}),
) -> list[Variant]:
    """The op's three implementations, its reference by torch.compile, and why there are no others.

    Args:
        run: the op by the name of an implementation.
        held: its inputs.
        reference_bytes: predicted memory of the reference.
        compiled: the compiled reference; None where it reads values.
        impossible: reasons by variant.
    """
    return [
        Variant(FUSED, partial(run, FUSED), held=held, tier=Tier.FIGURE, captured=True),
        Variant("torch", partial(run, "torch"), held=held),
        Variant("reference", partial(run, "reference"), held=held, needs_bytes=reference_bytes),
        Variant("compiled", compiled, held=held, compiles=True, needs_bytes=reference_bytes)
        if compiled
        else missing("compiled", READS_VALUES),
        *(missing(name, reason) for name, reason in impossible.items()),
    ]


def pamr_cases(*, tiny: bool) -> list[Case]:
    """ADE20K's names on a whole image, as float32 and float16, and a few names on a large one."""
    shapes = {
        FIGURE_PAMR: Pamr(1, 150, (336, 448)),
        "150 planes of 336 × 448, fp16": Pamr(1, 150, (336, 448), element=2),
        "20 planes of 2048 × 2048, fp32": Pamr(1, 20, (2048, 2048)),
    }
    if tiny:
        shapes = {FIGURE_PAMR: Pamr(1, 2, (9, 8), iterations=1)}
    return [
        case_of(
            "pamr",
            name,
            shape,
            pamr_variants,
            dtypes=("fp32" if shape.element == 4 else "fp16",),
        )
        for name, shape in shapes.items()
    ]


def pamr_variants(bench: Bench, shape: Pamr) -> Sequence[Variant]:
    """The op, and the reference by torch.compile."""
    dtype = torch.float32 if shape.element == 4 else torch.float16
    image = bench.device.images(shape.batch, shape.size, dtype)
    masks = bench.device.normal(shape.batch, shape.queries, *shape.size, dtype=dtype)
    compiled = bench.compile(pamr_reference.pamr)
    return variants_of(
        lambda name: pamr(image, masks, iterations=shape.iterations, implementation=name),
        (image, masks),
        shape.reference_bytes,
        compiled=lambda: compiled(image, masks, shape.iterations, (8, 16)),
    )


def patch_label_cases(*, tiny: bool) -> list[Case]:
    """A batch of windows, and a whole image."""
    shapes = [PatchLabels(16, 150, (224, 224)), PatchLabels(1, 150, (336, 448))]
    if tiny:
        shapes = [PatchLabels(1, 3, (8, 12), patch=4)]
    return [
        case_of(
            "patch_labels",
            f"{shape.queries} queries, {shape.size[0]} × {shape.size[1]}, batch {shape.batch}",
            shape,
            patch_label_variants,
            dtypes=("fp32",),
        )
        for shape in shapes
    ]


def patch_label_variants(bench: Bench, shape: PatchLabels) -> Sequence[Variant]:
    """Logits in float32, as `similarity` returns them; the guide in the tower's dtype."""
    patch = (shape.patch, shape.patch)
    grid = (shape.size[0] // shape.patch, shape.size[1] // shape.patch)
    image = bench.device.images(shape.batch, shape.size, bench.dtype(torch.float16))
    logits = bench.device.logits(shape.batch, shape.queries, grid, torch.float32)
    return variants_of(
        lambda name: patch_labels(logits, image, patch_size=patch, implementation=name),
        (image, logits),
        shape.reference_bytes,
    )


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
        case_of(
            "upsample_argmax",
            f"{shape.queries} queries to {shape.size[0]} × {shape.size[1]}",
            shape,
            upsample_variants,
            dtypes=("fp32",),
        )
        for shape in shapes
    ]


def upsample_variants(bench: Bench, shape: Upsample) -> Sequence[Variant]:
    """One class for each query."""
    logits = bench.device.logits(shape.batch, shape.queries, shape.grid, torch.float32)
    return variants_of(
        lambda name: upsample_argmax(logits, shape.size, implementation=name),
        (logits,),
        shape.reference_bytes,
    )


def proxy_cases(*, tiny: bool) -> list[Case]:
    """DINO's ViT-B/8 on windows of 336 beside CLIP's ViT-B/16, and a finer grid."""
    shapes = [
        Proxy(8, 12, 768, (42, 42), (21, 21)),
        Proxy(1, 12, 768, (128, 128), (64, 64)),
    ]
    if tiny:
        shapes = [Proxy(1, 2, 32, (6, 5), (3, 3))]
    return [
        case_of(
            "proxy_attention",
            f"{shape.fine[0]} × {shape.fine[1]} positions of {shape.channels}, batch {shape.batch}",
            shape,
            proxy_variants,
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
    return variants_of(
        lambda name: proxy_attention(features, value, grid=shape.grid, implementation=name),
        (features, value),
        shape.reference_bytes,
        compiled=lambda: compiled(features, value, shape.grid, ProxyAttentionOptions()),
        impossible={
            "flash": "one map for all heads, its entries under 0 left out",
            "flex": "its mask is where X Xᵀ exceeds the image's mean: as a score_mod it needs heads of 768 for q and k",
        },
    )


def aggregation_cases(*, tiny: bool) -> list[Case]:
    """Windows of ViT-B/16, and a whole image of 4,096 patches."""
    shapes = [Aggregation(16, 196), Aggregation(1, 4096)]
    if tiny:
        shapes = [Aggregation(1, 12, 16, 16)]
    return [
        case_of(
            "similarity_aggregation",
            f"{shape.patches} patches of {shape.channels}, batch {shape.batch}",
            shape,
            aggregation_variants,
        )
        for shape in shapes
    ]


def aggregation_variants(bench: Bench, shape: Aggregation) -> Sequence[Variant]:
    """By SC-CLIP's threshold, from which the features' kinds keep away."""
    dtype = bench.dtype(torch.float16)
    fine = (1, shape.patches)
    features = bench.device.features(shape.batch, shape.channels, fine, dtype).flatten(2).mT
    value = bench.device.normal(shape.batch, shape.patches, shape.width, dtype=dtype)
    return variants_of(
        lambda name: similarity_aggregation(features, value, threshold=0.4, implementation=name),
        (features, value),
        shape.reference_bytes,
    )


def propagation_cases(*, tiny: bool) -> list[Case]:
    """ADE20K's names on a picture."""
    shape = Propagation(1, 150, (500, 667))
    if tiny:
        shape = Propagation(1, 3, (12, 10), grid=6, iterations=1, width=8)
    name = f"{shape.queries} queries, {shape.size[0]} × {shape.size[1]}"
    return [case_of("laplacian_propagation", name, shape, propagation_variants, dtypes=("fp32",))]


def propagation_variants(bench: Bench, shape: Propagation) -> Sequence[Variant]:
    """Logits in float32, as they are stitched."""
    logits = bench.device.logits(shape.batch, shape.queries, shape.size, torch.float32)
    image = bench.device.images(shape.batch, shape.size, torch.float32)
    text = torch.nn.functional.normalize(
        bench.device.normal(shape.queries, shape.width, seed=2), dim=-1
    )
    return variants_of(
        lambda name: laplacian_propagation(
            logits,
            image,
            text,
            grid=shape.grid,
            iterations=shape.iterations,
            implementation=name,
        ),
        (logits, image, text),
        shape.reference_bytes,
    )
