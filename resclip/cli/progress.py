"""What a command says while it works, on stderr: a bar, plain lines for a log, events as JSON, or errors alone.

On a terminal there is a bar. Elsewhere there is a line at most every `EVERY` seconds, with how many are done, the rate
and the time that remains. With `--quiet` only errors are said, and with `--log-json` everything is an event: one JSON
object a line, with these fields.

    every event      time (ISO 8601, UTC), event
    "start"          command, version
    "progress"       done, total, unit; rate (a second) and eta (seconds), null while they are not known; doing, if that
                     has a name
    "image"          name, status ("done" or "failed"), error (null, or the reason)
    "message"        message: what would be a line of text
    "warning"        message
    "error"          message
    "end"            status ("done", "failed" or "interrupted"), exit_status, seconds; done, failed and skipped, counts
                     of images, where the command has counted them

A command starts and ends once, whatever happens between; an "error" is said before its "end".
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from resclip.version import __version__

if TYPE_CHECKING:
    from tqdm import tqdm

    from resclip.evaluation.runner import Progress as EvaluationProgress

Mode: TypeAlias = Literal["text", "quiet", "json"]

EVERY = 30.0
"""Seconds between two lines, or events, about progress; where there is no terminal."""

MOST_NAMES = 1000
"""So many names of images that failed are kept, with the reasons, and so many of sources."""

INTERRUPTED = 130
"""The exit status of a command that was interrupted."""


def add_progress_options(parser: argparse.ArgumentParser) -> None:
    """`--quiet` and `--log-json`."""
    group = parser.add_argument_group("what is said").add_mutually_exclusive_group()
    group.add_argument(
        "--quiet",
        action="store_true",
        help="say nothing but errors; what --json prints, and tables, are results and printed",
    )
    group.add_argument(
        "--log-json",
        action="store_true",
        help="say everything as events on stderr, one JSON object a line; see docs/pipelines.md",
    )


class Console:
    """Says what happens, in one of three ways.

    Args:
        mode: "text"; "quiet", errors alone; or "json", events.
    """

    def __init__(self, mode: Mode = "text") -> None:
        self.mode: Mode = mode
        self.counts: dict[str, int] = {}
        """Images by what became of them, for the event at the end."""
        self.failures: list[tuple[str, str]] = []
        """Names of images that failed, the first `MOST_NAMES`, and why."""
        self._began = time.monotonic()
        self._bars = 0

    @property
    def draws(self) -> bool:
        """Whether bars are drawn."""
        return self.mode == "text" and sys.stderr.isatty()

    def message(self, text: str, before: str = "resclip: ") -> None:
        """Say what is good to know."""
        self._say("message", text, before)

    def note(self, text: str) -> None:
        """Say what may not be as it was meant."""
        self._say("warning", text, "resclip: note: ")

    def error(self, text: str) -> None:
        """Say what went wrong."""
        self._say("error", text)

    def line(self, text: str) -> None:
        """A line on stdout that says what was done, and is nobody's result."""
        if self.mode != "quiet":
            self.result(text)

    def result(self, text: str) -> None:
        """A line on stdout that was asked for."""
        self._write(text, sys.stdout)

    def image_done(self, name: str) -> None:
        """Count an image that is done."""
        self._count("done", name, None)

    def image_failed(self, name: str, reason: str, text: str) -> None:
        """Count an image that failed, and name it.

        Args:
            name: of the image.
            reason: why.
            text: both, as a line.
        """
        self._count("failed", name, reason)
        if len(self.failures) < MOST_NAMES:
            self.failures.append((name, reason))
        if self.mode != "json":
            self.error(text)

    def event(self, event: str, **fields: Any) -> None:
        """Write an event, where events are written."""
        if self.mode == "json":
            now = datetime.now(timezone.utc)
            moment = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
            line = json.dumps({"time": moment, "event": event, **fields})
            self._write(line, sys.stderr)

    def start(self, command: str) -> None:
        """Say that a command begins."""
        self.event("start", command=command, version=__version__)

    def end(self, exit_status: int) -> None:
        """Say how it ended."""
        status = {0: "done", INTERRUPTED: "interrupted"}.get(exit_status, "failed")
        seconds = round(time.monotonic() - self._began, 3)
        self.event("end", status=status, exit_status=exit_status, seconds=seconds, **self.counts)

    @contextlib.contextmanager
    def progress(self, total: int = 0, *, says_end: bool = True) -> Iterator[Progress]:
        """How far work on images has come, while the block runs.

        Args:
            total: images; may be set later.
            says_end: whether a line without a terminal says in the end what was done.
        """
        if not self.draws:
            progress = Progress(self, total)
            progress.say()
            yield progress
            if says_end or self.mode == "json":
                progress.say(is_last=True)
            return
        from tqdm import tqdm

        with tqdm(total=total, unit="image", leave=False) as bar:
            self._bars += 1
            try:
                yield Progress(self, total, bar)
            finally:
                self._bars -= 1

    def _count(self, status: str, name: str, reason: str | None) -> None:
        self.counts[status] = self.counts.get(status, 0) + 1
        self.event("image", name=name, status=status, error=reason)

    def _say(self, event: str, text: str, before: str = "resclip: ") -> None:
        if self.mode == "json":
            self.event(event, message=text)
        elif self.mode == "text" or event == "error":
            self._write(f"{before}{text}", sys.stderr)

    def _write(self, text: str, stream: Any) -> None:
        if self._bars:
            from tqdm import tqdm

            tqdm.write(text, file=stream)
        else:
            print(text, file=stream, flush=stream is sys.stderr)


