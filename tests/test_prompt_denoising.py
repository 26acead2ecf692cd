"""MaskCLIP's prompt denoising and key smoothing: by their definitions, image by image, and the keys of a tower."""

from __future__ import annotations

import pytest
import torch
from method_support import small_tower
from torch import Tensor
from torch.nn.functional import normalize

from resclip import DenseEncoder
from resclip.methods.steps import KeySmoothing, PromptDenoising
from resclip.steps.prompt_denoising import denoise_prompts, smooth_by_keys


def cosines(images: int = 3, queries: int = 6, grid: tuple[int, int] = (3, 5)) -> Tensor:
    return 0.2 * torch.rand(images, queries, *grid)


def test_a_query_stays_where_any_patch_shows_it() -> None:
    logits = torch.full((1, 3, 2, 3), 0.1)
    logits[0, 1, 1, 2] = 0.3  # softmax of 30, 10, 10
    logits[0, 2, 0, 0] = 0.105  # softmax of 10.5, 10, 10: 0.45
    found = denoise_prompts(logits, PromptDenoising())
    assert torch.equal(found[:, 1], logits[:, 1])
    assert (found[:, (0, 2)] == -100).all()
    both = denoise_prompts(logits, PromptDenoising(0.44))
    assert torch.equal(both[:, (1, 2)], logits[:, (1, 2)])
    assert torch.equal(denoise_prompts(logits, PromptDenoising(0.0)), logits)


@pytest.mark.parametrize("axis", ("channel", "position"))
@pytest.mark.parametrize("threshold", (0.0, 0.5, 1.0))
def test_smoothing_is_by_the_whole_map_of_keys(seed: int, axis: str, threshold: float) -> None:
    torch.manual_seed(seed)
    logits, keys = cosines().double(), torch.randn(3, 15, 8).double()
    got = smooth_by_keys(logits, keys, KeySmoothing(threshold, axis, scale=30.0))
    for image in range(3):
        p = (30 * logits[image].flatten(1)).softmax(dim=0).T
        unit = normalize(keys[image], dim=0 if axis == "channel" else 1)
        smoothed = unit @ unit.T @ p
        expected = torch.where(p.amax(dim=1, keepdim=True) < threshold, smoothed, p)
        torch.testing.assert_close(got[image], expected.T.unflatten(1, (3, 5)))


def test_images_of_a_batch_do_not_mix(seed: int) -> None:
    torch.manual_seed(seed)
    logits, keys = cosines(), torch.randn(3, 15, 8)
    smoothed = smooth_by_keys(logits, keys, KeySmoothing())
    denoised = denoise_prompts(logits, PromptDenoising(0.9))
    for image in range(3):
        one = slice(image, image + 1)
        alone = smooth_by_keys(logits[one], keys[one], KeySmoothing())
        torch.testing.assert_close(smoothed[one], alone, rtol=1e-5, atol=1e-6)
        assert torch.equal(denoised[one], denoise_prompts(logits[one], PromptDenoising(0.9)))


def test_a_query_that_was_left_out_is_not_smoothed_back(seed: int) -> None:
    torch.manual_seed(seed)
    logits, keys = cosines(), torch.randn(3, 15, 8)
    logits[:, 4] = -1  # No patch shows it, and each image shows query 1.
    logits[:, 1, 0, 0] = 1
    denoised = denoise_prompts(logits, PromptDenoising())
    smoothed = smooth_by_keys(denoised, keys, KeySmoothing())
    assert not smoothed[:, 4].any()
    assert smoothed[:, 1].any()


def test_patch_keys_are_those_of_all_heads_behind_the_output_layer(seed: int) -> None:
    torch.manual_seed(seed)
    visual = small_tower()
    dense = DenseEncoder(visual, base="maskclip")
    tokens = torch.randn(2, 1 + 3 * 5, 64)
    block = visual.transformer.resblocks[-1]
    _, weight, _ = block.attn.in_proj_weight.chunk(3)
    _, bias, _ = block.attn.in_proj_bias.chunk(3)
    with torch.no_grad():
        expected = block.attn.out_proj(block.ln_1(tokens) @ weight.T + bias)[:, 1:]
        got = dense.final.patch_keys(tokens, (3, 5))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("logits", "keys", "words"),
    (
        (torch.ones(2, 3, 4), torch.ones(2, 4, 8), "logits must have 4 dimensions"),
        (torch.ones(2, 0, 2, 2), torch.ones(2, 4, 8), "at least one query and one patch"),
        (torch.ones(2, 3, 2, 2), torch.ones(2, 5, 8), r"B = 2 and n = 4.*got \(2, 5, 8\)"),
        (torch.ones(2, 3, 2, 2), torch.ones(1, 4, 8), r"B = 2 and n = 4.*got \(1, 4, 8\)"),
    ),
)
def test_what_does_not_fit_is_refused(logits: Tensor, keys: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        smooth_by_keys(logits, keys, KeySmoothing())


def test_other_steps_are_refused() -> None:
    with pytest.raises(TypeError, match="step must be a PromptDenoising; got KeySmoothing"):
        denoise_prompts(cosines(), KeySmoothing())
    with pytest.raises(TypeError, match="step must be a KeySmoothing; got PromptDenoising"):
        smooth_by_keys(cosines(), torch.ones(3, 15, 8), PromptDenoising())
