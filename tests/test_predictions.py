"""What is written while a dataset is measured: files, their names, their values, and what a sheet shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from resclip.evaluation import predictions
from resclip.evaluation.datasets.base import (
    IGNORED,
    Dataset,
    ImageFile,
    LabelFile,
    Sample,
    Values,
)
from resclip.evaluation.predictions import (
    PredictionFiles,
    draw_comparison,
    evenly_spaced,
    legend_of_classes,
    portable_path,
)
from resclip.visualization.colours import palette
from resclip.visualization.legend import draw_legend

ENTRY_NAMES = ("background", "cat", "dog")
ENTRIES = ("background: sky, wall", "cat, kitten", "dog")
COLOURS = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 0)], np.uint8)


def dataset(*names: str, colours: NDArray[np.uint8] | None = COLOURS) -> Dataset:
    """Images that are nowhere on disk: the callback gets them ready."""
    nowhere = Path("nowhere")
    samples = tuple(
        Sample(name, ImageFile(nowhere), LabelFile(nowhere, Values({0: 0}))) for name in names
    )
    return Dataset("voc21", "made up", ENTRIES, samples, palette=colours)


def show(
    files: PredictionFiles, data: Dataset, sample: Sample, method: str = "clip", size: int = 8
) -> None:
    """Show a grey image: cat on the left, dog on the right, a corner that does not count; all are seen as dog."""
    truth = np.full((size, size), 1, np.uint8)
    truth[:, size // 2 :] = 2
    truth[: size // 4, : size // 4] = IGNORED
    image = np.full((size, size, 3), 100, np.uint8)
    files(method, data, sample, image, truth, np.full((size, size), 2, np.int64))


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


# Predictions


def test_predictions_are_class_indices_in_the_dataset_s_colours(tmp_path: Path) -> None:
    """As many classes as there can be: none is taken for 255. They can be read as masks."""
    entries = tuple(f"class {number}" for number in range(255))
    colours = np.random.default_rng(0).integers(0, 256, (255, 3)).astype(np.uint8)
    sample = dataset("2007_000033").samples[0]
    own = Dataset("voc21", "made up", entries, (sample,), palette=colours)
    labels = np.arange(255, dtype=np.int64).reshape(5, 51)
    image, truth = np.zeros((5, 51, 3), np.uint8), np.zeros((5, 51), np.uint8)
    PredictionFiles(tmp_path / "new")("naclip+rcs", own, sample, image, truth, labels)
    path = tmp_path / "new/predictions/voc21/naclip+rcs/2007_000033.png"
    assert files_in(tmp_path) == [path.relative_to(tmp_path).as_posix()]
    with Image.open(path) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), colours[labels])
    values = Values({number: number for number in range(255)})
    np.testing.assert_array_equal(LabelFile(path, values).read(), labels)


def test_pixels_without_a_class_are_255_in_a_colour_of_their_own(tmp_path: Path) -> None:
    own = dataset("a")
    labels = np.array([[0, 1, -1], [-1, 2, 2]])
    image, truth = np.zeros((2, 3, 3), np.uint8), np.array([[0, 1, 1], [255, 2, 0]], np.uint8)
    PredictionFiles(tmp_path, sheets=1)("clip", own, own.samples[0], image, truth, labels)
    with Image.open(tmp_path / "predictions/voc21/clip/a.png") as written:
        assert np.array_equal(np.asarray(written), np.where(labels < 0, 255, labels))
        colours = np.asarray(written.convert("RGB"))
    assert np.array_equal(colours[labels >= 0], COLOURS[labels[labels >= 0]])
    assert not any(np.array_equal(colours[0, 2], colour) for colour in COLOURS)
    assert (tmp_path / "sheets/voc21/clip/a.png").exists()


def test_names_that_are_no_utf_8_have_files_and_sheets(tmp_path: Path) -> None:
    own = dataset("m\udcff")
    show(PredictionFiles(tmp_path, sheets=1), own, own.samples[0])
    assert len(files_in(tmp_path)) == 2


def test_a_dataset_without_colours_gets_the_library_s(tmp_path: Path) -> None:
    own = dataset("a", colours=None)
    show(PredictionFiles(tmp_path), own, own.samples[0])
    with Image.open(tmp_path / "predictions/voc21/clip/a.png") as image:
        assert image.convert("RGB").getpixel((0, 0)) == tuple(palette(own.classes)[2])


def test_names_with_folders_stay_apart(tmp_path: Path) -> None:
    own = dataset("frankfurt/1", "lindau/1", "1", "../1")
    for sample in own.samples:
        show(PredictionFiles(tmp_path / "out"), own, sample)
    wanted = [".%2E/1.png", "1.png", "frankfurt/1.png", "lindau/1.png"]
    folder = tmp_path / "out/predictions/voc21/clip"
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png")) == wanted
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_names_are_safe_everywhere() -> None:
    safe = {
        "frankfurt/frankfurt_000000_000294": "frankfurt/frankfurt_000000_000294",
        "naclip+rcs, λ_r = 0.2": "naclip+rcs, λ_r = 0.2",
        "猫.v2": "猫.v2",
        '<>:"\\|?*': "%3C%3E%3A%22%5C%7C%3F%2A",
        "a%3Ab": "a%253Ab",
        "tab\tnew\nline\x7f": "tab%09new%0Aline%7F",
        "../../etc/.": ".%2E/.%2E/etc/%2E",
        "/etc/passwd": "%/etc/passwd",
        "": "%",
        "ends with. /space ": "ends with.%20/space%20",
        "NUL.txt": "%4EUL.txt",
        "com1/lpt9": "%63om1/%6Cpt9",
        "console": "console",
    }
    assert {name: portable_path(name) for name in safe} == safe


def test_different_names_have_different_files(seed: int) -> None:
    """Short names of the letters that are in question: many of them nearly alike."""
    generator = np.random.default_rng(seed)
    letters = list('a./ %:?2EF"con')
    lengths = generator.integers(0, 5, 4000)
    names = {"".join(generator.choice(letters, length)) for length in lengths}
    assert len({portable_path(name) for name in names}) == len(names)
    for name in names:
        assert not Path(portable_path(name)).is_absolute()
        assert ".." not in Path(portable_path(name)).parts


# Sheets


def test_images_are_spread_over_the_dataset() -> None:
    assert [evenly_spaced(1, 5), evenly_spaced(2, 10)] == [[2], [2, 7]]
    assert [evenly_spaced(4, 4), evenly_spaced(9, 3)] == [[0, 1, 2, 3], [0, 1, 2]]
    for length in range(1, 40):
        for count in range(length + 1):
            chosen = evenly_spaced(count, length)
            assert len(set(chosen)) == count
            assert all(0 <= index < length for index in chosen)
            gaps = np.diff(chosen)
            assert not len(gaps) or gaps.max() - gaps.min() <= 1


def test_the_same_images_whoever_sees_them(tmp_path: Path) -> None:
    """In shards, in another order, for another row: the dataset's order alone decides."""
    own = dataset(*(f"{number:02}" for number in range(10)))
    files = PredictionFiles(tmp_path, label_maps=False, sheets=3)
    for part in (own.samples[::2], own.samples[1::2][::-1]):
        for sample in part:
            show(files, own, sample)
    for sample in own.samples:
        show(files, own, sample, method="naclip")
    chosen = ["01.png", "05.png", "08.png"]
    assert files_in(tmp_path) == [
        f"sheets/voc21/{method}/{name}" for method in ("clip", "naclip") for name in chosen
    ]


