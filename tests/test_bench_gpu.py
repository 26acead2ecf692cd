"""The GPU benchmark without a GPU: its clock, its figures and tables; its dry run is part of test_gpu_visit.py."""

from __future__ import annotations

import copy
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from resclip import load
from resclip_kernels import pamr

ROOT = Path(__file__).parents[1]
ON_A_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="here the benchmark itself can run")
MS = ("q1_ms", "median_ms", "q3_ms")


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A module of the benchmark, which is no part of the installed packages."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benchmarks.gpu.{name}")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@ON_A_GPU
def test_without_a_gpu_it_says_so_in_one_line() -> None:
    finished = command()
    assert finished.returncode == 1
    assert finished.stdout == ""
    assert finished.stderr.count("\n") == 1
    assert "torch finds no GPU here" in finished.stderr


@ON_A_GPU
def test_an_unknown_op_is_refused(tmp_path: Path) -> None:
    finished = command("--dry-run", "--out", str(tmp_path), "--only", "pamr,attention")
    assert finished.returncode == 1
    assert "no op 'attention'; use some of residual_attention," in finished.stderr


def outcome(milliseconds: float, peak: float = 1e9) -> dict[str, Any]:
    times = dict.fromkeys(MS, milliseconds)
    rates = {"peak_bytes": peak, "tflops": 400.0, "gbps": 3000.0}
    return {"status": "ok", "reason": "", "samples_ms": [milliseconds]} | times | rates


def skipped(reason: str) -> dict[str, Any]:
    return {"status": "skipped", "reason": reason, "samples_ms": []}


@pytest.fixture
def canned(module: Callable[[str], ModuleType]) -> dict[str, Any]:
    """A run that reaches every figure."""
    pipeline, planes = module("pipeline"), module("planes")

    def case(op: str, name: str, variants: dict[str, Any], **more: Any) -> dict[str, Any]:
        shape = {"tokens": more.pop("tokens", 1), "grid": (64, 64), "batch": 1}
        given = {"op": op, "name": name, "shape": shape, "flops": 1, "bytes": 0, "items": 1}
        return {**given, "reason": "", "variants": variants, **more}

    attention = {
        "triton": outcome(1.1),
        "sdpa": outcome(1.0),
        "reference": outcome(20.0, 3e10),
        "flex": skipped("no Ŝ"),
    }
    longest = {"triton": outcome(111.0), "sdpa": outcome(100.0), "reference": skipped("928 GB")}
    document = {
        "schema": 1,
        "dry_run": False,
        "complete": True,
        "date": "2025-01-01T00:00:00+00:00",
        "commit": "abc",
        "device": {"name": "A GPU", "driver": "1", "memory_bytes": 1, "capability": "9.0"},
        "versions": {"torch": "2"},
        "settings": {},
        "ceilings": {"fp16_tflops": 800.0, "bf16_tflops": 800.0, "copy_gbps": 4000.0},
        "checks": [{"op": "pamr", "dtype": "fp32", "status": "ok", "reason": ""}],
        "cases": [
            case("residual_attention", "L = 197", {"triton": outcome(9.0)}, tokens=197),
            case("residual_attention", "L = 4,097", attention, tokens=4097),
            case("residual_attention", "L = 65,537", longest, tokens=65537),
            case(
                "pamr",
                planes.FIGURE_PAMR,
                {"triton": outcome(1.0), "reference": outcome(25.0)},
                bytes=2_500_000_000,
            ),
            case(
                "pipeline",
                pipeline.PROTOCOL,
                {"triton": outcome(80.0), "reference": outcome(2400.0), "files": outcome(98.0)},
                items=16,
            ),
            case("pipeline", pipeline.FEW, {"triton": outcome(60.0)}, items=16),
            case("pipeline", pipeline.MANY, {"triton": outcome(200.0)}, items=16),
            case("pipeline", pipeline.LARGE, {"triton": outcome(700.0, 9e9)}),
        ],
        "seconds": 1.0,
    }
    document["checks"][0] |= {"error": 1e-6, "allowed": 2e-6}
    return document


