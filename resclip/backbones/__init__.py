"""CLIP models of every family behind one interface: the tower that the encoder runs, and how a model is loaded.

`adapt` makes a `Tower` of an open_clip or Hugging Face model; `load_model` finds one by its name. One file a family.
"""

from __future__ import annotations

from resclip.backbones.families import adapt
from resclip.backbones.loading import LoadedModel, Tokenizer, load_model
from resclip.backbones.names import BUILTIN, list_models
from resclip.backbones.tower import Tower

__all__ = [
    "BUILTIN",
    "LoadedModel",
    "Tokenizer",
    "Tower",
    "adapt",
    "list_models",
    "load_model",
]
