"""`resclip embed`: images through the model once; `resclip segment` gives what it writes any classes later."""

from __future__ import annotations

import argparse
import contextlib
from functools import partial
from pathlib import Path

from resclip.batch.output_names import SUMMARY
from resclip.batch.paths import shown
from resclip.cli.options import explain, load_from, reading_from, window_arguments
from resclip.cli.progress import console
from resclip.cli.run_summary import RunSummary, refuse_foreign
from resclip.cli.segment import EMBEDDING, Entry, entries_of, output_stems
from resclip.io.files import write_atomically
from resclip.io.images import read_picture
from resclip.io.picture import ReadOptions
from resclip.io.video import FrameReader
from resclip.segmenter import Segmenter

PRECISIONS = ("int16", "int8", "float32")
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
    entries = [
        entry
        for asked in arguments.images
        for entry in entries_of(
            asked, arguments.out, options.limits, arguments.column, arguments.every
        )
    ]
    if not any(entry.item for entry in entries):
        raise ValueError("; ".join(str(entry.error) for entry in entries)[:1000])
    folder = Path(arguments.out)
    refuse_foreign(folder, ())
    folder.mkdir(parents=True, exist_ok=True)
    segmenter = load_from(
        arguments, ANY_WORDS, **{**window_arguments(arguments), "templates": ["{}"]}
    )
    said, done = console(), 0
    summary = RunSummary(
        partial(write_atomically, folder / SUMMARY),
        said,
        command="embed",
        source=list(map(shown, arguments.images)),
        settings=segmenter.settings,
        total=len(entries),
    )
    with (
        contextlib.ExitStack() as stack,
        said.progress(len(entries), says_end=False) as progress,
    ):
        stack.enter_context(summary)
        frames = stack.enter_context(FrameReader(options.limits))
        for entry, stem in zip(entries, output_stems(entries, arguments.out), strict=True):
            try:
                line = embed_one(segmenter, entry, folder / stem, options, arguments, frames)
            except Exception as error:  # It fails this image; the others are still embedded.
                if arguments.debug:
                    raise
                text = explain(error)
                said.image_failed(
                    entry.shown, text, text if entry.shown in text else f"{entry.shown}: {text}"
                )
            else:
                said.line(line)
                said.image_done(entry.shown)
                done += 1
            progress.update()
    if len(entries) > 1:
        failed = f"; {len(entries) - done} failed" if done < len(entries) else ""
        said.message(f"{done} of {len(entries)} images embedded{failed}")
    return 0 if done == len(entries) else 1


def embed_one(
    segmenter: Segmenter,
    entry: Entry,
    stem: Path,
    options: ReadOptions,
    arguments: argparse.Namespace,
    frames: FrameReader,
) -> str:
    """Embed and save one image; the line to print about it."""
    if entry.item is None:
        raise ValueError(entry.error)
    item = entry.item
    if item.local_path is not None and item.local_path.suffix.lower() == EMBEDDING:
        raise ValueError(
            f"expected an image, got {entry.shown}, as embeddings are called; segment it"
        )
    source = item.source(options.limits) if item.frame is None else item.pixels(frames)
    embedding = segmenter.embed(read_picture(source, options, name=entry.shown))
    pipeline = segmenter.pipeline
    needs = pipeline.window_steps.reads_pixels or pipeline.reads_guide
    stem.parent.mkdir(parents=True, exist_ok=True)
    path = embedding.save(
        stem.with_name(f"{stem.name}.safetensors"),
        precision=arguments.keep,
        image=needs if arguments.image is None else arguments.image,
    )
    return f"{entry.shown}: {path.stat().st_size / 1e6:.1f} MB -> {path}"
