"""CLIP models of every family behind one interface: `load_model` finds one by name, `adapt` runs its tower in steps."""

from __future__ import annotations

from resclip.models.loading import (
    BUILTIN,
    LoadedModel,
    Tokenizer,
    adapt,
    list_models,
    load_model,
    unwrap,
    wrap_model,
)
from resclip.models.tower import Tower

__all__ = [
    "BUILTIN",
    "LoadedModel",
    "Tokenizer",
    "Tower",
    "adapt",
    "list_models",
    "load_model",
    "unwrap",
    "wrap_model",
]
