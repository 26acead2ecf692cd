"""Measuring a segmenter on a set: the same counts by any road, and every image that is not in them by name."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from measure_support import CLASSES, Broken, InMemory, Stub, made_up, on_disk, together, values
from PIL import Image

from resclip import load
from resclip.builtin.scenes import CLASS_NAMES
from resclip.evaluation import runner as module
from resclip.evaluation.checkpoint import Journal
from resclip.evaluation.datasets.base import IGNORED, Dataset, Problem
from resclip.evaluation.distributed import ALONE, World
from resclip.evaluation.metrics import confusion
from resclip.evaluation.runner import Tally, measure


def same(came: Tally, wanted: Tally) -> bool:
    """All but the cost."""
    return (
        np.array_equal(came.counts, wanted.counts)
        and came.images == wanted.images
        and came.problems == wanted.problems
    )


# Counts


def test_counts_are_those_of_segmenting_by_hand(tmp_path: Path) -> None:
    """The built-in model, on files: two groups and a rest of one image."""
    dataset = on_disk(tmp_path, 5)
    segmenter = load(classes=CLASS_NAMES, method="naclip", device="cpu", short_side=40)
    came = measure(segmenter, dataset, group_size=2)
    wanted = np.zeros((len(CLASS_NAMES), len(CLASS_NAMES)), np.int64)
    for numbers in ([0, 1], [2, 3], [4]):
        results = segmenter.segment([tmp_path / f"{number}.png" for number in numbers])
        for number, result in zip(numbers, results, strict=True):
            truth = np.asarray(Image.open(tmp_path / f"{number}-mask.png"))
            wanted += confusion(truth, result.labels, len(CLASS_NAMES), IGNORED)
    assert np.array_equal(came.counts, wanted)
    assert came.counts.sum() == sum((37 - index) * 40 for index in range(5))
    assert came.images == 5
    assert came.problems == ()
    assert measure(segmenter, dataset, group_size=2, workers=2).counts.tolist() == wanted.tolist()


@pytest.mark.parametrize("count", [1, 7, 8, 9, 30])  # less, as many, and more than a group
@pytest.mark.parametrize("broken", [(), (0,)])
def test_workers_change_nothing(seed: int, count: int, broken: tuple[int, ...]) -> None:
    dataset = made_up(seed, count, broken)
    alone, helped = (measure(Stub(), dataset, workers=workers) for workers in (0, 2))
    assert same(alone, helped)
    assert alone.counts.sum() > 0 or count == 1
    assert alone.images == count - len(broken)


def test_groups_are_always_the_same_images(seed: int) -> None:
    """The stub's labels depend on what is in a group, so groups of another size give other counts."""
    dataset = made_up(seed, 30)
    assert not np.array_equal(
        measure(Stub(), dataset, group_size=8).counts, measure(Stub(), dataset, group_size=7).counts
    )


# Images that cannot be had


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_read_is_named_and_the_rest_is_measured(
    tmp_path: Path, workers: int
) -> None:
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
    came = measure(segmenter, dataset, group_size=3, workers=workers)
    assert came.images == 1
    assert came.counts.sum() == 37 * 40
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


def test_a_set_of_broken_images_has_no_counts(seed: int) -> None:
    came = measure(Stub(), made_up(seed, 9, broken=range(9)))
    assert (came.images, came.counts.sum(), len(came.problems)) == (0, 0, 9)


@pytest.mark.parametrize("error", [OSError("no memory"), ValueError("odd"), MemoryError("full")])
def test_errors_of_the_segmenter_are_not_the_images(seed: int, error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        measure(Stub(fail_at=1, error=error), made_up(seed, 20))


def test_a_segmenter_of_other_classes_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match="with the 4 classes of made-up, got one with 17"):
        measure(Stub(vocabulary=SimpleNamespace(names=CLASS_NAMES)), made_up(seed, 1))
    with pytest.raises(ValueError, match="group_size must be at least 1; got 0"):
        measure(Stub(), made_up(seed, 1), group_size=0)


# Those who look on


