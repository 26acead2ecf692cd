"""Linear layers by oneDNN: the same numbers, only where it is its business, and nothing of PyTorch is changed."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import resclip_kernels

rule = sys.modules["resclip_kernels.linear"]

INPUT = torch.randn(2, 7, 24)


class Counted:
    """The operator, or what stands in for it, and how often it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, rows: Tensor, weight: Tensor, bias: Tensor | None, *others: Any) -> Tensor:
        self.calls += 1
        return (rows.double() @ weight.double().T).float() + (0 if bias is None else bias)


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    """A machine on which layers run by oneDNN, whatever this one is."""
    counted = Counted()
    monkeypatch.setattr(rule, "machine_obstacle", lambda: None)
    monkeypatch.setattr(rule, "operator", lambda: counted)
    monkeypatch.delenv(rule.SWITCH, raising=False)
    with torch.no_grad():
        yield counted


def run(layer: nn.Module, *arguments: Any, **keywords: Any) -> Any:
    with resclip_kernels.fast_linear():
        return layer(*arguments, **keywords)


def test_the_operator_is_as_exact_as_pytorch_s() -> None:
    operator = rule.operator()
    if operator is None:
        pytest.skip("this PyTorch has no linear layer by oneDNN; the layers run by F.linear")
    x, weight, bias = torch.randn(50, 768), torch.randn(96, 768), torch.randn(96)
    exact = F.linear(x.double(), weight.double(), bias.double())
    for got in (F.linear(x, weight, bias), operator(x, weight, bias, "none", [], "")):
        assert (got - exact).norm() < 1e-6 * exact.norm()


@pytest.mark.parametrize(
    "bias",
    [
        torch.full((1,), 2.0).expand(96),
        torch.tensor(2.0),
        torch.arange(192.0)[::2],
        torch.ones(3, 1, 96),
    ],
    ids=("expanded", "scalar", "strided", "three axes"),
)
def test_layouts_do_not_matter(bias: Tensor) -> None:
    """oneDNN itself reads a bias as if it were dense, whatever its strides."""
    x, weight = torch.randn(5, 3, 48).transpose(0, 1), torch.randn(48, 192)[:, ::2].T
    torch.testing.assert_close(rule.by_onednn(x, weight, bias), F.linear(x, weight, bias))
    for rows in (x[:, ::2], x[..., 0, :].expand(5, 3, 48), x[1, 2]):
        torch.testing.assert_close(rule.by_onednn(rows, weight), F.linear(rows, weight))


def test_layers_run_by_it_within_and_as_before_outside(onednn: Counted) -> None:
    layer = nn.Linear(24, 40)
    plain = layer(INPUT)
    assert onednn.calls == 0
    torch.testing.assert_close(run(layer, INPUT), plain)
    assert onednn.calls == 1
    layer(INPUT)
    assert onednn.calls == 1


@pytest.mark.parametrize("batch_first", (True, False))
@pytest.mark.parametrize("masked", (True, False))
def test_so_does_torch_s_own_attention(onednn: Counted, batch_first: bool, masked: bool) -> None:
    attention = nn.MultiheadAttention(24, 3, batch_first=batch_first).eval()
    mask = torch.full((7, 7) if batch_first else (2, 2), -torch.inf).triu(1) if masked else None
    arguments = {"need_weights": False, "attn_mask": mask}
    plain, _ = attention(INPUT, INPUT, INPUT, **arguments)
    got, weights = run(attention, INPUT, INPUT, INPUT, **arguments)
    torch.testing.assert_close(got, plain)
    assert weights is None
    assert onednn.calls == 2


@pytest.mark.parametrize(
    "arguments",
    [
        {"need_weights": True},
        {"attn_mask": torch.zeros(6, 7, 7)},
        {"key_padding_mask": torch.zeros(2, 7, dtype=torch.bool)},
        {"key": INPUT + 1},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_other_attention_is_torch_s_business(
    onednn: Counted, arguments: dict[str, Tensor | bool]
) -> None:
    attention = nn.MultiheadAttention(24, 3, batch_first=True).eval()
    inputs = {"query": INPUT, "key": INPUT, "value": INPUT, "need_weights": False} | arguments
    plain = attention(**inputs)
    got = run(attention, **inputs)
    torch.testing.assert_close(got[0], plain[0])
    assert onednn.calls == 0


class Subclass(Tensor):
    """As quantised weights are."""


@pytest.mark.parametrize(
    ("layer", "pixels"),
    [
        (nn.Linear(24, 40, dtype=torch.float64), INPUT.double()),
        (nn.Linear(24, 40, dtype=torch.bfloat16), INPUT.bfloat16()),
        (nn.Linear(24, 40), INPUT.as_subclass(Subclass)),
        (nn.Linear(24, 40, device="meta"), INPUT.to("meta")),
        (nn.Linear(24, 40), INPUT[:0]),
    ],
    ids=("float64", "bfloat16", "subclass", "device", "empty"),
)
def test_what_it_does_not_take_runs_as_before(
    onednn: Counted, layer: nn.Module, pixels: Tensor
) -> None:
    assert run(layer, pixels).shape == (*pixels.shape[:-1], 40)
    assert onednn.calls == 0


def test_gradients_and_autocast_are_as_before(onednn: Counted) -> None:
    layer = nn.Linear(24, 40)
    with torch.enable_grad():
        run(layer, INPUT).sum().backward()
    assert layer.weight.grad is not None
    with torch.autocast("cpu", torch.bfloat16):
        assert run(layer, INPUT).dtype is torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False):
        run(layer, INPUT)
    assert onednn.calls == 0


def test_a_graph_has_pytorch_s_own_layers(onednn: Counted) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with resclip_kernels.fast_linear():
                return rule.linear(F.linear(x, weight), weight.T.contiguous())

    weight = torch.randn(40, 24)
    with torch.inference_mode(False):
        torch.export.export(Model(), (INPUT,))
        torch.jit.trace(Model(), INPUT, check_trace=False)
    compiled = torch.compile(Model(), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(INPUT), F.linear(F.linear(INPUT, weight), weight.T))
    assert onednn.calls == 0


def test_an_operator_that_refuses_leaves_it_to_pytorch(
    onednn: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> Tensor:
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(rule, "operator", lambda: refuse)
    layer = nn.Linear(24, 40)
    torch.testing.assert_close(run(layer, INPUT), layer(INPUT))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run(layer, INPUT[..., :3])


def test_other_threads_see_nothing_of_it(onednn: Counted) -> None:
    layer = nn.Linear(24, 40)
    with resclip_kernels.fast_linear():
        thread = threading.Thread(target=lambda: layer(INPUT.detach()).detach())
        thread.start()
        thread.join()
    assert onednn.calls == 0


@pytest.mark.parametrize(
    ("capability", "amd", "operator", "told"),
    [
        ("AVX512", True, object(), None),
        ("AVX512", False, object(), "not AMD's"),
        ("AVX2", True, object(), "no AVX-512"),
        ("AVX512", True, None, "no operator"),
    ],
)
def test_the_rule(monkeypatch: pytest.MonkeyPatch, capability, amd, operator, told) -> None:
    monkeypatch.delenv(rule.SWITCH, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(rule, "is_amd", lambda: amd)
    monkeypatch.setattr(rule, "operator", lambda: operator)
    rule.machine_obstacle.cache_clear()
    try:
        obstacle = rule.linear_obstacle()
        assert obstacle is None if told is None else told in obstacle
        monkeypatch.setenv(rule.SWITCH, "torch")
        assert rule.SWITCH in rule.linear_obstacle()
    finally:
        rule.machine_obstacle.cache_clear()
