"""The rule that picks an implementation."""

from __future__ import annotations

import pytest
import torch

from resclip_kernels import Implementation, pamr
from resclip_kernels.implementation import parse_implementation, resolve

AVAILABLE = {Implementation.TORCH: "torch path", Implementation.REFERENCE: "plain formula"}


@pytest.mark.parametrize(
    ("asked", "chosen"), [("auto", "torch"), ("torch", "torch"), ("reference", "reference")]
)
def test_a_request_is_honoured(asked: str, chosen: str) -> None:
    choice = resolve(asked, AVAILABLE)
    assert choice.implementation.value == chosen
    assert choice.function == AVAILABLE[Implementation(chosen)]
    assert choice.reason


def test_what_an_op_lacks_is_refused_and_not_replaced() -> None:
    with pytest.raises(ValueError, match="'triton' does not exist.*'torch', 'reference'.*'auto'"):
        resolve("triton", AVAILABLE)
    with pytest.raises(ValueError, match="float64"):
        pamr(
            torch.rand(1, 3, 4, 4).double(),
            torch.rand(1, 2, 4, 4).double(),
            implementation="triton",
        )


def test_an_unknown_name_lists_the_valid_ones() -> None:
    with pytest.raises(ValueError, match="'auto', 'triton', 'torch', 'reference'; got 'cuda'"):
        parse_implementation("cuda")
