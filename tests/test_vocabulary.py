"""Class names to text features."""

from __future__ import annotations

import re
import time
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import toy_clip, toy_tokenizer

from resclip import Vocabulary
from resclip.errors import CutTextWarning
from resclip.text.class_names import parse_entries
from resclip.text.embedding_cache import PROBES, TextCache
from resclip.text.prompt_encoder import SAMPLES
from resclip.text.templates import find_templates
from resclip.text.vocabulary import CheckedTokenizer, check_lengths

TEMPLATES = ("a photo of a {}.", "{}")


def make(classes: list[str], **arguments) -> Vocabulary:
    return Vocabulary.from_names(
        classes, toy_clip(), toy_tokenizer, **{"templates": TEMPLATES, **arguments}
    )


class Counter:
    """The toy's tokenizer, keeping the prompts that it was given, but for those that look at the model."""

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def __call__(self, prompts: list[str]) -> torch.Tensor:
        if prompts not in (list(PROBES), list(SAMPLES)):
            self.prompts += prompts
        return toy_tokenizer(prompts)

    def make(self, classes: Sequence[str], **arguments: Any) -> Vocabulary:
        return Vocabulary.from_names(
            classes, toy_clip(), self, **{"templates": "name", **arguments}
        )


def test_synonyms_are_queries_of_one_class() -> None:
    vocabulary = make(["cat, kitten", "dog"])
    assert vocabulary.names == ("cat", "dog")
    assert vocabulary.query_to_class.tolist() == [0, 0, 1]
    assert vocabulary.embeddings.shape == (3, 32)
    assert torch.allclose(vocabulary.embeddings.norm(dim=1), torch.ones(3), atol=1e-6)
    assert len(vocabulary) == 2


def test_an_embedding_is_the_unit_mean_of_unit_prompts() -> None:
    prompts = ["a photo of a dog.", "dog"]
    with torch.no_grad():
        features = torch.nn.functional.normalize(
            toy_clip().encode_text(toy_tokenizer(prompts)), dim=-1
        )
    expected = torch.nn.functional.normalize(features.mean(dim=0), dim=0)
    assert torch.allclose(make(["cat", "dog"]).embeddings[1], expected, atol=1e-5)


def test_a_name_may_differ_from_the_queries() -> None:
    vocabulary = make(["background: sky, wall", "cat"])
    assert vocabulary.names == ("background", "cat")
    assert vocabulary.query_to_class.tolist() == [0, 0, 1]
    assert torch.equal(vocabulary.embeddings, make(["sky", "wall", "cat"]).embeddings)


def test_many_templates_run_in_several_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make(["cat", "dog"], templates="short").embeddings
    monkeypatch.setattr(
        "resclip.text.prompt_encoder.PROMPTS_PER_CALL", 3
    )  # 7 templates: 3, 3 and 1.
    assert torch.allclose(make(["cat", "dog"], templates="short").embeddings, whole, atol=1e-6)


@pytest.mark.parametrize("templates", ["name", "short"])
def test_an_embedding_does_not_depend_on_the_other_names(templates: str) -> None:
    """Bit for bit, with the built-in model: most rows differ where its text tower runs 5 single prompts at once."""
    from resclip.builtin import load_builtin
    from resclip.builtin.scenes import CLASS_NAMES

    model, tokenizer, _, _ = load_builtin()

    def embeddings(names: Sequence[str]) -> torch.Tensor:
        return Vocabulary.from_names(names, model, tokenizer, templates=templates).embeddings

    together = embeddings(CLASS_NAMES)
    assert torch.equal(embeddings(CLASS_NAMES[::-1]).flip(0), together)
    for number in range(0, len(CLASS_NAMES), 7):
        assert torch.equal(embeddings(CLASS_NAMES[number : number + 1])[0], together[number])


