"""The GPU benchmark without a GPU: its refusals, figures and tables; its dry run is part of test_gpu_visit.py."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("triton", reason="kernels need Triton, which exists for Linux alone")

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import case, checks, pipeline, planes, report, suite, timing
from benchmarks.gpu.figures import figures
from resclip import load
from resclip_kernels import pamr

MS = ("q1_ms", "median_ms", "q3_ms")


def test_what_cannot_be_measured_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No GPU, the interpreter in place of kernels, an op that does not exist."""
    for has_gpu, interpreted, arguments, words in (
        (False, "0", [], "torch finds no GPU here"),
        (True, "1", [], "TRITON_INTERPRET"),
        (False, "1", ["--dry-run", "--only", "pamr,attention"], "no op 'attention'; use some of"),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpu=has_gpu: has_gpu)
        monkeypatch.setenv("TRITON_INTERPRET", interpreted)
        assert command.main(arguments) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1
        assert words in printed.err


def outcome(milliseconds: float, peak: float = 1e9) -> dict[str, Any]:
    rates = {"peak_bytes": peak, "tflops": 400.0, "gbps": 3000.0}
    return {"status": "ok", "reason": "", **dict.fromkeys(MS, milliseconds), **rates}


def skipped(reason: str, status: str = "skipped") -> dict[str, Any]:
    return {"status": status, "reason": reason}


@pytest.fixture
def document() -> dict[str, Any]:
    """A run that reaches every figure."""

    def made_up(op: str, name: str, *, tokens: int = 1, **more: Any) -> dict[str, Any]:
        shape = {"tokens": tokens, "grid": (64, 64), "batch": 1}
        defaults = {"shape": shape, "flops": 1, "bytes": 0, "items": 1, "reason": ""}
        return {"op": op, "name": name, **defaults, **more}

    attention = {
        "triton": outcome(1.1),
        "sdpa": outcome(1.0),
        "reference": outcome(20.0, 3e10),
        "flex": skipped("no Ŝ"),
    }
    longest = {"triton": outcome(111.0), "sdpa": outcome(100.0), "reference": skipped("928 GB")}
    refinement = {"triton": outcome(1.0), "reference": outcome(25.0)}
    protocol = {"triton": outcome(80.0), "reference": outcome(2400.0), "files": outcome(98.0)}
    check = {"op": "pamr", "dtype": "fp32", "status": "ok", "reason": ""}
    op = "residual_attention"
    return {
        "dry_run": False,
        "complete": True,
        "date": "2025-01-01T00:00:00+00:00",
        "commit": "abc",
        "device": {"name": "A GPU", "driver": "1"},
        "versions": {"torch": "2"},
        "ceilings": {"fp16_tflops": 800.0, "bf16_tflops": 800.0, "copy_gbps": 4000.0},
        "checks": [check | {"error": 1e-6, "allowed": 2e-6}],
        "cases": [
            made_up(op, "L = 197", tokens=197, variants={"triton": outcome(9.0)}),
            made_up(op, "L = 4,097", tokens=4097, variants=attention),
            made_up(op, "L = 65,537", tokens=65537, variants=longest),
            made_up("pamr", planes.FIGURE_PAMR, bytes=2_500_000_000, variants=refinement),
            made_up("pipeline", pipeline.PROTOCOL, items=16, variants=protocol),
            made_up("pipeline", pipeline.FEW, items=16, variants={"triton": outcome(60.0)}),
            made_up("pipeline", pipeline.MANY, items=16, variants={"triton": outcome(200.0)}),
            made_up("pipeline", pipeline.LARGE, variants={"triton": outcome(700.0, 9e9)}),
        ],
    }


def test_every_figure_reached(document: dict[str, Any]) -> None:
    rows = figures(document)
    assert [row.number for row in rows] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 6, 6, 7, 8]
    assert all(row.reached for row in rows), [row for row in rows if not row.reached]
    # 2.5 GB in 1 ms of 4,000 GB/s; 16 images in 80 ms.
    for at, value in ((0, 1.1), (3, 30.0), (5, 0.625), (7, 200.0), (12, 80 / 98)):
        assert rows[at].value == pytest.approx(value)


