"""Steps behind the tokens: recorded outputs of the authors' programs, and what holds for any input."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import FOLDER, arrays, tower
from method_support import small_tower
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor

from resclip import RCS, DenseEncoder
from resclip.encoder.final_block import similarity
from resclip.encoder.trace import BlockStep, Trace
from resclip.inference.windows import LogitStitcher, Window, plan_windows
from resclip.methods.pieces import Aggregation, Denoising, LayerFusion, Pieces
from resclip.methods.steps import (
    ClassPurification,
    CrossWindowKeys,
    GraphPropagation,
    TextAdjustment,
)
from resclip.steps import area_rule, class_purification, cross_windows, graph_propagation
from resclip.steps.area_rule import (
    apply_area_rule,
    apply_area_rule_by_strips,
    class_probabilities,
    count_pixels,
    small_classes,
)
from resclip.steps.boxes import (
    bounds,
    components,
    contour_boxes,
    half_open,
    inside_boxes,
)
from resclip.steps.class_purification import purify, with_background
from resclip.steps.cross_windows import (
    WindowTokens,
    attend_windows,
    cross_window_attention,
    neighbour_means,
)
from resclip.steps.graph_propagation import patch_centres, propagate, solver_device
from resclip.steps.text_adjustment import adjust, group_queries, image_similarity, move_texts
from resclip_kernels import proxy_attention, resize_planes, upsample_argmax

pytestmark = pytest.mark.usefixtures("without_gradients")


@pytest.fixture
def without_gradients() -> Any:
    with torch.no_grad():
        yield


@functools.cache
def settings() -> dict[str, dict[str, Any]]:
    """Settings of every recorded case by name."""
    text = (FOLDER / "later" / "cases.json").read_text()
    return {case["name"]: case for case in json.loads(text)["cases"]}


class Case:
    """A recorded case: its arrays, settings, and windows."""

    def __init__(self, name: str) -> None:
        self.arrays = arrays(f"later/{name}")
        self.settings = settings()[name]
        self.image, self.text = self.arrays["image"], self.arrays["text"]
        self.shape = (self.image.shape[1], self.image.shape[2])
        self.windows: list[Window] = plan_windows(
            *self.shape, self.settings["window"], self.settings["stride"]
        )
        self.pixels = torch.stack([self.image[:, one.rows, one.columns] for one in self.windows])
        self.size = tuple(self.settings["output_size"])

    def stitched(self, grids: Tensor) -> Tensor:
        """(Q, H', W'): the mean of the windows' logits, at the image's size."""
        stitcher = LogitStitcher(*self.shape, self.windows)
        for window, grid in zip(self.windows, grids, strict=True):
            stitcher.add(window, grid)
        return stitcher.rows(0, self.shape[0])

    def resized(self, grids: Tensor) -> Tensor:
        """(Q, H, W), at the output's size."""
        return resize_planes(self.stitched(grids)[None], self.size)[0]


def relative(got: Tensor, wanted: Tensor) -> float:
    return ((got - wanted).norm() / wanted.norm()).item()


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def agreement(labels: Tensor, recorded: Tensor) -> float:
    return (labels == recorded).float().mean().item()


# Text adjustment.


def test_recorded_text_adjustment() -> None:
    case = Case("rf_clip_segment")
    values, recorded = case.settings, case.arrays
    groups = group_queries(case.text, values["group_threshold"])
    same = groups[:, None] == groups
    assert torch.equal(same, recorded["groups"][:, None] == recorded["groups"])
    pieces = Pieces(
        denoising=Denoising(
            channels=tuple(values["channels"]), sigma=values["sigma"], alpha=values["alpha"]
        ),
        fusion=LayerFusion(values["beta"]),
    )
    encoder = DenseEncoder(tower(), base="rf-clip", pieces=pieces)
    vectors = encoder.image_vectors(case.image[None]).expand(len(case.windows), -1)
    seen = image_similarity(vectors, case.text)
    assert (seen[0] - recorded["image_similarity"]).abs().max() <= 1e-6
    patches = encoder(case.pixels).patches
    option = TextAdjustment(
        values["global_weight"], values["text_weight"], values["group_threshold"]
    )
    cosines = similarity(patches, case.text)
    chosen, moved = move_texts(patches, case.text, groups, seen, cosines, option.text_weight)
    last = case.text.clone()
    last[chosen[-1]] = moved[-1]
    assert (last - recorded["adjusted_text_last_window"]).abs().max() <= 2e-6

    logits = case.stitched(adjust(patches, case.text, groups, vectors, option))
    guide = resize_planes(case.image[None], case.size)
    labels, _ = upsample_argmax(
        logits[None],
        case.size,
        query_to_class=recorded["query_to_class"],
        logit_scale=values["logit_scale"],
        threshold=values["probability_threshold"],
        guide=guide,
        refine_iterations=values["pamr_iterations"],
    )
    assert agreement(labels[0], recorded["prediction"]) >= 0.9999


@pytest.mark.parametrize("threshold", (0.0, 0.3, 0.6, 0.9, 2.0))
def test_groups_are_those_of_complete_linkage(threshold: float) -> None:
    torch.manual_seed(0)
    text = F.normalize(torch.randn(60, 16) + 0.5 * torch.randn(1, 16), dim=1)
    text = torch.cat([text, text[5:6]])
    rows = text.double().numpy()
    distance = 1 - rows @ rows.T
    upper = distance[np.triu_indices(len(rows), 1)].clip(0)
    wanted = fcluster(linkage(upper, "complete"), max(threshold, 1e-9), "distance")
    groups = group_queries(text, max(threshold, 1e-9)).numpy()
    assert ((groups[:, None] == groups) == (wanted[:, None] == wanted)).all()
    first = np.unique(groups, return_index=True)[1]
    assert (np.diff(first) > 0).all(), "numbered in the order of their first queries"


