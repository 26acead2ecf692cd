"""Whether every op can be captured in a CUDA graph and gives, replayed on other inputs, what a call gives on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.counts import Attention
from benchmarks.gpu.inputs import FUSED, Device, text
from resclip_kernels import (
    laplacian_propagation,
    pamr,
    patch_labels,
    proxy_attention,
    residual_attention,
    semantic_feedback,
    similarity_aggregation,
    upsample_argmax,
)


@dataclass(frozen=True)
class Call:
    """An op on inputs that stay where they are."""

    inputs: tuple[Tensor, ...]
    """Each with two images at least."""
    run: Callable[[], Any]


def attention_call(device: Device, dtype: torch.dtype) -> Call:
    """All terms at once; the state of feedback is formed in the graph too."""
    shape = Attention(batch=2, heads=2, grid=(3, 4), layers=2)
    tensors, labels = device.attention(shape, dtype), device.labels(2, shape.grid)

    def run() -> tuple[Tensor | None, ...]:
        return residual_attention(
            *tensors[:3],
            grid=shape.grid,
            neighbourhood_std=5.0,
            feedback=semantic_feedback(labels, implementation=FUSED),
            cross_layers=tensors.cross_layers,
            implementation=FUSED,
        )

    return Call((*tensors[:3], labels), run)


def feedback_call(device: Device, dtype: torch.dtype) -> Call:
    """The state of the released rule."""
    del dtype  # Labels are integers.
    labels = device.labels(2, (5, 4))

    def run() -> tuple[Tensor | None, ...]:
        state = semantic_feedback(labels, implementation=FUSED)
        return state.far, state.row_sums, state.maximum

    return Call((labels,), run)


def pamr_call(device: Device, dtype: torch.dtype) -> Call:
    """A few planes."""
    image, masks = device.images(2, (9, 11), dtype), device.normal(2, 3, 9, 11, dtype=dtype)
    return Call((image, masks), lambda: pamr(image, masks, iterations=1, implementation=FUSED))


def patch_labels_call(device: Device, dtype: torch.dtype) -> Call:
    """Logits of a few queries, refined."""
    image, logits = device.images(2, (8, 12), dtype), device.logits(2, 3, (2, 3), dtype)
    options: dict[str, Any] = {"patch_size": (4, 4), "refine_iterations": 1}
    return Call(
        (image, logits), lambda: patch_labels(logits, image, implementation=FUSED, **options)
    )


def upsample_call(device: Device, dtype: torch.dtype) -> Call:
    """Logits of a few queries."""
    logits = device.logits(2, 3, (5, 6), dtype)
    return Call((logits,), lambda: upsample_argmax(logits, (20, 31), implementation=FUSED))


def proxy_call(device: Device, dtype: torch.dtype) -> Call:
    """A finer grid."""
    features = device.features(2, 48, (6, 5), dtype)
    value = device.normal(2, 2, 12, 64, dtype=dtype)
    return Call(
        (features, value),
        lambda: proxy_attention(features, value, grid=(4, 3), implementation=FUSED),
    )


def aggregation_call(device: Device, dtype: torch.dtype) -> Call:
    """Tokens of a few kinds."""
    features = device.features(2, 48, (6, 5), dtype).flatten(2).mT.contiguous()
    value = device.normal(2, 30, 70, dtype=dtype)
    return Call(
        (features, value),
        lambda: similarity_aggregation(features, value, threshold=0.6, implementation=FUSED),
    )


def propagation_call(device: Device, dtype: torch.dtype) -> Call:
    """A few planes, pooled."""
    logits, guide = device.logits(2, 3, (21, 31), dtype), device.images(2, (21, 31), dtype)
    rows = text(device, 3, 32).to(dtype)
    return Call(
        (logits, guide),
        lambda: laplacian_propagation(
            logits, guide, rows, grid=8, iterations=2, implementation=FUSED
        ),
    )


CALLS: dict[str, Callable[[Device, torch.dtype], Call]] = {
    "residual_attention": attention_call,
    "semantic_feedback": feedback_call,
    "pamr": pamr_call,
    "patch_labels": patch_labels_call,
    "upsample_argmax": upsample_call,
    "proxy_attention": proxy_call,
    "similarity_aggregation": aggregation_call,
    "laplacian_propagation": propagation_call,
}


def check_graph(op: str, device: Device, dtype: torch.dtype) -> None:
    """AssertionError where a replay differs at all from a call; without a GPU the call stands in for the graph."""
    call = CALLS[op](device, dtype)
    replay = captured(call.run) if device.name == "cuda" else lambda: outputs_of(call.run())
    for tensor in call.inputs:
        tensor.copy_(tensor.flip(0))
    expected = [None if output is None else output.clone() for output in outputs_of(call.run())]
    for number, (came, wanted) in enumerate(zip(replay(), expected, strict=True)):
        same = came is wanted if came is None or wanted is None else torch.equal(came, wanted)
        if not same:
            raise AssertionError(f"output {number} of a replayed graph differs from a call's")


def outputs_of(result: Any) -> tuple[Tensor | None, ...]:
    """An op's outputs as a tuple."""
    return (result,) if isinstance(result, Tensor) else tuple(result)


def captured(run: Callable[[], Any]) -> Callable[[], tuple[Tensor | None, ...]]:
    """Replays the call and returns its outputs.

    The call runs on a side stream before, where what is compiled or copied once is done.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = outputs_of(run())

    def replay() -> tuple[Tensor | None, ...]:
        graph.replay()
        torch.cuda.synchronize()
        return outputs

    return replay
