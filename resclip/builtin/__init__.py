"""A small built-in CLIP, so that everything can be tried without a download.

It is an open_clip model (12 blocks, patches of 8 pixels, images of 112 x 112) trained on scenes that this package draws
itself and on captions of them: see `resclip.builtin.training`, which only the repository has. It knows seventeen
classes of things as picture books show them, colours and a few dozen words, and nothing of photographs.

Its training sees captions and the layout of mosaics of scenes, never where a thing is inside its scene. Two parts do
look at that: the writer of captions, who must know what is visible, and the choice of crops, which prefers things. The
training also asks the values to be meaningful when averaged by key-key attention or by the attention of the middle
blocks, so NACLIP and RCS suit this model by design.

Importing this module imports neither torch nor open_clip.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from resclip.errors import DrawnScenesWarning

if TYPE_CHECKING:
    import torch
    from open_clip.model import CLIP

    from resclip.builtin.tokenizer import WordTokenizer

BUILTIN = "builtin"
"""The name of the built-in model."""
DRAWN_ONLY = (
    "the built-in model knows drawn scenes alone, and what it says of other pictures means nothing"
)
"""What stands beside its results for any picture that is not marked as such a scene."""
TEMPLATES = (
    "a picture of {}.", "a photo of {}.", "a drawing of {}.", "a painting of {}.", "{}.", "this is {}.",
    "a picture of a {}.", "a picture of the {}.",
)  # fmt: skip
"""Prompts that the model was trained with."""
CONFIG_NAME, WEIGHTS_NAME, WORDS_NAME = (
    "open_clip_config.json",
    "open_clip_model.safetensors",
    "words.json",
)


def directory() -> Path:
    """The folder with configuration, weights and words, which open_clip loads as "local-dir:..."."""
    return Path(__file__).parent


def load_builtin(
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
    folder: Path | None = None,
) -> tuple[CLIP, WordTokenizer, tuple[float, ...], tuple[float, ...]]:
    """The model in eval mode, its tokenizer, and mean and standard deviation per channel of its pixels.

    Args:
        device: of the weights.
        precision: a floating dtype; None for float32 (the file has float16).
        folder: another export of `resclip.builtin.training.train`; None for the packaged one.

    Raises:
        FileNotFoundError: the folder lacks the configuration, the weights or the words.
    """
    import open_clip

    from resclip.builtin.tokenizer import WordTokenizer

    folder = directory() if folder is None else folder
    for name in (CONFIG_NAME, WEIGHTS_NAME, WORDS_NAME):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} is missing: reinstall resclip, or train the model again in the repository: "
                "`python -m resclip.builtin.training.train`"
            )
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=True)
    tokenizer = WordTokenizer.from_file(folder / WORDS_NAME)
    mean, std = model.visual.image_mean, model.visual.image_std
    model = model.to(device=device, dtype=precision).eval()
    return model, tokenizer, tuple(mean), tuple(std)


def warn_of_drawn_scenes() -> None:
    """DrawnScenesWarning."""
    warnings.warn(
        f"{DRAWN_ONLY}; name a real one by model=, as `resclip models` lists them",
        DrawnScenesWarning,
        stacklevel=3,
    )
