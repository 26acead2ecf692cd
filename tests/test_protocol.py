"""Datasets × methods: the rows, the file that a run goes on from, and what makes figures comparable."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measure_support import spy_on_measure
from numpy.typing import NDArray

from resclip import Segmenter, load
from resclip.builtin.scenes import CLASS_NAMES
from resclip.evaluation import runner as module
from resclip.evaluation.datasets import IGNORED, Dataset, DatasetError, Sample
from resclip.evaluation.datasets.builtin import scene_dataset
from resclip.evaluation.metrics import confusion, scores_of
from resclip.evaluation.report import Report
from resclip.evaluation.runner import Candidate, Watch, evaluate, parts_of, row_names
from resclip.methods.catalogue import BASES, METHODS

TWO = scene_dataset(count=2, size=48)  # two small scenes: rows and files, no quality


def segmenter(dataset: Dataset, method: str, **options: Any) -> Segmenter:
    entries = list(dataset.entries)
    return load(classes=entries, method=method, device="cpu", **{**dataset.settings, **options})


def candidates(*names: str, **options: Any) -> list[Candidate]:
    return [Candidate(name, partial(segmenter, method=name, **options)) for name in names]


def small(*names: str, **options: Any) -> Report:
    return evaluate(candidates(*names), [TWO], workers=0, **options)


def ious(report: Report) -> dict[str, Any]:
    return {
        (name, row): figures.rows[row].scores
        for name, figures in report.sets.items()
        for row in figures.rows
    }


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods that were measured, and not read from a file, as they come."""
    return spy_on_measure(monkeypatch)


# Rows


def test_every_method_has_a_row_and_none_has_two() -> None:
    names = row_names()
    assert names == [name for name in METHODS if name != "resclip"]
    assert {name.partition("+")[0] for name in names} == set(BASES)
    assert "maskclip+rcs" in names
    assert "maskclip+sfr" not in names


def test_rows_are_named_by_base_and_modules() -> None:
    assert row_names(["resclip", "clip", "naclip+sfr+rcs"]) == ["naclip+rcs+sfr", "clip"]
    with pytest.raises(ValueError, match="unknown method 'naclop'"):
        row_names(["clip", "naclop"])
    with pytest.raises(ValueError, match="base 'maskclip' has none"):
        row_names(["maskclip+sfr"])
    with pytest.raises(ValueError, match="at least one method"):
        row_names([])


def test_figures_are_those_of_the_images_one_by_one() -> None:
    """Eleven images: a group of eight and a rest of three."""
    dataset = scene_dataset(count=11, size=48)
    report = evaluate(candidates("naclip"), [dataset], workers=0)
    alone = segmenter(dataset, "naclip")
    counts = sum(
        confusion(sample.truth.read(), alone.segment(sample.image.read()).labels, len(CLASS_NAMES))
        for sample in dataset.samples
    )
    found, wanted = report.sets["builtin"].rows["naclip"].scores, scores_of(np.asarray(counts))
    # The arg-max of two nearly equal classes may change with the size of a batch, at a few pixels.
    assert found.pixel_accuracy == pytest.approx(wanted.pixel_accuracy, abs=0.1)
    assert found.miou == pytest.approx(wanted.miou, abs=0.5)


def test_the_methods_come_in_the_papers_order() -> None:
    """Twenty held-out scenes, each one window: the whole table has two hundred."""
    dataset = scene_dataset(count=20, size=112)
    names = ("clip", "maskclip", "naclip", "naclip+rcs+sfr")
    rows = evaluate(candidates(*names), [dataset], workers=0).sets["builtin"].rows
    means = [row.scores.miou or 0.0 for row in rows.values()]
    assert list(rows) == list(names)
    assert sorted(means) == means
    assert means[2] > 60
    # A class that is not there, but was predicted, has 0.
    drawn = set(np.unique([sample.truth.read() for sample in dataset.samples]))
    assert len(drawn) > 10
    assert all((rows["naclip+rcs+sfr"].scores.iou[label] or 0) > 20 for label in drawn)


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one method and one dataset"):
        evaluate([], [TWO])
    with pytest.raises(ValueError, match="at least one method and one dataset"):
        evaluate(candidates("clip"), [])