class Progress:
    """How far work on images has come."""

    def __init__(self, console: Console, total: int, bar: tqdm[Any] | None = None) -> None:
        self.console = console
        self.bar = bar
        self.total = total
        self.done = 0
        """Images that are done or failed."""
        self.doing = ""
        """What is being done, where that has a name."""
        self._stored = 0
        self._began = self._said = time.monotonic()

    def update(self, images: int = 1, *, stored: bool = False, remark: str = "") -> None:
        """So many more images are done.

        Args:
            images: how many.
            stored: whether they were done by an earlier run: the rate and the time that remains are of others.
            remark: what a bar says beside the rate.
        """
        self.done += images
        self._stored += images if stored else 0
        if self.bar is not None:
            self.bar.total = self.total
            if self.doing:
                self.bar.set_description(self.doing, refresh=False)
            self.bar.set_postfix_str(remark, refresh=False)
            self.bar.update(images)
        elif time.monotonic() - self._said >= EVERY and self.done < self.total:
            self.say()

    def say(self, *, is_last: bool = False) -> None:
        """Say it now, by a line or an event."""
        now = time.monotonic()
        self._said = now
        worked = self.done - self._stored
        rate = worked / (now - self._began) if worked and now > self._began else None
        left = None if rate is None else max(0, self.total - self.done) / rate
        named = {"doing": self.doing} if self.doing else {}
        self.console.event(
            "progress",
            done=self.done,
            total=self.total,
            unit="image",
            rate=None if rate is None else round(rate, 3),
            eta=None if left is None else round(left, 1),
            **named,
        )
        if self.console.mode == "json" or not self.total or not (self.done or is_last):
            return
        doing = f"{self.doing}: " if self.doing and not is_last else ""
        pace = "" if rate is None else f", {rate:.2f} images/s"
        rest = "" if left is None or is_last else f", {duration(left)} left"
        took = f" in {duration(now - self._began)}" if is_last else ""
        self.console.message(f"{doing}{self.done:,} of {self.total:,} images{took}{pace}{rest}")


def duration(seconds: float) -> str:
    """Seconds as a person says them: "42 s", "4 min 35 s", "2 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


_current = Console()


def console() -> Console:
    """That of the command which runs; one that says text where none does."""
    return _current


@contextlib.contextmanager
def speaking(mode: Mode) -> Iterator[Console]:
    """A console for a command, while the block runs."""
    global _current  # noqa: PLW0603 - a process has one stderr.
    former = _current
    _current = Console(mode)
    try:
        yield _current
    finally:
        _current = former


@contextlib.contextmanager
def evaluation_progress() -> Iterator[Callable[[EvaluationProgress], None]]:
    """Say how far an evaluation has come, and a line for each complete row, by the first process: an `on_progress`."""
    from resclip.evaluation.distributed import rank

    if rank() != 0:
        yield lambda progress: None
        return
    with console().progress(says_end=False) as shown:

        def show(progress: EvaluationProgress) -> None:
            shown.total = progress.total
            shown.doing = f"{progress.dataset}, {progress.method}"
            miou = "" if progress.miou is None else f"{progress.miou:.1f}"
            shown.update(
                progress.images - shown.done,
                stored=progress.stored,
                remark=miou and f"mIoU {miou}",
            )
            if progress.row is not None:
                took = "stored" if progress.stored else f"{progress.row.seconds:.0f} s"
                if progress.replaced:
                    took += f"; measured again: {progress.replaced}"
                figure = miou or "nothing to measure"
                console().message(f"{shown.doing}: {figure} ({took})", before="")

        yield show
