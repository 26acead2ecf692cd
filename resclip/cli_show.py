"""`resclip demo`, `models` and `methods`: what there is, and a first look at it.

Knows what they print. Knows no model and no method by itself, but for the built-in one's scene.
"""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path

import numpy as np

from resclip.images import save_png

__all__ = ["show_demo", "show_methods", "show_models"]


def show_demo(directory: str) -> int:
    """Segment the packaged scene with the built-in model; writes `directory`/demo.png."""
    from resclip.builtin.scenes import CLASS_NAMES, demo_scene
    from resclip.segmenter import load

    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    scene = demo_scene()
    present = np.unique(scene.mask)
    names = [CLASS_NAMES[index] for index in present]
    result = load("builtin", classes=names).segment(scene.image)
    path = folder / "demo.png"
    save_png(result.sheet(), path)
    scores = result.scores()
    width = max(map(len, ["class", *names])) + 2
    print(f"{'class':{width}}{'share':>8}{'probability':>14}")
    for name, fraction in result.areas().items():
        print(f"{name:{width}}{fraction:>8.1%}{scores[name]:>14.2f}")
    agreement = float(np.mean(present[result.labels] == scene.mask))
    print(f"\n{agreement:.1%} of the pixels agree with what was drawn.")
    print(f"Picture, classes and legend: open {path}")
    return 0


def show_models() -> int:
    """One line a model: its name, then its pretrained tags."""
    from resclip.backbone import BUILTIN, list_models

    models = list_models()
    width = max(len(name) for name, _ in models) + 2
    print(f"{BUILTIN:{width}}the small model in the box: no download, no --pretrained")
    for name, tags in models:
        print(f"{name:{width}}{', '.join(tags) or '(no tags: --pretrained takes a checkpoint)'}")
    return 0


def show_methods() -> int:
    """Each method with its summary and paper, then the presets."""
    from resclip.methods import METHODS, PRESETS

    width = max(map(len, [*METHODS, *PRESETS])) + 4
    columns = max(60, min(100, shutil.get_terminal_size().columns))
    indent = " " * width
    print("Methods (--method)")
    for method in METHODS.values():
        print(f"  {method.name:{width - 2}}{method.summary}")
        print(
            textwrap.fill(method.citation, columns, initial_indent=indent, subsequent_indent=indent)
        )
    print("\nPresets (--preset)")
    for preset in PRESETS.values():
        print(f"  {preset.name:{width - 2}}{preset.summary}")
    return 0
