"""What a run was and what came of it, as one JSON file in its output folder, for whatever starts runs to read.

command, source    the command's name, and what it was given, without passwords
status             "running", "done", "failed" or "interrupted"; "running" for good if the process was killed
error              the reason why the run as a whole failed; else null
started, ended     ISO 8601, UTC; ended is null while it runs
seconds            between them
versions           of this library, Python, torch and others
settings           all that decides the results
counts             images: total, done, failed, and skipped, which an earlier run had done
failed             [{"name", "error"}, ...]: those that failed, at most `MOST_NAMES` of them
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from resclip.batch.output_names import MANIFEST, SUMMARY
from resclip.cli.options import explain
from resclip.cli.progress import MOST_NAMES, Console
from resclip.version import __version__

if TYPE_CHECKING:
    from typing_extensions import Self

PACKAGES = ("torch", "numpy", "pillow", "open_clip_torch")
"""Whose versions stand in the file, beside this library's and Python's."""


class RunSummary:
    """Writes the file as a run begins, and anew when it ends in whatever way.

    Args:
        write: replaces the file by these bytes, whole or not at all.
        said: counts the images.
        command, source, settings: what stands in the file.
        total: how many images the source has.
        skipped: how many of them an earlier run has done.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(
        self,
        write: Callable[[bytes], object],
        said: Console,
        *,
        command: str,
        source: Sequence[str],
        settings: Mapping[str, Any],
        total: int,
        skipped: int = 0,
    ) -> None:
        self._write = write
        self._said = said
        self._began = time.monotonic()
        said.counts |= {"done": 0, "failed": 0, "skipped": skipped}
        self._text: dict[str, Any] = {
            "command": f"resclip {command}",
            "source": list(source[:MOST_NAMES]),
            "status": "running",
            "error": None,
            "started": _now(),
            "ended": None,
            "seconds": 0.0,
            "versions": versions(),
            "settings": dict(settings),
            "counts": {"total": total, **said.counts},
            "failed": [],
        }
        self._put()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _: TracebackType | None,
    ) -> None:
        counts = self._said.counts
        status = "failed" if counts["failed"] else "done"
        if isinstance(error, Exception):
            status = "failed"
            self._text["error"] = explain(error)
        elif error is not None:
            status = "interrupted"
        self._text["counts"].update(counts)
        self._text |= {
            "status": status,
            "ended": _now(),
            "seconds": round(time.monotonic() - self._began, 3),
            "failed": [{"name": name, "error": why} for name, why in self._said.failures],
        }
        try:
            self._put()
        except OSError:
            # What ended the run is said, and not what followed from it.
            if error is None:
                raise

    def _put(self) -> None:
        self._write((json.dumps(self._text, indent=1, default=str) + "\n").encode())


def refuse_foreign(folder: Path, names: Iterable[str]) -> None:
    """ValueError for a folder with files of these names that no run has written: a run would replace them.

    Args:
        folder: the output folder, on this machine.
        names: of files of a whole run, beside its summary.
    """
    there = [name for name in (SUMMARY, *names) if os.path.lexists(folder / name)]
    if there and not is_summary(folder / SUMMARY) and not (folder / MANIFEST).exists():
        raise ValueError(
            f"expected an output folder without a {there[0]} of yours, got {folder}: this run would replace it; name "
            "another folder, or move the file"
        )


def is_summary(path: Path) -> bool:
    """Whether a file is what a run has left."""
    try:
        text = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(text, dict) and str(text.get("command", "")).startswith("resclip ")


def versions() -> dict[str, str]:
    """Of what decides results."""
    found = {"resclip": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # Installed in a way that leaves no record.
            continue
    return found


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
