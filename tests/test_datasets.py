"""What a dataset is, how its files are found, and which readers and colours there are."""

from __future__ import annotations

import os
import pickle
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from dataset_support import laid_out, save_image, save_mask, truncate
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resclip.evaluation.datasets import (
    DATASETS,
    IGNORED,
    Dataset,
    DatasetError,
    ImageFile,
    LabelFile,
    Sample,
    Values,
    open_dataset,
)
from resclip.evaluation.datasets.base import (
    benchmark_palette,
    describe,
    files_under,
    first_that_exists,
    lines_of,
    pair_up,
    read_values,
    samples_of,
    shorten,
    split_names,
)
from resclip.io.images import ImageError
from resclip.text.class_names import DATASETS as BENCHMARKS
from resclip.text.class_names import dataset_classes

NAMES = st.text("abc", min_size=1, max_size=2)


def sample(name: str) -> Sample:
    return Sample(name, ImageFile(Path("a.jpg")), LabelFile(Path("a.png"), Values({0: 0})))


@pytest.mark.parametrize(
    ("mode", "dtype", "highest"),
    [("1", bool, 1), ("L", np.uint8, 255), ("P", np.uint8, 255), ("I;16", np.uint16, 65535)],
)
def test_every_kind_of_mask_gives_its_values(
    tmp_path: Path, mode: str, dtype: type, highest: int
) -> None:
    """Oblong, one row more than a multiple of 8: a bit mask pads its rows."""
    values = laid_out([0, 1, highest], 9, 5).astype(dtype)
    image = Image.fromarray(values)
    if mode == "P":
        image.putpalette([255 - level for level in range(256) for _ in range(3)])
    image.save(tmp_path / "mask.png")
    assert Image.open(tmp_path / "mask.png").mode == mode
    classes = {0: 7, 1: 0, highest: 3}
    labels = LabelFile(tmp_path / "mask.png", Values(classes, frozenset())).read()
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, np.vectorize(classes.get)(values.astype(int)))


def test_values_are_classes_ignored_or_errors(tmp_path: Path) -> None:
    save_mask(tmp_path / "mask.png", np.array([[1, 2, 255], [3, 0, 1]]))
    values = Values({1: 0, 2: 1, 3: 1}, frozenset({0, 255}))
    np.testing.assert_array_equal(
        LabelFile(tmp_path / "mask.png", values).read(), [[0, 1, IGNORED], [1, IGNORED, 0]]
    )
    with pytest.raises(
        ImageError,
        match=r"mask\.png: expected values among 1, 255, got 0, 2, 3 in 3 pixels; check that",
    ):
        LabelFile(tmp_path / "mask.png", Values({1: 0})).read()
    save_mask(tmp_path / "mask.png", np.arange(20).reshape(4, 5))
    with pytest.raises(ImageError, match=r"got 1, 2, 3, 4, 5, 6, 7, 8, … in 19 pixels"):
        LabelFile(tmp_path / "mask.png", Values({0: 0})).read()


def test_masks_that_cannot_be_read(tmp_path: Path) -> None:
    save_image(tmp_path / "colours.png", 8, 8)
    save_mask(tmp_path / "cut.png", np.random.default_rng(0).integers(0, 255, (40, 40)))
    truncate(tmp_path / "cut.png")
    (tmp_path / "text.png").write_text("no mask")
    for name, message in {
        "none.png": r"none\.png: no such file; check the path",
        "colours.png": r"got mode RGB; convert colours to class indices",
        "cut.png": r"cut\.png: expected a whole mask, got one that cannot be read; get the file again",
        "text.png": r"text\.png: expected a mask as PNG, .* got a file of another kind",
    }.items():
        with pytest.raises(ImageError, match=message):
            LabelFile(tmp_path / name, Values({0: 0})).read()


