"""The figures of the encoder: against the reference, with many names, in batches, and on a large image."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

import pytest
import torch

from benchmarks import shapes
from benchmarks.reporting import ROOT


@pytest.mark.benchmark(group="encoder, ViT-B/16, 224 × 224, 150 queries, float32")
@pytest.mark.parametrize("implementation", ("torch", "reference"))
def test_encoder(benchmark, implementation: str) -> None:
    pixels, text = shapes.images(1), shapes.text(150)
    dense = shapes.encoder(implementation)
    features = benchmark.pedantic(dense, (pixels, text), rounds=3, warmup_rounds=1)
    # Only what is correct counts: the other implementation must give the same features.
    other = shapes.encoder("torch" if implementation == "reference" else "reference")
    expected = other(pixels, text)
    assert torch.equal(features.feedback_labels, expected.feedback_labels)
    error = (features.patches - expected.patches).norm() / expected.patches.norm()
    assert error < 1e-4


@pytest.mark.benchmark(group="predict, one image, by number of names")
@pytest.mark.parametrize("names", (20, 847))
def test_names(benchmark, names: int) -> None:
    pixels = shapes.images(1)
    labels = benchmark.pedantic(
        shapes.segmenter(names).predict, (pixels,), rounds=5, warmup_rounds=1
    )
    assert labels.shape == (1, 224, 224)


@pytest.mark.benchmark(group="predict, eight images, 20 names")
@pytest.mark.parametrize("batch", (8, 1))
def test_batch(benchmark, batch: int) -> None:
    pixels = shapes.images(8)
    segmenter = shapes.segmenter(20)

    def run() -> torch.Tensor:
        return torch.cat([segmenter.predict(part) for part in pixels.split(batch)])

    labels = benchmark.pedantic(run, rounds=5, warmup_rounds=1)
    assert torch.equal(labels, segmenter.predict(pixels))


@pytest.mark.benchmark(group="predict, 2048 × 2048 whole, 20 names")
def test_large_image(benchmark) -> None:
    # A process of its own: its peak resident memory is this image's and no other benchmark's.
    command = [sys.executable, "-m", "benchmarks.bench_encoder"]

    def run() -> dict[str, float]:
        finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        result: dict[str, float] = json.loads(finished.stdout)
        return result

    result = benchmark.pedantic(run, rounds=1)
    benchmark.extra_info |= result
    assert result["peak_gb"] < 8


def segment_large_image() -> None:
    """Segment one image whole; print seconds and the process's peak memory, model and torch included, as JSON."""
    torch.set_num_threads(2)
    pixels = shapes.images(1, 2048)
    segmenter = shapes.segmenter(20, window=0)
    start = time.perf_counter()
    labels = segmenter.predict(pixels)
    seconds = time.perf_counter() - start
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps({"seconds": seconds, "peak_gb": peak_gb, "labels": labels.unique().numel()}))


if __name__ == "__main__":
    segment_large_image()
