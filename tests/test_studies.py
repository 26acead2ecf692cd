"""The papers' studies as functions: labels of patches, pairs, likeness, a learned projection, sweeps, gains."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
import torch.nn.functional as F
from PIL import Image
from report_support import column, report, row

from resclip import Segmenter, Vocabulary, load
from resclip.builtin.scenes import CLASS_NAMES
from resclip.errors import WeightsUnavailable
from resclip.evaluation.ablation import ablate, row_name, starting_point
from resclip.evaluation.datasets import Dataset, DatasetError, open_dataset
from resclip.evaluation.datasets.base import IGNORED, Sample
from resclip.evaluation.metrics import scores_of
from resclip.evaluation.published_ablations import figures, published_setting
from resclip.evaluation.runner import evaluate_dataset
from resclip.evaluation.studies import catalogue, other_models, sweeps
from resclip.evaluation.studies.gain import gain_tables
from resclip.evaluation.studies.learning import (
    LearningOptions,
    Patches,
    class_attention,
    collect,
    learn,
    learned_file,
    learning_part,
)
from resclip.evaluation.studies.other_models import OtherModels, open_models
from resclip.evaluation.studies.patch_similarity import PairCounts, Sides, patch_similarity
from resclip.evaluation.studies.patches import (
    UNLABELLED,
    LabelledImages,
    patch_classes,
    spread,
)
from resclip.evaluation.studies.proxy_similarity import proxy_similarity
from resclip.evaluation.studies.query_maps import (
    attention_by_layer,
    first_image,
    model_maps,
    own_image,
    patch_at,
)
from resclip.evaluation.studies.spatial_invariance import likeness, spatial_invariance
from resclip.evaluation.tables import ablation_tables
from resclip.io.images import ImageError
from resclip.methods.catalogue import ProxyAttention
from resclip.models.proxy_models import ColourProxy
from resclip.visualization.panels import draw_panels
from resclip.visualization.sheets import HeatMap

THREE = open_dataset("builtin", count=3, size=56)  # 7 × 7 patches


@cache
def vocabulary() -> Vocabulary:
    return load("builtin", classes=CLASS_NAMES, device="cpu").vocabulary


@cache
def segmenter(base: str = "clip", **options: Any) -> Segmenter:
    """Shared by the tests, which change nothing of it."""
    given = {
        "model": "builtin",
        "classes": vocabulary(),
        "method": base,
        "device": "cpu",
        "short_side": 0,
    }
    return load(**{**given, **options})


def colour() -> ColourProxy:
    statistics = segmenter().preparation
    return ColourProxy(mean=statistics.mean, std=statistics.std)


class Broken:
    """An image that cannot be read."""

    def read(self) -> Any:
        raise ImageError("expected an image, got none")


# Patches


def test_a_patch_has_its_most_frequent_class_and_ignored_pixels_have_no_vote() -> None:
    truth = np.array(
        [
            [1, 1, 2, 2, 9],
            [2, 1, 1, 1, 9],
            [IGNORED, IGNORED, IGNORED, 3, 9],
            [IGNORED, IGNORED, IGNORED, IGNORED, 9],
        ],
        np.uint8,
    )
    # Four of five columns are covered; upper right there are two pixels each of 1 and 2.
    labels = patch_classes(truth, (2, 2), (1.0, 0.8))
    assert labels.tolist() == [[1, 1], [UNLABELLED, 3]]
    assert patch_classes(np.full((3, 3), IGNORED, np.uint8), (1, 2)).tolist() == [[-1, -1]]


def test_patches_of_another_size_than_the_pixels_are_found_by_their_middles() -> None:
    """Each pixel belongs to the patch that its middle lies in: 3 rows in 2 patches, the middle one in the second."""
    truth = np.arange(3, dtype=np.uint8)[:, None].repeat(4, axis=1)
    assert patch_classes(truth, (3, 2)).tolist() == [[0, 0], [1, 1], [2, 2]]
    assert patch_classes(truth, (2, 1)).tolist() == [[0], [1]]


@pytest.mark.parametrize(("count", "most"), [(10, 3), (3, 10), (7, 7), (1, 1)])
def test_images_are_spread_evenly(count: int, most: int) -> None:
    chosen = spread(count, most)
    assert len(set(chosen)) == len(chosen) == min(count, most)
    assert chosen[0] == 0
    assert chosen[-1] < count
    steps = np.diff(chosen)
    assert not len(steps) or steps.max() - steps.min() <= 1


def test_images_that_cannot_be_read_are_named() -> None:
    broken = replace(THREE.samples[1], image=Broken())
    dataset = replace(THREE, samples=(THREE.samples[0], broken, THREE.samples[2]))
    images = LabelledImages(dataset, segmenter(), 10)
    assert [image.name for image in images] == [THREE.samples[0].name, THREE.samples[2].name]
    assert [problem.name for problem in images.problems] == [broken.name]
    finding = spatial_invariance(segmenter(), dataset, 10)
    assert [problem.name for problem in finding.problems] == [broken.name]
    assert "2 images" in finding.text()


# Pairs


def test_average_precision_is_that_of_the_sorted_pairs(seed: int) -> None:
    """Against one threshold per pair, which thousands of bins come near to."""
    generator = torch.Generator().manual_seed(seed)
    vectors = F.normalize(torch.randn(60, 6, generator=generator), dim=1)
    others = F.normalize(vectors + 0.3 * torch.randn(60, 6, generator=generator), dim=1)
    labels = torch.randint(3, (60,), generator=generator)
    counts = PairCounts()
    counts.add(Sides(vectors, others), labels)
    rows, columns = np.nonzero(~np.eye(60, dtype=bool))
    cosine = (vectors @ others.T).numpy()[rows, columns]
    same = (labels[:, None] == labels[None]).numpy()[rows, columns]
    assert (counts.same.sum(), counts.other.sum()) == (same.sum(), (~same).sum())
    hits = same[np.argsort(-cosine)]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    assert abs(counts.average_precision - precision[hits].mean()) < 5e-3
    assert counts.share == pytest.approx(same.mean())
    recall, _ = counts.curve()
    assert (np.diff(recall) >= 0).all()
    assert recall[-1] == 1


def test_what_tells_classes_apart_has_an_average_precision_of_one() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    unit = torch.eye(3)[labels]
    perfect, blind = PairCounts(), PairCounts()
    perfect.add(Sides(unit, unit), labels)
    blind.add(Sides(torch.ones(6, 1), torch.ones(6, 1)), labels)
    assert perfect.average_precision == 1.0
    assert blind.average_precision == pytest.approx(blind.share) == pytest.approx(6 / 30)


def test_patch_similarity_pools_images_and_compares_other_models_on_the_same_pairs(
    tmp_path: Path,
) -> None:
    others = OtherModels({"colour": colour()}, ["x is left out: no network"])
    finding = patch_similarity(segmenter(), THREE, others, 2)
    names = [line["similarity"] for line in finding.lines]
    assert names == [
        "q·k", "q·q", "k·k", "v·v", *(f"q·k of block {number}" for number in (6, 7, 8, 9)),
        "colour", "chance",
    ]  # fmt: skip
    assert all(0 < line["AP"] <= 1 for line in finding.lines)
    figures = {line["similarity"]: line["AP"] for line in finding.lines}
    assert figures["k·k"] > figures["chance"]  # The built-in model's keys tell classes apart.
    assert finding.settings["pairs"] == 2 * 49 * 48
    assert "x is left out: no network" in finding.text()
    paths = finding.write(tmp_path)
    assert [path.name for path in paths] == [
        f"patch-similarity_builtin.{ending}" for ending in ("json", "csv", "png")
    ]
    stored = json.loads(paths[0].read_text())
    assert stored["lines"] == [dict(line) for line in finding.lines]
    assert set(stored["details"]["curves"]) == set(names) - {"chance"}
    assert paths[1].read_text().count("\n") == len(names) + 1
    assert paths[2].read_bytes().startswith(b"\x89PNG")


# Likeness


def test_likeness_is_the_mean_cosine_of_rows(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, 1, 3, 301, 8, generator=generator)  # more than one block of rows
    rows = (query @ key.mT / 8**0.5).softmax(dim=-1)[0, :, 1:, 1:].double()
    unit = F.normalize(rows, dim=-1)
    cosine = unit @ unit.mT
    expected = (cosine.sum(dim=(1, 2)) - 300) / (300 * 299)
    assert likeness(query, key, 1) == pytest.approx(expected.mean().item(), rel=1e-4)
    alike = query[:, :, :1].expand_as(query)
    assert likeness(alike, key, 1) == pytest.approx(1, abs=1e-5)


def test_every_block_and_two_more_correlations_are_in_the_table() -> None:
    finding = spatial_invariance(segmenter(), THREE, 1)
    names = [line["attention"] for line in finding.lines]
    assert names[:2] == ["block 1: q·k", "block 2: q·k"]
    assert names[-3:] == ["block 12: q·k", "block 12: q·q", "block 12: k·k"]
    figures = {line["attention"]: line["likeness"] for line in finding.lines}
    assert all(0 <= value <= 1 for value in figures.values())
    assert figures["block 12: k·k"] < figures["block 12: q·k"]  # What SCLIP's paper is about.


# Similarities of a proxy


def test_normalisation_moves_the_similarities_by_beta_times_the_images_mean() -> None:
    made = segmenter("proxyclip", proxy=ProxyAttention("colour", beta=0.5, gamma=2.0))
    one = replace(THREE, samples=THREE.samples[:1])
    finding = proxy_similarity(made, one, 5)
    before, after = finding.lines[:2], finding.lines[2:]
    image = first_image(made, one)
    features = colour()(image.pixels)
    unit = F.normalize(features.double().flatten(2)[0].T, dim=1)
    similarity = unit @ unit.T
    labels = image.labels(tuple(features.shape[2:])).ravel()  # type: ignore[arg-type]
    upper = np.triu(np.ones((49, 49), bool), 1)
    for number, same in enumerate((True, False)):
        chosen = upper & ((labels[:, None] == labels[None]) == same)
        values = similarity.numpy()[chosen]
        assert before[number]["count"] == after[number]["count"] == chosen.sum()
        assert before[number]["mean"] == pytest.approx(values.mean(), abs=1e-6)
        assert before[number]["deviation"] == pytest.approx(values.std(), abs=1e-6)
        moved = 2 * (values - 0.5 * similarity.mean().item())
        assert after[number]["mean"] == pytest.approx(moved.mean(), abs=1e-6)
        assert after[number]["not negative"] == pytest.approx((moved >= 0).mean(), abs=1e-6)
    with pytest.raises(ValueError, match="base 'naclip' compares its own tokens: use base 'proxy"):
        proxy_similarity(segmenter("naclip"), THREE, 5)


# Maps of one patch


def test_each_layer_has_the_row_that_clip_attends_with() -> None:
    made = segmenter()
    image = first_image(made, THREE)
    finding = attention_by_layer(made, image, (2, 5), "builtin")
    maps = finding.details["maps"]
    assert [*maps] == [f"block {number}" for number in range(1, 13)]
    expected = made.encoder.attention(image.pixels, (2, 5)).base.mean(dim=1)[0, 0]
    torch.testing.assert_close(torch.tensor(maps["block 12"]), expected, rtol=1e-4, atol=1e-6)
    last = finding.lines[-1]
    assert last["on itself"] == pytest.approx(expected[2, 5].item(), rel=1e-4)
    own = image.labels() == image.labels()[2, 5]
    share = expected[torch.from_numpy(own)].sum() / expected.sum()
    assert last["same class"] == pytest.approx(share.item(), rel=1e-4)


def test_maps_of_several_models_and_an_image_without_labels(tmp_path: Path) -> None:
    path = tmp_path / "mine.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 50, 3), np.uint8)).save(path)
    made = segmenter()
    image = own_image(made, str(path))
    assert image.grid == (7, 6)
    assert patch_at(image, None) == (3, 3)
    patch = patch_at(image, (49, 59))
    assert patch == (6, 5)  # Beyond the last whole patch: the nearest one.
    finding = model_maps(made, image, patch, OtherModels({"colour": colour()}, []), "mine")
    assert finding.columns == ["map", "strongest 10 %"]
    names = [line["map"] for line in finding.lines]
    assert names == ["CLIP: q·k attention", "CLIP: cosine of k", "colour: cosine"]
    for name in names[1:]:
        assert finding.details["maps"][name][6][5] == pytest.approx(1, abs=1e-5)
    drawn = finding.write(tmp_path)[2]
    with Image.open(drawn) as picture:
        assert picture.width > 4 * 170
    with pytest.raises(ValueError, match=r"--query X,Y inside the image of 50 x 60 .* got 50,0"):
        patch_at(image, (50, 0))


def test_the_point_that_is_chosen_lies_in_the_rarest_class() -> None:
    image = first_image(segmenter(), THREE)
    row, column = patch_at(image, None)
    labels = image.labels()
    sizes = dict(zip(*np.unique(labels, return_counts=True), strict=True))
    assert sizes[labels[row, column]] == min(size for size in sizes.values() if size >= 2)


def test_a_sheet_of_many_maps_goes_on_in_further_rows() -> None:
    """Seven maps and the image: two rows of at most five panels, each map with its own place."""
    image = np.full((40, 60, 3), 200, np.uint8)
    maps = [HeatMap(f"map {number}", np.eye(4) * (number + 1)) for number in range(7)]
    sheet, few = draw_panels(image, (30.0, 20.0), maps), draw_panels(image, (30.0, 20.0), maps[:4])
    assert sheet.width == few.width
    assert sheet.height > 1.8 * few.height
    assert np.array_equal(np.asarray(sheet)[: few.height - 40], np.asarray(few)[:-40])
    with pytest.raises(ValueError, match="at least one map"):
        draw_panels(image, (0.0, 0.0), [])


def test_models_that_cannot_be_fetched_are_named_and_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def find(name: str, **_: Any) -> ColourProxy:
        if name != "colour":
            raise WeightsUnavailable(f"cannot load {name}")
        return colour()

    monkeypatch.setattr(other_models, "find_proxy", find)
    found = open_models(["dino", "colour"], segmenter(), need_one=True)
    assert [*found.models] == ["colour"]
    assert found.missing == ["dino is left out: cannot load dino"]
    assert open_models(["dino"], segmenter(), need_one=False).models == {}
    with pytest.raises(WeightsUnavailable, match="dino: cannot load dino"):
        open_models(["dino", "sam"], segmenter(), need_one=True)


# A learned projection


def noisy(seed: int, width: int = 8) -> list[Patches]:
    """Patches whose class is in two of eight features, under noise that is in all others."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for _ in range(6):
        labels = torch.randint(2, (30,), generator=generator)
        normed = torch.randn(30, width, generator=generator)
        normed[:, 0] = 2.0 * labels - 1
        normed[:, 1] = 1 - 2.0 * labels
        images.append(Patches(normed, labels))
    return images


