"""GroupViT and CLIPSeg by models of transformers: small random ones, compared with the models' own calls."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from resclip.errors import WeightsUnavailable
from resclip.predictors import PredictorSegmenter
from resclip.predictors.clipseg import ClipSeg
from resclip.predictors.groupvit import GroupViT
from resclip.text.class_names import ClassEntry, parse_entries

transformers = pytest.importorskip("transformers")

CONTEXT, TOKENS = 16, 99
TEXT = {
    "vocab_size": TOKENS,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 97,
    "eos_token_id": 98,
    "pad_token_id": 98,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
ENTRIES = parse_entries(["cat, kitten", "dog", "grass", "sky", "house", "tree", "car"])


def randomised(kind: Any, config: Any) -> Any:
    """In eval mode, with weights so large that nothing is uniform, and statistics of batch norms."""
    generator = torch.Generator().manual_seed(11)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(11)
        model = kind(config)
        for name, parameter in model.named_parameters():
            if name != "logit_scale":
                parameter.add_(0.4 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.2)
    return model.eval()


@functools.cache
def groupvit() -> Any:
    """Three stages of one block, on 4 × 4 patches: 6 groups, then 4."""
    stages = {"depths": [1, 1, 1], "num_hidden_layers": 3, "assign_mlp_ratio": [0.5, 4]}
    groups = {"num_group_tokens": [6, 4, 0], "num_output_groups": [6, 4, 0]}
    config = transformers.GroupViTConfig(
        text_config=TEXT,
        vision_config={**VISION, **stages, **groups},
        projection_dim=12,
        projection_intermediate_dim=20,
    )
    return randomised(transformers.GroupViTModel, config)


@functools.cache
def clipseg() -> Any:
    """Four blocks on 4 × 4 patches, of which three are read."""
    config = transformers.CLIPSegConfig(
        text_config=TEXT,
        vision_config={**VISION, "num_hidden_layers": 4},
        projection_dim=12,
        extract_layers=[0, 1, 3],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    return randomised(transformers.CLIPSegForImageSegmentation, config)


def tokenizer(prompts: list[str]) -> Tensor:
    """The letters as ids, then the end."""
    ids = torch.full((len(prompts), CONTEXT), 98)
    for row, prompt in zip(ids, prompts, strict=True):
        letters = [ord(letter) % 90 for letter in prompt.removeprefix("a photo of a ")][:14]
        row[: len(letters)] = torch.tensor(letters)
    return ids


def group_predictor(**options: Any) -> GroupViT:
    return GroupViT(model=groupvit(), tokenizer=tokenizer, **options)


def pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ids(entries: list[ClassEntry]) -> Tensor:
    return tokenizer([f"a photo of a {entry.queries[0]}." for entry in entries])


# GroupViT


@torch.no_grad()
def test_the_ports_rule_is_what_the_port_computes() -> None:
    predictor, images = group_predictor(rule="hugging-face"), pixels(3, 3, 32, 32)
    scores = predictor.scores(images, predictor.prepare(ENTRIES))
    expected = groupvit()(
        input_ids=ids(ENTRIES), pixel_values=images, output_segmentation=True
    ).segmentation_logits
    assert scores.shape == expected.shape
    assert (scores - expected).abs().max() <= 1e-5 * expected.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("size", [(48, 48), (16, 64), (40, 24), (8, 8)])
def test_windows_of_any_size(size: tuple[int, int]) -> None:
    """As a model whose position table is resized beforehand; 16 × 64 has as many patches as the trained grid."""
    images, grid = pixels(2, 3, *size), (size[0] // 8, size[1] // 8)
    resized = copy.deepcopy(groupvit())
    embeddings = resized.vision_model.embeddings
    table = embeddings.position_embeddings.data.unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    table = F.interpolate(table, grid, mode="bicubic").flatten(2).transpose(1, 2)
    tokens = embeddings.patch_embeddings(images, interpolate_pos_encoding=True)
    embedded = embeddings.layernorm(tokens) + table
    resized.vision_model.embeddings.forward = lambda *_, **__: embedded
    expected = resized(
        input_ids=ids(ENTRIES), pixel_values=images, output_segmentation=True
    ).segmentation_logits
    predictor = group_predictor(rule="hugging-face")
    scores = predictor.scores(images, predictor.prepare(ENTRIES))
    # What the port returns is resized to the same pixels by itself.
    assert scores.shape == expected.shape
    assert (scores - expected).abs().max() <= 1e-5 * expected.abs().max()


@torch.no_grad()
def test_what_lies_behind_the_last_whole_patch_is_not_seen_and_images_are_apart() -> None:
    predictor, images = group_predictor(), pixels(2, 3, 35, 45)
    state = predictor.prepare(ENTRIES)
    scores = predictor.scores(images, state)
    assert scores.shape == (2, 8, 35, 45)
    other = images.clone()
    other[:, :, 32:] = 9.0
    other[:, :, :, 40:] = 9.0
    assert torch.equal(predictor.scores(other, state), scores)
    for number in range(2):
        alone = predictor.scores(images[number : number + 1], state)[0]
        assert torch.allclose(alone, scores[number], atol=1e-6)


def test_the_thresholds_are_the_datasets() -> None:
    names = ("voc21", "context60", "coco-object", None)
    found = [group_predictor(dataset=name).threshold for name in names]
    assert found == [0.95, 0.35, 0.95, 0.95]
    assert group_predictor(dataset="context60", threshold=0.5).options["threshold"] == 0.5
    soft = group_predictor(rule="hugging-face", dataset="voc21")
    assert (soft.threshold, soft.settings.background) == (None, None)
    with pytest.raises(ValueError, match="threshold is of rule='original'"):
        group_predictor(rule="hugging-face", threshold=0.5)
    with pytest.raises(ValueError, match="rule must be one of 'original', 'hugging-face'"):
        group_predictor(rule="soft")


def test_images_are_labelled_by_groups() -> None:
    """At 1 all but the surest group are background, at 0 none is; synonyms are not asked for."""
    classes = ["background: sky, wall", "cat, kitten", "dog"]
    image = [pixels(3, 40, 56)]
    labels = {}
    for threshold in (0.0, 1.0):
        segmenter = PredictorSegmenter(
            group_predictor(threshold=threshold), classes, window=32, stride=16
        )
        labels[threshold] = segmenter.predict_many(image, [(80, 112)])[0][0]
        assert segmenter.settings["predictor"]["threshold"] == threshold
    assert set(labels[0.0].unique().tolist()) <= {1, 2}
    assert 0 in labels[1.0].unique()
    one, other = (
        group_predictor().prepare(parse_entries([text, "dog"])) for text in ("cat, kitten", "cat")
    )
    assert torch.equal(one, other)


# CLIPSeg


@torch.no_grad()
@pytest.mark.parametrize("side", [32, 48])
def test_clipsegs_masks_are_the_models_own(side: int) -> None:
    """More classes than the decoder takes at once."""
    predictor = ClipSeg(model=clipseg(), tokenizer=tokenizer)
    entries = parse_entries([f"thing {number}" for number in range(19)])
    images = pixels(2, 3, side, side)
    scores = predictor.scores(images, predictor.prepare(entries))
    assert scores.shape == (2, 19, side, side)
    for image, found in zip(images, scores, strict=True):
        expected = clipseg()(
            input_ids=ids(entries), pixel_values=image.expand(19, -1, -1, -1)
        ).logits
        assert torch.allclose(found, expected.sigmoid(), atol=1e-5)


@torch.no_grad()
def test_a_window_that_is_not_square_is_squashed() -> None:
    predictor = ClipSeg(model=clipseg(), tokenizer=tokenizer)
    state, wide = predictor.prepare(ENTRIES), pixels(1, 3, 24, 40)
    squashed = F.interpolate(wide, size=(32, 32), mode="bilinear")
    assert torch.equal(predictor.scores(wide, state), predictor.scores(squashed, state))


def test_clipsegs_background_is_a_constant() -> None:
    classes = ["background", "cat", "dog"]
    image = [pixels(3, 32, 48)]
    for background, wanted in ((0.0, {1, 2}), (1.0, {0})):
        predictor = ClipSeg(background=background, model=clipseg(), tokenizer=tokenizer)
        segmenter = PredictorSegmenter(predictor, classes)
        labels, _ = segmenter.predict_many(image, [(32, 48)])[0]
        assert set(labels.unique().tolist()) <= wanted
    assert ClipSeg(model=clipseg(), tokenizer=tokenizer).settings.background == 0.5


# Loading


def saved(model: Any, folder: Path) -> Path:
    """What save_pretrained writes, with a tokenizer of some words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {word: number for number, word in enumerate(["a", "photo", "of", "cat", "dog", "."])}
    words |= {"<bos>": 97, "<eos>": 98, "<unk>": 6}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        "<bos> $A <eos>", special_tokens=[("<bos>", 97), ("<eos>", 98)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<bos>", eos_token="<eos>", pad_token="<eos>"
    ).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("kind", "make"), [(GroupViT, groupvit), (ClipSeg, clipseg)])