def png_header(width: int, height: int, colour_type: int, data: bytes = b"") -> bytes:
    """A PNG file of 8 bits a channel, with such a header and nothing but these compressed pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png_header(60_000, 60_000, 0), "at most 178,956,970 pixels"),
        (png_header(15_000, 15_000, 0), "at most 178,956,970 pixels"),  # Pillow itself only warns.
        (png_header(0, 5, 0), "expected a"),
        (b"\x89PNG\r\n\x1a\n", "with a damaged header"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "got a file of another kind"),
        (b"", "empty file"),
    ],
)
def test_hostile_masks_are_refused_in_a_sentence(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "mask.png").write_bytes(content)
    with pytest.raises(ImageError, match=rf"mask\.png: .*{message}"):
        read_values(tmp_path / "mask.png")


@pytest.mark.parametrize("error", [OSError, SyntaxError, IndexError, TypeError, ZeroDivisionError])
def test_whatever_a_decoder_raises_is_the_mask_s_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    save_mask(tmp_path / "mask.png", np.zeros((2, 2)))

    def fail(_: object) -> None:
        raise error("bare words")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(ImageError, match=r"mask\.png: expected ") as raised:
        read_values(tmp_path / "mask.png")
    assert "bare words" not in str(raised.value)


def test_what_is_no_file_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a pipe, which would be waited for."""

    def refuse(path: Path, name: str) -> None:
        raise ImageError(f"{name}: no file")

    monkeypatch.setattr("resclip.evaluation.datasets.base.check_file", refuse)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(ImageError, match="no file"):
        read_values(tmp_path / "pipe.png")


def test_lists_that_are_no_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "val.txt")
    with pytest.raises(DatasetError, match="expected a file of numbers, got something else"):
        lines_of(tmp_path / "val.txt", "numbers")


def test_folders_that_are_called_like_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    (tmp_path / "a.png/b.png").touch()
    (tmp_path / "c.png").mkdir()
    (tmp_path / "c.jpg").touch()
    assert files_under(tmp_path, [".jpg", ".png"]) == {
        "a": tmp_path / "a.png",
        "a.png/b": tmp_path / "a.png/b.png",
        "c": tmp_path / "c.jpg",
    }


@given(st.sets(st.integers(0, 30)))
def test_shortened_numbers_stand_for_all_of_them(numbers: set[int]) -> None:
    text = shorten(sorted(numbers))
    told: list[int] = []
    for run in filter(None, text.split(", ")):
        low, _, high = run.partition(" to ")
        told += range(int(low), int(high or low) + 1)
    assert told == sorted(numbers)
    assert text.count(", ") <= 15


def test_datasets_that_make_no_sense() -> None:
    some = (sample("a"),)
    names = tuple(f"class {number}" for number in range(256))
    with pytest.raises(DatasetError, match="mine: expected at least one image, got none"):
        Dataset("mine", "", ("cat",), ())
    with pytest.raises(DatasetError, match="expected each image once, got 'a' twice"):
        Dataset("mine", "", ("cat",), (sample("b"), sample("a"), sample("a")))
    with pytest.raises(DatasetError, match="expected at most 255 classes, got 256: .*255 is for"):
        Dataset("mine", "", names, some)
    assert len(Dataset("mine", "", names[:255], some).classes) == 255
    with pytest.raises(DatasetError, match=r"each of 1 classes, got a palette of shape \(2, 3\)"):
        Dataset("mine", "", ("cat",), some, palette=np.zeros((2, 3), np.uint8))


def test_samples_travel_to_worker_processes(tmp_path: Path) -> None:
    pixels = save_image(tmp_path / "a.png", 5, 7)
    save_mask(tmp_path / "m.png", np.full((5, 7), 3))
    [one] = samples_of([("a", tmp_path / "a.png", tmp_path / "m.png")], Values({3: 2}))
    copy = pickle.loads(pickle.dumps(one))
    assert copy == one
    np.testing.assert_array_equal(copy.image.read().pixels, pixels)
    np.testing.assert_array_equal(copy.truth.read(), np.full((5, 7), 2))


