"""Segmenter: results of the right size from any source, its settings, and what it refuses."""

from __future__ import annotations

import io
import itertools
import re
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from toys import random_image, toy_clip, toy_segmenter, toy_tokenizer

from resclip import RCS, SFR, DenseEncoder, Segmentation, Segmenter, Vocabulary
from resclip.errors import ManyWindowsWarning
from resclip.inference.pipeline import ImageTask
from resclip.io.images import ImageError
from resclip.methods.catalogue import Overview
from resclip.segmenter import READERS


def make(**arguments: Any) -> Segmenter:
    return toy_segmenter({"rcs": RCS(), "sfr": SFR(refine_iterations=1)}, **arguments)


@pytest.mark.parametrize(
    ("size", "window"),
    # Many windows, less than a patch either way, and all at once.
    [((60, 90), 32), ((7, 60), 32), ((90, 33), 0), ((1, 1), 0)],
)
def test_a_result_has_the_images_size(size: tuple[int, int], window: int) -> None:
    result = make(window=window).segment(random_image(*size))
    assert isinstance(result, Segmentation)
    assert result.labels.shape == result.probabilities.shape == size
    assert result.names == ("cat", "dog", "grass")
    assert set(np.unique(result.labels)) <= {0, 1, 2}
    assert (result.probabilities > 0).all()
    assert (result.probabilities <= 1).all()
    assert result.settings["window"] == window


def test_sources_of_every_kind_on_every_route(tmp_path: Path) -> None:
    array = random_image(50, 70)
    path = tmp_path / "one.png"
    Image.fromarray(array).save(path)

    def sources() -> list[Any]:
        tensor = torch.tensor(array).permute(2, 0, 1)
        return [
            path, path.read_bytes(), io.BytesIO(path.read_bytes()), Image.fromarray(array), array,
            array / 255, tensor, tensor / 255,
        ]  # fmt: skip

    segmenter = make()
    wanted = segmenter.segment(array).labels
    singles = [segmenter.segment(source) for source in sources()]
    results = [*singles, *segmenter.segment(sources()), *segmenter.segment_many(iter(sources()))]
    assert all(np.array_equal(result.labels, wanted) for result in results)
    for source in sources():
        with pytest.raises(TypeError, match="images must be a list of images"):
            segmenter.segment_many(source)
    batch = np.stack([array, array])
    for images in (batch, torch.tensor(batch).permute(0, 3, 1, 2)):
        assert all(np.array_equal(r.labels, wanted) for r in segmenter.segment_many(images))
    assert segmenter.segment([]) == []


def test_predict_works_on_batches_at_the_inputs_size(seed: int) -> None:
    segmenter = make(batch_size=5, pad_batches=True)
    torch.manual_seed(seed)
    batch = torch.randn(2, 3, 40, 72)
    labels = segmenter.predict(batch)
    assert labels.shape == (2, 40, 72)
    assert labels.dtype is torch.int64
    assert torch.equal(labels[1:], segmenter.predict(batch[1:]))
    assert segmenter.predict(batch[:0]).shape == (0, 40, 72)
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\) tensor.*; got \(3, 40, 72\)"):
        segmenter.predict(batch[0])


def test_a_single_window_equals_the_whole_image() -> None:
    image = random_image(40, 40)
    windowed = make(window=64, stride=32, short_side=40).segment(image)
    whole = make(window=0, short_side=40).segment(image)
    assert np.array_equal(windowed.labels, whole.labels)


def test_refinement_of_the_result_changes_it() -> None:
    image = random_image(64, 64)
    plain, refined = (make(refine_iterations=count).segment(image) for count in (0, 10))
    assert not np.allclose(plain.probabilities, refined.probabilities, atol=1e-4)


