"""Tables of figures: what stands in which cell, how differences and published figures are shown, what is named."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import asdict, replace

import pytest
from report_support import CLASSES, ablation, column, figures, report, row

from resclip.evaluation.ablation import Ablation
from resclip.evaluation.coverage import Coverage
from resclip.evaluation.datasets.base import Problem
from resclip.evaluation.report import DatasetReport, Report
from resclip.evaluation.tables import (
    ablation_tables,
    class_tables,
    conditions,
    hint_notes,
    percentage,
    problem_lines,
    report_tables,
)
from resclip.methods.catalogue import SFR
from resclip.methods.presets import PRESETS

VIT = {"model": "ViT-B-16", "pretrained": "openai"}
"""Settings with which rows have published figures."""
VOC = {**VIT, "preset": "voc21", "window": 0, "stride": 112}
CONTEXT = {**VIT, "preset": "context59", "window": 224, "stride": 112}
RELEASED = {
    "rcs": {"layers": [6, 7, 8, 9], "weight": 0.4, "temperature": 2.0},
    "rcs_layers": [6, 7, 8, 9],
    "sfr": asdict(SFR(**PRESETS["context59"].sfr)),
}
"""Options of RCS and SFR for context59."""
TORN = Problem("2007_000033", "masks/2007_000033.png: expected a whole mask")
LOST = Problem("2007_000042", "the image has no mask")


def text_of(some: Report) -> str:
    return report_tables(some).text


def markdown_of(some: Report) -> str:
    return report_tables(some).markdown


def csv_of(some: Report) -> str:
    return report_tables(some).csv


def cells(line: str) -> list[str]:
    """A line of aligned text: cells are two spaces or more apart."""
    return re.split(r"\s{2,}", line.strip())


def markdown_cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split(" |")]


def two_datasets() -> Report:
    voc = {"naclip": row(58.0), "naclip+rcs": row(58.96), "clip": row(16.0)}
    context = {"naclip": row(36.0), "naclip+rcs": row(35.0), "sclip": row(34.04)}
    return report(column("voc21", voc, **VOC), column("context59", context, **CONTEXT))


# Several datasets


def test_methods_are_lines_and_datasets_are_columns() -> None:
    lines = text_of(two_datasets()).split("\n\n")[0].splitlines()
    assert cells(lines[0]) == ["method", "voc21", "context59", "mean"]
    assert [cells(line) for line in lines[1:]] == [
        ["naclip", "58.0", "36.0", "47.0"],
        ["published", "58.9", "35.2", "47.0"],
        ["naclip+rcs", "59.0 (+1.0)", "35.0 (-1.0)", "47.0 (+0.0)"],
        ["clip", "16.0", "-", "-"],
        ["published", "16.2", "-", "-"],
        ["sclip", "-", "34.0", "-"],
        ["published", "-", "34.2", "-"],
    ]


def test_published_figures_have_their_own_differences() -> None:
    rows = {"naclip": row(30.0), "naclip+rcs+sfr": row(33.0, options=RELEASED)}
    both = report(column("context59", rows, **CONTEXT), column("mine", rows))
    lines = text_of(both).split("\n\n")[0].splitlines()
    assert cells(lines[3]) == ["naclip+rcs+sfr", "33.0 (+3.0)", "33.0 (+3.0)", "33.0 (+3.0)"]
    assert cells(lines[4]) == ["published", "36.8 (+1.6)", "-", "-"]


def test_nothing_measured_is_a_dash() -> None:
    both = report(column("a", {"naclip": row(None)}), column("b", {"naclip": row(50.0)}))
    assert cells(text_of(both).splitlines()[1]) == ["naclip", "-", "50.0", "-"]
    alone = text_of(report(column("a", {"naclip": row(None)})))
    assert cells(alone.splitlines()[1]) == ["naclip", *"-------"]
    assert text_of(Report()).startswith("method  mean\n")
    assert csv_of(Report()).count("\r\n") == 1


@pytest.mark.parametrize("change", [-0.04, 0.0])
def test_no_difference_has_no_minus(change: float) -> None:
    one = column("a", {"naclip": row(50.0), "naclip+rcs": row(50.0 + change)})
    for text in (
        text_of(report(one)),
        text_of(report(one, column("b", one.rows))),
        markdown_of(report(one)),
        class_tables(one),
    ):
        assert "+0.0" in text
        assert "-0.0" not in text


# One set


def test_one_set_has_a_column_a_figure() -> None:
    rows = {"naclip": row(58.0), "naclip+rcs": row(59.25), "sclip+rcs": row(9.0, seconds=0.0)}
    lines = text_of(report(column("voc21", rows, **VOC))).splitlines()
    heads = ["method", "mIoU", "change", "published", "mean accuracy", "pixel accuracy"]
    assert cells(lines[0]) == [*heads, "weighted IoU", "images/s"]
    assert cells(lines[1]) == ["naclip", "58.0", "-", "58.9", "62.0", "65.0", "64.0", "10.00"]
    assert cells(lines[2])[1:4] == ["59.2", "+1.2", "-"]
    assert cells(lines[3]) == ["sclip+rcs", "9.0", "-", "-", "13.0", "16.0", "15.0", "-"]


def test_the_notes_say_what_was_measured_how_and_where_figures_come_from() -> None:
    text = text_of(report(column("voc21", {"naclip": row(58.0)}, **VOC)))
    assert (
        "voc21: 200 of voc21, whole; ViT-B-16 (openai), preset voc21, cpu, float32, resclip 0.1, torch 2.9."
        in text.splitlines()
    )
    assert "Images per second: a CPU, 1 process of 2 threads." in text
    assert "Published: NACLIP: ResCLIP paper tables 1 and 2 (without PAMR)." in text
    assert "is resclip" not in text
    both = text_of(report(figures(naclip=50.0, naclip_rcs_sfr=51.0)))
    assert "naclip+rcs+sfr is resclip." in both
    several = text_of(two_datasets())
    for name in ("voc21", "context59"):
        assert sum(line.startswith(f"{name}: 200 of {name}, ") for line in several.splitlines()) == 1  # fmt: skip
    assert several.count("ResCLIP paper tables 1 and 2 (without PAMR)") == 1
    assert "Published: SCLIP: SCLIP paper; same in ResCLIP paper." in several


def test_conditions_are_what_all_rows_have_alike() -> None:
    shared = {"window": 224, "stride": 112, "short_side": 336}
    rows = {"clip": row(1.0, options=shared), "proxyclip": row(2.0, options=shared)}
    one = DatasetReport("a", "2 images", {"model": "builtin", "device": "cuda"}, CLASSES, rows)
    assert conditions(one) == "2 images, short side 336, windows of 224 every 112 pixels; builtin, cuda."  # fmt: skip
    one.rows["proxyclip"] = row(2.0, options={**shared, "window": 336, "refine_iterations": 10})
    assert conditions(one) == "2 images, short side 336, windows by method; builtin, cuda."
    one.rows["clip"] = one.rows["proxyclip"]
    assert "windows of 336 every 112 pixels, 10 iterations of PAMR" in conditions(one)


def test_classes_have_a_table_a_base_and_no_row_is_left_out() -> None:
    clip, naclip = class_tables(figures(clip=34.0, clip_rcs=35.0, naclip=50.0)).split("\n\n")
    assert cells(clip.splitlines()[1]) == ["sky", "44.0", "45.0 (+1.0)", "-", "-"]
    assert cells(clip.splitlines()[2]) == ["night sky", "-", "-", "-", "-"]
    assert cells(naclip.splitlines()[3]) == ["car", "40.0", "-", "-", "-"]
    other = column("a", {"naclip": row(50.0), "naclip+rcs, λ 0.2": row(51.0)})
    lines = class_tables(other).splitlines()
    assert cells(lines[0])[-1] == "rcs, λ 0.2"
    assert cells(lines[1])[-1] == "61.0 (+1.0)"


# Problems


def test_datasets_with_images_left_out_are_marked_and_the_images_named() -> None:
    rows = {"naclip": row(58.0, problems=[TORN, LOST]), "clip": row(16.0, problems=[LOST])}
    broken = column("voc21", rows)
    whole = column("mine", {"naclip": row(58.0)})
    text = text_of(report(broken, whole))
    assert cells(text.splitlines()[0]) == ["method", "voc21*", "mine", "mean"]
    assert text.endswith(
        "* voc21: 2 images are left out of the figures:\n"
        "  2007_000033: masks/2007_000033.png: expected a whole mask (only naclip)\n"
        "  2007_000042: the image has no mask"
    )
    alone = text_of(report(column("voc21", {"naclip": row(5.0, problems=[LOST])})))
    assert cells(alone.splitlines()[0])[1] == "mIoU*"
    assert "* voc21: 1 image is left out" in alone
    assert "*" not in text_of(report(whole))


def test_what_of_the_masks_does_not_count_is_said_and_why_it_may_be_a_mistake() -> None:
    odd = Coverage(900, 100, 9, ("sky", "car"), "Every mask holds 0 and 255 alone.")
    rows = {"clip": row(40.0, coverage=odd), "naclip": row(50.0, coverage=replace(odd, hint=None))}
    tables = report_tables(report(column("folder", rows), figures(clip=1.0)))
    for text in (tables.text, tables.markdown):
        for note in (
            "folder: 10.0 % of the masks' pixels do not count.",
            "folder: 2 classes without ground truth: sky, car.",
            "folder: 1.0 % of the pixels that count have no image data: each is counted as a miss.",
            "folder: Every mask holds 0 and 255 alone. (only clip)",
        ):
            assert text.count(note) == 1
        assert "scenes: 0" not in text
    assert hint_notes(report(column("folder", rows))) == [
        "folder: Every mask holds 0 and 255 alone."
    ]
    (line, _, _) = csv.DictReader(io.StringIO(tables.csv))
    assert (line["counted_pixels"], line["ignored_pixels"], line["unlabelled_pixels"]) == (
        *("900", "100", "9"),
    )


def test_a_share_is_not_rounded_to_none_or_all() -> None:
    assert percentage(1, 10**6) == "less than 0.1 %"
    assert percentage(10**6 - 1, 10**6) == "more than 99.9 %"
    assert percentage(1, 1) == "100.0 %"
    assert percentage(1, 8) == "12.5 %"


def test_every_problem_has_one_line() -> None:
    odd = Problem("a", "two\nlines")
    rows = {"naclip": row(1.0, problems=[TORN, LOST]), "clip": row(1.0, problems=[LOST, odd])}
    both = report(column("voc21", rows), column("mine", {"clip": row(1.0, problems=[odd])}))
    assert problem_lines(both) == [
        "voc21, 2007_000033: masks/2007_000033.png: expected a whole mask (only naclip)",
        "voc21, 2007_000042: the image has no mask",
        "voc21, a: two lines (only clip)",
        "mine, a: two lines",
    ]


def test_many_problems_are_counted_under_the_table() -> None:
    problems = [Problem(f"image {number}", "torn") for number in range(1234)]
    one = report(column("a", {"clip": row(1.0, problems=problems)}))
    text = text_of(one)
    assert "* a: 1,234 images are left out" in text
    assert "image 4: torn" in text
    assert "image 5: torn" not in text
    assert text.endswith("and 1,229 more, which the report's JSON lists")
    assert len(problem_lines(one)) == 1234


# Files


def test_markdown_has_the_same_cells() -> None:
    lines = markdown_of(two_datasets()).split("\n\n")[0].splitlines()
    text = text_of(two_datasets()).split("\n\n")[0].splitlines()
    assert set(lines.pop(1)) == {"|", "-"}
    assert [markdown_cells(line) for line in lines] == [cells(line) for line in text]


def test_markdown_takes_signs_at_their_word() -> None:
    rows = {"naclip": row(58.0, problems=[Problem("a|b", "torn")])}
    text = markdown_of(report(column("a|b", rows), column("c", rows)))
    head, rule = text.splitlines()[:2]
    assert markdown_cells(head) == ["method", r"a\|b\*", r"c\*", "mean"]
    assert rule.count("|") == 5
    assert "\n- \\* a\\|b: 1 image is left out of the figures:\n  - a\\|b: torn\n" in text


def test_csv_holds_every_figure() -> None:
    rows = {"naclip": row(58.0 + 1 / 3, problems=[LOST]), "naclip+rcs": row(None)}
    text = csv_of(report(column("voc21", rows, **VOC), column("mine", rows)))
    assert text.count("\r\n") == text.count("\n") == 5
    lines = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [(line["set"], line["method"]) for line in lines] == [
        (name, method) for name in ("voc21", "mine") for method in ("naclip", "naclip+rcs")
    ]
    first, scores = lines[0], rows["naclip"].scores
    for name in ("miou", "mean_accuracy", "pixel_accuracy", "frequency_weighted_iou"):
        assert float(first[name]) == getattr(scores, name)
    for name in ("iou", "accuracy"):
        assert json.loads(first[name]) == dict(zip(CLASSES, getattr(scores, name), strict=True))
    assert (first["images"], first["problems"]) == ("200", "1")
    assert (first["seconds"], first["images_per_second"]) == ("20.0", "10.0")
    assert first["peak_memory"] == "3000000"
    assert (first["published_miou"], first["published_method"]) == ("58.9", "NACLIP")
    assert first["published_source"] == "ResCLIP paper tables 1 and 2 (without PAMR)"
    nothing = lines[1]
    assert nothing["miou"] == nothing["images_per_second"] == nothing["published_miou"] == ""
    assert nothing["images"] == "0"
    assert lines[2]["published_miou"] == ""


# Studies


def test_a_study_has_differences_the_best_and_the_mean() -> None:
    text = ablation_tables(ablation()).text
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
    both = ablation()
    one = Ablation(report(both.report.datasets["two"]), both.findings)  # It has no mean.
    assert ablation_tables(one).text.splitlines()[3].split() == ["λ_r", "two"]


def test_a_study_in_markdown_has_the_same_cells_and_the_best_in_bold() -> None:
    lines = ablation_tables(ablation()).markdown.splitlines()
    assert lines[0] == "## RCS: its weight (`rcs-weight`)"
    rows = [markdown_cells(line) for line in lines]
    assert ["0.1", "58.0 (-2.0)", "29.0 (-1.0)", "43.5 (-1.5)"] in rows
    assert ["0.2", "**62.0 (+2.0) [85.5]**", "28.0 (-2.0)", "**45.0 (+0.0)**"] in rows
    assert "best" not in "".join(line for line in lines if line.startswith("|"))


def test_csv_of_studies_has_every_figure_unrounded() -> None:
    lines = [*csv.DictReader(io.StringIO(ablation_tables(ablation()).csv))]
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
