"""The attention modules: alone, in an open_clip tower against the encoder, and in two passes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from attention_support import (
    HEADS,
    LAYERS,
    PATCH,
    WIDTH,
    attention,
    pixels,
    projected,
    put_modules,
    tokens,
    tower,
    with_recorder,
)
from kernel_support import check_budget, kernel_device, label_map
from open_clip.transformer import VisionTransformer
from torch import Tensor
from torch.nn.functional import normalize

from resclip import RCS, SFR, DenseEncoder
from resclip.encoder.similarity import similarity
from resclip_kernels import patch_labels, residual_attention, semantic_feedback
from resclip_kernels.modules import QueryKeyRecorder, ResidualAttention


@pytest.mark.parametrize(("bias", "batch_first"), [(True, False), (False, True)])
@torch.no_grad()
def test_plain_options_are_multihead_attention(seed: int, bias: bool, batch_first: bool) -> None:
    original = attention(seed, bias=bias, batch_first=batch_first)
    x = tokens(seed, batch_first=batch_first)
    expected, _ = original(x, x, x, need_weights=False)
    exact = copy.deepcopy(original).double()
    oracle, _ = exact(x.double(), x.double(), x.double(), need_weights=False)
    for module in (
        ResidualAttention.from_attention(original, correlation="qk"),
        QueryKeyRecorder.from_attention(original),
    ):
        output, weights = module(x, x, x, need_weights=False)
        assert weights is None
        check_budget(output, expected, oracle)


@pytest.mark.parametrize(
    ("kind", "batch_first"), [(ResidualAttention, True), (QueryKeyRecorder, False)]
)
@torch.no_grad()
def test_unbatched_input_is_a_batch_of_one(kind: type, batch_first: bool, seed: int) -> None:
    module = kind.from_attention(attention(seed, batch_first=batch_first))
    x = tokens(seed, batch=1, batch_first=batch_first)
    alone = x.squeeze(0 if batch_first else 1)
    output = module(alone, alone, alone)[0]
    batched = module(x, x, x)[0]
    assert output.shape == alone.shape
    torch.testing.assert_close(output, batched.squeeze(0 if batch_first else 1))


@torch.no_grad()
def test_every_option_reaches_the_op(seed: int) -> None:
    x = tokens(seed, patches=15)
    recorders = [QueryKeyRecorder.from_attention(attention(seed + number)) for number in (3, 4)]
    for recorder in recorders:
        recorder(x, x, x)
    feedback = semantic_feedback(label_map(seed, batch=2, grid=(3, 5)).to(x.device))
    op: dict[str, Any] = {
        "grid": (3, 5),
        "correlation": "qq+kk",
        "score_temperature": 0.8,
        "window": 3,
        "neighbourhood_std": 1.5,
        "feedback": feedback,
        "feedback_weight": 0.3,
        "feedback_temperature": 1.7,
        "cross_weight": 0.2,
        "cross_temperature": 1.9,
        "implementation": "reference",
    }
    module = ResidualAttention.from_attention(attention(seed), recorders=recorders, **op)
    query, key, value = module.project(x, 0, 3)
    layers = [(recorder.query, recorder.key) for recorder in recorders]
    expected = residual_attention(query, key, value, cross_layers=layers, **op).output
    expected = module.out_proj(expected.transpose(1, 2).flatten(2))
    assert torch.equal(module(x, x, x)[0], expected)
    for name, other in {
        "correlation": "qk",
        "score_temperature": 1.2,
        "window": None,
        "neighbourhood_std": 3.0,
        "feedback": None,
        "feedback_weight": 0.9,
        "feedback_temperature": 0.7,
        "cross_weight": 0.8,
        "cross_temperature": 0.9,
        "grid": (5, 3),
    }.items():
        changed = copy.copy(module)
        setattr(changed, name, other)
        if name == "grid":
            changed.feedback = None
        assert not torch.allclose(changed(x, x, x)[0], expected), name
        assert torch.equal(module(x, x, x)[0], expected)


@torch.no_grad()
def test_batch_of_nothing_and_one_patch(seed: int) -> None:
    for shape in ((0, 17), (2, 2)):
        x = torch.randn(*shape, WIDTH, device=kernel_device())
        recorder = QueryKeyRecorder.from_attention(attention(seed))
        assert recorder(x, x, x)[0].shape == x.shape
        module = ResidualAttention.from_attention(attention(seed), recorders=[recorder])
        assert module(x, x, x)[0].shape == x.shape


@torch.no_grad()
def test_kernels_copy_nothing_of_the_modules(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorders' q and k lie otherwise than the block's q, k and v; and the heads lie as their merge wants them."""
    kernels = pytest.importorskip("resclip_kernels.ops.residual_attention.triton")
    recorders = [QueryKeyRecorder.from_attention(attention(seed)) for _ in range(2)]
    module = ResidualAttention.from_attention(
        attention(seed), recorders=recorders, neighbourhood_std=2.0, implementation="triton"
    )
    own = kernels.with_common_strides

    def watched(tensors: list[Tensor]) -> list[Tensor]:
        taken: list[Tensor] = own(tensors)
        assert all(new is old for new, old in zip(taken, tensors, strict=True))
        return taken

    monkeypatch.setattr(kernels, "with_common_strides", watched)
    x = tokens(seed).to(kernel_device())
    for each in (*recorders, module):
        each.to(kernel_device())
        each(x, x, x)
    assert recorders[0].query.stride() != module.project(x, 0, 3)[0].stride()
    assert module.attend(x).transpose(1, 2).is_contiguous()


