"""Class names to text features."""

from __future__ import annotations

import pytest
import torch
from toys import toy_clip, toy_tokenizer

from resclip import Vocabulary
from resclip.backbone import imagenet_templates

TEMPLATES = ("a photo of a {}.", "{}")


def make(classes: list[str], **arguments) -> Vocabulary:
    return Vocabulary.from_names(
        classes, toy_clip(), toy_tokenizer, **{"templates": TEMPLATES, **arguments}
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


def test_batches_of_prompts_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"thing number {number}" for number in range(9)]
    whole = make(names).embeddings
    monkeypatch.setattr("resclip.vocabulary.PROMPTS_PER_BATCH", 4)
    assert torch.allclose(make(names).embeddings, whole, atol=1e-5)


def test_names_may_hold_braces_and_any_script() -> None:
    vocabulary = make(["{}", "猫", "собака", "كلب"])
    assert vocabulary.names == ("{}", "猫", "собака", "كلب")
    assert torch.isfinite(vocabulary.embeddings).all()


def test_default_templates_are_clips_eighty() -> None:
    templates = imagenet_templates()
    assert len(templates) == 80
    assert all("{}" in template for template in templates)
    assert make(["cat"], templates=None).embeddings.shape == (1, 32)


@pytest.mark.parametrize(
    ("classes", "arguments", "message"),
    [
        ([], {}, "class"),
        (["cat", "Cat "], {}, "(?i)cat"),
        (["cat", ""], {}, "expected a class name"),
        (["cat"], {"templates": ["a photo"]}, "'a photo' has no '{}'"),
        (["cat"], {"templates": []}, "at least one"),
    ],
)
def test_wrong_names_are_named(classes, arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(classes, **arguments)


@pytest.mark.parametrize(
    ("embeddings", "query_to_class", "names", "message"),
    [
        (torch.zeros(2, 3, 4), [0, 1], ["a", "b"], r"floating \(Q, E\)"),
        (torch.zeros(2, 4).long(), [0, 1], ["a", "b"], "floating"),
        (torch.zeros(2, 4), [0], ["a"], "one class for each of the 2"),
        (torch.zeros(2, 4), [0, 0], ["a", "b"], "each of the 2 classes"),
        (torch.zeros(2, 4), [0, 2], ["a", "b"], "each of the 2 classes"),
    ],
)
def test_a_vocabulary_is_checked_when_made(embeddings, query_to_class, names, message) -> None:
    with pytest.raises(ValueError, match=message):
        Vocabulary(embeddings, torch.tensor(query_to_class), names)
