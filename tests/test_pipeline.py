"""Windows of many images as one stream: order, batches, look-ahead, strips, failures and too little memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from thread_support import with_threads
from toys import toy_clip, toy_tokenizer

from resclip import RCS, SFR, DenseEncoder, Segmenter, Vocabulary
from resclip.inference import pipeline as pipelines
from resclip.inference import scheduler
from resclip.inference.pipeline import ImagePipeline, ImageTask, Strip, WindowPixels
from resclip.inference.preprocessing import ArrayImage
from resclip.inference.scheduler import Failure, whole_results
from resclip.io.images import ImageError

CLASSES = ["cat, kitten", "dog", "grass"]


def make(**arguments: Any) -> ImagePipeline:
    dense = DenseEncoder(toy_clip().visual, rcs=RCS(), sfr=SFR(refine_iterations=1))
    vocabulary = Vocabulary.from_names(CLASSES, toy_clip(), toy_tokenizer, templates=["{}"])
    given = {"window": 32, "stride": 16, "short_side": 0, **arguments}
    return Segmenter(dense, vocabulary, **given).pipeline


def image(seed: int, height: int, width: int) -> ArrayImage:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return ArrayImage(noise)


def images(seed: int, *sizes: tuple[int, int]) -> list[ArrayImage]:
    return [image(seed + number, *size) for number, size in enumerate(sizes)]


def spy_on(pipeline: ImagePipeline, monkeypatch: pytest.MonkeyPatch, room: int = 1000) -> list[int]:
    """The size of every batch; larger ones than `room` run out of memory."""
    batches: list[int] = []
    encode = pipeline.encode_windows

    def encode_windows(windows: Sequence[WindowPixels], limit: int) -> list[torch.Tensor]:
        if len(windows) > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        batches.append(len(windows))
        return encode(windows, limit)

    monkeypatch.setattr(pipeline, "encode_windows", encode_windows)
    return batches


def results(pipeline: ImagePipeline, tasks: Iterable[ImageTask | Failure]) -> list[Any]:
    return list(whole_results(scheduler.run(tasks)))


def test_windows_of_many_images_fill_batches(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(40, 50), (32, 32), (64, 40), (33, 90)]
    pipeline = make(batch_size=5)
    batches = spy_on(pipeline, monkeypatch)
    tasks = [pipeline.task(one, number) for number, one in enumerate(images(seed, *sizes))]
    came = results(pipeline, tasks)
    assert [one.tag for one in came] == [0, 1, 2, 3]
    assert [one.labels.shape for one in came] == sizes
    # 6, 1, 6 and 10 windows of one size.
    assert batches == [5, 5, 5, 5, 3]


@pytest.mark.parametrize("pad_batches", (False, True))
def test_an_image_does_not_depend_on_its_neighbours(seed: int, pad_batches: bool) -> None:
    pipeline = make(batch_size=6, pad_batches=pad_batches)
    sizes = [(40, 50), (20, 20), (64, 40), (33, 90), (17, 32)]
    many = images(seed, *sizes)
    together = results(pipeline, (pipeline.task(one) for one in many))
    backward = results(pipeline, (pipeline.task(one) for one in many[::-1]))[::-1]
    alone = [results(pipeline, [pipeline.task(one)])[0] for one in many]
    for one, two, three in zip(together, backward, alone, strict=True):
        assert (one.labels == two.labels).mean() > 0.999
        assert (one.labels == three.labels).mean() > 0.999
        np.testing.assert_allclose(one.probabilities, three.probabilities, atol=1e-5)
        for other in (two, three) if pad_batches else ():
            assert np.array_equal(one.probabilities, other.probabilities)
            assert np.array_equal(one.labels, other.labels)


# As it is, and resized up and down; each with refinement, whose strips need rows beyond their own, or without.
@pytest.mark.parametrize(("short_side", "refine"), [(0, 0), (0, 2), (40, 2), (150, 0)])
def test_strips_are_the_rows_of_the_whole(
    seed: int, monkeypatch: pytest.MonkeyPatch, refine: int, short_side: int
) -> None:
    pipeline = make(refine_iterations=refine, short_side=short_side)
    one = image(seed, 90 if refine == 0 else 600, 60)
    (whole,) = list(scheduler.run([pipeline.task(one)]))
    # Some rows at a time: 3 classes of float32 and 64 bytes a pixel.
    monkeypatch.setitem(pipelines.STRIP_BYTES, "cpu", 11 * 60 * 80)
    strips = list(scheduler.run([pipeline.task(one, "tag")]))
    assert len(strips) > 4
    assert isinstance(whole, Strip)
    rows = 0
    # A resize by rows rounds coordinates otherwise than one of the whole; of differences of 1e-6 the factor 40 is left.
    for strip in strips:
        assert isinstance(strip, Strip)
        assert strip.tag == "tag"
        assert strip.first == rows
        rows += len(strip.labels)
        inner = slice(strip.first, rows)
        torch.testing.assert_close(
            strip.probabilities, whole.probabilities[inner], atol=1e-4, rtol=0
        )
        assert (strip.labels == whole.labels[inner]).float().mean() > 0.99
    assert rows == one.height


def test_batches_are_filled_up_but_for_odd_sizes(seed: int) -> None:
    """Eight windows of 32 × 32 are two batches of five with two empty windows; what is smaller runs alone."""
    pipeline = make(batch_size=5, pad_batches=True)
    sizes = []
    read = pipeline.encoder.read

    def spy(pixels: torch.Tensor, *others: Any, **wanted: Any) -> Any:
        sizes.append((len(pixels), *pixels.shape[2:]))
        return read(pixels, *others, **wanted)

    pipeline.encoder.read = spy
    many = images(seed, (40, 40), (20, 32), (40, 40), (20, 32))
    assert len(results(pipeline, (pipeline.task(one) for one in many))) == 4
    assert sorted(sizes) == [(1, 20, 32), (1, 20, 32), (5, 32, 32), (5, 32, 32)]


def test_a_tall_images_strips_come_while_it_is_read(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are asked for window by window, finished rows leave, and grids above them are dropped."""
    pipeline = make(batch_size=3)
    monkeypatch.setitem(pipelines.STRIP_BYTES, "cpu", 16 * 40 * 80)
    tall = image(seed, 800, 40)
    asked: list[tuple[int, int]] = []

    class Watched:
        """Not in memory, as far as the stream can tell."""

        height, width = 800, 40

        def rows(self, first: int, last: int) -> Any:
            asked.append((first, last))
            return tall.pixels[first:last]

    task = pipeline.task(Watched())
    kept = []
    for strip in scheduler.run([task]):
        assert isinstance(strip, Strip)
        # No further than the batch that finished this strip, and the strip's own rows of windows.
        assert asked[-1][1] <= strip.last + 5 * 32
        kept.append(len(task.stitcher.grids))
    assert asked == [(top, top + 32) for top in range(0, 769, 16)]
    assert max(kept) <= 12
    assert len(task.stitcher.windows) == 98


