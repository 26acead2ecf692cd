"""Other versions of Triton: how they are found or installed, and that each failure is told in a sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="kernels need Triton, which exists for Linux alone")

from benchmarks import kernels_matrix
from benchmarks.kernels_matrix import (
    NoVersionError,
    Outcome,
    compile_with,
    installation,
    main,
    requirement,
)


class Runs:
    """Stands in for `subprocess.run`."""

    def __init__(self, status: int = 0, output: str = "", errors: str = "") -> None:
        self.answer = status, output, errors
        self.commands: list[list[str]] = []
        self.environment: dict[str, str] = {}

    def __call__(self, command: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append([str(word) for word in command])
        self.environment = options.get("env", {})
        return subprocess.CompletedProcess(command, *self.answer)


def patched(monkeypatch: pytest.MonkeyPatch, runs: Runs) -> Runs:
    monkeypatch.setattr(kernels_matrix.subprocess, "run", runs)
    return runs


def test_versions_are_asked_for_by_their_first_numbers() -> None:
    asked = [requirement(version) for version in ("oldest", "3.6", "3.5.1", "newest")]
    assert asked == ["triton==3.5.*", "triton==3.6.*", "triton==3.5.1.*", "triton>=3.5"]


def test_a_folder_with_that_version_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = patched(monkeypatch, Runs())
    for version in ("3.6", "newest"):
        (tmp_path / version / "triton").mkdir(parents=True)
    assert installation("installed", tmp_path) is None
    assert installation("3.6", tmp_path) == tmp_path / "3.6"
    assert runs.commands == []
    # The newest may be another one than last time.
    for version in ("newest", "3.5"):
        assert installation(version, tmp_path) == tmp_path / version
        assert runs.commands[-1][-3:] == ["--target", str(tmp_path / version), requirement(version)]
        assert "--no-deps" in runs.commands[-1]


def test_a_version_that_cannot_be_had_fails_and_the_others_are_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    patched(monkeypatch, Runs(1, errors="warning\nERROR: No matching distribution found\n"))
    with pytest.raises(NoVersionError, match=r"triton==9\.\* into .*: ERROR: No matching"):
        installation("9", tmp_path)
    monkeypatch.setattr(
        kernels_matrix, "compile_with", lambda place, target: Outcome("3.8", target, 5, 5)
    )
    assert main(["--versions", "9,installed", "--folder", str(tmp_path), "--targets", "sm_90"]) == 1
    said = capsys.readouterr()
    assert "kernels-matrix: cannot install triton==9.*" in said.err
    assert said.out == "triton 3.8, sm_90: 5 of 5 kernels compiled, 0 spill, 0 problems\n"
    assert main(["--versions", "installed", "--folder", str(tmp_path)]) == 0


def test_what_does_not_compile_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = Outcome("3.8", "sm_80", 5, 4, 0, ["a_kernel (plain, B/16, fp16): error"])
    monkeypatch.setattr(kernels_matrix, "compile_with", lambda place, target: outcome)
    assert main(["--versions", "installed", "--targets", "sm_80"]) == 1
    said = capsys.readouterr().out
    assert "4 of 5 kernels compiled, 0 spill, 1 problems\n  a_kernel (plain" in said


def test_each_version_is_put_in_front_of_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    answer = '{"triton": "3.5.1", "target": "sm_90", "wanted": 2, "compiled": 2}\n'
    runs = patched(monkeypatch, Runs(output="a warning\n" + answer))
    assert compile_with(tmp_path, "sm_90") == Outcome("3.5.1", "sm_90", 2, 2)
    assert runs.environment["PYTHONPATH"].startswith(str(tmp_path))
    assert "TRITON_INTERPRET" not in runs.environment
    assert runs.commands == [
        [sys.executable, "-m", "benchmarks.kernels_matrix", "--worker", "sm_90"]
    ]


def test_a_process_that_dies_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patched(monkeypatch, Runs(-6, errors="LLVM ERROR: out of registers\n"))
    (problem,) = compile_with(tmp_path, "sm_80").problems
    assert problem == "the process ended with status -6: LLVM ERROR: out of registers"


def test_other_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (("--targets", "gfx942"), ("--jobs", "0")):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert arguments[1] in capsys.readouterr().err
