"""The very large image: every pixel a scene's, georeferenced, the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import synthetic_raster as quilt
from resclip.builtin.scenes import render_scene
from resclip.io.geotiff import open_raster


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scenes of 64 pixels, three of them: fewer than there are places."""
    monkeypatch.setattr(quilt, "PATCH", 64)
    monkeypatch.setattr(quilt, "SCENES", 3)


def pixels_of(path: Path) -> np.ndarray:
    with open_raster(path) as raster:
        return raster.rows(0, raster.height)


def test_every_place_has_a_scene_and_the_edges_are_cut(tmp_path: Path) -> None:
    quilt.sew(tmp_path / "quilt.tif", 150, seed=1)
    pixels = pixels_of(tmp_path / "quilt.tif")
    assert pixels.shape == (150, 150, 3)
    scenes = [render_scene(np.random.default_rng([44, 1, i]), 64).image for i in range(3)]
    seen = []
    for top in (0, 64, 128):
        for left in (0, 64, 128):
            place = pixels[top : top + 64, left : left + 64]
            cut = [scene[: place.shape[0], : place.shape[1]] for scene in scenes]
            (number,) = [i for i in range(3) if np.array_equal(cut[i], place)]
            seen.append(number)
    assert np.bincount(seen).tolist() == [3, 3, 3]


def test_one_seed_is_one_quilt_and_another_is_another(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert (
            quilt.main(["--side", "100", "--seed", str(seed), "--out", str(tmp_path / name)]) == 0
        )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (pixels_of(tmp_path / "a") != pixels_of(tmp_path / "c")).any()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "b", "c"]


def test_a_pixel_is_a_metre(tmp_path: Path) -> None:
    quilt.sew(tmp_path / "quilt.tif", 70)
    with open_raster(tmp_path / "quilt.tif") as raster:
        assert raster.crs.to_epsg() == 3857
        assert raster.transform[:6] == (1.0, 0.0, 0.0, 0.0, -1.0, 70.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--side", "0"], "side of at least 1"),
        (["--side", "70", "--seed", "-1"], "seed of at least 0"),
        (["--side", "70"], "No such file or directory"),
    ],
)
def test_what_cannot_be_sewn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        quilt.main([*options, "--out", str(tmp_path / "absent" / "quilt.tif")])
    assert caught.value.code == 2
    assert words in capsys.readouterr().err
