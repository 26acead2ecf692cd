"""What the papers' studies vary: a correlation in several blocks, a learned projection, a proxy without its mask."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from method_support import colours, small_tower
from torch import Tensor

from resclip import RCS, SFR, Correlation, DenseEncoder, ResidualBlock
from resclip.encoder.final_block import unmasked_attention
from resclip.methods.catalogue import ProxyAttention
from resclip.methods.correlation import PROJECTION
from resclip.methods.options_text import as_dict
from resclip.models.proxy_models import ColourProxy, find_proxy


def pixels_of(seed: int) -> Tensor:
    """Two images of 4 × 6 patches."""
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(seed))


def projection(folder: Path, matrix: Tensor, name: str = PROJECTION) -> str:
    path = folder / "projection.safetensors"
    safetensors.torch.save_file({name: matrix.contiguous()}, path)
    return str(path)


# Several blocks


def test_the_last_blocks_attend_by_the_correlation(seed: int) -> None:
    """Against the tower run block by block, with the sum of two maps in the last three of six."""
    pixels = pixels_of(seed)
    encoder = DenseEncoder(small_tower(), "sclip", correlation="qq+kk,blocks=3")
    tower = encoder.tower
    tokens = tower.embed(pixels)
    for number, block in enumerate(tower.blocks, 1):
        query, key, value = tower.project_qkv(block, tower.norm(block, tokens), (4, 6))
        pairs = [(query, query), (key, key)] if number > 3 else [(query, key)]
        maps = [(a @ b.mT / value.shape[-1] ** 0.5).softmax(dim=-1) for a, b in pairs]
        tokens = tokens + tower.project_out(block, sum(maps) @ value)
        tokens = tower.feed_forward(block, tokens)
    expected = tower.head(tokens)[:, 1:].unflatten(1, (4, 6))
    torch.testing.assert_close(encoder(pixels).patches, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "correlation", ["xx", "random,seed=2", "kk,window=3", "qq,temperature=0.5", "identity"]
)
def test_both_implementations_agree_in_several_blocks(correlation: str, seed: int) -> None:
    pixels = pixels_of(seed)
    given = f"{correlation},blocks=3"
    first, second = (
        DenseEncoder(small_tower(), "clip", RCS(), correlation=given, implementation=name)(pixels)
        for name in ("torch", "reference")
    )
    torch.testing.assert_close(first.patches, second.patches, rtol=1e-4, atol=1e-5)
    alone = DenseEncoder(small_tower(), "clip", RCS(), correlation=given)(pixels[1:])
    torch.testing.assert_close(first.patches[1:], alone.patches, rtol=1e-4, atol=1e-5)


def test_clips_own_attention_in_several_blocks_is_clip(seed: int) -> None:
    pixels = pixels_of(seed)
    plain, several = (
        DenseEncoder(small_tower(), "clip", correlation=text)(pixels).patches
        for text in ("qk", "qk,blocks=6")
    )
    torch.testing.assert_close(several, plain, rtol=1e-4, atol=1e-5)


def test_blocks_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"layer 2 .* and blocks 3 .*: leave one of the two out"):
        Correlation("qk", layer=2, blocks=3)
    with pytest.raises(ValueError, match="correlation blocks must"):
        Correlation("qk", blocks=0)
    with pytest.raises(ValueError, match=r"blocks must lie between 1 and 6, .*; got 7"):
        DenseEncoder(small_tower(), correlation="qk,blocks=7")
    with pytest.raises(ValueError, match="stands in for the final block alone.* is 2"):
        ResidualBlock.from_tower(small_tower(), "clip", correlation="qk,blocks=2")


def test_options_of_these_studies_are_no_part_of_other_settings() -> None:
    """Figures that were stored before there were such options stay comparable."""
    assert {"path", "blocks"}.isdisjoint(as_dict(Correlation("kk")) or {})
    assert (as_dict(Correlation("kk", blocks=2)) or {})["blocks"] == 2
    assert "masked" not in (as_dict(ProxyAttention()) or {})
    assert (as_dict(ProxyAttention(masked=False)) or {})["masked"] is False


# A learned projection


def test_a_learned_projection_is_multiplied_from_the_right(seed: int, tmp_path: Path) -> None:
    """The identity is "xx"; with a matrix of a seed it is the random one of that seed."""
    pixels = pixels_of(seed)
    drawn = DenseEncoder(small_tower(), correlation="random,seed=4").final.random_projections
    assert drawn is not None
    for matrix, same in ((torch.eye(64), "xx"), (drawn[0], "random,seed=4")):
        path = projection(tmp_path, matrix)
        learned = DenseEncoder(small_tower(), correlation=f"learned,path={path}")(pixels).patches
        expected = DenseEncoder(small_tower(), correlation=same)(pixels).patches
        torch.testing.assert_close(learned, expected, rtol=1e-5, atol=1e-6)


def test_a_projection_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    for wrong in ("learned", "kk,path=a.safetensors"):
        with pytest.raises(ValueError, match="'learned' needs the file of its projection"):
            Correlation.parse(wrong)
    for matrix, name, got in (
        (torch.eye(32), PROJECTION, r"one of \(32, 32\)"),
        (torch.eye(64), "weight", "got none"),
        (torch.full((64, 64), torch.nan), PROJECTION, r"one of \(64, 64\)"),
    ):
        path = projection(tmp_path, matrix, name)
        with pytest.raises(ValueError, match=rf"a finite 'projection' of \(64, 64\).*{got}"):
            DenseEncoder(small_tower(), correlation=Correlation("learned", path=path))
    missing = str(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=r"cannot read the learned projection '.*none"):
        DenseEncoder(small_tower(), correlation=Correlation("learned", path=missing))


# A proxy without its mask


def test_without_a_mask_every_position_counts(seed: int) -> None:
    """Against the formula in float64; oblong, one position of no length, half precision."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 5, 3, 4, generator=generator)
    features[0, :, 1, 2] = 0
    value = torch.randn(2, 3, 12, 8, generator=generator)
    unit = F.normalize(features.double().flatten(2).mT, dim=-1)
    expected = (3.0 * unit @ unit.mT).softmax(dim=-1).unsqueeze(1) @ value.double()
    torch.testing.assert_close(
        unmasked_attention(features, value, 3.0).double(), expected, rtol=1e-5, atol=1e-6
    )
    half = unmasked_attention(features, value.half(), 3.0)
    assert half.dtype is torch.float16
    torch.testing.assert_close(half.double(), expected, rtol=5e-3, atol=5e-3)


