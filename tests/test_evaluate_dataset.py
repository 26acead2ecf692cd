"""Measuring a segmenter on a dataset: the same counts by any road, and every image that is not in them by name."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from evaluation_support import (
    CLASSES,
    Broken,
    Stub,
    on_disk,
    random_dataset,
    together,
    values,
)
from PIL import Image

from resclip import load
from resclip.builtin.scenes import CLASS_NAMES
from resclip.evaluation.checkpoint import Checkpoint, DatasetResult
from resclip.evaluation.datasets.base import IGNORED, Dataset, ImagePixels, Problem
from resclip.evaluation.datasets.builtin import ImageInMemory, InMemory
from resclip.evaluation.distributed import rank
from resclip.evaluation.metrics import confusion
from resclip.evaluation.runner import Progress, evaluate_dataset


def measure(segmenter: Any, dataset: Dataset, **options: Any) -> DatasetResult:
    return evaluate_dataset("naclip", segmenter, dataset, **options)


def same(came: DatasetResult, wanted: DatasetResult) -> bool:
    """All but time and memory."""
    return (
        np.array_equal(came.confusion, wanted.confusion)
        and came.images == wanted.images
        and came.problems == wanted.problems
    )


# Counts


def test_counts_are_those_of_segmenting_by_hand(tmp_path: Path) -> None:
    """The built-in model, on files: two groups and a rest of one image."""
    dataset = on_disk(tmp_path, 5)
    segmenter = load("builtin", classes=CLASS_NAMES, method="naclip", device="cpu", short_side=40)
    came = measure(segmenter, dataset, group_size=2)
    wanted = np.zeros((len(CLASS_NAMES), len(CLASS_NAMES) + 1), np.int64)
    for numbers in ([0, 1], [2, 3], [4]):
        results = segmenter.segment([tmp_path / f"{number}.png" for number in numbers])
        for number, result in zip(numbers, results, strict=True):
            truth = np.asarray(Image.open(tmp_path / f"{number}-mask.png"))
            wanted += confusion(truth, result.labels, len(CLASS_NAMES), IGNORED)
    assert np.array_equal(came.confusion, wanted)
    assert came.confusion.sum() == sum((37 - index) * 40 for index in range(5))
    assert came.images == 5
    assert came.problems == ()
    assert same(measure(segmenter, dataset, group_size=2, workers=2), came)


# Less than a group, one, and several with a rest.
@pytest.mark.parametrize(("count", "broken"), [(1, ()), (8, ()), (30, (0,))])
def test_workers_change_nothing(seed: int, count: int, broken: tuple[int, ...]) -> None:
    dataset = random_dataset(seed, count, broken)
    alone, helped = (measure(Stub(), dataset, workers=workers) for workers in (0, 2))
    assert same(alone, helped)
    assert alone.confusion.sum() > 0 or count == 1
    assert alone.images == count - len(broken)


@dataclass(frozen=True)
class Partly:
    """An image whose first row has no data."""

    image: ImageInMemory

    def read(self) -> ImagePixels:
        absent = np.zeros(self.image.values.shape[:2], bool)
        absent[0] = True
        return ImagePixels(self.image.values, absent)


def test_pixels_without_data_get_no_class_and_are_misses(seed: int) -> None:
    whole = random_dataset(seed, 9)
    samples = [replace(each, image=Partly(each.image)) for each in whole.samples]  # type: ignore[arg-type]
    dataset = replace(whole, samples=tuple(samples))
    shown: list[Any] = []
    came = measure(Stub(), dataset, workers=0, on_image=lambda *given: shown.append(given[4:]))
    there = sum(int((truth[0] != IGNORED).sum()) for truth, _ in shown)
    assert came.confusion[:, -1].sum() == there > 0
    assert all((labels[0] == -1).all() and labels[1:].min() >= 0 for _, labels in shown)
    assert np.array_equal(came.confusion.sum(1), measure(Stub(), whole, workers=0).confusion.sum(1))
    assert came.ignored == sum(int((truth == IGNORED).sum()) for truth, _ in shown)
    assert same(measure(Stub(), dataset, workers=2), came)


# Images that cannot be had


def test_what_cannot_be_read_is_named_and_the_rest_is_measured(tmp_path: Path) -> None:
    dataset = on_disk(tmp_path, 7)
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.zeros((36, 40), np.uint8)).save(tmp_path / "2-mask.png")  # 38 high
    Image.fromarray(np.full((37, 40), 99, np.uint8)).save(tmp_path / "3-mask.png")
    (tmp_path / "6-mask.png").unlink()
    samples = list(dataset.samples)
    samples[4] = replace(samples[4], truth=InMemory(np.full((36, 40), 200, np.uint8)))
    samples[5] = replace(samples[5], image=Broken(PermissionError("no entry")))
    listed = Problem("scene 9", "a mask without an image")
    dataset = replace(dataset, samples=tuple(samples), problems=(listed,))
    segmenter = Stub(vocabulary=SimpleNamespace(names=CLASS_NAMES))
    came = measure(segmenter, dataset, group_size=3, workers=0)
    assert came.images == 1
    assert came.confusion.sum() == 37 * 40
    assert [problem.name for problem in came.problems] == [
        "scene 9", "scene 1", "scene 2", "scene 3", "scene 4", "scene 5", "scene 6",
    ]  # fmt: skip
    reasons = [problem.reason for problem in came.problems]
    assert "1.png: expected a whole image, got one that is cut short" in reasons[1]
    assert "expected a mask of the image's size, 38 × 40 pixels, got one of 36 × 40" in reasons[2]
    assert "3-mask.png: expected values among 0 to 16, 255, got 99" in reasons[3]
    assert "with classes 0 to 16 and 255 where nothing counts, got 200 in 1,440" in reasons[4]
    assert reasons[5] == "no entry"
    assert "6-mask.png: no such file" in reasons[6]


def test_a_dataset_of_broken_images_has_no_counts(seed: int) -> None:
    came = measure(Stub(), random_dataset(seed, 9, broken=range(9)))
    assert (came.images, came.confusion.sum(), len(came.problems)) == (0, 0, 9)


def test_errors_of_the_segmenter_are_not_the_images(seed: int) -> None:
    with pytest.raises(OSError, match="no memory"):
        measure(Stub(fail_at=1, error=OSError("no memory")), random_dataset(seed, 20))


def test_a_segmenter_of_other_classes_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match="with the 4 classes of random, got one with 17"):
        measure(Stub(vocabulary=SimpleNamespace(names=CLASS_NAMES)), random_dataset(seed, 1))
    with pytest.raises(ValueError, match="group_size must be at least 1; got 0"):
        measure(Stub(), random_dataset(seed, 1), group_size=0)


# Images and progress


def test_each_image_is_shown_once_in_order(seed: int) -> None:
    dataset = random_dataset(seed, 11, broken=[3])
    seen: list[tuple[Any, ...]] = []
    came = measure(
        Stub(), dataset, group_size=4, workers=1, on_image=lambda *each: seen.append(each)
    )
    names = [sample.name for index, sample in enumerate(dataset.samples) if index != 3]
    assert [sample.name for _, _, sample, *_ in seen] == names
    counts = np.zeros_like(came.confusion)
    for method, whole, sample, image, truth, labels in seen:
        assert (method, whole) == ("naclip", dataset)
        assert np.array_equal(image, sample.image.read().pixels)
        assert np.array_equal(truth, sample.truth.read())
        assert labels.dtype == np.int64
        counts += confusion(truth, labels, len(CLASSES), IGNORED)
    assert np.array_equal(counts, came.confusion)


def test_progress_is_told_after_each_group(seed: int) -> None:
    told: list[Progress] = []
    dataset = random_dataset(seed, 11, broken=[0, 10])
    measure(Stub(), dataset, group_size=4, on_progress=told.append)
    assert [(one.images, one.total) for one in told] == [(4, 11), (8, 11), (11, 11)]
    assert {(one.dataset, one.method, one.row) for one in told} == {("random", "naclip", None)}
    assert all(one.miou is not None for one in told)


# Going on after an interruption


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return Checkpoint(tmp_path / "parts", {"row": "naclip"})


@pytest.mark.parametrize("fail_at", [0, 3])  # the first of four groups, the last
def test_an_interrupted_measurement_goes_on_to_the_same_figures(
    seed: int, checkpoint: Checkpoint, fail_at: int
) -> None:
    dataset = random_dataset(seed, 30, broken=[2, 9, 29])
    wanted = measure(Stub(), dataset)
    with pytest.raises(KeyboardInterrupt):
        measure(Stub(fail_at=fail_at), dataset, checkpoint=checkpoint)
    rest = Stub()
    told: list[Progress] = []
    came = measure(rest, dataset, checkpoint=checkpoint, on_progress=told.append)
    assert same(came, wanted)
    assert rest.calls == 4 - fail_at
    assert told[0].images == min(30, 8 * (fail_at + 1))
    whole = measure(rest, dataset, checkpoint=checkpoint)  # Nothing is left to do.
    assert same(whole, wanted)
    assert rest.calls == 4 - fail_at
    assert whole.seconds == pytest.approx(came.seconds)


def test_a_killed_measurement_has_kept_every_finished_group(
    seed: int, checkpoint: Checkpoint
) -> None:
    """SIGKILL runs no handler: what is on disk by then is what was appended on the way."""
    on_disk_then: list[int] = []

    def look(*_: Any) -> None:
        finished, _sums = checkpoint.read(len(CLASSES))
        on_disk_then.append(len(finished))

    measure(Stub(), random_dataset(seed, 5), group_size=1, checkpoint=checkpoint, on_image=look)
    assert on_disk_then == [0, 1, 2, 3, 4]


# Several processes


def share(
    dataset: Dataset, folder: Path | None, fail_at: tuple[int | None, ...]
) -> tuple[DatasetResult, list[str], int, int]:
    """A process's part: the result, the images it saw, the last progress, and how often it ran the segmenter."""
    stub = Stub(fail_at=fail_at[rank()], error=MemoryError("out of memory"))
    seen: list[str] = []
    told = [0]
    result = measure(
        stub,
        dataset,
        checkpoint=None if folder is None else Checkpoint(folder, {"row": "naclip"}),
        on_image=lambda method, dataset, sample, *_: seen.append(sample.name),
        on_progress=lambda progress: told.append(progress.images),
    )
    assert told == sorted(told)
    return result, seen, told[-1], stub.calls


