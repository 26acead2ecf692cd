"""The GPU benchmark without a GPU: its refusals, figures and tables; its dry run is part of test_gpu_visit.py."""

from __future__ import annotations

import copy
import json
import os
import signal
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("triton", reason="kernels need Triton, which exists for Linux alone")

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import (
    attention,
    case,
    checks,
    graphs,
    jobs,
    pipeline,
    planes,
    report,
    suite,
    timing,
    tuning,
)
from benchmarks.gpu.figures import figures
from benchmarks.gpu.inputs import Device
from benchmarks.reporting import RESULTS
from resclip import load
from resclip_kernels import launch, pamr

MS = ("q1_ms", "median_ms", "q3_ms")


def test_what_cannot_be_measured_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No GPU, the interpreter in place of kernels, an op that does not exist."""
    for has_gpu, interpreted, arguments, words in (
        (False, "0", [], "torch finds no GPU here"),
        (True, "1", [], "TRITON_INTERPRET"),
        (False, "1", ["--dry-run", "--only", "pamr,attention"], "no op 'attention'; use some of"),
        (True, "0", ["--compare", "nowhere.json"], "nowhere.json: expected results of `make bench"),
        (True, "0", ["--redraw", str(RESULTS / "batch.json")], "batch.json: expected results of"),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpu=has_gpu: has_gpu)
        monkeypatch.setenv("TRITON_INTERPRET", interpreted)
        assert command.main(arguments) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1
        assert words in printed.err


def outcome(milliseconds: float, peak: float = 1e9) -> dict[str, Any]:
    rates = {"peak_bytes": peak, "tflops": 400.0, "gbps": 3000.0, "queue_ms": 0.25}
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
        "auto": outcome(1.2),
        "flash": outcome(1.0),
        "cudnn": skipped("no such head", "failed"),
        "reference": outcome(20.0, 3e10),
        "flex": skipped("no Ŝ"),
    }
    longest = {**attention, "auto": outcome(105.0), "triton": outcome(111.0)}
    longest |= {"flash": outcome(200.0), "cudnn": outcome(100.0), "reference": skipped("58 GB")}
    refinement = {"triton": outcome(1.0), "reference": outcome(25.0)}
    protocol = {"triton": outcome(30.0), "reference": outcome(900.0), "files": outcome(36.0)}
    check = {"op": "pamr", "dtype": "fp32", "way": "triton", "status": "ok", "reason": ""}
    exact = {**check, "way": "graph", "error": 0.0, "allowed": 0.0}
    lengths = (
        ("L = 1,025, batch 1", 1025),
        ("L = 197, batch 64", 197),
        ("L = 4,097, batch 1", 4097),
    )
    op = "residual_attention"
    return {
        "schema": suite.SCHEMA,
        "dry_run": False,
        "complete": True,
        "stopped": "",
        "seconds": 300.0,
        "steps": {"first use": "ok"},
        "first_use": {
            "pamr": {"seconds": 0.5, "reason": None},
            "upsample_argmax": {"seconds": 1.5, "reason": None},
        },
        "tuning": [],
        "figures": [],
        "date": "2025-01-01T00:00:00+00:00",
        "commit": "abc",
        "device": {"name": "A GPU", "driver": "1"},
        "versions": {"torch": "2"},
        "ceilings": {"fp16_tflops": 800.0, "bf16_tflops": 800.0, "copy_gbps": 4000.0},
        "checks": [check | {"error": 1e-6, "allowed": 2e-6}, exact],
        "cases": [
            *(
                made_up(op, name, tokens=tokens, variants=copy.deepcopy(attention))
                for name, tokens in lengths
            ),
            made_up(op, "L = 16,385, batch 1", tokens=16385, variants=longest),
            made_up("pamr", planes.FIGURE_PAMR, bytes=2_500_000_000, variants=refinement),
            made_up("pipeline", pipeline.PROTOCOL, items=16, variants=protocol),
            made_up("pipeline", pipeline.FEW, items=16, variants={"triton": outcome(20.0)}),
            made_up("pipeline", pipeline.MANY, items=16, variants={"triton": outcome(40.0)}),
            made_up("pipeline", pipeline.LARGE, variants={"triton": outcome(700.0, 9e9)}),
        ],
    }


def test_every_figure_reached(document: dict[str, Any]) -> None:
    rows = figures(document)
    assert [row.number for row in rows] == [1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 6, 6, 7, 8, 9]
    assert all(row.reached for row in rows), [row for row in rows if not row.reached]
    # The faster of ours against the fastest plain one; 2.5 GB in 1 ms of 4,000 GB/s; 16 images in 30 ms.
    values = {0: 1.1, 3: 1.05, 5: 30.0, 7: 0.625, 9: 16 / 0.03, 13: 0.5, 14: 30 / 36, 15: 1.5}
    for at, value in values.items():
        assert rows[at].value == pytest.approx(value)
    assert rows[3].measured == "1.05 × (auto 105.000 ms against cudnn 100.000 ms)"


def test_a_figure_that_falls_short(document: dict[str, Any]) -> None:
    for number, variant, milliseconds, fallen in (
        (0, "flash", 0.9, [1]),
        (3, "auto", 116.0, []),
        (3, "cudnn", 90.0, [1]),
        (2, "reference", 10.9, [2]),
        (4, "triton", 1.1, [3]),
        (4, "reference", 19.0, [3]),
        (5, "triton", 33.0, [4]),
        (5, "files", 37.6, [8]),
        (6, "triton", 19.9, [5]),
        (8, "triton", 1000.0, [6]),
    ):
        slower = copy.deepcopy(document)
        slower["cases"][number]["variants"][variant] |= dict.fromkeys(MS, milliseconds)
        rows = figures(slower)
        assert [row.number for row in rows if not row.reached] == fallen, (number, variant)
        assert any(str(row).startswith("NOT (") for row in rows) == bool(fallen)
    document["checks"][0]["error"] = 1.7e-6
    document["first_use"]["pamr"]["seconds"] = 2.0
    assert [row.number for row in figures(document) if not row.reached] == [7, 9]


def test_figures_without_their_measurement_say_what_is_missing(document: dict[str, Any]) -> None:
    nothing = {**document, "cases": [], "checks": [], "first_use": {}, "ceilings": {}}
    assert not any(row.reached for row in figures(nothing))
    for each in document["cases"]:
        each["variants"]["triton"] = each["variants"]["auto"] = skipped("no luck", "failed")
    document["checks"][0]["status"] = "failed"
    document["first_use"]["pamr"]["reason"] = "5 % off"
    rows = figures(document)
    assert not any(row.reached for row in rows)
    assert {row.number for row in rows} == set(range(1, 10))
    assert rows[0].measured == "not measured: L = 1,025, batch 1: triton failed no luck"
    assert rows[-1].measured == "not measured: pamr: 5 % off"
    assert "not within budget: pamr fp32 triton" in rows[-3].measured


def test_tables_and_plots(
    document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document["cases"][5]["variants"]["triton"] |= dict.fromkeys(MS, 170.0)
    program = dict.fromkeys(("rows", "columns"), 64)
    place = {"name": "L = 197", "today": {"layers": program, "base": program}, "today_ms": 2.0}
    ended = {"proposed": {"layers": program, "base": program | {"rows": 128}}, "proposed_ms": 1.5}
    document["tuning"] = [{**place, **ended, "library_layers_ms": 1.75}, place]
    document["steps"]["ceilings"] = suite.ENDED
    document["figures"] = [row.record() for row in figures(document)]
    text = report.markdown(document)
    assert "| ok | 1. residual_attention, L = 4,097, batch 1, against the fastest plain" in text
    assert "| NOT | 4. whole pipeline, 150 names" in text
    assert "94 images a second | ≥ 500 images a second |" in text
    assert "| L = 197, batch 64 | 1.10 (1.10–1.10), 1.00 GB | 1.20 (1.20–1.20), 1.00 GB |" in text
    assert "\n- FlexAttention with a stored bias: no Ŝ\n" in text
    assert "| pamr | triton | 1.0e-06 of 2.0e-06 |" in text
    assert "| pamr | graph | equal |" in text
    assert "| pamr | 0.50 | sound |" in text
    assert "| L = 197 | 2.000 | base: rows 128, columns 64 | 1.500 | 1.750 |" in text
    assert "| L = 197 | 2.000 | not ended |" in text
    assert f"\n- ceilings: {suite.ENDED}\n" in text
    assert "| 3,000 | 75% | 0.250 |" in text
    unknown = report.markdown({**document, "ceilings": {}, "stopped": "SIGTERM", "complete": False})
    assert "**Not all was measured: SIGTERM.**" in unknown
    assert "| 3,000 |  | 0.250 |" in unknown
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        assert report.draw(document, tmp_path, "gpu_x") == []
    assert not list(tmp_path.iterdir())
    pytest.importorskip("matplotlib")
    for path in report.draw(document, tmp_path, "gpu_x"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_variants_that_cannot_run_say_why() -> None:
    limits = timing.Limits(turns=2, longest_seconds=5.0)
    clock, pace = timing.Clock("cpu"), timing.Pace(time.monotonic() + 60, limits)
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
    late = timing.Pace(time.monotonic() - 1, limits)
    outcomes = timing.measure("op", 1.0, variants[:1], clock, late, whole=True)
    assert outcomes["good"].reason == timing.LATE
    assert len(calls) == 8


def test_a_graph_is_timed_where_there_can_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = timing.Clock("cpu"), []
    variants = [
        timing.Variant("graph", lambda: calls.append("call"), captured=True),
        timing.Variant("direct", lambda: None),
    ]
    monkeypatch.setattr(clock, "replayed", lambda run: lambda: calls.append("replay"))
    pace = timing.Pace(time.monotonic() + 60, timing.Limits(turns=2))
    outcomes = timing.measure("op", 1.0, variants, clock, pace, whole=False)
    # Two calls to warm up, one timed until it is queued, then replays alone.
    assert calls == ["call"] * 3 + ["replay"] * 2
    assert outcomes["graph"].from_graph
    assert outcomes["graph"].queue_ms is not None
    assert not outcomes["direct"].from_graph

    def refuse(run: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(clock, "replayed", refuse)
    found = timing.measure("op", 1.0, variants, clock, pace, whole=False)["graph"]
    assert (found.status, found.from_graph) == ("ok", False)
    assert found.reason.startswith("in no CUDA graph: RuntimeError: operation not permitted")
    outcomes = timing.measure("op", 1.0, variants, clock, pace, whole=True)
    assert not outcomes["graph"].reason


def test_a_slow_call_is_its_own_sample_and_shared_memory_counts_once() -> None:
    limits = timing.Limits(slow_seconds=0.0, patient=False)
    tensor = torch.zeros(10)
    variant = timing.Variant("a", lambda: None, held=(tensor, tensor[:5], tensor[5:]), share=1 / 4)
    assert variant.held_bytes == 20 + 20
    clock, pace = timing.Clock("cpu"), timing.Pace(time.monotonic() + 60, limits)
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
    variant = timing.Variant("copy", values.clone, held=(values,), captured=True)
    clock = timing.Clock("cuda")
    pace = timing.Pace(time.monotonic() + 60, timing.Limits(turns=3))
    result = timing.measure("op", 1.0, [variant], clock, pace, whole=False)["copy"]
    assert result.status == "ok", result.reason
    assert len(result.samples_ms) == 3
    # 512 MB cross memory: no device takes less than 0.02 ms or more than 20 ms.
    assert 0.02 < result.record()["median_ms"] < 20
    assert result.extra_bytes == values.nbytes
    assert result.from_graph
    assert clock.is_alive()


def test_a_job_from_file_to_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = load("builtin", classes=["sky", "grass"], method="naclip", window=28, short_side=28)
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
    variant = case.ready(
        case.tried("files", lambda: pipeline.file_job(segmenter, [pixels], (40, 50), 1, tmp_path))
    )
    assert variant.run is None
    assert "could not be set up: ModuleNotFoundError" in variant.reason


def test_a_wrong_op_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def off(*arguments: Any, implementation: str, **options: Any) -> torch.Tensor:
        result = pamr(*arguments, implementation="reference", **options)
        return result if implementation == "reference" else result + 0.1

    path = tmp_path / "checks.json"
    monkeypatch.setattr(checks, "pamr", off)
    assert checks.main(["pamr", "--json", str(path), "--kernels-alone"]) == 1
    records = json.loads(path.read_text())["checks"]
    assert [(each["dtype"], each["status"]) for each in records] == [
        (dtype, "failed") for dtype in ("fp32", "fp16", "bf16")
    ]
    assert "failed  pamr fp32, triton: AssertionError: worst error" in capsys.readouterr().out
    monkeypatch.setattr(
        checks, "pamr", lambda *a, **b: pamr(*a, **{**b, "implementation": "torch"})
    )
    assert checks.main(["pamr"]) == 0


def test_a_replay_that_differs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that kept what came in at first, as one that copies from the host would."""
    values = torch.arange(4.0)
    call = graphs.Call((values,), lambda: values + 1)
    monkeypatch.setitem(graphs.CALLS, "pamr", lambda *_: call)
    graphs.check_graph("pamr", Device("cpu"), torch.float32)
    first = values.clone()
    monkeypatch.setattr(graphs, "captured", lambda run: lambda: (first + 1,))
    with pytest.raises(AssertionError, match="output 0 of a replayed graph differs"):
        graphs.check_graph("pamr", Device("cuda"), torch.float32)


