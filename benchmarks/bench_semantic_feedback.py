"""The state of semantic feedback, by connectivity rule and grid."""

from __future__ import annotations

import pytest
import torch

from benchmarks.label_maps import label_map
from resclip_kernels import feedback_matrix, semantic_feedback


@pytest.mark.parametrize("grid", [(14, 14), (28, 28)], ids=str)
@pytest.mark.parametrize("rule", ("prefix", "line", "component"))
@pytest.mark.parametrize("implementation", ("torch", "reference"))
def test_semantic_feedback(
    benchmark, grid: tuple[int, int], rule: str, implementation: str
) -> None:
    benchmark.group = f"semantic_feedback, {rule}, grid {grid}"
    labels = label_map(0, grid=grid, classes=5, blob=4)
    arguments = {"connectivity": rule, "implementation": implementation}
    feedback = benchmark.pedantic(
        semantic_feedback, (labels,), arguments, rounds=5, warmup_rounds=1
    )
    expected = feedback_matrix(semantic_feedback(labels, connectivity=rule))
    torch.testing.assert_close(feedback_matrix(feedback), expected, rtol=2**-9, atol=2**-10)
