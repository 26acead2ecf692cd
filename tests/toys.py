"""A small CLIP with random weights, with its tokenizer, segmenter and images, for tests that need no quality."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from resclip import DenseEncoder, Segmenter, Vocabulary

MODEL = "toy-vit"
CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 4, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@functools.cache
def toy_clip() -> nn.Module:
    """The model, seeded, in eval mode."""
    torch.manual_seed(0)
    return open_clip.CLIP(**CONFIG).eval()


def toy_tokenizer(prompts: list[str]) -> Tensor:
    """CLIP's tokens, cut to the toy's context."""
    return tokenizer()(prompts)


@functools.cache
def tokenizer() -> open_clip.SimpleTokenizer:
    """Built once: it reads 49,408 words."""
    return open_clip.SimpleTokenizer(context_length=16)


def toy_segmenter(encoder: Mapping[str, Any] | None = None, **arguments: Any) -> Segmenter:
    """Three classes by four queries, small windows; options of `DenseEncoder`, and arguments of `Segmenter`."""
    classes = ["cat, kitten", "dog", "grass"]
    vocabulary = Vocabulary.from_names(classes, toy_clip(), toy_tokenizer, templates=["{}"])
    dense = DenseEncoder(toy_clip().visual, **(encoder or {}))
    return Segmenter(
        dense, vocabulary, **{"window": 32, "stride": 16, "short_side": 48, **arguments}
    )


def random_image(
    height: int, width: int, seed: int = 0, *, noise: bool = False
) -> NDArray[np.uint8]:
    """(height, width, 3): smooth colours, or noise."""
    size = (height, width) if noise else (6, 6)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((width, height)))
