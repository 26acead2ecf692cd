"""torch.compile with dynamic sizes: one graph, made once, for images of several sizes."""

from __future__ import annotations

import pytest
import torch
from method_support import small_tower, text
from torch import fx

from resclip import DenseEncoder
from resclip.methods.catalogue import find_method


@pytest.mark.parametrize("name", ["naclip+rcs", pytest.param("resclip", marks=pytest.mark.slow)])
def test_one_graph_serves_every_size(name: str, seed: int) -> None:
    """No break, and none of it is compiled again for another size or number of images."""
    torch.manual_seed(seed)
    method = find_method(name)
    dense = DenseEncoder(small_tower(layers=2), method.base, method.rcs, method.sfr)
    graphs = []

    def count(graph: fx.GraphModule, inputs: list[torch.Tensor]) -> fx.GraphModule:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(dense, backend=count, dynamic=True, fullgraph=True)
    queries = text(3, 32) if dense.sfr else None
    for images, size in ((2, (48, 80)), (3, (96, 32)), (2, (80, 112))):
        pixels = torch.randn(images, 3, *size)
        came, expected = compiled(pixels, queries), dense(pixels, queries)
        torch.testing.assert_close(came.patches, expected.patches, rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1
