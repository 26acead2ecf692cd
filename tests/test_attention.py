"""Attention maps on request: they are what the forward attends with."""

from __future__ import annotations

import pytest
import torch
from method_support import colours, make, small_tower, text
from torch import Tensor

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
