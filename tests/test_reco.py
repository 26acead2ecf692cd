"""ReCo from a folder of reference pictures, by a small CLIP with random weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor
from toys import random_image, toy_clip

from resclip.predictors import PredictorSegmenter, reco
from resclip.predictors.base import IMAGENET_MEAN, IMAGENET_STD
from resclip.predictors.co_segmentation import co_segment
from resclip.predictors.reco import ReCo, middle
from resclip.text.class_names import parse_entries

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220)}
SIDE = 48


@pytest.fixture(autouse=True)
def _smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference pictures of 48 pixels, and 6 prompts a name in place of 85."""
    monkeypatch.setattr(reco, "SIDE", SIDE)
    monkeypatch.setattr(
        open_clip, "OPENAI_IMAGENET_TEMPLATES", open_clip.OPENAI_IMAGENET_TEMPLATES[:1]
    )


def small(references: Path, **options: Any) -> ReCo:
    return ReCo(references, model=toy_clip(), **options)


def draw(colour: tuple[int, ...], seed: int, size: tuple[int, int] = (60, 70)) -> np.ndarray:
    """A picture of noise with a square of the colour somewhere."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (*size, 1), dtype=np.uint8).repeat(3, axis=2)
    top, left = generator.integers(0, 20, 2)
    pixels[top : top + 32, left : left + 32] = colour
    return pixels


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures of each colour, a context, and what is no picture."""
    root = tmp_path_factory.mktemp("references")
    for name, colour in {**COLOURS, "Sky": (120, 180, 250)}.items():
        (root / name).mkdir()
        for number in range(4):
            Image.fromarray(draw(colour, number)).save(root / name / f"{number}.png")
        (root / name / "notes.txt").write_text("no picture")
    return root


def colours(pixels: Tensor) -> Tensor:
    """Features that tell colours apart and are 0 for grey: the mean colour of cells of 4 pixels."""
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
    cells = torch.nn.functional.avg_pool2d(pixels * std + mean, 4)
    return cells - cells.mean(dim=1, keepdim=True)


def test_colours_are_found_by_their_references(references: Path) -> None:
    predictor = small(references, features=colours, contexts=None, text_attention=False,
                      text_inference=False, released_slip=False)  # fmt: skip
    segmenter = PredictorSegmenter(
        predictor, ["red thing: red", "green", "blue"], short_side=0, window=0
    )
    image = np.zeros((48, 90, 3), np.uint8)
    for number, colour in enumerate(COLOURS.values()):
        image[:, 30 * number : 30 * number + 30] = colour
    pixels = segmenter.preparation.normalise(torch.tensor(image))
    ((labels, _),) = segmenter.predict_many([pixels], [(48, 90)])
    truth = torch.arange(3).repeat_interleave(30).expand(48, 90)
    assert (labels == truth).float().mean() > 0.9
    assert predictor.options["features"] == "colours"
    assert predictor.options["contexts"] == []


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "naclip+rcs"},
        {"method": "sclip+rcs+sfr"},
        {"text_attention": False},
        {"text_inference": False, "contexts": None},
        {"features": colours},
    ],
)
def test_what_can_be_chosen_runs_and_images_are_apart(
    references: Path, options: dict[str, Any]
) -> None:
    predictor = small(references, **{"features": "clip", **options})
    entries = parse_entries(["red", "green", "blue", "sky"])
    with torch.no_grad():
        state = predictor.prepare(entries)
        pixels = torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(1))
        scores = predictor.scores(pixels, state)
        assert scores.shape == (2, 4, 48, 64)
        assert 0 < scores.min() < scores.max() < 1
        assert torch.allclose(predictor.scores(pixels[1:], state)[0], scores[1], atol=1e-5)
    assert torch.allclose(state.references.norm(dim=1), torch.ones(4))
    used = predictor.options["contexts"]
    assert used == ([] if "contexts" in options else ["sky"])


@torch.no_grad()
def test_a_class_that_is_a_context_keeps_the_contexts_reference(references: Path) -> None:
    """It is computed without itself among what is left out."""
    predictor = small(references, features=colours, text_attention=False)
    state = predictor.prepare(parse_entries(["red", "sky"]))
    maps = [
        colours(batch)
        for batch in predictor.batches(sorted((references / "Sky").glob("*.png")), SIDE)
    ]
    assert torch.allclose(state.references[1], co_segment(torch.cat(maps)), atol=1e-6)
    without = small(references, features=colours, text_attention=False, contexts=None)
    other = without.prepare(parse_entries(["red", "sky"]))
    assert torch.allclose(other.references[1], state.references[1], atol=1e-6)


def test_of_too_many_pictures_those_nearest_to_the_name_are_taken(tmp_path: Path) -> None:
    """In the order of CLIP's cosines."""
    folder = tmp_path / "house"
    folder.mkdir()
    for number in range(4):
        Image.fromarray(random_image(40, 50, number)).save(folder / f"{number}.png")
    predictor = small(tmp_path, features="clip", pictures=2)
    paths = sorted(folder.glob("*.png"))
    with torch.no_grad():
        text = torch.randn(predictor.clip.visual.output_dim)
        side = predictor.clip.visual.trained_grid[0] * predictor.clip.visual.patch_size[0]
        batch = torch.cat(list(predictor.batches(paths, side)))
        features = predictor.clip.model.encode_image(predictor.for_clip(batch))
        cosines = torch.cosine_similarity(features, text[None])
        nearest = predictor.nearest(paths, text)
    assert nearest == [paths[number] for number in cosines.argsort(descending=True)[:2]]


def test_a_picture_is_cropped_to_its_middle() -> None:
    image = np.arange(20 * 40, dtype=np.int64).reshape(20, 40, 1).repeat(3, axis=2)
    crop = middle((image % 251).astype(np.uint8), 20)
    assert np.array_equal(crop, (image % 251)[:, 10:30])
    assert middle(np.zeros((7, 50, 3), np.uint8), 16).shape == (16, 16, 3)


def test_what_does_not_fit_is_refused(references: Path, tmp_path: Path) -> None:
    predictor = small(references, features="clip")
    with pytest.raises(
        ValueError, match="a folder 'yellow' .* its folders are blue, green, red, sky"
    ):
        predictor.prepare(parse_entries(["red", "yellow, gold"]))
    (tmp_path / "red").mkdir()
    empty = small(tmp_path, features="clip")
    with pytest.raises(ValueError, match=r"red: expected pictures \(.jpg.*got none"):
        empty.prepare(parse_entries(["red"]))
    wrong: Any
    for wrong, words in (
        ({"references": tmp_path / "nowhere"}, "references= must be a folder"),
        ({"features": 3}, 'features must be a timm name, "clip", or a function'),
        ({"features": "vit_nano"}, "unknown proxy 'vit_nano'"),
        ({"contexts": "sky"}, "contexts must be a list of names, or None"),
        ({"released_slip": 1}, "released_slip must be True or False"),
        ({"pictures": 0}, "pictures must be at least 1"),
        ({"method": "naclop"}, "unknown method 'naclop'"),
    ):
        with pytest.raises((ValueError, TypeError), match=re.escape(words)):
            small(**{"references": references, **wrong})
