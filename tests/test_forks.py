"""Processes that were forked from one that had used torch's threads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from resclip_kernels.forks import Forks

CODE = """
import os, signal, numpy as np, torch
from resclip import load
segmenter = load("builtin", classes=["sky", "tree", "house"], method="naclip", cache=None)
image = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
expected = segmenter.segment(image).labels
assert torch.get_num_threads() == 2

def child(step):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)  # It ends by a signal where it waits for ever.
        os._exit(0 if step() else 1)
    return os.waitpid(pid, 0)[1]

def works():
    return (segmenter.segment(image).labels == expected).all() and torch.get_num_threads() == 1

def says_so():
    torch.set_num_threads(2)
    try:
        segmenter.segment(image)
    except RuntimeError as error:
        return "was forked" in str(error) and "get_context('spawn')" in str(error)

print(child(works), child(says_so))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_works_or_says_what_to_do() -> None:
    """As in a Pool of multiprocessing, and in a server that loads its model before it forks."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    assert run.stdout.split() == ["0", "0"], run.stderr


def test_threads_are_left_alone_where_nothing_was_computed_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "register_at_fork", lambda **_: None)
    numbers = [4]
    monkeypatch.setattr(torch, "get_num_threads", lambda: numbers[-1])
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    forks = Forks()
    forks.start_child()
    assert numbers == [4, 1]
    numbers.append(4)
    forks.check()  # No pool was lost.
