"""Every base with every module: against the reference, by the kernels, on the real models' shapes, and by itself."""

from __future__ import annotations

import pytest
import torch
from kernel_support import kernel_device
from method_support import make, small_tower, text
from open_clip.transformer import VisionTransformer
from torch import Tensor

from resclip import RCS, SFR, Correlation, DenseEncoder
from resclip.methods.catalogue import BASES, Method, find_method
from resclip.methods.composition import compose
from resclip_kernels.launch import Target, watch

# Width, blocks, heads, patch and output width of released towers, and an image of 20 to 30 patches. The small tower has
# the patches of 16 of the third.
SHAPES = {
    "B/32": ((768, 12, 12, 32, 512), (128, 160)),
    "L/14": ((1024, 24, 16, 14, 768), (70, 84)),
}


def with_modules(base: str) -> Method:
    """The base with both modules, or with RCS alone where SFR finds no score."""
    return find_method(base + ("+rcs+sfr" if BASES[base].has_score else "+rcs"))


@pytest.mark.parametrize("shape", (pytest.param("B/32", marks=pytest.mark.slow), "L/14"))
def test_every_base_fits_the_released_shapes(shape: str) -> None:
    """On tensors without values: sizes fit together down to the kernels' launches, in up to 304 million weights."""
    pytest.importorskip("triton", reason="launches the kernels")
    (width, layers, heads, patch, output), size = SHAPES[shape]
    with torch.device("meta"):
        visual = VisionTransformer(224, patch, width, layers, heads, 4.0, output_dim=output).eval()
        pixels, queries = torch.empty(1, 3, *size), text(4, output)
    with watch(execute=False, target=Target("cuda", 90)):
        for base in BASES:
            # Rows of Ŝ by themselves, which selected heads read, are formed by their values.
            heads = BASES[base].pieces.heads
            method = with_modules(base) if heads is None else find_method(f"{base}+rcs")
            features = make(visual, method, implementation="triton")(pixels, queries)
            grid = [side // (12 if base == "proxyclip" else patch) for side in size]
            assert features.patches.shape == (1, *grid, output)
            assert (features.feedback_labels is not None) == (method.sfr is not None)
            if features.feedback_labels is not None:
                assert features.feedback_labels.shape == (1, *grid)


# Every base with all that it takes, and each choice of modules with one base.
METHODS = [*map(with_modules, BASES), *map(find_method, ("naclip", "naclip+rcs", "naclip+sfr"))]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_both_implementations_in_any_batch(method: Method, seed: int) -> None:
    """The reference gives the same, and so does each image alone and in another order."""
    torch.manual_seed(seed)
    pixels, queries = torch.randn(3, 3, 64, 96), text(4, 32)
    dense = make(small_tower(), method)
    together = dense(pixels, queries)
    assert torch.isfinite(together.patches).all()
    pieces = BASES[method.base].pieces
    without_cls = method.base == "proxyclip" or pieces.patches is not None or pieces.fusion
    assert (together.cls is None) == bool(without_cls)
    assert (together.feedback_labels is None) == (method.sfr is None)
    reference = make(small_tower(), method, implementation="reference")(pixels, queries)
    others = [(range(3), reference), ((2, 1, 0), dense(pixels.flip(0), queries))]
    others += [([number], dense(pixels[[number]], queries)) for number in range(3)]
    for numbers, other in others:
        wanted = together.patches[list(numbers)]
        torch.testing.assert_close(other.patches, wanted, rtol=1e-4, atol=1e-5)
        if together.feedback_labels is not None:
            assert torch.equal(other.feedback_labels, together.feedback_labels[list(numbers)])


@pytest.mark.parametrize("base", BASES)
def test_each_module_changes_the_features(base: str, seed: int) -> None:
    torch.manual_seed(seed)
    pixels, queries = torch.randn(1, 3, 64, 96), text(4, 32)
    names = [base, f"{base}+rcs"]
    if BASES[base].has_score:
        names += [f"{base}+sfr", f"{base}+rcs+sfr"]
    plain, *changed = [
        make(small_tower(), find_method(name))(pixels, queries).patches for name in names
    ]
    for name, patches in zip(names[1:], changed, strict=True):
        assert not torch.allclose(patches, plain, rtol=1e-3), name


# The encoder leaves a weight of 0 to the op, whatever the base: each implementation with one, torch with all.
@pytest.mark.parametrize(
    ("base", "implementation"),
    [*((base, "torch") for base in BASES), ("naclip", "reference"), ("naclip", "triton")],
)
def test_a_neutral_rcs_is_none_bit_for_bit(base: str, implementation: str, seed: int) -> None:
    device = kernel_device() if implementation == "triton" else torch.device("cpu")
    torch.manual_seed(seed)
    pixels = torch.randn(2, 3, 48, 64).to(device)
    plain = find_method(base)
    neutral = Method(
        base, base, plain.summary, plain.citation, rcs=RCS(weight=0.0, temperature=1.0)
    )
    results = [
        make(small_tower().to(device), method, implementation=implementation)(pixels).patches
        for method in (plain, neutral)
    ]
    assert torch.equal(*results)


# Methods of the same pieces as another's take most of a minute together.
LIKE_OTHERS = ("sfp", "dih-clip", "clipsurgery", "cliptrase")


@pytest.mark.parametrize(
    "base",
    [pytest.param(base, marks=pytest.mark.slow) if base in LIKE_OTHERS else base for base in BASES],
)
def test_the_kernels_run_every_base(base: str, seed: int) -> None:
    """SFR with one base: interpreted, its labels take most of the time."""
    torch.manual_seed(seed)
    device = kernel_device()
    pixels, queries = torch.randn(2, 3, 32, 48).to(device), text(3, 32).to(device)
    sfr = SFR(refine_iterations=1, label_threshold=0.0) if base == "sclip" else None
    method = Method(base, base, "", "", rcs=RCS(), sfr=sfr)
    changes = {}
    if BASES[base].pieces.outliers is not None:
        # Of six patches two: where more are filled alike, all cosines lie on their mean, where the map jumps.
        few = {"count": 2, "neighbours": 3, "share": 0.3}
        changes["pieces"] = compose(BASES[base].pieces, {"outliers": few})
    encoders = [
        make(small_tower().to(device), method, implementation=name, **changes)
        for name in ("torch", "triton")
    ]
    expected = encoders[0](pixels, queries)
    with watch() as watcher:
        features = encoders[1](pixels, queries)
    # One per pass, none where nothing is compared; the layers' mean once for both passes. The plain attention of the
    # blocks before is no kernel of ours; a second path, a second stream and all blocks' maps are more of them.
    names, pieces = watcher.names(), BASES[base].pieces
    if pieces.repairs or pieces.fusion or pieces.path:
        # Selected heads are read as maps, and no op attends by them.
        assert ("base_kernel" in names) == (pieces.heads is None)
        assert "cross_layer_kernel" in names
        assert ("aggregation_weights_kernel" in names) == (pieces.path is None)
    else:
        compares = base not in ("maskclip", "proxyclip")
        assert names.count("base_kernel") == compares * (1 if sfr is None else 2)
        assert names.count("cross_layer_kernel") == 1
    has_branch = pieces.branch is not None and pieces.heads is None
    assert ("proxy_weights_kernel" in names) == (base == "proxyclip" or has_branch)
    assert ("majority_kernel" in watcher.names()) == (sfr is not None)
    torch.testing.assert_close(features.patches, expected.patches, rtol=1e-3, atol=1e-4)
    if sfr is not None:
        assert torch.equal(features.feedback_labels, expected.feedback_labels)


# Each score, each option and each module of blocks before once; "qk", "qq" and "qq+kk" alone are bases' own, below.
@pytest.mark.parametrize(
    "correlation",
    [
        "kk",
        "xx,layer=2",
        "random,projections=3,seed=1",
        "qk,temperature=0.5",
        "qk,layer=3",
        "qq+kk,window=3",
        "none,window=3",
    ],
)
def test_every_correlation_agrees_with_the_reference(correlation: str, seed: int) -> None:
    torch.manual_seed(seed)
    pixels, queries = torch.randn(2, 3, 64, 96), text(4, 32)
    sfr = SFR(refine_iterations=1)
    settings = {"base": "naclip", "rcs": RCS(), "sfr": sfr, "correlation": correlation}
    first, second = (
        DenseEncoder(small_tower(), **settings, implementation=name)(pixels, queries)
        for name in ("torch", "reference")
    )
    assert torch.equal(first.feedback_labels, second.feedback_labels)
    torch.testing.assert_close(first.patches, second.patches, rtol=1e-4, atol=1e-5)


def test_correlations_that_are_the_bases_own(seed: int) -> None:
    torch.manual_seed(seed)
    pixels = torch.randn(1, 3, 64, 96)
    for base, correlation in (
        ("clip", "qk"),
        ("clip", "qk,layer=6"),  # The last one.
        ("sclip", "qq+kk"),
        ("clearclip", "qq"),
    ):
        plain = DenseEncoder(small_tower(), base=base)(pixels).patches
        named = DenseEncoder(small_tower(), base=base, correlation=correlation)(pixels).patches
        assert torch.equal(plain, named)
    alone = DenseEncoder(small_tower(), base="clearclip", correlation="qq,window=1")(pixels).patches
    maskclip = DenseEncoder(small_tower(), base="maskclip")(pixels).patches
    torch.testing.assert_close(alone, maskclip, rtol=1e-4, atol=1e-5)


def test_random_projections_depend_on_their_seed_alone() -> None:
    def drawn(**options: int) -> Tensor:
        encoder = DenseEncoder(small_tower(), correlation=Correlation("random", **options))
        return encoder.final.random_projections

    assert torch.equal(drawn(seed=5), drawn(seed=5))
    assert not torch.equal(drawn(seed=5), drawn(seed=6))
    assert torch.equal(drawn(projections=3)[0], drawn()[0])
    assert drawn(projections=3).shape == (3, 64, 64)
    assert abs(drawn(projections=3).var().item() * 64 - 1) < 0.1  # 12,288 numbers: 1 % deviation.


def test_no_rounds_but_the_first_is_sfr_as_released_and_more_go_on(seed: int) -> None:
    torch.manual_seed(seed)
    pixels, queries = torch.randn(1, 3, 128, 128), text(12, 32)
    once, twice = (
        DenseEncoder(small_tower(), rcs=RCS(), sfr=SFR(rounds=rounds))(pixels, queries)
        for rounds in (1, 2)
    )
    dense = DenseEncoder(small_tower(), rcs=RCS(), sfr=SFR())
    labels = dense.final.segment_patches(dense.sfr, once.patches, pixels, queries)
    assert torch.equal(twice.feedback_labels, labels)


def test_neighbourhood_alone_knows_no_similarity(seed: int) -> None:
    """Its map is that of position alone, the same for any image."""
    torch.manual_seed(seed)
    dense = make(small_tower(), find_method("naclip-neighbourhood"))
    first, second = (
        dense.attention(torch.randn(1, 3, 64, 96), query=(1, 2)).final for _ in range(2)
    )
    torch.testing.assert_close(first, second)
