"""CLIP models of every family behind one interface: the tower that the encoder runs, and how a model is loaded.

`adapt` makes a `Tower` of an open_clip or Hugging Face model; `load_model` finds one by its name. One file a family.
"""

from __future__ import annotations

from resclip.models.loading import BUILTIN, LoadedModel, Tokenizer, adapt, list_models, load_model
from resclip.models.tower import Tower

__all__ = [
    "BUILTIN",
    "LoadedModel",
    "Tokenizer",
    "Tower",
    "adapt",
    "list_models",
    "load_model",
]
