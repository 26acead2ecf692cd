"""`resclip segment --format` and classes.json: what is written where, and that no name clashes with an image's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml
from cli_support import StandIn, names_in, one_line, run
from PIL import Image
from test_formats import coco_of, labels_of

from resclip.batch.job import BLOCK_PIXELS, BatchJob
from resclip.batch.output_names import SUMMARY
from resclip.formats.class_masks import mask_names
from resclip.result import Segmentation
from resclip.visualization.colours import palette

ALL = ("--format", "coco,yolo", "--format", "geojson,masks,sheet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, one in a folder below."""
    for name in ("cat.png", "sub/dog.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(path)
    return tmp_path / "in"


def files_in(out: Path) -> list[str]:
    files = (path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    return sorted(name for name in files if name != SUMMARY)


def test_all_formats_of_a_folder(stand_in: StandIn, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ("segment", folder, "--classes", "sky, a tree", "--out", out, "--no-overlay", *ALL)
    assert run(*asked) == 0
    expected = ["annotations.json", "classes.json", "data.yaml"]
    for stem in ("cat", "sub/dog"):
        expected += [
            f"{stem}.geojson", f"{stem}.json", f"{stem}_labels.png", f"{stem}_sheet.png", f"labels/{stem}.txt",
            f"{stem}_masks/a tree.png", f"{stem}_masks/sky.png",
        ]  # fmt: skip
    assert files_in(out) == sorted(expected)
    coco = coco_of(out / "annotations.json")
    assert [one["file_name"] for one in coco.dataset["images"]] == ["cat.png", "sub/dog.png"]
    for image_id, stem in ((1, "cat"), (2, "sub/dog")):
        labels = np.asarray(Image.open(out / f"{stem}_labels.png"))
        np.testing.assert_array_equal(labels_of(coco, image_id, (6, 8)), labels)
        mask = np.asarray(Image.open(out / f"{stem}_masks/a tree.png"))
        np.testing.assert_array_equal(mask, np.where(labels == 1, 255, 0))
        lines = (out / f"labels/{stem}.txt").read_text().splitlines()
        assert sorted(line.split()[0] for line in lines) == ["0", "1"]
        features = json.loads((out / f"{stem}.geojson").read_text())["features"]
        assert {one["properties"]["class"] for one in features} == {"sky", "a tree"}
    assert yaml.safe_load((out / "data.yaml").read_text())["names"] == {0: "sky", 1: "a tree"}
    before = files_in(out)
    # What is written there is no image of the next run, nor of one that reads all of the folder.
    assert run(*asked) == 0
    assert run("segment", out, *asked[2:]) == 2
    assert files_in(out) == before


def test_classes_json_names_colours_and_queries(
    stand_in: StandIn, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        stand_in, "segment", lambda picture, keep=None: Segmentation(
            picture.pixels, np.zeros((6, 8), np.int64), np.zeros((6, 8), np.float32), ("pet", "猫")
        )
    )  # fmt: skip
    out = tmp_path / "out"
    classes = "pet: cat, dog; 猫"
    assert run("segment", folder / "cat.png", "--classes", classes, "--out", out) == 0
    stored = json.loads((out / "classes.json").read_text(encoding="utf-8"))
    colours = [f"#{bytes(colour).hex()}" for colour in palette(["pet", "猫"])]
    assert stored == {
        "unlabelled": 255,
        "classes": [
            {"index": 0, "name": "pet", "colour": colours[0], "queries": ["cat", "dog"]},
            {"index": 1, "name": "猫", "colour": colours[1], "queries": ["猫"]},
        ],
    }


@pytest.mark.parametrize("name", ["classes", "Classes", "annotations", "data"])
def test_an_image_may_be_called_as_a_file_of_the_run(
    stand_in: StandIn, tmp_path: Path, name: str
) -> None:
    image = tmp_path / f"{name}.png"
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(image)
    out = tmp_path / "out"
    assert run("segment", image, "--classes", "a, b", "--out", out, "--format", "coco,yolo") == 0
    assert len(json.loads((out / "classes.json").read_text())["classes"]) == 2
    assert len(coco_of(out / "annotations.json").dataset["annotations"]) == 2
    stem = name if name == "data" else f"{name}-2"
    assert json.loads((out / f"{stem}.json").read_text())["names"] == ["a", "b"]


def test_folders_may_be_called_so_too(stand_in: StandIn, tmp_path: Path) -> None:
    for name in ("classes.json", "annotations.json", "data.yaml", "x.geojson", "x_masks"):
        path = tmp_path / "in" / name / "x.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(path)
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / "in/x.png")
    out = tmp_path / "out"
    assert run("segment", tmp_path / "in", "--classes", "a, b", "--out", out, *ALL) == 0
    assert len(coco_of(out / "annotations.json").dataset["images"]) == 6
    assert len(list(out.rglob("x_labels.png"))) == 6


def test_small_instances_are_left_out_and_polygons_exact(
    stand_in: StandIn, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    asked = ("segment", folder / "cat.png", "--classes", "a, b", "--out", out, "--format", "coco,masks")  # fmt: skip
    assert run(*asked, "--min-area", 25, "--tolerance", 0) == 0
    assert coco_of(out / "annotations.json").dataset["annotations"] == []
    assert not (out / "cat_masks").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--format", "xml"], ["--format", "coco, yolo, geojson, masks, sheet", "'xml'"]),
        (["--format", "coco,"], ["--format", "''"]),
        (["--min-area", "5"], ["--min-area", "add one of them"]),
        (["--format", "sheet", "--tolerance", "1"], ["--tolerance", "add one of them"]),
        (["--format", "coco", "--min-area", "0"], ["--min-area", "0"]),
        (["--format", "coco", "--tolerance", "-1"], ["--tolerance must be", "-1"]),
        (["--format", "coco", "--tolerance", "a"], ["--tolerance", "'a'"]),
    ],
)
def test_wrong_options_are_one_line(
    stand_in: StandIn, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    options: list[str], words: list[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    assert run("segment", folder, "--classes", "a, b", "--out", out, *options) == 2
    one_line(capsys, *words)
    assert not out.exists()


def test_formats_need_a_folder(
    stand_in: StandIn, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("segment", folder, "--classes", "a, b", "--json", "--format", "coco") == 2
    one_line(capsys, "--out DIR", "--format")


def test_an_image_that_fails_is_in_no_file_of_the_run(
    stand_in: StandIn, folder: Path, tmp_path: Path
) -> None:
    (folder / "cat.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    out = tmp_path / "out"
    asked = ("segment", folder, "--classes", "a, b", "--out", out, "--format", "coco")
    assert run(*asked) == 1
    coco = coco_of(out / "annotations.json")
    assert [one["file_name"] for one in coco.dataset["images"]] == ["sub/dog.png"]


def test_an_interrupt_leaves_no_half_of_a_file(
    stand_in: StandIn, folder: Path, tmp_path: Path
) -> None:
    def interrupt(_: np.ndarray) -> None:
        raise KeyboardInterrupt

    stand_in.fail = interrupt
    out = tmp_path / "out"
    assert run("segment", folder, "--classes", "a", "--out", out, "--format", "coco") == 130
    assert names_in(out) == ["classes.json"]


def test_names_of_masks_are_allowed_everywhere_and_differ() -> None:
    names = ["sky", "Sky", "a/b", "con", "x_labels", "猫", "é" * 200, "..", "q?", "sky-2", "sky"]
    found = mask_names(names)
    assert found == [
        "sky", "Sky-2", "a%2Fb", "%63on", "x%5Flabels", "猫", "class-6", "class-7", "q%3F", "sky-2-2", "sky-3",
    ]  # fmt: skip
    assert len({name.casefold() for name in found}) == len(names)


def test_batch_writes_them_too_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("a.png", "sub/classes.json/b.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(len(name)).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    out = tmp_path / "out"
    asked = ("batch", folder, "--classes", "sky; tree, leaf", "--out", out, "--short-side", 112,
             "--format", "coco,yolo,geojson,masks", "--tolerance", 0)  # fmt: skip
    assert run(*asked) == 0
    sizes = {path: path.stat().st_mtime_ns for path in out.rglob("*_labels.png")}
    assert len(sizes) == 2
    coco = coco_of(out / "annotations.json")
    for image in coco.dataset["images"]:
        stem = {"a.png": "a"}.get(image["file_name"], "sub/classes%2Ejson/b")
        labels = np.asarray(Image.open(out / f"{stem}_labels.png")).astype(np.int64)
        np.testing.assert_array_equal(labels_of(coco, image["id"], (40, 60)), labels)
        assert (out / f"labels/{stem}.txt").exists()
        assert (out / f"{stem}.geojson").exists()
        for path in (out / f"{stem}_masks").iterdir():
            index = {"sky": 0, "tree": 1}[path.stem]
            np.testing.assert_array_equal(np.asarray(Image.open(path)) > 0, labels == index)
    assert len(coco.dataset["images"]) == 2
    assert all(0 < one["score"] <= 1 for one in coco.dataset["annotations"])
    assert not list(out.rglob("*_scores.png"))
    assert len(json.loads((out / "classes.json").read_text())["classes"]) == 2
    (out / "annotations.json").unlink()
    assert run(*asked) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*_labels.png")} == sizes
    assert len(coco_of(out / "annotations.json").dataset["images"]) == 2


def test_batch_refuses_what_it_cannot_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "a.tif"
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(image)
    asked = ("batch", image, "--classes", "sky; tree", "--out", tmp_path / "out", "--short-side", 112)  # fmt: skip
    for wrong in ("png,tif", "sheet", "coco,"):
        assert run(*asked, "--format", wrong) == 2
        one_line(capsys, "--format")
    for name in ("png", "tif"):
        assert run(*asked, "--format", name, "--tolerance", 1) == 2
        one_line(capsys, "--tolerance", "add one of them")
    assert run(*asked, "--format", "png", "--format", "tif") == 2
    one_line(capsys, "got both", "--format")
    monkeypatch.setattr(BatchJob.__init__, "__defaults__", tuple(
        100 if value == BLOCK_PIXELS else value for value in BatchJob.__init__.__defaults__ or ()
    ))  # fmt: skip
    assert run(*asked, "--format", "coco") == 1
    assert "expected at most 100 pixels for coco, which need" in capsys.readouterr().err
    assert run(*asked, "--format", "tif", "--overwrite") == 0
    with rasterio.open(tmp_path / "out/a_labels.tif") as dataset:
        assert json.loads(dataset.tags()["CLASS_NAMES"]) == ["sky", "tree"]