def test_how_far_it_runs_ahead_is_bounded(seed: int) -> None:
    """An image whose windows no other image shares waits for a batch, but not for ever."""
    pipeline = make(batch_size=4)
    taken = []

    def tasks() -> Iterator[ImageTask]:
        yield pipeline.task(image(seed, 20, 20), 0)  # Its window is smaller than all others.
        for number in range(1, 40):
            taken.append(number)
            yield pipeline.task(image(seed, 40, 40), number)

    first = next(iter(scheduler.run(tasks())))
    assert isinstance(first, Strip)
    assert first.tag == 0
    # 16 windows are ahead of it: 4 images of 4, and the one that was too many.
    assert len(taken) == 5


def test_how_many_pixels_wait_is_bounded(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "PIXELS_AHEAD", 40 * 40 + 1)
    pipeline = make(batch_size=400)
    taken = []

    def tasks() -> Iterator[ImageTask]:
        for number in range(10):
            taken.append(number)
            yield pipeline.task(image(seed, 40, 40), number)

    for event in scheduler.run(tasks()):
        assert isinstance(event, Strip)
        assert taken[-1] <= event.tag + 2


def test_failures_keep_their_place(seed: int) -> None:
    pipeline = make()
    one = pipeline.task(image(seed, 40, 40), 0)
    two = pipeline.task(image(seed, 33, 33), 1)
    error = ImageError("cut short")

    class Torn(ArrayImage):
        def rows(self, first: int, last: int) -> Any:
            if first > 0:
                raise error
            return super().rows(first, last)

    torn = ImageTask(pipeline, Torn(image(seed, 90, 40).pixels), (90, 40), "torn")
    tasks = [Failure("gone", OSError("no such file")), one, torn, two, Failure("bad", error)]
    came = results(pipeline, tasks)
    assert [event.tag for event in came] == ["gone", 0, "torn", 1, "bad"]
    assert [isinstance(event, Failure) for event in came] == [True, False, True, False, True]
    assert came[2].error is error
    again = pipeline.task(image(seed, 33, 33))
    assert np.array_equal(came[3].labels, results(pipeline, [again])[0].labels)


