"""Datasets × methods: the rows, the file that a run goes on from, and what makes figures comparable."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_support import record_measured
from report_support import figures, row

from resclip import Segmenter, Vocabulary, load
from resclip.builtin.scenes import CLASS_NAMES
from resclip.evaluation.datasets import IGNORED, Dataset, DatasetError, open_dataset
from resclip.evaluation.predictions import PredictionFiles
from resclip.evaluation.report import Report
from resclip.evaluation.runner import MakeSegmenter, Progress, differences, evaluate, row_names
from resclip.methods.catalogue import BASES, METHODS

TWO = open_dataset("builtin", count=2, size=48)  # two small scenes: rows and files, no quality


@cache
def vocabulary(entries: tuple[str, ...]) -> Vocabulary:
    return load("builtin", classes=list(entries), device="cpu").vocabulary


def segmenter(dataset: Dataset, method: str) -> Segmenter:
    classes = vocabulary(dataset.entries)
    return load("builtin", classes=classes, method=method, device="cpu", **dataset.settings)


def entries(*names: str) -> dict[str, MakeSegmenter]:
    return {name: partial(segmenter, method=name) for name in names}


def small(*names: str, **options: Any) -> Report:
    return evaluate(entries(*names), [TWO], workers=0, **options)


def ious(report: Report) -> dict[str, Any]:
    return {
        (name, row): column.rows[row].scores
        for name, column in report.datasets.items()
        for row in column.rows
    }


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods that were measured, and not read from a file, as they come."""
    return record_measured(monkeypatch)


# Rows


def test_every_method_has_a_row_and_none_has_two() -> None:
    names = row_names()
    assert names == [name for name in METHODS if name != "resclip"]
    assert {name.partition("+")[0] for name in names} == set(BASES)
    assert "maskclip+rcs" in names
    assert "maskclip+sfr" not in names


def test_rows_are_named_by_base_and_modules() -> None:
    assert row_names(["resclip", "clip", "naclip+sfr+rcs"]) == ["naclip+rcs+sfr", "clip"]
    for names, said in (
        (["clip", "naclop"], "unknown method 'naclop'"),
        ([], "at least one method"),
    ):
        with pytest.raises(ValueError, match=said):
            row_names(names)


def test_the_methods_come_in_the_papers_order() -> None:
    """Twenty held-out scenes, each one window: the whole table has two hundred."""
    dataset = open_dataset("builtin", count=20, size=112)
    names = ("clip", "maskclip", "naclip", "naclip+rcs+sfr")
    rows = evaluate(entries(*names), [dataset], workers=0).datasets["builtin"].rows
    means = [row.scores.miou or 0.0 for row in rows.values()]
    assert list(rows) == list(names)
    assert sorted(means) == means
    assert means[2] > 60
    # A class that is not there, but was predicted, has 0.
    drawn = set(np.unique([sample.truth.read() for sample in dataset.samples]))
    assert len(drawn) > 10
    assert all((rows["naclip+rcs+sfr"].scores.iou[label] or 0) > 20 for label in drawn)


def test_nothing_to_measure_and_other_classes_are_refused() -> None:
    for rows, columns in (({}, [TWO]), (entries("clip"), [])):
        with pytest.raises(ValueError, match="at least one method and one dataset"):
            evaluate(rows, columns)
    wrong: Any
    for wrong, said in (
        ((["clip"], [TWO]), "entries must be a mapping"),
        ((entries("clip"), TWO), "datasets must be a list of datasets"),
        ((entries("clip"), ["voc21"]), "each of datasets must be a Dataset; got 'voc21'"),
    ):
        with pytest.raises(TypeError, match=said):
            evaluate(*wrong)
    with pytest.raises(
        TypeError, match="checkpoint must be the Path of a JSON file.*'report.json'"
    ):
        evaluate(entries("clip"), [TWO], checkpoint="report.json")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="workers must be at least 0; got -1"):
        evaluate(entries("clip"), [TWO], workers=-1)
    other = {
        "clip": lambda _: load("builtin", classes=["sky", "grass"], method="clip", device="cpu")
    }
    with pytest.raises(
        ValueError, match="17 classes 'sky' to .* the segmenter's are 2, from 'sky'"
    ):
        evaluate(other, [TWO])


# The file