def test_every_figure_reached(module: Callable[[str], ModuleType], canned: dict[str, Any]) -> None:
    rows = module("figures").figures(canned)
    assert [row.number for row in rows] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 6, 6, 7, 8]
    assert all(row.reached for row in rows), [row for row in rows if not row.reached]
    values = [row.value for row in rows]
    assert values[0] == pytest.approx(1.1)
    assert values[3] == pytest.approx(30.0)
    assert values[5] == pytest.approx(0.625)  # 2.5 GB in 1 ms of 4,000 GB/s.
    assert values[7] == pytest.approx(200.0)  # 16 images in 80 ms.
    assert values[12] == pytest.approx(80 / 98)
    assert rows[12].measured == "82% (163 a second against 200)"


@pytest.mark.parametrize(
    ("case", "variant", "milliseconds", "fallen"),
    [
        (1, "triton", 1.2, [1]),
        (1, "reference", 10.9, [2]),
        (2, "triton", 116.0, [1]),
        (3, "triton", 1.1, [3]),
        (3, "reference", 19.0, [3]),
        (4, "triton", 97.0, [4]),
        (4, "triton", 161.0, [4, 4]),
        (4, "files", 100.1, [8]),
        (5, "triton", 49.0, [5]),
        (7, "triton", 1000.0, [6]),
    ],
)
def test_a_figure_that_falls_short(
    module: Callable[[str], ModuleType], canned: dict[str, Any], case, variant, milliseconds, fallen
) -> None:
    canned["cases"][case]["variants"][variant] |= dict.fromkeys(MS, milliseconds)
    rows = module("figures").figures(canned)
    assert [row.number for row in rows if not row.reached] == fallen
    assert any(module("figures").line(row).startswith("NOT (") for row in rows)


def test_figures_without_their_measurement_say_what_is_missing(
    module: Callable[[str], ModuleType], canned: dict[str, Any]
) -> None:
    broken = copy.deepcopy(canned)
    for case in broken["cases"]:
        case["variants"]["triton"] = {**skipped(""), "status": "failed", "reason": "no luck"}
    broken["checks"][0]["status"] = "skipped"
    for document in (broken, {**canned, "cases": [], "checks": []}):
        rows = module("figures").figures(document)
        assert not any(row.reached for row in rows)
        assert {row.number for row in rows} == set(range(1, 9))
    first = module("figures").figures(broken)[0]
    assert first.measured == "not measured: L = 4,097: triton failed no luck"


