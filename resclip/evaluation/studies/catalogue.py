"""The list of all studies that `resclip ablate` takes: names, papers and one line each. It loads no torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NamedTuple

RESCLIP = "ResCLIP (arXiv 2411.15851)"
SCLIP = "SCLIP (arXiv 2312.01597)"
PROXYCLIP = "ProxyCLIP (arXiv 2408.04883)"
OWN = "a recommendation for images of one's own"


class Entry(NamedTuple):
    """One study."""

    paper: str
    """Whose question it is."""
    summary: str
    """What it varies or shows, as a phrase."""
    is_sweep: bool = True
    """Whether it measures the mIoU of settings, stored in ablation.json; the others have files of their own."""
    in_all: bool = False
    """Whether it is among `--study all`."""


STUDIES = {
    "modules": Entry(RESCLIP, "the base, with RCS, with SFR, with both", in_all=True),
    "layers-window": Entry(RESCLIP, "RCS with four neighbouring layers", in_all=True),
    "layers-cumulative": Entry(RESCLIP, "RCS with all layers from the first on", in_all=True),
    "rcs-weight": Entry(RESCLIP, "RCS's weight from 0 to 1", in_all=True),
    "sfr-weight": Entry(RESCLIP, "SFR's weight from 0 to 1", in_all=True),
    "sfr-switches": Entry(RESCLIP, "SFR without one of its parts", in_all=True),
    "connectivity": Entry(RESCLIP, "which pairs path decay spares", in_all=True),
    "pamr": Entry(RESCLIP, "iterations of PAMR before the feedback", in_all=True),
    "gain": Entry(
        RESCLIP, "what RCS, SFR and both add to each base, and to each of several --model", False
    ),
    "attention-by-layer": Entry(RESCLIP, "one patch's attention in every layer, drawn", False),
    "spatial-invariance": Entry(
        RESCLIP, "how much the attention of different patches is alike, block by block", False
    ),
    "sclip-projection": Entry(
        SCLIP, "what projects the tokens: nothing, W_q, W_k, a random or a learned matrix, or both"
    ),
    "sclip-alternatives": Entry(
        SCLIP, "sharpened, local and early attention in place of correlative self-attention"
    ),
    "sclip-blocks": Entry(SCLIP, "correlative self-attention in the last 1, 2, 3, … blocks"),
    "patch-similarity": Entry(
        SCLIP,
        "how well q·k, q·q, k·k, v·v, middle blocks and other models tell classes apart",
        False,
    ),
    "proxy-switches": Entry(PROXYCLIP, "without normalisation, without masking, without both"),
    "proxy-beta": Entry(PROXYCLIP, "the proxy's β"),
    "proxy-gamma": Entry(PROXYCLIP, "the proxy's γ"),
    "proxy-size": Entry(PROXYCLIP, "the other model's patches and the size it sees images at"),
    "proxy-similarity": Entry(
        PROXYCLIP, "similarities within and between classes, before and after normalisation", False
    ),
    "maps": Entry(PROXYCLIP, "maps of CLIP, DINO and SAM for one patch, side by side", False),
    "pieces": Entry(
        OWN,
        "which base, modules, outlier repair, aggregation and TLP or PAMR to take, chosen on one half of the images "
        "and judged on the other",
        False,
    ),
}
"""By name, in the order in which they are listed."""


def check_names(names: Iterable[str]) -> list[str]:
    """The names, each once, in the order of `STUDIES`.

    Raises:
        ValueError: no such study, or none at all.
    """
    wanted = list(names)
    for name in wanted:
        if name not in STUDIES:
            near = difflib.get_close_matches(name, STUDIES, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(
                f"unknown study {name[:80]!r}{hint}; use some of: {', '.join(STUDIES)}"
            )
    if not wanted:
        raise ValueError(
            f"expected at least one study, got none; use some of: {', '.join(STUDIES)}"
        )
    return [name for name in STUDIES if name in wanted]


def listing() -> str:
    """Every study with its line, by paper, as text."""
    width = max(map(len, STUDIES)) + 2
    lines: list[str] = []
    for paper in dict.fromkeys(entry.paper for entry in STUDIES.values()):
        lines += ["", paper] if lines else [paper]
        lines += [
            f"  {name:{width}}{entry.summary}{' (in all)' if entry.in_all else ''}"
            for name, entry in STUDIES.items()
            if entry.paper == paper
        ]
    return "\n".join(lines)