def test_one_query_is_one_group_and_far_ones_stay_alone() -> None:
    assert group_queries(unit(1, 8), 2.0).tolist() == [0]
    assert group_queries(torch.eye(4), 0.9).tolist() == [0, 1, 2, 3]
    assert group_queries(torch.eye(4), 2).tolist() == [0, 0, 0, 0]


def test_links_reach_no_further_than_the_threshold() -> None:
    """A chain whose neighbours are near and whose ends are not: single linkage would make one group of it."""
    angle = torch.tensor([0.0, 0.4, 0.85, 1.2])
    text = torch.stack([angle.cos(), angle.sin()], dim=1)
    assert group_queries(text, 0.1).tolist() == [0, 0, 1, 1]


def adjustment(**changes: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    torch.manual_seed(1)
    text = unit(7, 16)
    groups = torch.tensor([0, 1, 0, 2, 1, 0, 3])
    option = TextAdjustment(**{"text_weight": 0.3, "global_weight": 0.2, **changes})
    return lambda patches, vectors, text=text: adjust(patches, text, groups, vectors, option)


@pytest.mark.parametrize("grid", ((3, 5), (1, 1), (1, 4)))
def test_adjusted_logits_do_not_depend_on_other_windows(grid: tuple[int, int]) -> None:
    run = adjustment()
    patches, vectors = torch.randn(3, *grid, 16), torch.randn(3, 16)
    together = run(patches, vectors)
    assert together.shape == (3, 7, *grid)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(run(patches[order], vectors[order]), together[order])
    alone = torch.cat([run(patches[[one]], vectors[[one]]) for one in range(3)])
    torch.testing.assert_close(alone, together)


def test_adjustment_by_hand() -> None:
    torch.manual_seed(1)
    text, patches, vector = unit(7, 16), torch.randn(1, 2, 3, 16), torch.randn(1, 16)
    got = adjustment()(patches, vector, text)[0].flatten(1)
    tokens = F.normalize(patches[0].flatten(0, 1), dim=1)
    seen = text @ F.normalize(vector[0], dim=0)
    new = text.clone()
    for members in ([0, 2, 5], [1, 4], [3], [6]):
        query = max(members, key=lambda one: seen[one].item())
        nearest = sorted(range(6), key=lambda one: -(tokens[one] @ text[query]).item())[:2]
        mean = F.normalize(tokens[nearest].mean(0), dim=0)
        new[query] = F.normalize(0.7 * text[query] + 0.3 * mean, dim=0)
    torch.testing.assert_close(got, 0.8 * new @ tokens.T + 0.2 * seen[:, None])


def test_adjustment_by_nothing_is_the_plain_cosine() -> None:
    text, patches, vector = unit(7, 16), torch.randn(2, 3, 4, 16), torch.randn(2, 16)
    plain = adjustment(text_weight=0, global_weight=0)(patches, vector, text)
    torch.testing.assert_close(plain, similarity(patches, text))
    flat = adjustment(global_weight=1)(patches, vector, text)
    seen = image_similarity(vector, text)
    torch.testing.assert_close(flat, seen[:, :, None, None].expand_as(flat))


def test_windows_with_nan_show_it_and_others_stay() -> None:
    run = adjustment()
    patches, vectors = torch.randn(2, 3, 4, 16), torch.randn(2, 16)
    wanted = run(patches, vectors)[1]
    patches[0], vectors[0] = torch.nan, torch.nan
    logits = run(patches, vectors)
    assert logits[0].isnan().all()
    torch.testing.assert_close(logits[1], wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patches": torch.zeros(2, 3, 4, 15)}, r"\(B, h, w, 16\).*got \(2, 3, 4, 15\)"),
        ({"patches": torch.zeros(2, 0, 4, 16)}, "at least one patch"),
        ({"vectors": torch.zeros(1, 16)}, "repeat the picture's for each of its windows"),
        ({"groups": torch.zeros(6).long()}, "make it with group_queries"),
        ({"groups": [0] * 7}, "groups must be an int64 tensor"),
        ({"text": torch.zeros(0, 16)}, "at least one query; got none"),
    ],
)
def test_adjustment_says_what_does_not_fit(changes: dict[str, Any], message: str) -> None:
    inputs = {
        "patches": torch.zeros(2, 3, 4, 16),
        "text": torch.zeros(7, 16),
        "groups": torch.zeros(7).long(),
        "vectors": torch.zeros(2, 16),
        **changes,
    }
    with pytest.raises((TypeError, ValueError), match=message):
        adjust(*inputs.values(), TextAdjustment())


# Area rule.