def test_class_attention_is_the_share_on_others_of_the_class(seed: int) -> None:
    image = noisy(seed)[0]
    matrix = torch.randn(8, 8, generator=torch.Generator().manual_seed(seed))
    shares = class_attention(image, matrix, 2).exp()
    for head in range(2):
        projected = (image.normed @ matrix)[:, 4 * head : 4 * head + 4]
        score = (projected @ projected.T / 2).masked_fill(torch.eye(30, dtype=torch.bool), -1e9)
        weights = score.softmax(dim=-1)
        same = image.labels[:, None] == image.labels[None]
        torch.testing.assert_close(shares[head], (weights * same).sum(dim=-1), rtol=1e-4, atol=1e-6)


def test_learning_finds_what_tells_classes_apart_and_depends_on_its_seed_alone() -> None:
    options = LearningOptions(steps=60, rate=1e-2)
    learned, again = (learn(noisy(0), 2, options) for _ in range(2))
    assert torch.equal(learned.matrix, again.matrix)
    # The identity cannot tell six features of noise from two of the class.
    assert learned.share_after > learned.share_before + 0.1
    held_out = noisy(1)
    before, after = (
        torch.stack([class_attention(image, matrix, 2).exp().mean() for image in held_out]).mean()
        for matrix in (torch.eye(8), learned.matrix)
    )
    assert after > before + 0.05
    with pytest.raises(ValueError, match="expected images with patches of several classes"):
        learn([], 2, options)


