"""Progress on disk: nothing is counted twice and nothing written is lost, wherever a process is killed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resclip.evaluation.checkpoint import Journal, Progress
from resclip.evaluation.datasets.base import Problem

KEY = {"dataset": "voc21", "window": 224, "options": {"rcs": {"weight": 0.4}, "layers": (6, 7)}}
TERMS = {"group_size": 8, "images": 96}
GROUPS = 12


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def done(*groups: int, seconds: float = 1.0) -> Progress:
    """Counts in which each group has a cell of its own, so that one that is there twice shows as a 2."""
    counts = np.zeros((4, 4), np.int64)
    counts.flat[list(groups)] += 1
    problems = tuple(Problem(f"image {group}", "damaged") for group in groups)
    return Progress(
        frozenset(groups), counts, 7 * len(groups), problems, seconds, 100 + len(groups)
    )


def assert_is(progress: Progress | None, *groups: int) -> None:
    wanted = done(*groups)
    assert progress is not None
    assert sorted(progress.groups) == sorted(groups)
    assert progress.counts.dtype == np.int64
    assert np.array_equal(progress.counts, wanted.counts)
    assert progress.images == wanted.images
    assert sorted(progress.problems, key=str) == sorted(wanted.problems, key=str)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "parts", KEY)


def ranks(journal: Journal, *parts: Progress) -> None:
    journal.folder.mkdir(exist_ok=True)
    for rank, part in enumerate(parts):
        journal.write(f"rank-{rank}", part, TERMS)


def test_nothing_is_there_at_first(journal: Journal) -> None:
    assert journal.resume(TERMS) is None
    assert (
        journal.folder.is_dir()
    )  # A folder that cannot be made is known before the work, not after it.
    assert journal.files() == []


def test_what_was_written_comes_back(journal: Journal) -> None:
    """Counts beyond 32 bits, as pixels of a large set are, and names in any script."""
    written = Progress(
        frozenset({0, 5}),
        np.array([[2**62, 3], [0, 2**53 + 1]]),
        15,
        (Problem("Köln/каф\udce9", "cut short"),),
        1 / 3,
        2**40,
    )
    ranks(journal, written)
    read = Journal(journal.folder, KEY).resume(TERMS)
    assert read is not None
    assert np.array_equal(read.counts, written.counts)
    fields = ("groups", "images", "problems", "seconds", "peak_memory")
    assert all(getattr(read, name) == getattr(written, name) for name in fields)


def test_processes_add_up_and_only_the_longest_ones_time_counts(journal: Journal) -> None:
    ranks(journal, done(0, 3, seconds=5), done(1, 4, 7, seconds=9), done(2, seconds=2))
    first = journal.resume(TERMS)
    assert_is(first, 0, 1, 2, 3, 4, 7)
    assert first is not None
    assert first.seconds == 9
    assert first.peak_memory == 103
    assert len(journal.files()) == 1
    ranks(journal, done(5, 6, seconds=4), done(8, seconds=3))  # another world goes on
    second = journal.resume(TERMS)
    assert_is(second, *range(9))
    assert second is not None
    assert second.seconds == 13
    assert_is(journal.resume(TERMS), *range(9))  # and once more without anything new


@pytest.mark.parametrize(
    ("key", "terms"),
    [
        ({**KEY, "window": 336}, TERMS),
        (KEY, {**TERMS, "group_size": 4}),  # group 3 is of other images then
        (KEY, {**TERMS, "images": 95}),
    ],
)
def test_progress_under_other_settings_counts_as_missing(
    journal: Journal, key: dict[str, Any], terms: dict[str, Any]
) -> None:
    ranks(journal, done(0, 1), done(2))
    other = Journal(journal.folder, key)
    assert other.resume(terms) is None
    other.write("rank-0", done(3), terms)
    assert_is(other.resume(terms), 3)


def test_rows_share_a_folder_and_nothing_else(journal: Journal) -> None:
    other = Journal(journal.folder, {**KEY, "row": "clip"})
    ranks(journal, done(0))
    ranks(other, done(1))
    assert_is(journal.resume(TERMS), 0)
    assert_is(other.resume(TERMS), 1)
    journal.clear()
    assert_is(other.resume(TERMS), 1)
    other.clear()
    assert not journal.folder.exists()
    other.clear()  # There is nothing to forget.


def test_keys_are_compared_as_json(journal: Journal) -> None:
    ranks(journal, done(0))
    restored = json.loads(json.dumps(KEY))
    assert restored != KEY  # A tuple is a list there.
    assert_is(Journal(journal.folder, restored).resume(TERMS), 0)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def changed(data: bytes) -> bytes:
    """Still JSON, but one image more."""
    return data.replace(b'"images": 7,', b'"images": 8,', 1)


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        changed,
        lambda data: b"",
        lambda data: b"\x00" * len(data),  # as a power cut leaves it
        lambda data: b"\xff" + data,
        lambda data: b"[]",
        lambda data: b'{"format": 1, "body": {}}',
        lambda data: data.replace(b"version 1", b"version 0"),
    ],
)
def test_a_damaged_file_counts_as_missing(
    journal: Journal, damage: Callable[[bytes], bytes]
) -> None:
    ranks(journal, done(0), done(1))
    path = journal.path("rank-0")
    before = path.read_bytes()
    path.write_bytes(damage(before))
    assert path.read_bytes() != before
    assert_is(journal.resume(TERMS), 1)
    assert journal.files() == [journal.path("earlier")]


def test_groups_that_two_files_have_are_not_counted_twice(journal: Journal) -> None:
    """Two runs at once by mistake do the same groups: one of them is believed, whichever."""
    ranks(journal, done(0, 1), done(1, 2))
    read = journal.resume(TERMS)
    assert read is not None
    assert read.counts.max() == 1
    assert read.groups == {0, 1}


@contextmanager
def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The process dies at its `step`-th change of a directory: at even ones before it is made, at odd ones after."""
    steps: list[str] = []

    def deadly(name: str) -> Callable[..., Any]:
        original = getattr(Path, name)

        def change(*arguments: Any, **options: Any) -> Any:
            steps.append(f"before {name}")
            if len(steps) > step:
                raise Killed
            result = original(*arguments, **options)
            steps.append(f"after {name}")
            if len(steps) > step:
                raise Killed
            return result

        return change

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink"):
            patch.setattr(Path, name, deadly(name))
        yield steps


