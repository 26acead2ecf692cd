"""The calls whose kernels are reported: what the three CLIP towers in use make of every op.

The tensors are on torch's "meta" device: they have a shape, a dtype and strides, and no values. A new op, or a new case
of one, is a line of `OPS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from resclip_kernels import (
    SemanticFeedback,
    laplacian_propagation,
    pamr,
    patch_labels,
    proxy_attention,
    residual_attention,
    semantic_feedback,
    similarity_aggregation,
    upsample_argmax,
)

DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
# Quick: every model and every dtype for an op's first case and for the residual attention in one pass, which has most
# terms and other tiles at every width; for all else H/14 alone, whose heads are the widest. Half of the compilations.
QUICK_OTHERS = {("H/14", "fp16"), ("H/14", "fp32")}
QUICK_FIRST = {("B/16", "fp16"), ("L/14", "bf16"), *QUICK_OTHERS}
BATCH = 2
"""Images or windows: Triton would compile a batch of 1 into the kernel."""
MANY_WINDOWS = 32
"""So many that every multiprocessor has several programs, which share it."""
QUERIES = 150
MANY_QUERIES = 847
WIDE_STD = 8.0
"""Standard deviation of a smoothing in patches, whose 49 taps read 32 patches a side; the default's 31 read 16."""
OUTPUT = (336, 448)
"""Height and width of a label map in pixels."""


@dataclass(frozen=True)
class Model:
    """A vision transformer at its trained 224 × 224 pixels."""

    name: str
    patch: int
    heads: int
    width: int
    image: int = 224

    @property
    def grid(self) -> tuple[int, int]:
        return self.image // self.patch, self.image // self.patch


MODELS = (Model("B/16", 16, 12, 64), Model("L/14", 14, 16, 64), Model("H/14", 14, 16, 80))


@dataclass(frozen=True)
class Call:
    """One call of an op."""

    op: str
    case: str
    model: str
    dtype: str
    run: Callable[[], object]


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def attention_tensors(
    model: Model,
    dtype: torch.dtype,
    grid: tuple[int, int] | None = None,
    cls_tokens: int = 1,
    batch: int = BATCH,
) -> tuple[Tensor, ...]:
    """q, k, v as the towers make them: (B, A, L, d) views of one projection."""
    height, width = grid or model.grid
    packed = empty(batch, cls_tokens + height * width, 3, model.heads, model.width, dtype=dtype)
    return tuple(packed.permute(2, 0, 3, 1, 4))


def state(model: Model, batch: int = BATCH, **options: Any) -> SemanticFeedback:
    """Semantic feedback of label maps as large as the model's grid."""
    labels = empty(batch, *model.grid, dtype=torch.int64)
    return semantic_feedback(labels, implementation="triton", **options)


def attend(
    model: Model,
    dtype: torch.dtype,
    *,
    layers: bool = False,
    cross_layer: bool = False,
    feedback: Mapping[str, Any] | None = None,
    projections: bool = False,
    grid: tuple[int, int] | None = None,
    cls_tokens: int = 1,
    batch: int = BATCH,
    **options: Any,
) -> None:
    """`residual_attention` with four cross layers, with their mean from pass 1, with feedback of these options."""
    tensors = partial(attention_tensors, model, dtype, grid, cls_tokens, batch)
    if layers:
        options["cross_layers"] = [tensors()[:2] for _ in range(4)]
    if cross_layer:
        tokens = cls_tokens + math.prod(model.grid)
        options["cross_layer"] = empty(batch, model.heads, tokens, model.width, dtype=dtype)
    if projections:
        options["projections"] = tensors()
    if feedback is not None:
        options["feedback"] = state(model, batch, **feedback)
    residual_attention(*tensors(), grid=grid or model.grid, implementation="triton", **options)


def label_state(model: Model, dtype: torch.dtype, connectivity: str) -> None:
    """`semantic_feedback` by one rule of connectivity."""
    state(model, connectivity=connectivity)


def matrix(model: Model, dtype: torch.dtype, **options: Any) -> None:
    """The kernels' function, not the public one: q, k, v of a dtype have the matrix smoothed in it."""
    from resclip_kernels.ops.semantic_feedback.triton import feedback_matrix

    feedback_matrix(state(model, **options), dtype)


def refine(model: Model, dtype: torch.dtype) -> None:
    image, masks = (
        empty(BATCH, channels, model.image, model.image, dtype=dtype) for channels in (3, QUERIES)
    )
    pamr(image, masks, implementation="triton")


def label_patches(
    model: Model, dtype: torch.dtype, logits: torch.dtype | None = None, queries: int = QUERIES
) -> None:
    """`patch_labels` from logits of a dtype: the model's unless one is named."""
    patch_labels(
        empty(BATCH, queries, *model.grid, dtype=logits or dtype),
        empty(BATCH, 3, model.image, model.image, dtype=dtype),
        patch_size=(model.patch, model.patch),
        threshold=0.1,
        implementation="triton",
    )


def upsample(
    model: Model,
    dtype: torch.dtype,
    *,
    stitched: bool = False,
    merged: bool = False,
    refined: bool = False,
    queries: int = QUERIES,
) -> None:
    """`upsample_argmax` from patches or stitched windows, of classes with several names, and with PAMR."""
    options: dict[str, Any] = {}
    if merged:
        options["query_to_class"] = empty(queries, dtype=torch.int64)
    if refined:
        options |= {"guide": empty(1, 3, *OUTPUT, dtype=dtype), "refine_iterations": 10}
    elif not stitched:
        options["through"] = (model.image, model.image)
    size = (model.image, model.image) if stitched else model.grid
    logits = empty(1, queries, *size, dtype=dtype)
    upsample_argmax(logits, OUTPUT, implementation="triton", **options)


