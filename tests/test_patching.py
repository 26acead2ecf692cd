"""`patch`: one method more, everything else as it was, and the way back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from toys import toy_clip, toy_tokenizer

import resclip
from resclip import RCS, DenseEncoder

PIXELS = torch.randn(2, 3, 40, 48, generator=torch.Generator().manual_seed(0))
TRAINED_SIZE = PIXELS[..., :32, :32]


def text() -> Tensor:
    with torch.no_grad():
        return normalize(toy_clip().encode_text(toy_tokenizer(["a cat", "a dog", "grass"])), dim=1)


def test_inside_the_block_the_model_is_dense_and_outside_it_is_not() -> None:
    model = toy_clip()
    with resclip.patch(model, method="naclip") as patched:
        patches = model.encode_dense(PIXELS)
        assert patches.shape == (2, 5, 6, 32)
        assert torch.equal(patches, DenseEncoder(model.visual, base="naclip")(PIXELS).patches)
        assert patched.encoder.base.name == "naclip"
    assert not hasattr(model, "encode_dense")


def test_it_lasts_without_a_block_until_undone() -> None:
    model = toy_clip()
    patched = resclip.patch(model)
    unit = model.encode_dense(PIXELS, text(), normalize=True)
    assert torch.allclose(unit.norm(dim=-1), torch.ones(2, 5, 6), atol=1e-6)
    patched.undo()
    assert not hasattr(model, "encode_dense")
    patched.undo()  # Once undone, nothing happens.
    with resclip.patch(model, method="clip"):
        patched.undo()  # Nor is another patch undone.
        assert model.encode_dense(PIXELS).shape == (2, 5, 6, 32)


def test_images_texts_and_the_state_dict_stay_as_they_were() -> None:
    model = toy_clip()
    tokens = toy_tokenizer(["a cat"])
    with torch.no_grad():
        before = model.encode_image(TRAINED_SIZE), model.encode_text(tokens)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        modules = [name for name, _ in model.named_modules()]
        with resclip.patch(model, method="sclip+rcs+sfr", rcs=RCS(layers=(2,))):
            model.encode_dense(PIXELS, text())
            assert torch.equal(model.encode_image(TRAINED_SIZE), before[0])
            assert torch.equal(model.encode_text(tokens), before[1])
            assert [name for name, _ in model.named_modules()] == modules
            patched = model.state_dict()
    assert list(patched) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in patched.items())


def test_a_copy_of_a_patched_model_runs_its_own_weights() -> None:
    with resclip.patch(toy_clip(), method="naclip"):
        other = copy.deepcopy(toy_clip())
    with torch.no_grad():
        other.visual.proj.mul_(2.0)
    plain = DenseEncoder(toy_clip().visual, base="naclip")(PIXELS).patches
    torch.testing.assert_close(other.encode_dense(PIXELS), 2.0 * plain)


def test_training_mode_comes_back() -> None:
    model = copy.deepcopy(toy_clip()).train()
    modes = [module.training for module in model.modules()]
    with resclip.patch(model, method="naclip"):
        assert not model.visual.training
    assert [module.training for module in model.modules()] == modes


def test_what_cannot_be_patched_says_why_and_an_error_undoes() -> None:
    with pytest.raises(ValueError, match="needs text"), resclip.patch(toy_clip()):
        toy_clip().encode_dense(PIXELS)
    with resclip.patch(toy_clip(), method="clip"), pytest.raises(ValueError, match="already"):
        resclip.patch(toy_clip())
    with pytest.raises(ValueError, match="unknown method 'deeplab'"):
        resclip.patch(toy_clip(), method="deeplab")
    with pytest.raises(TypeError, match="clip_model must be a CLIP model.*; got 5"):
        resclip.patch(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="method must be a name.*; got 5"):
        resclip.patch(toy_clip(), 5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got Linear"):
        resclip.patch(torch.nn.Linear(2, 2))
    assert not hasattr(toy_clip(), "encode_dense")


def test_a_model_that_is_refused_stays_in_its_mode() -> None:
    model = copy.deepcopy(toy_clip()).train()
    model.visual.transformer.resblocks[-1].attn.register_forward_hook(lambda *call: None)
    with pytest.raises(TypeError, match="has a hook"):
        resclip.patch(model)
    assert all(module.training for module in model.modules())
    assert not hasattr(model, "encode_dense")


def test_a_forward_that_leaves_blocks_out_is_refused() -> None:
    visual = copy.deepcopy(toy_clip()).visual
    visual.forward = lambda pixels: (pixels, pixels)
    with pytest.raises(TypeError, match="did not run its block|forward replaced"):
        resclip.ResidualBlock.from_tower(visual, "naclip")