def test_no_image_is_both_measured_and_learned_from() -> None:
    def training(split: str) -> Dataset:
        return open_dataset("builtin", split=split, count=2, size=56)

    measured, part = learning_part(THREE, 64, training)
    assert measured is THREE
    assert part.split == "validation"

    def nothing(split: str) -> Dataset:
        raise DatasetError("no such split")

    many = replace(
        THREE, samples=tuple(replace(THREE.samples[0], name=str(number)) for number in range(10))
    )
    for dataset in (replace(many, name="voc21"), replace(many, name="folder")):
        measured, part = learning_part(dataset, 64, nothing)
        names = [{sample.name for sample in one.samples} for one in (measured, part)]
        assert names[0].isdisjoint(names[1])
        assert (len(measured), len(part)) == (8, 2)  # At most one in four.
        assert "without 2 that a projection is learned from" in measured.description
    # A training part that shares images with what is measured gives only the others.
    sample = Sample("new", many.samples[0].image, many.samples[0].truth)
    overlapping = replace(many, name="voc21", samples=(*many.samples[:3], sample))
    _, part = learning_part(replace(many, name="voc21"), 64, lambda split: overlapping)
    assert [one.name for one in part.samples] == ["new"]
    with pytest.raises(DatasetError, match="at least 4 images to hold one out"):
        learning_part(replace(THREE, name="folder"), 64, nothing)


