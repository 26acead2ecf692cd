"""`resclip attention`: which patch a pixel belongs to, what it refuses, and that it draws the encoder's own maps."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cli_support import one_line, run
from PIL import Image
from toys import toy_clip

from resclip.cli import attention as cli_attention
from resclip.cli.attention import Grid, grids, maps_of, parse_point, unseen
from resclip.encoder.dense_encoder import DenseEncoder
from resclip.methods.catalogue import RCS, SFR
from resclip.segmenter import Segmenter
from resclip.text.vocabulary import Vocabulary
from resclip.visualization.sheets import HeatMap, PointMaps, strongest_share

SIZE = (45, 70)  # pixels: 5 x 8 whole patches of 8, and a rest on both sides


def toy_segmenter(base: str = "naclip", sfr: SFR | None = None, coarse: bool = False) -> Segmenter:
    """Random weights; images run at their own size. `coarse`: the proxy has a feature every 16 pixels."""
    proxy = None
    if base == "proxyclip":
        cell = 16 if coarse else 8

        def proxy(pixels: torch.Tensor) -> torch.Tensor:
            return F.adaptive_avg_pool2d(pixels, (pixels.shape[2] // cell, pixels.shape[3] // cell))

    encoder = DenseEncoder(
        toy_clip().visual, base=base, rcs=RCS(layers=(2, 3)), sfr=sfr, proxy=proxy
    )
    text = F.normalize(torch.randn(3, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
    vocabulary = Vocabulary(text, torch.arange(3), ("a", "b", "c"))
    return Segmenter(
        encoder, vocabulary, window=0, short_side=0, source={"model": "toy", "pretrained": None}
    )


@pytest.fixture
def noise(tmp_path: Path, seed: int) -> Path:
    path = tmp_path / "noise.png"
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Callable[[Segmenter], None]:
    """Makes the command use a toy."""

    def use(segmenter: Segmenter) -> None:
        monkeypatch.setattr(cli_attention, "load_from", lambda *_, **__: segmenter)

    return use


def test_a_point_is_a_pixel() -> None:
    for text, point in (("0,0", (0, 0)), ("69,44", (69, 44)), (" 3 , +4 ", (3, 4))):
        assert parse_point(text, *SIZE) == point


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("70,0", "70 x 45 .*got 70,0"),
        ("0,45", "70 x 45"),
        ("-1,3", "70 x 45"),
        ("3", "whole pixels"),
        ("3.5,4", "whole pixels"),
        ("3,4,5", "whole pixels"),
    ],
)
def test_other_points_are_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_point(text, *SIZE)


def test_the_patch_of_a_pixel_by_hand() -> None:
    """An image of 90 × 140 pixels seen as 45 × 70: patches of 8 are 16 of its pixels, 5 × 8 of them."""
    grid = Grid(5, 8, (40 / 45, 64 / 70))
    assert grid.patch_at((0, 0), 90, 140) == (0, 0)
    assert grid.patch_at((15, 16), 90, 140) == (1, 0)
    assert grid.patch_at((127, 79), 90, 140) == (4, 7)
    assert grid.patch_at((139, 89), 90, 140) == (4, 7)  # in the rest: the nearest patch
    # A proxy's grid covers everything: 70 pixels to a column of 2.
    assert Grid(1, 2, (1.0, 1.0)).patch_at((69, 0), 90, 140) == (0, 0)
    assert Grid(1, 2, (1.0, 1.0)).patch_at((70, 0), 90, 140) == (0, 1)


def test_the_middle_of_every_patch_is_in_it() -> None:
    """Of an image that was reduced by 5."""
    grid = Grid(5, 8, (40 / 45, 64 / 70))
    for row in range(5):
        for column in range(8):
            assert grid.patch_at((column * 40 + 20, row * 40 + 20), 225, 350) == (row, column)


def test_maps_are_the_encoder_s_own_and_cover_what_they_lie_over(seed: int) -> None:
    segmenter = toy_segmenter(sfr=SFR())
    pixels = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(seed))
    tower, result = grids(segmenter.encoder, pixels)
    assert tower == result == Grid(5, 8, (40 / 45, 64 / 70))
    row = maps_of(segmenter, pixels, (3, 4), (2, 6), (tower, result))
    assert row.point == (3.5, 4.5)
    assert row.caption == ("x 3, y 4", "patch row 2, column 6")
    captions = ["Base (naclip)", "Cross-layer (RCS)", "Feedback (SFR)", "Final"]
    assert [heat_map.caption for heat_map in row.maps] == captions
    planes = segmenter.encoder.attention(pixels, None, segmenter.vocabulary.embeddings).planes()
    for heat_map, plane in zip(row.maps, planes.values(), strict=True):
        assert heat_map.cover == tower.cover
        torch.testing.assert_close(torch.from_numpy(heat_map.values), plane[0, 2 * 8 + 6].float())


def test_a_proxy_s_maps_lie_on_its_grid(seed: int) -> None:
    """Base and feedback on 2 × 4 features over everything, what gathers values on 5 × 8 patches over nearly all."""
    segmenter = toy_segmenter("proxyclip", SFR(), coarse=True)
    pixels = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(seed))
    both = grids(segmenter.encoder, pixels)
    assert both == (Grid(5, 8, (40 / 45, 64 / 70)), Grid(2, 4, (1.0, 1.0)))
    row = maps_of(segmenter, pixels, (0, 0), (1, 3), both)
    for heat_map, grid in zip(row.maps, (both[1], both[0], both[1], both[0]), strict=True):
        assert heat_map.values.shape == (grid.rows, grid.columns)
        assert heat_map.cover == grid.cover


def test_one_row_a_point_and_one_line_about_them(
    noise: Path,
    tmp_path: Path,
    toys: Callable[[Segmenter], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    segmenter = toy_segmenter()
    toys(segmenter)
    out, single = tmp_path / "new" / "maps.png", tmp_path / "single.png"
    asked = ("attention", noise, "--method", "naclip+rcs", "--at", "3,4")
    assert run(*asked, "--at", "69,44", "--out", out) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert said.startswith(f"{out}: 3,4 is in patch row 0, column 0, with ")
    assert "; 69,44 is in patch row 4, column 7, with " in said
    pixels = segmenter.prepare(np.asarray(Image.open(noise))).unsqueeze(0)
    shares = [int(share) for share in re.findall(r"with (\d+)% of its final map", said)]
    for share, patch in zip(shares, [(0, 0), (4, 7)], strict=True):
        final = segmenter.encoder.attention(pixels, patch).planes()["final"][0, 0]
        assert share == round(100 * strongest_share(final.numpy()))
    assert run(*asked, "--out", single) == 0
    with Image.open(out) as both, Image.open(single) as one:
        assert both.height > 1.5 * one.height
        assert both.width == one.width


def test_a_point_counts_from_the_image_as_it_is_seen(
    tmp_path: Path, toys: Callable[[Segmenter], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """A camera held upright: 70 × 45 pixels in the file, 45 × 70 to the eye."""
    path, exif = tmp_path / "upright.jpg", Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (70, 45), "red").save(path, exif=exif)
    toys(toy_segmenter())
    asked = ("--method", "naclip+rcs", "--out", tmp_path / "maps.png")
    assert run("attention", path, "--at", "44,69", *asked) == 0
    assert "patch row 7, column 4" in capsys.readouterr().out
    assert run("attention", path, "--at", "69,44", *asked) == 2
    one_line(capsys, "image of 45 x 70 pixels", "got 69,44")


def test_a_layer_and_a_head_are_drawn_without_classes(
    noise: Path,
    tmp_path: Path,
    toys: Callable[[Segmenter], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On the tower's grid, though the proxy has a coarser one."""
    segmenter = toy_segmenter("proxyclip", coarse=True)
    toys(segmenter)
    out = tmp_path / "maps.png"
    asked = ("attention", noise, "--at", "69,44", "--out", out, "--method", "resclip")
    assert run(*asked, "--layer", "2", "--head", "1", "--scale", "linear") == 0
    said = capsys.readouterr().out
    assert "69,44 is in patch row 4, column 7, with " in said
    pixels = segmenter.prepare(np.asarray(Image.open(noise))).unsqueeze(0)
    plane = segmenter.encoder.attention(pixels, (4, 7), layer=2, head=1).values[0, 0, 0]
    assert f"with {strongest_share(plane.numpy()):.0%} of its layer 2, head 1 map" in said
    linear = out.read_bytes()
    assert run(*asked, "--layer", "2", "--head", "1", "--scale", "percentile") == 0
    assert out.read_bytes() != linear
    for options, words in (
        (("--layer", "9"), "layer must be a number from 1 to"),
        (("--layer", "1", "--head", "99"), "head must be a number from 1 to"),
    ):
        capsys.readouterr()
        assert run(*asked, *options) == 2
        one_line(capsys, words)


