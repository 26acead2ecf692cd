"""Attention maps on request: they are what the forward attends with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from method_support import colours, make, small_tower, text
from torch import Tensor, nn

from resclip import DenseEncoder
from resclip.encoder.final_block import resize_heads
from resclip.methods.catalogue import BASES, METHODS

# A grid that is not square: 3 × 4 patches, and 4 × 5 cells of 12 pixels for the proxy.
SIZE = (48, 64)


def attended(dense: DenseEncoder, pixels: Tensor, queries: Tensor) -> Tensor:
    """What the forward's last pass attended to, before the output projection."""
    kept = []
    project_out = dense.tower.project_out

    def keep(block, heads: Tensor) -> Tensor:
        kept.append(heads)
        return project_out(block, heads)

    dense.tower.project_out = keep
    dense(pixels, queries)
    del dense.tower.project_out
    return kept[-1]


@pytest.mark.parametrize(
    "name",
    # RCS and SFR change a map by the op, whatever the base: each base plain and with both, three with one of them,
    # of which MaskCLIP's has no score and ProxyCLIP's is another op's.
    [
        name
        for name, method in METHODS.items()
        if (
            method.base in ("maskclip", "sclip", "proxyclip")
            or (method.rcs is None) == (method.sfr is None)
        )
        # A method of several streams or blocks has no one map.
        and not (BASES[method.base].pieces.repairs or BASES[method.base].pieces.fusion)
        and BASES[method.base].pieces.path is None
    ],
)
def test_the_final_map_gathers_what_the_forward_gathers(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    pixels, queries = torch.randn(2, 3, *SIZE), text(4, 32)
    dense, method = make(small_tower(), METHODS[name]), METHODS[name]
    maps = dense.attention(pixels, text=queries)
    patches = 20 if method.base == "proxyclip" else 12
    assert maps.final.shape[2:] == (patches, 3, 4)
    assert maps.base.shape[2:] == (patches, *((4, 5) if method.base == "proxyclip" else (3, 4)))
    assert (maps.cross_layer is None) == (method.rcs is None)
    assert (maps.feedback is None) == (method.sfr is None)
    mass = {"sclip": 2.0, "cliptrase": 3.0}.get(method.base, 1.0)
    if method.rcs is not None:
        mass = method.rcs.temperature * ((1 - method.rcs.weight) * mass + method.rcs.weight)
    # The rest of a row is [CLS]'s share.
    cls_share = mass - maps.final.sum(dim=(-2, -1))  # [B, A, R]
    assert (cls_share > -1e-5).all()
    value = dense.run_blocks(pixels).value
    gathered = maps.final.flatten(-2) @ value[:, :, 1:] + cls_share.unsqueeze(-1) * value[:, :, :1]
    expected = attended(dense, pixels, queries)[:, :, -patches:]
    torch.testing.assert_close(gathered, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ("resclip", "proxyclip+rcs+sfr"))
def test_one_patch_is_its_row_of_all(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    pixels, queries = torch.randn(1, 3, *SIZE), text(4, 32)
    dense = make(small_tower(), METHODS[name])
    every = dense.attention(pixels, text=queries).planes()
    one = dense.attention(pixels, (1, 2), queries).planes()
    columns = 5 if name.startswith("proxyclip") else 4
    assert list(one) == ["base", "cross-layer", "feedback", "final"]
    for key, planes in one.items():
        assert planes.shape[1] == 1
        torch.testing.assert_close(planes[:, 0], every[key][:, columns + 2])


def test_the_forward_is_not_changed(seed: int) -> None:
    torch.manual_seed(seed)
    pixels, queries = torch.randn(1, 3, *SIZE), text(4, 32)
    dense = make(small_tower(), METHODS["resclip"])
    before = dense(pixels, queries).patches
    dense.attention(pixels, (0, 0), queries)
    assert torch.equal(dense(pixels, queries).patches, before)


def test_resized_rows_are_resized_results(seed: int) -> None:
    """What the docstring of ProxyCLIP's RCS says: to resize A_c·v is to resize the rows of A_c."""
    torch.manual_seed(seed)
    rows, value = torch.rand(1, 1, 12, 12), torch.randn(1, 1, 12, 8)
    first = resize_heads(rows @ value, (3, 4), (4, 5))
    second = resize_heads(rows, (3, 4), (4, 5)) @ value
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("query", [(3, 0), (0, 4), (-1, 0)])
def test_a_patch_outside_the_grid_is_refused(query: tuple[int, int]) -> None:
    dense = DenseEncoder(small_tower(), base="clip")
    with pytest.raises(ValueError, match="in the grid of 3 × 4|at least 0 each"):
        dense.attention(torch.zeros(1, 3, *SIZE), query)


def test_a_proxys_grid_counts_where_there_is_a_proxy() -> None:
    dense = DenseEncoder(small_tower(), base="proxyclip", proxy=colours)
    assert dense.attention(torch.rand(1, 3, *SIZE), (3, 4)).base.shape == (1, 1, 1, 4, 5)


def plain_rows(tower: nn.Module, pixels: Tensor, layer: int) -> Tensor:
    """softmax(q kᵀ/√d) of an open_clip tower's block, by hand: (B, A, L, L)."""
    block = tower.transformer.resblocks[layer - 1]
    kept = []
    handle = block.ln_1.register_forward_hook(lambda _, __, output: kept.append(output))
    tower(pixels)
    handle.remove()
    attention = block.attn
    query, key, _ = F.linear(kept[0], attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
    query, key = (
        part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in (query, key)
    )
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(dim=-1)


@pytest.mark.parametrize("name", ["clip", "resclip", "proxyclip+rcs"])
def test_a_layer_s_own_maps_are_its_softmax_by_hand(name: str, seed: int) -> None:
    """Of every block, the final one too, by one head or by all, whatever the method does in the final block."""
    torch.manual_seed(seed)
    pixels, tower = torch.randn(2, 3, 64, 64), small_tower()
    dense = make(tower, METHODS[name])
    depth = len(tower.transformer.resblocks)
    for layer in range(1, depth + 1):
        with torch.no_grad():
            wanted = plain_rows(tower, pixels, layer)[:, :, 1:, 1:].unflatten(-1, (4, 4))
        came = dense.attention(pixels, layer=layer)
        torch.testing.assert_close(came.values, wanted, rtol=1e-4, atol=1e-5)
        (plane,) = came.planes().values()
        torch.testing.assert_close(plane, wanted.mean(dim=1), rtol=1e-4, atol=1e-5)
        one = dense.attention(pixels, (2, 1), layer=layer, head=2)
        assert list(one.planes()) == [f"layer {layer}, head 2"]
        torch.testing.assert_close(one.values, wanted[:, 1:2, 9:10], rtol=1e-4, atol=1e-5)


def test_one_head_of_the_method_s_maps(seed: int) -> None:
    torch.manual_seed(seed)
    pixels, queries = torch.randn(1, 3, *SIZE), text(4, 32)
    dense = make(small_tower(), METHODS["resclip"])
    every = dense.attention(pixels, (1, 2), queries)
    one = dense.attention(pixels, (1, 2), queries, head=2)
    assert torch.equal(one.final, every.final[:, 1:2])
    assert one.feedback is not None
    assert every.feedback is not None
    assert torch.equal(one.feedback, every.feedback)
    assert not torch.equal(one.planes()["final"], every.planes()["final"])


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"layer": 0}, "layer must be a number from 1 to 6"),
        ({"layer": 7}, "layer must be a number from 1 to 6, for the tower has 6 layers; got 7"),
        ({"layer": 2, "head": 3}, "head must be a number from 1 to 2, for the tower has 2 heads"),
        ({"head": 0}, "head must be a number from 1 to 2"),
        ({"layer": 2, "query": (3, 0)}, "in the grid of 3 × 4"),
    ],
)
def test_a_layer_or_head_that_there_is_not_is_refused(chosen: dict[str, Any], words: str) -> None:
    dense = DenseEncoder(small_tower(), base="clip")
    with pytest.raises(ValueError, match=words):
        dense.attention(torch.zeros(1, 3, *SIZE), **chosen)


def test_a_layer_can_be_looked_at_where_no_one_map_is_the_method_s() -> None:
    dense = make(small_tower(), METHODS["gem"])
    with pytest.raises(ValueError, match="no one map"):
        dense.attention(torch.zeros(1, 3, *SIZE), (0, 0))
    assert dense.attention(torch.zeros(1, 3, *SIZE), (0, 0), layer=2).values.shape[2:] == (1, 3, 4)