def test_a_projection_is_learned_once_and_named_after_what_it_was_learned_from(
    tmp_path: Path,
) -> None:
    made = segmenter("sclip", window=40, stride=20)
    options = LearningOptions(images=2, steps=2)
    assert {len(one.patches.normed) for one in collect(made, THREE, options)} == {25}  # A window's.
    path, sentence = learned_file(tmp_path, made, THREE, options)
    assert "W_r is learned from 2 of 3 held-out scenes of 56 × 56, in 2 steps" in sentence
    written = path.read_bytes()
    with safetensors.safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["images"]) == ["held-out-0000", "held-out-0001"]
    path.touch()
    assert learned_file(tmp_path, made, THREE, options) == (path, sentence)
    assert path.read_bytes() == written
    other, _ = learned_file(tmp_path, made, THREE, replace(options, steps=3))
    assert other != path
    used = segmenter("sclip", correlation=f"learned,path={path}")
    assert used.settings["correlation"]["path"] == str(path)


# Sweeps


def test_every_study_in_the_list_can_be_run_and_no_other() -> None:
    assert {study.name for study in sweeps.SWEEPS} == {
        name for name, entry in catalogue.STUDIES.items() if entry.is_sweep
    }
    for name in catalogue.STUDIES:
        assert name in catalogue.listing()


