"""The kernels of an op are compared with torch once on a device, before "auto" takes them."""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from resclip_kernels import (
    Implementation,
    KernelWarning,
    check_kernels_at_first_use,
    dispatch,
    first_use,
)
from resclip_kernels.dispatch import resolve
from resclip_kernels.first_use import JUDGE, TOLERANCES, TRIALS, Judge, compare

CPU = torch.device("cpu")
AVAILABLE = {Implementation.TORCH: "torch path", Implementation.TRITON: "kernels"}


def backend(change: Callable[[Tensor], Any], calls: list[str]) -> Any:
    """An op whose kernels give what `change` makes of torch's result."""

    def run(device: torch.device, dtype: torch.dtype, implementation: str) -> list[Tensor | None]:
        calls.append(implementation)
        result = torch.arange(1, 101, device=device).to(dtype)
        return [change(result) if implementation == "triton" else result]

    return run


def refuses(result: Tensor) -> Tensor:
    raise RuntimeError("PassManager::run failed\nmore lines of a compiler")


def is_slow(result: Tensor) -> Tensor:
    time.sleep(0.2)
    return result


BACKENDS: dict[str, tuple[Callable[[Tensor], Any], str | None]] = {
    "right": (lambda result: result, None),
    "rounded": (lambda result: result * (1 + 1e-6), None),
    "slow": (is_slow, None),
    "wrong": (lambda result: 2 * result, "100.0% off torch's result on cpu in float32"),
    "wrong in one place": (lambda result: result.index_fill(0, torch.tensor([99]), 0.0), "off"),
    "of another shape": (lambda result: result[1:], "off torch's result"),
    "not a number": (lambda result: result / 0 * 0, "off torch's result"),
    "nothing": (lambda result: None, "off torch's result"),
    "not compiling": (refuses, r"fail on cpu in float32 \(RuntimeError: PassManager::run failed\)"),
}


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Judge]:
    """A judge with a file of its own, on a machine whose CPU passes for a GPU."""
    judge = Judge(tmp_path / "cache" / "kernels.json")
    monkeypatch.setattr(dispatch, "JUDGE", judge)
    monkeypatch.setattr(dispatch, "are_on_gpu", lambda *tensors: True)
    monkeypatch.setattr(dispatch, "kernel_obstacle", lambda *tensors: None)
    yield judge
    TRIALS.pop("fake", None)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_is_taken_only_if_it_is_right(name: str, judge: Judge) -> None:
    change, said = BACKENDS[name]
    calls: list[str] = []
    TRIALS["fake"] = backend(change, calls)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        choices = [resolve("auto", AVAILABLE, torch.zeros(1), op="fake") for _ in range(3)]
    assert calls == ["torch", "triton"]  # Once for three uses.
    if said is None:
        assert {choice.function for choice in choices} == {"kernels"}
        assert not caught
        return
    assert {choice.function for choice in choices} == {"torch path"}
    (warning,) = caught
    assert issubclass(warning.category, KernelWarning)
    assert str(warning.message).startswith("the Triton kernels of fake")
    for part in ("torch is used instead", "resclip doctor"):
        assert part in str(warning.message)
    assert re.search(said, str(warning.message))


def test_a_verdict_is_read_from_the_file_by_the_next_process(judge: Judge) -> None:
    calls: list[str] = []
    TRIALS["fake"] = backend(lambda result: 2 * result, calls)
    with pytest.warns(KernelWarning):
        resolve("auto", AVAILABLE, torch.zeros(1), op="fake")
    later = Judge(judge.path)
    assert later.obstacle("fake", [torch.zeros(1)]) == judge.obstacle("fake", [torch.zeros(1)])
    assert len(calls) == 2
    (key,) = json.loads(judge.file().read_text())
    for part in ("op fake", "dtype float32", "device cpu", f"torch {torch.__version__}", "triton"):
        assert part in key


def test_dtypes_are_judged_one_by_one(judge: Judge) -> None:
    calls: list[str] = []
    TRIALS["fake"] = backend(lambda result: result * (1 + 5e-3), calls)
    with pytest.warns(KernelWarning, match="float32"):
        assert judge.obstacle("fake", [torch.zeros(1)]) is not None
    assert judge.obstacle("fake", [None, torch.zeros(1).half()]) is None
    assert judge.obstacle("fake", [torch.zeros(1, dtype=torch.int64)]) is not None  # As float32.
    assert len(calls) == 4


