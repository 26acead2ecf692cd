"""The batch job on one machine: files, rows, formats, large images by block, and what happens to bad images."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("pyarrow", reason='needs pyarrow: pip install "resclip[batch]"')

from batch_support import files_in, make_images, toy_segmenter
from PIL import Image

from resclip import Segmenter
from resclip.batch import outputs, steps
from resclip.batch.job import BatchJob
from resclip.batch.manifest import Row
from resclip.batch.sources import open_source
from resclip.batch.storage import Store, open_store
from resclip.inference.pipeline import STRIP_BYTES
from resclip.io.images import read_image
from resclip.visualization.colours import palette
from resclip.visualization.overlay import draw_overlay


def run_job(
    source: object,
    out: Path,
    *,
    workers: int = 2,
    names: tuple[str, ...] = (),
    segmenter: Segmenter | None = None,
    segmenting: int = 1,
    **options: Any,
) -> list[Row]:
    segmenter = segmenter or toy_segmenter()
    job = BatchJob(names or segmenter.vocabulary.names, segmenter.preparation, **options)
    items = open_source(str(source)).items
    store = open_store(str(out))
    return list(steps.run(job, segmenter, items, store, workers=workers, segmenting=segmenting))


def test_files_are_those_of_each_image_alone_and_bad_images_are_rows(tmp_path: Path) -> None:
    names = make_images(tmp_path / "in", 10, broken=3)
    flat = tmp_path / "in" / "006.png"
    flat.write_bytes(flat.read_bytes()[:20] + bytes(4) + flat.read_bytes()[24:])  # Of no height.
    rows = run_job(tmp_path / "in", tmp_path / "out", workers=3, overlay=True, scores=True)
    assert [row.name for row in rows] == names
    failed = {row.name: row.error or "" for row in rows if row.status == "failed"}
    assert list(failed) == ["001.jpg", "004.png", "006.png", "007.jpg"]
    for name, error in failed.items():
        assert name in error
        assert "expected" in error
        assert "\n" not in error
    assert len(files_in(tmp_path / "out")) == 3 * 6
    segmenter = toy_segmenter()
    for row in rows:
        if row.name in failed:
            continue
        image = read_image(tmp_path / "in" / row.name)
        (wanted,) = segmenter.segment_many([image])
        stem = Path(row.name).stem
        assert row.error is None
        assert row.outputs == (f"{stem}_labels.png", f"{stem}_overlay.png", f"{stem}_scores.png")
        assert (row.height, row.width) == image.shape[:2]
        with Image.open(tmp_path / "out" / f"{stem}_labels.png") as labels:
            assert labels.mode == "P"
            assert labels.getpalette()[:9] == palette(segmenter.vocabulary.names).ravel().tolist()
            assert np.array_equal(np.asarray(labels), wanted.labels)
        with Image.open(tmp_path / "out" / f"{stem}_scores.png") as scores:
            assert np.asarray(scores).dtype == np.uint16
            np.testing.assert_allclose(
                np.asarray(scores) / 65535, wanted.probabilities, atol=0.6 / 65535
            )
        with Image.open(tmp_path / "out" / f"{stem}_overlay.png") as overlay:
            assert np.array_equal(np.asarray(overlay), np.asarray(wanted.overlay()))
        assert {area.name: area.area for area in row.classes} == wanted.areas()
        assert sum(area.pixels for area in row.classes) == image.shape[0] * image.shape[1]
        assert row.seconds > 0


def test_threads_that_segment_change_no_byte(tmp_path: Path) -> None:
    names = make_images(tmp_path / "in", 11, broken=3)
    before = torch.get_num_threads()
    jobs = {}
    for segmenting in (1, 3):
        segmenter = toy_segmenter()
        segmenter.pipeline.pad_batches = True  # As the command line has it.
        rows = run_job(
            tmp_path / "in",
            tmp_path / str(segmenting),
            segmenter=segmenter,
            segmenting=segmenting,
            scores=True,
        )
        assert [row.name for row in rows] == names
        files = {path.name: path.read_bytes() for path in (tmp_path / str(segmenting)).iterdir()}
        jobs[segmenting] = [replace(row, seconds=0.0) for row in rows], files
    assert jobs[1] == jobs[3]
    assert torch.get_num_threads() == before


def test_threads_end_with_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether its caller leaves, or one of them meets an error that is no image's."""
    make_images(tmp_path / "in", 24)
    segmenter = toy_segmenter()
    job = BatchJob(segmenter.vocabulary.names, segmenter.preparation)
    items = open_source(str(tmp_path / "in")).items
    store = open_store(str(tmp_path / "out"))
    threads = set(threading.enumerate())
    segmented: list[Any] = []
    segment_images = steps.segment_images

    def counted(*arguments: Any) -> Iterator[Any]:
        for outcome in segment_images(*arguments):
            segmented.append(outcome)
            yield outcome
            time.sleep(0.1)

    monkeypatch.setattr(steps, "segment_images", counted)
    rows = steps.run(job, segmenter, items, store, workers=1, segmenting=2)
    next(rows)
    before = len(segmented)
    rows.close()
    assert len(segmented) <= before + 2, "each thread ends with its image, not with its chunk"
    assert set(threading.enumerate()) == threads

    def fails(*arguments: Any) -> Any:
        raise MemoryError("there is not enough memory for one window")

    monkeypatch.setattr(steps, "segment_images", fails)
    with pytest.raises(MemoryError, match="one window"):
        list(steps.run(job, segmenter, items, store, workers=1, segmenting=2))
    assert set(threading.enumerate()) == threads