def test_a_count_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sheets must be"):
        PredictionFiles(tmp_path, sheets=-1)
    with pytest.raises(TypeError, match="sheets must be"):
        PredictionFiles(tmp_path, sheets=1.5)


def sheet_of(
    truth: NDArray[np.uint8], labels: NDArray[np.int64], folder: Path
) -> NDArray[np.uint8]:
    """The pixels of a sheet of a black image."""
    own = dataset("a", colours=np.array([(0, 0, 255), (255, 0, 0), (0, 255, 0)], np.uint8))
    image = np.zeros((*truth.shape, 3), np.uint8)
    PredictionFiles(folder, sheets=1)("clip", own, own.samples[0], image, truth, labels)
    return np.asarray(Image.open(folder / "sheets/voc21/clip/a.png"))


def test_a_sheet_shows_truth_prediction_and_where_they_differ(tmp_path: Path) -> None:
    """Of four columns, cat and cat, then dog and dog; the second is seen as dog."""
    truth = np.repeat([[1, 1, 2, 2]], 4, axis=0).astype(np.uint8)
    labels = np.repeat([[1, 2, 2, 2]], 4, axis=0).astype(np.int64)
    pixels = sheet_of(truth, labels, tmp_path)
    cat, dog = (179, 0, 0), (0, 179, 0)  # 0.7 of the colours, over black.
    right, wrong = (160, 160, 162), (149, 66, 0)

    def area(colour: tuple[int, int, int]) -> int:
        return int((pixels == colour).all(axis=2).sum())

    # In columns of a panel: two cats in the truth and one in the prediction, two dogs and three.
    column = area(wrong)
    assert column > 1000
    assert [area(colour) / column for colour in (cat, dog, right)] == pytest.approx(
        [3, 5, 3], rel=0.05
    )


