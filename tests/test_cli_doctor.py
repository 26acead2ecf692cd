"""`resclip doctor`: what a report needs to say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cli_support import run

import resclip
from resclip.cli import doctor
from resclip.errors import SlowPrecisionWarning
from resclip.loading import choose_precision
from resclip_kernels import TRIALS, dispatch, multiplies_bfloat16


def test_it_shows_versions_and_what_every_op_uses(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor") == 0
    printed = capsys.readouterr().out
    for part in (f"resclip {resclip.__version__}", f"torch {torch.__version__}", "cpu: "):
        assert part in printed
    for op in TRIALS:
        assert f"{op} " in printed
    assert "portable PyTorch runs on every device" in printed


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("flags", "answer", "said"),
    [
        ({"flags": "sse avx512_bf16"}, True, "faster than float32"),
        ({"flags": "sse avx2"}, False, "slower than float32"),
        ({"Features": "asimd bf16"}, True, "faster than float32"),
        ({}, None, "does not say"),
    ],
)
def test_it_says_how_the_cpu_multiplies(
    flags: dict[str, str], answer: bool | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resclip_kernels.cpu.cpu_info", lambda: flags)
    assert multiplies_bfloat16() is answer
    assert said in doctor.describe_cpu()


def test_a_slow_precision_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resclip.loading.multiplies_bfloat16", lambda: False)
    with pytest.warns(SlowPrecisionWarning, match="no instructions for bfloat16"):
        choose_precision("bf16", torch.device("cpu"))
    for answer in (True, None):
        monkeypatch.setattr("resclip.loading.multiplies_bfloat16", lambda answer=answer: answer)
        assert choose_precision("bf16", torch.device("cpu")) is torch.bfloat16