def test_prepared_pixels_have_the_short_side_or_their_own_size() -> None:
    segmenter = make(short_side=0)
    assert segmenter.prepare(random_image(61, 83)).shape == (3, 61, 83)
    assert segmenter.prepare(random_image(3, 83)).shape == (3, 8, 83)
    assert make().prepare(random_image(61, 83)).shape == (3, 48, 65)


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": 4},  # Less than a patch.
        {"stride": 64},
        {"batch_size": 0},
        {"pad_multiple": -1},
        {"short_side": -1},
        {"short_side": 1.5},
        {"long_side": 0},
        {"probability_threshold": 3.0},
        {"refine_iterations": -1},
        {"refine_iterations": 1.5},
        {"logit_scale": -1.0},
        {"pad_batches": "no"},
        {"max_memory": "1G"},
        {"max_windows": 0},
        {"mean": 0.5},
        {"std": (1.0, 1.0)},
        {"source": "mine"},
    ],
    ids=str,
)
def test_values_that_do_not_fit_are_refused_at_once(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises((TypeError, ValueError), match=f"^{name} must .*{re.escape(str(value))}"):
        make(**wrong)


def test_a_vocabulary_of_another_model_is_refused() -> None:
    other = Vocabulary(torch.ones(2, 64), torch.arange(2), ["cat", "dog"])
    with pytest.raises(ValueError, match="64 wide.*output 32.*same CLIP model"):
        Segmenter(DenseEncoder(toy_clip().visual), other)


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("predict", (None,), "pixels must be a .*; got NoneType"),
        ("logits", (5,), "pixels must be a .*; got int"),
        ("logits", (torch.zeros(1, 3, 48, 48),), "upsample must be True or False; got 'no'"),
        ("predict", (torch.zeros(1, 3, 0, 9),), r"at least one row and column; got \(3, 0, 9\)"),
        ("predict_many", (["a"], [(9, 9)]), "each image of pixels must be .*; got str"),
        ("predict_many", ([torch.zeros(3, 9, 9)], []), "sizes must be one .* of 1 images; got 0"),
        ("predict_many", ([torch.zeros(3, 9, 9)], [9]), r"each of sizes must be \(height, width"),
        ("segment", (5,), "expected a path.*got builtins.int"),
        ("prepare", (None,), "expected a path.*got builtins.NoneType"),
        ("with_encoder", ("clip",), "encoder must be a DenseEncoder; got 'clip'"),
    ],
)
def test_arguments_of_another_type(method: str, arguments: Any, message: str) -> None:
    more: dict[str, Any] = {"upsample": "no"} if "upsample" in message else {}
    with pytest.raises((TypeError, ValueError), match=message):
        getattr(make(), method)(*arguments, **more)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": None}, "images must be a list.*; got None"),
        ({"images": "a.png"}, "images must be a list.*; got 'a.png'"),
        ({"images": [], "max_pixels": "many"}, "max_pixels must be an integer; got 'many'"),
        ({"images": [], "return_errors": 1}, "return_errors must be True or False; got 1"),
    ],
)
def test_arguments_of_many_images(arguments: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        list(make().segment_many(**arguments))


def test_the_encoder_and_the_classes_have_their_types() -> None:
    words = Vocabulary(torch.ones(1, 32), torch.tensor([0]), ["cat"])
    with pytest.raises(TypeError, match="encoder must be a DenseEncoder; got None"):
        Segmenter(None, words)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="vocabulary must be a Vocabulary; got \\['cat'\\]"):
        Segmenter(DenseEncoder(toy_clip().visual), ["cat"])  # type: ignore[arg-type]


def test_many_images_come_in_order_with_errors_in_their_position(tmp_path: Path) -> None:
    images: list[Any] = [random_image(40 + number, 60, number) for number in range(7)]
    (tmp_path / "bad.png").write_bytes(b"no image")
    images.insert(3, tmp_path / "bad.png")
    segmenter = make(batch_size=5)
    results = list(segmenter.segment_many(iter(images), return_errors=True))
    assert isinstance(results[3], ImageError)
    for image, result in zip(images[:3] + images[4:], results[:3] + results[4:], strict=True):
        assert isinstance(result, Segmentation)
        assert np.array_equal(result.image, image)
        assert np.array_equal(result.labels, segmenter.segment(image).labels)
    stream = segmenter.segment_many(images)
    assert [next(stream).labels.shape[0] for _ in range(3)] == [40, 41, 42]
    with pytest.raises(ImageError, match="bad.png"):
        next(stream)


def test_many_images_are_read_as_they_are_needed() -> None:
    """No more than threads and batches need, of a source without an end."""
    taken = []

    def endless() -> Iterator[np.ndarray]:
        for number in itertools.count():
            taken.append(number)
            yield random_image(40, 60, number)

    stream = make(batch_size=4).segment_many(endless())
    for number in range(12):
        next(stream)
        assert len(taken) <= number + 2 * READERS + 4
    stream.close()


@pytest.mark.parametrize("kind", ["array", "tensor", "image", "file"])
def test_a_buffer_may_hold_the_next_image_already(kind: str) -> None:
    """As a camera's does, an array on shared memory, the frames of a PIL image, or files one after another."""
    frames = np.random.default_rng(2).integers(0, 256, (9, 40, 50, 3), dtype=np.uint8)
    buffer = np.empty_like(frames[0])
    moving = Image.new("RGB", (50, 40))
    file = io.BytesIO()
    shared = torch.from_numpy(buffer).permute(2, 0, 1)
    buffers = {"array": buffer, "tensor": shared, "image": moving, "file": file}

    def camera() -> Iterator[Any]:
        for frame in frames:
            buffer[:] = frame
            moving.paste(Image.fromarray(frame))
            file.seek(0)
            moving.save(file, "PPM")
            file.seek(0)
            yield buffers[kind]

    segmenter = make()
    for result, frame in zip(segmenter.segment_many(camera()), frames, strict=True):
        np.testing.assert_array_equal(result.image, frame)
        np.testing.assert_array_equal(result.labels, segmenter.segment(frame.copy()).labels)
    kept = segmenter.segment(buffer)
    buffer[:] = 0
    np.testing.assert_array_equal(kept.image, frames[-1])