def test_watchers_see_each_image_once_in_order(seed: int) -> None:
    dataset = made_up(seed, 11, broken=[3])
    seen: list[tuple[Any, ...]] = []
    also: list[str] = []
    watchers = [lambda *each: seen.append(each), lambda sample, *_: also.append(sample.name)]
    came = measure(Stub(), dataset, group_size=4, workers=1, watch=watchers)
    names = [sample.name for index, sample in enumerate(dataset.samples) if index != 3]
    assert [sample.name for sample, *_ in seen] == also == names
    counts = np.zeros_like(came.counts)
    for sample, image, truth, labels in seen:
        assert np.array_equal(image, sample.image.read())
        assert np.array_equal(truth, sample.truth.read())
        assert labels.dtype == np.int64
        counts += confusion(truth, labels, len(CLASSES), IGNORED)
    assert np.array_equal(counts, came.counts)


def test_progress_is_told_after_each_group(seed: int) -> None:
    told: list[tuple[int, int]] = []
    came = measure(
        Stub(),
        made_up(seed, 11, broken=[0, 10]),
        group_size=4,
        tell=lambda images, counts: told.append((images, int(counts.sum()))),
    )
    assert [images for images, _ in told] == [4, 4, 3, 0]
    sums = [pixels for _, pixels in told]
    assert sums == sorted(sums)
    assert sums[-1] == came.counts.sum()


# Going on after an interruption


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "parts", {"row": "naclip"})


@pytest.mark.parametrize("fail_at", [0, 1, 2, 3])
def test_an_interrupted_measurement_goes_on_to_the_same_figures(
    seed: int, journal: Journal, fail_at: int
) -> None:
    dataset = made_up(seed, 30, broken=[2, 9, 29])
    wanted = measure(Stub(), dataset)
    with pytest.raises(KeyboardInterrupt):
        measure(Stub(fail_at=fail_at), dataset, journal=journal)
    rest = Stub()
    told: list[int] = []
    came = measure(rest, dataset, journal=journal, tell=lambda images, _: told.append(images))
    assert same(came, wanted)
    assert rest.calls == 4 - fail_at
    assert sum(told) == 30
    whole = measure(rest, dataset, journal=journal)  # Nothing is left to do.
    assert same(whole, wanted)
    assert rest.calls == 4 - fail_at
    assert whole.cost.seconds >= came.cost.seconds
    journal.clear()
    assert not journal.folder.exists()


