"""Every base with every module, on towers of the real models' shapes, and what must hold between methods."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from kernel_support import kernel_device
from method_support import colours, make, small_tower, text
from open_clip.transformer import VisionTransformer
from torch import Tensor

from resclip import RCS, SFR, Correlation, DenseEncoder, DenseFeatures
from resclip.methods.catalogue import BASES, METHODS, Method, find_method
from resclip_kernels.launch import Target, watch

# Width, blocks, heads, patch and output width of the released towers, and an image of 20 to 35 patches.
SHAPES = {
    "B/32": ((768, 12, 12, 32, 512), (128, 160)),
    "B/16": ((768, 12, 12, 16, 512), (64, 96)),
    "L/14": ((1024, 24, 16, 14, 768), (70, 84)),
}
QUERIES = 4


def released_tower(shape: str) -> VisionTransformer:
    """A tower of that shape; with random weights, unless torch's default device is "meta"."""
    width, layers, heads, patch, output = SHAPES[shape][0]
    torch.manual_seed(0)
    return VisionTransformer(
        image_size=224,
        patch_size=patch,
        width=width,
        layers=layers,
        heads=heads,
        mlp_ratio=4.0,
        output_dim=output,
    ).eval()


def with_modules(base: str) -> Method:
    """The base with both modules, or with RCS alone where SFR finds no score."""
    return find_method(base + ("+rcs+sfr" if BASES[base].has_score else "+rcs"))


