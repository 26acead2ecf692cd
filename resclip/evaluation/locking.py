"""One run at a time on a file or folder: a lock that ends with its process, however that ends."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

_held: set[int] = set()
"""Descriptors of the locks that this process holds."""

if hasattr(os, "register_at_fork"):

    def _let_go() -> None:
        """A forked process, such as one that reads images, must not keep the lock of a run that was killed."""
        while _held:
            os.close(_held.pop())

    os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Keep other runs out for as long as the context lasts, those of other machines too where the disk has locks.

    The lock is on an open file, which the system lets go with the process that holds it: a file that a killed run left
    behind locks nobody out. On Windows nobody is kept out.

    Args:
        path: of the lock file, in a folder that exists; it holds the process's number and machine, and is removed in
            the end.
        what: what is locked, for the error.

    Raises:
        OSError: another run holds the lock; the path is taken by something else, such as a link; or it cannot be
            written.
    """
    if sys.platform == "win32":
        yield
        return
    descriptor = _acquire(path, what)
    _held.add(descriptor)
    try:
        os.ftruncate(descriptor, 0)
        holder = {"process": os.getpid(), "machine": socket.gethostname()}
        os.write(descriptor, json.dumps(holder).encode())
        yield
    finally:
        # Removed before it is let go: whoever opened it in between finds that it is gone, and makes a new one.
        with contextlib.suppress(OSError):
            path.unlink()
        _held.discard(descriptor)
        os.close(descriptor)


def _acquire(path: Path, what: str) -> int:
    """The descriptor of the locked file."""
    import fcntl

    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags, 0o644)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise _taken(path) from None
            raise
        try:
            opened = os.fstat(descriptor)
            if not stat.S_ISREG(opened.st_mode):
                raise _taken(path)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OSError(
                    errno.EBUSY,
                    f"expected {what} that no other run is writing to, got one that {_holder(descriptor)} is; wait for "
                    "it, or name another",
                    str(path.parent),
                ) from None
            except OSError as error:
                # A network disk without locks keeps nobody out.
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    raise
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(opened, os.lstat(path)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        # The run that had it removed it in between.
        os.close(descriptor)


def _taken(path: Path) -> OSError:
    return OSError(
        errno.EEXIST,
        "expected a lock file, got a link, a folder or a pipe of that name; remove it",
        str(path),
    )


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {int(holder['process'])} on {str(holder['machine'])[:60]!r}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        # It is not written yet, or cannot be read.
        return "another process"
