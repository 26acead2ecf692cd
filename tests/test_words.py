"""Other words on a model that is loaded: nothing is encoded twice, and nothing of the images changes."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toys import random_image, toy_clip, toy_segmenter, toy_tokenizer

from resclip import RCS, SFR, Segmenter, TextCache, Vocabulary, load
from resclip.text.vocabulary import NameEncoder


def encoder(**options: Any) -> NameEncoder:
    return NameEncoder(copy.deepcopy(toy_clip()), toy_tokenizer, templates=["{}"], **options)


def segmenter(**arguments: Any) -> Segmenter:
    return toy_segmenter({"rcs": RCS()}, name_encoder=encoder(), **arguments)


def same(one: Any, other: Any) -> bool:
    return bool(
        np.array_equal(one.labels, other.labels)
        and np.array_equal(one.probabilities, other.probabilities)
    )


def test_other_words_give_what_a_segmenter_of_them_gives() -> None:
    image = random_image(50, 70)
    own = segmenter()
    other = own.with_classes("sun, light; sky; road")
    assert other.classes == ("sun", "sky", "road")
    assert own.classes == ("cat", "dog", "grass")
    vocabulary = Vocabulary.from_names(
        ["sun, light", "sky", "road"], toy_clip(), toy_tokenizer, templates=["{}"]
    )
    fresh = Segmenter(own.encoder, vocabulary, window=32, stride=16, short_side=48)
    assert same(other.segment(image), fresh.segment(image))
    assert same(own.with_classes(vocabulary).segment(image), fresh.segment(image))
    own.classes = "sun, light; sky; road"
    assert same(own.segment(image), fresh.segment(image))


def test_classes_are_written_as_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("cat, kitten\ndog\n")
    own = segmenter()
    assert own.with_classes("cat, dog").classes == ("cat", "dog")
    assert own.with_classes(path).classes == ("cat", "dog")
    assert own.with_classes(str(path)).classes == ("cat", "dog")
    assert own.with_classes("@cityscapes").classes[0] == "road"
    with_background = own.with_classes("cat; dog", background="voc21")
    assert with_background.classes == ("background", "cat", "dog")
    loaded = load(
        toy_clip(), classes="cat; dog", background="coco-object", templates=["{}"], cache=False,
        tokenizer=toy_tokenizer, window=32,
    )  # fmt: skip
    assert loaded.classes == ("background", "cat", "dog")


def test_a_name_is_encoded_once_by_memory_and_by_disk(tmp_path: Path) -> None:
    counted: list[int] = []

    def counting(own: NameEncoder) -> NameEncoder:
        encode = own.clip_model.encode_text

        def spy(tokens: Tensor, *others: Any) -> Any:
            counted.append(len(tokens))
            return encode(tokens, *others)

        own.clip_model.encode_text = spy
        return own

    cache = TextCache(tmp_path)
    first = counting(encoder(cache=cache))
    rows = first.encode("cat; dog").embeddings
    counted.clear()
    assert torch.equal(first.encode("dog; cat").embeddings, rows[[1, 0]])
    assert not counted
    again = encoder(cache=cache)
    again.encode("cat; dog")
    before = {path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    again.encode("cat; dog")
    assert before == {path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}


def test_a_changed_model_is_asked_again() -> None:
    own = encoder()
    before = own.encode("cat; dog").embeddings
    with torch.no_grad():
        own.clip_model.text_projection.mul_(-1)
    torch.testing.assert_close(own.encode("cat; dog").embeddings, -before)
    copied = pickle.loads(pickle.dumps(own))
    assert torch.equal(copied.encode("cat; dog").embeddings, own.encode("cat; dog").embeddings)


@pytest.mark.parametrize("sfr", (None, SFR(refine_iterations=1)), ids=("without SFR", "with SFR"))
def test_each_image_may_have_its_own_words(sfr: SFR | None) -> None:
    """Windows share batches as far as words are the same; a batch changes nothing."""
    own = toy_segmenter({"rcs": RCS(), "sfr": sfr}, name_encoder=encoder())
    images = [random_image(40, 60, seed) for seed in range(4)]
    words = ["sun; sky", "sky; road; cat", "sun; sky", ["dog", "cat, kitten"]]
    results = list(own.segment_many(images, classes=words))
    assert [result.names for result in results] == [
        ("sun", "sky"), ("sky", "road", "cat"), ("sun", "sky"), ("dog", "cat"),
    ]  # fmt: skip
    for image, text, result in zip(images, words, results, strict=True):
        alone = own.with_classes(text).segment(image)
        assert (result.labels == alone.labels).mean() > 0.999
        np.testing.assert_allclose(result.probabilities, alone.probabilities, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sun; sky"], "classes must have an entry for each image; got 1 for more images"),
        (["a; b"] * 3, "got more than 2 for 2 images"),
        ("sun; sky", "classes must be a list with the classes of each image"),
        (["sun; sky", "sun"], "expected at least two classes to tell apart"),
        (["sun; sky", 5], "expected a list of class names"),
    ],
)
def test_words_that_do_not_fit_the_images(words: Any, message: str) -> None:
    images = [random_image(20, 20, seed) for seed in range(2)]
    with pytest.raises((ValueError, TypeError), match=message):
        list(segmenter().segment_many(images, classes=words))


def test_results_on_their_way_keep_their_words() -> None:
    own = segmenter()
    results = own.segment_many([random_image(20, 30, seed) for seed in range(3)])
    first = next(results)
    own.classes = "sun; sky"
    assert {result.names for result in (first, *results)} == {("cat", "dog", "grass")}
    words = (
        Vocabulary(torch.eye(2 + n, 32), torch.arange(2 + n), tuple("abcd"[: 2 + n]))
        for n in (0, 1, 2)
    )
    images = [random_image(20, 30, seed) for seed in range(3)]
    found = [len(result.names) for result in own.segment_many(images, classes=words)]
    assert found == [2, 3, 4]


def test_words_that_cannot_be_encoded() -> None:
    with pytest.raises(ValueError, match="this segmenter has no text side"):
        toy_segmenter().with_classes("sun; sky")
    own = segmenter(threshold={"cat": 0.5})
    with pytest.raises(ValueError, match="threshold names 'cat', which is no class here"):
        own.with_classes("sun; sky")
    wide = Vocabulary(torch.eye(8), torch.arange(8), tuple("abcdefgh"))
    with pytest.raises(ValueError, match="embeddings are 8 wide"):
        own.with_classes(wide)
    with pytest.raises(ValueError, match="a Vocabulary has been encoded"):
        own.with_classes(wide, background="voc21")


def test_several_images_come_in_any_iterable() -> None:
    own = segmenter()
    images = [random_image(20, 30, seed) for seed in range(2)]
    for given in (tuple(images), iter(images), dict(zip("ab", images, strict=True)).values()):
        found = own.segment(given)
        assert isinstance(found, list)
        assert len(found) == 2


def test_a_segmenter_says_what_it_is_and_moves() -> None:
    own = segmenter()
    assert repr(own) == (
        "Segmenter(a model of yours, naclip, 3 classes: cat, dog, grass; windows of 32 every 16 pixels; cpu, float32)"
    )
    before = own.segment(random_image(20, 30))
    assert own.to("cpu") is own
    assert same(own.segment(random_image(20, 30)), before)
    for device in ("meta", "toaster"):
        with pytest.raises(ValueError, match=f"device '{device}' cannot be used"):
            own.to(device)