def test_tables_and_plots_of_canned_samples(
    module: Callable[[str], ModuleType], canned: dict[str, Any], tmp_path: Path
) -> None:
    canned["cases"][4]["variants"]["triton"] |= dict.fromkeys(MS, 170.0)
    canned["figures"] = [row.record() for row in module("figures").figures(canned)]
    text = module("tables").markdown(canned)
    assert "| ok | 1. residual_attention, L = 4,097, against plain SDPA calls | 1.10 ×" in text
    assert "| NOT | 4. whole pipeline, 150 names" in text
    assert "94 images a second | ≥ 100 images a second |" in text
    assert "| L = 4,097 | 1.10 (1.10–1.10), 1.00 GB | 20.00 (20.00–20.00), 30.00 GB |" in text
    assert "- FlexAttention: no Ŝ (L = 4,097)" in text
    assert "| pamr | 1.0e-06 of 2.0e-06 |" in text
    pytest.importorskip("matplotlib")
    for path in module("plots").draw(canned, tmp_path, "gpu_x"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_plots_without_matplotlib(
    module: Callable[[str], ModuleType],
    canned: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert module("plots").draw(canned, tmp_path, "gpu_x") == []
    assert "no plots: matplotlib cannot be imported" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_variants_that_cannot_run_say_why(module: Callable[[str], ModuleType]) -> None:
    timing = module("timing")
    limits = timing.Limits(least=1, most=2, longest_seconds=5.0)
    clock, pace = timing.Clock("cpu"), timing.Pace(60.0, limits)
    pace.learn("op", "slow", 1.0, 2.0)

    def exhausted() -> None:
        raise torch.OutOfMemoryError("tried to allocate 999 GiB")

    def broken() -> None:
        raise RuntimeError("no such\nkernel")

    calls: list[int] = []
    variants = [
        timing.Variant("good", lambda: calls.append(1)),
        timing.Variant("none", None, "no attention"),
        timing.Variant("large", calls.clear, needs_bytes=1 << 50),
        timing.Variant("slow", calls.clear),
        timing.Variant("full", exhausted),
        timing.Variant("broken", broken),
    ]
    outcomes = timing.measure("op", 10.0, variants, clock, pace, whole=False)
    assert len(outcomes["good"].samples_ms) == 2
    assert len(calls) == 4  # Two to warm up, two samples.
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


def test_the_clock_of_a_gpu(
    module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call to torch.cuda that a run makes, on a stand-in."""
    calls: list[str] = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            calls.append("record")

        def synchronize(self) -> None:
            calls.append("synchronize")

        def elapsed_time(self, other: Event) -> float:
            assert other is not self
            return 1.5

    properties = SimpleNamespace(name="NVIDIA X", total_memory=1000, multi_processor_count=132)
    answers = {
        "Event": Event,
        "synchronize": lambda: calls.append("wait"),
        "reset_peak_memory_stats": lambda: calls.append("reset"),
        "memory_allocated": lambda: 100,
        "max_memory_allocated": lambda: 350,
        "memory_reserved": lambda: 160,
        "mem_get_info": lambda: (500, 1000),
        "empty_cache": lambda: calls.append("empty"),
        "get_device_properties": lambda _: properties,
        "get_device_capability": lambda _: (9, 0),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    clock = module("timing").Clock("cpu")
    clock.cuda = True
    assert clock.sample(lambda: calls.append("run"), whole=False) == 1.5
    assert calls == ["record", "run", "record", "synchronize"]
    calls.clear()
    assert clock.sample(lambda: calls.append("run"), whole=True) < 1000
    assert calls == ["wait", "run", "wait"]
    seconds, extra = clock.peak(lambda: calls.append("run"))
    assert seconds < 1
    assert extra == 250
    assert clock.free_bytes() == 560
    clock.forget()
    assert calls[-1] == "empty"
    record = module("environment").device_record(False)
    assert (record["name"], record["memory_bytes"], record["capability"]) == (
        "NVIDIA X",
        1000,
        "9.0",
    )
    bench = module("case").Bench(module("inputs").Device("cpu"), False, Path())
    assert module("attention").total_memory(bench) == 1000
    assert bench.dtype(torch.float16) is torch.float16


def test_samples_of_a_share_and_held_tensors(module: Callable[[str], ModuleType]) -> None:
    timing = module("timing")
    limits = timing.Limits(least=1, most=1, slow_seconds=0.0, patient=False)
    tensor = torch.zeros(10)
    variant = timing.Variant("a", lambda: None, held=(tensor, tensor[:5], tensor[5:]), share=1 / 4)
    assert variant.held_bytes == 20 + 20
    clock, pace = timing.Clock("cpu"), timing.Pace(60.0, limits)
    result = timing.measure("op", 1.0, [variant], clock, pace, whole=False)["a"]
    assert result.reason == "one cold call, timed by the host"
    assert result.samples_ms == [pytest.approx(4e3 * result.first_seconds)]
    assert timing.quartiles([3.0]) == {"q1_ms": 3.0, "median_ms": 3.0, "q3_ms": 3.0}
    assert timing.quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == {
        "q1_ms": 2.0,
        "median_ms": 3.0,
        "q3_ms": 4.0,
    }


def test_a_job_from_file_to_file(
    module: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, case = module("files"), module("case")
    segmenter = load(classes=["sky", "grass"], method="naclip", window=28, short_side=28)
    image = np.random.default_rng(0).integers(0, 256, (28, 35, 3), dtype=np.uint8)
    pixels = segmenter.prepare(image)
    assert np.array_equal(files.as_image(pixels, (28, 35), segmenter), image)

    run = files.file_job(segmenter, [pixels, -pixels], (40, 50), 3, tmp_path)
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
        "files", lambda: files.file_job(segmenter, [pixels], (40, 50), 1, tmp_path)
    )
    assert variant.run is None
    assert "could not be set up: ModuleNotFoundError" in variant.reason


def test_a_wrong_op_stops_the_run(
    module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    checks, suite, inputs = module("checks"), module("suite"), module("inputs")
    assert inputs.FUSED == "triton"

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


def test_files_are_named_after_the_device(module: Callable[[str], ModuleType]) -> None:
    assert module("environment").slug("NVIDIA H200 NVL") == "nvidia_h200_nvl"
