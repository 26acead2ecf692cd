"""Only what is correct is timed: every op's implementations against the float64 reference, on small shapes.

`python -m benchmarks.gpu.checks OPS` prints the checks of some ops, or with `--json PATH` keeps them as they come. Ops
are checked in processes of their own, since an illegal access ends what a process can do with its device.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.gpu.case import LIBRARY
from benchmarks.gpu.counts import Attention
from benchmarks.gpu.graphs import check_graph
from benchmarks.gpu.inputs import FUSED, Device, text
from benchmarks.gpu.timing import FAILURES, shorten
from benchmarks.reporting import store
from resclip_kernels import (
    AttentionOptions,
    Correlation,
    FeedbackOptions,
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
from resclip_kernels.dispatch import interpreting
from resclip_kernels.first_use import FLOAT32
from resclip_kernels.ops.semantic_feedback import portable as feedback_portable
from resclip_kernels.ops.semantic_feedback import reference as feedback_reference

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Error:
    """The worst element of one output, and what it may be off by."""

    error: float
    allowed: float


@dataclass(frozen=True)
class Check:
    """One op in one dtype, in one way."""

    op: str
    dtype: str
    way: str
    """One of `WAYS`."""
    status: str
    """"ok", "failed" or "skipped"."""
    reason: str = ""
    error: float = 0.0
    """Of the output that comes closest to its budget."""
    allowed: float = 0.0

    def record(self) -> dict[str, Any]:
        """As JSON-able values."""
        return asdict(self)


def budget(got: Tensor, reference: Tensor, oracle: Tensor) -> Error:
    """How far `got` is off the float64 oracle, and twice what its dtype explains; AssertionError where it is more.

    A dtype explains the reference's own error in it, and one rounding of the largest value.
    """
    if got.shape != oracle.shape or got.dtype != reference.dtype:
        raise AssertionError(
            f"expected {tuple(oracle.shape)} {reference.dtype}; got {tuple(got.shape)} {got.dtype}"
        )
    if not torch.isfinite(got).all():
        raise AssertionError(f"{(~torch.isfinite(got)).sum().item()} elements are not finite")
    of_reference = (reference.double() - oracle).abs().max().item()
    rounding = torch.finfo(got.dtype).eps * oracle.abs().max().item()
    error = Error((got.double() - oracle).abs().max().item(), 2 * (of_reference + rounding))
    if error.error > error.allowed:
        raise AssertionError(
            f"worst error {error.error:.3e} exceeds {error.allowed:.3e} = "
            f"2 × (reference {of_reference:.3e} + rounding {rounding:.3e})"
        )
    return error


def check_attention(
    device: Device, dtype: torch.dtype, implementation: str = FUSED
) -> Iterator[Error]:
    """All terms at once, for one score and for two.

    float32 takes Ŝ without its last step: rounding to float16 puts single entries on the other side for any other
    order of summation, which float32's budget sees and float16's does not.
    """
    shape = Attention(batch=2, heads=2, grid=(5, 7), layers=2)
    tensors = device.attention(shape, dtype)
    labels = device.labels(shape.batch, shape.grid)
    normalise = dtype is not torch.float32
    state = semantic_feedback(labels, normalise=normalise, implementation=FUSED)
    exact = feedback_reference.semantic_feedback(
        labels, FeedbackOptions(normalise=normalise), torch.float64
    )
    correlations: tuple[Correlation, ...] = ("kk", "qq+kk")
    for correlation in correlations:
        results = [
            residual_attention(
                *inputs[:3],
                AttentionOptions(grid=shape.grid, correlation=correlation, neighbourhood_std=5.0),
                cross_layers=inputs.cross_layers,
                feedback=feedback,
                implementation=name,
            )
            for inputs, feedback, name in (
                (tensors, state, implementation),
                (tensors, exact, "reference"),
                (tensors.converted(torch.float64), exact, "reference"),
            )
        ]
        yield budget(*(result.output for result in results))
        yield budget(*(required(result.cross_layer) for result in results))


FEEDBACK_RULES: tuple[dict[str, Any], ...] = (
    {"connectivity": None},
    {"smoothing_std": 8.0},
    {"connectivity": "component"},
    {"connectivity": "line"},
)
"""Rules other than the released one."""
FLOAT16_STEP = 2.0**-11
"""Between float16 numbers from 0.5 to 1, the largest that entries of Ŝ have."""


def check_feedback(device: Device, dtype: torch.dtype) -> Iterator[Error]:
    """Bits of connectivity exactly, sums and maxima within budget, Ŝ within one step of float16, by every rule."""
    del dtype  # Labels are integers.
    for grid in ((9, 8), (5, 12)):
        labels = device.labels(2, grid)
        state = semantic_feedback(labels, implementation=FUSED)
        plain = feedback_reference.semantic_feedback(labels, FeedbackOptions())
        exact = feedback_reference.semantic_feedback(labels, FeedbackOptions(), torch.float64)
        for bits, image in zip(required(state.far), labels, strict=True):
            flat = image.flatten()
            expected = (flat[:, None] == flat) & ~feedback_reference.connected(image, "prefix")
            if not torch.equal(feedback_portable.unpack(bits, len(flat)), expected):
                raise AssertionError(f"connectivity of a grid of {grid} differs from the path test")
        yield budget(state.row_sums, plain.row_sums, exact.row_sums)
        yield budget(state.maximum, plain.maximum, exact.maximum)
        yield matrix_error(feedback_matrix(state), required(exact.dense))
    labels = device.labels(2, (4, 5) if interpreting() else (9, 8))
    for rule in FEEDBACK_RULES:
        matrices = (
            feedback_matrix(semantic_feedback(labels, implementation=name, **rule))
            for name in (FUSED, "reference")
        )
        yield matrix_error(*matrices)


def matrix_error(got: Tensor, oracle: Tensor) -> Error:
    """How far an entry of Ŝ is off; AssertionError where it is more than one step of float16."""
    off = (got.double() - oracle.double()).abs().max().item()
    if not off <= FLOAT16_STEP:  # NaN comes here too.
        raise AssertionError(
            f"an entry of the matrix is off by {off:.1e}: more than {FLOAT16_STEP:.1e}"
        )
    return Error(off, FLOAT16_STEP)


def check_pamr(device: Device, dtype: torch.dtype) -> Iterator[Error]:
    """Planes with columns far from both edges, and planes narrower than the widest ring."""
    sizes = ((9, 11),) if interpreting() else ((70, 131), (37, 45))
    for size in sizes:
        image = device.images(2, size, dtype)
        masks = device.normal(2, 3, *size, dtype=dtype)
        arguments: dict[str, Any] = {"iterations": 2 if interpreting() else 10}
        yield budget(
            pamr(image, masks, implementation=FUSED, **arguments),
            pamr(image, masks, implementation="reference", **arguments),
            pamr(image.double(), masks.double(), implementation="reference", **arguments),
        )


def check_patch_labels(device: Device, dtype: torch.dtype) -> Iterator[Error]:
    """The same label wherever no rounding can change a patch's vote; that is nearly everywhere."""
    rows, columns, patch, iterations = (2, 3, 4, 1) if interpreting() else (12, 16, 8, 10)
    image = device.images(2, (patch * rows, patch * columns), dtype)
    logits = 4 * device.logits(2, 6, (rows, columns), dtype)
    arguments: dict[str, Any] = {
        "patch_size": (patch, patch),
        "refine_iterations": iterations,
    }
    got = patch_labels(logits, image, implementation=FUSED, **arguments)
    oracle = patch_labels(logits.double(), image.double(), implementation="reference", **arguments)
    firm = firm_patches(logits, image, patch, iterations, dtype)
    yield agreement(got, oracle, firm)