def test_recorded_area_rule() -> None:
    case = Case("sc_clip_segment")
    values, recorded = case.settings, case.arrays
    logits = case.stitched(
        similarity(DenseEncoder(tower(), base="sc-clip")(case.pixels).patches, case.text)
    )
    probabilities = class_probabilities(
        logits,
        case.size,
        query_to_class=recorded["query_to_class"],
        logit_scale=values["logit_scale"],
    )
    dropped = small_classes(count_pixels(probabilities), values["area_threshold"])
    zeroed = probabilities.masked_fill(dropped[:, None, None], 0)
    assert relative(zeroed[:, ::8, ::8], recorded["probabilities_every_8"]) <= 1e-5
    rule = (values["area_threshold"], values["probability_threshold"])
    labels, best = apply_area_rule(probabilities, *rule)
    assert agreement(labels, recorded["prediction"]) >= 0.9999

    parts = list(
        apply_area_rule_by_strips(
            lambda first, last: probabilities[:, first:last], case.size[0], 33, *rule
        )
    )
    assert [part[0] for part in parts] == list(range(0, case.size[0], 33))
    assert torch.equal(torch.cat([part[1] for part in parts]), labels)
    assert torch.equal(torch.cat([part[2] for part in parts]), best)


def shares(labels: list[list[int]], classes: int) -> Tensor:
    """Probabilities of 0.6 at the labels, and of 0.4 shared by the other classes."""
    likeliest = F.one_hot(torch.tensor(labels), classes).movedim(2, 0).float()
    return 0.6 * likeliest + 0.4 / (classes - 1) * (1 - likeliest)


def test_classes_of_a_small_area_are_dropped() -> None:
    """6 pixels of class 1, 3 of class 2, 1 of class 3: 10 in all but the first; class 0 never goes."""
    labels = [[1, 1, 1, 1, 0], [1, 1, 2, 2, 2], [3, 0, 0, 0, 0]]
    probabilities = shares(labels, 4)
    kept, _ = apply_area_rule(probabilities, 0.09)
    assert kept.tolist() == labels
    kept, best = apply_area_rule(probabilities, 0.1)
    assert kept.tolist() == [*labels[:2], [0, 0, 0, 0, 0]]
    assert best[2, 0] == pytest.approx(0.4 / 3)
    kept, _ = apply_area_rule(probabilities, 0.1, threshold=0.5)
    assert kept.tolist() == [*labels[:2], [0, 0, 0, 0, 0]]
    assert apply_area_rule(probabilities, 1.0)[0].unique().tolist() == [0]
    few = [[1, 1, 1], [2, 2, 0]]
    assert apply_area_rule(shares(few, 3), 0.3)[0].tolist() == few


@pytest.mark.parametrize("share", (0.0, 0.5, 1.0))
def test_a_picture_of_the_first_class_alone_stays(share: float) -> None:
    labels, best = apply_area_rule(shares([[0, 0], [0, 0], [0, 0]], 3), share)
    assert labels.shape == (3, 2)
    assert labels.eq(0).all()
    assert best.eq(0.6).all()
    assert apply_area_rule(torch.ones(1, 2, 3), share)[0].eq(0).all()