def proxy(
    model: Model,
    dtype: torch.dtype,
    channels: int,
    feedback: Mapping[str, Any] | None = None,
    cut: float | None = None,
) -> None:
    """`proxy_attention` by features on a grid of 28 × 28, with semantic feedback of these options."""
    labels = empty(BATCH, 28, 28, dtype=torch.int64)
    proxy_attention(
        empty(BATCH, channels, 28, 28, dtype=dtype),
        attention_tensors(model, dtype)[2][:, :, 1:],
        grid=model.grid,
        feedback=None
        if feedback is None
        else semantic_feedback(labels, implementation="triton", **feedback),
        cut=cut,
        implementation="triton",
    )


def aggregate(model: Model, dtype: torch.dtype, *, normalise: bool) -> None:
    """`similarity_aggregation` of a block's output by a block's output, without [CLS]."""
    tokens = empty(BATCH, math.prod(model.grid), model.heads * model.width, dtype=dtype)
    similarity_aggregation(
        tokens, tokens, threshold=0.4, normalise=normalise, implementation="triton"
    )


def propagate(model: Model, dtype: torch.dtype) -> None:
    """`laplacian_propagation` of a picture of ADE20K's usual size."""
    laplacian_propagation(
        empty(BATCH, QUERIES, 500, 667, dtype=dtype),
        empty(BATCH, 3, 500, 667, dtype=dtype),
        empty(QUERIES, model.heads * model.width, dtype=dtype),
        implementation="triton",
    )


Case: TypeAlias = Callable[[Model, torch.dtype], None]

UNCONNECTED = {"connectivity": None}  # The labels alone decide: no bits of far pairs.
WIDE = {"smoothing_std": WIDE_STD}
PRIOR = {"neighbourhood_std": 5.0}
ONE_PASS = {**PRIOR, "layers": True}

# The usual case of each op first. A kernel is listed under the first op that launches it: those that others build on
# come first.
OPS: Mapping[str, Mapping[str, Case]] = {
    "semantic_feedback": {
        "prefix": partial(label_state, connectivity="prefix"),
        "line": partial(label_state, connectivity="line"),
        "component": partial(label_state, connectivity="component"),
        "matrix": matrix,
        "matrix unconnected": partial(matrix, **UNCONNECTED),
        "matrix wide smoothing": partial(matrix, **WIDE),
    },
    "residual_attention": {
        "pass 1": partial(attend, **ONE_PASS),
        "pass 2": partial(attend, **PRIOR, feedback={}, cross_layer=True),
        "one pass": partial(attend, **ONE_PASS, feedback={}),
        "one pass unconnected": partial(attend, **ONE_PASS, feedback=UNCONNECTED),
        "one pass wide smoothing": partial(attend, **ONE_PASS, feedback=WIDE),
        "sclip": partial(attend, correlation="qq+kk"),
        "plain": partial(attend, correlation="qk"),
        "large grid": partial(attend, **PRIOR, grid=(64, 64)),
        "many windows": partial(attend, **ONE_PASS, feedback={}, batch=MANY_WINDOWS),
        # As in SigLIP's towers: B/16 has B/16's heads, those of SO400M are 72 wide and cut as H/14's 80.
        "without cls": partial(attend, **ONE_PASS, feedback={}, cls_tokens=0),
        # Every additive term at once.
        "within window": partial(attend, **PRIOR, window=7, feedback={}, cross_layer=True),
        "window alone": partial(attend, correlation="qq+kk", window=7),
        "projected": partial(attend, correlation="pp", projections=True),
        # NACLIP's prior without a score.
        "neighbours alone": partial(attend, **PRIOR, correlation="none"),
    },
    "pamr": {"refinement": refine},
    "patch_labels": {
        "from logits": label_patches,
        # Similarities are float32 whatever the tower computes in.
        "from encoder": partial(label_patches, logits=torch.float32),
        # So many that one plane a patch is refined, and the queries' are products.
        "many names": partial(label_patches, logits=torch.float32, queries=MANY_QUERIES),
    },
    "upsample_argmax": {
        "whole image": upsample,
        "stitched windows": partial(upsample, stitched=True),
        "merged names": partial(upsample, merged=True),
        "refined": partial(upsample, refined=True),
        "many names refined": partial(upsample, refined=True, merged=True, queries=MANY_QUERIES),
    },
    "proxy_attention": {
        # The widths of DINO's ViT-B and of DINOv2's ViT-L.
        "features 768": partial(proxy, channels=768),
        "features 1024": partial(proxy, channels=1024),
        "features fed back": partial(proxy, channels=768, feedback={}),
        "features unconnected": partial(proxy, channels=768, feedback=UNCONNECTED),
        "features wide smoothing": partial(proxy, channels=768, feedback=WIDE),
        "features cut": partial(proxy, channels=768, cut=0.4),
    },
    "similarity_aggregation": {
        "normalised": partial(aggregate, normalise=True),
        "sums": partial(aggregate, normalise=False),
    },
    "laplacian_propagation": {"picture": propagate},
}


def standard_calls(ops: Collection[str], *, quick: bool = False) -> Iterator[Call]:
    """Every case of these ops for every model and dtype; with `quick` for a few pairs of them."""
    for op in ops:
        first = next(iter(OPS[op]))
        for case, run in OPS[op].items():
            pairs = QUICK_FIRST if case in (first, "one pass") else QUICK_OTHERS
            for model in MODELS:
                for dtype, short in DTYPES.items():
                    if not quick or (model.name, short) in pairs:
                        yield Call(op, case, model.name, short, partial(run, model, dtype))