@pytest.mark.parametrize(("size", "count"), [(2, 45), (3, 9)])  # 9: the third has nothing to do
def test_processes_share_a_dataset_and_come_to_the_same_as_one(
    tmp_path: Path, seed: int, size: int, count: int
) -> None:
    broken = {1, 8, min(20, count - 1)}  # 20 is the first process's, and 8 the second's
    dataset = random_dataset(seed, count, broken=sorted(broken))
    wanted = measure(Stub(), dataset)
    outcomes = values(together(tmp_path, share, dataset, None, (None,) * size, size=size))
    for result, _, told, calls in outcomes:
        assert same(result, wanted)
        first = outcomes[0][0]
        assert (result.seconds, result.peak_bytes) == (first.seconds, first.peak_bytes)
        assert told == (count if calls else 0)
    groups = -(-count // 8)
    assert [calls for *_, calls in outcomes] == [
        len(range(number, groups, size)) for number in range(size)
    ]
    seen = [name for _, names, _, _ in outcomes for name in names]
    readable = [dataset.samples[index].name for index in range(count) if index not in broken]
    assert sorted(seen) == sorted(readable)


def test_a_measurement_goes_on_with_another_number_of_processes(tmp_path: Path, seed: int) -> None:
    """Two processes, of which one fails; then three, of which one fails; then one; then two without work."""
    dataset = random_dataset(seed, 70, broken=[5, 64])
    wanted = measure(Stub(), dataset)
    folder = tmp_path / "parts"
    first, other = together(tmp_path, share, dataset, folder, (None, 1))
    assert first is not None
    assert "lost touch with the 1 other(s)" in first.error
    assert other is not None
    assert other.error == "MemoryError: out of memory"
    failed = together(tmp_path, share, dataset, folder, (None, None, 0), size=3)
    assert [each is not None and bool(each.error) for each in failed] == [True] * 3
    rest = Stub()
    came = measure(rest, dataset, checkpoint=Checkpoint(folder, {"row": "naclip"}))
    assert same(came, wanted)
    assert rest.calls <= 9 - 5 - 1  # The first two did six of nine groups.
    (result, *_), _ = values(together(tmp_path, share, dataset, folder, (0, 0)))
    assert same(result, wanted)


def unlike(dataset: Dataset) -> DatasetResult:
    if rank() == 1:
        dataset = replace(dataset, samples=dataset.samples[:-1])
    return measure(Stub(), dataset)


def test_processes_that_see_other_images_are_refused(tmp_path: Path, seed: int) -> None:
    """A copy of the set on a second machine that lacks an image would shift the groups."""
    outcomes = together(tmp_path, unlike, random_dataset(seed, 9))
    for outcome in outcomes:
        assert outcome is not None
        assert "got 9 in the first and 8, or others, in that of rank 1" in outcome.error


# What it takes


def test_time_and_memory_are_those_of_this_process(seed: int) -> None:
    start = time.perf_counter()
    result = measure(
        Stub(), random_dataset(seed, 9), group_size=1, on_image=lambda *_: time.sleep(0.02)
    )
    assert 9 * 0.02 <= result.seconds <= time.perf_counter() - start
    resident = psutil.Process().memory_info().rss
    assert 0.5 * resident < result.peak_bytes < 100 * resident
