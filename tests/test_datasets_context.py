"""PASCAL Context, from replicas of the prepared and of both official layouts."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import numpy as np
import pytest
from dataset_support import check, labels_of, laid_out, save_image, save_mask
from scipy.io import savemat

from resclip.evaluation.datasets import IGNORED, DatasetError, Values, open_dataset
from resclip.evaluation.datasets.context import LabelMapFile
from resclip.io.images import ImageError
from resclip.text.class_names import dataset_classes

CLASSES = dataset_classes("context59")
NAMES = ("2008_000002", "2008_000003")
SHAPES = ((11, 6), (5, 13))  # Odd and oblong; 62 values fit.

_NAMES_59 = """
aeroplane bicycle bird boat bottle bus car cat chair cow table dog horse motorbike person pottedplant sheep sofa train
tvmonitor bag bed bench book building cabinet ceiling cloth computer cup door fence floor flower food grass ground
keyboard light mountain mouse curtain platform sign plate road rock shelves sidewalk sky snow bedclothes track tree
truck wall water window wood
"""
PUBLISHED_59 = {name: number for number, name in enumerate(_NAMES_59.split(), 1)}
"""Numbers of the classes in 59_labels.txt, as on the dataset's page."""

_NUMBERS_459 = """
2 9 18 19 22 23 25 31 33 34 44 45 46 59 65 68 72 80 85 98 104 105 113 115 144 158 159 162 187 189 207 220 232 258 259
260 284 295 296 308 324 326 347 349 354 355 360 366 368 397 415 416 420 424 427 440 445 454 458
"""
PUBLISHED_459 = dict(zip(CLASSES, map(int, _NUMBERS_459.split()), strict=True))
"""Numbers of the classes in labels.txt, which names 400 more."""


def expected(values: np.ndarray, numbers: dict[str, int], background: bool) -> np.ndarray:
    """The labels that a mask's values stand for, worked out by name."""
    rest = 0 if background else IGNORED
    labels = np.full(values.shape, rest)
    for label, name in enumerate(CLASSES):
        labels[values == numbers[name]] = label + background
    return labels


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """VOC 2010 as it is published: images, and its own splits."""
    kit = tmp_path / "VOCdevkit/VOC2010"
    for name, shape in zip(NAMES, SHAPES, strict=True):
        save_image(kit / f"JPEGImages/{name}.jpg", *shape)
    save_image(kit / "JPEGImages/2007_000027.jpg", 4, 4)
    (kit / "ImageSets/Main").mkdir(parents=True)
    (kit / "ImageSets/Main/val.txt").write_text("\n".join(NAMES))
    return kit


@pytest.fixture
def prepared(kit: Path) -> Path:
    for name, shape in zip(NAMES, SHAPES, strict=True):
        save_mask(kit / f"SegmentationClassContext/{name}.png", laid_out([*range(60)], *shape))
    (kit / "ImageSets/SegmentationContext").mkdir()
    (kit / "ImageSets/SegmentationContext/val.txt").write_text("\n".join(NAMES))
    (kit / "ImageSets/SegmentationContext/train.txt").write_text(NAMES[1])
    return kit


def write_59(folder: Path) -> None:
    """The archive of 59-class masks, unpacked into `folder`."""
    for name, shape in zip(NAMES, SHAPES, strict=True):
        save_mask(folder / f"59_context_labels/{name}.png", laid_out([*range(60)], *shape))
    lines = [f"{number}: {name}" for name, number in PUBLISHED_59.items()]
    (folder / "59_labels.txt").write_text("\r\n".join(lines) + "\r\n\r\n")


