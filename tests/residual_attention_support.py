"""How the residual attention's kernel is called and judged in its tests.

Ŝ is rounded to float16, and a float32 sum may fall on the other side of a rounding than a float64 one.
`test_semantic_feedback_triton.py` checks Ŝ itself; here the oracle is given the Ŝ that the kernels form.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from kernel_support import AttentionInputs, attention_inputs, check_budget, kernel_device

from resclip_kernels import SemanticFeedback, residual_attention, semantic_feedback
from resclip_kernels.launch import Launch, watch
from resclip_kernels.ops.residual_attention import ResidualAttentionOutput

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# One whole tile of 32 patches and a masked one; 36 tokens are no multiple of a row block.
GRID = (5, 7)


@pytest.fixture(autouse=True)
def products_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted products sum in one order, as on a GPU, whatever the tile's shape: BLAS's order depends on it.

    Else two tiles that hold the same entry of Ŝ may round it to float16 differently: 3 of 120 runs on 80 patches. And
    as on a GPU a factor's product is added before it is rounded; float64 holds it whole.
    """

    def product(left: np.ndarray, right: np.ndarray, dtype: Any) -> np.ndarray:
        left, right = left.astype(np.float64), right.astype(np.float64)
        total = np.zeros((len(left), right.shape[1]), dtype)
        for k in range(len(right)):
            total = (total + left[:, k, None] * right[k]).astype(dtype)
        return total

    monkeypatch.setattr(np, "matmul", product)


def sample(
    seed: int, grid: tuple[int, int] = GRID, dtype: torch.dtype = torch.float32, **sizes: int
) -> AttentionInputs:
    """Small by default: the interpreter pays for every tile of every head."""
    sizes = {"batch": 1, "heads": 1, "width": 32, "layers": 1, **sizes}
    return attention_inputs(seed, grid=grid, device=kernel_device(), **sizes).to(dtype)


def state(inputs: AttentionInputs, **rules: Any) -> SemanticFeedback:
    """The torch implementation's bits and sums: as good as the kernels', and faster where these are interpreted."""
    return semantic_feedback(inputs.labels, implementation="torch", **rules)


def all_terms(inputs: AttentionInputs, **changes: Any) -> dict[str, Any]:
    feedback = changes["feedback"] if "feedback" in changes else state(inputs)
    return {"neighbourhood_std": 5.0, **changes, "feedback": feedback}


def run(
    inputs: AttentionInputs,
    grid: tuple[int, int] = GRID,
    implementation: str = "triton",
    **arguments: Any,
) -> ResidualAttentionOutput:
    return residual_attention(
        inputs.query,
        inputs.key,
        inputs.value,
        grid=grid,
        implementation=implementation,
        **{"cross_layers": inputs.cross_layers, **arguments},
    )


def judge(inputs: AttentionInputs, grid: tuple[int, int], arguments: dict[str, Any]) -> None:
    """The strict budget, for the sum and for A_c·v."""
    with watch() as watcher:
        got = run(inputs, grid, **arguments)
    assert watcher.names()[-1] == "residual_attention_kernel"
    feedback = arguments.get("feedback")
    if feedback is not None:
        kernels = pytest.importorskip("resclip_kernels.ops.semantic_feedback.triton")
        matrix = kernels.feedback_matrix(feedback, tile_dtype=inputs.query.dtype)
        feedback = dataclasses.replace(feedback, dense=matrix)
        arguments = {**arguments, "feedback": feedback}
    compare(got, inputs, grid, arguments)


def compare(
    got: ResidualAttentionOutput,
    inputs: AttentionInputs,
    grid: tuple[int, int],
    arguments: dict[str, Any],
) -> None:
    """A result against the reference in its own dtype and in float64."""
    plain = run(inputs, grid, "reference", **arguments)
    exact = {**arguments}
    if "projections" in arguments:
        exact["projections"] = [projection.double() for projection in arguments["projections"]]
    oracle = run(inputs.to(torch.float64), grid, "reference", **exact)
    check_budget(got.output, plain.output, oracle.output)
    if inputs.cross_layers:
        check_budget(got.cross_layer, plain.cross_layer, oracle.cross_layer)
    else:
        assert got.cross_layer is None


def only_launch(inputs: AttentionInputs, grid: tuple[int, int] = GRID, **arguments: Any) -> Launch:
    """The attention's launch, not carried out."""
    with watch(execute=False) as watcher:
        run(inputs, grid, **arguments)
    return watcher.launches[-1]