def test_how_many_threads_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = toy_segmenter()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert steps.segmenting_threads(segmenter, 1000) == 4
    assert steps.segmenting_threads(segmenter, 2 * steps.CHUNK) == 2
    assert steps.segmenting_threads(segmenter, 1) == 1
    monkeypatch.setattr(steps, "free_memory", lambda device: 0)
    assert steps.segmenting_threads(segmenter, 1000) == 1
    monkeypatch.undo()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    segmenter.pipeline.max_memory = 1 << 40
    assert steps.segmenting_threads(segmenter, 1000) == 1


def test_more_than_255_classes_take_16_bits(tmp_path: Path) -> None:
    make_images(tmp_path / "in", 1)
    names = tuple(f"class {number}" for number in range(256))
    (row,) = run_job(tmp_path / "in", tmp_path / "out", names=names)
    assert row.status == "done"
    with Image.open(tmp_path / "out/000_labels.png") as labels:
        assert np.asarray(labels).dtype == np.uint16


@pytest.mark.parametrize("count", (1, 65536))
def test_how_many_classes_a_label_map_can_hold(count: int) -> None:
    preparation = toy_segmenter().preparation
    with pytest.raises(ValueError, match=r"expected 2 to 65,535 classes, got .*name another"):
        BatchJob(tuple(map(str, range(count))), preparation)


def test_an_output_that_cannot_be_written_ends_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_images(tmp_path / "in", 6)
    write = Store.write

    def full(self: Store, name: str, data: bytes) -> None:
        if name.startswith("003"):
            raise OSError(errno.ENOSPC, "No space left on device", name)
        write(self, name, data)

    monkeypatch.setattr(Store, "write", full)
    with pytest.raises(OSError, match="No space left on device"):
        run_job(tmp_path / "in", tmp_path / "out")
    written = files_in(tmp_path / "out")
    assert "000_labels.png" in written
    assert "003_labels.png" not in written
    assert not [name for name in written if ".tmp" in name]