def test_logits_that_are_no_numbers_fail_their_image_alone(seed: int) -> None:
    pipeline = make()
    size = (3, 40, 40)
    broken = torch.full(size, torch.nan)
    whole = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    tasks = [
        ImageTask(pipeline, pixels, (40, 40), name)
        for name, pixels in (("whole", whole), ("broken", broken), ("after", whole))
    ]
    came = results(pipeline, tasks)
    assert [isinstance(event, Failure) for event in came] == [False, True, False]
    assert "must not hold NaN" in str(came[1].error)
    assert np.array_equal(came[0].labels, came[2].labels)


def test_with_too_little_memory_batches_are_halved_and_nothing_is_lost(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = images(seed, (64, 64), (40, 40), (33, 90))
    pipeline = make(batch_size=16)
    wanted = results(pipeline, [pipeline.task(one) for one in many])
    batches = spy_on(pipeline, monkeypatch, room=3)
    came = results(pipeline, (pipeline.task(one) for one in many))
    # 9 + 4 + 10 windows: 16 do not fit, nor do 8 or 4, and from then on two run together.
    assert batches == [2] * 11 + [1]
    for one, two in zip(came, wanted, strict=True):
        np.testing.assert_allclose(one.probabilities, two.probabilities, atol=1e-5)


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), MemoryError, "one window .*window="),
        (RuntimeError("mat1 and mat2 shapes"), RuntimeError, "mat1 and mat2"),
    ],
)
def test_errors_of_a_batch_of_one_are_not_hidden(
    seed: int, monkeypatch: pytest.MonkeyPatch, error: Exception, raised: Any, message: str
) -> None:
    pipeline = make(batch_size=1)

    def broken(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(pipeline, "encode_windows", broken)
    with pytest.raises(raised, match=message):
        results(pipeline, [pipeline.task(image(seed, 64, 64))])


@pytest.mark.parametrize("refine", (0, 1))
def test_no_bit_depends_on_the_number_of_threads(seed: int, refine: int) -> None:
    """Three classes, since torch resizes three planes together in another way where it has one thread."""
    pipeline = make(pad_batches=True, short_side=40, refine_iterations=refine)
    many = images(seed, (79, 64), (120, 43))
    first, second = with_threads(
        (1, 3), lambda: results(pipeline, (pipeline.task(one) for one in many))
    )
    for one, two in zip(first, second, strict=True):
        assert np.array_equal(one.probabilities, two.probabilities)
        assert np.array_equal(one.labels, two.labels)
