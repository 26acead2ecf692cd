"""The README's first picture: it shows the scene that its rule picks, and what it says was measured."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import comparison
from benchmarks.comparison import (
    BASE,
    REPAIRED,
    Comparison,
    main,
    scene_miou,
    segmented,
    shown_scene,
)


def test_of_scenes_with_enough_classes_the_one_that_gains_most_is_shown() -> None:
    miou = {BASE: [10.0, 50.0, 50.0, 30.0], REPAIRED: [90.0, 60.0, 75.0, 54.0]}
    assert Comparison(miou, [4, 5, 5, 6]).scene() == 2


def test_the_caption_s_figures_are_those_of_the_results() -> None:
    stored = Comparison.read()
    assert len(stored.classes) == len(stored.miou[BASE]) == len(stored.miou[REPAIRED]) == 200
    number = stored.scene()
    text = comparison.caption(stored)
    assert f"gains {stored.miou[REPAIRED][number] - stored.miou[BASE][number]:.1f} points" in text
    better = sum(after > before for before, after in zip(*stored.miou.values(), strict=True))
    assert f"{better} scenes are better" in text
    mean = re.search(r"it gains ([\d.]+), from ([\d.]+) to ([\d.]+)", text)
    assert mean is not None
    gain, before, after = map(float, mean.groups())
    assert after - before == pytest.approx(gain, abs=0.11)


def test_the_picture_is_drawn_and_its_scene_measures_as_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = {}

    def keep(images: list[np.ndarray], method: str) -> list[np.ndarray]:
        labels[method] = segmented(images, method)
        return labels[method]

    monkeypatch.setattr(comparison, "segmented", keep)
    out = tmp_path / "new" / "picture.png"
    assert main(["--out", str(out)]) == 0
    stored = Comparison.read()
    assert capsys.readouterr().out == f"{comparison.caption(stored)}\n"
    assert out.stat().st_size < 120_000
    with Image.open(out) as image:
        assert 900 < image.width < 1200
    number = stored.scene()
    scene = shown_scene(number)
    assert len(np.unique(scene.mask)) == stored.classes[number] >= comparison.FEWEST_CLASSES
    for method in (BASE, REPAIRED):
        # Another processor rounds differently, and a few pixels on borders follow.
        wanted = pytest.approx(stored.miou[method][number], abs=1.0)
        assert scene_miou(scene.mask, labels[method][0]) == wanted


def test_another_file_than_a_png_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--out", "picture.jpg"])
    assert "--out must name a .png file" in capsys.readouterr().err