def write_459(folder: Path, compressed: bool = True) -> dict[str, np.ndarray]:
    """The archive of MATLAB masks, unpacked into `folder`; 16 bits a value, as published."""
    masks = {}
    (folder / "trainval").mkdir(parents=True)
    for name, shape in zip(NAMES, SHAPES, strict=True):
        # Every class, "accordion" and the last name, which are no classes, and a number that has no name.
        masks[name] = laid_out([*PUBLISHED_459.values(), 1, 459, 0], *shape)
        savemat(
            folder / f"trainval/{name}.mat",
            {"LabelMap": masks[name].astype(np.uint16)},
            do_compression=compressed,
        )
    names = {"accordion": 1, "clothes": 81, **PUBLISHED_459, "zebra": 459}
    lines = [f"{number}: {name}" for name, number in names.items()]
    (folder / "labels.txt").write_text("\n".join(lines))
    return masks


def test_the_prepared_layout_with_its_background(prepared: Path) -> None:
    dataset = open_dataset("context60", prepared.parents[1])
    wanted = dict(zip(NAMES, (laid_out([*range(60)], *shape) for shape in SHAPES), strict=True))
    description = (
        "2 images of PASCAL Context's val of ImageSets/SegmentationContext, which has 5,104 "
        "(VOCdevkit/VOC2010/SegmentationClassContext)"
    )
    check(dataset, wanted, description)
    assert dataset.classes == ("background", *CLASSES)
    assert dataset.palette is not None
    assert len(dataset.palette) == 60


def test_the_prepared_layout_without_its_background(prepared: Path) -> None:
    save_mask(prepared / f"SegmentationClassContext/{NAMES[0]}.png", np.array([[0, 1, 59, 255]]))
    save_image(prepared / f"JPEGImages/{NAMES[0]}.jpg", 1, 4)
    labels = labels_of(open_dataset("context59", prepared.parent))
    np.testing.assert_array_equal(labels[NAMES[0]], [[IGNORED, 0, 58, IGNORED]])
    values = laid_out([*range(60)], *SHAPES[1])
    np.testing.assert_array_equal(labels[NAMES[1]], np.where(values == 0, IGNORED, values - 1))


def test_another_split_without_a_mask(prepared: Path) -> None:
    (prepared / f"SegmentationClassContext/{NAMES[0]}.png").unlink()
    assert [problem.name for problem in open_dataset("context59", prepared).problems] == [NAMES[0]]
    dataset = open_dataset("context59", prepared, "train")
    assert [sample.name for sample in dataset.samples] == [NAMES[1]]
    assert "train of ImageSets/SegmentationContext, which has 4,996" in dataset.description
    with pytest.raises(DatasetError, match=r"Context/test\.txt: expected a split file .*: train\."):
        open_dataset("context59", prepared, "test")


@pytest.mark.parametrize("name", ["context59", "context60"])
def test_the_official_numbers_are_turned_into_classes_by_name(kit: Path, name: str) -> None:
    write_59(kit)
    dataset = open_dataset(name, kit)
    assert PUBLISHED_59["bag"] != CLASSES.index("bag") + 1
    for shape, labels in zip(SHAPES, labels_of(dataset).values(), strict=True):
        np.testing.assert_array_equal(
            labels, expected(laid_out([*range(60)], *shape), PUBLISHED_59, name == "context60")
        )
    assert dataset.description.endswith("Main, which has 5,105 (59_context_labels)")


def test_the_other_edition_of_the_official_names(kit: Path) -> None:
    """It says diningtable, bedcloth and clothes, and parts two words."""
    write_59(kit)
    before = labels_of(open_dataset("context60", kit))
    listed = kit / "59_labels.txt"
    text = listed.read_text().replace(" table", " diningtable").replace("bedclothes", "bedcloth")
    text = text.replace(" cloth", " clothes").replace("pottedplant", "potted plant")
    listed.write_text(text.replace("tvmonitor", "tv monitor"))
    for name, labels in labels_of(open_dataset("context60", kit)).items():
        np.testing.assert_array_equal(labels, before[name])


@pytest.mark.parametrize("below", [".", "VOCdevkit", "VOCdevkit/VOC2010"])
def test_the_archives_may_be_unpacked_beside_the_kit(kit: Path, below: str) -> None:
    root = kit.parents[1]
    write_59(root / below)
    assert len(open_dataset("context59", root)) == 2
    (root / below / "59_labels.txt").rename(root / below / "59_context_labels/59_labels.txt")
    assert len(open_dataset("context59", root)) == 2