def test_the_file_may_be_broken_or_out_of_reach(
    judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    TRIALS["fake"] = backend(lambda result: result, calls)
    fields = '{"error": "abc", "reason": null, "seconds": 1.0}'
    for content in ("", "{", "[1]", '{"a": 1}', '{"a": {"unknown": 2}}', f'{{"a": {fields}}}'):
        path = tmp_path / "broken.json"
        path.write_text(content)
        assert Judge(path).obstacle("fake", [torch.zeros(1)]) is None
        (key,) = json.loads(path.read_text())
        assert "op fake" in key
    assert Judge(Path("/dev/null/kernels.json")).obstacle("fake", [torch.zeros(1)]) is None
    monkeypatch.setenv("RESCLIP_KERNEL_VERDICTS", str(tmp_path / "named.json"))
    assert Judge().file() == tmp_path / "named.json"
    monkeypatch.delenv("RESCLIP_KERNEL_VERDICTS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Judge().file() == tmp_path / "resclip" / "kernels.json"


def test_the_file_is_written_whole_and_as_the_umask_says(judge: Judge, tmp_path: Path) -> None:
    TRIALS["fake"] = backend(lambda result: result, [])
    judge.obstacle("fake", [torch.zeros(1)])
    (tmp_path / "plain").touch()
    assert judge.file().stat().st_mode == (tmp_path / "plain").stat().st_mode
    folder = tmp_path / "named" / "folder"
    folder.mkdir(parents=True)
    assert Judge(folder).obstacle("fake", [torch.zeros(1)]) is None
    assert [*folder.parent.iterdir()] == [folder]  # Nothing is left beside it.


def test_it_can_be_turned_off(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    TRIALS["fake"] = backend(lambda result: 2 * result, calls)
    monkeypatch.setenv("RESCLIP_SKIP_KERNEL_CHECK", "1")
    assert resolve("auto", AVAILABLE, torch.zeros(1), op="fake").function == "kernels"
    monkeypatch.delenv("RESCLIP_SKIP_KERNEL_CHECK")
    check_kernels_at_first_use(False)
    assert not JUDGE.enabled
    check_kernels_at_first_use(True)
    judge.enabled = False
    assert resolve("auto", AVAILABLE, torch.zeros(1), op="fake").function == "kernels"
    assert not calls


def test_a_request_by_name_is_not_judged(judge: Judge) -> None:
    calls: list[str] = []
    TRIALS["fake"] = backend(lambda result: 2 * result, calls)
    assert resolve("triton", AVAILABLE, torch.zeros(1), op="fake").function == "kernels"
    assert not calls


def test_without_a_gpu_nothing_is_compared_and_no_file_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judge = Judge(Path("/nowhere"))
    monkeypatch.setattr(dispatch, "JUDGE", judge)
    choice = resolve("auto", AVAILABLE, torch.zeros(1), op="residual_attention")
    assert choice.function == "torch path"
    assert not judge.is_read


@pytest.mark.parametrize(
    ("op", "dtype"),
    [
        # Each op in one dtype, in turn; they are tested in all of them elsewhere.
        pytest.param(op, dtype, marks=[] if place == number % 3 else pytest.mark.slow)
        for number, op in enumerate(sorted(TRIALS))
        for place, dtype in enumerate(TOLERANCES)
    ],
)
def test_the_ops_own_kernels_pass(op: str, dtype: torch.dtype) -> None:
    """Interpreted here; with a margin, so that another GPU's rounding passes as well."""
    verdict = compare(op, CPU, dtype)
    assert verdict.reason is None
    assert verdict.error is not None
    assert verdict.error <= TOLERANCES[dtype] / 2


def test_every_op_with_kernels_has_a_trial() -> None:
    assert sorted(TRIALS) == [
        "laplacian_propagation",
        "pamr",
        "patch_labels",
        "proxy_attention",
        "residual_attention",
        "semantic_feedback",
        "similarity_aggregation",
        "upsample_argmax",
    ]


def test_a_verdict_holds_for_the_kernels_and_products_that_it_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And a mode that does not exist is said, not taken for kernels that fail."""
    judged = ("pamr", torch.device("cpu"), torch.float32)
    keys = {first_use.key_of(*judged)}
    monkeypatch.setenv(first_use.FLOAT32, "ieee")
    keys.add(first_use.key_of(*judged))
    monkeypatch.setattr(first_use, "KERNELS", first_use.KERNELS + 1)
    keys.add(first_use.key_of(*judged))
    assert len(keys) == 3
    monkeypatch.setenv(first_use.FLOAT32, "tf32")
    with pytest.raises(ValueError, match="RESCLIP_FLOAT32 must be tf32x3 or ieee; got 'tf32'"):
        Judge().verdict(*judged)
