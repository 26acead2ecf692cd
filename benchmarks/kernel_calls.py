"""The calls whose kernels are reported: what the three CLIP towers in use make of every op.

Knows models, shapes and dtypes. The tensors are on torch's "meta" device: they have a shape, a dtype and strides, and
no values. A new op, or a new case of one, is a small function here and a name in OPS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from resclip_kernels import (
    SemanticFeedback,
    pamr,
    patch_labels,
    proxy_attention,
    residual_attention,
    semantic_feedback,
    upsample_argmax,
)

DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
# Quick: every model and every dtype for an op's first case and for the residual attention in one pass, which has most
# terms and other tiles at every width; for all else H/14 alone, whose heads are the widest. Half of the compilations.
QUICK_OTHERS = {("H/14", "fp16"), ("H/14", "fp32")}
QUICK_FIRST = {("B/16", "fp16"), ("L/14", "bf16"), *QUICK_OTHERS}
# Two images or windows: a batch of 1 would let Triton fold the number in.
BATCH = 2
QUERIES = 150
# Standard deviation, in patches, of a smoothing whose tiles read 32 patches on each side; the default's read 16.
WIDE_STD = 8.0
OUTPUT = (336, 448)


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
    model: Model, dtype: torch.dtype, grid: tuple[int, int] | None = None, cls_tokens: int = 1
) -> tuple[Tensor, ...]:
    """q, k, v as the towers make them: (B, A, L, d) views of one projection."""
    height, width = grid or model.grid
    packed = empty(BATCH, cls_tokens + height * width, 3, model.heads, model.width, dtype=dtype)
    return tuple(packed.permute(2, 0, 3, 1, 4))


def cross_layers(
    model: Model, dtype: torch.dtype, cls_tokens: int = 1
) -> list[tuple[Tensor, Tensor]]:
    return [attention_tensors(model, dtype, cls_tokens=cls_tokens)[:2] for _ in range(4)]


def label_map(model: Model) -> Tensor:
    return empty(BATCH, *model.grid, dtype=torch.int64)


def attend(
    model: Model,
    dtype: torch.dtype,
    *,
    grid: tuple[int, int] | None = None,
    cls_tokens: int = 1,
    **options: Any,
) -> None:
    """The residual attention, of labels and middle blocks in `options` where a case has them."""
    residual_attention(
        *attention_tensors(model, dtype, grid, cls_tokens),
        grid=grid or model.grid,
        implementation="triton",
        **options,
    )


def fed_back(model: Model, **options: Any) -> SemanticFeedback:
    return semantic_feedback(label_map(model), implementation="triton", **options)


def computed_before(model: Model, dtype: torch.dtype) -> Tensor:
    """What pass 1 hands to pass 2: A_c·v."""
    return empty(BATCH, model.heads, 1 + math.prod(model.grid), model.width, dtype=dtype)


def pass_1(model: Model, dtype: torch.dtype) -> None:
    layers = cross_layers(model, dtype)
    attend(model, dtype, neighbourhood_std=5.0, cross_layers=layers)


def pass_2(model: Model, dtype: torch.dtype) -> None:
    before = computed_before(model, dtype)
    attend(model, dtype, neighbourhood_std=5.0, feedback=fed_back(model), cross_layer=before)


def one_pass(model: Model, dtype: torch.dtype, **options: Any) -> None:
    """All terms in one launch, the feedback's options as given."""
    layers = cross_layers(model, dtype)
    feedback = fed_back(model, **options)
    attend(model, dtype, neighbourhood_std=5.0, feedback=feedback, cross_layers=layers)


def one_pass_unconnected(model: Model, dtype: torch.dtype) -> None:
    """The labels alone decide: there are no bits of pairs apart."""
    one_pass(model, dtype, connectivity=None)


def one_pass_wide_smoothing(model: Model, dtype: torch.dtype) -> None:
    """49 taps: twice the margin of the default's 31."""
    one_pass(model, dtype, smoothing_std=WIDE_STD)


def sclip(model: Model, dtype: torch.dtype) -> None:
    attend(model, dtype, correlation="qq+kk")


def plain(model: Model, dtype: torch.dtype) -> None:
    attend(model, dtype, correlation="qk")


def without_cls(model: Model, dtype: torch.dtype) -> None:
    """A tower without [CLS], as SigLIP's are: B/16 has B/16's heads, SO400M's are 72 wide and cut as H/14's 80."""
    layers = cross_layers(model, dtype, cls_tokens=0)
    feedback = fed_back(model)
    attend(
        model, dtype, cls_tokens=0, neighbourhood_std=5.0, feedback=feedback, cross_layers=layers
    )


def within_window(model: Model, dtype: torch.dtype) -> None:
    """Every additive term at once."""
    before = computed_before(model, dtype)
    feedback = fed_back(model)
    attend(model, dtype, window=7, neighbourhood_std=5.0, feedback=feedback, cross_layer=before)


def window_alone(model: Model, dtype: torch.dtype) -> None:
    attend(model, dtype, correlation="qq+kk", window=7)


def projected(model: Model, dtype: torch.dtype) -> None:
    attend(model, dtype, correlation="pp", projections=attention_tensors(model, dtype))


def neighbours_alone(model: Model, dtype: torch.dtype) -> None:
    """NACLIP's prior without a score."""
    attend(model, dtype, correlation="none", neighbourhood_std=5.0)


def large_grid(model: Model, dtype: torch.dtype) -> None:
    attend(model, dtype, grid=(64, 64), neighbourhood_std=5.0)


def prefix(model: Model, dtype: torch.dtype) -> None:
    semantic_feedback(label_map(model), connectivity="prefix", implementation="triton")


