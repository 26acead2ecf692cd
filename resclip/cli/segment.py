"""`resclip segment`: many images, one after another, each done or reported as failed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from resclip.cli.options import explain, load_from, window_arguments
from resclip.io.images import MAX_PIXELS, read_image
from resclip.result import Segmentation
from resclip.text.class_names import parse_classes

if TYPE_CHECKING:
    from resclip.segmenter import Segmenter


def segment(arguments: argparse.Namespace) -> int:
    """Segment `arguments.images`; the exit status: 0 all done, 1 some failed.

    Raises:
        ValueError, TypeError: the options cannot be carried out.
        OSError: the output directory cannot be made.
        WeightsUnavailable: the model cannot be fetched.
    """
    if arguments.out is None and not arguments.json:
        raise ValueError("expected --out DIR to write to, or --json to print; got neither")
    classes = parse_classes(arguments.classes)
    images = [Path(image) for image in arguments.images]
    if arguments.out is not None:
        Path(arguments.out).mkdir(parents=True, exist_ok=True)

    segmenter = load_from(arguments, classes, **window_arguments(arguments))
    done = 0
    # disable=None: no bar where stderr is no terminal.
    with tqdm(total=len(images), unit="image", disable=None, leave=False) as bar:
        for image, stem in zip(images, output_stems(images, arguments.out), strict=True):
            try:
                line = segment_one(segmenter, image, stem, arguments)
            except Exception as error:  # It fails this image; the others are still segmented.
                if arguments.debug:
                    raise
                text = explain(error)
                named = text if str(image) in text else f"{image}: {text}"
                bar.write(f"resclip: {named}", file=sys.stderr)
            else:
                bar.write(line, file=sys.stdout)
                done += 1
            bar.update()
    if done < len(images) > 1:
        print(
            f"resclip: {done} of {len(images)} images segmented; {len(images) - done} failed",
            file=sys.stderr,
        )
    return 0 if done == len(images) else 1


def output_stems(images: Sequence[Path], directory: str | None) -> list[str]:
    """The stem of each image's output files: the image's own, or with -2, -3, ... where that is taken.

    A stem is taken by an earlier image, whatever the case of its letters, or if one of its output files would replace
    one of the images themselves.
    """
    inputs = {image.resolve() for image in images}
    folder = Path(directory or ".").resolve()
    taken: set[str] = set()
    stems = []
    for image in images:
        stem, number = image.stem, 1
        while stem.casefold() in taken or any(
            folder / f"{stem}{ending}" in inputs
            for ending in ("_labels.png", "_overlay.png", ".json")
        ):
            number += 1
            stem = f"{image.stem}-{number}"
        taken.add(stem.casefold())
        stems.append(stem)
    return stems


def segment_one(segmenter: Segmenter, image: Path, stem: str, arguments: argparse.Namespace) -> str:
    """Segment and save one image; the line to print about it."""
    pixels = read_image(image, max_pixels=arguments.max_pixels or MAX_PIXELS)
    result = segmenter.segment(pixels)
    paths: list[Path] = []
    if arguments.out is not None:
        paths = result.save(arguments.out, stem, overlay=arguments.overlay)
    if arguments.json:
        files = {"file": str(image), "written": [str(path) for path in paths]}
        return json.dumps({**files, **result.to_dict()})
    shown = paths[1] if arguments.overlay else paths[0]
    return f"{image}: {summary(result)} -> {shown}"


def summary(result: Segmentation) -> str:
    """The largest classes with their areas, and the mean probability."""
    areas = [f"{name} {fraction:.0%}" for name, fraction in result.areas().items()]
    more = f" and {len(areas) - 5} more" if len(areas) > 5 else ""
    confidence = float(np.mean(result.probabilities))
    return f"{', '.join(areas[:5])}{more} (mean probability {confidence:.2f})"
