"""The pipeline from JPEG files to PNG files, by the engine of `resclip batch`.

Knows files and the job. Knows no protocol: segmenter and images are given.

The inputs have just been written, so that reading them costs decoding and no disk. Each output is on the disk before
its image counts as done, as in every job.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from resclip.inference.prefetch import available_cores

if TYPE_CHECKING:
    from resclip import Segmenter

FILES = "files"  # The variant.
QUALITY = 90
"""Of the JPEG files: 80 kB each at 512 × 683."""


def file_job(
    segmenter: Segmenter, pixels: list[Tensor], size: tuple[int, int], count: int, folder: Path
) -> Callable[[], None]:
    """Write images as files; what labels them all, each time into a new folder.

    Args:
        segmenter: labels them.
        pixels: (3, H, W) normalised, one an image.
        size: (height, width) of the images in the files.
        count: of files, the images in turn.
        folder: where inputs and outputs go.

    Returns:
        A job to call; RuntimeError where an image is not done, OSError where a file cannot be written.

    Raises:
        ImportError: the engine needs a package that is not there.
    """
    # Not at the top: what files alone need is no reason to measure nothing else.
    from resclip.batch import local
    from resclip.batch.job import BatchJob
    from resclip.batch.sources import open_source
    from resclip.batch.storage import open_store
    from resclip.cli.batch import MAX_WORKERS

    inputs = Path(tempfile.mkdtemp(prefix="jpeg-", dir=folder))
    images = [as_image(image, size, segmenter) for image in pixels]
    for number in range(count):
        images[number % len(images)].save(inputs / f"{number:04}.jpg", quality=QUALITY)
    source = open_source(str(inputs))
    job = BatchJob(segmenter.vocabulary.names, segmenter.preparation)
    workers = min(available_cores(), MAX_WORKERS)

    def run() -> None:
        store = open_store(tempfile.mkdtemp(prefix="png-", dir=folder))
        rows = list(local.run(job, segmenter, source.items, store, workers=workers))
        done = sum(row.status == "done" for row in rows)
        if done < count:
            errors = "; ".join(f"{row.name}: {row.error}" for row in rows if row.error)
            raise RuntimeError(f"expected {count} images to be done, got {done}: {errors}")

    return run


def as_image(pixels: Tensor, size: tuple[int, int], segmenter: Segmenter) -> Image.Image:
    """An image, (3, H, W) normalised, as bytes and of another size."""
    resized = F.interpolate(pixels.unsqueeze(0), size, mode="bilinear", align_corners=False)[0]
    mean, std = (
        resized.new_tensor(each).view(3, 1, 1)
        for each in (segmenter.preparation.mean, segmenter.preparation.std)
    )
    levels = (255 * (resized * std + mean)).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().cpu().numpy())