@pytest.mark.parametrize(("name", "compressed"), [("context59", True), ("context60", False)])
def test_matlab_masks(kit: Path, name: str, compressed: bool) -> None:
    masks = write_459(kit, compressed)
    dataset = open_dataset(name, kit)
    for one, labels in labels_of(dataset).items():
        wanted = expected(masks[one], PUBLISHED_459, name == "context60")
        np.testing.assert_array_equal(labels, wanted)
        assert len(np.unique(labels)) == 60
    assert dataset.description.endswith("of ImageSets/Main, which has 5,105 (trainval)")


def test_the_prepared_masks_are_preferred_and_matlabs_come_last(prepared: Path) -> None:
    write_459(prepared)
    write_59(prepared.parents[1])
    root = prepared.parents[1]
    for kind in ("SegmentationClassContext", "59_context_labels", "trainval"):
        dataset = open_dataset("context60", root)
        assert dataset.description.endswith(f"{kind})")
        [folder] = root.rglob(kind)
        folder.rename(folder.with_name(f"old {kind}"))


@pytest.mark.parametrize("name", ["context59", "context60"])
def test_a_number_that_is_none_of_the_59(kit: Path, prepared: Path, name: str) -> None:
    write_59(kit)
    for folder in ("SegmentationClassContext", "59_context_labels"):
        save_mask(kit / folder / f"{NAMES[1]}.png", np.array([[59, 60, 61]]))
        with pytest.raises(ImageError, match=f"{folder}.* 0 to 59, 255, got 60, 61 in 2 pixels"):
            open_dataset(name, kit).samples[1].truth.read()
        (kit / folder).rename(kit / f"old {folder}")


def test_numbers_without_names_are_refused(kit: Path) -> None:
    write_59(kit)
    listed = kit / "59_labels.txt"
    listed.write_text(listed.read_text().replace("sidewalk", "pavement"))
    with pytest.raises(DatasetError, match=r"59_labels\.txt: .*got 59 without 'sidewalk'; get"):
        open_dataset("context59", kit)
    listed.unlink()
    with pytest.raises(DatasetError, match="the names of the numbers in 59_context_labels, .*look"):
        open_dataset("context59", kit)


def test_what_is_missing_is_said(kit: Path) -> None:
    with pytest.raises(DatasetError, match="or 'trainval', found VOCdevkit/; name the folder"):
        open_dataset("context60", kit.parents[1])
    (kit / "trainval_merged.json").write_text("{}")
    with pytest.raises(DatasetError, match="trainval_merged.json alone cannot be read: convert it"):
        open_dataset("context60", kit.parents[1])
    write_59(kit)
    (kit / "ImageSets/Main").rename(kit / "ImageSets/Action")
    with pytest.raises(DatasetError, match="in SegmentationContext: no such folder"):
        open_dataset("context60", kit.parents[1])


# MATLAB files

MATLAB_VALUES = Values({1: 0, 459: 1}, frozenset({0}))