@pytest.mark.parametrize("merged", (False, True))
@pytest.mark.parametrize("refined", (0, 2))
def test_without_small_classes_labels_are_those_of_the_op(merged: bool, refined: int) -> None:
    torch.manual_seed(0)
    logits, guide = torch.randn(6, 3, 5), torch.randn(3, 20, 28)
    logits[4] = -torch.inf
    classes = torch.tensor([0, 2, 2, 1, 0, 3]) if merged else None
    options = {
        "query_to_class": classes,
        "logit_scale": 9.0,
        "through": (24, 40),
        "refine_iterations": refined,
    }
    wanted = upsample_argmax(logits[None], (20, 28), guide=guide[None], threshold=0.4, **options)
    probabilities = class_probabilities(logits, (20, 28), guide=guide, **options)
    labels, best = apply_area_rule(probabilities, 0.0, threshold=0.4)
    assert torch.equal(labels, wanted[0][0])
    torch.testing.assert_close(best, wanted[1][0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: apply_area_rule(torch.zeros(3, 4), 0.1), r"\(classes, H, W\); got \(3, 4\)"),
        (lambda: apply_area_rule(torch.zeros(2, 3, 4), 1.1), "share must lie between 0 and 1"),
        (lambda: apply_area_rule(torch.zeros(2, 3, 4), 0.1, 2.0), "threshold must lie"),
        (lambda: apply_area_rule(torch.zeros(0, 3, 4), 0.1), "the number of classes"),
        (lambda: list(apply_area_rule_by_strips(3, 4, 5, 0.1)), "read must be a function"),
        (
            lambda: class_probabilities(torch.zeros(2, 3, 4), (5, 5), refine_iterations=1),
            "needs a guide image",
        ),
        (
            lambda: class_probabilities(
                torch.zeros(2, 3, 4), (5, 5), query_to_class=torch.zeros(3).long()
            ),
            r"query_to_class must be \(2,\)",
        ),
    ],
)
def test_the_area_rule_says_what_does_not_fit(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call()


# Boxes of contours.


def mask(*rows: str) -> Tensor:
    return torch.tensor([[one == "#" for one in row] for row in rows])


def boxes_of(one: Tensor) -> list[list[int]]:
    return sorted(contour_boxes(one[None])[1].tolist())


def test_the_box_of_a_hole_is_one_larger_on_each_side() -> None:
    ring = mask(
        "#####.",
        "##.##.",
        "#####.",
        "......",
    )
    assert boxes_of(ring) == [[0, 2, 0, 4], [0, 2, 1, 3]]


def test_holes_end_at_corners_and_parts_go_across_them() -> None:
    crossed = mask(
        ".#.",
        "#.#",
        ".#.",
    )
    assert boxes_of(crossed) == [[0, 2, 0, 2], [0, 2, 0, 2]], "one part, and its hole"
    open_ring = mask(
        "##.",
        "#.#",
        "###",
    )
    # Steps to 8 neighbours enclose it, though its corner is open to steps like them.
    assert boxes_of(open_ring) == [[0, 2, 0, 2], [0, 2, 0, 2]]
    assert boxes_of(mask("###", "#..", "###")) == [[0, 2, 0, 2]], "open to the edge: no hole"


def test_a_part_inside_a_hole_has_a_box_of_its_own() -> None:
    nested = mask(
        "#####",
        "#...#",
        "#.#.#",
        "#...#",
        "#####",
    )
    assert boxes_of(nested) == [[0, 4, 0, 4], [0, 4, 0, 4], [2, 2, 2, 2]]


@pytest.mark.parametrize("shape", ((1, 1), (1, 6), (7, 9), (14, 11)))
@pytest.mark.parametrize("filled", (0.3, 0.6, 0.8))
def test_boxes_are_those_of_the_contours_that_opencv_finds(
    shape: tuple[int, int], filled: float
) -> None:
    torch.manual_seed(0)
    masks = torch.rand(20, *shape) < filled
    planes, boxes = contour_boxes(masks)
    for number, one in enumerate(masks):
        found, _ = cv2.findContours(
            one.numpy().astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE
        )
        extents = [cv2.boundingRect(contour) for contour in found]
        wanted = sorted([y, y + height - 1, x, x + width - 1] for x, y, width, height in extents)
        assert sorted(boxes[planes == number].tolist()) == wanted


def test_a_winding_part_is_one_part(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = []
    pool = F.max_pool2d
    monkeypatch.setattr(F, "max_pool2d", lambda *a, **k: rounds.append(1) or pool(*a, **k))
    snake = torch.zeros(15, 15, dtype=torch.bool)
    snake[::2] = True
    snake[1::4, -1] = True
    snake[3::4, 0] = True
    for diagonal in (True, False):
        labels = components(snake[None], diagonal=diagonal)
        assert labels[0][snake].unique().numel() == 1
        assert labels[0][~snake].eq(0).all()
    rounds.clear()
    assert bounds(components(snake[None], diagonal=True))[1].tolist() == [[0, 14, 0, 14]]
    assert len(rounds) <= 20, "it is over a hundred positions long"


def test_positions_inside_boxes_without_the_last_row_and_column() -> None:
    masks = torch.stack([mask("#..#", "#...", "..##"), mask("....", "....", "...#")])
    planes, boxes = bounds(components(masks, diagonal=True))
    inside = inside_boxes(planes, half_open(boxes, (3, 4)), (2, 3, 4))
    assert torch.equal(inside[0], mask("#...", "#...", "...."))
    assert not inside[1].any()
    # Boxes that overlap count once.
    double = torch.tensor([[0, 2, 0, 2], [1, 3, 1, 3]])
    painted = inside_boxes(torch.tensor([1, 1]), double, (2, 3, 4))
    assert torch.equal(painted[1], mask("##..", "###.", ".##."))
    assert not painted[0].any()


# Class purification.


@pytest.mark.parametrize(
    ("name", "base", "kind"),
    [
        ("freecp_clearclip", "clearclip", "attention_only"),
        ("freecp_sclip", "sclip", "attention_and_mlp"),
    ],
)
def test_recorded_class_purification(name: str, base: str, kind: str) -> None:
    case = Case(name)
    values, recorded = case.settings, case.arrays
    encoder = DenseEncoder(tower(), base=base, final_block=kind)  # type: ignore[arg-type]
    features = encoder(case.pixels, wanted=("spread",))
    maps, kept = purify(
        similarity(features.patches, case.text),
        features.context["spread"],
        case.pixels,
        case.text,
        encoder.image_vectors,
        ClassPurification(values["redundancy_threshold"], values["ambiguity_threshold"]),
        patch_size=(16, 16),
        background=values["background_queries"],
        second_text=recorded["text_llm"],
    )
    assert torch.equal(kept, recorded["kept"].bool())
    whole = case.resized(maps)
    assert relative(whole[:, ::8, ::8], recorded["logits_every_8"]) <= 1e-5
    if values["with_background"]:
        whole = with_background(whole)
    assert agreement(whole.argmax(0), recorded["prediction"]) >= 0.9999


def test_the_mean_map_is_that_of_whole_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = DenseEncoder(small_tower(), base="clearclip")
    pixels = torch.randn(2, 3, 48, 80)
    maps = []
    after = Trace.after

    def keep(trace: Trace, step: BlockStep) -> torch.Tensor:
        width = step.query.shape[-1]
        maps.append((step.query @ step.key.mT / width**0.5).softmax(-1)[:, :, 1:, 1:])
        return after(trace, step)

    monkeypatch.setattr(Trace, "after", keep)
    # Rows of one patch at a time.
    monkeypatch.setattr("resclip.encoder.trace.MAP_BYTES", 1)
    found = encoder(pixels, wanted=("spread",)).context["spread"]
    assert len(maps) == 5
    torch.testing.assert_close(found, torch.stack(maps).mean(dim=(0, 2)))


def purification_inputs(windows: int, grid: tuple[int, int], queries: int) -> dict[str, Any]:
    torch.manual_seed(0)
    count = grid[0] * grid[1]
    coarse = torch.randn(windows, queries, 3, 3)
    cosines = 0.03 * F.interpolate(coarse, size=grid, mode="bilinear", align_corners=False)
    near = torch.rand(windows, count, count).softmax(dim=-1) + torch.eye(count)
    projection = torch.randn(3, 8)
    return {
        "cosines": cosines,
        "mean_map": near,
        # A remainder past the last whole patch, wider than the grid has patches, is not seen.
        "pixels": torch.randn(windows, 3, 16 * grid[0] + 13, 16 * grid[1] + 15),
        "patch_size": (16, 16),
        "text": unit(queries, 8),
        "image_vectors": lambda crops: (crops[:, :, ::7, ::5] ** 3).mean(dim=(2, 3)) @ projection,
    }


def test_purified_maps_do_not_depend_on_other_windows() -> None:
    inputs = purification_inputs(4, (5, 8), 9)
    option = ClassPurification(0.05, 0.2)
    calls = []

    def vectors(crops: Tensor) -> Tensor:
        assert crops.shape[1:] == (3, 112, 112)
        calls.append(len(crops))
        return purification_inputs(1, (2, 2), 2)["image_vectors"](crops)

    def run(rows: list[int]) -> Any:
        picked = {name: inputs[name][rows] for name in ("cosines", "mean_map", "pixels")}
        return purify(**{**inputs, **picked, "image_vectors": vectors}, option=option, background=2)

    together = run([0, 1, 2, 3])
    assert len(calls) == 1, "all windows' crops go through CLIP at once"
    assert together.maps.shape == (4, 7, 5, 8)
    for rows in ([2, 0, 3, 1], [0], [1], [2], [3]):
        again = run(rows)
        assert torch.equal(again.kept, together.kept[rows])
        torch.testing.assert_close(again.maps, together.maps[rows])
    plain = purify(**inputs, option=ClassPurification(0.05, 2.0), background=2)
    assert (plain.kept | ~together.kept).all()
    assert plain.kept.sum() > together.kept.sum() > 0, "some are ambiguous, and others stay"
    assert together.maps[~together.kept].eq(0).all()
    assert together.maps.aminmax() == (0, pytest.approx(1))


@pytest.mark.parametrize("grid", ((4, 6), (1, 1), (1, 5)))
@pytest.mark.parametrize("queries", (1, 3))
def test_flat_cosines_keep_no_class(grid: tuple[int, int], queries: int) -> None:
    inputs = purification_inputs(2, grid, queries)
    inputs["cosines"] = torch.full_like(inputs["cosines"], 0.2)
    maps, kept = purify(**inputs, option=ClassPurification())
    assert not kept.any()
    assert maps.eq(0).all()
    assert with_background(maps)[:, 0].eq(1).all()


def test_a_window_with_nan_shows_it() -> None:
    inputs = purification_inputs(2, (4, 6), 5)
    wanted = purify(**inputs, option=ClassPurification())
    inputs["cosines"][0, 1, 2, 3] = torch.nan
    got = purify(**inputs, option=ClassPurification())
    assert got.maps[0].isnan().all()
    torch.testing.assert_close(got.maps[1], wanted.maps[1])


def test_ambiguous_classes_of_a_flat_box_all_stay() -> None:
    """The only box lies in the last row, of which boxes never hold anything."""
    maps = torch.zeros(1, 2, 4, 5)
    maps[0, :, 3, 1:3] = 1.0
    kept = torch.ones(1, 2, dtype=torch.bool)
    pixels, text = torch.zeros(1, 3, 32, 80), torch.eye(2, 8)
    pixels[:, :, 16:24, 16:48] = 1.0

    def refuse(_: Tensor) -> Tensor:
        raise AssertionError("there is nothing to look at")

    got = class_purification.without_ambiguous(maps, kept, pixels, text, refuse, 0.5, (8, 16))
    assert got.all()

    def second(crops: Tensor) -> Tensor:
        assert crops.shape == (1, 3, 112, 112)
        assert crops.eq(1).all(), "the box's own pixels"
        return text[1:]

    # One row up it has an area, and CLIP decides.
    maps = maps.roll(-1, dims=2)
    got = class_purification.without_ambiguous(maps, kept, pixels, text, second, 0.5, (8, 16))
    assert got.tolist() == [[False, True]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"background": 5}, "at least one of 5 queries for a class; got 5"),
        ({"mean_map": torch.zeros(2, 23, 23)}, r"mean_map must be \(2, 24, 24\)"),
        ({"pixels": torch.zeros(1, 3, 64, 96)}, "pixels must be those of 2 windows"),
        ({"text": torch.zeros(4, 8)}, "text must have one row for each of 5 queries"),
        ({"second_text": torch.zeros(4, 8)}, "second_text must have one row"),
        ({"image_vectors": 3}, "image_vectors must be a function of pixels"),
        ({"patch_size": 16}, r"patch_size must be \(height, width\) in pixels"),
    ],
)
def test_purification_says_what_does_not_fit(changes: dict[str, Any], message: str) -> None:
    inputs = {**purification_inputs(2, (4, 6), 5), **changes}
    with pytest.raises((TypeError, ValueError), match=message):
        purify(**inputs, option=ClassPurification())


