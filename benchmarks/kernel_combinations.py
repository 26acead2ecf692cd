"""Calls of every op over its options, in combinations that cover any few of them, for kernels to be lowered.

A kernel's code is chosen at compile time by constants, most of them flags, and a fault may need two or three of them
together: a function that returns None in one branch, or a tuple of other types. Triton finds such faults when it makes
its first representation of a kernel (TTIR), which takes a fraction of the time of machine code.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.cubin import lower, specialise
from benchmarks.kernel_calls import Call
from resclip_kernels import (
    SemanticFeedback,
    feedback_matrix,
    laplacian_propagation,
    pamr,
    patch_labels,
    proxy_attention,
    residual_attention,
    semantic_feedback,
    similarity_aggregation,
    upsample_argmax,
)
from resclip_kernels.launch import Target, watch

Axes = Mapping[str, Sequence[Any]]

CANDIDATES = 12
"""Random rows of which the one that covers most is taken."""
TARGETS = (Target("cuda", 80), Target("cuda", 90), Target("hip", "gfx942"))

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# One patch, one row, a tall grid, the usual one, more patches than two blocks of anything, and long sequences.
GRIDS = ((1, 1), (1, 9), (11, 3), (14, 14), (24, 24), (64, 64))
# No smoothing, the narrowest, the default, and those that read two and three chunks of columns beside a tile.
STDS = (0.0, 0.3, 5.0, 8.0, 12.0)
FEEDBACK: Axes = {
    "connectivity": ("prefix", "line", "component", None),
    "smoothing_std": STDS,
    "normalise": (True, False),
}
SIZES: Axes = {"dtype": DTYPES, "batch": (1, 2)}
ATTENTION: Axes = {
    "correlation": ("qk", "qq", "kk", "qq+kk", "pp", "pp-sum", "none"),
    "projections": (1, 2, 3),
    "neighbourhood_std": (None, 3.0),
    "window": (None, 1, 7),
    "score_temperature": (1.0, 0.5),
    "feedback": (None, "bits", "no bits", "not normalised"),
    "smoothing_std": STDS,
    "cross": ("none", "one", "four", "given"),
    "cls_tokens": (0, 1),
    "heads": (1, 5, 12),
    "width": (5, 32, 64, 72, 80, 128),
    "grid": GRIDS,
    **SIZES,
}
# No score: no prior, no window and no feedback.
IDENTITY: Axes = {
    name: ATTENTION[name] for name in ("cross", "cls_tokens", "heads", "width", *SIZES)
}
PROXY: Axes = {
    "channels": (1, 130, 768),
    "features_grid": GRIDS,
    "feedback": ATTENTION["feedback"],
    "smoothing_std": STDS,
    "feedback_weight": (0.0, 0.6, 1.0),
    "cut": (None, 0.4),
    "heads": ATTENTION["heads"],
    "width": ATTENTION["width"],
    "grid": GRIDS[:4],
    **SIZES,
}
AGGREGATION: Axes = {
    "tokens": (1, 33, 196, 4096),
    "channels": (1, 130, 768),
    "width": (1, 72, 1024),
    "threshold": (0.0, 0.4),
    "normalise": (True, False),
    "value_dtype": DTYPES,
    **SIZES,
}
PAMR: Axes = {
    "iterations": (0, 1, 10),
    "dilations": ((1,), (2, 5, 9), (8, 16)),
    "planes": (1, 20, 150),
    "channels": (1, 3),
    "size": ((1, 1), (3, 66), (224, 224)),
    **SIZES,
}
PROPAGATION: Axes = {
    "queries": (1, 2, 150),
    "size": ((1, 1), (1, 66), (500, 667)),
    "grid": (1, 80, 224),
    "iterations": (0, 1, 3),
    **SIZES,
}
LABELS: Axes = {
    "queries": (1, 2, 150, 900),
    "grid": GRIDS[:4],
    "patch_size": ((14, 14), (16, 16), (3, 5)),
    "threshold": (0.0, 0.1),
    "refine_iterations": (0, 1, 10),
    "logits": DTYPES,
    **SIZES,
}
UPSAMPLE: Axes = {
    "queries": (1, 2, 150),
    "grid": GRIDS[:4],
    "size": ((1, 1), (30, 41), (336, 448)),
    "through": (None, (7, 9), (224, 224)),
    "merged": (False, True),
    "threshold": (0.0, 0.1),
    "refine_iterations": (0, 2),
    **SIZES,
}


def covering(axes: Axes, strength: int) -> Iterator[dict[str, Any]]:
    """Rows in which any `strength` values of as many axes meet; always the same ones."""
    names = list(axes)
    groups = list(itertools.combinations(range(len(names)), strength))
    wanted = dict.fromkeys(
        (group, values)
        for group in groups
        for values in itertools.product(*(range(len(axes[names[axis]])) for axis in group))
    )
    generator = random.Random(0)

    def met(row: Sequence[int]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        return [
            key for group in groups if (key := (group, tuple(row[at] for at in group))) in wanted
        ]

    while wanted:
        group, values = next(iter(wanted))
        candidates = []
        for _ in range(CANDIDATES):
            row = [generator.randrange(len(axes[name])) for name in names]
            for axis, value in zip(group, values, strict=True):
                row[axis] = value
            candidates.append(row)
        best = max(candidates, key=lambda row: len(met(row)))
        for key in met(best):
            del wanted[key]
        yield {name: axes[name][index] for name, index in zip(names, best, strict=True)}


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def state(
    batch: int, grid: tuple[int, int], form: str | None, smoothing_std: float
) -> SemanticFeedback | None:
    """Feedback by one of the forms of `ATTENTION`."""
    if form is None:
        return None
    return semantic_feedback(
        empty(batch, *grid, dtype=torch.int64),
        connectivity=None if form == "no bits" else "line",
        smoothing_std=smoothing_std,
        normalise=form != "not normalised",
        implementation="triton",
    )


def attend(
    *,
    cross: str,
    cls_tokens: int,
    heads: int,
    width: int,
    dtype: torch.dtype,
    batch: int,
    grid: tuple[int, int] = (5, 7),
    correlation: Any = "identity",
    projections: int = 0,
    feedback: str | None = None,
    smoothing_std: float = 0.0,
    **options: Any,
) -> None:
    tokens = cls_tokens + math.prod(grid)

    def tensors(count: int) -> list[Tensor]:
        """Views of one projection, as a tower makes them."""
        packed = empty(batch, tokens, count, heads, width, dtype=dtype)
        return list(packed.permute(2, 0, 3, 1, 4))

    layers = {"one": 1, "four": 4}.get(cross, 0)
    query, key, value = tensors(3)
    residual_attention(
        query,
        key,
        value,
        grid=grid,
        correlation=correlation,
        projections=tensors(projections) if correlation in ("pp", "pp-sum") else (),
        feedback=state(batch, grid, feedback, smoothing_std),
        cross_layers=[(one[0], one[1]) for one in (tensors(3) for _ in range(layers))],
        cross_layer=tensors(1)[0] if cross == "given" else None,
        implementation="triton",
        **options,
    )


def feed_back(*, grid: tuple[int, int], batch: int, **options: Any) -> None:
    labels = empty(batch, *grid, dtype=torch.int64)
    feedback_matrix(
        semantic_feedback(labels, implementation="triton", **options), implementation="triton"
    )


def attend_by_proxy(
    *,
    channels: int,
    features_grid: tuple[int, int],
    heads: int,
    width: int,
    grid: tuple[int, int],
    dtype: torch.dtype,
    batch: int,
    feedback: str | None,
    smoothing_std: float,
    **options: Any,
) -> None:
    proxy_attention(
        empty(batch, channels, *features_grid, dtype=dtype),
        empty(batch, heads, math.prod(grid), width, dtype=dtype),
        grid=grid,
        feedback=state(batch, features_grid, feedback, smoothing_std),
        implementation="triton",
        **options,
    )


def aggregate(
    *,
    tokens: int,
    channels: int,
    width: int,
    value_dtype: torch.dtype,
    dtype: torch.dtype,
    batch: int,
    **options: Any,
) -> None:
    similarity_aggregation(
        empty(batch, tokens, channels, dtype=dtype),
        empty(batch, tokens, width, dtype=value_dtype),
        implementation="triton",
        **options,
    )


def refine(
    *,
    channels: int,
    planes: int,
    size: tuple[int, int],
    dtype: torch.dtype,
    batch: int,
    **options: Any,
) -> None:
    image, masks = (empty(batch, count, *size, dtype=dtype) for count in (channels, planes))
    pamr(image, masks, implementation="triton", **options)


def label(
    *,
    queries: int,
    grid: tuple[int, int],
    patch_size: tuple[int, int],
    logits: torch.dtype,
    dtype: torch.dtype,
    batch: int,
    **options: Any,
) -> None:
    pixels = (side * patch for side, patch in zip(grid, patch_size, strict=True))
    patch_labels(
        empty(batch, queries, *grid, dtype=logits),
        empty(batch, 3, *pixels, dtype=dtype),
        patch_size=patch_size,
        implementation="triton",
        **options,
    )


def upsample(
    *,
    queries: int,
    grid: tuple[int, int],
    size: tuple[int, int],
    merged: bool,
    refine_iterations: int,
    dtype: torch.dtype,
    batch: int,
    **options: Any,
) -> None:
    upsample_argmax(
        empty(batch, queries, *grid, dtype=dtype),
        size,
        query_to_class=empty(queries, dtype=torch.int64) if merged else None,
        guide=empty(batch, 3, *size, dtype=dtype) if refine_iterations else None,
        refine_iterations=refine_iterations,
        implementation="triton",
        **options,
    )


def propagate(
    *, queries: int, size: tuple[int, int], dtype: torch.dtype, batch: int, **options: Any
) -> None:
    laplacian_propagation(
        empty(batch, queries, *size, dtype=dtype),
        empty(batch, 3, *size, dtype=dtype),
        empty(queries, 64, dtype=dtype),
        implementation="triton",
        **options,
    )


OPS: Mapping[str, tuple[tuple[Callable[..., None], Axes], ...]] = {
    "semantic_feedback": ((feed_back, {**FEEDBACK, "grid": GRIDS, "batch": SIZES["batch"]}),),
    "residual_attention": ((attend, ATTENTION), (attend, IDENTITY)),
    "pamr": ((refine, PAMR),),
    "patch_labels": ((label, LABELS),),
    "upsample_argmax": ((upsample, UPSAMPLE),),
    "proxy_attention": ((attend_by_proxy, PROXY),),
    "similarity_aggregation": ((aggregate, AGGREGATION),),
    "laplacian_propagation": ((propagate, PROPAGATION),),
}


def combined_calls(strength: int) -> Iterator[Call]:
    """A call a row, for every op."""
    for op, forms in OPS.items():
        for function, axes in forms:
            for row in covering(axes, strength):
                case = ", ".join(f"{name}={value}" for name, value in row.items())
                dtype = str(row.get("dtype", "")).removeprefix("torch.")
                yield Call(op, case, "-", dtype, partial(function, **row))


def lower_all(calls: Iterable[Call]) -> tuple[int, list[str]]:
    """(Number of different kernels that these calls launch, what is wrong with those that cannot be lowered).

    The targets take turns: they differ in the shapes of tiles, and else in what becomes of the representation.
    """
    lowered: set[str] = set()
    problems = []
    for call, target in zip(calls, itertools.cycle(TARGETS)):
        where = f"{call.op} ({call.case})"
        try:
            with watch(execute=False, target=target) as watcher:
                call.run()
        # Whatever the op raises, the others are to be tried.
        except Exception as error:  # noqa: BLE001
            problems.append(f"{where} raises {type(error).__name__}: {error}")
            continue
        for launch in watcher.launches:
            compilation = specialise(launch, target)
            if compilation.lowered_key in lowered:
                continue
            lowered.add(compilation.lowered_key)
            try:
                lower(compilation)
            # Triton's errors have no class of their own; the first one is in the innermost function.
            except Exception as error:  # noqa: BLE001
                cause = f" {error.__cause__}" if error.__cause__ else ""
                name = compilation.kernel.__name__
                problems.append(f"{name} of {where}: {type(error).__name__}: {error}{cause}")
    return len(lowered), problems