def test_a_cached_embedding_is_the_fresh_one_bit_for_bit(tmp_path: Path) -> None:
    cache = TextCache(tmp_path)
    fresh = make(["cat, kitten", "dog", "{}", "猫"])
    assert fresh.names == ("cat", "dog", "{}", "猫")
    make(["dog"], cache=cache)  # One of them beforehand, by itself.
    for _ in range(2):
        cached = make(["cat, kitten", "dog", "{}", "猫"], cache=cache)
        assert torch.equal(cached.embeddings, fresh.embeddings)
        assert cached.embeddings.dtype == torch.float32
        assert cached.names == fresh.names
        assert torch.equal(cached.query_to_class, fresh.query_to_class)


def test_only_new_names_are_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resclip.text.vocabulary.check_lengths", lambda *_: None)
    counter, cache = Counter(), TextCache(tmp_path)
    counter.make(["cat", "wall, bed", "bed"], cache=cache)
    assert counter.prompts == ["cat", "wall", "bed"]  # A query of two classes is encoded once.
    counter.make(["dog", "feline: cat", "bed"], cache=cache)
    assert counter.prompts[3:] == ["dog"]
    counter.make(["cat"], templates="plain", cache=cache)
    assert counter.prompts[4:] == ["a photo of a cat."]
    counter.make(["cat", "dog"])
    assert counter.prompts[5:] == ["cat", "dog"]