def test_the_file_says_what_was_measured_and_how(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.json"
    came = small("naclip+rcs", "clip", checkpoint=path)
    stored = json.loads(path.read_text())["datasets"]["builtin"]
    assert stored["description"] == "2 held-out scenes of 48 × 48"
    assert stored["classes"] == stored["settings"]["entries"] == list(CLASS_NAMES)
    settings = stored["settings"]
    how = (settings["model"], settings["device"], settings["precision"])
    assert how == ("builtin", "cpu", "float32")
    assert {"resclip", "torch", "python", "templates", "names"} <= set(settings)
    assert list(stored["rows"]) == ["clip", "naclip+rcs"]
    row = stored["rows"]["naclip+rcs"]
    known = [value for value in row["scores"]["iou"] if value is not None]
    assert 0 < len(known) < len(CLASS_NAMES) == len(row["scores"]["iou"])
    assert row["scores"]["miou"] == pytest.approx(sum(known) / len(known))
    assert (row["images"], row["problems"]) == (2, [])
    assert row["seconds"] > 0
    assert row["options"]["rcs"]["weight"] == 0.4
    assert row["options"]["sfr"] is None
    assert (row["options"]["window"], row["options"]["stride"]) == (112, 56)
    assert Report.read(path) == came
    assert not path.with_name("report.json.parts").exists()


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path, measured: list[str]) -> None:
    """Between two rows."""
    path = tmp_path / "report.json"

    def stop(_: Dataset) -> Segmenter:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate({**entries("clip"), "maskclip": stop}, [TWO], checkpoint=path, workers=0)
    first = Report.read(path).datasets["builtin"].rows
    assert list(first) == ["clip"]
    came = small("clip", "maskclip", checkpoint=path)
    assert measured == ["clip", "maskclip"]
    assert came.datasets["builtin"].rows["clip"] == first["clip"]
    assert Report.read(path).methods == ["clip", "maskclip"]


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the groups that are segmented; the second one is interrupted."""
    seen: list[int] = []
    original = Segmenter.predict_many

    def predict_many(self: Segmenter, pixels: Sequence[Any], sizes: Any) -> Any:
        seen.append(len(pixels))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return original(self, pixels, sizes)

    monkeypatch.setattr(Segmenter, "predict_many", predict_many)
    return seen


def test_a_row_goes_on_within_a_dataset(tmp_path: Path, interrupted: list[int]) -> None:
    """Seventeen images are three groups; the second run finds the first one done."""
    path = tmp_path / "report.json"
    dataset = open_dataset("builtin", count=17, size=16)
    run = partial(evaluate, entries("clip"), [dataset], workers=0)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=path)
    assert path.with_name("report.json.parts").exists()
    came = run(checkpoint=path)
    assert interrupted == [8, 8, 8, 1]
    assert not path.with_name("report.json.parts").exists()
    assert ious(came) == ious(run())


def test_a_row_asked_for_alone_leaves_the_others_in_the_file(
    tmp_path: Path, measured: list[str]
) -> None:
    path = tmp_path / "report.json"
    small("maskclip", checkpoint=path)
    assert small("clip", checkpoint=path).methods == ["clip"]
    assert Report.read(path).methods == ["clip", "maskclip"]
    assert measured == ["maskclip", "clip"]
    small("maskclip", checkpoint=path, fresh=True)
    assert measured == ["maskclip", "clip", "maskclip"]
    assert Report.read(path).methods == ["maskclip"]


def test_datasets_are_columns_of_one_file(tmp_path: Path, measured: list[str]) -> None:
    path = tmp_path / "report.json"
    second = replace(open_dataset("builtin", split="validation", count=2, size=48), name="second")
    both = evaluate(entries("clip"), [TWO, second], checkpoint=path, workers=0)
    assert list(both.datasets) == ["builtin", "second"]
    again = evaluate(entries("clip"), [second], checkpoint=path, workers=0)
    assert list(again.datasets) == ["second"]
    assert measured == ["clip", "clip"]
    small("clip", checkpoint=path, fresh=True)
    assert list(Report.read(path).datasets) == ["second", "builtin"]


def test_a_row_with_other_options_is_measured_again(tmp_path: Path, measured: list[str]) -> None:
    path = tmp_path / "report.json"
    wanted = small("naclip", checkpoint=path)
    stored = json.loads(path.read_text())
    stored["datasets"]["builtin"]["rows"]["naclip"]["options"]["neighbourhood_std"] = 1.0
    path.write_text(json.dumps(stored))
    assert ious(small("naclip", checkpoint=path)) == ious(wanted)
    assert measured == ["naclip", "naclip"]
    rows = Report.read(path).datasets["builtin"].rows
    assert rows["naclip"].options == wanted.datasets["builtin"].rows["naclip"].options


def test_a_row_that_takes_the_place_of_another_says_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    small("clip", checkpoint=path)
    stored = json.loads(path.read_text())
    options = stored["datasets"]["builtin"]["rows"]["clip"]["options"]
    options["window"] = 64
    path.write_text(json.dumps(stored))
    told: list[Progress] = []
    small("clip", checkpoint=path, on_progress=told.append)
    assert [one.replaced for one in told if one.row] == ["window was 64, now 112"]
    told.clear()
    small("clip", checkpoint=path, on_progress=told.append)
    assert [one.replaced for one in told if one.row] == [""]


def test_differences_are_named_by_option_and_cut() -> None:
    before = {"a": 1, "rcs": {"weight": 0.3, "layers": [6, 7]}, "b": "x" * 500, "c": 1, "d": 1}
    now = {"a": 1, "rcs": {"weight": 0.4, "layers": [6, 7]}, "b": None, "c": 2}
    said = differences(before, now)
    assert said.startswith("rcs weight was 0.3, now 0.4; b was xxx")
    assert said.endswith("now None; c was 1, now 2; and 1 more")
    assert len(said) < 200
    assert differences(before, before) == ""


def test_two_runs_do_not_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"

    def look(_: Progress) -> None:
        with pytest.raises(OSError, match="no other run is writing to"):
            small("clip", checkpoint=path)

    small("clip", checkpoint=path, on_progress=look)
    assert [each.name for each in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (replace(TWO, mask_options={"label_offset": 1}), "label_offset: None there, 1 here"),
        (open_dataset("builtin", count=3, size=48), "images: 2 there, 3 here"),
        (replace(TWO, split="validation"), "split: None there, validation here"),
        (replace(TWO, samples=TWO.samples[::-1]), "names: .* there, .* here"),
        (replace(TWO, entries=("sky, air", *CLASS_NAMES[1:])), "entries: .* there, .* here"),
    ],
)
def test_figures_under_other_conditions_are_left_alone(
    other: Dataset, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    small("clip", checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"of builtin under other conditions .{said}"):
        evaluate(entries("clip"), [other], checkpoint=path, workers=0)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        '{"format": "resclip evaluation", "version": 4, "datasets": {"a": 1}}',
        "[" * 100_000,
    ],
)
def test_a_file_of_something_else_is_replaced_where_that_is_asked_for(
    content: str, tmp_path: Path
) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="pass fresh=True to replace it"):
        small("clip", checkpoint=path)
    assert path.read_text() == content
    came = small("clip", checkpoint=path, fresh=True)
    assert Report.read(path) == came


@pytest.mark.parametrize(
    ("head", "came"),
    [
        ('"format": "resclip evaluation, version 2"', "2 or older"),
        ('"format": "resclip evaluation", "version": 3', "3"),
    ],
)
def test_a_file_of_another_version_says_what_to_do(head: str, came: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(f"{{{head}}}")
    with pytest.raises(ValueError, match=f"report.json.*got version {came}.*fresh=True"):
        small("clip", checkpoint=path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seconds", "long"),
        ("images", -1),
        ("options", []),
        ("problems", [{"name": 1, "reason": "x"}]),
        ("scores", {}),
        ("coverage", None),
        ("more", 1),
    ],
)
def test_a_row_of_other_values_is_none_of_ours(name: str, value: object, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    stored = json.loads(json.dumps(asdict(Report({"a": figures(clip=50.0)}))))
    stored |= {"format": "resclip evaluation", "version": 4}
    path.write_text(json.dumps(stored))
    assert Report.read(path).datasets["a"].rows["clip"] == row(50.0)
    stored["datasets"]["a"]["rows"]["clip"][name] = value
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="expected figures that .*got something else"):
        Report.read(path)


# Images and progress


def test_an_interrupted_run_has_the_files_of_all_images_in_the_end(
    tmp_path: Path, interrupted: list[int]
) -> None:
    """A run that goes on does not show again what was shown before, to the same folder; to another it does."""
    dataset = open_dataset("builtin", count=17, size=16)
    path = tmp_path / "report.json"
    run = partial(evaluate, entries("clip"), [dataset], checkpoint=path, workers=0)
    with pytest.raises(KeyboardInterrupt):
        run(on_image=PredictionFiles(tmp_path / "a"))
    for folder, groups in (
        ("b", [8, 8, 1]),
        ("a", [8, 1]),
    ):  # The file has the row the second time.
        interrupted[:] = [8, 8]
        run(on_image=PredictionFiles(tmp_path / folder))
        assert interrupted == [8, 8, *groups]
        assert len([*(tmp_path / folder).rglob("*.png")]) == 17


def test_progress_goes_over_all_rows(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    small("clip", checkpoint=path)
    told: list[Progress] = []
    report = small("clip", "maskclip", checkpoint=path, on_progress=told.append)
    rows = report.datasets["builtin"].rows
    assert [(one.method, one.images, one.total, one.stored) for one in told] == [
        ("clip", 2, 4, True),
        ("maskclip", 4, 4, False),
        ("maskclip", 4, 4, False),
    ]
    assert [one.row for one in told] == [rows["clip"], None, rows["maskclip"]]


# The drawn scenes


def test_the_scenes_are_a_dataset_like_the_others() -> None:
    dataset = open_dataset("builtin", count=3, size=40)
    assert (dataset.name, len(dataset), dataset.classes) == ("builtin", 3, CLASS_NAMES)
    assert [sample.name for sample in dataset.samples][-1] == "held-out-0002"
    for sample in dataset.samples:
        assert sample.image.read().pixels.shape == (40, 40, 3)
        truth = sample.truth.read()
        assert truth.shape == (40, 40)
        assert truth.max() < len(CLASS_NAMES) < IGNORED
    one = open_dataset("builtin", split="validation", count=1, size=40)
    assert one.description == "1 validation scene of 40 × 40"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"split": "training"}, "unknown split 'training' .* use one of: held-out, validation"),
        ({"count": 0}, "number of scenes of at least 1, got 0"),
        ({"size": 7}, "size of scenes of at least 8, got 7"),
    ],
)
def test_scenes_say_what_they_cannot_be(values: dict[str, Any], said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        open_dataset("builtin", **values)
