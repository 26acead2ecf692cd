"""A visit to a GPU without a GPU: its dry run, which is the benchmark's dry run too, and steps that fail or hang."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="kernels need Triton, which exists for Linux alone")

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import checks, visit
from benchmarks.gpu.inputs import FUSED
from resclip_kernels.launch import watch

ROOT = Path(__file__).parents[1]
MS = {"q1_ms", "median_ms", "q3_ms"}
MAX_FILES, MAX_BYTES = 8, 16 << 20
"""Files, and bytes of each, that a machine with a GPU may hand back."""


def script(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """visit.sh from another working folder than the project's root."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return subprocess.run(
        ["bash", str(ROOT / "benchmarks/gpu/visit.sh"), *arguments],
        cwd=ROOT / "tests",
        env=environment | {"PYTHON": sys.executable} | variables,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the visit itself can run")
def test_a_dry_visit_runs_every_step(tmp_path: Path) -> None:
    finished = script(str(tmp_path), "--dry")
    log = (tmp_path / "visit.txt").read_text()
    assert finished.returncode == 0, log[-3000:] + finished.stderr[-3000:]
    assert "FAILED" not in log
    for step in ("visit", "benchmark", "tests"):
        assert f"\n== {step}: ok after " in log
    files = list(tmp_path.iterdir())
    assert len(files) <= MAX_FILES
    assert all(path.is_file() and path.stat().st_size < MAX_BYTES for path in files)
    assert finished.stdout == log

    lines = log[: log.index("== visit: ok")].splitlines()
    checks = [line for line in lines if "] check " in line]
    assert all(": ok, worst " in line for line in checks)
    for name in (
        *("pamr fp32", "connectivity=None", "smoothing_std", "=component", "=line"),
        *("prototype layers", "prototype base"),
    ):
        assert sum(name in line for line in checks) == 1, name
    for name in (
        *("plain attention, 5 calls", "plain attention, 4 layers", "layers alone, now"),
        *("layers alone, 3 stages", "prototype layers", "fused, now", "fused, 3 stages, 1 head"),
        *("base alone, now", "base alone, 3 stages", "prototype base", "host time of a fused"),
        *("patch_labels 1 ×", "pamr 1 ×", "proxy 1 ×"),
    ):
        assert any(name in line and " ms" in line for line in lines), name
    check_benchmark(tmp_path)


def check_benchmark(folder: Path) -> None:
    """The benchmark's dry run reached every case and wrote everything; a redrawn table is the same."""
    document = json.loads((folder / "gpu_interpreter.json").read_text())
    check_schema(document)
    assert document["dry_run"]
    assert document["complete"]
    assert document["device"]["name"] == "interpreter"
    ops = {case["op"] for case in document["cases"]}
    assert ops == {check["op"] for check in document["checks"]} | {"pipeline"}
    for case in document["cases"]:
        assert case["variants"][FUSED]["status"] == "ok", case
        for name, outcome in case["variants"].items():
            assert outcome["status"] in ("ok", "skipped"), (case["op"], name, outcome["reason"])
            assert outcome["status"] == "ok" or outcome["reason"], (case["op"], name)
    assert {figure["number"] for figure in document["figures"]} == set(range(1, 9))
    from_files = [case["variants"].get("files") for case in document["cases"]]
    assert [outcome["status"] for outcome in from_files if outcome] == ["ok"]
    assert document["figures"][-1]["value"] > 0
    text = (folder / "gpu_interpreter.md").read_text()
    assert "A dry run: no number below means anything" in text
    assert "| fused, from JPEG to PNG files |" in text
    assert "| 8. JPEG in, PNG out: images/s against the same without files |" in text
    assert not any(path.suffix == ".tmp" for path in folder.iterdir())
    (folder / "gpu_interpreter.md").unlink()
    assert command.main(["--redraw", str(folder / "gpu_interpreter.json")]) == 0
    assert (folder / "gpu_interpreter.md").read_text() == text


def check_schema(document: dict[str, Any]) -> None:
    """The keys of everything that a later run is compared by."""
    assert document["schema"] == 1
    assert {"date", "commit", "settings", "seconds"} <= set(document)
    assert {"torch", "triton", "numpy", "python", "resclip"} <= set(document["versions"])
    assert {"name", "driver", "memory_bytes"} <= set(document["device"])
    assert set(document["ceilings"]) == {"fp16_tflops", "bf16_tflops", "copy_gbps"}
    for check in document["checks"]:
        assert set(check) == {"op", "dtype", "status", "reason", "error", "allowed"}
    for figure in document["figures"]:
        assert set(figure) == {"number", "what", "measured", "wanted", "reached", "value"}
    for case in document["cases"]:
        assert {"op", "name", "shape", "flops", "bytes", "items", "variants"} <= set(case)
        for outcome in case["variants"].values():
            if outcome["status"] == "ok":
                assert outcome["samples_ms"]
                assert MS | {"peak_bytes", "tflops", "gbps", "first_seconds"} <= set(outcome)


