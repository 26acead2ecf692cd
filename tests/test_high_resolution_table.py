"""The tables of the page on large images, from made-up figures."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RUN: dict[str, Any] = {
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


@pytest.fixture(scope="module")
def table() -> ModuleType:
    path = ROOT / "benchmarks/high_resolution_table.py"
    spec = importlib.util.spec_from_file_location("high_resolution_table", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_modes_stand_beside_windows(table: ModuleType) -> None:
    lines = table.tables(RUN)["modes"].splitlines()
    assert lines[:4] == [
        "| method | mode | large | small | CPU seconds an image |",
        "|---|---|---|---|---|",
        "| naclip | windows | 70.0 | 70.0 | 1.5 |",
        "| naclip | mixed | 66.8 (−3.2 ± 0.7) | 66.8 (−3.2 ± 0.7) | 1.5 |",
    ]
    assert "24 held-out scenes of 448 × 448 a kind" in lines[-1]
    assert "with weight 0.2; a computer, one thread" in lines[-1]


def test_weights_stand_with_the_mean_that_chooses(table: ModuleType) -> None:
    lines = table.tables(RUN)["weights"].splitlines()
    assert lines[0] == "| weight | naclip, large | naclip, small | mean |"
    assert lines[2:4] == ["| 0 | 50.0 | 70.0 | 60.0 |", "| 0.4 | 54.0 | 74.0 | 64.0 |"]


def test_the_page_has_the_markers(table: ModuleType) -> None:
    page = (ROOT / "docs/high-resolution.md").read_text(encoding="utf-8")
    for marker in table.tables(RUN):
        assert page.count(f"<!-- {marker} -->") == page.count(f"<!-- end {marker} -->") == 1