def test_a_segmenter_of_other_classes_is_refused() -> None:
    other = Candidate("clip", lambda _: load(classes=["sky", "grass"], method="clip", device="cpu"))
    with pytest.raises(
        ValueError, match=r"17 classes 'sky' to .* the segmenter's are 2, from 'sky'"
    ):
        evaluate([other], [TWO])


# The file


def test_the_file_says_what_was_measured_and_how(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.json"
    came = small("naclip+rcs", "clip", path=path)
    stored = json.loads(path.read_text())["sets"]["builtin"]
    assert stored["description"] == "2 held-out scenes of 48 × 48"
    assert stored["classes"] == stored["settings"]["entries"] == list(CLASS_NAMES)
    settings = stored["settings"]
    assert (settings["model"], settings["device"], settings["precision"]) == (
        "builtin",
        "cpu",
        "float32",
    )
    assert {"resclip", "torch", "python", "templates", "names"} <= set(settings)
    assert list(stored["rows"]) == ["clip", "naclip+rcs"]
    row = stored["rows"]["naclip+rcs"]
    known = [value for value in row["scores"]["iou"] if value is not None]
    assert 0 < len(known) < len(CLASS_NAMES) == len(row["scores"]["iou"])
    assert row["scores"]["miou"] == pytest.approx(sum(known) / len(known))
    assert (row["images"], row["problems"]) == (2, [])
    assert row["cost"]["seconds"] > 0
    assert row["options"]["rcs"]["weight"] == 0.4
    assert row["options"]["sfr"] is None
    assert (row["options"]["window"], row["options"]["stride"]) == (112, 56)
    assert Report.read(path) == came
    assert not parts_of(path).exists()


def test_two_runs_give_the_same_figures() -> None:
    assert ious(small("naclip+sfr")) == ious(small("naclip+sfr"))


def test_an_interrupted_run_goes_on_where_it_stopped(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two rows; within one is `measure`'s part."""
    path = tmp_path / "report.json"
    spy = module.measure

    def stop(segmenter: Segmenter, *arguments: Any, **options: Any) -> Any:
        if segmenter.settings["method"] == "maskclip":
            raise KeyboardInterrupt
        return spy(segmenter, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, "measure", stop)
        with pytest.raises(KeyboardInterrupt):
            small("clip", "maskclip", path=path)
    first = Report.read(path).sets["builtin"].rows
    assert list(first) == ["clip"]
    came = small("clip", "maskclip", path=path)
    assert measured == ["clip", "maskclip"]
    assert came.sets["builtin"].rows["clip"] == first["clip"]
    assert Report.read(path).rows == ["clip", "maskclip"]


def test_a_row_goes_on_within_a_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seventeen images are three groups; the second run finds the first two done."""
    path = tmp_path / "report.json"
    dataset = scene_dataset(count=17, size=16)
    seen: list[int] = []
    original = Segmenter.predict_many

    def predict_many(self: Segmenter, pixels: Sequence[Any], sizes: Any) -> Any:
        seen.append(len(pixels))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return original(self, pixels, sizes)

    monkeypatch.setattr(Segmenter, "predict_many", predict_many)
    run = partial(evaluate, candidates("clip"), [dataset], workers=0)
    with pytest.raises(KeyboardInterrupt):
        run(path=path)
    assert parts_of(path).exists()
    came = run(path=path)
    assert seen == [8, 8, 1, 1]
    assert not parts_of(path).exists()
    assert ious(came) == ious(run())


def test_a_row_asked_for_alone_leaves_the_others_in_the_file(
    tmp_path: Path, measured: list[str]
) -> None:
    path = tmp_path / "report.json"
    small("maskclip", path=path)
    assert small("clip", path=path).rows == ["clip"]
    assert Report.read(path).rows == ["clip", "maskclip"]
    assert measured == ["maskclip", "clip"]
    small("maskclip", path=path, fresh=True)
    assert measured == ["maskclip", "clip", "maskclip"]
    assert Report.read(path).rows == ["maskclip"]


def test_sets_are_columns_of_one_file(tmp_path: Path, measured: list[str]) -> None:
    path = tmp_path / "report.json"
    second = replace(scene_dataset("validation", 2, 48), name="second")
    both = evaluate(candidates("clip"), [TWO, second], path=path, workers=0)
    assert list(both.sets) == ["builtin", "second"]
    assert list(evaluate(candidates("clip"), [second], path=path, workers=0).sets) == ["second"]
    assert measured == ["clip", "clip"]
    small("clip", path=path, fresh=True)
    assert list(Report.read(path).sets) == ["second", "builtin"]


def test_a_row_with_other_options_is_measured_again(tmp_path: Path, measured: list[str]) -> None:
    path = tmp_path / "report.json"
    wanted = small("naclip", path=path)
    stored = json.loads(path.read_text())
    stored["sets"]["builtin"]["rows"]["naclip"]["options"]["neighbourhood_std"] = 1.0
    path.write_text(json.dumps(stored))
    assert ious(small("naclip", path=path)) == ious(wanted)
    assert measured == ["naclip", "naclip"]
    rows = Report.read(path).sets["builtin"].rows
    assert rows["naclip"].options == wanted.sets["builtin"].rows["naclip"].options


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (scene_dataset(count=3, size=48), "images: 2 there, 3 here"),
        (scene_dataset("validation", 2, 48), "split: None there, validation here"),
        (replace(scene_dataset("validation", 2, 48), split=None), "names: .* there, .* here"),
        (replace(TWO, entries=("sky, air", *CLASS_NAMES[1:])), "entries: .* there, .* here"),
    ],
)
def test_figures_under_other_conditions_are_left_alone(
    other: Dataset, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    small("clip", path=path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"of builtin under other conditions .{said}"):
        evaluate(candidates("clip"), [other], path=path, workers=0)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"sets": {"builtin": {}}}', "\xff"])
def test_a_file_of_something_else_is_replaced_where_that_is_asked_for(
    content: str, tmp_path: Path
) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match="pass --fresh to replace it"):
        small("clip", path=path)
    assert path.read_bytes() == content.encode("latin-1")
    came = small("clip", path=path, fresh=True)
    assert Report.read(path) == came


# Those who look on


def test_watchers_see_every_image_though_the_file_has_the_row(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    seen: list[str] = []

    def look(
        sample: Sample, image: NDArray[Any], truth: NDArray[Any], labels: NDArray[Any]
    ) -> None:
        assert image.shape[:2] == truth.shape == labels.shape
        seen.append(sample.name)

    small("clip", path=path)
    make: Callable[[str, Dataset], Any] = lambda row, dataset: [look]  # noqa: E731
    small("clip", path=path, watch=Watch(make, {"folder": "x"}))
    assert seen == [sample.name for sample in TWO.samples]


# The drawn scenes


def test_the_scenes_are_a_data_set() -> None:
    dataset = scene_dataset(count=3, size=40)
    assert (dataset.name, len(dataset), dataset.classes) == ("builtin", 3, CLASS_NAMES)
    assert [sample.name for sample in dataset.samples][-1] == "held-out-0002"
    for sample in dataset.samples:
        assert sample.image.read().shape == (40, 40, 3)
        truth = sample.truth.read()
        assert truth.shape == (40, 40)
        assert truth.max() < len(CLASS_NAMES) < IGNORED
    assert scene_dataset("validation", 1, 40).description == "1 validation scene of 40 × 40"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"split": "training"}, "unknown split 'training' .* use one of: held-out, validation"),
        ({"count": 0}, "number of scenes of at least 1, got 0"),
        ({"size": 7}, "size of scenes of at least 8, got 7"),
    ],
)
def test_a_set_of_scenes_says_what_it_cannot_be(values: dict[str, Any], said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        scene_dataset(**values)
