"""A small built-in CLIP, so that everything can be tried without a download.

It is an open_clip model (12 blocks, patches of 8 pixels, 112 x 112 images) trained on images and captions alone,
on scenes that this package draws itself: see `train.py`. It knows seventeen classes of picture-book things, colours
and a few dozen words, and nothing of photographs.

Its losses see captions and the layout of mosaics, never where a thing is inside its image. Two things do look: the
caption writer, who must know what is visible, and the camera, which likes to point at things. The losses also ask for
sense in the values that key-key attention and the middle blocks gather, so NACLIP and RCS suit this model by design.

Importing this module imports neither torch nor open_clip.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from open_clip.model import CLIP

    from resclip.builtin.tokenizer import WordTokenizer

__all__ = ["TEMPLATES", "directory", "load_builtin"]

TEMPLATES = (
    "a picture of {}.", "a photo of {}.", "a drawing of {}.", "a painting of {}.", "{}.", "this is {}.",
    "a picture of a {}.", "a picture of the {}.",
)  # fmt: skip
"""Prompts that the model has been trained with."""


def directory() -> Path:
    """The folder to give open_clip as "local-dir:...": configuration, weights, words."""
    return Path(__file__).parent


def load_builtin(
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
    folder: Path | None = None,
) -> tuple[CLIP, WordTokenizer, tuple[float, ...], tuple[float, ...]]:
    """The model in eval mode, its tokenizer, and the mean and deviation of its pixels.

    Args:
        device: where the weights go.
        precision: a floating dtype; None for float32 (the file holds float16).
        folder: another export of `resclip.builtin.training.train`; None for the packaged one.

    Raises:
        FileNotFoundError: the folder lacks the configuration, the weights or the words.
    """
    import open_clip

    from resclip.builtin.model import CONFIG_NAME, WEIGHTS_NAME, WORDS_NAME
    from resclip.builtin.tokenizer import WordTokenizer

    place = directory() if folder is None else folder
    for name in (CONFIG_NAME, WEIGHTS_NAME, WORDS_NAME):
        if not (place / name).is_file():
            raise FileNotFoundError(
                f"{place / name} is missing: reinstall resclip, or train it again with "
                "`python -m resclip.builtin.training.train`"
            )
    model = open_clip.create_model(f"local-dir:{place}", load_weights=True)
    tokenizer = WordTokenizer.from_file(place / WORDS_NAME)
    mean, std = model.visual.image_mean, model.visual.image_std
    model = model.to(device=device, dtype=precision).eval()
    return model, tokenizer, tuple(mean), tuple(std)