def check_features(shape: str, method: Method, features: DenseFeatures) -> None:
    (*_, patch, output), size = SHAPES[shape]
    grid = [side // (12 if method.base == "proxyclip" else patch) for side in size]
    assert features.patches.shape == (1, *grid, output)
    assert (features.feedback_labels is not None) == (method.sfr is not None)
    if features.feedback_labels is not None:
        assert features.feedback_labels.shape == (1, *grid)


@pytest.mark.parametrize("base", BASES)
def test_every_base_with_its_modules_on_a_released_shape(base: str, seed: int) -> None:
    """With values in B/16 alone: a larger tower changes sizes, which the next test goes through.

    Fewer modules compute part of this, and every method runs on a small tower below.
    """
    torch.manual_seed(seed)
    pixels = torch.randn(1, 3, *SHAPES["B/16"][1])
    method = with_modules(base)
    features = make(base_tower(), method)(pixels, text(QUERIES, 512))
    check_features("B/16", method, features)
    assert torch.isfinite(features.patches).all()


@functools.lru_cache(maxsize=1)
def base_tower() -> VisionTransformer:
    """Its weights are used as they are, never changed."""
    return released_tower("B/16")


@pytest.mark.parametrize("shape", SHAPES)
def test_every_base_fits_the_released_shapes(shape: str) -> None:
    """On tensors without values: sizes fit together down to the kernels' launches, in up to 304 million weights."""
    pytest.importorskip("triton", reason="launches the kernels")
    output, size = SHAPES[shape][0][-1], SHAPES[shape][1]
    with torch.device("meta"):
        visual, pixels, queries = released_tower(shape), torch.empty(1, 3, *size), text(4, output)
    with watch(execute=False, target=Target("cuda", 90)):
        for base in BASES:
            method = with_modules(base)
            features = make(visual, method, implementation="triton")(pixels, queries)
            check_features(shape, method, features)


@pytest.mark.parametrize("name", [name for name in METHODS if "+" in name])
def test_each_module_changes_the_features(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    pixels, queries = torch.randn(1, 3, 64, 96), text(QUERIES, 32)
    method = METHODS[name]
    with_modules = make(small_tower(), method)(pixels, queries).patches
    plain = make(small_tower(), METHODS[method.base])(pixels, queries).patches
    assert not torch.allclose(with_modules, plain, rtol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_a_result_does_not_depend_on_its_batch(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    pixels, queries = torch.randn(3, 3, 64, 96), text(QUERIES, 32)
    dense = make(small_tower(), METHODS[name])
    together = dense(pixels, queries)
    for number in range(3):
        alone = dense(pixels[number : number + 1], queries)
        torch.testing.assert_close(alone.patches[0], together.patches[number], rtol=1e-4, atol=1e-5)
        if together.feedback_labels is not None:
            assert torch.equal(alone.feedback_labels[0], together.feedback_labels[number])


@pytest.mark.parametrize("implementation", ("torch", "reference", "triton"))
@pytest.mark.parametrize("base", BASES)
def test_a_neutral_rcs_is_none_bit_for_bit(base: str, implementation: str, seed: int) -> None:
    device = kernel_device() if implementation == "triton" else torch.device("cpu")
    torch.manual_seed(seed)
    pixels = torch.randn(2, 3, 48, 64).to(device)
    neutral = find_method(base + "+rcs")
    neutral = Method(
        base, base, neutral.summary, neutral.citation, rcs=RCS(weight=0.0, temperature=1.0)
    )
    results = [
        make(small_tower().to(device), method, implementation=implementation)(pixels).patches
        for method in (find_method(base), neutral)
    ]
    assert torch.equal(*results)


@pytest.mark.parametrize("base", BASES)
def test_the_kernels_run_every_base(base: str, seed: int) -> None:
    """Without SFR: interpreted, its refinement would take most of the time, and it has tests of its own."""
    torch.manual_seed(seed)
    device = kernel_device()
    pixels, method = torch.randn(2, 3, 48, 64).to(device), find_method(base + "+rcs")
    expected = make(small_tower().to(device), method, implementation="torch")(pixels)
    with watch() as watcher:
        features = make(small_tower().to(device), method, implementation="triton")(pixels)
    assert "residual_attention_kernel" in watcher.names()
    assert ("proxy_attention_kernel" in watcher.names()) == (base == "proxyclip")
    torch.testing.assert_close(features.patches, expected.patches, rtol=1e-3, atol=1e-4)


CORRELATIONS = (
    "qk",
    "qq",
    "kk",
    "qq+kk",
    "xx",
    "random",
    "random,projections=3,seed=1",
    "qk,temperature=0.5",
    "qk,layer=3",
    "xx,layer=2",
    "qq+kk,window=3",
    "none,window=3",
)


@pytest.mark.parametrize("correlation", CORRELATIONS)
def test_every_correlation_agrees_with_the_reference(correlation: str, seed: int) -> None:
    torch.manual_seed(seed)
    pixels, queries = torch.randn(2, 3, 64, 96), text(QUERIES, 32)
    sfr = SFR(refine_iterations=1)
    settings = {"base": "naclip", "rcs": RCS(), "sfr": sfr, "correlation": correlation}
    first, second = (
        DenseEncoder(small_tower(), **settings, implementation=name)(pixels, queries)
        for name in ("torch", "reference")
    )
    assert torch.equal(first.feedback_labels, second.feedback_labels)
    torch.testing.assert_close(first.patches, second.patches, rtol=1e-4, atol=1e-5)


def test_correlations_that_are_the_bases_own() -> None:
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    for base, correlation in (("clip", "qk"), ("sclip", "qq+kk"), ("clearclip", "qq")):
        plain = DenseEncoder(small_tower(), base=base)(pixels).patches
        named = DenseEncoder(small_tower(), base=base, correlation=correlation)(pixels).patches
        assert torch.equal(plain, named)
    last = DenseEncoder(small_tower(), base="clip", correlation="qk,layer=6")(pixels).patches
    assert torch.equal(last, DenseEncoder(small_tower(), base="clip")(pixels).patches)
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
    """Its map is that of position alone: values swapped between two far patches change what is near them, no more."""
    torch.manual_seed(seed)
    dense = make(small_tower(), find_method("naclip-neighbourhood"))
    first, second = (
        dense.attention(torch.randn(1, 3, 64, 96), query=(1, 2)).final for _ in range(2)
    )
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base": "proxyclip"}, "pass proxy=, such as"),
        ({"base": "naclip", "proxy": colours}, "'naclip' has no use for a proxy"),
        (
            {"base": "proxyclip", "proxy": colours, "correlation": "qq"},
            "correlation must be None; got 'qq'",
        ),
        (
            {"base": "proxyclip", "proxy": colours, "final_block": "full_residual"},
            "None or 'attention_only'; got 'full_residual'",
        ),
        ({"correlation": "qk,layer=7"}, "between 1 and 6.*got 7"),
        ({"correlation": "identity", "sfr": SFR()}, "SFR changes the score"),
        ({"rcs": RCS(layers="6-9")}, "between 1 and 5 .block 6 is the final one.*got 6, 7, 8, 9"),
    ],
)
def test_what_does_not_fit_together_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DenseEncoder(small_tower(), **arguments)
