"""Shapes without values: encoders and ops on the meta device."""

from __future__ import annotations

import pytest
import torch
from method_support import colours, small_tower, text

from resclip import DenseEncoder
from resclip.methods.catalogue import BASES, find_method
from resclip_kernels import residual_attention


@pytest.mark.parametrize("base", BASES)
@pytest.mark.filterwarnings("ignore::resclip.errors.UnknownChannelsWarning")
def test_every_base_gives_its_shapes(base: str, seed: int) -> None:
    torch.manual_seed(seed)
    method = find_method(base + ("+rcs+sfr" if BASES[base].has_score else "+rcs"))
    visual, pixels, queries = small_tower(layers=3), torch.randn(2, 3, 64, 96), text(4, 32)
    found = []
    for device in ("cpu", "meta"):
        proxy = colours if base == "proxyclip" else None
        dense = DenseEncoder(visual.to(device), base, method.rcs, method.sfr, proxy=proxy)
        features = dense(pixels.to(device), queries.to(device) if dense.sfr else None)
        results = (features.patches, features.cls, features.feedback_labels)
        found.append([None if one is None else (one.shape, one.dtype) for one in results])
        assert features.patches.device.type == device
    assert found[0] == found[1]


def test_a_model_that_never_had_values_will_do() -> None:
    with torch.device("meta"):
        dense = DenseEncoder(small_tower())
    assert dense(torch.empty(3, 3, 48, 160, device="meta")).patches.shape == (3, 3, 10, 32)


def test_an_op_takes_no_time_for_any_size() -> None:
    """A map of it would hold 10^12 numbers; an implementation that is named runs, so that its memory can be counted."""
    heads = torch.empty(1, 12, 1000 * 1000, 64, device="meta")
    output, cross_layer = residual_attention(
        heads, heads, heads, grid=(1000, 1000), implementation="auto"
    )
    assert output.shape == heads.shape
    assert output.is_meta
    assert cross_layer is None
