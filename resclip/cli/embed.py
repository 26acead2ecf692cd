"""`resclip embed`: images through the model once; `resclip segment` gives what it writes any classes later."""

from __future__ import annotations

import argparse
from pathlib import Path

from resclip.cli.options import load_from, reading_from, window_arguments
from resclip.cli.progress import console
from resclip.cli.run_summary import refuse_foreign
from resclip.cli.segment import EMBEDDING, Entry, do_each, named_entries, picture_of
from resclip.io.picture import ReadOptions
from resclip.io.video import FrameReader
from resclip.segmenter import Segmenter

ANY_WORDS = ("sky", "tree")
"""A segmenter has classes; an embedding depends on none."""


def embed(arguments: argparse.Namespace) -> int:
    """Embed `arguments.images`; the exit status: 0 all done, 1 some failed.

    Raises:
        ValueError, TypeError: the options cannot be carried out, or nothing that was named holds an image.
        OSError: the output directory cannot be made.
        WeightsUnavailable: the model cannot be fetched.
    """
    options = reading_from(arguments)
    entries = named_entries(arguments, options.limits)
    folder = Path(arguments.out)
    refuse_foreign(folder, ())
    folder.mkdir(parents=True, exist_ok=True)
    segmenter = load_from(
        arguments, ANY_WORDS, **{**window_arguments(arguments), "templates": ["{}"]}
    )
    return do_each(
        arguments,
        entries,
        options.limits,
        segmenter,
        "embed",
        lambda entry, stem, frames: embed_one(
            segmenter, entry, folder / stem, options, arguments, frames
        ),
        print_line=console().line,
    )


def embed_one(
    segmenter: Segmenter,
    entry: Entry,
    stem: Path,
    options: ReadOptions,
    arguments: argparse.Namespace,
    frames: FrameReader,
) -> str:
    """Embed and save one image; the line to print about it."""
    path = None if entry.item is None else entry.item.local_path
    if path is not None and path.suffix.lower() == EMBEDDING:
        raise ValueError(
            f"expected an image, got {entry.shown}, as embeddings are called; segment it"
        )
    embedding = segmenter.embed(picture_of(entry, options, frames))
    pipeline = segmenter.pipeline
    needs = pipeline.window_steps.reads_pixels or pipeline.reads_guide
    stem.parent.mkdir(parents=True, exist_ok=True)
    path = embedding.save(
        stem.with_name(f"{stem.name}.safetensors"),
        precision=arguments.keep,
        image=needs if arguments.image is None else arguments.image,
    )
    return f"{entry.shown}: {path.stat().st_size / 1e6:.1f} MB -> {path}"