def test_the_first_candidate_wins_or_what_is_there_is_said(tmp_path: Path) -> None:
    (tmp_path / "b/c").mkdir(parents=True)
    (tmp_path / "d").touch()
    assert first_that_exists(tmp_path, "x", ["a", "b/c", "d"]) == tmp_path / "b/c"
    for number in range(8):
        (tmp_path / f"{number}").mkdir()
    for folder, message in (
        (tmp_path, r"expected masks, looked for 'a' or 'e', found 0/, 1/, .*, 7/ and 2 more; name"),
        (tmp_path / "b/c", "expected masks, looked for 'a' or 'e', found nothing; name the folder"),
        (tmp_path / "nowhere", "nowhere: expected a folder with masks, got nothing"),
        (tmp_path / "d", "d: expected a folder with masks, got a file"),
    ):
        with pytest.raises(DatasetError, match=message):
            first_that_exists(folder, "masks", ["a", "e"])


def test_split_files(tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_bytes(b"\xef\xbb\xbfb\r\n  a \r\n\r\nc")
    assert split_names(tmp_path / "val.txt") == ["b", "a", "c"]
    with pytest.raises(DatasetError, match=r"train\.txt: expected a split file .*: val\.txt; name"):
        split_names(tmp_path / "train.txt")
    with pytest.raises(DatasetError, match=r"got none; in splits: no such folder"):
        split_names(tmp_path / "splits" / "val.txt")
    (tmp_path / "val.txt").write_text("\n \n")
    with pytest.raises(DatasetError, match="got an empty file"):
        split_names(tmp_path / "val.txt")
    (tmp_path / "val.txt").write_bytes(b"a\n\xff")
    with pytest.raises(DatasetError, match=r"val\.txt: expected numbers, in UTF-8, got other"):
        lines_of(tmp_path / "val.txt", "numbers")


def test_files_are_found_by_their_endings(tmp_path: Path) -> None:
    for name in (
        "a_mask.png",
        "city/b_mask.PNG",
        "city/deep/c_mask.png",
        "city/d.png",
        ".hidden/e_mask.png",
        "._a_mask.png",
        "f_mask.png.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert files_under(tmp_path, ["_mask.png"]) == {
        "a": tmp_path / "a_mask.png",
        "city/b": tmp_path / "city/b_mask.PNG",
        "city/deep/c": tmp_path / "city/deep/c_mask.png",
    }
    assert set(files_under(tmp_path / "city", [""])) == {"b_mask.PNG", "d.png", "deep/c_mask.png"}
    assert files_under(tmp_path, [".gif"]) == {}


def test_linked_folders_are_followed_unless_they_lead_round(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/a.png").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/val").symlink_to(tmp_path / "disk", target_is_directory=True)
    assert files_under(tmp_path / "data", [".png"]) == {"val/a": tmp_path / "data/val/a.png"}
    (tmp_path / "data/round").symlink_to(tmp_path / "data", target_is_directory=True)
    with pytest.raises(DatasetError, match="round: expected a folder, got a link to one"):
        files_under(tmp_path / "data", [".png"])
    with pytest.raises(DatasetError, match="none: expected a folder that can be read"):
        files_under(tmp_path / "none", [".png"])


def test_two_files_of_one_name(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg"):
        (tmp_path / name).touch()
    with pytest.raises(DatasetError, match=r"one file called 'a', got a\.jpg and a\.png; remove"):
        files_under(tmp_path, [".jpg", ".png"])


def test_a_split_says_what_should_be_there() -> None:
    images = {name: Path(f"{name}.jpg") for name in "abc"}
    masks = {name: Path(f"{name}.png") for name in "abd"}
    pairs, problems = pair_up("mine", images, masks, ["d", "b", "x", "c"])
    assert [name for name, *_ in pairs] == ["b"]
    assert [problem.name for problem in problems] == ["c", "d", "x"]
    assert problems[-1].reason == "listed in the split file, but there is neither image nor mask"
    with pytest.raises(DatasetError, match="mine: expected each image once, got 'b' 2 times in"):
        pair_up("mine", images, masks, ["a", "b", "b"])


@given(st.sets(NAMES), st.sets(NAMES), st.lists(NAMES, unique=True) | st.none())
def test_every_name_is_a_pair_or_a_problem(
    images: set[str], masks: set[str], listed: list[str] | None
) -> None:
    wanted = sorted(images | masks if listed is None else listed)
    whole = [name for name in wanted if name in images & masks]
    files = [{name: Path(name) for name in names} for names in (images, masks)]
    if not whole:
        with pytest.raises(DatasetError, match="of which no two belong together"):
            pair_up("mine", *files, listed)
        return
    pairs, problems = pair_up("mine", *files, listed)
    assert [name for name, *_ in pairs] == whole
    assert sorted(whole + [problem.name for problem in problems]) == wanted
    assert list(problems) == sorted(problems, key=lambda problem: problem.name)


def test_no_pair_at_all_names_an_example() -> None:
    with pytest.raises(
        DatasetError,
        match="got 1 images and 0 masks, .* such as 'a': a.jpg: the image has no mask",
    ):
        pair_up("mine", {"a": Path("a.jpg")}, {})


def test_descriptions(tmp_path: Path) -> None:
    """The readers' tests have the others."""
    kit = tmp_path / "VOCdevkit/VOC2012"
    whole = "1,449 images of VOC's val (VOCdevkit/VOC2012)"
    assert describe(1449, "VOC's val", kit, tmp_path, 1449) == whole


def test_every_benchmark_and_folders_can_be_opened(tmp_path: Path) -> None:
    assert set(DATASETS) == {"builtin", *BENCHMARKS, "folder"}
    with pytest.raises(DatasetError, match="unknown dataset 'voc'; use one of: builtin, voc21, "):
        open_dataset("voc", tmp_path)


def test_no_dataset_is_found_where_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    for name in (*BENCHMARKS, "folder"):
        with pytest.raises(DatasetError, match=r"looked for .*, found holiday\.jpg"):
            open_dataset(name, str(tmp_path))
        with pytest.raises(
            DatasetError, match=f"{name}: expected the folder that holds .*, got none"
        ):
            open_dataset(name, None)


def test_there_is_a_colour_for_each_class() -> None:
    different = {}
    for name in BENCHMARKS:
        palette = benchmark_palette(name)
        assert palette.dtype == np.uint8
        assert palette.shape == (len(dataset_classes(name)), 3)
        different[name] = len(np.unique(palette, axis=0))
    # Some classes of Context, COCO-Stuff and ADE20K share a colour, as published.
    assert different == {
        "voc20": 20,
        "voc21": 21,
        "context59": 58,
        "context60": 59,
        "coco-object": 81,
        "coco-stuff": 162,
        "cityscapes": 19,
        "ade20k": 149,
    }


def test_colours_are_the_published_ones() -> None:
    known = {
        ("voc21", "person"): (192, 128, 128),
        ("voc20", "sheep"): (128, 64, 0),
        ("cityscapes", "road"): (128, 64, 128),
        ("cityscapes", "bicycle"): (119, 11, 32),
        ("ade20k", "sky"): (6, 230, 230),
        ("ade20k", "flag"): (92, 0, 255),
        ("coco-object", "background"): (0, 0, 0),
        ("coco-object", "toothbrush"): (191, 162, 208),
        ("coco-stuff", "person"): (0, 192, 64),
        ("context59", "aeroplane"): (180, 120, 120),
        ("context60", "wood"): (31, 0, 255),
    }
    for (name, wanted), colour in known.items():
        names = [re.split("[:,]", entry)[0] for entry in dataset_classes(name)]
        assert tuple(benchmark_palette(name)[names.index(wanted)]) == colour
    np.testing.assert_array_equal(benchmark_palette("voc20"), benchmark_palette("voc21")[1:])
    np.testing.assert_array_equal(
        benchmark_palette("context59"), benchmark_palette("context60")[1:]
    )
    with pytest.raises(ValueError, match="unknown palette 'voc'; use one of: voc20"):
        benchmark_palette("voc")


def test_vocs_colours_follow_its_rule() -> None:
    """Bit 3k + c of a label is bit 7 − k of channel c (VOClabelcolormap)."""
    labels = np.arange(21)
    expected = np.zeros((21, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            expected[:, channel] |= ((labels >> (3 * bit + channel) & 1) << (7 - bit)).astype(
                np.uint8
            )
    np.testing.assert_array_equal(benchmark_palette("voc21"), expected)