@pytest.mark.parametrize("pieces", (Pieces(), Pieces(aggregation=Aggregation())))
def test_the_final_block_may_keep_its_mlp_without_its_residual(pieces: Pieces) -> None:
    pixels = torch.randn(2, 3, 48, 80)
    encoder = DenseEncoder(
        small_tower(), base="clearclip", final_block="attention_and_mlp", pieces=pieces
    )
    plain = DenseEncoder(small_tower(), base="clearclip", pieces=pieces)
    block, inputs = plain.tower.block_list[-1], plain.run_blocks(pixels)
    if pieces.aggregation is None:
        attention = plain.final.run(inputs, None, None).tokens
        wanted = plain.tower.head(attention + block.mlp(block.ln_2(attention)))[:, 1:]
        torch.testing.assert_close(encoder(pixels).patches.flatten(1, 2), wanted)
    different = (encoder(pixels).patches - plain(pixels).patches).norm()
    assert different > 0.1 * plain(pixels).patches.norm()


# Graph propagation.


def test_recorded_graph_propagation() -> None:
    recorded, values = arrays("later/propagation_lposs"), settings()["propagation_lposs"]
    assert recorded["patches"].unique(dim=0).shape == (1, 2)
    positions = patch_centres(
        recorded["corners"].tolist(), tuple(recorded["patches"][0].tolist()), (16, 16)
    )
    names = ("neighbours", "sigma", "gamma", "alpha", "steps")
    got = propagate(
        recorded["features"].float(),
        recorded["logits"].double(),
        positions,
        GraphPropagation(**{name: values[name] for name in names}),
    )
    assert relative(got, recorded["propagated"]) <= 1e-6


