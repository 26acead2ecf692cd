"""`resclip doctor`: what a report needs to say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cli_support import run

import resclip
from resclip.cli import doctor
from resclip_kernels import TRIALS, dispatch


def test_it_shows_versions_and_what_every_op_uses(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor") == 0
    printed = capsys.readouterr().out
    for part in (f"resclip {resclip.__version__}", f"torch {torch.__version__}", "cpu: "):
        assert part in printed
    for op in TRIALS:
        assert f"{op} " in printed
    assert "portable PyTorch runs on every device" in printed


def test_a_gpu_has_a_row_for_each_dtype_with_the_verdict(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU passes for the GPU, and the interpreter for its kernels."""
    monkeypatch.setattr(doctor, "gpus", lambda: [torch.device("cpu")])
    monkeypatch.setattr(doctor, "describe", lambda device: "a GPU, compute capability 9.0")
    monkeypatch.setattr(doctor, "DTYPES", {"cpu": (torch.float16, torch.float32)})
    monkeypatch.setattr(dispatch, "are_on_gpu", lambda *tensors: True)
    monkeypatch.setattr(dispatch.JUDGE, "verdicts", {})
    assert run("doctor") == 0
    printed = capsys.readouterr().out
    assert "compute capability 9.0" in printed
    assert "the tensors are on a GPU" in printed
    assert "kernels.json; remove it" in printed
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("RESCLIP_KERNEL_VERDICTS", raising=False)
    monkeypatch.setattr("pathlib.Path.home", no_home)
    assert run("doctor") == 0
    assert "not kept, as there is no home folder" in capsys.readouterr().out


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")
