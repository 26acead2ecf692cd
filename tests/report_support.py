"""Reports and an ablation that were never measured, for tests of their tables and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from resclip.evaluation.ablation import Ablation, Findings, Setting, Study, find_studies
from resclip.evaluation.coverage import Coverage
from resclip.evaluation.datasets.base import Problem
from resclip.evaluation.metrics import Scores
from resclip.evaluation.report import DatasetReport, MethodResult, Report

CLASSES = ("sky", "night sky", "car")
EVERYTHING = Coverage(1000, 0, 0, (), None)
"""Every pixel counts, and every class is there."""
SETTINGS = {
    "window": 112,
    "stride": 56,
    "device": "cpu",
    "precision": "float32",
    "resclip": "0.1",
    "torch": "2.9",
}


def row(
    miou: float | None,
    *,
    problems: Sequence[Problem] = (),
    options: Mapping[str, Any] | None = None,
    seconds: float = 20.0,
    coverage: Coverage | None = None,
) -> MethodResult:
    """One class 10 above the mean, one not there, one 10 below it; None: nothing could be measured."""
    if miou is None:
        scores = Scores(None, None, None, None, (None,) * 3, (None,) * 3)
    else:
        accuracy = (miou + 9, None, miou - 1)
        scores = Scores(miou, miou + 4, miou + 7, miou + 6, (miou + 10, None, miou - 10), accuracy)
    images = 0 if miou is None else 200
    return MethodResult(
        scores,
        images,
        tuple(problems),
        dict(options or {}),
        seconds,
        1,
        2,
        "a CPU",
        3_000_000,
        coverage or EVERYTHING,
    )


def column(dataset: str, rows: Mapping[str, MethodResult], **settings: Any) -> DatasetReport:
    """Rows on 200 images, under `SETTINGS` and these."""
    return DatasetReport(
        dataset, f"200 of {dataset}", {**SETTINGS, **settings}, CLASSES, dict(rows)
    )


def figures(seconds: float = 20.0, /, **means: float) -> DatasetReport:
    """A row per mean on the drawn scenes, each of these seconds: "naclip_rcs" for naclip+rcs."""
    rows = {name.replace("_", "+"): row(mean, seconds=seconds) for name, mean in means.items()}
    return DatasetReport("scenes", "200 scenes", SETTINGS, CLASSES, rows)


def report(*columns: DatasetReport) -> Report:
    return Report({part.dataset: part for part in columns})


def study(name: str) -> Study:
    return find_studies([name])[0]


def setting(label: str, x: float | str, **rows: str) -> Setting:
    return Setting(label, x, rows)


def ablation() -> Ablation:
    """λ_r on two datasets that start from 0.2 and 0.1, one of them with a published figure; and kinds of SFR."""
    first = column(
        "voc20",
        {"naclip": row(60.0), "naclip+rcs": row(62.04), "naclip+rcs(weight=0.1)": row(58.0),
         "naclip+sfr": row(61.0), "naclip+sfr(connectivity=none)": row(None)},
        model="ViT-B-16", pretrained="openai", window=0,
    )  # fmt: skip
    second = column(
        "two",
        {"naclip": row(30.0), "naclip+rcs(weight=0.2)": row(28.0), "naclip+rcs": row(29.0),
         "naclip+sfr": row(31.0), "naclip+sfr(connectivity=none)": row(31.0)},
    )  # fmt: skip
    weights = Findings(
        study("rcs-weight"),
        setting("naclip", "naclip", voc20="naclip", two="naclip"),
        (
            setting("0", 0.0, voc20="naclip", two="naclip"),
            setting("0.1", 0.1, voc20="naclip+rcs(weight=0.1)", two="naclip+rcs"),
            setting("0.2", 0.2, voc20="naclip+rcs", two="naclip+rcs(weight=0.2)"),
        ),
    )
    same = {"voc20": "naclip+sfr", "two": "naclip+sfr"}
    other = dict.fromkeys(same, "naclip+sfr(connectivity=none)")
    kinds = Findings(
        study("connectivity"),
        Setting("naclip+sfr", "naclip+sfr", same),
        (Setting("none", "none", other),),
    )
    return Ablation(report(first, second), (weights, kinds))