STUB = """#!/usr/bin/env bash
case "$*" in
    *open_clip*) printf "Traceback:\\nNo module named 'open_clip'\\n"; exit 1 ;;
    "-m benchmarks.gpu.visit") echo first; sleep 300 ;;
    "-m benchmarks.gpu --"*) echo "second: $*"; exit 3 ;;
    "-m pytest "*) echo "third: $*" ;;
esac
"""


def test_steps_that_hang_or_fail_stop_no_other(tmp_path: Path) -> None:
    stub, out = tmp_path / "python", tmp_path / "new/out"
    stub.write_text(STUB)
    stub.chmod(0o755)
    finished = script(str(out), PYTHON=str(stub), VISIT_SECONDS="1")
    assert finished.returncode == 1
    assert [path.name for path in out.iterdir()] == ["visit.txt"]
    log = (out / "visit.txt").read_text().splitlines()
    assert log[0].startswith("== no open_clip (No module named 'open_clip'): ")
    assert log[1:3] == ["== visit, at most 1 s", "first"]
    assert log[3].startswith("== visit: FAILED with status 124 after ")
    assert log[5] == f"second: -m benchmarks.gpu --minutes 3 --out {out}"
    assert log[6].startswith("== benchmark: FAILED with status 3 after ")
    assert log[-1].startswith("== tests: ok after ")
    started = [line for line in log if line.startswith("third: -m pytest -m gpu ")]
    marked = {
        path.name for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text()
    }
    assert {Path(line.split()[-1]).name for line in started} == marked


def test_other_arguments_are_refused() -> None:
    for arguments in ((), ("--dry",), ("out", "--fast"), ("out", "--dry", "more")):
        finished = script(*arguments)
        assert finished.returncode == 2
        assert finished.stderr.startswith("visit.sh: expected OUT, the folder of the results")


def test_a_part_that_fails_stops_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(_: Any) -> None:
        raise RuntimeError("no such kernel")

    given = [("first", wrong), ("second", lambda each: each.say("here"))]
    monkeypatch.setattr(visit, "parts", lambda _: given)
    assert visit.main([]) == 1
    printed = capsys.readouterr().out
    assert "FAILED first: RuntimeError: no such kernel\n" in printed
    assert "] here\n" in printed
    assert printed.endswith("] done, 1 failures\n")
    given.pop(0)
    assert visit.main([]) == 0


def test_a_wrong_op_or_prototype_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = torch.ones(2, 3, dtype=torch.float16)
    trip = visit.Visit(dry=True)
    visit.compare(trip, "near", 1.0, wanted, lambda: wanted * (1 + 3 * 2**-10))
    assert trip.failed == []
    visit.compare(trip, "off", 1.0, wanted, lambda: wanted * 1.01)
    visit.compare(trip, "none", 1.0, wanted, lambda: wanted * float("nan"))
    assert trip.failed == ["check off", "check none"]
    check = checks.Check("pamr", "fp32", "failed", "over its budget")
    monkeypatch.setattr(visit, "run_check", lambda *_: check)
    monkeypatch.setattr(visit, "FEEDBACK_RULES", ())
    visit.checks(trip)
    assert trip.failed[2:] == ["check pamr fp32"]
    assert "FAILED check pamr fp32: over its budget\n" in capsys.readouterr().out


def test_programs_of_another_shape_are_launched() -> None:
    kernels = visit.attention_kernels
    own = kernels.choose_config
    config = visit.TileConfig(heads=1, rows=16, columns=16, num_warps=4, num_stages=1)
    tensors = visit.Device("cpu").attention(visit.TINY_SHAPES[0], torch.float32)
    with visit.program_of(config), watch() as seen:
        visit.residual_attention(
            *tensors[:3], grid=visit.TINY_SHAPES[0].grid, implementation=visit.FUSED
        )
    (launch,) = seen.launches
    assert (launch.constants["BLOCK_M"], launch.constants["BLOCK_N"]) == (16, 16)
    assert kernels.choose_config is own