def line(model: Model, dtype: torch.dtype) -> None:
    semantic_feedback(label_map(model), connectivity="line", implementation="triton")


def component(model: Model, dtype: torch.dtype) -> None:
    semantic_feedback(label_map(model), connectivity="component", implementation="triton")


def matrix(model: Model, dtype: torch.dtype, **options: Any) -> None:
    """The kernels' own function: q, k, v of a dtype have the matrix smoothed in it."""
    from resclip_kernels.ops.semantic_feedback.triton import feedback_matrix

    feedback_matrix(fed_back(model, **options), dtype)


def matrix_unconnected(model: Model, dtype: torch.dtype) -> None:
    matrix(model, dtype, connectivity=None)


def matrix_wide_smoothing(model: Model, dtype: torch.dtype) -> None:
    matrix(model, dtype, smoothing_std=WIDE_STD)


def refinement(model: Model, dtype: torch.dtype) -> None:
    pamr(
        empty(BATCH, 3, model.image, model.image, dtype=dtype),
        empty(BATCH, QUERIES, model.image, model.image, dtype=dtype),
        implementation="triton",
    )


def from_logits(model: Model, dtype: torch.dtype) -> None:
    patch_labels(
        empty(BATCH, QUERIES, *model.grid, dtype=dtype),
        empty(BATCH, 3, model.image, model.image, dtype=dtype),
        patch_size=(model.patch, model.patch),
        threshold=0.1,
        implementation="triton",
    )


def from_encoder(model: Model, dtype: torch.dtype) -> None:
    """Similarities are float32 whatever the tower computes in."""
    patch_labels(
        empty(BATCH, QUERIES, *model.grid, dtype=torch.float32),
        empty(BATCH, 3, model.image, model.image, dtype=dtype),
        patch_size=(model.patch, model.patch),
        threshold=0.1,
        implementation="triton",
    )


def whole_image(model: Model, dtype: torch.dtype) -> None:
    upsample_argmax(
        empty(1, QUERIES, *model.grid, dtype=dtype),
        OUTPUT,
        through=(model.image, model.image),
        implementation="triton",
    )


def stitched_windows(model: Model, dtype: torch.dtype) -> None:
    upsample_argmax(
        empty(1, QUERIES, model.image, model.image, dtype=dtype), OUTPUT, implementation="triton"
    )


def merged_names(model: Model, dtype: torch.dtype) -> None:
    """Classes with several names each."""
    upsample_argmax(
        empty(1, QUERIES, *model.grid, dtype=dtype),
        OUTPUT,
        query_to_class=empty(QUERIES, dtype=torch.int64),
        through=(model.image, model.image),
        implementation="triton",
    )


def refined(model: Model, dtype: torch.dtype) -> None:
    upsample_argmax(
        empty(1, QUERIES, *model.grid, dtype=dtype),
        OUTPUT,
        guide=empty(1, 3, *OUTPUT, dtype=dtype),
        refine_iterations=10,
        implementation="triton",
    )


def features_768(model: Model, dtype: torch.dtype) -> None:
    """DINO's ViT-B."""
    proxy(model, dtype, 768)


def features_1024(model: Model, dtype: torch.dtype) -> None:
    """DINOv2's ViT-L."""
    proxy(model, dtype, 1024)


def features_fed_back(model: Model, dtype: torch.dtype, **options: Any) -> None:
    """DINO's ViT-B, with the semantic feedback of ResCLIP's second pass."""
    labels = empty(BATCH, 28, 28, dtype=torch.int64)
    feedback = semantic_feedback(labels, implementation="triton", **options)
    proxy(model, dtype, 768, feedback=feedback)


def features_unconnected(model: Model, dtype: torch.dtype) -> None:
    features_fed_back(model, dtype, connectivity=None)


def features_wide_smoothing(model: Model, dtype: torch.dtype) -> None:
    features_fed_back(model, dtype, smoothing_std=WIDE_STD)


def proxy(
    model: Model, dtype: torch.dtype, channels: int, feedback: SemanticFeedback | None = None
) -> None:
    proxy_attention(
        empty(BATCH, channels, 28, 28, dtype=dtype),
        attention_tensors(model, dtype)[2][:, :, 1:],
        grid=model.grid,
        feedback=feedback,
        implementation="triton",
    )


# The usual case of each op first. A kernel is listed under the first op that launches it: those that others build on
# come first.
OPS: dict[str, tuple[Callable[[Model, torch.dtype], None], ...]] = {
    "semantic_feedback": (
        *(prefix, line, component),
        *(matrix, matrix_unconnected, matrix_wide_smoothing),
    ),
    "residual_attention": (
        *(pass_1, pass_2, one_pass, one_pass_unconnected, one_pass_wide_smoothing),
        *(
            sclip,
            plain,
            large_grid,
            without_cls,
            within_window,
            window_alone,
            projected,
            neighbours_alone,
        ),
    ),
    "pamr": (refinement,),
    "patch_labels": (from_logits, from_encoder),
    "upsample_argmax": (whole_image, stitched_windows, merged_names, refined),
    "proxy_attention": (
        *(features_768, features_1024),
        *(features_fed_back, features_unconnected, features_wide_smoothing),
    ),
}


def standard_calls(ops: Collection[str], *, quick: bool = False) -> Iterator[Call]:
    """Every case of these ops for every model and dtype; with `quick` for a few pairs of them."""
    for op in ops:
        for case in OPS[op]:
            pairs = QUICK_FIRST if case in (OPS[op][0], one_pass) else QUICK_OTHERS
            for model in MODELS:
                for dtype, short in DTYPES.items():
                    if not quick or (model.name, short) in pairs:
                        name = case.__name__.replace("_", " ")
                        yield Call(op, name, model.name, short, partial(case, model, dtype))