def test_an_encoder_without_the_mask_shows_the_map_that_it_uses(seed: int) -> None:
    pixels = pixels_of(seed)
    options = ProxyAttention("colour", gamma=2.0, masked=False)
    encoder = DenseEncoder(small_tower(), "proxyclip", proxy=colours, proxy_attention=options)
    masked = DenseEncoder(small_tower(), "proxyclip", proxy=colours)
    maps = encoder.attention(pixels)
    assert (maps.base > 0).all()
    assert (masked.attention(pixels).base == 0).any()
    inputs = encoder.run_blocks(pixels)
    gathered = maps.final.flatten(3) @ inputs.value[:, :, 1:]
    attended, _ = encoder.final.attend_by_proxy(inputs, None, None)
    torch.testing.assert_close(attended, gathered, rtol=1e-4, atol=1e-5)
    other = DenseEncoder(
        small_tower(),
        "proxyclip",
        proxy=colours,
        proxy_attention=ProxyAttention("colour", beta=0.3, gamma=2.0, masked=False),
    )
    assert torch.equal(other(pixels).patches, encoder(pixels).patches)  # β cancels.


def test_sfr_needs_the_mask() -> None:
    with pytest.raises(ValueError, match="masked=False leaves no mask"):
        DenseEncoder(
            small_tower(),
            "proxyclip",
            sfr=SFR(),
            proxy=colours,
            proxy_attention=ProxyAttention(masked=False),
        )


def test_the_colour_proxy_has_cells_of_the_size_that_its_name_says() -> None:
    statistics = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    for name, patch in (("colour", 8), ("colour:8", 8), ("colour:16", 16)):
        proxy = find_proxy(name, **statistics)
        assert isinstance(proxy, ColourProxy)
        assert proxy.patch == patch
    for wrong in ("colour:", "colour:x", "colour:-4"):
        with pytest.raises(ValueError, match="a cell's side in pixels, as in 'colour:16'"):
            find_proxy(wrong, **statistics)
