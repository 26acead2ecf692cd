"""Many images on a CPU: one by one with one window at a time, against batches of windows, which give the same labels.

Writes results/batch.json: images a second both ways, for small and large windows and two methods, and of the whole of
`resclip batch` from JPEG files to PNG files. docs/scale.md shows them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.reporting import RESULTS, conditions, store, table, this_machine
from resclip import Segmenter, load
from resclip.batch import steps
from resclip.batch.job import BatchJob
from resclip.batch.sources import open_source
from resclip.batch.steps import finish, read_item, segment_images
from resclip.batch.storage import open_store
from resclip.evaluation.datasets import open_dataset

CLASSES = ["sky", "grass", "house", "tree", "sun", "car", "flower", "balloon", "cloud"]
IMAGES = 24
ROUNDS = 3
THREADS = 2
BATCH_SIZE = 16
PHOTOGRAPH = (500, 375)
"""Width and height in pixels, as most datasets of photographs have them."""
PHOTOGRAPHS = 100_000_000
"""Images of the example job in docs/scale.md."""
CASES = (("naclip", 56), ("resclip", 56), ("naclip", 112), ("resclip", 112))
"""Methods, and the sides of their windows in pixels: 49 and 196 patches of the built-in model."""


def drawn_images(count: int) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    """Drawn scenes, cut and repeated to sizes between 60 and 250 pixels."""
    samples = open_dataset("builtin").samples
    generator = np.random.default_rng(0)
    cut = []
    for number in range(count):
        height, width = generator.integers(60, 250, 2)
        scene = samples[number].image.read().pixels
        cut.append(np.ascontiguousarray(np.tile(scene, (2, 2, 1))[:height, :width]))
    return cut


def segmenter(method: str, window: int, batch_size: int, short_side: int = 0) -> Segmenter:
    """The built-in model; by default at the images' own size."""
    return load(
        "builtin",
        classes=CLASSES,
        method=method,
        window=window,
        short_side=short_side,
        batch_size=batch_size,
    )


def best_time(function: Callable[[], list[Any]]) -> tuple[float, list[Any]]:
    """Seconds of the fastest of `ROUNDS` calls, after one to warm up, and the result of the last one."""
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
    slow, expected = best_time(lambda: [alone.segment(image).labels for image in images])
    fast, labels = best_time(lambda: [result.labels for result in many.segment_many(images)])
    equal = [float((one == two).mean()) for one, two in zip(labels, expected, strict=True)]
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
    """The rates of a job from JPEG files to label maps."""
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
        items = open_source(str(root / "in")).items
        segmenting = steps.segmenting_threads(model, len(items))
        start = time.perf_counter()
        rows = list(steps.run(job, model, items, store, workers=THREADS, segmenting=segmenting))
        seconds = time.perf_counter() - start
        written = sum(path.stat().st_size for path in (root / "out").glob("*.png"))
    if any(row.status != "done" for row in rows):
        raise ValueError("an image failed")
    return {
        "method": method,
        "window": window,
        "segmenting_threads": segmenting,
        "images": len(rows),
        "images_per_second": len(rows) / seconds,
        "megapixels_per_second": total / 1e6 / seconds,
        "bytes_per_image": written / len(rows),
        "pixels_per_image": total / len(rows),
    }


def file_steps() -> dict[str, Any]:
    """What reading and writing a photograph-sized image takes on one core, without a model."""
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
        written_bytes = sum(
            (root / "out" / name).stat().st_size for row in rows for name in row.outputs
        )
    return {
        "size": PHOTOGRAPH,
        "read_seconds": reading / len(items),
        "write_seconds": writing / len(items),
        "read_bytes": read_bytes / len(items),
        "written_bytes": written_bytes / len(items),
    }


def batch_tables(run: dict[str, Any]) -> str:
    """Images one by one against all together, and whole jobs."""
    ways = table(
        ["method", "window", "one by one, images/s", "together, images/s", "faster"],
        [
            [
                row["method"],
                row["window"],
                f"{row['one_by_one']:.2f}",
                f"{row['together']:.2f}",
                f"{row['ratio']:.1f} ×",
            ]
            for row in run["rows"]
        ],
    )
    note = (
        f"{run['images']} images of 60 to 250 pixels a side, built-in model, at their own size. One by one: an "
        "image and a window at a time. Together: `segment_many`, batches of "
        f"{run['batch_size']}. The labels are the same. {conditions(run)}"
    )
    jobs = table(
        ["JPEG to PNG", "window", "images/s", "megapixels/s", "bytes a label map"],
        [
            [
                job["method"],
                job["window"],
                f"{job['images_per_second']:.2f}",
                f"{job['megapixels_per_second']:.3f}",
                f"{job['bytes_per_image']:,.0f}",
            ]
            for job in run["jobs"]
        ],
    )
    return f"{ways}\n\n{note}\n\n{jobs}"


def million_table(run: dict[str, Any]) -> str:
    """What `PHOTOGRAPHS` images take beside the model, by the measured steps."""
    steps = run["steps"]
    width, height = steps["size"]
    on_a_core = steps["read_seconds"] + steps["write_seconds"]
    rows = [
        ["reading a JPEG, and resizing it", f"{1000 * steps['read_seconds']:.1f} ms of a core"],
        [
            "writing its label map",
            f"{1000 * steps['write_seconds']:.1f} ms of a core, fsync included",
        ],
        [f"{PHOTOGRAPHS:,} of both", f"{PHOTOGRAPHS * on_a_core / 3600:,.0f} core hours"],
        ["cores that keep up with a model of 100 images/s", f"{100 * on_a_core:.1f}"],
        [f"{PHOTOGRAPHS:,} read", f"{PHOTOGRAPHS * steps['read_bytes'] / 1e12:.1f} TB"],
        [f"{PHOTOGRAPHS:,} written", f"{PHOTOGRAPHS * steps['written_bytes'] / 1e12:.2f} TB"],
        [
            "network at 100 images/s",
            f"{100 * (steps['read_bytes'] + steps['written_bytes']) / 1e6:.1f} MB/s",
        ],
    ]
    return f"{table([f'{width} × {height} pixels', 'measured'], rows)}\n\n{conditions(run)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks batch", description=__doc__.splitlines()[0]
    )
    parser.parse_args(arguments)
    torch.set_num_threads(THREADS)
    rows = []
    for method, window in CASES:
        rows.append(compare(method, window))
        print(json.dumps(rows[-1]), flush=True)
    jobs = [whole_job(method, window) for method, window in CASES]
    steps = file_steps()
    for figures in (*jobs, steps):
        print(json.dumps(figures), flush=True)
    run = {
        **this_machine(),
        "batch_size": BATCH_SIZE,
        "images": IMAGES,
        "rows": rows,
        "jobs": jobs,
        "steps": steps,
    }
    store(RESULTS / "batch.json", run)
    return 0
