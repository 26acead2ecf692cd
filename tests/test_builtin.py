"""The small built-in model: scenes, captions, mosaics, training, and the packaged weights."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from resclip import DenseEncoder
from resclip.builtin import TEMPLATES, directory, load_builtin
from resclip.builtin.scenes import (
    CLASS_NAMES,
    demo_scene,
    held_out_scenes,
    render_scene,
    training_scene,
    validation_scenes,
)
from resclip.builtin.things import CLASS_ID, DRAWN, GROUNDS, SKIES
from resclip.builtin.tokenizer import UNKNOWN, WordTokenizer
from resclip.builtin.training.batches import (
    Pool,
    cells_of_patches,
    draw_batch,
)
from resclip.builtin.training.captions import (
    caption,
    describes,
    every_word,
    phrases_of,
    sentence,
    visible_names,
)
from resclip.builtin.training.losses import any_true, each_true, share_loss, truth_table
from resclip.builtin.training.model import build, configuration, image_views, text_embeddings
from resclip.builtin.training.train import Settings, Trainer, main, run
from resclip.methods.presets import PRESETS

TINY = Settings(
    scenes=6, whole=2, mosaics=2, layers=2, width=64, size=32, warm_up=2, cells_to=4, things_from=3
)


@pytest.fixture(scope="module")
def pool() -> Pool:
    return Pool.draw(TINY.scenes, 64)


@pytest.fixture(scope="module")
def builtin():
    return load_builtin()


# Scenes


def test_a_seed_is_a_scene_for_good():
    scene = render_scene(7, 112)
    again = render_scene(7, 112)
    assert np.array_equal(scene.image, again.image)
    assert np.array_equal(scene.mask, again.mask)
    assert hashlib.sha256(scene.mask.tobytes()).hexdigest()[:16] == "01e0528314e58a7a"
    assert not np.array_equal(scene.mask, render_scene(8, 112).mask)


def test_the_same_scene_at_twice_the_size():
    for seed in (0, 5):
        small, large = render_scene(seed, 112), render_scene(seed, 224)
        assert small.plan == large.plan
        agreement = (small.mask == large.mask[::2, ::2]).mean()
        assert agreement > 0.97  # edges and thin stalks may fall on either side of a pixel's centre


def test_scenes_are_images_with_a_class_for_every_pixel():
    seen = set()
    for scene in validation_scenes(60, 48):
        assert scene.image.shape == (48, 48, 3)
        assert scene.image.dtype == scene.mask.dtype == np.uint8
        assert scene.mask.shape == (48, 48)
        present = {CLASS_NAMES[label] for label in np.unique(scene.mask)}
        planned = {scene.plan.sky, scene.plan.ground, *(p.name for p in scene.plan.placements)}
        assert present <= planned
        assert not {"sun", "night sky"} <= planned
        seen |= present
    assert seen == set(CLASS_NAMES)


def test_sets_share_no_scene():
    sets = [list(held_out_scenes(20, 16)), list(validation_scenes(20, 16))]
    sets.append([training_scene(index, 16) for index in range(20)])
    plans = [scene.plan for scenes in sets for scene in scenes]
    assert len(set(plans)) == len(plans)


def test_demo_scene_shows_what_it_should():
    scene = demo_scene(168, 224)
    shown = {CLASS_NAMES[label] for label in np.unique(scene.mask)}
    assert {"house", "tree", "sun", "cloud", "car", "grass", "sky"} <= shown
    with pytest.raises(ValueError, match="at least 8 x 8"):
        demo_scene(4, 4)


# Captions


def test_captions_name_what_is_visible_and_nothing_else():
    generator = np.random.default_rng(3)
    for scene in validation_scenes(20, 64):
        text, phrases = caption(scene.mask, scene.colours, generator)
        named = {name for name, _ in phrases}
        assert named == set(visible_names(scene.mask))
        for name, colour in phrases:
            assert (scene.mask == CLASS_ID[name]).mean() >= 0.03
            assert colour in ("", scene.colours.get(name, ""))
            assert colour in text
            assert not colour or DRAWN[name].coloured


def test_most_nouns_are_named_alone_at_times():
    """All skies and grounds, and things but for the thinnest, which leave room for what is behind them."""
    generator = np.random.default_rng(0)
    pool = Pool.draw(60)
    alone = set()
    for _ in range(8):
        batch = draw_batch(pool, generator, 0, 20, close_ups=0.35)
        alone |= {phrases[0][0] for phrases in batch.phrases if len(phrases) == 1}
    assert alone >= set(SKIES + GROUNDS)
    assert len(alone - set(SKIES + GROUNDS)) >= 6


def test_phrases_come_in_any_order_and_captions_need_one():
    generator = np.random.default_rng(1)
    orders = {phrases_of(("sky", "grass", "tree"), {}, generator) for _ in range(50)}
    assert len(orders) == 6
    with pytest.raises(ValueError, match="at least one phrase"):
        sentence([], generator)


def test_what_a_caption_bears_out():
    seen = (("car", "red"), ("grass", ""))
    assert describes(("car", ""), seen)
    assert describes(("car", "red"), seen)
    assert not describes(("car", "blue"), seen)
    assert not describes(("grass", "red"), seen)
    table = truth_table([(("car", ""),), (("car", ""), ("sky", ""))], [seen, (("sky", ""),)])
    assert table.tolist() == [[True, False], [False, False]]


# Words


def test_end_of_text_has_the_largest_id_and_unknown_words_are_named():
    tokenizer = WordTokenizer(every_word())
    tokens = tokenizer(["a red car", "a zebra", "the sea " * 40])
    assert tokens.shape == (3, 32)
    assert tokens.dtype == torch.int64
    assert (tokens.max(1).values == tokenizer.eot_token_id).all()
    assert tokens[0].argmax() == 4
    assert tokens[1].tolist().count(UNKNOWN) == 1
    assert tokens[2, -1] == tokenizer.eot_token_id
    assert int(tokens.max()) < tokenizer.vocab_size
    unknown = tokenizer.unknown_words("A zebra, a red car; and the zebra's moon")
    assert unknown == ["zebra", ";", "'", "s", "moon"]


# Mosaics


def test_patches_belong_to_the_cell_that_holds_them():
    owner = np.zeros((32, 32), np.int64)
    owner[:, 20:] = 1  # the third column of patches is half and half
    cells = cells_of_patches(owner, 8).reshape(4, 4)
    assert cells[:, :2].tolist() == [[0, 0]] * 4
    assert cells[:, 2].tolist() == [-1] * 4
    assert cells[:, 3].tolist() == [1] * 4
    owner[:] = 0
    owner[:8, :8] = 1  # one patch is too small an image
    assert cells_of_patches(owner, 8)[0] == -1


def test_a_batch_keeps_its_books(pool):
    batch = draw_batch(pool, np.random.default_rng(4), 3, 5, 112)
    assert batch.pixels.shape == (8, 3, 112, 112)
    assert batch.cell_of_patch.shape == (8, 196)
    assert all(len(cells.unique()) > 2 for cells in batch.cell_of_patch[len(batch.whole) :])
    assert len(batch.captions) == len(batch.phrases)
    numbers = set(batch.cell_of_patch.unique().tolist())
    assert numbers - {-1} == set(range(len(batch.captions)))
    for index in batch.whole:
        assert (batch.cell_of_patch[index] == index).all()
    for number in range(len(batch.captions)):  # no image is on two canvases
        assert (batch.cell_of_patch == number).any(1).sum() == 1


# Losses


def test_losses_are_small_where_everything_is_right():
    true = torch.tensor([[True, True, False], [False, False, True]])
    right = torch.where(true, 30.0, -30.0)
    for loss in (any_true, each_true):
        assert loss(right, true) < 1e-6
        assert loss(-right, true) > 10
    assert any_true(right, torch.zeros(2, 3, dtype=torch.bool)) == 0


def test_every_named_thing_must_hold_some_patches():
    texts, cells = torch.eye(3), torch.zeros(1, 10, dtype=torch.int64)
    true = torch.tensor([[True, True, False]])
    only_first = texts[:1].expand(1, 10, 3).clone()
    shared = only_first.clone()
    shared[0, 5:] = texts[1]
    group, scale = torch.arange(3), torch.tensor(20.0)
    assert share_loss(only_first, cells, texts, true, group, scale) > 1
    assert share_loss(shared, cells, texts, true, group, scale) == 0


# Training


def test_views_are_those_of_the_library(pool):
    """The tower that training runs is the tower that the library rebuilds."""
    torch.manual_seed(0)
    model = build(configuration(40, layers=4)).eval()
    batch = draw_batch(pool, np.random.default_rng(0), 1, 1)
    with torch.no_grad():
        images, views = image_views(model, batch.pixels)
        torch.testing.assert_close(images, model.encode_image(batch.pixels))
        own = DenseEncoder(model.visual, base="maskclip")(batch.pixels).patches.flatten(1, 2)
        torch.testing.assert_close(views["value"], own, rtol=1e-4, atol=1e-5)
        tokens = torch.tensor([[38, 3, 4, 39, 0, 0], [38, 5, 39, 0, 0, 0]])
        padded = torch.nn.functional.pad(tokens, (0, 26))
        torch.testing.assert_close(text_embeddings(model, tokens), model.encode_text(padded))


def test_an_interrupted_run_continues_to_the_same_weights(pool, tmp_path):
    straight = Trainer(TINY, pool, 6)
    while straight.done < 6:
        straight.step()
    first = Trainer(TINY, pool, 6)
    for _ in range(4):
        first.step()
    first.save(tmp_path / "checkpoint.pt")
    second = Trainer(TINY, pool, 6)
    second.restore(tmp_path / "checkpoint.pt")
    run(second, tmp_path, every=10)
    for name, value in straight.mean.items():
        assert torch.equal(value, second.mean[name]), name
    assert not list(tmp_path.rglob("*.partial"))
    assert (tmp_path / "model" / "open_clip_model.safetensors").exists()

    other = Trainer(replace(TINY, rate=0.5), pool, 6)
    with pytest.raises(ValueError, match="rate: 0.001 .*0.5"):
        other.restore(tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="past this run's 3 steps"):
        Trainer(TINY, pool, 3).restore(tmp_path / "checkpoint.pt")


def test_the_loss_falls(pool):
    trainer = Trainer(replace(TINY, rate=3e-3, things_from=1000), pool, 100)
    totals = [trainer.step()["total"] for _ in range(30)]
    assert np.mean(totals[-5:]) < 0.85 * np.mean(totals[:5])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "0"], "--steps must be at least 1"),
        (["--rate", "-1"], "--rate must be positive"),
        (["--device", "toaster"], "--device toaster cannot be used here"),
    ],
)
def test_the_command_explains_its_errors(arguments, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--output", str(tmp_path), *arguments])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


# The packaged model


def test_the_package_is_small_and_a_missing_file_is_named(tmp_path):
    files = [path for path in directory().iterdir() if path.suffix in (".safetensors", ".json")]
    assert sum(path.stat().st_size for path in files) < 8_000_000
    with pytest.raises(FileNotFoundError, match=r"open_clip_config.json is missing"):
        load_builtin(folder=tmp_path)


def test_open_clip_loads_it_by_itself(builtin):
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{directory()}")
    mine, tokenizer, mean, std = builtin
    for name, value in model.state_dict().items():
        assert torch.equal(value, mine.state_dict()[name]), name
    assert tokenizer.vocab_size == model.vocab_size
    assert preprocess.transforms[-1].mean == pytest.approx(mean)
    assert preprocess.transforms[-1].std == pytest.approx(std)


def test_it_knows_every_class_and_template_and_its_window(builtin):
    model, tokenizer, _, _ = builtin
    for template in TEMPLATES:
        for name in CLASS_NAMES:
            assert tokenizer.unknown_words(template.format(name)) == []
    assert PRESETS["builtin"].segmenter["window"] == model.visual.image_size[0]
