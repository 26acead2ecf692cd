"""The figures and tables of README.md and docs/, from made-up results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_support import figures

from benchmarks import batch, cpu, gigapixel, high_resolution, readme
from benchmarks.reporting import RESULTS, table
from resclip.evaluation.report import Report
from resclip.evaluation.runner import row_names

ROOT = Path(__file__).parents[1]


LARGE_IMAGES: dict[str, Any] = {
    "side": 448,
    "shrunk_side": 224,
    "window": 112,
    "stride": 56,
    "weight": 0.2,
    "scenes": {"validation": 8, "held-out": 24},
    "machine": "a computer",
    "versions": {"torch": "2.9"},
    "sweep": [
        {"kind": kind, "method": "naclip", "weight": weight, "miou": 50 + 10 * weight + extra}
        for kind, extra in (("large", 0), ("small", 20))
        for weight in (0.0, 0.4)
    ],
    "rows": [
        {
            "kind": kind,
            "method": "naclip",
            "mode": mode,
            "miou": 70 + change,
            "change": change,
            "error": 0.74,
            "seconds": seconds,
        }
        for kind, seconds in (("large", 1.0), ("small", 2.0))
        for mode, change in (("windows", 0.0), ("mixed", -3.25))
    ],
}


def run(**times: float) -> dict[str, Any]:
    best = {
        "test_encoder[torch]": 1.0,
        "test_encoder[reference]": 20.0,
        "test_pamr[torch]": 1.0,
        "test_pamr[reference]": 30.0,
        "test_names[20]": 1.0,
        "test_names[847]": 4.0,
        "test_batch[8]": 8.0,
        "test_batch[1]": 9.0,
        "test_large_image": 100.0,
        **times,
    }
    large = {"seconds": 100.0, "peak_gb": 5.0, "labels": 3}
    return {
        "benchmarks": [
            {
                "name": name,
                "stats": {"min": seconds},
                "extra_info": large if name == "test_large_image" else {},
            }
            for name, seconds in best.items()
        ],
        "machine_info": {"cpu": {"brand_raw": "a CPU"}, "machine": "x", "python_version": "3.11.7"},
    }


def test_figures_say_what_was_reached() -> None:
    assert all(row.reached for row in cpu.figures(run()))
    slow = cpu.figures(run(**{"test_encoder[torch]": 2.0, "test_names[847]": 9.0}))
    assert [row.reached for row in slow] == [False, True, True, False, True]
    assert "20.0 × (20.00 s against 1.00 s)" in readme.cpu_table(run())


def test_method_table_has_a_row_a_base_with_its_best_in_bold() -> None:
    made_up = figures(
        clip=30.0,
        clip_rcs=31.04,
        clip_sfr=31.01,
        clip_rcs_sfr=29.0,
        maskclip=77.0,
        maskclip_rcs=76.9,
    )
    lines = readme.method_table(made_up).splitlines()
    assert lines[0] == "| base | none | RCS | SFR | RCS + SFR | class with the lowest IoU |"
    assert lines[2] == "| clip | 30.0 | **31.0** | **31.0** | 29.0 | car 21.0 |"
    assert lines[3] == "| maskclip | **77.0** | 76.9 | – | – | car 67.0 |"
    assert lines[-1] == (
        "mIoU in per cent: 200 scenes, windows of 112 every 56 pixels; "
        "cpu, float32, resclip 0.1, torch 2.9."
    )


def test_methods_must_come_in_the_papers_order() -> None:
    sound = {"clip": 34.0, "maskclip": 77.0, "naclip": 80.0, "naclip_rcs_sfr": 81.0}
    low = {"clip": 20.0, "maskclip": 26.0, "naclip": 27.0, "naclip_rcs_sfr": 28.0}
    for means, reached in (
        (sound, [True, True, True, True]),
        (sound | {"maskclip": 80.5}, [False, True, True, True]),
        (low, [True, False, False, True]),
    ):
        assert [row.reached for row in readme.method_figures(figures(**means))] == reached


def test_a_slow_evaluation_is_told() -> None:
    """Three of the made-up rows are among those that are timed, and last 50 s each."""
    made_up = figures(50.0, clip=34.0, maskclip=77.0, naclip=80.0, naclip_rcs_sfr=81.0)
    last = readme.method_figures(made_up)[-1]
    assert (last.measured, last.reached) == ("150 s", False)
    assert "naclip+rcs+sfr   81.0   +1.0" in readme.evaluation_output(made_up)


def test_the_stored_figures_of_the_methods_are_whole_and_in_order() -> None:
    stored = Report.read(RESULTS / "builtin.json").datasets["builtin"]
    assert list(stored.rows) == row_names()
    assert all(row.reached for row in readme.method_figures(stored))


def test_gpu_figures_are_those_of_the_stored_runs(tmp_path: Path) -> None:
    assert "No GPU has been measured yet" in readme.gpu_table(tmp_path)
    row = {"what": "pamr", "measured": "25 ×", "wanted": "≥ 20 ×"}
    run = {"figures": [row], "device": {"name": "Some GPU"}, "versions": {"torch": "2.11"}}
    (tmp_path / "gpu_some.json").write_text(json.dumps(run))
    table = readme.gpu_table(tmp_path)
    assert "| pamr | 25 × | ≥ 20 × |" in table
    assert table.endswith("Some GPU, torch 2.11.")


def test_filling_needs_its_markers_once() -> None:
    text = "a\n<!-- x -->\nold\n<!-- end x -->\nb"
    assert readme.fill(text, "x", "new") == "a\n<!-- x -->\nnew\n<!-- end x -->\nb"
    with pytest.raises(ValueError, match="once each"):
        readme.fill("nothing", "x", "new")


def test_the_published_figures_are_the_packaged_ones() -> None:
    lines = readme.published_table().splitlines()
    assert lines[0].startswith("| method | backbone | voc21 |")
    assert "| CLIP | ViT-L/14 | – | – | – | 15.8 |" in readme.published_table()
    manual = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    assert readme.fill(manual, "published", readme.published_table()) == manual


def test_the_pages_have_every_marker() -> None:
    names = ("figures", "gpu", "methods", "evaluate", "quick start")
    pages = {"README.md": names, "docs/evaluation.md": ("published",)}
    pages["docs/scale.md"] = ("batch", "million", "gigapixel")
    pages["docs/high-resolution.md"] = tuple(high_resolution.tables(LARGE_IMAGES))
    for page, markers in pages.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        for name in markers:
            assert text.count(f"<!-- {name} -->") == text.count(f"<!-- end {name} -->") == 1


def test_tables_of_batch_jobs() -> None:
    conditions = {"machine": "a machine", "threads": 2, "versions": {"python": "3", "torch": "2"}}
    row = {"method": "naclip", "window": 56, "one_by_one": 2.0, "together": 7.0, "ratio": 3.5}
    job = {"method": "naclip", "window": 56, "images_per_second": 6.25}
    job |= {"megapixels_per_second": 0.5, "bytes_per_image": 1234.0}
    run = {"rows": [row], "jobs": [job], "images": 24, "batch_size": 16, **conditions}
    text = batch.batch_tables(run)
    assert "| naclip | 56 | 2.00 | 7.00 | 3.5 × |" in text
    assert "| naclip | 56 | 6.25 | 0.500 | 1,234 |" in text
    assert "a machine, 2 threads, python 3, torch 2." in text
    large = {"side": 30_000, "classes": 9, "options": "--window 112", "seconds": 1800.0}
    large |= {"peak_gb": 1.25, "floor_gb": 0.75, "input_bytes": 1e8, "output_bytes": 2e7}
    text = gigapixel.gigapixel_table(large | conditions)
    assert "| 30,000 × 30,000 pixels, 9 classes | measured |" in text
    assert "| peak resident memory | 1.25 GB |" in text
    assert "| its logits alone | 32.4 GB |" in text
    assert "| time | 30.0 min, 0.50 megapixels/s |" in text


def test_tables_of_large_images() -> None:
    made = high_resolution.tables(LARGE_IMAGES)
    lines = made["modes"].splitlines()
    assert lines[:4] == [
        "| method | mode | large | small | CPU seconds an image |",
        "| --- | --- | --- | --- | --- |",
        "| naclip | windows | 70.0 | 70.0 | 1.5 |",
        "| naclip | mixed | 66.8 (−3.2 ± 0.7) | 66.8 (−3.2 ± 0.7) | 1.5 |",
    ]
    assert "24 held-out scenes of 448 × 448 a kind" in lines[-1]
    assert "with weight 0.2; a computer, one thread" in lines[-1]
    lines = made["weights"].splitlines()
    assert lines[0] == "| weight | naclip, large | naclip, small | mean |"
    assert lines[2:4] == ["| 0 | 50.0 | 70.0 | 60.0 |", "| 0.4 | 54.0 | 74.0 | 64.0 |"]


def test_a_bar_in_a_cell_keeps_the_table_whole() -> None:
    assert table(["a|b"], [["c"], [1]]) == "| a/b |\n| --- |\n| c |\n| 1 |"
