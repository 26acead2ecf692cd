"""Tables of figures: what stands in which cell, how differences and published figures are shown, what is named."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
from report_support import CLASSES, evaluation, figures, report, row

from resclip.evaluation.datasets.base import Problem
from resclip.evaluation.report import Evaluation, Report
from resclip.evaluation.tables import (
    class_tables,
    conditions,
    csv_table,
    markdown_table,
    problem_lines,
    report_table,
)
from resclip.text.class_names import DATASETS

VIT = {"model": "ViT-B-16", "pretrained": "openai"}
"""Settings with which rows have published figures."""
VOC = {**VIT, "preset": "voc21", "window": 0, "stride": 112}
CONTEXT = {**VIT, "preset": "context59", "window": 224, "stride": 112}
RELEASED = {
    "rcs_layers": [6, 7, 8, 9],
    "sfr": {
        "weight": 0.7,
        "temperature": 1.8,
        "label_threshold": 0.25,
        "smoothing_std": 5.0,
        "connectivity": "prefix",
        "refine_iterations": 10,
        "logit_scale": 40.0,
        "normalise": True,
        "rounds": 1,
    },
}
"""Options of SFR and RCS for context59."""
TORN = Problem("2007_000033", "masks/2007_000033.png: expected a whole mask")
LOST = Problem("2007_000042", "the image has no mask")


def cells(line: str) -> list[str]:
    """A line of aligned text: cells are two spaces or more apart."""
    return re.split(r"\s{2,}", line.strip())


def two_sets() -> Report:
    voc = {"naclip": row(58.0), "naclip+rcs": row(58.96), "clip": row(16.0)}
    context = {"naclip": row(36.0), "naclip+rcs": row(35.0), "sclip": row(34.04)}
    return report(evaluation("voc21", voc, **VOC), evaluation("context59", context, **CONTEXT))


# Several sets


def test_methods_are_lines_and_sets_are_columns() -> None:
    lines = report_table(two_sets()).split("\n\n")[0].splitlines()
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


def test_cells_stand_under_their_heads() -> None:
    lines = report_table(two_sets()).split("\n\n")[0].splitlines()
    for head, values in (("voc21", ("58.0", "58.9", "59.0", "16.0", "16.2")), ("mean", ("47.0",))):
        start = lines[0].index(head)
        found = [line[start:].split()[0] for line in lines[1:] if len(line) > start]
        assert set(values) <= set(found)


def test_published_figures_have_their_own_differences() -> None:
    options = {"rcs": {"layers": [6, 7, 8, 9], "weight": 0.4, "temperature": 2.0}}
    rows = {"naclip": row(30.0), "naclip+rcs+sfr": row(33.0, options={**options, **RELEASED})}
    both = report(evaluation("context59", rows, **CONTEXT), evaluation("mine", rows))
    lines = report_table(both).split("\n\n")[0].splitlines()
    assert cells(lines[3]) == ["naclip+rcs+sfr", "33.0 (+3.0)", "33.0 (+3.0)", "33.0 (+3.0)"]
    assert cells(lines[4]) == ["published", "36.8 (+1.6)", "-", "-"]


def test_eight_sets_are_readable() -> None:
    rows = {"naclip": row(36.0), "naclip+rcs": row(35.0), "naclip+rcs+sfr": row(37.0)}
    settings = {**VIT, "window": 224, "stride": 112}
    table = report_table(report(*(evaluation(name, rows, **settings) for name in DATASETS)))
    lines = table.split("\n\n")[0].splitlines()
    assert max(map(len, lines)) <= 140
    # RCS alone is published for VOC20 alone, and as measured on whole images.
    names = ["method", "naclip", "published", "naclip+rcs", "naclip+rcs+sfr", "published"]
    assert [cells(line)[0] for line in lines] == names
    assert all(len(cells(line)) == 10 for line in lines)


def test_nothing_measured_is_a_dash() -> None:
    both = report(evaluation("a", {"naclip": row(None)}), evaluation("b", {"naclip": row(50.0)}))
    assert cells(report_table(both).splitlines()[1]) == ["naclip", "-", "50.0", "-"]
    alone = report_table(report(evaluation("a", {"naclip": row(None)})))
    assert cells(alone.splitlines()[1]) == ["naclip", *"-------"]


def test_there_is_a_table_of_nothing() -> None:
    assert report_table(Report()).startswith("method  mean\n")
    assert csv_table(Report()).count("\r\n") == 1


@pytest.mark.parametrize("change", [-0.04, -1e-9, 0.0, 0.04])
def test_no_difference_has_no_minus(change: float) -> None:
    one = evaluation("a", {"naclip": row(50.0), "naclip+rcs": row(50.0 + change)})
    for text in (
        report_table(report(one)),
        report_table(report(one, evaluation("b", one.rows))),
        markdown_table(report(one)),
        class_tables(one),
    ):
        assert "+0.0" in text
        assert "-0.0" not in text


def test_the_same_figures_differ_by_nothing() -> None:
    """A row is its own base by its name, not by its figures."""
    rows = {"naclip": row(50.0), "naclip+rcs": row(50.0)}
    both = report(evaluation("a", rows), evaluation("b", rows))
    lines = report_table(both).splitlines()
    assert cells(lines[1]) == ["naclip", "50.0", "50.0", "50.0"]
    assert cells(lines[2]) == ["naclip+rcs", "50.0 (+0.0)", "50.0 (+0.0)", "50.0 (+0.0)"]


# One set


def test_one_set_has_a_column_a_figure() -> None:
    rows = {"naclip": row(58.0), "naclip+rcs": row(59.25), "sclip+rcs": row(9.0, seconds=0.0)}
    lines = report_table(report(evaluation("voc21", rows, **VOC))).splitlines()
    heads = ["method", "mIoU", "change", "published", "mean accuracy", "pixel accuracy"]
    assert cells(lines[0]) == [*heads, "weighted IoU", "images/s"]
    assert cells(lines[1]) == ["naclip", "58.0", "-", "58.9", "62.0", "65.0", "64.0", "10.00"]
    assert cells(lines[2])[1:4] == ["59.2", "+1.2", "-"]
    assert cells(lines[3]) == ["sclip+rcs", "9.0", "-", "-", "13.0", "16.0", "15.0", "-"]


def test_the_notes_say_what_was_measured_how_and_where_figures_come_from() -> None:
    text = report_table(report(evaluation("voc21", {"naclip": row(58.0)}, **VOC)))
    assert (
        "voc21: 200 of voc21, whole; ViT-B-16 (openai), preset voc21, cpu, float32, resclip 0.1, torch 2.9."
        in text.splitlines()
    )
    assert "Images per second: a CPU, 1 process of 2 threads." in text
    assert "Published: NACLIP: ResCLIP paper tables 1 and 2 (without PAMR)." in text
    assert "is resclip" not in text
    both = report_table(report(figures(naclip=50.0, naclip_rcs_sfr=51.0)))
    assert "naclip+rcs+sfr is resclip." in both
    several = report_table(two_sets())
    for name in ("voc21", "context59"):
        assert sum(line.startswith(f"{name}: 200 of {name}, ") for line in several.splitlines()) == 1  # fmt: skip
    assert several.count("ResCLIP paper tables 1 and 2 (without PAMR)") == 1
    assert "Published: SCLIP: SCLIP paper; same in ResCLIP paper." in several


def test_conditions_are_what_all_rows_have_alike() -> None:
    shared = {"window": 224, "stride": 112, "short_side": 336}
    rows = {"clip": row(1.0, options=shared), "proxyclip": row(2.0, options=shared)}
    one = Evaluation("a", "2 images", {"model": "builtin", "device": "cuda"}, CLASSES, rows)
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
    other = evaluation("a", {"naclip": row(50.0), "naclip+rcs, λ 0.2": row(51.0)})
    lines = class_tables(other).splitlines()
    assert cells(lines[0])[-1] == "rcs, λ 0.2"
    assert cells(lines[1])[-1] == "61.0 (+1.0)"


# Problems


def test_sets_with_images_left_out_are_marked_and_the_images_named() -> None:
    rows = {"naclip": row(58.0, problems=[TORN, LOST]), "clip": row(16.0, problems=[LOST])}
    broken = evaluation("voc21", rows)
    whole = evaluation("mine", {"naclip": row(58.0)})
    text = report_table(report(broken, whole))
    assert cells(text.splitlines()[0]) == ["method", "voc21*", "mine", "mean"]
    assert text.endswith(
        "* voc21: 2 images are left out of the figures:\n"
        "  2007_000033: masks/2007_000033.png: expected a whole mask (only naclip)\n"
        "  2007_000042: the image has no mask"
    )
    alone = report_table(report(evaluation("voc21", {"naclip": row(5.0, problems=[LOST])})))
    assert cells(alone.splitlines()[0])[1] == "mIoU*"
    assert "* voc21: 1 image is left out" in alone
    assert "*" not in report_table(report(whole))


def test_every_problem_has_one_line() -> None:
    odd = Problem("a", "two\nlines")
    rows = {"naclip": row(1.0, problems=[TORN, LOST]), "clip": row(1.0, problems=[LOST, odd])}
    both = report(evaluation("voc21", rows), evaluation("mine", {"clip": row(1.0, problems=[odd])}))
    assert problem_lines(both) == [
        "voc21, 2007_000033: masks/2007_000033.png: expected a whole mask (only naclip)",
        "voc21, 2007_000042: the image has no mask",
        "voc21, a: two lines (only clip)",
        "mine, a: two lines",
    ]


def test_many_problems_are_counted_under_the_table() -> None:
    problems = [Problem(f"image {number}", "torn") for number in range(1234)]
    one = report(evaluation("a", {"clip": row(1.0, problems=problems)}))
    text = report_table(one)
    assert "* a: 1,234 images are left out" in text
    assert "image 4: torn" in text
    assert "image 5: torn" not in text
    assert text.endswith("and 1,229 more, which the report's JSON lists")
    assert len(problem_lines(one)) == 1234


# Files


def test_markdown_has_the_same_cells() -> None:
    lines = markdown_table(two_sets()).split("\n\n")[0].splitlines()
    text = report_table(two_sets()).split("\n\n")[0].splitlines()
    assert lines.pop(1) == "| --- | --- | --- | --- |"
    assert [line.strip("| ").split(" | ") for line in lines] == [cells(line) for line in text]


def test_markdown_takes_signs_at_their_word() -> None:
    rows = {"naclip": row(58.0, problems=[Problem("a|b", "torn")])}
    text = markdown_table(report(evaluation("a|b", rows), evaluation("c", rows)))
    head, rule = text.splitlines()[:2]
    assert head == r"| method | a\|b\* | c\* | mean |"
    assert rule.count("---") == 4
    assert "\n- \\* a\\|b: 1 image is left out of the figures:\n  - a\\|b: torn\n" in text


def test_csv_holds_every_figure() -> None:
    rows = {"naclip": row(58.0 + 1 / 3, problems=[LOST]), "naclip+rcs": row(None)}
    text = csv_table(report(evaluation("voc21", rows, **VOC), evaluation("mine", rows)))
    assert text.count("\r\n") == text.count("\n") == 5
    lines = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [(line["set"], line["method"]) for line in lines] == [
        ("voc21", "naclip"),
        ("voc21", "naclip+rcs"),
        ("mine", "naclip"),
        ("mine", "naclip+rcs"),
    ]
    first = lines[0]
    wanted = rows["naclip"]
    assert float(first["miou"]) == wanted.scores.miou
    assert float(first["mean_accuracy"]) == wanted.scores.mean_accuracy
    assert float(first["pixel_accuracy"]) == wanted.scores.pixel_accuracy
    assert float(first["frequency_weighted_iou"]) == wanted.scores.frequency_weighted_iou
    assert json.loads(first["iou"]) == dict(zip(CLASSES, wanted.scores.iou, strict=True))
    assert json.loads(first["accuracy"]) == dict(zip(CLASSES, wanted.scores.accuracy, strict=True))
    assert (first["images"], first["problems"]) == ("200", "1")
    assert (first["seconds"], first["images_per_second"]) == ("20.0", "10.0")
    assert first["peak_memory"] == "3000000"
    assert (first["published_miou"], first["published_method"]) == ("58.9", "NACLIP")
    assert first["published_source"] == "ResCLIP paper tables 1 and 2 (without PAMR)"
    nothing = lines[1]
    assert nothing["miou"] == nothing["images_per_second"] == nothing["published_miou"] == ""
    assert nothing["images"] == "0"
    assert lines[2]["published_miou"] == ""


def test_csv_quotes_what_needs_it() -> None:
    odd = Evaluation('a "b", c\nd', "", {}, ('one "1", two', "3", "4"), {"naclip": row(5.0)})
    line = next(iter(csv.DictReader(io.StringIO(csv_table(report(odd)), newline=""))))
    assert line["set"] == 'a "b", c\nd'
    assert list(json.loads(line["iou"])) == ['one "1", two', "3", "4"]
