"""Pieces and steps as values: what they need, how they are put together, and what pieces do on any base."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from method_support import colours, make, small_tower, text
from models_support import timm_visual

from resclip import RCS, SFR, DenseEncoder, ResidualBlock, patch
from resclip.errors import UnknownChannelsWarning
from resclip.methods.catalogue import BASES, find_method
from resclip.methods.composition import as_parts, compose, parse_changes
from resclip.methods.pieces import (
    Aggregation,
    Denoising,
    HeadSelection,
    KeyAlignment,
    LayerFusion,
    OutlierRepair,
    PatchAttention,
    Pieces,
    Refocusing,
    SecondPath,
    SecondStream,
    SimilarityBranch,
)
from resclip.methods.presets import OWN_SETTINGS, find_preset
from resclip.methods.steps import (
    AreaRule,
    ClusterVote,
    LaplacianPropagation,
    Steps,
    TextAdjustment,
)

LOOSE = {
    "outliers": OutlierRepair(neighbours=4, share=0.2),
    "norm": OutlierRepair("norm", count=3, isolated="zero"),
    "salience": OutlierRepair("salience", count=3, salience=3.0),
    "aggregation": Aggregation(threshold=0.0),
    "stream": SecondStream("2-4"),
    "denoising": Denoising((1, 5), sigma=1.0),
    "refocusing": Refocusing(threshold=0.01),
}
ON_ANY = {
    name: Pieces(**{"outliers" if isinstance(piece, OutlierRepair) else name: piece})
    for name, piece in LOOSE.items()
}


@pytest.mark.parametrize("name", ON_ANY)
@pytest.mark.parametrize("base", ("naclip", "sclip"))
def test_a_piece_acts_on_any_base_image_by_image(base: str, name: str, seed: int) -> None:
    torch.manual_seed(seed)
    pixels, queries = torch.randn(2, 3, 64, 96), text(4, 32)
    modules = {"rcs": RCS(), "sfr": SFR(refine_iterations=0)}
    dense = DenseEncoder(small_tower(), base, pieces=ON_ANY[name], **modules)
    both = dense(pixels, queries)
    plain = DenseEncoder(small_tower(), base, pieces=Pieces(), **modules)(pixels, queries)
    assert not torch.allclose(both.patches, plain.patches, atol=1e-4)
    assert both.cls is not None
    for number in range(2):
        alone = dense(pixels[[number]], queries)
        torch.testing.assert_close(alone.patches[0], both.patches[number], rtol=1e-4, atol=1e-5)
    reference = DenseEncoder(
        small_tower(), base, pieces=ON_ANY[name], implementation="reference", **modules
    )
    torch.testing.assert_close(
        reference(pixels, queries).patches, both.patches, rtol=1e-4, atol=1e-5
    )


def test_no_pieces_are_the_plain_base() -> None:
    torch.manual_seed(0)
    pixels = torch.randn(1, 3, 64, 96)
    for base in ("sc-clip", "gem"):
        plain = DenseEncoder(small_tower(), base, pieces=Pieces(), position="released")
        assert type(plain.final).__name__ == "FinalBlock"
        assert plain(pixels).patches.shape == (1, 4, 6, 32)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            lambda: Pieces(branch=SimilarityBranch()),
            "SimilarityBranch needs PatchAttention: add pat",
        ),
        (
            lambda: Pieces(patches=PatchAttention(), heads=HeadSelection()),
            "HeadSelection needs SimilarityBranch",
        ),
        (lambda: Pieces(stream=SecondStream(scores=False)), "attends by a SimilarityBranch alone"),
        (
            lambda: Pieces(fusion=LayerFusion(), outliers=OutlierRepair()),
            "LayerFusion has a final block of its own, which OutlierRepair does not change",
        ),
        (lambda: Pieces(path=SecondPath(), fusion=LayerFusion()), "leave one of them out"),
        (
            lambda: Pieces(alignment=KeyAlignment(), path=SecondPath()),
            "KeyAlignment changes the sc",
        ),
        (lambda: Pieces(outliers=Aggregation()), "outliers must be a OutlierRepair or None"),
        (lambda: OutlierRepair("median"), "outliers detector must be one of"),
        (lambda: OutlierRepair(share=2), "outliers share"),
        (lambda: Aggregation(threshold=3), "aggregation threshold must be"),
        (lambda: SecondStream("10-4"), "stream layers as text are block numbers"),
        (lambda: Denoising(()), "denoising channels must name one channel at least"),
        (lambda: Denoising("4,x"), "denoising channels as text are numbers"),
        (lambda: SecondPath(unit=False), "belong to unit vectors"),
        (lambda: KeyAlignment(solver="qr"), "alignment solver must be one of"),
        (lambda: Steps(laplacian=AreaRule()), "laplacian must be a LaplacianPropagation or None"),
        (lambda: TextAdjustment(image="crop"), "adjustment image must be one of"),
        (lambda: ClusterVote(min_samples=0), "clusters min_samples must be at least 1"),
    ],
)
def test_parts_that_do_not_fit_are_refused(made: Any, said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        made()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pieces": Pieces(aggregation=Aggregation(before=9))}, "before must lie between 1 and 5"),
        ({"pieces": Pieces(aggregation=Aggregation(after=6))}, "after must lie between 1 and 5"),
        (
            {"pieces": Pieces(stream=SecondStream("2-8"))},
            "layers must lie between 1 and 5.*6, 7, 8",
        ),
        ({"pieces": Pieces(denoising=Denoising((64,)))}, "channels must be below 64.*got 64"),
        ({"pieces": Pieces(alignment=KeyAlignment())}, "takes correlation 'qk'; got 'kk'"),
        (
            {"pieces": Pieces(aggregation=Aggregation()), "correlation": "kk,layer=2"},
            "compares another block's tokens, and aggregation changes",
        ),
        (
            {"pieces": Pieces(aggregation=Aggregation()), "base": "proxyclip", "proxy": colours},
            "attends by another model's features, which aggregation does not change",
        ),
        (
            {"base": "sc-clip", "final_block": "full_residual"},
            "adds .CLS. in place of the residual",
        ),
        ({"base": "rf-clip", "correlation": "qq"}, "it takes correlation 'kk'"),
        ({"base": "gem", "correlation": "qk"}, "compares projections with themselves"),
        ({"base": "maskclip", "pieces": Pieces(patches=PatchAttention())}, "need a score"),
        ({"base": "sc-clip", "position": "nearest"}, "position must be one of"),
    ],
)
def test_pieces_that_a_tower_or_base_lacks(settings: dict[str, Any], said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        DenseEncoder(small_tower(), **settings)


@pytest.mark.filterwarnings("ignore::resclip.errors.UnknownChannelsWarning")
@pytest.mark.parametrize("base", BASES)
def test_towers_without_cls_run_a_method_or_are_refused(base: str, seed: int) -> None:
    torch.manual_seed(seed)
    visual = timm_visual("vit_base_patch16_siglip_gap_224", "avg", depth=4, fc_norm=True)
    pixels, queries = torch.randn(1, 3, 64, 96), None
    if BASES[base].pieces.path is not None and BASES[base].pieces.path.own_cls:
        with pytest.raises(ValueError, match="this tower has no"):
            DenseEncoder(visual, base)
        return
    outliers = BASES[base].pieces.outliers
    if outliers is not None and outliers.detector == "salience":
        with pytest.raises(ValueError, match="'salience' reads .CLS."):
            DenseEncoder(visual, base)
        return
    dense = make(visual, find_method(f"{base}+rcs"))
    features = dense(pixels, queries)
    assert torch.isfinite(features.patches).all()
    assert features.cls is None
    with pytest.raises(ValueError, match="this tower has none: use a tower with"):
        dense.image_vectors(pixels)


@pytest.mark.parametrize("base", ("sc-clip", "rf-clip", "gem", "clipsurgery", "dih-clip"))
@pytest.mark.filterwarnings("ignore::resclip.errors.UnknownChannelsWarning")
def test_a_block_alone_cannot_be_a_method_of_several_blocks(base: str) -> None:
    with pytest.raises(ValueError, match=f"'{base}' .*: use DenseEncoder"):
        ResidualBlock.from_tower(small_tower(), base)
    with pytest.raises(ValueError, match="attention maps are there for bases without such pieces"):
        DenseEncoder(small_tower(), base).attention(torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize("base", ("pearl", "cliptrase"))
def test_a_method_of_the_final_block_alone_is_a_drop_in(base: str, seed: int) -> None:
    torch.manual_seed(seed)
    pixels = torch.randn(2, 3, 64, 64)
    expected = DenseEncoder(small_tower(), base)(pixels)
    visual = copy.deepcopy(small_tower())
    visual.transformer.resblocks[-1] = ResidualBlock.from_tower(visual, base)
    visual.output_tokens = True
    with torch.no_grad():
        _, tokens = visual(pixels)
    found = (tokens @ visual.proj).unflatten(1, (4, 4))
    torch.testing.assert_close(found, expected.patches, rtol=1e-4, atol=1e-5)


def test_what_gives_features_refuses_steps() -> None:
    with pytest.raises(
        ValueError, match=r"'naclip\+tlp' act behind them: leave them out of its name"
    ):
        ResidualBlock.from_tower(small_tower(), "naclip+tlp")
    with pytest.raises(ValueError, match="a patched model gives features"):
        patch(small_tower(), "naclip+pamr")


def test_unknown_channels_are_told_once() -> None:
    with pytest.warns(
        UnknownChannelsWarning, match="this tower of 6 blocks, 64 wide, is not denoi"
    ):
        DenseEncoder(small_tower(), "rf-clip")


def test_changes_by_name() -> None:
    own = BASES["sc-clip"].pieces
    changed = compose(own, {"outliers": {"detector": "norm"}, "stream": None, "refocusing": True})
    assert changed.outliers == OutlierRepair("norm")
    assert changed.stream is None
    assert changed.refocusing == Refocusing()
    assert changed.aggregation == own.aggregation
    assert compose(own, None) is own
    assert compose(own, Pieces()) == Pieces()
    assert compose(Steps(), {"laplacian": {"grid": 224}}).laplacian == LaplacianPropagation(224)
    assert parse_changes(Pieces, ["outliers:detector=norm,count=3", "stream:none", "path"]) == {
        "outliers": {"detector": "norm", "count": 3},
        "stream": None,
        "path": True,
    }
    assert as_parts(Pieces(denoising=Denoising((1, 2))))["denoising"]["channels"] == [1, 2]
    for changes, said in (
        ({"outlier": True}, "unknown name 'outlier' in pieces; use one of: denoising"),
        ({"outliers": {"kind": 1}}, "outliers takes the options detector, .*got 'kind'"),
        ({"branch": True, "patches": None}, "SimilarityBranch needs PatchAttention"),
        (
            {"outliers": "norm"},
            "must be True, None, a mapping of its options, or OutlierRepair.*'norm'",
        ),
    ):
        with pytest.raises((TypeError, ValueError), match=said):
            compose(own, changes)
    for texts, said in (
        (["outlier"], "unknown piece 'outlier'; use one of"),
        (["path", "path:none"], "expected path once"),
        (["outliers:norm"], "expected name=value for some of detector"),
    ):
        with pytest.raises(ValueError, match=said):
            parse_changes(Pieces, texts)


def test_names_ask_for_steps() -> None:
    both = find_method("naclip+tlp+sfr+pamr+rcs")
    assert both.name == "naclip+rcs+sfr+tlp+pamr"
    assert both.steps == Steps(laplacian=LaplacianPropagation())
    assert (both.refine_iterations, both.rcs, both.sfr) == (10, RCS(), SFR())
    assert find_method("pearl+cass").steps == Steps(
        adjustment=TextAdjustment(), laplacian=LaplacianPropagation()
    )
    assert find_method("resclip+freecp").base == "naclip"
    with pytest.raises(ValueError, match=r"and by steps: \+gla, \+cass, \+freecp, \+lposs, \+tlp"):
        find_method("naclip+crf")


def test_presets_of_a_data_set_are_the_methods_own() -> None:
    """Where its authors publish some; else ResCLIP's."""
    voc21 = find_preset("voc21")
    assert voc21.settings_of(find_method("naclip")) == {"window": 0, "probability_threshold": 0.1}
    repaired = find_method("sc-clip+rcs")
    assert voc21.settings_of(repaired)["logit_scale"] == 50.0
    applied = voc21.apply(repaired)
    assert applied.steps == Steps(area=AreaRule(0.1))
    assert applied.rcs is not None
    assert applied.rcs.temperature == 1.0  # Not ResCLIP's 2: [CLS] is added behind the attention.
    pearl = find_preset("cityscapes").apply(find_method("pearl"))
    assert pearl.pieces == Pieces(alignment=KeyAlignment(0.3))
    assert pearl.steps == Steps(laplacian=LaplacianPropagation(224))
    rf_clip = find_preset("cityscapes").apply(find_method("rf-clip"))
    assert rf_clip.steps == Steps(adjustment=TextAdjustment(0.10, 0.03, 0.14, "window"))
    cass = find_preset("ade20k").apply(find_method("naclip+cass"))
    assert cass.steps == Steps(adjustment=TextAdjustment(0.30, 0.05, 0.06))
    freecp = find_method("clearclip+freecp")
    assert find_preset("ade20k").settings_of(freecp)["short_side"] == 448
    assert find_preset("released").settings_of(repaired) == {}
    for sets in OWN_SETTINGS.values():
        assert set(sets) == {
            "voc20", "voc21", "context59", "context60", "coco-object", "coco-stuff", "cityscapes",
            "ade20k",
        }  # fmt: skip
