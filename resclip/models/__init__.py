"""CLIP models of every family behind one interface: `load_model` finds one by name, `adapt` runs its tower in steps.

The names below load on first use: models are listed without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from resclip.builtin import BUILTIN

if TYPE_CHECKING:
    from resclip.models.listing import list_models
    from resclip.models.loading import (
        LoadedModel,
        Tokenizer,
        adapt,
        load_model,
        unwrap,
        wrap_model,
    )
    from resclip.models.tower import Tower

# The module that defines each name.
HOMES = {
    "LoadedModel": "loading",
    "Tokenizer": "loading",
    "Tower": "tower",
    "adapt": "loading",
    "list_models": "listing",
    "load_model": "loading",
    "unwrap": "loading",
    "wrap_model": "loading",
}
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


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)
