"""Segment one large image whole, and print seconds and peak memory as JSON: `large_image.py SIDE NAMES`."""

from __future__ import annotations

import json
import resource
import sys
import time

import shapes
import torch


def main() -> None:
    """Run once; peak memory is the process's, model and torch included."""
    side, names = int(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(2)
    pixels = shapes.images(1, side)
    segmenter = shapes.segmenter(names, window=0)
    start = time.perf_counter()
    labels = segmenter.predict(pixels)
    seconds = time.perf_counter() - start
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps({"seconds": seconds, "peak_gb": peak_gb, "labels": labels.unique().numel()}))


if __name__ == "__main__":
    main()