def test_killed_at_any_step_of_merging_it_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(100):
        journal = Journal(tmp_path / str(step), KEY)
        ranks(journal, done(0, 2))
        journal.resume(TERMS)
        ranks(journal, done(1, 4), done(3), done(5, 7))
        with killed_at(step, monkeypatch) as steps:
            try:
                journal.resume(TERMS)
                break
            except Killed:
                pass
        assert_is(journal.resume(TERMS), 0, 1, 2, 3, 4, 5, 7)
    assert step == len(steps) == 8  # One file replaced, three removed; before and after each.


def test_killed_over_and_over_it_comes_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Worlds of one to four processes, each killed somewhere: while merging, or between two groups."""
    generator = np.random.default_rng(seed)
    for number in range(30):
        journal = Journal(tmp_path / str(number), KEY)
        written: set[int] = set()
        for _ in range(200):
            with killed_at(int(generator.integers(12)), monkeypatch):
                try:
                    earlier = journal.resume(TERMS)
                    groups = earlier.groups if earlier is not None else frozenset()
                    assert groups == written
                    left = sorted(set(range(GROUPS)) - groups)
                    if not left:
                        break
                    size = int(generator.integers(1, 5))
                    for rank in range(size):
                        mine = left[rank::size]
                        for count in range(1, len(mine) + 1):
                            journal.write(f"rank-{rank}", done(*mine[:count]), TERMS)
                            written.add(mine[count - 1])
                except Killed:
                    # A file that was replaced in the last step counts, though `write` did not return.
                    found = [journal.read(path, TERMS) for path in journal.files()]
                    written |= {
                        group for each in found if each is not None for group in each.groups
                    }
        assert_is(journal.resume(TERMS), *range(GROUPS))


def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Journal(tmp_path / "file" / "parts", KEY).resume(TERMS)