def test_a_figure_that_falls_short(document: dict[str, Any]) -> None:
    for number, variant, milliseconds, fallen in (
        (1, "triton", 1.2, [1]),
        (1, "reference", 10.9, [2]),
        (3, "triton", 1.1, [3]),
        (3, "reference", 19.0, [3]),
        (4, "triton", 161.0, [4, 4]),
        (4, "files", 100.1, [8]),
        (5, "triton", 49.0, [5]),
        (7, "triton", 1000.0, [6]),
    ):
        slower = copy.deepcopy(document)
        slower["cases"][number]["variants"][variant] |= dict.fromkeys(MS, milliseconds)
        rows = figures(slower)
        assert [row.number for row in rows if not row.reached] == fallen
        assert any(str(row).startswith("NOT (") for row in rows)


def test_figures_without_their_measurement_say_what_is_missing(document: dict[str, Any]) -> None:
    nothing = {**document, "cases": [], "checks": []}
    assert not any(row.reached for row in figures(nothing))
    for each in document["cases"]:
        each["variants"]["triton"] = skipped("no luck", "failed")
    document["checks"][0]["status"] = "skipped"
    rows = figures(document)
    assert not any(row.reached for row in rows)
    assert {row.number for row in rows} == set(range(1, 9))
    assert rows[0].measured == "not measured: L = 4,097: triton failed no luck"


