"""The six operators of torch.library: sound by opcheck; what torch.compile calls; which implementation is taken."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from kernel_support import AttentionInputs, attention_inputs, kernel_device, label_map
from resclip_kernels.ops.residual_attention.terms import Terms
from torch import Tensor, fx
from torch._dynamo.backends.registry import lookup_backend

from resclip_kernels import residual_attention, semantic_feedback
from resclip_kernels.launch import watch
from resclip_kernels.ops.residual_attention import dispatch as attention_dispatch
from resclip_kernels.ops.semantic_feedback import dispatch as feedback_dispatch

pytest.importorskip("triton", reason="the kernels need triton")

GRID = (2, 3)
both = pytest.mark.parametrize("implementation", ("torch", "triton"))


def opcheck(op: str, *arguments: Any) -> None:
    """Schema, fake results, autograd and tracing, with sizes fixed and with sizes as symbols."""
    operator = importlib.import_module(f"resclip_kernels.{op}.dispatch").operator
    torch.library.opcheck(operator, arguments)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(kernel_device())


def sample(seed: int, layers: int = 1) -> AttentionInputs:
    return attention_inputs(
        seed, heads=1, grid=GRID, width=16, layers=layers, device=kernel_device()
    )


@both
def test_pamr(seed: int, implementation: str) -> None:
    opcheck("pamr", random(seed, 1, 3, 4, 5), random(seed, 1, 2, 4, 5), 1, [1, 2], implementation)


@both
def test_proxy_attention(seed: int, implementation: str) -> None:
    features, value = random(seed, 2, 16, 3, 4), random(seed, 2, 1, 6, 16)
    features = features / features.norm(dim=1, keepdim=True)
    opcheck("proxy_attention", features, value, *GRID, 1.2, 3.0, implementation)


@both
@pytest.mark.parametrize("refinements", (0, 1))
def test_patch_labels(seed: int, refinements: int, implementation: str) -> None:
    logits, image = random(seed, 1, 3, *GRID), random(seed, 1, 3, 8, 13)
    rest = ([4, 4], 40.0, 0.1, refinements, [1, 2], implementation)
    opcheck("patch_labels", logits, image, *rest)


@both
@pytest.mark.parametrize("refinements", (0, 1))
def test_upsample_argmax(seed: int, refinements: int, implementation: str) -> None:
    logits, classes = random(seed, 1, 3, *GRID), torch.tensor([0, 1, 1], device=kernel_device())
    guide = random(seed, 1, 3, 8, 13) if refinements else None
    rest = ([8, 13], classes, 40.0, 0.1, [6, 9], guide, refinements, [1, 2], implementation)
    opcheck("upsample_argmax", logits, *rest)


@pytest.mark.parametrize("implementation", ("torch", "triton", "reference"))
@pytest.mark.parametrize("batch", (0, 2))
@pytest.mark.parametrize("rule", ("prefix", None))
def test_semantic_feedback(seed: int, rule: str | None, batch: int, implementation: str) -> None:
    # 3 × 5 patches: rows of 2 bytes, which the kernels pad to 4.
    labels = label_map(seed, batch=2, grid=(3, 5)).to(kernel_device())[:batch]
    opcheck("semantic_feedback", labels, rule, 5.0, True, implementation)


def attention_arguments(inputs: AttentionInputs, implementation: str, **terms: Any) -> list[Any]:
    """What the public function gives its operator."""
    given: list[Any] = []
    named = {
        "grid": GRID,
        "correlation": "kk",
        "neighbourhood_std": 5.0,
        "feedback": None,
        "feedback_weight": 0.6,
        "feedback_temperature": 2.1,
        "cross_weight": 0.4,
        "cross_temperature": 2.0,
    }
    handed = terms.pop("cross_layer", None)
    tensors = attention_dispatch.Inputs(*inputs[:3], inputs.cross_layers, handed)
    with pytest.MonkeyPatch.context() as patch:
        results = [inputs.value, inputs.value]
        patch.setattr(attention_dispatch, "operator", lambda *a: given.extend(a) or results)
        attention_dispatch.as_operator_call(tensors, Terms(**{**named, **terms}), implementation)
    return given


@both
@pytest.mark.parametrize("layers", (0, 2))
@pytest.mark.parametrize("rule", ("none", "prefix", None))
def test_residual_attention(seed: int, rule: str | None, layers: int, implementation: str) -> None:
    inputs = sample(seed, layers)
    feedback = None
    if rule != "none":
        feedback = semantic_feedback(inputs.labels, connectivity=rule, implementation="torch")
    opcheck("residual_attention", *attention_arguments(inputs, implementation, feedback=feedback))


@both
@pytest.mark.parametrize("layout", ("contiguous", "views-of-one-projection"))
def test_residual_attention_without_a_score(seed: int, layout: str, implementation: str) -> None:
    inputs = sample(seed)
    if layout != "contiguous":
        projected = random(seed, 2, 7, 3, 1, 16).permute(2, 0, 3, 1, 4)
        inputs = inputs._replace(query=projected[0], key=projected[1], value=projected[2])
    terms: dict[str, Any] = {"correlation": "identity", "neighbourhood_std": None}
    opcheck("residual_attention", *attention_arguments(inputs, implementation, **terms))
    # Nothing to compute, and still no operator may hand back its own argument.
    alone = inputs._replace(cross_layers=())
    opcheck("residual_attention", *attention_arguments(alone, implementation, **terms))
    handed = torch.randn_like(inputs.key)
    terms["cross_layer"] = handed
    opcheck("residual_attention", *attention_arguments(inputs, implementation, **terms))


class Compiler:
    """The "aot_eager" backend, which keeps what it was asked to call."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def __call__(self, graph: fx.GraphModule, inputs: list[Tensor]) -> Any:
        nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
        self.called += [str(node.target) for node in nodes]
        return lookup_backend("aot_eager")(graph, inputs)


