"""The frames of a segmented video with their classes' colours, as a video."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterable, Sequence
from fractions import Fraction

import numpy as np
from PIL import Image

from resclip.batch.items import Item
from resclip.batch.job import BatchJob
from resclip.batch.outputs import overlay_of
from resclip.batch.storage import Store
from resclip.io.images import ImageError
from resclip.io.video import FrameReader, VideoWriter


def write_overlay_video(
    job: BatchJob, store: Store, items: Sequence[Item], rate: Fraction, name: str
) -> None:
    """Write the video of frames whose label maps are in the store, from this run or an earlier one.

    Frames are read again, one at a time; those without a label map are shown as they are, and those that cannot be read
    are left out.

    Args:
        job: whose label maps are PNGs.
        store: holds the label maps, and gets the video, once it is whole.
        items: frames, in order.
        rate: frames a second.
        name: of the video.

    Raises:
        OSError: the video cannot be written, or has no frame.
        ImportError: PyAV is missing.
    """
    folder = store.scratch()
    path = folder / "overlay.mp4"
    count = 0
    try:
        writer = VideoWriter(path, rate)
        try:
            for pixels in _overlays(job, store, items):
                writer.add(pixels)
                count += 1
        finally:
            writer.close()
        if not count:
            raise OSError(errno.ENODATA, "expected frames for a video, got none", name)
        store.put_file(path, name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _overlays(
    job: BatchJob, store: Store, items: Sequence[Item]
) -> Iterable[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    done = store.names()
    with FrameReader(job.reading.limits) as frames:
        for item in items:
            try:
                pixels = item.pixels(frames)
            except ImageError:
                continue
            name = f"{item.stem}_labels.png"
            if name in done:
                with store.open(name) as stream, Image.open(stream, formats=["PNG"]) as image:
                    labels = np.asarray(image)
                if labels.shape == pixels.shape[:2]:
                    pixels = np.asarray(overlay_of(job, pixels, labels))
            yield pixels