def graph_inputs(count: int = 40, queries: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    features = torch.randn(count, 8) + torch.randn(8)
    return features, torch.randn(count, queries), 50 * torch.rand(count, 2)


def test_propagation_is_the_dense_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    features, logits, positions = graph_inputs()
    option = GraphPropagation(neighbours=7, sigma=0.02, alpha=0.5, steps=60)
    rows = F.normalize(features, dim=1)
    cosines = rows @ rows.T
    weights = torch.zeros(40, 40, dtype=torch.float64)
    for one in range(40):
        for other in cosines[one].argsort(descending=True)[:7].tolist():
            away = (positions[one] - positions[other]).norm()
            weights[one, other] = cosines[one, other].clamp(0) ** 3 * (-0.02 * away).exp()
    weights = (weights + weights.T).fill_diagonal_(0)
    root = weights.sum(1).rsqrt()
    system = torch.eye(40, dtype=torch.float64) - 0.5 * root[:, None] * weights * root
    wanted = torch.linalg.solve(system, logits.double()).float()
    torch.testing.assert_close(propagate(features, logits, positions, option), wanted)
    monkeypatch.setattr(graph_propagation, "BLOCK_BYTES", 1)  # One row at a time.
    torch.testing.assert_close(propagate(features, logits, positions, option), wanted)


def test_propagation_does_not_depend_on_the_order_of_patches_and_queries() -> None:
    features, logits, positions = graph_inputs()
    option = GraphPropagation(neighbours=9)
    wanted = propagate(features, logits, positions, option)
    order = torch.randperm(40)
    got = propagate(features[order], logits[order], positions[order], option)
    torch.testing.assert_close(got, wanted[order])
    alone = propagate(features, logits[:, 1:2], positions, option)
    torch.testing.assert_close(alone, wanted[:, 1:2])
    assert (wanted - logits).norm() > 0.5 * logits.norm()


def test_what_is_linked_to_nothing_keeps_its_logits() -> None:
    option = GraphPropagation()
    features, logits, positions = graph_inputs()
    torch.testing.assert_close(
        propagate(features[:1], logits[:1], positions[:1], option), logits[:1]
    )
    opposite = torch.cat([features[:1], -features[:1], torch.zeros_like(features[:1])])
    got = propagate(opposite, logits[:3], positions[:3], option)
    torch.testing.assert_close(got, logits[:3])
    plain = propagate(features, logits, positions, GraphPropagation(alpha=0))
    torch.testing.assert_close(plain, logits)
    assert propagate(features, torch.zeros_like(logits), positions, option).eq(0).all()


def test_a_query_that_is_solved_stops_and_one_with_nan_shows_it() -> None:
    features, logits, positions = graph_inputs()
    option = GraphPropagation(neighbours=9, steps=1000)
    wanted = propagate(features, logits.double(), positions, option)
    logits[:, 0] = 0
    logits[3, 2] = torch.nan
    got = propagate(features, logits.double(), positions, option)
    assert got[:, 0].eq(0).all()
    torch.testing.assert_close(got[:, 1], wanted[:, 1])
    assert got[:, 2].isnan().all()


def test_a_graph_is_solved_where_there_is_float64() -> None:
    assert solver_device(torch.device("mps")) == torch.device("cpu")
    assert solver_device(torch.device("cuda:1")) == torch.device("cuda:1")


def test_centres_of_patches() -> None:
    centres = patch_centres([(0, 0), (10, 20)], (2, 3), (16, 8))
    assert centres.shape == (12, 2)
    assert centres[:3].tolist() == [[8, 4], [8, 12], [8, 20]]
    assert centres[10].tolist() == [10 + 24, 20 + 12]


def test_propagation_says_what_does_not_fit() -> None:
    features, logits, positions = graph_inputs()
    option = GraphPropagation()
    with pytest.raises(ValueError, match=r"one row for each of N patches.*\(40, 8\), \(39, 3\)"):
        propagate(features, logits[:39], positions, option)
    with pytest.raises(ValueError, match="positions two columns"):
        propagate(features, logits, positions[:, :1], option)
    with pytest.raises(ValueError, match="at least one"):
        propagate(features[:0], logits[:0], positions[:0], option)
    with pytest.raises(TypeError, match="positions must be floating point"):
        propagate(features, logits, positions.long(), option)


# Keys of all windows.


@pytest.mark.parametrize("name", ("windows_clearclip", "windows_proxy"))
def test_recorded_cross_window_keys(name: str) -> None:
    case = Case(name)
    values, recorded = case.settings, case.arrays
    option = CrossWindowKeys(
        threshold=values["anchor_threshold"],
        steps=values["anchor_steps"],
        row_mean=values["row_mean"],
        beta=values["beta"] if values["beta_alpha"] is None else None,
        gamma_alpha=values["gamma_alpha"],
    )
    if "features" in recorded:
        features = recorded["features"].float()
        parts = features.split(2)
        calls = iter(parts)
        encoder = DenseEncoder(tower(), base="proxyclip", proxy=lambda _: next(calls))
    else:
        encoder = DenseEncoder(tower(), base="clearclip")
    batches = [
        WindowTokens.of(encoder.final, encoder.run_blocks(pixels))
        for pixels in case.pixels.split(2)
    ]
    corners = [(one.top, one.left) for one in case.windows]
    patches = attend_windows(encoder.final, WindowTokens.cat(batches), corners, option)
    tokens, wanted = patches.flatten(1, 2), recorded["tokens"]
    assert relative(tokens, wanted) <= 1e-5
    centred = (tokens - wanted).norm() / (wanted - wanted.mean(dim=1, keepdim=True)).norm()
    assert centred <= 1e-4
    logits = case.resized(similarity(patches, case.text))
    assert relative(logits[:, ::8, ::8], recorded["logits_every_8"]) <= 1e-5


def windows(count: int, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    patches = grid[0] * grid[1]
    shared = torch.randn(6)
    return F.normalize(torch.randn(count, patches, 6) + shared, dim=-1), torch.randn(
        count, patches, 4
    )


OPTIONS = (
    CrossWindowKeys(),
    CrossWindowKeys(steps=0),
    CrossWindowKeys(row_mean=False, beta=1.2, gamma_alpha=None),
    CrossWindowKeys(threshold=1, steps=1),
)


@pytest.mark.parametrize("option", OPTIONS)
def test_all_windows_see_each_other_by_the_formula(
    option: CrossWindowKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, values = windows(3, (2, 5))
    flat, anchors = keys.flatten(0, 1), keys.flatten(0, 1)
    count = torch.ones(30)
    for step in range(max(1, option.steps)):
        belongs = anchors @ flat.T > option.threshold
        lonely = ~belongs.any(dim=1)
        belongs[lonely] = torch.eye(30, dtype=torch.bool)[lonely]
        count = belongs.sum(dim=1)
        if step < option.steps:
            anchors = F.normalize(belongs.float() @ flat / (count[:, None] + 1e-6), dim=1)
    score = anchors @ flat.T
    beta = 1 + 0.3 * np.log(4) if option.beta is None else option.beta
    gamma = option.gamma if option.gamma_alpha is None else 1 + option.gamma_alpha / count[:, None]
    mean = score.mean(1, keepdim=True).clamp(0) if option.row_mean else score.mean()
    score = (score - beta * mean) * gamma
    largest = score.amax(1, keepdim=True)
    score[score < largest.clamp(max=0)] = -torch.inf
    wanted = (score.softmax(1) @ values.flatten(0, 1)).unflatten(0, (3, 10))
    torch.testing.assert_close(cross_window_attention(keys, keys, values, option), wanted)
    monkeypatch.setattr(cross_windows, "BLOCK_BYTES", 1)  # One row at a time.
    torch.testing.assert_close(cross_window_attention(keys, keys, values, option), wanted)


@pytest.mark.parametrize("option", OPTIONS)
def test_the_order_of_windows_makes_no_difference(option: CrossWindowKeys) -> None:
    keys, values = windows(4, (3, 5))
    order = torch.tensor([2, 0, 3, 1])
    corners = [(0, 0), (0, 16), (16, 8), (32, 16)]

    def run(rows: Tensor) -> Tensor:
        anchors = neighbour_means(keys[rows], (3, 5), [corners[one] for one in rows], (16, 8))
        return cross_window_attention(keys[rows], anchors, values[rows], option)

    torch.testing.assert_close(run(order), run(torch.arange(4))[order])


def test_one_window_with_keys_alone_is_proxyclip() -> None:
    features, value = torch.randn(1, 6, 3, 5), torch.randn(1, 2, 15, 4)
    keys = F.normalize(features.flatten(2).mT, dim=-1)
    option = CrossWindowKeys(
        threshold=1, steps=0, row_mean=False, beta=1.2, gamma=3.0, gamma_alpha=None
    )
    together = value.transpose(1, 2).flatten(2)
    got = cross_window_attention(keys, keys, together, option)
    wanted = proxy_attention(features, value, grid=(3, 5), beta=1.2, gamma=3.0)
    torch.testing.assert_close(got, wanted.transpose(1, 2).flatten(2))


def test_first_anchors_by_hand() -> None:
    """Three windows of 2 × 3 patches of 16 × 8 pixels: the second a patch to the right, the third off the raster."""
    torch.manual_seed(0)
    compared = torch.randn(3, 6, 4)
    got = neighbour_means(compared, (2, 3), [(0, 0), (0, 8), (5, 3)], (16, 8))
    planes = compared.unflatten(1, (2, 3))
    around = [planes[0, row, column] for row in (0, 1) for column in (0, 1)]
    wanted = F.normalize(torch.stack(around).mean(0), dim=0)
    torch.testing.assert_close(got[0, 0], wanted)  # No other window's patch lies there.
    around = [planes[0, row, column] for row in (0, 1) for column in (0, 1, 2)]
    wanted = F.normalize(torch.stack([*around, planes[1, 0, 0]]).mean(0), dim=0)
    torch.testing.assert_close(got[0, 1], wanted)
    around = [planes[1, row, column] for row in (0, 1) for column in (0, 1)]
    wanted = F.normalize(torch.stack([*around, planes[0, 1, 1]]).mean(0), dim=0)
    torch.testing.assert_close(got[1, 3], wanted)
    alone = neighbour_means(compared[2:], (2, 3), [(0, 0)], (16, 8))
    torch.testing.assert_close(got[2], alone[0])


@pytest.mark.parametrize("option", OPTIONS)
def test_one_patch_keeps_its_value(option: CrossWindowKeys) -> None:
    keys, values = windows(1, (1, 1))
    torch.testing.assert_close(cross_window_attention(keys, keys, values, option), values)


def test_patches_that_are_all_alike_share_evenly() -> None:
    keys = F.normalize(torch.ones(2, 6, 3), dim=-1)
    values = torch.randn(2, 6, 4)
    got = cross_window_attention(keys, keys, values, CrossWindowKeys())
    torch.testing.assert_close(got, values.mean(dim=(0, 1)).expand_as(values))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"base": "naclip"}, "use base 'clearclip' or 'proxyclip'.*'naclip' compares 'kk'"),
        ({"base": "clearclip", "rcs": RCS()}, "RCS, SFR and an overview are not defined"),
        ({"base": "clearclip", "final_block": "full_residual"}, "final_block 'full_residual'"),
        ({"base": "naclip", "correlation": "qq"}, "a prior or a window of neighbours"),
    ],
)
def test_methods_that_have_no_keys_of_all_windows_say_so(
    method: dict[str, Any], message: str
) -> None:
    encoder = DenseEncoder(small_tower(), **method)
    with pytest.raises(ValueError, match=message):
        WindowTokens.of(encoder.final, encoder.run_blocks(torch.zeros(1, 3, 48, 48)))


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
def test_similarities_of_low_precision_tokens_are_those_of_float32(dtype: torch.dtype) -> None:
    """A key that comes to lie on the other side of the threshold would change tokens by far more than rounding."""
    torch.manual_seed(0)
    low = DenseEncoder(small_tower().to(dtype), base="clearclip").final
    wide = DenseEncoder(small_tower(), base="clearclip").final
    compared, value = torch.randn(4, 15, 64) + torch.randn(64), torch.randn(4, 2, 15, 32)
    tokens = WindowTokens(compared.to(dtype), value.to(dtype), (3, 5), is_proxy=False)
    corners, option = [(0, 0), (0, 16), (16, 0), (16, 16)], CrossWindowKeys(beta=1.2)
    got = attend_windows(low, tokens, corners, option)
    same = WindowTokens(tokens.compared.float(), tokens.value.float(), (3, 5), is_proxy=False)
    wanted = attend_windows(wide, same, corners, option)
    assert got.dtype is dtype
    assert got.shape == (4, 3, 5, 32)
    assert relative(got.float(), wanted) < 4 * torch.finfo(dtype).eps


