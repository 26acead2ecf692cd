"""A small open_clip model with random weights and a tokenizer for it, for tests that need no quality."""

from __future__ import annotations

import functools

import open_clip
import torch
from torch import Tensor, nn

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