def test_the_small_print_names_what_no_patch_holds() -> None:
    """Of 45 × 70 pixels seen as they are: 40 × 64 on patches of 8."""
    image = np.zeros((90, 140, 3), np.uint8)
    row = PointMaps((1, 1), ("", ""), [HeatMap("m", np.ones((5, 8)), (40 / 45, 64 / 70))])
    assert (
        unseen(image, [row]) == "; grey and in no patch: 12 pixels at the right and 10 pixels below"
    )
    whole = PointMaps((1, 1), ("", ""), [HeatMap("m", np.ones((5, 8)))])
    assert unseen(image, [whole]) == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--at 3,4 --out maps.png", "expected --classes NAMES"),
        ("--at 3,4 --out maps.png --method naclip --sfr rounds=2", "--classes"),
        ("--at 3,4 --out maps.jpg --method naclip", "a .png file, got 'maps.jpg'"),
        ("--at 3;4 --out maps.png --method naclip", "whole pixels"),
        ("--at 3,4 --out maps.png --method naclop", "unknown method 'naclop'"),
    ],
)
def test_what_cannot_be_drawn_is_said_before_the_model_is_loaded(
    options: str,
    words: str,
    noise: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli_attention, "load_from", lambda *_, **__: pytest.fail("loaded"))
    assert run("attention", noise, *options.split()) == 2
    one_line(capsys, words)
    assert [path.name for path in tmp_path.iterdir()] == ["noise.png"]


def test_the_builtin_model_attends_to_the_thing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A roof's patch, by the whole of ResCLIP: most of its mass lies on a tenth of the image."""
    out = tmp_path / "maps.png"
    scene = Path(__file__).parent.parent / "docs/scene.png"
    classes = ("--classes", "sky, grass, house, tree", "--short-side", "112")
    assert run("attention", scene, "--at", "134,134", *classes, "--out", out) == 0
    share = re.search(r"with (\d+)% of its final map", capsys.readouterr().out)
    assert share is not None
    assert int(share[1]) > 60
    assert Image.open(out).width > 5 * 400  # The image, the base, RCS, SFR and the final map.


def test_without_classes_nothing_is_said_about_their_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without SFR no class is needed; the one that stands in has to be a word that the built-in model knows."""
    scene = Path(__file__).parent.parent / "docs/scene.png"
    options = ("--method", "naclip", "--short-side", "112", "--out", tmp_path / "maps.png")
    assert run("attention", scene, "--at", "134,134", *options) == 0
    assert capsys.readouterr().err == ""
