"""What docs/pictures.md shows in Python runs as it stands, and what it says of colours is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resclip.visualization.colours import palette

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/pictures.md").read_text(encoding="utf-8")


def test_its_examples_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").mkdir()
    with Image.open(ROOT / "docs/scene.png") as scene:
        scene.resize((112, 84)).save(tmp_path / "docs/scene.png")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    examples = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(examples) == 3
    for example in examples:
        exec(compile(example, "docs/pictures.md", "exec"), namespace)
    with Image.open(tmp_path / "overlay.png") as overlay:
        assert overlay.width > 112
    encoder, pixels = namespace["encoder"], namespace["pixels"]
    planes = encoder.attention(pixels, query=(3, 5)).planes()
    assert {name: tuple(plane.shape) for name, plane in planes.items()} == dict.fromkeys(
        ("base", "cross-layer", "final"), (1, 1, 14, 14)
    )
    one = encoder.attention(pixels, query=(3, 5), layer=3, head=2)
    assert one.values.shape == (1, 1, 1, 14, 14)


def test_the_two_lists_of_its_first_example_have_the_same_colours() -> None:
    first = palette(["sky", "tree", "grass", "gadget"])
    second = palette(["gadget", "Trees", "lawn", "sky"])
    np.testing.assert_array_equal(first, second[[3, 1, 2, 0]])
