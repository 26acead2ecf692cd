"""Gradients through the encoder, where they are asked for: against finite differences, for every base and route."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from method_support import colours, small_tower, text
from torch import Tensor
from torch.nn.functional import normalize

import resclip
from resclip import RCS, SFR, DenseEncoder, ResidualBlock
from resclip.methods.catalogue import BASES, Overview, find_method
from resclip.methods.composition import compose
from resclip.methods.pieces import Denoising, Pieces
from resclip.models.proxy_models import find_proxy

SIZE = (16, 24)
"""Of images for a tower with patches of 8 pixels: an oblong grid of 2 × 3."""


def tiny_tower(**changes: Any) -> Any:
    """Three blocks, so that RCS and every piece have blocks before the final one."""
    settings = {"image_size": 24, "patch_size": 8, "width": 16, "layers": 3, "heads": 2}
    return small_tower(**{**settings, **changes})


def with_gradients(name: str, visual: Any, **changes: Any) -> DenseEncoder:
    method = find_method(name)
    if method.base == "proxyclip":
        mean, std = (0.5, 0.5, 0.5), (0.3, 0.3, 0.3)
        changes["proxy"] = find_proxy("colour:8", mean=mean, std=std)
    if BASES[method.base].pieces.outliers is not None:
        # Of six patches two.
        few = {"count": 2, "neighbours": 3, "share": 0.3}
        changes["pieces"] = compose(BASES[method.base].pieces, {"outliers": few})
    return DenseEncoder(visual, method.base, method.rcs, method.sfr, inference=False, **changes)


def pixels_of(seed: int, dtype: torch.dtype = torch.float32, images: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, 3, *SIZE, generator=generator, dtype=dtype)


def assert_flows(gradient: Tensor) -> None:
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


# Each way to attend once: by scores of its own, with a prior, the middle blocks and feedback, by a proxy, repaired.
@pytest.mark.parametrize("name", ["clip", "naclip+rcs", "resclip", "proxyclip+rcs", "sc-clip"])
def test_gradients_are_finite_differences(name: str, seed: int) -> None:
    """Along one direction in the pixels and in a weight of the first block, in float64."""
    dense = with_gradients(name, tiny_tower().double())
    pixels = pixels_of(seed, torch.float64)
    queries = text(3, 32).double() if dense.sfr else None
    weight = dense.tower.blocks[0].attn.in_proj_weight
    along = [torch.randn_like(pixels), torch.randn_like(weight)]

    def features(steps: Tensor) -> Tensor:
        moved = {"visual.transformer.resblocks.0.attn.in_proj_weight": weight + steps[1] * along[1]}
        return torch.func.functional_call(
            Called(dense, queries), moved, pixels + steps[0] * along[0]
        )

    class Called(torch.nn.Module):
        def __init__(self, dense: DenseEncoder, queries: Tensor | None) -> None:
            super().__init__()
            self.visual = dense.tower.visual
            self.rest = dense, queries

        def forward(self, pixels: Tensor) -> Tensor:
            dense, queries = self.rest
            return dense(pixels, queries).patches

    steps = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(features, (steps,), eps=1e-6, fast_mode=True)


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "modules"])
@pytest.mark.parametrize("base", BASES)
def test_every_base_has_gradients(base: str, alone: bool, seed: int) -> None:
    modules = "+rcs+sfr" if BASES[base].has_score else "+rcs"
    dense = with_gradients(base if alone else base + modules, tiny_tower())
    pixels, queries = pixels_of(seed, images=2).requires_grad_(), text(3, 32).requires_grad_()
    features = dense(pixels, queries if dense.sfr else None)
    features.patches.square().sum().backward()
    weight = dense.tower.blocks[0].attn.in_proj_weight
    for gradient in (*pixels.grad, weight.grad):
        assert_flows(gradient)
    assert queries.grad is None  # It is read for labels alone.
    plain = copy.copy(dense)
    plain.inference = True
    torch.testing.assert_close(plain(pixels, queries).patches, features.patches.detach())
    assert not plain(pixels, queries).patches.requires_grad


def test_gradients_of_an_image_do_not_depend_on_the_batch(seed: int) -> None:
    dense, queries = with_gradients("resclip", tiny_tower()), text(3, 32)
    together = pixels_of(seed, images=3).requires_grad_()
    dense(together, queries).patches.square().sum().backward()
    for number in range(3):
        alone = together.detach()[[number]].requires_grad_()
        dense(alone, queries).patches.square().sum().backward()
        torch.testing.assert_close(alone.grad[0], together.grad[number], rtol=1e-4, atol=1e-5)


def test_the_reference_has_the_same_gradients(seed: int) -> None:
    gradients = []
    for implementation in ("torch", "reference"):
        dense = with_gradients("sclip+rcs+sfr", tiny_tower(), implementation=implementation)
        pixels = pixels_of(seed).requires_grad_()
        dense(pixels, text(3, 32)).patches.square().sum().backward()
        gradients.append(pixels.grad)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


def test_every_other_way_to_attend_has_gradients(seed: int) -> None:
    for changes in (
        {"base": "naclip", "correlation": "qq+kk,window=3"},
        {"base": "naclip", "correlation": "random,projections=2"},
        {"base": "naclip", "correlation": "xx,layer=2"},
        {"base": "naclip", "correlation": "qk,blocks=2"},
        {"base": "proxyclip", "proxy": colours},
        {"base": "naclip", "pieces": Pieces(denoising=Denoising(channels=(1, 5)))},
    ):
        dense = DenseEncoder(tiny_tower(), inference=False, **changes)
        pixels = pixels_of(seed).requires_grad_()
        dense(pixels).patches.square().sum().backward()
        assert_flows(pixels.grad)


def test_coarse_passes_and_vectors_of_images_have_gradients(seed: int) -> None:
    dense = DenseEncoder(tiny_tower(), overview=Overview(weight=0.5), inference=False)
    whole, window = pixels_of(seed).requires_grad_(), pixels_of(seed + 1)
    dense(window, coarse=dense.coarse(whole)).patches.square().sum().backward()
    assert_flows(whole.grad)
    pixels = pixels_of(seed).requires_grad_()
    dense.image_vectors(pixels).square().sum().backward()
    assert_flows(pixels.grad)


def test_a_tower_of_timm_has_gradients(seed: int) -> None:
    """With rotary positions, whose table is made once."""
    import timm

    torch.manual_seed(seed)
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
    visual = timm.models.eva.Eva(num_classes=16, use_rot_pos_emb=True, **size)
    dense = DenseEncoder(visual, rcs=RCS(), sfr=SFR(), inference=False)
    for _ in range(2):
        pixels = pixels_of(seed).requires_grad_()
        dense(pixels, normalize(torch.randn(3, 16), dim=1)).patches.square().sum().backward()
        assert_flows(pixels.grad)


def test_a_patched_model_has_gradients_where_they_are_asked_for(seed: int) -> None:
    model = torch.nn.Module()
    model.visual = tiny_tower()
    pixels = pixels_of(seed).requires_grad_()
    with resclip.patch(model.visual, "naclip+rcs") as patched:
        assert not patched.model.encode_dense(pixels).requires_grad
    with resclip.patch(model.visual, "naclip+rcs", inference=False) as patched:
        patched.model.encode_dense(pixels).square().sum().backward()
    assert_flows(pixels.grad)


def test_a_block_in_the_model_has_the_encoders_gradients(seed: int) -> None:
    """It needs no option: it computes in the mode of the model around it, SFR's labels without gradients."""
    visual, queries = tiny_tower(), text(3, 32)
    pixels = torch.randn(1, 3, 24, 24).requires_grad_()
    dense = DenseEncoder(visual, rcs=RCS(), sfr=SFR(), inference=False)
    dense(pixels, queries).patches.square().sum().backward()
    expected, pixels.grad = pixels.grad, None
    visual.transformer.resblocks[-1] = ResidualBlock.from_tower(visual, "resclip", queries)
    visual.output_tokens = True
    (visual(pixels)[1] @ visual.proj).square().sum().backward()
    torch.testing.assert_close(pixels.grad, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("implementation", ["triton", "library"])
def test_what_is_for_inference_is_refused_by_name(
    implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    message = f"'{implementation}' is for inference, and inference=False asks for gradients: use"
    with pytest.raises(ValueError, match=message):
        DenseEncoder(tiny_tower(), implementation=implementation, inference=False)
    assert DenseEncoder(tiny_tower(), inference=False).implementation == "torch"
    with pytest.raises(TypeError, match="inference must be True or False; got 'no'"):
        DenseEncoder(tiny_tower(), inference="no")  # type: ignore[arg-type]
