"""Many images on a CPU: one by one with one window at a time, against batches of windows; see `make bench-scale`.

Writes results/batch.json: images a second both ways, for small and large windows and two methods, and of the whole of
`resclip batch` from JPEG files to PNG files. Both ways must give the same labels.
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from resclip import Segmenter, load
from resclip.batch import local
from resclip.batch.job import BatchJob
from resclip.batch.sources import open_source
from resclip.batch.steps import finish, read_item, segment_images
from resclip.batch.storage import open_store
from resclip.evaluation.datasets import open_dataset
from resclip.evaluation.distributed import machine_name

RESULTS = Path(__file__).parent / "results"
CLASSES = ["sky", "grass", "house", "tree", "sun", "car", "flower", "balloon", "cloud"]
IMAGES = 24
ROUNDS = 3
THREADS = 2
BATCH_SIZE = 16
PHOTOGRAPH = (500, 375)
"""Width and height of what datasets of photographs hold."""
CASES = (("naclip", 56), ("resclip", 56), ("naclip", 112), ("resclip", 112))
"""Methods, and sides of windows in pixels: 49 and 196 patches of the built-in model."""


def drawn_images(count: int) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    """Drawn scenes, cut and repeated to sizes between 60 and 250 pixels."""
    samples = open_dataset("builtin").samples
    generator = np.random.default_rng(0)
    cut = []
    for number in range(count):
        height, width = generator.integers(60, 250, 2)
        scene = samples[number].image.read()
        cut.append(np.ascontiguousarray(np.tile(scene, (2, 2, 1))[:height, :width]))
    return cut


def segmenter(method: str, window: int, batch_size: int, short_side: int = 0) -> Segmenter:
    """The built-in model; by default at the images' own size."""
    return load(
        classes=CLASSES,
        method=method,
        window=window,
        short_side=short_side,
        batch_size=batch_size,
    )


def labels_one_by_one(model: Segmenter, images: list[Any]) -> list[Any]:
    """An image at a time; the model's batches hold one window."""
    return [model.segment(image).labels for image in images]


def labels_together(model: Segmenter, images: list[Any]) -> list[Any]:
    """All in one stream."""
    return [result.labels for result in model.segment_many(images)]


def best_time(function: Callable[[], list[Any]]) -> tuple[float, list[Any]]:
    """Seconds of the fastest round, after one to warm up; and the last one's result."""
    result = function()
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def compare(method: str, window: int) -> dict[str, Any]:
    """Both ways on the same images."""
    images = drawn_images(IMAGES)
    alone, many = segmenter(method, window, 1), segmenter(method, window, BATCH_SIZE)
    slow, expected = best_time(lambda: labels_one_by_one(alone, images))
    fast, came = best_time(lambda: labels_together(many, images))
    equal = [float((one == two).mean()) for one, two in zip(came, expected, strict=True)]
    if min(equal) < 0.999:
        raise ValueError(f"the labels differ in {1 - min(equal):.2%} of an image's pixels")
    return {
        "method": method,
        "window": window,
        "one_by_one": IMAGES / slow,
        "together": IMAGES / fast,
        "ratio": slow / fast,
        "equal": float(np.mean(equal)),
    }


def whole_job(method: str, window: int) -> dict[str, Any]:
    """From JPEG files to label maps."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "in").mkdir()
        total = 0
        for number, image in enumerate(drawn_images(IMAGES * 2)):
            Image.fromarray(image).save(root / "in" / f"{number:03}.jpg", quality=95)
            total += image.shape[0] * image.shape[1]
        model = segmenter(method, window, BATCH_SIZE)
        model.pipeline.pad_batches = True
        job = BatchJob(model.vocabulary.names, model.preparation)
        store = open_store(str(root / "out"))
        start = time.perf_counter()
        rows = list(
            local.run(job, model, open_source(str(root / "in")).items, store, workers=THREADS)
        )
        seconds = time.perf_counter() - start
        written = sum(path.stat().st_size for path in (root / "out").glob("*.png"))
    if any(row.status != "done" for row in rows):
        raise ValueError("an image failed")
    return {
        "method": method,
        "window": window,
        "images": len(rows),
        "images_per_second": len(rows) / seconds,
        "megapixels_per_second": total / 1e6 / seconds,
        "bytes_per_image": written / len(rows),
        "pixels_per_image": total / len(rows),
    }


def file_steps() -> dict[str, Any]:
    """What reading and writing a photograph-sized image takes on one core, without a model."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "in").mkdir()
        for number, image in enumerate(drawn_images(IMAGES)):
            photograph = Image.fromarray(image).resize(PHOTOGRAPH, Image.Resampling.BICUBIC)
            photograph.save(root / "in" / f"{number:03}.jpg", quality=90)
        model = segmenter("naclip", 112, BATCH_SIZE, short_side=336)
        job = BatchJob(model.vocabulary.names, model.preparation)
        store = open_store(str(root / "out"))
        items = open_source(str(root / "in")).items
        outcomes = list(segment_images(job, model, store, (read_item(job, item) for item in items)))
        start = time.perf_counter()
        for item in items:
            read_item(job, item)
        reading = time.perf_counter() - start
        start = time.perf_counter()
        rows = [finish(job, store, outcome) for outcome in outcomes]
        writing = time.perf_counter() - start
        read_bytes = sum(path.stat().st_size for path in (root / "in").iterdir())
        written_bytes = sum((root / "out" / name).stat().st_size for row in rows for name in row.outputs)  # fmt: skip
    return {
        "size": PHOTOGRAPH,
        "read_seconds": reading / len(items),
        "write_seconds": writing / len(items),
        "read_bytes": read_bytes / len(items),
        "written_bytes": written_bytes / len(items),
    }


def main() -> None:
    """Measure, print and store."""
    torch.set_num_threads(THREADS)
    rows = []
    for method, window in CASES:
        rows.append(compare(method, window))
        print(json.dumps(rows[-1]), flush=True)
    jobs = [whole_job("naclip", 56), whole_job("naclip", 112)]
    for job in jobs:
        print(json.dumps(job), flush=True)
    steps = file_steps()
    print(json.dumps(steps), flush=True)
    run = {
        "machine": machine_name(torch.device("cpu")),
        "threads": THREADS,
        "batch_size": BATCH_SIZE,
        "images": IMAGES,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "rows": rows,
        "jobs": jobs,
        "steps": steps,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "batch.json").write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