@pytest.mark.parametrize("implementation", ("torch", "triton", "auto"))
def test_two_passes_compile_into_three_operators(
    seed: int, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = sample(seed, layers=2)

    def two_passes(query: Tensor, key: Tensor, value: Tensor, labels: Tensor) -> Tensor:
        first = residual_attention(
            query,
            key,
            value,
            grid=GRID,
            correlation="qq+kk",
            cross_layers=inputs.cross_layers,
            implementation=implementation,
        )
        feedback = semantic_feedback(labels, implementation=implementation)
        second = residual_attention(
            query,
            key,
            value,
            grid=GRID,
            neighbourhood_std=5.0,
            feedback=feedback,
            cross_layer=first.cross_layer,
            implementation=implementation,
        )
        return second.output - first.output

    expected = two_passes(*inputs[:3], inputs.labels)
    torch.compiler.reset()  # Dynamo counts how often a function was compiled in this process.
    compiler = Compiler()
    compiled = torch.compile(two_passes, fullgraph=True, backend=compiler)
    # The first call compiles; the second only runs, and the operators' own functions are counted.
    assert torch.equal(compiled(*inputs[:3], inputs.labels), expected)
    ours = [name for name in compiler.called if "resclip_kernels" in name]
    attention = "resclip_kernels.residual_attention.default"
    assert ours == [attention, "resclip_kernels.semantic_feedback.default", attention]
    count = {"attention": 0, "feedback": 0}

    def counted(name: str, function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            count[name] += 1
            return function(*arguments)

        return call

    attend, feed = attention_dispatch.residual_attention, feedback_dispatch.semantic_feedback
    monkeypatch.setattr(attention_dispatch, "residual_attention", counted("attention", attend))
    monkeypatch.setattr(feedback_dispatch, "semantic_feedback", counted("feedback", feed))
    assert torch.equal(compiled(*inputs[:3], inputs.labels), expected)
    assert count == {"attention": 2, "feedback": 1}


def test_a_gradient_is_followed_through_what_is_compiled(seed: int) -> None:
    inputs = sample(seed)

    def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return residual_attention(query, key, value, grid=GRID, correlation="qk").output

    compiler = Compiler()
    compiled = torch.compile(plain, fullgraph=True, backend=compiler)
    gradients = []
    for function in (plain, compiled):
        tensors = [tensor.clone().requires_grad_() for tensor in inputs[:3]]
        function(*tensors).square().sum().backward()
        gradients.append([tensor.grad for tensor in tensors])
    torch.testing.assert_close(*gradients)
    assert not [name for name in compiler.called if "resclip_kernels" in name]


def attend(inputs: AttentionInputs, implementation: str, **arguments: Any) -> Tensor:
    given = {"grid": GRID, "cross_layers": inputs.cross_layers, **arguments}
    return residual_attention(*inputs[:3], implementation=implementation, **given).output


def test_attention_that_the_kernel_cannot_run_is_refused(seed: int) -> None:
    inputs = sample(seed)
    double = inputs.to(torch.float64)
    wide = attention_inputs(seed, heads=1, grid=GRID, width=136, device=kernel_device())
    plain = semantic_feedback(inputs.labels, implementation="reference")
    with pytest.raises(
        ValueError, match="rebuilds Ŝ from the state's bits and this state has none"
    ):
        attend(inputs, "triton", feedback=plain)
    with pytest.raises(ValueError, match="take float32, float16, bfloat16; got torch.float64"):
        attend(double, "triton")
    with pytest.raises(ValueError, match="heads up to 128 wide; got 136: use 'torch'"):
        attend(wide, "triton")
    with watch() as watcher:
        attend(inputs, "auto", feedback=plain)
        attend(double, "auto")
        assert torch.equal(attend(wide, "auto"), attend(wide, "torch"))
    assert watcher.names() == []


@pytest.mark.parametrize("number", range(6))
def test_gradients_are_left_to_torch(seed: int, number: int) -> None:
    inputs = sample(seed)
    handed = torch.randn_like(inputs.value)
    tensors = [*inputs[:3], *inputs.cross_layers[0], handed]
    tensors[number].requires_grad_()
    arguments: dict[str, Any] = {"correlation": "qk"}
    if number == 5:
        arguments["cross_layer"] = handed
    with pytest.raises(ValueError, match="a tensor requires grad; use 'torch'"):
        attend(inputs, "triton", **arguments)
    with watch() as watcher:
        attend(inputs, "auto", **arguments).sum().backward()
    assert watcher.names() == []
    assert tensors[number].grad is not None
    with torch.no_grad(), watch() as watcher:
        attend(inputs, "triton", **arguments)
    assert watcher.names() == ["residual_attention_kernel"]
