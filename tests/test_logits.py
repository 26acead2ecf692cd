"""Tensors in, tensors out: `Segmenter.logits`, and `predict` of lists."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toys import toy_segmenter

from resclip.encoder.similarity import similarity


@pytest.mark.parametrize("window", (0, 32))
def test_logits_are_what_labels_are_made_of(window: int) -> None:
    segmenter = toy_segmenter(window=window, stride=16)
    pixels = torch.randn(2, 3, 48, 72)
    whole = segmenter.logits(pixels, upsample=True)
    assert whole.shape == (2, 4, 48, 72)
    classes = segmenter.vocabulary.query_to_class[whole.argmax(dim=1)]
    assert torch.equal(classes, segmenter.predict(pixels))


def test_logits_of_patches_are_the_encoders_where_one_window_sees_all() -> None:
    segmenter = toy_segmenter(window=0)
    pixels = torch.randn(2, 3, 48, 75)  # A remainder of 3 pixels belongs to no patch.
    came = segmenter.logits(pixels)
    patches = segmenter.encoder(pixels).patches
    expected = similarity(patches, segmenter.vocabulary.embeddings)
    assert came.shape == (2, 4, 6, 9)
    torch.testing.assert_close(came, expected)


def test_logits_of_patches_are_the_mean_of_the_windows_that_see_them() -> None:
    segmenter = toy_segmenter(window=32, stride=16)
    pixels = torch.randn(1, 3, 32, 48)
    text = segmenter.vocabulary.embeddings
    left, right = (
        similarity(segmenter.encoder(pixels[..., start : start + 32]).patches, text)
        for start in (0, 16)
    )
    expected = torch.cat(
        [left[..., :2], (left[..., 2:] + right[..., :2]) / 2, right[..., 2:]], dim=-1
    )
    torch.testing.assert_close(segmenter.logits(pixels), expected)
    # A last window that was shifted back is read between its patches.
    assert segmenter.logits(torch.randn(1, 3, 32, 51)).shape == (1, 4, 4, 6)


def test_images_of_several_sizes_come_back_one_by_one() -> None:
    segmenter = toy_segmenter()
    images = [torch.randn(3, 40, 48), torch.randn(3, 64, 33)]
    for many, one in zip(segmenter.logits(images), images, strict=True):
        torch.testing.assert_close(many, segmenter.logits(one[None])[0])
    for many, one in zip(segmenter.predict(images), images, strict=True):
        assert torch.equal(many, segmenter.predict(one[None])[0])
    assert segmenter.logits([]) == segmenter.predict([]) == []
    assert segmenter.logits(torch.empty(0, 3, 48, 48)).shape == (0, 4, 6, 6)


@pytest.mark.parametrize(
    ("pixels", "said"),
    (
        (torch.zeros(3, 48, 48), "pixels must be a .B, 3, H, W. tensor, or a list"),
        ([torch.zeros(1, 3, 48, 48)], "each image of pixels must be a .3, H, W. tensor"),
        (torch.zeros(1, 3, 48, 48, dtype=torch.uint8), "normalised floats; got torch.uint8"),
        (torch.full((1, 3, 48, 48), torch.nan), "NaN"),
        (torch.zeros(1, 3, 4, 48), "smaller than one patch"),
        ("image.png", "got str"),
    ),
)
def test_what_are_no_pixels_is_refused(pixels: Any, said: str) -> None:
    segmenter = toy_segmenter()
    for call in (segmenter.logits, segmenter.predict):
        with pytest.raises((ValueError, TypeError), match=said):
            call(pixels)


@pytest.mark.parametrize("what", ("logits", "predict"))
def test_an_error_names_its_image(what: str) -> None:
    pixels = torch.randn(3, 3, 48, 48)
    pixels[1, 0, 5, 5] = torch.nan
    with pytest.raises(ValueError, match=r"^image 1 of pixels .* NaN"):
        getattr(toy_segmenter(), what)(pixels)
