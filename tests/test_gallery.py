"""The gallery of methods: which scenes it shows, how it is laid out, and what the command draws."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import gallery
from benchmarks.gallery import METHODS, GalleryRow, agreement, draw_gallery, main, varied_scenes
from resclip.builtin.scenes import CLASS_NAMES
from resclip.builtin.training.captions import visible_names
from resclip.methods.catalogue import BASES, find_method
from resclip.visualization.fonts import built_in_font, text_width
from resclip.visualization.overlay import draw_key, palette

GREY = (120, 120, 120)


def rows(count: int, columns: int, size: tuple[int, int], name: str = "naclip") -> list[GalleryRow]:
    cells = [Image.new("RGB", size, GREY)] * columns
    return [GalleryRow(name, "94% as drawn", cells)] * count


def runs(line: np.ndarray) -> list[tuple[int, int]]:
    """[start, end) of every run of grey pixels in a line of the image."""
    grey = (line == GREY).all(axis=-1).astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], grey, [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def test_five_scenes_show_every_class() -> None:
    scenes = varied_scenes(7)
    shown = [frozenset(visible_names(scene.mask)) for scene in scenes]
    assert frozenset.union(*shown[:5]) == set(CLASS_NAMES)
    assert all(scene.image.shape == (224, 224, 3) for scene in scenes)
    # Once all have been seen it goes on, to other scenes; fewer columns show the first ones.
    plans = [scene.plan for scene in scenes]
    assert len(set(plans)) == 7
    assert [scene.plan for scene in varied_scenes(2)] == plans[:2]


def test_every_base_and_resclip_are_shown() -> None:
    assert set(METHODS) >= {*BASES, "naclip+rcs", "naclip+sfr", "resclip"}
    assert len({find_method(name).name for name in METHODS}) == len(METHODS)


@pytest.mark.parametrize("size", [(40, 40), (25, 90), (200, 30)])  # cells narrow, high and wide
def test_cells_stand_in_straight_rows_and_columns(size: tuple[int, int]) -> None:
    image = np.asarray(draw_gallery(rows(3, 4, size), [(0, "sky")], palette(1)))
    last_cell = image.shape[1] - 28 - size[0] // 2
    assert [end - start for start, end in runs(image[:, last_cell])] == [size[1]] * 3
    across = runs(image[28 + size[1] // 2])
    assert [end - start for start, end in across] == [size[0]] * 4
    assert [after[0] - cell[1] for cell, after in itertools.pairwise(across)] == [8] * 3
    assert across[-1][1] == image.shape[1] - 28


def test_captions_keep_clear_of_the_cells_however_long() -> None:
    short, long = (
        draw_gallery(rows(2, 2, (60, 60), name), [(0, "sky")], palette(1))
        for name in ("naclip", "a method of a very long name " * 5)
    )
    assert short.width < long.width < 28 + 230 + 20 + 2 * 68 + 28
    pixels = np.asarray(long)
    first = runs(pixels[28 + 30])[0][0]
    assert (pixels[28 : 28 + 60, first - 18 : first] == 255).all()
    assert (pixels[28 : 28 + 60, 28 : first - 18] != 255).any()


def test_a_row_without_a_note_has_its_name_in_the_middle() -> None:
    cells = [Image.new("RGB", (60, 60), GREY)]
    image = draw_gallery([GalleryRow("noon", "", cells)], [(0, "sky")], palette(1))
    ink = (np.asarray(image)[28:88, 28:70] < 128).any(axis=(1, 2))
    first, last = np.flatnonzero(ink)[[0, -1]]
    assert abs((first + last) / 2 - 30) <= 4


def test_the_key_names_each_class_and_wraps() -> None:
    colours = palette(12)
    names = [f"class number {index}" for index in range(12)]
    wide, narrow = (draw_key(list(enumerate(names)), colours, width) for width in (4000, 400))
    assert wide.size == (4000, 30)
    assert narrow.width == 400
    assert narrow.height > 3 * wide.height
    for key in (wide, narrow):
        found = {bytes(pixel) for pixel in np.asarray(key).reshape(-1, 3)}
        assert {bytes(colour) for colour in colours} <= found
        assert (np.asarray(key)[:, -1] == 255).all()


@pytest.mark.parametrize("name", ["x" * 500, "many words " * 50])
def test_a_name_longer_than_the_key_is_shortened(name: str) -> None:
    key = np.asarray(draw_key([(0, name), (1, "sky")], palette(2), 300))
    assert key.shape == (60, 300, 3)
    sky = 28 + text_width("sky", built_in_font(17))
    assert (key[30:, int(sky) + 2 :] == 255).all()


def test_agreement_is_over_all_scenes() -> None:
    truth = [np.zeros((2, 4), np.int64), np.ones((2, 4), np.int64)]
    assert agreement(truth, truth) == 1.0
    assert agreement([truth[0], truth[0]], truth) == 0.5


def test_the_command_draws_images_truth_and_methods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the built-in model; two methods, since each takes seconds."""
    monkeypatch.setattr(gallery, "METHODS", ("maskclip", "naclip"))
    monkeypatch.setattr(gallery, "_CANDIDATES", 1)
    found = {}

    def segment(scenes, method):
        found[method] = genuine(scenes, method)
        return found[method]

    genuine = gallery.segment_scenes
    monkeypatch.setattr(gallery, "segment_scenes", segment)
    out = tmp_path / "new" / "gallery.png"
    assert main(["--out", str(out), "--scenes", "1"]) == 0
    assert str(out) in capsys.readouterr().out
    image = Image.open(out)
    assert out.stat().st_size < 100_000
    assert image.height >= 28 + 4 * (148 + 8) + 30 + 28
    scene = varied_scenes(1)[0]
    left = image.width - 28 - 148
    cells = [np.asarray(image)[28 + 156 * row :][:148, left : left + 148] for row in range(4)]
    shrunk = Image.fromarray(scene.image).resize((148, 148), Image.Resampling.BOX)
    np.testing.assert_array_equal(cells[0], np.asarray(shrunk))
    assert agreement(found["naclip"], [scene.mask]) > 0.8
    # Where a method is right its cell looks as the drawn one does; 0.1 is left to borders.
    for cell, method in zip(cells[2:], ("maskclip", "naclip"), strict=True):
        same = (np.abs(cell.astype(int) - cells[1]).max(axis=2) < 8).mean()
        assert same == pytest.approx(agreement(found[method], [scene.mask]), abs=0.1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scenes", "0"], "--scenes must be at least 1, got 0"),
        (["--out", "gallery.jpg"], "--out must name a .png file, got gallery.jpg"),
    ],
)
def test_the_command_says_what_it_cannot_do(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err