def firm_patches(
    logits: Tensor, image: Tensor, patch: int, iterations: int, dtype: torch.dtype
) -> Tensor:
    """(B, h, w): patches whose most frequent label stays so if every doubtful pixel changes sides."""
    planes = torch.nn.functional.interpolate(
        logits.double(), size=image.shape[2:], mode="bilinear", align_corners=False
    )
    planes = pamr(image.double(), planes, iterations=iterations, implementation="reference")
    queries = planes.shape[1]
    doubtful = ~clear(planes, dtype)
    votes = torch.nn.functional.one_hot(planes.argmax(dim=1), queries).permute(0, 3, 1, 2)
    counts = torch.nn.functional.avg_pool2d(votes.double(), patch) * patch**2
    first, second = counts.topk(2, dim=1).values.unbind(1)
    unsure = torch.nn.functional.avg_pool2d(doubtful[:, None].double(), patch)[:, 0] * patch**2
    return first - second > 2 * unsure


def check_upsample(device: Device, dtype: torch.dtype) -> Iterator[Error]:
    """Probabilities within budget; the same label wherever the best two queries are clearly apart."""
    logits = 4 * device.logits(2, 7, (5, 6), dtype)
    size = (40, 61)
    labels, probability = upsample_argmax(logits, size, implementation=FUSED)
    plain = upsample_argmax(logits, size, implementation="reference")
    oracle = upsample_argmax(logits.double(), size, implementation="reference")
    yield budget(probability, plain[1].to(probability.dtype), oracle[1])
    planes = torch.nn.functional.interpolate(
        logits.double(), size=size, mode="bilinear", align_corners=False
    )
    yield agreement(labels, oracle[0], clear(planes, dtype))


