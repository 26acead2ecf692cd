"""One run at a time: who is kept out, what ends a lock, and what it does not touch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from resclip.evaluation.locking import locked

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nobody is kept out there")


def hold(path: Path, pipe: Any) -> None:
    """In a process of its own: hold the lock until something is sent. It has a child, as one that reads images is."""
    with locked(path, "a file"):
        child = os.fork()
        if not child:
            signal.pause()
        pipe.send(child)
        pipe.recv()


def test_a_second_run_is_kept_out_until_the_first_ends(tmp_path: Path) -> None:
    path = tmp_path / "report.json.lock"
    with locked(path, "a file"):
        me = f"process {os.getpid()} on {socket.gethostname()!r}"
        with (
            pytest.raises(OSError, match=f"expected a file that no other run .*{me} is"),
            locked(path, "a file"),
        ):
            pass
        assert path.exists()
    assert not path.exists()
    with locked(path, "a file"):
        pass


def test_a_killed_run_locks_nobody_out(tmp_path: Path) -> None:
    """Though its file is left, and a process that it started lives on."""
    path = tmp_path / "report.json.lock"
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=hold, args=(path, there))
    process.start()
    child = here.recv()
    try:
        with pytest.raises(OSError, match=f"process {process.pid}"), locked(path, "a file"):
            pass
        process.kill()
        os.waitpid(process.pid, 0)  # Not join, which waits for the child that lives on.
        assert path.exists()
        with locked(path, "a file"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
    assert not path.exists()


@pytest.mark.parametrize("kind", ["link", "dangling link", "folder", "pipe"])
def test_what_is_no_lock_file_is_refused_and_left(tmp_path: Path, kind: str) -> None:
    path, elsewhere = tmp_path / "x.lock", tmp_path / "elsewhere"
    if kind == "link":
        elsewhere.write_text("precious")
    if kind.endswith("link"):
        path.symlink_to(elsewhere)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(OSError, match="got a link, a folder or a pipe"), locked(path, "a file"):
        pass
    assert os.path.lexists(path)
    assert elsewhere.exists() == (kind == "link")
    assert kind != "link" or elsewhere.read_text() == "precious"