def test_products_of_float32_outside_matrix_units(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def look(device: Device, dtype: torch.dtype) -> Any:
        seen.append((launch.Target("cuda", 90).dot_precision, dtype))
        yield checks.Error(0.0, 1.0)

    monkeypatch.setitem(checks.CHECKS, "proxy_attention", (look, ("fp32",)))
    monkeypatch.setattr(checks, "interpreting", lambda: False)
    assert checks.planned("proxy_attention")[:2] == [("fp32", "triton"), ("fp32", "ieee")]
    for dtype, way in checks.planned("proxy_attention")[:2]:
        assert checks.run_check("proxy_attention", dtype, way, Device("cpu")).status == "ok"
    assert seen == [("tf32x3", torch.float32), ("ieee", torch.float32)]


def test_what_is_wrong_is_not_timed(document: dict[str, Any], tmp_path: Path) -> None:
    run = begun(document, tmp_path, ops=("pamr",))
    (made,) = planes.pamr_cases(tiny=True)
    run.document["checks"] = [
        {"op": "pamr", "dtype": "fp32", "way": "triton", "status": "failed", "reason": "off"},
        {"op": "pamr", "dtype": "fp16", "way": "graph", "status": "skipped", "reason": "ended"},
    ]
    run.document["cases"] = []
    run.measure_case(made, timing.Tier.FIGURE)
    run.measure_case(made, timing.Tier.REST)
    (record,) = run.document["cases"]
    fault = "not within budget, so it is not timed: pamr fp32"
    assert record["variants"]["triton"]["reason"] == fault
    assert record["variants"]["torch"]["status"] == "ok"
    kernel = timing.Variant("triton", lambda: None, captured=True)
    assert not run.as_checked(kernel, made).captured
    run.document["checks"] = []
    assert run.as_checked(kernel, made).captured
    assert run.fault(kernel, made) == ""


def begun(document: dict[str, Any], folder: Path, *, ops: tuple[str, ...]) -> suite.Run:
    """A dry run of some ops at its start."""
    path = folder / "gpu_x.json"
    settings = {"dry_run": True, "minutes": 1.0, "ops": ops, "tune": True, "limits": {}}
    path.write_text(json.dumps({**document, "settings": settings, "steps": {}}))
    return suite.Run(path, time.monotonic() + 60, folder)


def test_steps_come_by_their_worth(document: dict[str, Any], tmp_path: Path) -> None:
    run = begun(document, tmp_path, ops=tuple(suite.OPS))
    run.settings = suite.Settings(dry_run=False, tune=True)
    names = list(run.steps())
    assert names[:5] == ["ceilings"] + [
        f"residual_attention, {attention.attention_name(batch, 1 + grid[0] * grid[1])}, figure"
        for batch, grid in attention.FIGURE_GRIDS
    ]
    assert names[8].endswith(", rival")
    assert names[9] == f"pipeline, {pipeline.PROTOCOL}, figure"
    kinds = [name.rpartition(", ")[2] for name in names]
    assert max(at for at, kind in enumerate(kinds) if kind == "figure") < names.index("first use")
    assert names[names.index("first use") + 1] == "tuning, L = 1,025, batch 1"
    assert set(kinds[names.index("first use") + 5 :]) == {"rest"}


def test_a_step_that_fails_costs_itself(
    document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(document, tmp_path, ops=("pamr",))
    calls: list[str] = []
    alive = iter((True, True, False))

    def fail() -> None:
        raise RuntimeError("no luck")

    def note(name: str) -> None:
        assert json.loads(run.path.read_text())["steps"][name] == suite.ENDED
        calls.append(name)

    steps = {
        "a": lambda: note("a"),
        "b": fail,
        "c": lambda: note("c"),
        "d": lambda: note("d"),
        "e": lambda: note("e"),
    }
    monkeypatch.setattr(run, "steps", lambda: steps)
    monkeypatch.setattr(run.clock, "is_alive", lambda: next(alive))
    assert not run.work()
    again = suite.Run(run.path, time.monotonic() + 60, tmp_path)
    monkeypatch.setattr(again, "steps", lambda: steps)
    monkeypatch.setattr(again.pace, "is_over", lambda: "d" in calls)
    assert again.work()
    taken = json.loads(run.path.read_text())
    assert calls == ["a", "c", "d"]
    assert taken["steps"] == {
        "a": "ok",
        "b": "RuntimeError: no luck",
        "c": "ok",
        "d": "ok",
        "e": timing.LATE,
    }
    assert not taken["complete"]


def test_a_run_goes_on_after_a_crash_and_keeps_what_it_has_when_stopped(
    document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, settings = tmp_path / "gpu_x.json", suite.Settings(dry_run=True, ops=("pamr",))
    begin = {**document, "steps": {}, "complete": False}

    def crash(stored: dict[str, Any]) -> int:
        stored["steps"][f"step {len(stored['steps'])}"] = suite.ENDED
        return -signal.SIGSEGV

    def finish(stored: dict[str, Any]) -> int:
        stored["complete"] = True
        return 0

    def stop(stored: dict[str, Any]) -> int:
        stored["steps"]["last"] = "ok"
        path.write_text(json.dumps(stored))
        os.kill(os.getpid(), signal.SIGTERM)
        return 0

    def run(*turns: Any) -> tuple[dict[str, Any], int]:
        left = list(turns)

        def run_jobs(runs: Any, **_: Any) -> list[int]:
            stored = json.loads(path.read_text())
            status = left.pop(0)(stored)
            path.write_text(json.dumps(stored))
            return [status]

        monkeypatch.setattr(jobs, "run_jobs", run_jobs)
        return command.measure(settings, copy.deepcopy(begin), path, time.monotonic())

    monkeypatch.setattr(suite, "check", lambda *_: document["checks"])
    found, stopped = run(crash, crash, finish)
    assert (list(found["steps"]), found["stopped"], stopped) == (["step 0", "step 1"], "", 0)
    found, stopped = run(crash, lambda stored: 1)
    assert found["stopped"] == "no step can be taken: status 1"
    handler = signal.getsignal(signal.SIGTERM)
    found, stopped = run(stop)
    assert (found["stopped"], stopped) == ("SIGTERM", signal.SIGTERM)
    assert json.loads(path.read_text())["steps"] == {"last": "ok"}
    assert json.loads(path.read_text())["stopped"] == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is handler


def test_checks_of_an_op_that_ends_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {"op": "pamr", "dtype": "fp32", "way": "triton", "status": "ok", "reason": ""}

    def run_jobs(runs: Any, **_: Any) -> list[int]:
        Path(runs[0].command[4]).write_text(json.dumps({"checks": [kept]}))
        return [-signal.SIGSEGV]

    monkeypatch.setattr(jobs, "run_jobs", run_jobs)
    settings = suite.Settings(dry_run=True, ops=("pamr",))
    records = suite.check(settings, tmp_path, time.monotonic() + 60)
    assert records[0] == kept
    assert [each["status"] for each in records[1:]] == ["failed", "skipped", "skipped"]
    assert records[1]["reason"] == f"{suite.ENDED}, with status -11"


def test_jobs_end_with_their_time_and_take_what_they_started_with_them(tmp_path: Path) -> None:
    out, pid = tmp_path / "out", tmp_path / "pid"
    hang = f"sleep 60 & echo $! >{pid}; wait"
    runs = [
        jobs.Job(["sh", "-c", "echo $GIVEN; exit 3"], out, {"GIVEN": "here"}),
        jobs.Job(["sh", "-c", "kill -SEGV $$"]),
        jobs.Job(["sh", "-c", hang], seconds=0.3),
        jobs.Job(["sh", "-c", "true"]),
    ]
    end = time.monotonic() + 20
    assert jobs.run_jobs(runs, at_once=2, end=end) == [3, -signal.SIGSEGV, jobs.LATE, 0]
    assert out.read_text() == "here\n"
    # Killed, though whoever inherits it may not have taken notice of that yet.
    status = Path(f"/proc/{pid.read_text().strip()}/stat")
    assert not status.exists() or status.read_text().split()[2] == "Z"
    assert jobs.run_jobs(runs, at_once=2, end=time.monotonic() - 1) == [jobs.LATE] * 4


def test_changes_since_an_earlier_run(
    document: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(report, "draw", lambda *_: [])
    document["figures"] = [row.record() for row in figures(document)]
    old, new = tmp_path / "old.json", tmp_path / "gpu_new.json"
    old.write_text(json.dumps(document))
    slower = copy.deepcopy(document)
    variants = slower["cases"][4]["variants"]
    # PAMR in 1.03 times its time: beyond noise, and two figures of it worse by 3 %, which may be.
    variants["triton"] |= dict.fromkeys(MS, 1.03)
    variants["reference"] |= {"q1_ms": 20.0, "median_ms": 26.0, "q3_ms": 30.0}
    del slower["cases"][0]["variants"]["flex"]

    def compared(changed: dict[str, Any]) -> tuple[int, str]:
        changed["figures"] = [row.record() for row in figures(changed)]
        new.write_text(json.dumps(changed))
        status = command.main(["--redraw", str(new), "--compare", str(old)])
        return status, capsys.readouterr().out

    status, text = compared(slower)
    assert status == 0
    case = f"| pamr, {planes.FIGURE_PAMR}, "
    assert f"{case}triton | 1.000 | 1.030 | 1.03 | SLOWER |" in text
    assert f"{case}reference | 25.000 | 26.000 | 1.04 |  |" in text
    assert "| 0.62 | 0.61 | 1.03 |  |" in text
    variants["triton"] |= dict.fromkeys(MS, 1.1)
    status, text = compared(slower)
    assert status == 1
    assert "| 0.62 | 0.57 | 1.10 | WORSE |" in text
    assert f"worse by more than 5 %: pamr, {planes.FIGURE_PAMR} (≥ 60 %" in text
    variants["triton"] = skipped("no luck", "failed")
    assert compared(slower)[0] == 1
    slower["device"]["name"] = "Another GPU"
    assert compared(slower)[0] == 1
    for words, changed in (
        ("expected results of schema 2, got 1", {**document, "schema": 1}),
        ("got another file", {"rows": []}),
    ):
        old.write_text(json.dumps(changed))
        assert command.main(["--redraw", str(new), "--compare", str(old)]) == 1
        assert words in capsys.readouterr().err


def test_only_runs_of_one_device_are_compared(
    document: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before anything is measured."""
    old = tmp_path / "old.json"
    old.write_text(json.dumps(document))
    monkeypatch.setattr(command, "measure", lambda *_: pytest.fail("measured"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    arguments = ["--dry-run", "--out", str(tmp_path), "--compare", str(old)]
    assert command.main(arguments) == 1
    assert "measured on A GPU, and this is interpreter" in capsys.readouterr().err


def made_op() -> tuning.Op:
    return tuning.op_of(tuning.Place(2, (3, 4), dry_run=True))


def test_programs_are_tried_once_each_and_where_they_are_used() -> None:
    op = made_op()
    own = tuning.attention_kernels.row_for
    today = op.today
    space = {"num_warps": (today.layers.num_warps, 8), "heads": (1, 2)}
    with torch.no_grad():
        found = tuning.candidates(op, space)
    # The layers know no heads; no base without a stored λ_s·Ŝ is launched here.
    assert {part for part, _, _ in found} == {"layers", "base"}
    assert [program.num_warps for part, program, _ in found if part == "layers"] == [8]
    assert len(found) == 4
    assert all(
        getattr(row, part) == program != getattr(today, part) for part, program, row in found
    )
    assert tuning.attention_kernels.row_for is own


def test_a_row_is_proposed_if_it_is_right_and_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    op, clock = made_op(), timing.Clock("cpu")
    rows: dict[Any, float] = {}
    monkeypatch.setattr(tuning, "milliseconds", lambda op, row, *_: rows.get(row, 2.0))
    layers, base = replace(op.today.layers, num_warps=8), replace(op.today.base, num_stages=4)
    both = replace(op.today, layers=layers, base=base)
    tried = [
        {"part": "layers", "program": asdict(layers), "ms": 1.5},
        {"part": "layers", "program": asdict(op.today.base), "ms": 1.75},
        {"part": "base", "program": asdict(base), "ms": 1.9},
        {"part": "formed", "program": asdict(base), "reason": "wrong"},
    ]
    record = {"name": "L = 13", "today": tuning.describe(op.today), "today_ms": 2.0, "tried": tried}
    rows[both] = 1.25
    found = tuning.proposal(op, record, clock)
    assert found["proposed"] == tuning.describe(both)
    assert (found["today_ms"], found["proposed_ms"]) == (2.0, 1.25)
    text = tuning.proposal_text({**record, **found})
    assert "num_warps=8" in text
    assert "1.250 ms, today's row 2.000 ms" in text
    assert text.endswith("3 of 4 programs ran and were right")
    rows[both] = 2.5
    found = tuning.proposal(op, record, clock)
    assert (found["proposed"], found["proposed_ms"]) == (tuning.describe(op.today), 2.0)


def test_a_wrong_program_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    op, clock = made_op(), timing.Clock("cpu")
    monkeypatch.setattr(tuning, "milliseconds", lambda *_: 1.0)
    results = iter((torch.ones(2), torch.full((2,), 1.1), torch.full((2,), torch.nan)))
    monkeypatch.setattr(op, "run", lambda: next(results))
    outcomes = [tuning.try_row(op, op.today, torch.ones(2), 0.01, clock) for _ in range(3)]
    assert outcomes[0] == {"ms": 1.0}
    assert all(each["reason"].startswith("wrong: off by ") for each in outcomes[1:])

    def refuse() -> torch.Tensor:
        raise RuntimeError("out of resource: shared memory")

    monkeypatch.setattr(op, "run", refuse)
    outcome = tuning.try_row(op, op.today, torch.ones(2), 0.01, clock)
    assert outcome == {"reason": "RuntimeError: out of resource: shared memory"}
