"""The rule that picks an implementation."""

from __future__ import annotations

import re

import pytest
import torch

from resclip_kernels import Implementation, pamr
from resclip_kernels.dispatch import parse_implementation, resolve

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
    with pytest.raises(
        ValueError, match="'auto', 'triton', 'library', 'torch', 'reference'; got 'cuda'"
    ):
        parse_implementation("cuda")


WITH_KERNELS = {**AVAILABLE, Implementation.TRITON: "kernels"}


def test_auto_takes_torch_on_a_cpu_even_where_kernels_are_interpreted() -> None:
    choice = resolve("auto", WITH_KERNELS, torch.zeros(1))
    assert choice.implementation is Implementation.TORCH
    assert "every device" in choice.reason


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(1, dtype=torch.float64), "take float32, float16, bfloat16; got torch.float64"),
        (torch.zeros(1, requires_grad=True), "requires grad; use 'torch', or torch.no_grad"),
    ],
)
def test_kernels_refuse_what_they_cannot_take(tensor: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve("triton", WITH_KERNELS, tensor)


def test_kernels_need_a_gpu_or_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="need a CUDA or HIP device; got a tensor on cpu"):
        resolve("triton", WITH_KERNELS, torch.zeros(1))


def test_a_missing_triton_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ValueError, match="triton is not installed; pip install triton"):
        resolve("triton", WITH_KERNELS, torch.zeros(1))


def test_an_ops_own_limit_is_the_reason() -> None:
    with pytest.raises(ValueError, match="'triton' cannot run: too wide"):
        resolve("triton", WITH_KERNELS, torch.zeros(1), limit="too wide")


class OnDevice(torch.Tensor):
    """A tensor that says it is on a GPU: what a rule sees of one where there is none."""

    is_cuda = True
    device = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("triton", "capability", "chosen", "reason"),
    [
        ((3, 5), (8, 0), "triton", "on a GPU"),
        ((3, 10), (12, 0), "triton", "on a GPU"),
        ((3, 5), None, "triton", "on a GPU"),  # AMD
        ((3, 4), (9, 0), "torch", "need triton 3.5 or later, that of torch 2.9; got 3.4"),
        ((3, 8), (7, 5), "torch", "compute capability 8.0 or higher.*cuda:0 has 7.5. Use 'torch'"),
    ],
)
def test_auto_takes_kernels_only_where_they_compile_and_are_fast(
    monkeypatch: pytest.MonkeyPatch,
    triton: tuple[int, int],
    capability: tuple[int, int] | None,
    chosen: str,
    reason: str,
) -> None:
    monkeypatch.setattr("resclip_kernels.dispatch.triton_version", lambda: triton)
    monkeypatch.setattr("resclip_kernels.dispatch.compute_capability", lambda _device: capability)
    tensor = torch.zeros(1).as_subclass(OnDevice)
    choice = resolve("auto", WITH_KERNELS, tensor)
    assert choice.implementation.value == chosen
    assert re.search(reason, choice.reason)
    if chosen == "torch":
        with pytest.raises(ValueError, match=f"'triton' cannot run: .*{reason}"):
            resolve("triton", WITH_KERNELS, tensor)
