"""The runner of the benchmarks: what it lists, what it refuses, and that each name leads to a program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="kernels need Triton, which exists for Linux alone")

from benchmarks.__main__ import BENCHMARKS, main

ROOT = Path(__file__).parents[1]


def test_help_lists_every_benchmark_without_loading_any() -> None:
    program = (
        "import runpy, sys\n"
        "sys.argv = ['benchmarks', '--help']\n"
        "try:\n    runpy.run_module('benchmarks', run_name='__main__')\n"
        "finally:\n    assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines() if line]
    for name, (_, summary) in BENCHMARKS.items():
        assert [name, summary] in lines


def test_a_name_leads_to_its_program(capsys: pytest.CaptureFixture[str]) -> None:
    for name in BENCHMARKS:
        with pytest.raises(SystemExit) as stop:
            main([name, "--help"])
        assert stop.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: python -m benchmarks {name} ")


def test_other_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["speed"])
    assert stop.value.code == 2
    assert "NAME" in capsys.readouterr().err


@pytest.mark.slow
def test_the_cpu_benchmarks_run() -> None:
    """Each once, untimed, small and by the quick implementation; those of whole encoders are only imported."""
    command = [sys.executable, "-m", "pytest", "benchmarks", "--benchmark-disable", "-q"]
    command += [
        "-p",
        "no:cacheprovider",
        "-k",
        "torch and not encoder and not 847 and not 150 and not 28 and not 42 and not 1764",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
