"""What a checkpoint keeps: nothing counts twice and no finished group is lost, wherever a process is killed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from resclip.evaluation.checkpoint import Checkpoint, DatasetResult, format_line
from resclip.evaluation.datasets.base import Problem

CONDITIONS = {"dataset": "voc21", "window": 224, "rcs": {"weight": 0.4, "layers": (6, 7)}}
CLASSES = 4
GROUPS = 12


def result(group: int, seconds: float = 1.0) -> DatasetResult:
    """A confusion in which each group has a cell of its own, so that one that counts twice shows as a 2."""
    confusion = np.zeros((CLASSES, CLASSES + 1), np.int64)
    confusion.flat[group] = 1
    problems = (Problem(f"image {group}", "damaged"),)
    return DatasetResult(confusion, 7, problems, seconds, 100 + group)


def assert_finished(checkpoint: Checkpoint, groups: set[int]) -> None:
    finished, sums = checkpoint.read(CLASSES)
    whole = sum(sums.values(), DatasetResult.empty(CLASSES))
    assert finished == groups
    assert set(np.flatnonzero(whole.confusion).tolist()) == groups
    assert whole.confusion.sum() == len(groups)
    assert whole.images == 7 * len(groups)
    assert {problem.name for problem in whole.problems} == {f"image {group}" for group in groups}
    assert len(whole.problems) == len(groups)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    made = Checkpoint(tmp_path / "parts", CONDITIONS)
    # A folder that cannot be made is an error before the work, not after it.
    assert made.read(CLASSES) == (set(), {})
    assert made.folder.is_dir()
    return made


def test_what_was_appended_comes_back(checkpoint: Checkpoint) -> None:
    """Counts beyond 32 bits, as pixels of a large dataset are, and names in any script."""
    written = DatasetResult(
        np.array([[2**62, 3, 0], [0, 2**53 + 1, 5]]),
        15,
        (Problem("Köln/каф\udce9", "cut short"),),
        1 / 3,
        2**40,
        2**41,
    )
    checkpoint.append(3, 5, written)
    finished, sums = Checkpoint(checkpoint.folder, CONDITIONS).read(2)
    assert (finished, set(sums)) == ({5}, {3})
    assert np.array_equal(sums[3].confusion, written.confusion)
    for name in ("images", "problems", "seconds", "peak_bytes", "ignored"):
        assert getattr(sums[3], name) == getattr(written, name)


def test_each_process_has_sums_of_its_own(checkpoint: Checkpoint) -> None:
    """In two runs, the second with fewer processes."""
    for rank, group, seconds in ((0, 0, 5.0), (1, 1, 9.0), (10, 2, 2.0), (0, 3, 4.0)):
        checkpoint.append(rank, group, result(group, seconds))
    finished, sums = checkpoint.read(CLASSES)
    assert finished == {0, 1, 2, 3}
    assert {rank: part.seconds for rank, part in sums.items()} == {0: 9.0, 1: 9.0, 10: 2.0}
    assert {rank: part.peak_bytes for rank, part in sums.items()} == {0: 103, 1: 101, 10: 102}


def test_other_conditions_have_other_files(checkpoint: Checkpoint) -> None:
    other = Checkpoint(checkpoint.folder, {**CONDITIONS, "window": 336})
    checkpoint.append(0, 0, result(0))
    other.append(0, 1, result(1))
    assert_finished(checkpoint, {0})
    assert_finished(other, {1})
    checkpoint.clear()
    assert_finished(other, {1})
    other.clear()
    assert not checkpoint.folder.exists()
    other.clear()  # Nothing is left to remove.


def test_conditions_are_compared_as_json(checkpoint: Checkpoint) -> None:
    checkpoint.append(0, 0, result(0))
    restored = json.loads(json.dumps(CONDITIONS))
    assert restored != CONDITIONS  # A tuple is a list there.
    assert_finished(Checkpoint(checkpoint.folder, restored), {0})


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"\x00" * len(data),  # as a power cut leaves it
        lambda data: b"\n\xff" + data[1:],
        lambda data: b"[]\n7\nnull",
        lambda data: b'{"group": 0}',
        lambda data: data.replace(b'"cells": [0]', b'"cells": [99]'),
        lambda data: data.replace(b'"counts": [1]', b'"counts": [-1]'),
        lambda data: data.replace(b'"counts": [1]', b'"counts": [1e400]'),
        lambda data: data.replace(b'"images": 7', b'"images": "7"'),
        lambda data: data.replace(b'"seconds": 1.0', b'"seconds": NaN'),
        lambda data: data.replace(b'"problems": [', b'"problems": [3, '),
        lambda data: b"[" * 100_000,
        lambda data: data.replace(b'"group": 0', b'"group": ' + b"9" * 5000),
    ],
)
def test_a_damaged_line_counts_as_missing_and_can_be_followed_by_others(
    checkpoint: Checkpoint, damage: Callable[[bytes], bytes]
) -> None:
    checkpoint.append(0, 0, result(0))
    checkpoint.append(1, 1, result(1))
    path = checkpoint.path(0)
    before = path.read_bytes()
    path.write_bytes(damage(before))
    assert path.read_bytes() != before
    assert_finished(checkpoint, {1})
    checkpoint.append(0, 2, result(2))
    assert_finished(checkpoint, {1, 2})


def test_a_group_in_two_files_counts_once(checkpoint: Checkpoint) -> None:
    """Two runs at once by mistake do the same groups."""
    for rank, group in ((0, 0), (0, 1), (1, 1), (1, 2), (1, 2)):
        checkpoint.append(rank, group, result(group))
    assert_finished(checkpoint, {0, 1, 2})


def test_killed_at_any_byte_it_loses_at_most_the_group_in_progress(checkpoint: Checkpoint) -> None:
    """A process that is killed while it appends leaves the beginning of what it was writing."""
    checkpoint.append(0, 0, result(0))
    path = checkpoint.path(0)
    before = path.read_bytes()
    text = "\n" + format_line(1, result(1))
    for length in range(len(text) + 1):
        path.write_bytes(before + text[:length].encode())
        assert_finished(checkpoint, {0, 1} if length == len(text) else {0})
        checkpoint.append(0, 2, result(2))
        assert_finished(checkpoint, {0, 1, 2} if length == len(text) else {0, 2})


def test_killed_over_and_over_it_comes_to_the_same(checkpoint: Checkpoint, seed: int) -> None:
    """Runs of one to four processes, each killed somewhere: between two groups, or within a line."""
    generator = np.random.default_rng(seed)
    done: set[int] = set()
    while len(done) < GROUPS:
        assert_finished(checkpoint, done)
        left = sorted(set(range(GROUPS)) - done)
        size = int(generator.integers(1, 5))
        for rank in range(size):
            for group in left[rank::size][: int(generator.integers(3))]:
                checkpoint.append(rank, group, result(group))
                done.add(group)
                path = checkpoint.path(rank)
                data = path.read_bytes()
                if generator.random() < 0.3:
                    path.write_bytes(data[: -int(generator.integers(1, 20))])
                    done.remove(group)
                    break
    assert_finished(checkpoint, set(range(GROUPS)))


def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Checkpoint(tmp_path / "file" / "parts", CONDITIONS).read(CLASSES)