def clear(planes: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, H, W): pixels whose best two queries differ by more than rounding can undo.

    That is 4 roundings of the largest logit in the planes' own dtype, and 16 in float32, in which sums are formed.
    """
    first, second = planes.topk(2, dim=1).values.unbind(1)
    relative = 4 * torch.finfo(dtype).eps + 16 * torch.finfo(torch.float32).eps
    return first - second > relative * planes.abs().max()


def agreement(got: Tensor, oracle: Tensor, compared: Tensor) -> Error:
    """AssertionError unless labels agree wherever they are compared, at no fewer than 30 % of the positions.

    bfloat16's rounding leaves a third of the patches in doubt; the other dtypes hardly any.
    """
    share = compared.double().mean().item()
    wrong = (got != oracle)[compared].sum().item()
    if wrong or share < 0.3:
        raise AssertionError(
            f"{wrong} labels differ, {share:.0%} of the positions could be compared"
        )
    return Error(0.0, 0.0)


def check_proxy(device: Device, dtype: torch.dtype) -> Iterator[Error]:
    """A finer and an equal grid, one of them with a cut, on features whose map is nowhere near its jump."""
    for fine, grid, cut in (((9, 7), (4, 5), None), ((6, 6), (6, 6), 0.6)):
        features = device.features(2, 48, fine, dtype)
        value = device.normal(2, 2, grid[0] * grid[1], 64, dtype=dtype)
        arguments: dict[str, Any] = {"grid": grid, "cut": cut}
        yield budget(
            proxy_attention(features, value, implementation=FUSED, **arguments),
            proxy_attention(features, value, implementation="reference", **arguments),
            proxy_attention(
                features.double(), value.double(), implementation="reference", **arguments
            ),
        )


def check_aggregation(device: Device, dtype: torch.dtype) -> Iterator[Error]:
    """Weights that add up to 1 and sums, on features that are nowhere near the threshold."""
    features = device.features(2, 48, (9, 7), dtype).flatten(2).mT
    value = device.normal(2, 63, 70, dtype=dtype)
    for normalise in (True, False):
        arguments: dict[str, Any] = {"threshold": 0.6, "normalise": normalise}
        yield budget(
            similarity_aggregation(features, value, implementation=FUSED, **arguments),
            similarity_aggregation(features, value, implementation="reference", **arguments),
            similarity_aggregation(
                features.double(), value.double(), implementation="reference", **arguments
            ),
        )


def check_propagation(device: Device, dtype: torch.dtype) -> Iterator[Error]:
    """A picture that is pooled, with a remainder, and one that is not."""
    iterations = 2 if interpreting() else 25
    for queries, size, grid in ((6, (70, 131), 20), (3, (9, 11), 80)):
        rows = text(device, queries, 32).to(dtype)
        logits = device.logits(2, queries, size, dtype)
        guide = device.images(2, size, dtype)
        tensors = (logits, guide, rows)
        arguments: dict[str, Any] = {"grid": grid, "iterations": iterations}
        yield budget(
            laplacian_propagation(*tensors, implementation=FUSED, **arguments),
            laplacian_propagation(*tensors, implementation="reference", **arguments),
            laplacian_propagation(
                *(tensor.double() for tensor in tensors), implementation="reference", **arguments
            ),
        )


def required(tensor: Tensor | None) -> Tensor:
    """AssertionError where an output is missing."""
    if tensor is None:
        raise AssertionError("expected an output; got None")
    return tensor


CHECKS: dict[str, tuple[Callable[..., Iterator[Error]], tuple[str, ...]]] = {
    "residual_attention": (check_attention, ("fp32", "fp16", "bf16")),
    "semantic_feedback": (check_feedback, ("int64",)),
    "pamr": (check_pamr, ("fp32", "fp16", "bf16")),
    "patch_labels": (check_patch_labels, ("fp32", "fp16", "bf16")),
    "upsample_argmax": (check_upsample, ("fp32", "fp16", "bf16")),
    "proxy_attention": (check_proxy, ("fp32", "fp16", "bf16")),
    "similarity_aggregation": (check_aggregation, ("fp32", "fp16", "bf16")),
    "laplacian_propagation": (check_propagation, ("fp32", "fp16", "bf16")),
}
IEEE, GRAPH = "ieee", "graph"
WAYS = (FUSED, IEEE, LIBRARY, GRAPH)
"""The kernels; the same with float32 products outside matrix units; PyTorch's own; the kernels in a CUDA graph."""
# Their products of bfloat16 tiles come out wrong in Triton's interpreter, and only there.
PRODUCTS = ("residual_attention", "proxy_attention", "similarity_aggregation")