def test_an_output_that_alone_cannot_be_written_is_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder in the place of a label map, a link on the way to one, and too little memory for an overlay."""
    for folder in ("in", "in/sub"):
        make_images(tmp_path / folder, 3)
    (tmp_path / "out/000_labels.png").mkdir(parents=True)
    (tmp_path / "out/sub").symlink_to(tmp_path)
    real = outputs.draw_overlay

    def draw(image: np.ndarray, *others: Any) -> np.ndarray:
        if image.shape[:2] == size:
            raise MemoryError
        return real(image, *others)

    monkeypatch.setattr(outputs, "draw_overlay", draw)
    with Image.open(tmp_path / "in/001.jpg") as image:
        size = image.size[::-1]
    rows = run_job(tmp_path / "in", tmp_path / "out", overlay=True)
    errors = {row.name: row.error for row in rows}
    assert [row.status == "done" for row in rows] == [error is None for error in errors.values()]
    assert errors["002.png"] is None
    assert (errors["000.png"] or "").startswith(f"000.png: {tmp_path}/out/000_labels.png: Is a dir")
    assert (errors["001.jpg"] or "").startswith("001.jpg: out of memory")
    for name in ("000.png", "002.png"):
        assert "got a symbolic link" in (errors[f"sub/{name}"] or "")


def test_a_large_output_that_alone_cannot_be_written_is_a_row(tmp_path: Path) -> None:
    make_images(tmp_path / "in", 1)
    make_tiff(tmp_path / "in" / "a.tif", 64, 64)
    (tmp_path / "out/a_labels.png").mkdir(parents=True)
    done, failed = run_job(tmp_path / "in", tmp_path / "out", block_pixels=1)
    assert (done.name, done.status) == ("000.png", "done")
    assert (failed.name, failed.status) == ("a.tif", "failed")
    assert "a_labels.png: Is a directory" in (failed.error or "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "000_labels.png", "a_labels.png",
    ]  # fmt: skip


def make_tiff(path: Path, height: int, width: int, seed: int = 0) -> np.ndarray:
    """A tiled TIFF with a georeference, of random blocks of 16 × 16 pixels."""
    rasterio = pytest.importorskip("rasterio", reason='needs rasterio: pip install "resclip[geo]"')
    blocks = (-(-height // 16), -(-width // 16), 3)
    small = np.random.default_rng(seed).integers(0, 256, blocks, dtype=np.uint8)
    pixels = small.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=3, dtype="uint8", tiled=True,
        blockxsize=256, blockysize=256, crs="EPSG:3857", photometric="rgb", compress="deflate",
        transform=rasterio.transform.from_origin(1000, 2000, 2, 2),
    ) as file:  # fmt: skip
        file.write(pixels.transpose(2, 0, 1))
    return pixels


@pytest.mark.parametrize(("form", "short_side"), (("png", 0), ("tif", 48)))
def test_a_large_tiff_by_block_gives_the_same_labels(
    tmp_path: Path, form: str, short_side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STRIP_BYTES, "cpu", 1 << 18)  # Several strips.
    pixels = make_tiff(tmp_path / "map.tif", 300, 200)
    segmenter = toy_segmenter(short_side=short_side)
    (wanted,) = segmenter.segment_many([pixels])
    options = {"form": form, "overlay": True, "scores": True}
    block, memory = tmp_path / "block", tmp_path / "memory"
    for out, block_pixels in ((block, 300 * 200 - 1), (memory, 300 * 200)):
        (row,) = run_job(
            tmp_path / "map.tif", out, segmenter=segmenter, block_pixels=block_pixels, **options
        )
        assert row.status == "done", row.error
        assert (row.height, row.width) == (300, 200)
        assert sum(area.pixels for area in row.classes) == 300 * 200
        assert sorted(files_in(out)) == list(row.outputs)
        assert len(row.outputs) == 3
        with Image.open(out / f"map_labels.{form}") as labels:
            assert labels.mode == "P"
            assert np.array_equal(np.asarray(labels), wanted.labels)
    for name in row.outputs:
        with Image.open(block / name) as one, Image.open(memory / name) as two:
            assert np.array_equal(np.asarray(one), np.asarray(two)), name


def test_the_overlay_of_a_very_large_image_is_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every third row and column: strips of rows begin and end in between."""
    monkeypatch.setattr(outputs, "PREVIEW_SIDE", 100)
    monkeypatch.setitem(STRIP_BYTES, "cpu", 1 << 18)
    pixels = make_tiff(tmp_path / "map.tif", 300, 200)
    segmenter = toy_segmenter(short_side=0)
    (wanted,) = segmenter.segment_many([pixels])
    options = {"segmenter": segmenter, "overlay": True, "block_pixels": 1}
    run_job(tmp_path / "map.tif", tmp_path / "out", **options)
    small = draw_overlay(
        pixels[::3, ::3],
        wanted.labels[::3, ::3],
        palette(segmenter.vocabulary.names),
        outputs.OPACITY,
    )
    with Image.open(tmp_path / "out/map_overlay.png") as overlay:
        assert np.array_equal(np.asarray(overlay), np.asarray(small))


