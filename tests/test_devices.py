"""Devices without float64, such as Apple's GPUs: nothing that lies on one is ever computed in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from method_support import colours
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary
from toys import toy_segmenter

from resclip import RCS, SFR, DenseEncoder
from resclip.methods.catalogue import METHODS


class WithoutFloat64(TorchDispatchMode):
    """Tensors on a stand-in for such a device: those given, and whatever is computed from them."""

    def __init__(self, *tensors: Tensor) -> None:
        super().__init__()
        self.on_device = WeakTensorKeyDictionary()
        for tensor in tensors:
            self.on_device[tensor] = True
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        came = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(tensor in self.on_device for tensor in came):
            self.operations += 1
            for tensor in (*came, *(one for one in tree_leaves(result) if isinstance(one, Tensor))):
                if tensor.dtype == torch.float64:
                    raise TypeError(f"{func} in float64 on a device that has none")
                self.on_device[tensor] = True
        return result


def test_the_stand_in_refuses_float64() -> None:
    tensor = torch.zeros(2)
    with WithoutFloat64(tensor), pytest.raises(TypeError, match="float64 on a device"):
        (tensor + 1).double()


# Each base with all that it takes, and alone.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if method.rcs else pytest.mark.slow)
        for name, method in METHODS.items()
        if (method.rcs is None) == (method.sfr is None) or name == "maskclip+rcs"
    ],
)
def test_no_method_needs_float64(name: str) -> None:
    method = METHODS[name]
    sfr = method.sfr and SFR(connectivity="line", refine_iterations=1)
    segmenter = toy_segmenter(window=32, stride=16, refine_iterations=1)
    encoder = DenseEncoder(
        segmenter.encoder.tower,
        method.base,
        method.rcs and RCS(),
        sfr,
        proxy=colours if method.base == "proxyclip" else None,
    )
    segmenter = segmenter.with_encoder(encoder)
    pixels = [torch.randn(3, 40, 56)]
    mode = WithoutFloat64(*pixels, *encoder.parameters(), segmenter.vocabulary.embeddings)
    with mode:
        segmenter.logits(pixels)
        segmenter.predict(pixels)
    assert mode.operations > 500


@pytest.mark.parametrize("connectivity", ("prefix", "line", "component", None))
def test_no_rule_of_feedback_needs_float64(connectivity: Any) -> None:
    segmenter = toy_segmenter({"sfr": SFR(connectivity=connectivity, smoothing_std=2.0)}, window=0)
    pixels = [torch.randn(3, 40, 56)]
    mode = WithoutFloat64(*pixels, *segmenter.encoder.parameters())
    with mode:
        segmenter.predict(pixels)
    assert mode.operations > 500
