"""Open-vocabulary segmentation from a CLIP model, without training: ResCLIP and the methods that it plugs into.

The names below load on first use, so that `import resclip` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from resclip.version import __version__

if TYPE_CHECKING:
    from resclip.encoder.dense_encoder import DenseEncoder as DenseEncoder
    from resclip.encoder.dense_encoder import DenseFeatures as DenseFeatures
    from resclip.encoder.residual_block import ResidualBlock as ResidualBlock
    from resclip.inference.embedding import Embedding as Embedding
    from resclip.loading import load as load
    from resclip.methods.catalogue import RCS as RCS
    from resclip.methods.catalogue import SFR as SFR
    from resclip.methods.catalogue import Overview as Overview
    from resclip.methods.correlation import Correlation as Correlation
    from resclip.patching import patch as patch
    from resclip.result import Segmentation as Segmentation
    from resclip.segmenter import Segmenter as Segmenter
    from resclip.text.embedding_cache import TextCache as TextCache
    from resclip.text.vocabulary import Vocabulary as Vocabulary

# The module that defines each name.
HOMES = {
    "Correlation": "resclip.methods.correlation",
    "DenseEncoder": "resclip.encoder.dense_encoder",
    "DenseFeatures": "resclip.encoder.dense_encoder",
    "Embedding": "resclip.inference.embedding",
    "Overview": "resclip.methods.catalogue",
    "RCS": "resclip.methods.catalogue",
    "ResidualBlock": "resclip.encoder.residual_block",
    "SFR": "resclip.methods.catalogue",
    "Segmentation": "resclip.result",
    "Segmenter": "resclip.segmenter",
    "TextCache": "resclip.text.embedding_cache",
    "Vocabulary": "resclip.text.vocabulary",
    "load": "resclip.loading",
    "patch": "resclip.patching",
}
__all__ = [
    "RCS",
    "SFR",
    "Correlation",
    "DenseEncoder",
    "DenseFeatures",
    "Embedding",
    "Overview",
    "ResidualBlock",
    "Segmentation",
    "Segmenter",
    "TextCache",
    "Vocabulary",
    "__version__",
    "load",
    "patch",
]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(HOMES))