def test_a_folder_is_loaded(kind: Any, make: Any, tmp_path: Path) -> None:
    folder = str(saved(make(), tmp_path))
    predictor = kind(folder)
    assert predictor.options["weights"] == folder
    classes = ["background", "cat", "dog"]
    segmenter = PredictorSegmenter(predictor, classes, window=32)
    labels, best = segmenter.predict_many([pixels(3, 32, 40)], [(30, 50)])[0]
    assert labels.shape == (30, 50)
    assert best.isfinite().all()
    # The same weights in memory, and the tokenizer's ids: text features are the same.
    twin = kind(model=make(), tokenizer=predictor.tokenizer)
    entries = parse_entries(["cat", "dog"])
    assert torch.equal(twin.prepare(entries), predictor.prepare(entries))


@pytest.mark.parametrize("kind", [GroupViT, ClipSeg])
def test_weights_that_cannot_be_had_are_told(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WeightsUnavailable, match="the folder must hold what save_pretrained"):
        kind(str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsUnavailable, match="check the name and the network"):
        kind()
    with pytest.raises(TypeError, match="weights must be the name of a repository"):
        kind(7)
    with pytest.raises(TypeError, match="model must be a .* of transformers; got Linear"):
        kind(model=torch.nn.Linear(1, 1), tokenizer=tokenizer)
    with pytest.raises(TypeError, match="tokenizer must be a function of a list of prompts"):
        kind(model=groupvit())


def test_weights_that_are_missing_are_told(tmp_path: Path) -> None:
    folder = saved(groupvit(), tmp_path)
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["text_projection.0.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsUnavailable, match="1 weights are missing, text_projection.0.weight"):
        GroupViT(str(folder))


def test_images_are_normalised_as_both_models_were_trained() -> None:
    for predictor in (group_predictor(), ClipSeg(model=clipseg(), tokenizer=tokenizer)):
        assert np.allclose(predictor.settings.mean, (0.485, 0.456, 0.406))
        assert np.allclose(predictor.settings.std, (0.229, 0.224, 0.225))
