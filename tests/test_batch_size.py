"""Estimates of a batch's memory against measurements, and batches that fit."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_support import CASES, encode, encoder, live_bytes, tower
from method_support import small_tower
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from toys import toy_clip

from resclip import RCS, SFR, DenseEncoder
from resclip.errors import is_out_of_memory
from resclip.inference.batch_size import (
    FRAGMENTATION,
    SHARE,
    WORKSPACES,
    plan_batch_size,
    weights_bytes,
    window_bytes,
)
from resclip.methods.catalogue import Overview
from resclip.methods.correlation import Correlation
from resclip.models.proxy_models import find_proxy

TESTS = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts pages by /proc")
def test_a_process_grows_by_at_most_the_estimate() -> None:
    """Pages of a fresh process; those of a workspace that is not used up say nothing against the estimate."""
    run = subprocess.run(
        [sys.executable, "memory_support.py"],
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    print(run.stdout)
    assert len(rows) == len(CASES)
    for *_, growth, estimate in rows:
        assert estimate / 4 - WORKSPACES["cpu"] <= growth <= estimate, rows


BOTH: dict[str, Any] = {"rcs": RCS(), "sfr": SFR(label_threshold=0.0)}
STAGES = {
    "blocks": {},
    "full residual": {"base": "sclip"},
    "kept maps": {"base": "sclip", "rcs": RCS(layers="1-3")},
    "feedback": BOTH,
    "paths along lines": {**BOTH, "sfr": SFR(label_threshold=0.0, connectivity="line")},
    "no paths": {**BOTH, "sfr": SFR(connectivity=None)},
    "no refinement": {**BOTH, "sfr": SFR(refine_iterations=0)},
    "projections": {**BOTH, "correlation": Correlation("random", projections=3)},
    "proxy": {**BOTH, "base": "proxyclip", "proxy": "colour"},
    "proxy's own blocks": {"base": "proxyclip", "proxy": "vit_tiny_patch16_224"},
    "proxy's pyramid": {"base": "proxyclip", "proxy": "resnet18"},
    "overview": {"overview": Overview(), "correlation": "qq+kk"},
}


@pytest.mark.parametrize(
    ("stage", "side", "queries", "windows"),
    [
        # 150 is no multiple of a patch; 3 queries are fewer than a group of planes.
        *((stage, 150, 3, 3) for stage in STAGES),
        # Groups of planes are the largest part.
        ("feedback", 112, 20, 2),
        ("no refinement", 112, 20, 2),
    ],
)
def test_tensors_take_at_most_the_estimate(
    stage: str, side: int, queries: int, windows: int, seed: int
) -> None:
    torch.manual_seed(seed)
    options = dict(STAGES[stage])
    if "proxy" in options:
        options["proxy"] = find_proxy(
            options["proxy"], mean=OPENAI_DATASET_MEAN, std=OPENAI_DATASET_STD, pretrained=False
        )
    dense = DenseEncoder(toy_clip(), **options)
    estimate = window_bytes(dense, (side, side), queries, windows)
    tensors = (estimate - WORKSPACES["cpu"]) / FRAGMENTATION
    live = live_bytes(dense, side, queries, windows)
    print(f"{stage}: {live / tensors:.2f} of the estimate")
    assert tensors / 4 <= live <= tensors


def test_the_estimate_is_of_the_towers_dtype() -> None:
    """Half precision halves tokens; labels are computed in float32 all the same."""
    estimates = {
        (method, dtype): window_bytes(encoder(small_tower().to(dtype), method), (224, 224), 4, 32)
        for method in ("naclip", "resclip")
        for dtype in (torch.float32, torch.bfloat16)
    }
    assert estimates["naclip", torch.bfloat16] < 0.8 * estimates["naclip", torch.float32]
    assert estimates["resclip", torch.bfloat16] > 0.8 * estimates["resclip", torch.float32]


def test_weights_are_counted_once() -> None:
    """Every parameter and buffer, those of correlation "random" too."""
    dense = DenseEncoder(toy_clip(), correlation=Correlation("random", projections=3))
    own = sum(parameter.numel() * 4 for parameter in toy_clip().visual.parameters())
    assert weights_bytes(dense) == own + 3 * 64 * 64 * 4


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A machine with as much memory free and held as the test says."""
    memory = {"free": 1 << 30, "held": 1 << 28}
    monkeypatch.setattr("resclip.inference.batch_size.free_memory", lambda device: memory["free"])
    monkeypatch.setattr("resclip.inference.batch_size.held_memory", lambda device: memory["held"])
    return memory


def plan(dense: DenseEncoder, batch_size: int, max_memory: int | None = None) -> int:
    return plan_batch_size(dense, (224, 224), 20, batch_size=batch_size, max_memory=max_memory)


def needed(dense: DenseEncoder, windows: int) -> int:
    """What must be free for a batch."""
    return math.ceil(window_bytes(dense, (224, 224), 20, windows) / SHARE)


def test_a_batch_is_the_largest_that_fits(machine: dict[str, int]) -> None:
    """The estimate grows with the batch, by no more than one window's estimate per window."""
    dense = encoder(toy_clip(), "resclip")
    sizes = [window_bytes(dense, (224, 224), 150, windows) for windows in range(1, 20)]
    assert sizes == sorted(set(sizes))
    assert all(size <= windows * sizes[0] for windows, size in enumerate(sizes, start=1))
    for windows in (1, 2, 5, 8):
        machine["free"] = needed(dense, windows) + 1
        assert plan(dense, 8) == windows
    assert plan(dense, 3) == 3, "batch_size is a limit"
    assert plan(dense, 10**9) == 8
    machine["free"] = needed(dense, 2) - 2
    assert plan(dense, 8) == 1


def test_a_limit_counts_what_is_held(machine: dict[str, int]) -> None:
    dense = encoder(toy_clip(), "naclip")
    machine["held"] = 10 * weights_bytes(dense)
    assert plan(dense, 8, machine["held"] + needed(dense, 2) + 1) == 2
    machine["held"] = 0  # Not loaded yet: the weights will be.
    assert plan(dense, 8, weights_bytes(dense) + needed(dense, 2) - 2) == 1
    machine["free"] = needed(dense, 1) + 1
    assert plan(dense, 8, 1 << 40) == 1, "a limit above what is free frees nothing"


def test_no_window_fits(machine: dict[str, int]) -> None:
    dense = encoder(toy_clip(), "naclip")
    machine["free"] = 3 << 20
    with pytest.raises(ValueError, match=r"224 × 224 .* 20 queries .* 3.0 MiB are left: .* window"):
        plan(dense, 8)
    with pytest.raises(ValueError, match="0 B of the 1.0 MiB allowed"):
        plan(dense, 8, 1 << 20)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("method", "dtype"), [("naclip", torch.float16), ("resclip", torch.float32)]
)
def test_a_gpu_takes_at_most_the_estimate(method: str, dtype: torch.dtype) -> None:
    dense = encoder(tower("ViT-B/16").to("cuda", dtype), method)
    for side, queries, windows in ((224, 20, 16), (448, 150, 4)):
        encode(dense, 32, queries, 1)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        encode(dense, side, queries, windows)
        growth = torch.cuda.max_memory_allocated() - before
        estimate = window_bytes(dense, (side, side), queries, windows)
        print(f"{method} {dtype} {side}: {growth / estimate:.2f} of {estimate / 1e6:.0f} MB")
        assert (estimate - WORKSPACES["cuda"]) / 4 <= growth <= estimate


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_that_is_full_says_so() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
    assert is_out_of_memory(caught.value)
