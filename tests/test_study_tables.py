"""Tables of studies: differences, the best, what is published, and the same as Markdown and CSV."""

from __future__ import annotations

import csv
import io

import pytest
from report_support import report
from study_support import made_up

from resclip.evaluation.ablation import Ablation
from resclip.evaluation.study_tables import study_csv, study_markdown, study_text


def test_a_table_has_differences_the_best_and_the_mean() -> None:
    text = study_text(made_up())
    weights, kinds = text.split("\n\n")[1], text.split("\n\n")[3]
    cells = [line.split("  ") for line in weights.splitlines()]
    tidy = [[cell.strip() for cell in line if cell.strip()] for line in cells]
    assert tidy == [
        ["λ_r", "voc20", "two", "mean"],
        ["0", "60.0 [79.7]", "30.0 best", "45.0"],
        ["0.1", "58.0 (-2.0)", "29.0 (-1.0)", "43.5 (-1.5)"],
        ["0.2", "62.0 (+2.0) [85.5] best", "28.0 (-2.0)", "45.0 (+0.0) best"],
    ]
    assert [line.split() for line in kinds.splitlines()] == [
        ["connectivity", "voc20", "two", "mean"],
        ["naclip+sfr", "61.0", "[81.5]", "best", "31.0", "best", "46.0", "best"],
        ["none", "-", "31.0", "(+0.0)", "best", "-"],
    ]
    assert "In brackets, of rcs-weight: the difference to naclip." in text
    assert "In brackets, of connectivity: the difference to naclip+sfr." in text
    assert "published: ResCLIP paper table 3." in text
    assert "two: 200 of two, " in text


def test_one_set_has_no_mean() -> None:
    both = made_up()
    one = Ablation(report(both.report.sets["two"]), both.findings)
    assert "mean" not in study_text(one).splitlines()[3]
    assert study_text(one).splitlines()[3].split() == ["λ_r", "two"]


def test_markdown_has_the_same_cells() -> None:
    lines = study_markdown(made_up()).splitlines()
    assert lines[0] == "## RCS: its weight (`rcs-weight`)"
    assert "| 0.1 | 58.0 (-2.0) | 29.0 (-1.0) | 43.5 (-1.5) |" in lines
    assert "| 0.2 | **62.0 (+2.0) [85.5]** | 28.0 (-2.0) | **45.0 (+0.0)** |" in lines
    assert "best" not in "".join(line for line in lines if line.startswith("|"))


def test_csv_has_every_figure_unrounded() -> None:
    lines = [*csv.DictReader(io.StringIO(study_csv(made_up())))]
    assert [(line["study"], line["set"], line["setting"]) for line in lines] == [
        *(("rcs-weight", "voc20", weight) for weight in ("0", "0.1", "0.2")),
        *(("rcs-weight", "two", weight) for weight in ("0", "0.1", "0.2")),
        *(("connectivity", "voc20", kind) for kind in ("naclip+sfr", "none")),
        *(("connectivity", "two", kind) for kind in ("naclip+sfr", "none")),
    ]
    third, missing = lines[2], lines[7]
    assert (third["row"], third["reference"], third["best"]) == ("naclip+rcs", "naclip", "True")
    assert float(third["x"]) == 0.2
    assert float(third["miou"]) == 62.04
    assert float(third["difference"]) == pytest.approx(2.04)
    assert (third["published_miou"], third["images"]) == ("85.5", "200")
    assert (missing["miou"], missing["difference"], missing["best"]) == ("", "", "False")
