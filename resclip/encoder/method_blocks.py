"""Which final block a method has, by its pieces."""

from __future__ import annotations

from typing import Any

from resclip.encoder.final_block import FinalBlock
from resclip.encoder.layer_fusion import FusedBlock
from resclip.encoder.second_path import SecondPathBlock
from resclip.encoder.token_repair import RepairedBlock
from resclip.methods.catalogue import find_base
from resclip.models import Tower


def make_final_block(tower: Tower, base: str, *arguments: Any, **keywords: Any) -> FinalBlock:
    """The final block of a method; arguments as `FinalBlock` takes them."""
    pieces = keywords.get("pieces")
    if pieces is None:
        pieces = find_base(base).pieces
    kind: type[FinalBlock] = FinalBlock
    if getattr(pieces, "fusion", None) is not None:
        kind = FusedBlock
    elif getattr(pieces, "path", None) is not None:
        kind = SecondPathBlock
    elif getattr(pieces, "repairs", False):
        kind = RepairedBlock
    return kind(tower, base, *arguments, **keywords)
