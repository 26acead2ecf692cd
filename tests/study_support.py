"""An ablation that was never measured, for tests of what is made of it."""

from __future__ import annotations

from report_support import evaluation, report, row

from resclip.evaluation.ablation import Ablation, Findings, Line, Study, find_studies


def study(name: str) -> Study:
    return find_studies([name])[0]


def line(label: str, x: float | str, **rows: str) -> Line:
    return Line(label, x, rows)


def made_up() -> Ablation:
    """λ_r on two sets that start from 0.2 and 0.1, one of them with a published figure; and kinds of SFR."""
    first = evaluation(
        "voc20",
        {"naclip": row(60.0), "naclip+rcs": row(62.04), "naclip+rcs(weight=0.1)": row(58.0),
         "naclip+sfr": row(61.0), "naclip+sfr(connectivity=none)": row(None)},
        model="ViT-B-16", pretrained="openai", window=0,
    )  # fmt: skip
    second = evaluation(
        "two",
        {"naclip": row(30.0), "naclip+rcs(weight=0.2)": row(28.0), "naclip+rcs": row(29.0),
         "naclip+sfr": row(31.0), "naclip+sfr(connectivity=none)": row(31.0)},
    )  # fmt: skip
    weights = Findings(
        study("rcs-weight"),
        line("naclip", "naclip", voc20="naclip", two="naclip"),
        (
            line("0", 0.0, voc20="naclip", two="naclip"),
            line("0.1", 0.1, voc20="naclip+rcs(weight=0.1)", two="naclip+rcs"),
            line("0.2", 0.2, voc20="naclip+rcs", two="naclip+rcs(weight=0.2)"),
        ),
    )
    same = {"voc20": "naclip+sfr", "two": "naclip+sfr"}
    other = dict.fromkeys(same, "naclip+sfr(connectivity=none)")
    kinds = Findings(
        study("connectivity"),
        Line("naclip+sfr", "naclip+sfr", same),
        (Line("none", "none", other),),
    )
    return Ablation(report(first, second), (weights, kinds))
