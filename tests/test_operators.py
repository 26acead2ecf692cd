"""The operators of torch.library: sound by opcheck; what torch.compile calls; which implementation is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_support import (
    AttentionInputs,
    attention_inputs,
    kernel_device,
    label_map,
    opcheck,
    pairwise,
)
from torch import Tensor, fx
from torch._dynamo.backends.registry import lookup_backend

from resclip_kernels import (
    AttentionOptions,
    laplacian_propagation,
    pamr,
    patch_labels,
    proxy_attention,
    residual_attention,
    semantic_feedback,
    similarity_aggregation,
    upsample_argmax,
)
from resclip_kernels.launch import watch
from resclip_kernels.ops import residual_attention as attention_op
from resclip_kernels.ops import semantic_feedback as feedback_op

pytest.importorskip("triton", reason="the kernels need triton")

GRID = (2, 3)
both = pytest.mark.parametrize("implementation", ("torch", "triton"))


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(kernel_device())


def sample(seed: int, layers: int = 1) -> AttentionInputs:
    return attention_inputs(
        seed, heads=1, grid=GRID, width=16, layers=layers, device=kernel_device()
    )


@both
def test_pamr(seed: int, implementation: str) -> None:
    image, masks = random(seed, 1, 3, 4, 5), random(seed, 1, 2, 4, 5)
    opcheck(pamr, image, masks, iterations=1, dilations=(1, 2), implementation=implementation)


@pytest.mark.parametrize(
    ("rule", "implementation"),
    # An absent tensor is an absent argument of the operator, whichever implementation it then runs.
    [("none", "torch"), ("prefix", "triton"), (None, "torch")],
)
def test_proxy_attention(seed: int, rule: str | None, implementation: str) -> None:
    features, value = random(seed, 2, 16, 3, 4), random(seed, 2, 1, 6, 16)
    feedback = None
    if rule != "none":
        labels = label_map(seed, batch=2, grid=(3, 4)).to(kernel_device())
        feedback = semantic_feedback(labels, connectivity=rule, implementation="torch")
    options = {"grid": GRID, "feedback": feedback, "implementation": implementation}
    opcheck(proxy_attention, features, value, cut=0.1 if rule == "none" else None, **options)


@both
def test_laplacian_propagation(seed: int, implementation: str) -> None:
    opcheck(
        laplacian_propagation,
        random(seed, 2, 3, 8, 13),
        random(seed, 2, 3, 8, 13),
        random(seed, 3, 6),
        grid=4,
        iterations=1,
        implementation=implementation,
    )


@both
def test_similarity_aggregation(seed: int, implementation: str) -> None:
    opcheck(
        similarity_aggregation,
        random(seed, 2, 5, 16),
        random(seed, 2, 5, 6),
        threshold=0.1,
        implementation=implementation,
    )


@pytest.mark.parametrize(("implementation", "refinements"), [("torch", 0), ("triton", 1)])
def test_patch_labels(seed: int, implementation: str, refinements: int) -> None:
    logits, image = random(seed, 1, 3, *GRID), random(seed, 1, 3, 8, 13)
    opcheck(
        patch_labels,
        logits,
        image,
        patch_size=(4, 4),
        threshold=0.1,
        refine_iterations=refinements,
        dilations=(1, 2),
        implementation=implementation,
    )


@pytest.mark.parametrize(
    ("merged", "refinements", "implementation"),
    pairwise((True, False), (0, 1), ("torch", "triton")),
)
def test_upsample_argmax(seed: int, merged: bool, refinements: int, implementation: str) -> None:
    opcheck(
        upsample_argmax,
        random(seed, 1, 3, *GRID),
        (8, 13),
        query_to_class=torch.tensor([0, 1, 1], device=kernel_device()) if merged else None,
        threshold=0.1,
        through=(6, 9) if merged else None,
        guide=random(seed, 1, 3, 8, 13) if refinements else None,
        refine_iterations=refinements,
        dilations=(1, 2),
        implementation=implementation,
    )


@pytest.mark.parametrize(
    ("rule", "batch", "implementation"),
    [
        ("prefix", 2, "torch"),
        ("prefix", 2, "triton"),
        ("prefix", 2, "reference"),
        ("prefix", 0, "triton"),
        (None, 2, "triton"),
    ],
)
def test_semantic_feedback(seed: int, rule: str | None, batch: int, implementation: str) -> None:
    # 3 × 5 patches: rows of 2 bytes, which the kernels pad to 4.
    labels = label_map(seed, batch=2, grid=(3, 5)).to(kernel_device())[:batch]
    opcheck(semantic_feedback, labels, connectivity=rule, implementation=implementation)


def check_attention(inputs: AttentionInputs, implementation: str, **arguments: Any) -> None:
    opcheck(
        residual_attention,
        *inputs[:3],
        grid=GRID,
        implementation=implementation,
        **{"cross_layers": inputs.cross_layers, **arguments},
    )


@pytest.mark.parametrize(
    ("rule", "layers", "implementation"),
    pairwise(("none", "prefix", None), (0, 2), ("torch", "triton")),
)
def test_residual_attention(seed: int, rule: str | None, layers: int, implementation: str) -> None:
    inputs = sample(seed, layers)
    feedback = None
    if rule != "none":
        feedback = semantic_feedback(inputs.labels, connectivity=rule, implementation="torch")
    check_attention(inputs, implementation, neighbourhood_std=5.0, feedback=feedback)


@both
def test_residual_attention_without_a_score(seed: int, implementation: str) -> None:
    # Views of one projection.
    projected = random(seed, 2, 7, 3, 1, 16).permute(2, 0, 3, 1, 4)
    inputs = sample(seed)._replace(query=projected[0], key=projected[1], value=projected[2])
    check_attention(inputs, implementation, correlation="identity")
    # Nothing to compute, and still no operator may hand back its own argument.
    check_attention(inputs, implementation, correlation="identity", cross_layers=())
    handed = torch.randn_like(inputs.key)
    check_attention(inputs, implementation, correlation="identity", cross_layer=handed)


@both
def test_residual_attention_of_projections_in_a_window(seed: int, implementation: str) -> None:
    inputs = sample(seed)
    switches: dict[str, Any] = {"window": 3, "score_temperature": 0.5}
    projections = (inputs.query, inputs.key)
    check_attention(inputs, implementation, correlation="pp", projections=projections, **switches)
    check_attention(inputs, implementation, correlation="none", **switches)


def calls(
    seed: int, implementation: str = "triton", images: int = 2
) -> dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]]:
    """A call of each op with its tensors as arguments."""
    chosen: dict[str, Any] = {"implementation": implementation}
    image, planes = random(seed, images, 3, 8, 12), random(seed, images, 4, *GRID)
    rows = torch.nn.functional.normalize(random(seed, 4, 8), dim=1)
    features, values = random(seed, images, 16, 3, 4), random(seed, images, 1, 12, 16)
    labels = label_map(seed, batch=2, grid=(3, 4)).to(kernel_device())[:images]
    query, key, value = sample(seed)[:3]

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        options = AttentionOptions(grid=GRID, correlation="pp", window=3)
        projections = (query, key)
        return residual_attention(
            query, key, value, options, projections=projections, **chosen
        ).output

    def proxy(features: Tensor, value: Tensor, labels: Tensor) -> Tensor:
        feedback = semantic_feedback(labels, implementation=implementation)
        return proxy_attention(features, value, grid=(3, 4), feedback=feedback, **chosen)

    return {
        "pamr": (
            lambda a, b: pamr(a, b, iterations=2, dilations=(1, 2), **chosen),
            (image, image.flip(1)),
        ),
        "patch_labels": (
            lambda a, b: patch_labels(a, b, patch_size=(4, 4), refine_iterations=1, **chosen),
            (planes, image),
        ),
        "upsample_argmax": (
            lambda a: upsample_argmax(a, (9, 11), through=(8, 9), **chosen)[1],
            (planes,),
        ),
        "semantic_feedback": (lambda a: semantic_feedback(a, **chosen).row_sums, (labels,)),
        "proxy_attention": (proxy, (features, values, labels)),
        "laplacian_propagation": (
            lambda a, b, c: torch.cat(
                [
                    laplacian_propagation(
                        a, b, c, grid=3, iterations=2, cells=cells, **chosen
                    ).flatten()
                    for cells in (False, True)
                ]
            ),
            (image.mean(dim=1, keepdim=True) * rows[:, :1, None], image, rows),
        ),
        "similarity_aggregation": (
            lambda a, b: similarity_aggregation(a, b, threshold=0.1, **chosen),
            (features.flatten(2).mT, values[:, 0]),
        ),
        "residual_attention": (attention, (query[:images], key[:images], value[:images])),
    }


# The passes below compile the other two.
@pytest.mark.parametrize("op", sorted({*calls(0)} - {"residual_attention", "semantic_feedback"}))
def test_compiled_equals_eager(seed: int, op: str) -> None:
    call, tensors = calls(seed)[op]
    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*tensors), call(*tensors))


@pytest.mark.parametrize("op", calls(0))
def test_no_image_is_no_work(op: str) -> None:
    for implementation in ("torch", "triton", "reference"):
        call, tensors = calls(0, implementation, images=0)[op]
        with watch() as watcher:
            assert len(call(*tensors)) == 0
        assert all(launch.programs == 0 for launch in watcher.launches), implementation


@pytest.mark.parametrize("op", [name for name in calls(0) if name != "semantic_feedback"])
def test_gradients_take_torch_and_kernels_refuse(seed: int, op: str) -> None:
    gradients = []
    for implementation in ("auto", "reference"):
        call, tensors = calls(seed, implementation)[op]
        floats = [tensor.requires_grad_() for tensor in tensors if tensor.is_floating_point()]
        with watch() as watcher:
            result = call(*tensors)
        assert watcher.names() == []
        if op != "patch_labels":  # Labels have none.
            result.square().sum().backward()
            gradients.append([tensor.grad for tensor in floats])
            assert all(gradient.abs().max() > 0 for gradient in gradients[-1])
    if gradients:
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="a tensor requires grad; use 'torch'"):
        calls(seed, "triton")[op][0](*tensors)


class Compiler:
    """The "aot_eager" backend, which remembers what it was told to call."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def __call__(self, graph: fx.GraphModule, inputs: list[Tensor]) -> Any:
        nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
        self.called += [str(node.target) for node in nodes]
        return lookup_backend("aot_eager")(graph, inputs)


@both
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

    def counted(name: str, resolve: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            count[name] += 1
            return resolve(*arguments, **options)

        return call

    monkeypatch.setattr(attention_op, "resolve", counted("attention", attention_op.resolve))
    monkeypatch.setattr(feedback_op, "resolve", counted("feedback", feedback_op.resolve))
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


# A query, a middle block's key, and the cross-layer part that is handed back.
@pytest.mark.parametrize("number", (0, 4, 5))
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
    assert watcher.names()[-1] == "base_kernel"