@pytest.mark.parametrize(
    ("dtype", "compressed"), [(np.uint8, True), (np.uint16, False), (np.float64, True)]
)
def test_labels_of_a_matlab_file_are_those_of_the_values(
    tmp_path: Path, dtype: type, compressed: bool
) -> None:
    highest = 200 if dtype is np.uint8 else 459
    numbers = np.array([[0, 1, highest], [highest, 0, 0]])
    content = {"names": "cat", "LabelMap": numbers.astype(dtype), "x": 1.0}
    savemat(tmp_path / "mask.mat", content, do_compression=compressed)
    values = Values({1: 0, highest: 1}, frozenset({0}))
    labels = LabelMapFile(tmp_path / "mask.mat", values).read()
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, [[IGNORED, 0, 1], [1, IGNORED, IGNORED]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"LabelMap": np.array([[1, 2, 460]])}, "among 0 to 1, 459, got 2, 460 in 2 pixels"),
        ({"LabelMap": np.array([[1, -1]])}, "whole numbers from 0 to 65535"),
        ({"LabelMap": np.array([[1, 65537]])}, "whole numbers"),
        ({"LabelMap": np.array([[1.5, np.nan]])}, "whole numbers"),
        ({"LabelMap": np.zeros((0, 3))}, "whole numbers"),
        ({"LabelMap": np.ones((2, 3, 4))}, "with a matrix LabelMap"),
        ({"LabelMap": "cat"}, "with a matrix LabelMap"),
        ({"LabelMap": {"a": 1}}, "with a matrix LabelMap"),
        ({"LabelMap": np.array([[1j]])}, "with a matrix LabelMap"),
        ({"labels": np.ones((2, 3))}, "LabelMap .* cannot be read so"),
    ],
)
def test_matlab_files_that_are_no_masks(tmp_path: Path, content: dict, message: str) -> None:
    savemat(tmp_path / "mask.mat", content)
    with pytest.raises(ImageError, match=rf"mask\.mat: expected .*{message}"):
        LabelMapFile(tmp_path / "mask.mat", MATLAB_VALUES).read()


@pytest.mark.parametrize("compressed", [True, False])
def test_a_matlab_file_that_is_cut_short_is_refused(tmp_path: Path, compressed: bool) -> None:
    """Or of another version, or not there."""
    path = tmp_path / "mask.mat"
    with pytest.raises(ImageError, match=r"mask\.mat: no such file; check the path"):
        LabelMapFile(path, MATLAB_VALUES).read()
    numbers = np.random.default_rng(0).integers(0, 2, (50, 70)).astype(np.uint16)
    savemat(path, {"LabelMap": numbers}, do_compression=compressed)
    data = path.read_bytes()
    newer = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    for content in (newer, *(data[:length] for length in range(0, len(data) - 8, 41))):
        path.write_bytes(content)
        with pytest.raises(ImageError, match=r"mask\.mat: .*get the file again"):
            LabelMapFile(path, MATLAB_VALUES).read()


@pytest.mark.parametrize("compressed", [True, False])
def test_a_damaged_matlab_file_is_read_or_refused(tmp_path: Path, compressed: bool) -> None:
    """Each byte of the file in turn set to nought, and to all ones: many readers crash at some of them."""
    path = tmp_path / "mask.mat"
    savemat(path, {"LabelMap": np.ones((3, 4), np.uint16)}, do_compression=compressed)
    whole = path.read_bytes()
    for place in range(124, len(whole)):
        for value in (0, 255):
            path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            with contextlib.suppress(ImageError):
                assert LabelMapFile(path, MATLAB_VALUES).read().ndim == 2


def test_a_matlab_file_made_to_exhaust_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mask.mat"
    savemat(path, {"LabelMap": np.ones((5000, 5000), np.uint8)}, do_compression=True)
    with pytest.raises(ImageError, match="of at most 16,777,216 numbers"):
        LabelMapFile(path, MATLAB_VALUES).read()


def test_a_matlab_file_of_the_other_byte_order(tmp_path: Path) -> None:
    """As MATLAB wrote on other machines; made by hand."""

    def element(kind: int, content: bytes) -> bytes:
        return struct.pack(">II", kind, len(content)) + content + b"\0" * (-len(content) % 8)

    values = np.array([[0, 1, 459], [1, 0, 1]], ">u2")
    parts = element(6, struct.pack(">II", 11, 0)) + element(5, struct.pack(">ii", 2, 3))
    parts += element(1, b"LabelMap") + element(4, values.tobytes(order="F"))
    head = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x01\x00MI"
    (tmp_path / "mask.mat").write_bytes(head + element(14, parts))
    labels = LabelMapFile(tmp_path / "mask.mat", Values({0: 0, 1: 1, 459: 2})).read()
    np.testing.assert_array_equal(labels, [[0, 1, 2], [1, 0, 1]])