def second_pass(
    visual: VisionTransformer, module: ResidualAttention, images: Tensor, text: Tensor, sfr: SFR
) -> tuple[Tensor, Tensor]:
    """ResCLIP's two passes by hand: labels (B, 4, 6) of the first, patches (B, 24, 32) of the second."""
    final = visual.transformer.resblocks[-1]
    seen: list[Tensor] = []
    hook = final.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    with module.two_passes():
        first = projected(visual, images)
        hook.remove()
        labels = patch_labels(
            similarity(first.unflatten(1, (4, 6)), text),
            images,
            patch_size=(PATCH, PATCH),
            logit_scale=sfr.logit_scale,
            threshold=sfr.label_threshold,
            refine_iterations=sfr.refine_iterations,
        )
        module.feedback = semantic_feedback(labels)
        second = visual.ln_post(final(seen[0]))[:, 1:] @ visual.proj
    return labels, second


@torch.no_grad()
def test_two_passes_by_hand_are_the_encoder(seed: int) -> None:
    # In float64, where no rounding can decide a label.
    visual, images = tower(seed).double(), pixels(seed).double()
    text = normalize(torch.randn(5, 32, dtype=torch.float64, device=images.device), dim=1)
    sfr = SFR(weight=0.6, temperature=2.1, label_threshold=0.21, refine_iterations=2)
    rcs = RCS(layers=LAYERS, weight=0.3, temperature=2.0)
    encoder = DenseEncoder(
        copy.deepcopy(visual), base="sclip", final_block="full_residual", rcs=rcs, sfr=sfr
    )
    module = put_modules(
        visual,
        correlation="qq+kk",
        grid=(4, 6),
        feedback_weight=0.6,
        feedback_temperature=2.1,
        cross_weight=0.3,
        cross_temperature=2.0,
    )
    expected = encoder(images, text)
    labels, second = second_pass(visual, module, images, text, sfr)
    assert torch.equal(labels, expected.feedback_labels)
    torch.testing.assert_close(second, expected.patches.flatten(1, 2), rtol=1e-9, atol=1e-9)
    plain = projected(visual, images)
    assert not torch.allclose(second, plain)
    assert module.feedback is None


class Calls:
    """Counts who computes A_c·v and who is handed it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.handed: list[Tensor | None] = []
        monkeypatch.setattr("resclip_kernels.modules.residual_attention", self)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.handed.append(options["cross_layer"])
        return residual_attention(*arguments, **options)


@torch.no_grad()
def test_cross_layer_is_computed_once_in_the_scope_and_kept_nowhere_else(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = tokens(seed)
    module, _ = with_recorder(seed, x)
    calls = Calls(monkeypatch)
    outside = module(x, x, x)[0]
    assert module.scope is None
    with module.two_passes():
        outputs = [module(x, x, x)[0] for _ in range(3)]
    assert [tensor is None for tensor in calls.handed] == [True, True, False, False]
    for output in outputs:
        torch.testing.assert_close(output, outside)
    assert module.scope is None
    with module.two_passes():
        module(x, x, x)
    assert calls.handed[-1] is None  # A scope starts with nothing.


@torch.no_grad()
def test_other_images_in_the_scope_get_their_own_cross_layer(seed: int) -> None:
    x, other = tokens(seed), tokens(seed + 7)
    module, recorder = with_recorder(seed, x)
    recorder(other, other, other)
    expected = module(other, other, other)[0]
    recorder(x, x, x)
    with module.two_passes():
        module(x, x, x)
        recorder(other, other, other)
        assert torch.equal(module(other, other, other)[0], expected)


def run_with_feedback(module: ResidualAttention, x: Tensor, labels: Tensor) -> None:
    with module.two_passes():
        module(x, x, x)
        module.feedback = semantic_feedback(labels)
        module(x, x, x)


@torch.no_grad()
def test_scope_puts_feedback_back_even_after_an_error(seed: int) -> None:
    x = tokens(seed)
    module, _ = with_recorder(seed, x)
    mine = semantic_feedback(label_map(seed, batch=2, grid=(4, 4)).to(x.device))
    module.feedback = mine
    with module.two_passes():
        assert module.feedback is None
    with pytest.raises(ValueError, match="feedback is for 3 images"):
        run_with_feedback(module, x, torch.zeros(3, 4, 4, dtype=torch.int64))
    assert module.feedback is mine
    assert module.scope is None


@torch.no_grad()
def test_recorder_holds_query_and_key_only(seed: int) -> None:
    original = attention(seed)
    recorder = QueryKeyRecorder.from_attention(original)
    x = tokens(seed)
    recorder(x, x, x)
    projection = torch.nn.functional.linear(x, original.in_proj_weight, original.in_proj_bias)
    query, key, _ = projection.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(recorder.query, query)
    torch.testing.assert_close(recorder.key, key)
    storages = {part.untyped_storage().data_ptr(): part for part in (recorder.query, recorder.key)}
    held = sum(part.untyped_storage().nbytes() for part in storages.values())
    assert held == 2 * x.numel() * x.element_size()
    assert not recorder.query.requires_grad
    recorder.clear()
    with pytest.raises(ValueError, match="recorded nothing"):
        _ = recorder.query


def test_gradient_reaches_the_recorded_blocks(seed: int) -> None:
    x = tokens(seed)
    module, recorder = with_recorder(seed, x)
    module(x, x, x)[0].sum().backward()
    assert recorder.in_proj_weight.grad is not None
    assert recorder.in_proj_weight.grad[:WIDTH].abs().sum() > 0
    assert module.in_proj_weight.grad is not None
    copy.deepcopy(recorder)  # What was recorded has a graph, and is left behind.
