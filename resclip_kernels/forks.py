"""Processes that were forked from one that had used PyTorch's threads.

A fork copies memory and the thread that asked for it, not the threads of OpenMP that it computes with. The copy still
counts on them, and waits for ever at its first parallel step: `multiprocessing.Pool` on Linux, and servers that load a
model before they fork, did. With one thread there is nobody to wait for, which is also how PyTorch's own data loaders
run their workers.
"""

from __future__ import annotations

import os
import threading

import torch


class Forks:
    """Whether this process computed before it was forked, and in which thread."""

    def __init__(self) -> None:
        self.has_computed = False
        self.forked_thread: int | None = None
        if hasattr(os, "register_at_fork"):  # Windows has no fork.
            os.register_at_fork(after_in_child=self.start_child)

    def start_child(self) -> None:
        """Compute with one thread from here on, in the new process and whatever thread of it."""
        if torch.get_num_threads() > 1:
            self.forked_thread = threading.get_ident() if self.has_computed else None
            torch.set_num_threads(1)

    def check(self) -> None:
        """Called before a model runs.

        Raises:
            RuntimeError: in the one thread whose helpers were lost in a fork, and which was told to use several again.
        """
        self.has_computed = True
        if threading.get_ident() == self.forked_thread and torch.get_num_threads() > 1:
            raise RuntimeError(
                "this process was forked from one that had used PyTorch, so its main thread can compute with one "
                "thread only and would wait for ever with several: call torch.set_num_threads(1), or start workers "
                "with multiprocessing.get_context('spawn')"
            )


FORKS = Forks()
