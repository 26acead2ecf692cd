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
from benchmarks.gpu import sanitizer
from benchmarks.gpu.case import PLAIN
from benchmarks.gpu.checks import CHECKS
from benchmarks.gpu.inputs import FUSED

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


SANITIZER = """#!/bin/sh
# compute-sanitizer --tool TOOL --error-exitcode 86 PROGRAM...
echo "========= COMPUTE-SANITIZER"
tool=$2
shift 4
"$@" || exit
case $tool in
    memcheck) echo "========= ERROR SUMMARY: 0 errors" ;;
    racecheck) echo "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)" ;;
esac
"""


def install(folder: Path, program: str) -> str:
    """A PATH on which compute-sanitizer is this program."""
    folder.mkdir()
    path = folder / "compute-sanitizer"
    path.write_text(program)
    path.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the visit itself can run")
@pytest.mark.slow
def test_a_dry_visit_runs_every_step(tmp_path: Path) -> None:
    out = tmp_path / "out"
    path = install(tmp_path / "bin", SANITIZER)
    # What a GPU does in seconds the interpreter does in minutes where other tests run beside it.
    patience = {"BENCHMARK_SECONDS": "450", "TOTAL_SECONDS": "590"}
    finished = script(str(out), "--dry", PATH=path, **patience)
    log = (out / "visit.txt").read_text()
    assert finished.returncode == 0, log[-3000:] + finished.stderr[-3000:]
    assert "FAILED" not in log
    for step in ("benchmark", "check-gpu", "tests"):
        assert f"\n== {step}: ok after " in log
    files = list(out.iterdir())
    assert len(files) <= MAX_FILES
    assert all(path.is_file() and path.stat().st_size < MAX_BYTES for path in files)
    assert finished.stdout == log
    assert "\nclean  memcheck pamr\nclean  racecheck pamr\n2 of 2 are clean\n" in log
    assert "\nfirst use of upsample_argmax: " in log
    assert "\ntuning, L = 13, batch 2: " in log
    check_benchmark(out)


def check_benchmark(folder: Path) -> None:
    """The benchmark's dry run reached every case and wrote everything; a redrawn table is the same."""
    document = json.loads((folder / "gpu_interpreter.json").read_text())
    check_schema(document)
    assert document["dry_run"]
    assert document["complete"]
    assert document["device"]["name"] == "interpreter"
    assert set(document["steps"].values()) == {"ok"}
    ops = {case["op"] for case in document["cases"]}
    assert ops == {check["op"] for check in document["checks"]} | {"pipeline"}
    ways = {(check["op"], check["way"]) for check in document["checks"]}
    assert ways >= {(op, way) for op in CHECKS for way in ("triton", "graph")}
    assert ("residual_attention", "library") in ways
    for case in document["cases"]:
        assert case["variants"][FUSED]["status"] == "ok", case
        for name, outcome in case["variants"].items():
            assert outcome["status"] in ("ok", "skipped"), (case["op"], name, outcome["reason"])
            assert outcome["status"] == "ok" or outcome["reason"], (case["op"], name)
    assert {figure["number"] for figure in document["figures"]} == set(range(1, 10))
    for case in document["cases"]:
        if case["op"] == "residual_attention":
            expected = {"triton", "auto", "layers", "base", "library", "flex", *PLAIN}
            assert {name for name in expected if case["variants"][name]["samples_ms"]} == expected
    (place,) = document["tuning"]
    assert {outcome["part"] for outcome in place["tried"]} == {"layers", "base"}
    assert all("ms" in outcome for outcome in place["tried"]), place
    assert place["proposed_ms"] <= place["today_ms"]
    from_files = [case["variants"].get("files") for case in document["cases"]]
    assert [outcome["status"] for outcome in from_files if outcome] == ["ok"]
    assert document["figures"][-2]["value"] > 0
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
    assert document["schema"] == 2
    assert {"date", "commit", "settings", "seconds", "stopped"} <= set(document)
    assert {"torch", "triton", "numpy", "python", "resclip"} <= set(document["versions"])
    assert {"name", "driver", "memory_bytes"} <= set(document["device"])
    assert set(document["ceilings"]) == {"fp16_tflops", "bf16_tflops", "copy_gbps"}
    for check in document["checks"]:
        assert set(check) == {"op", "dtype", "way", "status", "reason", "error", "allowed"}
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
    "-m benchmarks gpu "*) echo "first: $*"; sleep 300 ;;
    "-m benchmarks check-gpu "*) echo "second: $*"; exit 3 ;;
    "-m pytest "*) echo "third: $*" ;;