def test_an_interrupted_run_keeps_what_it_had(tmp_path: Path) -> None:
    class Interrupted(Counter):
        def __call__(self, prompts: list[str]) -> torch.Tensor:
            if prompts == ["bird"]:
                raise KeyboardInterrupt
            return super().__call__(prompts)

    cache = TextCache(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        Interrupted().make(["cat", "dog", "bird"], cache=cache)
    counter = Counter()
    counter.make(["cat", "dog", "bird"], cache=cache)
    assert counter.prompts == ["bird"]


def test_the_bar_moves_with_every_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After many quick names from the cache, too; and it says how much time remains."""

    class Slow(Counter):
        def __call__(self, prompts: list[str]) -> torch.Tensor:
            time.sleep(0.15)  # tqdm draws ten times a second.
            return super().__call__(prompts)

    cache = TextCache(tmp_path)
    stored, new = [f"name {number}" for number in range(50)], ["cat", "dog", "bird"]
    Counter().make(stored, cache=cache)
    assert capsys.readouterr().err == ""
    Slow().make([*stored, *new], cache=cache, progress=True)
    drawn = capsys.readouterr().err
    for count in (51, 52, 53):
        assert re.search(rf"class names: .*{count}/53 \[\d\d:\d\d<\d\d:\d\d", drawn), drawn


def test_templates_by_name_are_those_of_the_set() -> None:
    for given, name in (("short", "short"), (None, "imagenet")):
        found = make(["cat"], templates=given).embeddings
        assert torch.equal(found, make(["cat"], templates=find_templates(name)).embeddings)


@pytest.mark.parametrize(
    ("classes", "arguments", "message"),
    [
        ([], {}, "class"),
        (["cat", "Cat "], {}, "(?i)cat"),
        (["cat", ""], {}, "class 2"),
        (["cat"], {"templates": ["a photo"]}, "'a photo' has no '{}'"),
        (["cat"], {"templates": 5}, "templates must be a set's name.*got 5"),
        (["cat"], {"cache": "folder"}, "cache must be a TextCache or None; got 'folder'"),
        (["cat"], {"progress": "yes"}, "progress must be True or False; got 'yes'"),
        (None, {}, "expected a list of class names, got None"),
    ],
)
def test_wrong_names_are_named(classes, arguments, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make(classes, **arguments)


@pytest.mark.parametrize(
    ("embeddings", "query_to_class", "names", "message"),
    [
        (torch.zeros(2, 3, 4), [0, 1], ["a", "b"], r"floating \(Q, E\)"),
        (torch.zeros(2, 4).long(), [0, 1], ["a", "b"], "floating"),
        (torch.zeros(2, 4), [0], ["a"], "one class for each of the 2"),
        (torch.zeros(2, 4), [0, 2], ["a", "b"], "each of the 2 classes"),
        ([[0.0]], [0], ["a"], r"embeddings must be a floating \(Q, E\) tensor"),
        (torch.zeros(2, 4), [0.0, 1.5], ["a", "b"], r"query_to_class must be integers.*got \[0.0"),
        (torch.zeros(2, 4), None, ["a", "b"], "query_to_class must be integers.*got None"),
        (torch.zeros(2, 4), [0, 1], "ab", "names must be a list of texts.*got 'ab'"),
        (torch.zeros(2, 4), [0, 1], ["a", 2], "each of names must be a text; got 2"),
    ],
)
def test_a_vocabulary_is_checked_when_made(embeddings, query_to_class, names, message) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Vocabulary(embeddings, query_to_class, names)


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        ("ViT-B-16", "tokenizer must be a function of a list of prompts; got 'ViT-B-16'"),
        (lambda prompts: None, r"must return a tensor \(N, context\) of token ids; got None"),
        (lambda prompts: toy_tokenizer(prompts).tolist(), "must return a tensor.*; got list"),
        (lambda prompts: toy_tokenizer(prompts).float(), "token ids in int64; got torch.float32"),
        (lambda prompts: toy_tokenizer(prompts)[:1], r"\(2, 16\).* 2 prompts; got \(1, 16\)"),
        (lambda prompts: toy_tokenizer(prompts * 2), r"2 prompts; got \(4, 16\)"),
        (lambda prompts: toy_tokenizer(prompts)[:, :9], r"2 prompts; got \(2, 9\)"),
        (lambda prompts: toy_tokenizer(prompts).repeat(1, 2), r"2 prompts; got \(2, 32\)"),
        (lambda prompts: toy_tokenizer(prompts)[0], r"2 prompts; got \(16,\)"),
        (lambda prompts: toy_tokenizer(prompts) + 9999, "from 0 to 49407, .*; got 9999 to 59406"),
        (lambda prompts: toy_tokenizer(prompts) - 1, "got -1 to 49406"),
    ],
)
def test_token_ids_that_the_model_does_not_take(tokenizer: Any, message: str) -> None:
    """One row too few or too many would give every name the embedding of others."""
    with pytest.raises((TypeError, ValueError), match=message):
        Vocabulary.from_names(["cat", "dog"], toy_clip(), tokenizer, templates=TEMPLATES)


def test_token_ids_in_32_bits_do() -> None:
    """OpenAI's clip.tokenize returns them."""
    narrow = Vocabulary.from_names(
        ["cat"], toy_clip(), lambda prompts: toy_tokenizer(prompts).int(), templates=TEMPLATES
    )
    assert torch.equal(narrow.embeddings, make(["cat"]).embeddings)


def test_a_tower_alone_has_no_text_side() -> None:
    with pytest.raises(TypeError, match="clip_model must be a CLIP model with encode_text; got"):
        Vocabulary.from_names(["cat"], toy_clip().visual, toy_tokenizer)


class LetterTokenizer:
    """A token a word, 12 of them between start and end."""

    def __call__(self, prompts: list[str]) -> Tensor:
        rows = torch.zeros(len(prompts), 14, dtype=torch.int64)
        for row, prompt in zip(rows, prompts, strict=True):
            ids = [1, *(3 + zlib.crc32(word.encode()) % 90 for word in prompt.split()[:12]), 2]
            row[: len(ids)] = torch.tensor(ids)
        return rows


def test_names_longer_than_the_model_reads() -> None:
    tokenizer = CheckedTokenizer(LetterTokenizer(), None)
    templates = ("{}", "a photo of a {} .")
    long = " ".join(f"w{number}" for number in range(20))
    with pytest.warns(CutTextWarning, match="reads 14 tokens, so the end of 'w0 w1 .* is cut"):
        check_lengths(parse_entries(["sky", long]), tokenizer, templates)
    with pytest.raises(ValueError, match="classes 'first' and 'second' are the same .* shorten"):
        check_lengths(
            parse_entries([f"first: {long} a", f"second: sky, {long} b"]), tokenizer, templates
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_lengths(parse_entries(["sky", "a rather long name"]), tokenizer, templates)