def settings_of(name: str, base: str, **options: Any) -> dict[str, Any]:
    """A study's methods on a base of the built-in model, by label."""
    start = starting_point(segmenter(base, **options), {})
    (study,) = (study for study in sweeps.PAPER_STUDIES if study.name == name)
    methods = {one.label: one.method for one in study.variations(start, 12)}
    rows = {row_name(method, start) for method in methods.values()}
    assert len(rows) == len(methods)
    return methods


def test_sclips_studies_vary_the_correlation_alone() -> None:
    projections = settings_of("sclip-projection", "sclip")
    scores = [method.correlation.scores for method in projections.values()]
    assert scores == ["xx", "qq", "kk", "random", "qq+kk"]
    others = settings_of("sclip-alternatives", "sclip")
    sharpened = others["sharpening τ = 2"].correlation
    assert (sharpened.scores, sharpened.temperature) == ("qk", 0.5)
    assert others["local attention w = 3"].correlation.window == 3
    assert others["attention of block 3"].correlation.layer == 3
    blocks = settings_of("sclip-blocks", "clearclip")
    assert [method.correlation.blocks for method in blocks.values()] == [1, 2, 3, 4, 5, 6]
    assert {method.correlation.scores for method in blocks.values()} == {"qq"}  # The base's own.
    for method in (*projections.values(), *others.values(), *blocks.values()):
        assert (method.rcs, method.sfr) == (None, None)


def test_proxyclips_studies_vary_the_proxy_alone() -> None:
    start = {"proxy": ProxyAttention("colour", beta=1.1)}
    parts = settings_of("proxy-switches", "proxyclip", **start)
    options = {
        label: (method.proxy.beta, method.proxy.gamma, method.proxy.masked)
        for label, method in parts.items()
    }
    assert options == {
        "both": (1.1, 3.0, True),
        "no normalisation": (0.0, 1.0, True),
        "no masking": (1.1, 3.0, False),
        "neither": (0.0, 1.0, False),
    }
    betas = settings_of("proxy-beta", "proxyclip", **start)
    assert [method.proxy.beta for method in betas.values()] == list(sweeps.BETAS)
    gammas = settings_of("proxy-gamma", "proxyclip", **start)
    assert {method.proxy.beta for method in gammas.values()} == {1.1}
    sizes = settings_of("proxy-size", "proxyclip", **start)
    assert [(method.proxy.model, method.proxy.input_size) for method in sizes.values()] == [
        ("colour", 168), ("colour", None), ("colour", 504), ("colour", 672),
        ("colour:4", None), ("colour:16", None),
    ]  # fmt: skip


def test_a_base_that_does_not_compare_what_a_study_varies_is_refused() -> None:
    with pytest.raises(ValueError, match="'sclip-blocks' is for a base without one.* use base 'sc"):
        settings_of("sclip-blocks", "proxyclip")
    with pytest.raises(ValueError, match="'proxy-beta' is for a base with a proxy.*use base 'prox"):
        settings_of("proxy-beta", "naclip")