def test_large_images_can_be_refused() -> None:
    image = Image.fromarray(random_image(40, 60))
    with pytest.raises(ImageError, match="at most 2,399 pixels, got 2,400"):
        list(make().segment_many([image], max_pixels=2399))


def mixed(**arguments: Any) -> Segmenter:
    encoder = {"rcs": RCS(), "overview": Overview(weight=0.5)}
    return toy_segmenter(encoder, **{"short_side": 0, **arguments})


def test_windows_with_an_overview_see_the_whole_image() -> None:
    """Pixels outside a window change its probabilities; without an overview they do not."""
    image = random_image(64, 64, 1)
    other = image.copy()
    other[:, 32:] = 255 - other[:, 32:]
    for make_one, same in ((mixed, False), (make, True)):
        segmenter = make_one(window=32, stride=32, short_side=0)
        left = [segmenter.segment(one).probabilities[:, :32] for one in (image, other)]
        assert np.array_equal(*left) is same
    assert mixed().settings["overview"] == {"weight": 0.5, "side": 0}
    assert "overview" not in make().settings


def test_an_overview_does_not_depend_on_the_batch() -> None:
    images = [
        random_image(*size, number) for number, size in enumerate([(64, 40), (40, 64), (50, 50)])
    ]
    together = mixed(pad_batches=True, batch_size=7).segment(images)
    for image, shared in zip(images, together, strict=True):
        alone = mixed(pad_batches=True, batch_size=7).segment(image)
        assert np.array_equal(alone.probabilities, shared.probabilities)


def test_an_overview_of_the_whole_image_at_once_is_refused() -> None:
    with pytest.raises(ValueError, match="window=0 is the whole image"):
        mixed(window=0)


def test_a_window_that_does_not_fit_into_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resclip.inference.batch_size.free_memory", lambda device: 1 << 20)
    with pytest.raises(ValueError, match="one window of 32 × 32 pixels with 4 queries needs about"):
        make().segment(random_image(48, 48))
    monkeypatch.setattr("resclip.inference.batch_size.free_memory", lambda device: 1 << 34)
    make(max_memory=1 << 34).segment(random_image(48, 48))


def test_settings_say_what_decides_a_result() -> None:
    segmenter = make(refine_iterations=3, pad_multiple=16, source={"model": "toy"})
    settings = segmenter.settings
    assert (settings["model"], settings["base"], settings["device"]) == ("toy", "naclip", "cpu")
    for name in ("window", "stride", "refine_iterations", "pad_multiple"):
        assert settings[name] == getattr(segmenter.pipeline, name)
    for name in ("short_side", "long_side"):
        assert settings[name] == getattr(segmenter.preparation, name)
    assert segmenter.segment(random_image(8, 8)).settings == settings


def test_a_class_alone_is_refused() -> None:
    """Every pixel would be it."""
    one = Vocabulary.from_names(["cat, kitten"], toy_clip(), toy_tokenizer, templates=["{}"])
    with pytest.raises(ValueError, match="two classes .*'cat' alone.*--background voc21"):
        Segmenter(make().encoder, one)


def test_kernels_that_cannot_run_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="'triton' cannot run: the kernels need a CUDA"):
        toy_segmenter({"implementation": "triton"})


def test_too_little_memory_is_said_before_the_first_image() -> None:
    with pytest.raises(ValueError, match="one window of 32 × 32 pixels .* 1.0 KiB allowed"):
        make(max_memory=1024)


def test_images_of_too_many_windows_are_refused_and_of_many_told() -> None:
    segmenter = make(short_side=0, stride=2, max_windows=5_000)
    with pytest.raises(
        ValueError, match=r"takes 47,089 windows .* every 2; 5,000 are allowed: .* max_windows="
    ):
        segmenter.segment(random_image(464, 464))
    task = partial(ImageTask, segmenter.pipeline, torch.zeros(3, 130, 120), (130, 120))
    with pytest.warns(ManyWindowsWarning, match=r"takes 2,250 windows .*every 16 pixels .* be 56"):
        task()
    with warnings.catch_warnings():
        # It is said once.
        warnings.simplefilter("error")
        task()
    # An image of four gigapixels passes.
    usual = make(window=224, stride=112).pipeline
    assert usual.check_work(1 << 16, 1 << 16) is None
    assert "in" in str(usual.check_work(1 << 18, 1 << 18))