def test_windows_that_do_not_fit_together_are_refused() -> None:
    encoder = DenseEncoder(small_tower(), base="clearclip")
    small, large = (
        WindowTokens.of(encoder.final, encoder.run_blocks(torch.zeros(1, 3, 48, width)))
        for width in (48, 64)
    )
    with pytest.raises(ValueError, match=r"all of one grid; got \[\(3, 3\), \(3, 4\)\]"):
        WindowTokens.cat([small, large])
    with pytest.raises(ValueError, match="at least one batch of windows"):
        WindowTokens.cat([])
    with pytest.raises(ValueError, match="one pixel for each of 1 windows; got 2"):
        attend_windows(encoder.final, small, [(0, 0), (0, 16)], CrossWindowKeys())
    keys, values = windows(2, (2, 2))
    with pytest.raises(ValueError, match="anchors the keys' width"):
        cross_window_attention(keys, keys[..., :3], values, CrossWindowKeys())


def test_strips_are_read_twice_and_never_together() -> None:
    """Two passes over strips: what memory holds is one strip's."""
    probabilities = shares([[1, 1, 2], [0, 1, 1], [2, 1, 3], [0, 0, 0], [1, 1, 1]], 4)
    read = []

    def rows(first: int, last: int) -> Tensor:
        read.append((first, last))
        return probabilities[:, first:last]

    parts = list(apply_area_rule_by_strips(rows, 5, 2, 0.15))
    assert read == [(0, 2), (2, 4), (4, 5)] * 2
    labels = torch.cat([part[1] for part in parts])
    assert torch.equal(labels, apply_area_rule(probabilities, 0.15)[0])
    assert area_rule.count_pixels(probabilities).tolist() == [4, 8, 2, 1]
    assert labels.tolist()[2][2] == 0