esac
"""


def test_steps_that_hang_or_fail_stop_no_other(tmp_path: Path) -> None:
    stub, out = tmp_path / "python", tmp_path / "new/out"
    stub.write_text(STUB)
    stub.chmod(0o755)
    finished = script(str(out), PYTHON=str(stub), BENCHMARK_SECONDS="1")
    assert finished.returncode == 1
    assert [path.name for path in out.iterdir()] == ["visit.txt"]
    log = (out / "visit.txt").read_text().splitlines()
    assert log[0].startswith("== no open_clip (No module named 'open_clip'): ")
    assert log[1] == "== benchmark, at most 1 s"
    assert log[2] == f"first: -m benchmarks gpu --tune --minutes 0.02 --out {out}"
    assert log[3].startswith("== benchmark: FAILED with status 124 after ")
    assert log[5] == "second: -m benchmarks check-gpu --minutes 2.53"
    assert log[6].startswith("== check-gpu: FAILED with status 3 after ")
    assert log[-1].startswith("== tests: ok after ")
    started = [line for line in log if line.startswith("third: -m pytest -m gpu ")]
    marked = {
        path.name for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text()
    }
    assert {Path(line.split()[-1]).name for line in started} == marked


def test_a_step_without_time_is_not_begun(tmp_path: Path) -> None:
    stub = tmp_path / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)
    finished = script(str(tmp_path / "out"), PYTHON=str(stub), TOTAL_SECONDS="1")
    assert finished.returncode == 1
    assert "== check-gpu: FAILED, no time is left for it\n" in finished.stdout
    assert finished.stdout.endswith("== tests: FAILED, no time is left for it\n")


def test_other_arguments_are_refused() -> None:
    for arguments in ((), ("--dry",), ("out", "--fast"), ("out", "--dry", "more")):
        finished = script(*arguments)
        assert finished.returncode == 2
        assert finished.stderr.startswith("visit.sh: expected OUT, the folder of the results")


FINDINGS = """#!/bin/sh
shift 4
while [ $# -gt 1 ]; do shift; done
case $1 in
    pamr) echo "========= ERROR SUMMARY: 0 errors" ;;
    patch_labels)
        echo "========= Invalid __global__ read of size 4 bytes"
        echo "========= ERROR SUMMARY: 2 errors"
        exit 86 ;;
    proxy_attention) echo "========= RACECHECK SUMMARY: 1 hazard displayed (1 error)"; exit 86 ;;
    semantic_feedback) echo "failed  semantic_feedback"; echo "========= ERROR SUMMARY: 0 errors"; exit 1 ;;
    upsample_argmax) echo "========= Error: device not supported" ;;
    residual_attention) sleep 60 ;;
esac
"""


def test_what_the_sanitizer_finds_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", install(tmp_path / "bin", FINDINGS))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(sanitizer, "JOB_SECONDS", 0.5)
    assert sanitizer.main(["--dry-run"]) == 1
    lines = capsys.readouterr().out.splitlines()
    for tool in sanitizer.TOOLS:
        for line in (
            f"clean  {tool} pamr",
            f"FAILED {tool} patch_labels: 2 found; status 86",
            f"FAILED {tool} proxy_attention: 1 found; status 86",
            f"FAILED {tool} semantic_feedback: no error of the sanitizer's, but status 1",
            f"FAILED {tool} upsample_argmax: no summary of the sanitizer's; status 0",
            f"FAILED {tool} residual_attention: its time was up",
        ):
            assert lines.count(line) == 1, line
    assert lines.count("    ========= Invalid __global__ read of size 4 bytes") == 2
    assert lines[-1] == f"2 of {len(sanitizer.TOOLS) * len(CHECKS)} are clean"
    assert sanitizer.main(["--dry-run", "--only", "pamr"]) == 0


def test_no_sanitizer_or_no_gpu_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(sanitizer, "find_sanitizer", lambda: None)
    for has_gpu, arguments, words in (
        (True, [], "compute-sanitizer is not installed; it is part of NVIDIA's CUDA toolkit"),
        (False, [], "torch finds no GPU here"),
        (True, ["--only", "sobel"], "no op 'sobel'; use some of residual_attention,"),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpu=has_gpu: has_gpu)
        assert sanitizer.main(arguments) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1
        assert words in printed.err


def test_the_toolkits_sanitizer_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "bin", SANITIZER)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert sanitizer.find_sanitizer() == str(tmp_path / "bin/compute-sanitizer")