def test_ignored_pixels_are_striped_in_truth_and_difference_alone(tmp_path: Path) -> None:
    truth = np.full((440, 440), 1, np.uint8)
    labels = np.full((440, 440), 1, np.int64)
    plain = sheet_of(truth, labels, tmp_path)
    truth[:, :220] = IGNORED
    striped = sheet_of(truth, labels, tmp_path)
    ink = (24, 24, 27)

    def area(pixels: NDArray[np.uint8]) -> int:
        return int((pixels == ink).all(axis=2).sum())

    # A quarter of half a panel, in two panels of 440 × 440 pixels; letters and the legend's sample are small beside it.
    assert area(striped) - area(plain) == pytest.approx(2 * 440 * 220 / 4, rel=0.1)


def test_the_legend_names_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    came: dict[str, object] = {}

    def spy(*arguments: object, **options: object) -> Image.Image:
        came.update(options, views=[caption for caption, _ in arguments[1]], entries=arguments[3])
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr("resclip.evaluation.predictions.draw_sheet", spy)
    own = dataset("a/b")
    files = PredictionFiles(tmp_path, label_maps=False, sheets=1)
    show(files, own, own.samples[0], method="naclip+rcs")
    assert came["views"] == ["Truth", "Prediction", "Difference"]
    # 64 pixels: 4 ignored, 28 cats seen as dogs, 32 dogs. Dog: 32 of 60; cat: 0 of 28.
    assert came["entries"] == [
        (5, "wrong", 28 / 64),
        (4, "right", 32 / 64),
        (3, "ignored", 4 / 64),
        (2, "dog", 32 / 64),
        (1, "cat", 28 / 64),
    ]
    assert came["footer"] == (
        "voc21, naclip+rcs, a/b: mIoU 26.7 in this image, 53.3 % of its pixels right"
    )


def test_the_legend_says_how_much_has_no_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(predictions, "draw_sheet", lambda *given, **_: seen.append(given))
    truth = np.array([[0, 1, IGNORED, 2]], np.uint8)
    image = np.zeros((1, 4, 3), np.uint8)
    draw_comparison("clip", dataset("a"), "a", image, truth, np.array([[0, -1, -1, 1]]))
    (_, maps, colours, legend, _), *_ = seen
    assert [text for _, text, _ in legend] == ["wrong", "right", "ignored", "no data", *ENTRY_NAMES]
    assert {text: share for _, text, share in legend}["no data"] == 0.5
    assert dict(maps)["Prediction"].max() == len(colours) - 1
    assert dict(maps)["Difference"].tolist() == [[4, 5, 3, 5]]


def test_an_image_of_which_nothing_counts_has_a_sheet(tmp_path: Path) -> None:
    pixels = sheet_of(np.full((4, 4), IGNORED, np.uint8), np.zeros((4, 4), np.int64), tmp_path)
    assert pixels.shape[1] > 4 * 440


def test_classes_that_are_only_predicted_come_last() -> None:
    true, labels = np.full((4, 4), 1), np.zeros((4, 4), np.int64)
    assert legend_of_classes(("sky", "cat", "dog"), true, labels) == [
        (1, "cat", 1.0),
        (0, "sky", 0.0),
    ]


# Stripes


def test_a_class_without_a_pixel_has_no_share() -> None:
    none, few, some = (
        draw_legend([(0, "a", fraction)], palette(["a"]), 100).tobytes()
        for fraction in (0, 4e-4, 6e-4)
    )
    assert len({none, few, some}) == 3