def test_a_geotiff_carries_the_inputs_georeference(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason='needs rasterio: pip install "resclip[geo]"')
    make_tiff(tmp_path / "in.tif", 60, 50)
    for block_pixels in (1, 1 << 25):
        run_job(tmp_path / "in.tif", tmp_path / "out", form="tif", block_pixels=block_pixels)
        with rasterio.open(tmp_path / "out/in_labels.tif") as file:
            assert file.crs.to_epsg() == 3857
            assert file.transform == rasterio.transform.from_origin(1000, 2000, 2, 2)
            assert file.dtypes == ("uint8",)
    make_images(tmp_path / "plain", 1)
    run_job(tmp_path / "plain", tmp_path / "out", form="tif")
    with rasterio.open(tmp_path / "out/000_labels.tif") as file:
        assert file.crs is None


def test_a_tiff_that_is_damaged_further_down_leaves_no_file(tmp_path: Path) -> None:
    make_tiff(tmp_path / "map.tif", 900, 600, seed=1)
    data = bytearray((tmp_path / "map.tif").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = b"\xff" * 400
    (tmp_path / "map.tif").write_bytes(bytes(data))
    (row,) = run_job(tmp_path / "map.tif", tmp_path / "out", block_pixels=1)
    assert row.status == "failed"
    assert "map.tif" in (row.error or "")
    assert files_in(tmp_path / "out") == {}


PEAK = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from batch_support import coarse_segmenter
from test_batch import run_job
segmenter = coarse_segmenter()
for path in sys.argv[2:]:
    options = dict(workers=1, segmenter=segmenter, form="tif", block_pixels=1)
    (row,) = run_job(path, Path(sys.argv[1]), **options)
    assert row.status == "done", row.error
    # Not ru_maxrss, which begins with what the process that started this one has taken.
    print(int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1024)
"""


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_an_images_height(tmp_path: Path) -> None:
    """3,584 × 8,000 pixels, 86 MB as bytes and 459 MB as logits, after two sevenths of these rows."""
    rasterio = pytest.importorskip("rasterio", reason='needs rasterio: pip install "resclip[geo]"')
    block = np.random.default_rng(0).integers(0, 256, (3, 8, 125), dtype=np.uint8)
    row = block.repeat(64, axis=1).repeat(64, axis=2)
    for name, height in (("low", 1024), ("high", 3584)):
        with rasterio.open(
            tmp_path / f"{name}.tif", "w", driver="GTiff", height=height, width=8000, count=3,
            dtype="uint8", tiled=True, blockxsize=512, blockysize=512, compress="deflate",
            transform=rasterio.transform.from_origin(0, 0, 1, 1),
        ) as file:  # fmt: skip
            for top in range(0, height, 512):
                file.write(row, window=rasterio.windows.Window(0, top, 8000, 512))
    code = PEAK.format(tests=str(Path(__file__).parent))
    arguments = [str(tmp_path / name) for name in ("out", "low.tif", "high.tif")]
    # glibc gives back at once what is freed of pieces of a megabyte, and its habits do not decide the test.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1048576"}
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert ran.returncode == 0, ran.stderr
    low, high = map(int, ran.stdout.split())
    # Beside Python, torch and the model: one strip and what makes it, and GDAL's cache.
    assert high < 1500
    assert high - low < 80
    with rasterio.open(tmp_path / "out/high_labels.tif") as file:
        assert (file.height, file.width) == (3584, 8000)