def test_the_journal_is_written_now_and_then(
    seed: int, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed cannot write: what is there by then is what it wrote on the way."""
    clock = itertools.count(step=3)
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    written: list[int] = []
    original = Journal.write

    def spy(self: Journal, part: str, progress: Any, terms: Any) -> None:
        written.append(len(progress.groups))
        original(self, part, progress, terms)

    monkeypatch.setattr(Journal, "write", spy)
    measure(Stub(), made_up(seed, 16), group_size=1, journal=journal)
    assert len(written) > 3
    assert max(np.diff([0, *written])) <= 4  # 10 s at 3 s a group
    assert written[-1] == 16


@pytest.mark.parametrize("change", ["group size", "images", "order"])
def test_progress_of_another_set_or_grouping_is_not_used(
    seed: int, journal: Journal, change: str
) -> None:
    dataset = made_up(seed, 30)
    with pytest.raises(KeyboardInterrupt):
        measure(Stub(fail_at=2), dataset, journal=journal)
    size = 5 if change == "group size" else 8
    if change == "images":
        dataset = replace(dataset, samples=dataset.samples[1:])
    if change == "order":
        dataset = replace(dataset, samples=dataset.samples[::-1])
    wanted = measure(Stub(), dataset, group_size=size)
    assert same(measure(Stub(), dataset, group_size=size, journal=journal), wanted)


# Several processes


def share(
    world: World, dataset: Dataset, folder: Path | None, fail_at: tuple[int | None, ...]
) -> tuple[Tally, list[str], int, int]:
    """A process's part: the tally, what it watched, what it was told of, and how often it ran the segmenter."""
    stub = Stub(fail_at=fail_at[world.rank], error=MemoryError("out of memory"))
    seen: list[str] = []
    told: list[int] = []
    tally = measure(
        stub,
        dataset,
        journal=None if folder is None else Journal(folder, {"row": "naclip"}),
        world=world,
        watch=[lambda sample, *_: seen.append(sample.name)],
        tell=lambda images, _: told.append(images),
    )
    return tally, seen, sum(told), stub.calls


@pytest.mark.parametrize(("size", "count"), [(2, 45), (3, 9)])  # 9: the third has nothing to do
def test_processes_share_a_set_and_come_to_the_same_as_one(
    tmp_path: Path, seed: int, size: int, count: int
) -> None:
    broken = {1, 8, min(20, count - 1)}  # 20 is the first process's, and 8 the second's
    dataset = made_up(seed, count, broken=sorted(broken))
    wanted = measure(Stub(), dataset)
    outcomes = values(together(tmp_path, share, dataset, None, (None,) * size, size=size))
    for tally, _, told, _ in outcomes:
        assert same(tally, wanted)
        assert told == count
        assert tally.cost.processes == size
        assert tally.cost == outcomes[0][0].cost
    groups = -(-count // 8)
    assert [calls for *_, calls in outcomes] == [
        len(range(rank, groups, size)) for rank in range(size)
    ]
    watched = [name for _, seen, _, _ in outcomes for name in seen]
    readable = [dataset.samples[index].name for index in range(count) if index not in broken]
    assert sorted(watched) == sorted(readable)


def test_a_measurement_goes_on_with_another_number_of_processes(tmp_path: Path, seed: int) -> None:
    """Two processes, of which one fails; then three, of which one fails; then one."""
    dataset = made_up(seed, 70, broken=[5, 64])
    wanted = measure(Stub(), dataset)
    folder = tmp_path / "parts"
    first, other = together(tmp_path, share, dataset, folder, (None, 1))
    assert first is not None
    assert first.error == "WorldError: the process of rank 1 failed: MemoryError: out of memory"
    assert other is not None
    assert other.error == "MemoryError: out of memory"
    failed = together(tmp_path, share, dataset, folder, (None, None, 0), size=3)
    assert [each is not None and bool(each.error) for each in failed] == [True] * 3
    rest = Stub()
    came = measure(rest, dataset, journal=Journal(folder, {"row": "naclip"}))
    assert same(came, wanted)
    assert rest.calls <= 9 - 1  # The process that failed first had done a group.
    (tally, *_), _ = values(together(tmp_path, share, dataset, folder, (0, 0)))  # all was done
    assert same(tally, wanted)


def unlike(world: World, dataset: Dataset) -> Tally:
    if world.rank == 1:
        dataset = replace(dataset, samples=dataset.samples[:-1])
    return measure(Stub(), dataset, world=world)


def test_processes_that_see_other_images_are_refused(tmp_path: Path, seed: int) -> None:
    """A copy of the set on a second machine that lacks an image would shift the groups."""
    outcomes = together(tmp_path, unlike, made_up(seed, 9))
    for outcome in outcomes:
        assert outcome is not None
        assert "got 9 in the first and 8, or others, in that of rank 1" in outcome.error


def with_the_model_in_the_box(world: World, dataset: Dataset) -> Tally:
    segmenter = load(classes=CLASS_NAMES, method="naclip", device="cpu", short_side=40)
    return measure(segmenter, dataset, group_size=2, world=world)


def test_processes_with_a_model_of_their_own_come_to_the_same_as_one(tmp_path: Path) -> None:
    dataset = on_disk(tmp_path, 5)
    wanted = with_the_model_in_the_box(ALONE, dataset)
    assert wanted.counts.sum() == sum((37 - index) * 40 for index in range(5))
    for tally in values(together(tmp_path, with_the_model_in_the_box, dataset)):
        assert same(tally, wanted)


# What it takes


def test_the_cost_is_that_of_this_process(seed: int) -> None:
    start = time.perf_counter()
    cost = measure(Stub(), made_up(seed, 9), group_size=1, watch=[lambda *_: time.sleep(0.02)]).cost
    assert 9 * 0.02 <= cost.seconds <= time.perf_counter() - start
    assert (cost.processes, cost.threads) == (1, torch.get_num_threads())
    assert cost.machine
    resident = psutil.Process().memory_info().rss
    assert 0.5 * resident < cost.peak_memory < 100 * resident
