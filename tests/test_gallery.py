"""The gallery of methods: which scenes it shows, how it is laid out, and what the command draws."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import gallery
from benchmarks.gallery import GalleryRow, agreement, draw_gallery, main, varied_scenes
from resclip.builtin.scenes import CLASS_NAMES
from resclip.builtin.training.captions import visible_names
from resclip.visualization.colours import palette
from resclip.visualization.fonts import set_line
from resclip.visualization.legend import draw_key

GREY = (120, 120, 120)


def sheet(name: str, size: tuple[int, int]) -> np.ndarray:
    """A gallery of three rows of four grey cells."""
    rows = [GalleryRow(name, "94% correct", [Image.new("RGB", size, GREY)] * 4)] * 3
    return np.asarray(draw_gallery(rows, [(0, "sky")], palette(["sky"])))


def runs(line: np.ndarray) -> list[tuple[int, int]]:
    """[start, end) of every run of grey pixels in a line of the image."""
    grey = (line == GREY).all(axis=-1).astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], grey, [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def test_five_scenes_show_every_class() -> None:
    scenes = varied_scenes(7)
    shown = [frozenset(visible_names(scene.mask)) for scene in scenes]
    assert frozenset.union(*shown[:5]) == set(CLASS_NAMES)
    # Once all have been seen it goes on, to other scenes.
    assert len({scene.plan for scene in scenes}) == 7


@pytest.mark.parametrize(
    ("name", "size"),  # Cells high and wide, with either name.
    [("naclip", (200, 30)), ("a method of a very long name " * 5, (25, 90))],
)
def test_cells_stand_in_rows_and_columns_clear_of_the_captions(
    name: str, size: tuple[int, int]
) -> None:
    image = sheet(name, size)
    last_cell = image.shape[1] - 28 - size[0] // 2
    assert [end - start for start, end in runs(image[:, last_cell])] == [size[1]] * 3
    across = runs(image[28 + size[1] // 2])
    assert [end - start for start, end in across] == [size[0]] * 4
    assert [after[0] - cell[1] for cell, after in itertools.pairwise(across)] == [8] * 3
    first, row = across[0][0], image[28 : 28 + size[1]]
    assert first <= 28 + 230 + 20
    assert (row[:, first - 18 : first] == 255).all()
    assert (row[:, 28 : first - 18] != 255).any()


def test_the_key_names_each_class_and_wraps() -> None:
    names = [f"class number {index}" for index in range(12)]
    colours = palette(names)
    wide, narrow = (draw_key(list(enumerate(names)), colours, width) for width in (4000, 400))
    assert wide.size == (4000, 30)
    assert narrow.width == 400
    assert narrow.height > 3 * wide.height
    for key in (wide, narrow):
        drawn = {bytes(pixel) for pixel in np.asarray(key).reshape(-1, 3)}
        assert {bytes(colour) for colour in colours} <= drawn
        assert (np.asarray(key)[:, -1] == 255).all()


def test_a_name_longer_than_the_key_is_shortened() -> None:
    for name in ("x" * 500, "many words " * 50):
        key = np.asarray(draw_key([(0, name), (1, "sky")], palette([name, "sky"]), 300))
        assert key.shape == (60, 300, 3)
        sky = 28 + set_line("sky", 17).width
        assert (key[30:, int(sky) + 2 :] == 255).all()


def test_the_command_draws_images_truth_and_methods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the built-in model and one method, which takes seconds."""
    monkeypatch.setattr(gallery, "METHODS", ("naclip",))
    monkeypatch.setattr(gallery, "_CANDIDATES", 1)
    labels = []
    segment = gallery.segment_scenes
    monkeypatch.setattr(
        gallery, "segment_scenes", lambda *given: labels.append(segment(*given)) or labels[0]
    )
    out = tmp_path / "new" / "gallery.png"
    assert main(["--out", str(out), "--scenes", "1"]) == 0
    assert str(out) in capsys.readouterr().out
    image = Image.open(out)
    assert out.stat().st_size < 100_000
    left = image.width - 28 - 148
    cells = [np.asarray(image)[28 + 156 * row :][:148, left : left + 148] for row in range(3)]
    scene = varied_scenes(1)[0]
    shrunk = Image.fromarray(scene.image).resize((148, 148), Image.Resampling.BOX)
    np.testing.assert_array_equal(cells[0], np.asarray(shrunk))
    # Where a method is right its cell looks as the drawn one does; 0.1 is left to borders.
    share = agreement(labels[0], [scene.mask])
    assert 0.8 < share < 1
    same = (np.abs(cells[2].astype(int) - cells[1]).max(axis=2) < 8).mean()
    assert same == pytest.approx(share, abs=0.1)


@pytest.mark.parametrize("arguments", [["--scenes", "0"], ["--out", "gallery.jpg"]])
def test_the_command_says_what_it_cannot_do(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert f"{arguments[0]} must" in capsys.readouterr().err