def planned(op: str, *, kernels_alone: bool = False) -> list[tuple[str, str]]:
    """(dtype, way) of every check of an op; graphs last, since a capture that fails may end the process's use."""
    dtypes = CHECKS[op][1]
    plan = [(dtype, FUSED) for dtype in dtypes]
    if op in (*PRODUCTS, "semantic_feedback"):
        plan.append((dtypes[0], IEEE))
    if kernels_alone:
        return plan
    if op == "residual_attention":
        plan += [(dtype, LIBRARY) for dtype in dtypes]
    return [*plan, ("int64" if op == "semantic_feedback" else "fp16", GRAPH)]


def run_check(op: str, dtype: str, way: str, device: Device) -> Check:
    """One op in one dtype, in one way."""
    if interpreting() and dtype == "bf16" and way == FUSED and op in PRODUCTS:
        reason = "bfloat16 products are wrong in Triton's interpreter"
        return Check(op, dtype, way, "skipped", reason)
    if interpreting() and way == IEEE:
        return Check(op, dtype, way, "skipped", "Triton's interpreter forms all products so")
    try:
        errors = list(errors_of(op, way, device, DTYPES.get(dtype, torch.float32)))
    except FAILURES as error:
        return Check(op, dtype, way, "failed", shorten(error))
    worst = max(errors, key=lambda each: each.error / each.allowed if each.allowed else 0.0)
    return Check(op, dtype, way, "ok", "", worst.error, worst.allowed)


def errors_of(op: str, way: str, device: Device, dtype: torch.dtype) -> Iterator[Error]:
    """The errors of every output; AssertionError where one is over its budget."""
    function, _ = CHECKS[op]
    if way == GRAPH:
        check_graph(op, device, dtype)
        yield Error(0.0, 0.0)
    elif way == LIBRARY:
        yield from function(device, dtype, LIBRARY)
    else:
        with mock.patch.dict(os.environ, {FLOAT32: "ieee"} if way == IEEE else {}):
            yield from function(device, dtype)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 where every check of these ops holds, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.checks")
    parser.add_argument("ops", nargs="+", choices=CHECKS)
    parser.add_argument("--json", type=Path, help="where the checks are kept as they come")
    parser.add_argument(
        "--kernels-alone", action="store_true", help="no CUDA graphs, and nothing of PyTorch's own"
    )
    options = parser.parse_args(arguments)
    device = Device("cpu" if interpreting() else "cuda")
    results: list[Check] = []
    with torch.no_grad():
        for op in options.ops:
            for dtype, way in planned(op, kernels_alone=options.kernels_alone):
                result = run_check(op, dtype, way, device)
                results.append(result)
                numbers = f"worst {result.error:.1e} of {result.allowed:.1e}"
                text = f"{result.status:7} {op} {dtype}, {way}: {result.reason or numbers}"
                print(text, flush=True)
                if options.json:
                    records = [each.record() for each in results]
                    store(options.json, {"checks": records})
    return int(any(result.status == "failed" for result in results))


if __name__ == "__main__":
    sys.exit(main())
