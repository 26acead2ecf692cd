"""The very large image: every pixel a scene's, georeferenced, the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import synthetic_raster
from benchmarks.synthetic_raster import main, sew
from resclip.builtin.scenes import render_scene
from resclip.io.images import open_picture


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scenes of 64 pixels, three of them: fewer than there are tiles."""
    monkeypatch.setattr(synthetic_raster, "PATCH", 64)
    monkeypatch.setattr(synthetic_raster, "SCENES", 3)


def pixels_of(path: Path) -> np.ndarray:
    with open_picture(path, block_pixels=0) as raster:
        assert raster.georeference.crs.to_epsg() == 3857
        assert raster.georeference.transform[:6] == (1.0, 0.0, 0.0, 0.0, -1.0, float(raster.height))
        return raster.rows(0, raster.height)


def test_every_tile_has_a_scene_and_the_edges_are_cut(tmp_path: Path) -> None:
    sew(tmp_path / "raster.tif", 150, seed=1)
    pixels = pixels_of(tmp_path / "raster.tif")
    assert pixels.shape == (150, 150, 3)
    scenes = [render_scene(np.random.default_rng([44, 1, i]), 64).image for i in range(3)]
    seen = []
    for top in (0, 64, 128):
        for left in (0, 64, 128):
            tile = pixels[top : top + 64, left : left + 64]
            cut = [scene[: tile.shape[0], : tile.shape[1]] for scene in scenes]
            (number,) = [i for i in range(3) if np.array_equal(cut[i], tile)]
            seen.append(number)
    assert np.bincount(seen).tolist() == [3, 3, 3]


def test_one_seed_is_one_image_and_another_is_another(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        options = ["--side", "100", "--seed", str(seed), "--out", str(tmp_path / name)]
        assert main(options) == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (pixels_of(tmp_path / "a") != pixels_of(tmp_path / "c")).any()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--side", "0"], "side of at least 1"),
        (["--side", "70", "--seed", "-1"], "seed of at least 0"),
        (["--side", "70"], "No such file or directory"),
    ],
)
def test_what_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*options, "--out", str(tmp_path / "absent" / "raster.tif")])
    assert caught.value.code == 2
    assert words in capsys.readouterr().err
