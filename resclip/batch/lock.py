"""One run at a time in an output folder of this machine.

Knows a file and who has it. The system lets go of it when its process ends, however that ends, so that nobody is ever
shut out by one that was killed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
from pathlib import Path



class FolderLock:
    """Holds a lock file from when it is made until `release`, or until it is forgotten or the process ends.

    Windows, and disks of a network without locks, have none: there nobody is kept out.

    Args:
        path: of the lock file, whose folder is there; it holds the process's number and machine as JSON.

    Raises:
        OSError: another run has it; or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        while True:
            self._stream = path.open("a+", encoding="utf-8")
            if not self._lock():
                break
            # Whoever had it may have removed it since it was opened; then it keeps nobody out.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._stream.fileno()), path.stat()):
                    break
            self._stream.close()
        self._stream.truncate(0)
        self._stream.write(json.dumps({"process": os.getpid(), "machine": socket.gethostname()}))
        self._stream.flush()

    def release(self) -> None:
        """Let others in."""
        if self._stream.closed:
            return
        with contextlib.suppress(PermissionError):  # Windows keeps files that are open.
            self.path.unlink(missing_ok=True)
        self._stream.close()

    def _lock(self) -> bool:
        """Whether there are locks here, and it is ours."""
        if sys.platform == "win32":
            return False
        import fcntl

        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = self._holder()
            self._stream.close()
            raise OSError(
                errno.EBUSY,
                f"expected a folder that no run is writing to, got one that {holder} is; "
                "wait for it, or give another --out",
                str(self.path.parent),
            ) from None
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                return False
            raise
        return True

    def _holder(self) -> str:
        try:
            self._stream.seek(0)
            about = json.load(self._stream)
            return f"process {about['process']} on {about['machine']}"
        except (ValueError, KeyError, TypeError):  # It has not written it yet.
            return "another process"