def test_tables_and_plots(
    document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document["cases"][4]["variants"]["triton"] |= dict.fromkeys(MS, 170.0)
    document["figures"] = [row.record() for row in figures(document)]
    text = report.markdown(document)
    assert "| ok | 1. residual_attention, L = 4,097, against plain SDPA calls | 1.10 ×" in text
    assert "| NOT | 4. whole pipeline, 150 names" in text
    assert "94 images a second | ≥ 100 images a second |" in text
    assert "| L = 4,097 | 1.10 (1.10–1.10), 1.00 GB | 20.00 (20.00–20.00), 30.00 GB |" in text
    assert "- FlexAttention: no Ŝ (L = 4,097)" in text
    assert "| pamr | 1.0e-06 of 2.0e-06 |" in text
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        assert report.draw(document, tmp_path, "gpu_x") == []
    assert not list(tmp_path.iterdir())
    pytest.importorskip("matplotlib")
    for path in report.draw(document, tmp_path, "gpu_x"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_variants_that_cannot_run_say_why() -> None:
    limits = timing.Limits(turns=2, longest_seconds=5.0)
    clock, pace = timing.Clock("cpu"), timing.Pace(60.0, limits)
    pace.seconds_by_work["op", "slow"] = 2.0

    def fail(error: Exception) -> None:
        raise error

    exhausted = torch.OutOfMemoryError("tried to allocate 999 GiB")
    calls: list[str] = []
    variants = [
        timing.Variant("good", lambda: calls.append("good")),
        timing.Variant("rival", lambda: calls.append("rival")),
        timing.Variant("none", None, "no attention"),
        timing.Variant("large", calls.clear, needs_bytes=1 << 50),
        timing.Variant("slow", calls.clear),
        timing.Variant("full", lambda: fail(exhausted)),
        timing.Variant("broken", lambda: fail(RuntimeError("no such\nkernel"))),
    ]
    outcomes = timing.measure("op", 10.0, variants, clock, pace, whole=False)
    # Two calls of each to warm up; then they take turns.
    assert calls == ["good"] * 2 + ["rival"] * 2 + ["good", "rival"] * 2
    assert len(outcomes["good"].samples_ms) == len(outcomes["rival"].samples_ms) == 2
    status = {name: (result.status, result.reason) for name, result in outcomes.items()}
    assert status["none"] == ("skipped", "no attention")
    assert status["large"][0] == "skipped"
    assert status["large"][1].startswith("needs 1125900 GB by prediction")
    assert status["slow"] == ("skipped", "would take 20 s a call, by what a smaller case took")
    assert status["full"] == ("out of memory", "OutOfMemoryError: tried to allocate 999 GiB")
    assert status["broken"] == ("failed", "RuntimeError: no such kernel")
    late = timing.Pace(-1.0, limits)
    essential = timing.Variant("essential", lambda: None, essential=True)
    outcomes = timing.measure("op", 1.0, [variants[0], essential], clock, late, whole=True)
    assert outcomes["good"].reason == "the run's time was up"
    assert outcomes["essential"].status == "ok"


def test_a_slow_call_is_its_own_sample_and_shared_memory_counts_once() -> None:
    limits = timing.Limits(slow_seconds=0.0, patient=False)
    tensor = torch.zeros(10)
    variant = timing.Variant("a", lambda: None, held=(tensor, tensor[:5], tensor[5:]), share=1 / 4)
    assert variant.held_bytes == 20 + 20
    clock, pace = timing.Clock("cpu"), timing.Pace(60.0, limits)
    result = timing.measure("op", 1.0, [variant], clock, pace, whole=False)["a"]
    assert result.reason == "one cold call, timed by the host"
    assert result.first_seconds is not None
    assert result.samples_ms == [pytest.approx(4e3 * result.first_seconds)]
    assert list(timing.quartiles([3.0]).values()) == [3.0, 3.0, 3.0]
    assert list(timing.quartiles([1.0, 2.0, 3.0, 4.0, 5.0]).values()) == [2.0, 3.0, 4.0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_kernel_is_timed_on_the_device_with_its_memory() -> None:
    values = torch.ones(1 << 26, device="cuda")
    variant = timing.Variant("copy", values.clone, held=(values,))
    clock, pace = timing.Clock("cuda"), timing.Pace(60.0, timing.Limits(turns=3))
    result = timing.measure("op", 1.0, [variant], clock, pace, whole=False)["copy"]
    assert result.status == "ok", result.reason
    assert len(result.samples_ms) == 3
    # 512 MB cross memory: no device takes less than 0.02 ms or more than 20 ms.
    assert 0.02 < result.record()["median_ms"] < 20
    assert result.extra_bytes == values.nbytes


def test_a_job_from_file_to_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = load(classes=["sky", "grass"], method="naclip", window=28, short_side=28)
    image = np.random.default_rng(0).integers(0, 256, (28, 35, 3), dtype=np.uint8)
    pixels = segmenter.prepare(image)
    assert np.array_equal(pipeline.as_image(pixels, (28, 35), segmenter), image)

    run = pipeline.file_job(segmenter, [pixels, -pixels], (40, 50), 3, tmp_path)
    inputs = sorted(tmp_path.glob("jpeg-*/*"))
    assert [path.name for path in inputs] == ["0000.jpg", "0001.jpg", "0002.jpg"]
    assert inputs[0].read_bytes() == inputs[2].read_bytes() != inputs[1].read_bytes()
    for times in (1, 2):
        run()
        outputs = list(tmp_path.glob("png-*/*_labels.png"))
        assert len(outputs) == 3 * times
        assert {Image.open(path).size for path in outputs} == {(50, 40)}
    inputs[1].write_bytes(b"")
    with pytest.raises(RuntimeError, match=r"expected 3 images to be done, got 2: 0001\.jpg: "):
        run()

    monkeypatch.setitem(sys.modules, "resclip.batch.sources", None)
    variant = case.tried(
        "files", lambda: pipeline.file_job(segmenter, [pixels], (40, 50), 1, tmp_path)
    )
    assert variant.run is None
    assert "could not be set up: ModuleNotFoundError" in variant.reason


def test_a_wrong_op_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def off(*arguments: Any, implementation: str, **options: Any) -> torch.Tensor:
        result = pamr(*arguments, implementation="reference", **options)
        return result if implementation == "reference" else result + 0.1

    monkeypatch.setattr(checks, "pamr", off)
    settings = suite.Settings(dry_run=True, ops=("pamr",))
    with pytest.raises(suite.ChecksFailed, match="pamr fp32, pamr fp16"):
        suite.check(settings)
    monkeypatch.setattr(
        checks, "pamr", lambda *a, **b: pamr(*a, **{**b, "implementation": "torch"})
    )
    assert [result.status for result in suite.check(settings)] == ["ok"] * 3