def test_settings_of_other_papers_are_measured_as_load_makes_them() -> None:
    (switches,) = (study for study in sweeps.PAPER_STUDIES if study.name == "proxy-switches")
    (sizes,) = (study for study in sweeps.PAPER_STUDIES if study.name == "proxy-size")
    few = replace(sizes, vary=lambda method, depth: sizes.vary(method, depth)[-1:])
    one = replace(THREE, samples=THREE.samples[:1])
    came = ablate([switches, few], [one], lambda dataset: segmenter("proxyclip"), workers=0)
    rows = came.report.datasets["builtin"].rows
    assert [*rows] == [
        "proxyclip", "proxyclip(beta=0,gamma=1)", "proxyclip(masked=false)",
        "proxyclip(beta=0,gamma=1,masked=false)", "proxyclip(model=colour:16)",
    ]  # fmt: skip
    assert rows["proxyclip(masked=false)"].options["proxy"]["masked"] is False
    for name, given in (
        ("proxyclip(masked=false)", ProxyAttention("colour", masked=False)),
        ("proxyclip(model=colour:16)", ProxyAttention("colour:16")),
    ):
        loaded = segmenter("proxyclip", proxy=given)
        assert rows[name].options["proxy"] == loaded.settings["proxy"]
        measured = evaluate_dataset(name, loaded, one, workers=0)
        assert rows[name].scores == scores_of(measured.confusion)
    text = ablation_tables(came).text
    assert "proxy-switches: ProxyCLIP: without normalisation, without masking" in text


# Published figures and gains


OPENAI = {"model": "ViT-B-16", "pretrained": "openai"}


def test_published_settings_stand_beside_what_they_were_measured_for_alone() -> None:
    def found(study: str, setting: str, dataset: str, **changes: Any) -> float | None:
        made = {"base": "sclip", **changes}
        model, pretrained = made.pop("model", "ViT-B-16"), made.pop("pretrained", "openai")
        figure = published_setting(study, setting, dataset, model, pretrained, made)
        return None if figure is None else figure.miou

    assert found("sclip-projection", "learned", "voc21") == 60.4
    assert found("sclip-projection", "random (one)", "coco-stuff") == 20.6
    assert found("sclip-alternatives", "local attention w = 3", "context59") == 25.5
    assert found("sclip-alternatives", "sharpening τ = 4", "voc21") is None
    assert found("sclip-projection", "learned", "ade20k") is None
    for change in (
        {"base": "clearclip"},
        {"model": "ViT-L-14"},
        {"model": "builtin", "pretrained": None},
        {"short_side": 448},
        {"rcs": {"weight": 0.5}},
    ):
        assert found("sclip-projection", "learned", "voc21", **change) is None
    labels = {study.name: study for study in sweeps.PAPER_STUDIES}
    learned = replace(
        labels["sclip-projection"],
        vary=lambda method, depth: sweeps.projections(Path("a.safetensors"), method, depth),
    )
    start = starting_point(segmenter("sclip"), {})
    for study, setting, _ in figures():
        chosen = learned if study == "sclip-projection" else labels[study]
        assert setting in [one.label for one in chosen.vary(start, 12)]


def test_gains_are_averaged_with_and_without_a_background() -> None:
    """voc21 and context60 count it, voc20 does not; one base has no SFR."""

    def measured(name: str, *means: float) -> Any:
        rows = ("naclip", "naclip+rcs", "naclip+sfr", "naclip+rcs+sfr", "maskclip", "maskclip+rcs")
        return column(name, {row_: row(mean) for row_, mean in zip(rows, means, strict=True)})

    one = report(
        measured("voc21", 50, 52, 51, 53, 40, 41),
        measured("context60", 30, 31, 30, 33, 20, 20),
        measured("voc20", 80, 82, 81, 84, 70, 73),
    )
    tables = gain_tables({"first": one, "second": one}, ["naclip", "maskclip"])
    lines = tables.markdown.splitlines()
    heads = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert heads == [
        "model", "base", "modules", "voc21", "context60", "voc20", "mean, background", "mean",
    ]  # fmt: skip
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:14]]
    assert len(cells) == 2 * (4 + 2)
    assert cells[3] == [
        "first", "naclip", "RCS + SFR", "53.0 (+3.0)", "33.0 (+3.0)", "84.0 (+4.0)", "43.0 (+3.0)",
        "56.7 (+3.3)",
    ]  # fmt: skip
    assert cells[5][:4] == ["first", "maskclip", "RCS", "41.0 (+1.0)"]
    assert cells[6][0] == "second"
    assert tables.csv.count("\n") == 1 + 2 * 6 * 3
