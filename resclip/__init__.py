"""Open-vocabulary segmentation from a CLIP model, without training: ResCLIP and the methods that it plugs into.

The names below load on first use, so that `import resclip` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from resclip.version import __version__

if TYPE_CHECKING:
    from resclip.encoder import DenseEncoder as DenseEncoder
    from resclip.encoder import DenseFeatures as DenseFeatures
    from resclip.methods import RCS as RCS
    from resclip.methods import SFR as SFR
    from resclip.result import Segmentation as Segmentation
    from resclip.segmenter import Segmenter as Segmenter
    from resclip.segmenter import load as load
    from resclip.vocabulary import Vocabulary as Vocabulary

HOMES = {
    "DenseEncoder": "encoder",
    "DenseFeatures": "encoder",
    "RCS": "methods",
    "SFR": "methods",
    "Segmentation": "result",
    "Segmenter": "segmenter",
    "Vocabulary": "vocabulary",
    "load": "segmenter",
}
__all__ = [
    "RCS",
    "SFR",
    "DenseEncoder",
    "DenseFeatures",
    "Segmentation",
    "Segmenter",
    "Vocabulary",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(HOMES))
