"""`resclip segment`: many images, one after another, each done or reported as failed."""

from __future__ import annotations

import argparse
import contextlib
import glob
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from resclip.batch.output_names import SUMMARY
from resclip.batch.paths import shown
from resclip.cli.formats import RunFiles, classes_from, entries_from, export_from
from resclip.cli.options import explain, load_from, reading_from, window_arguments
from resclip.cli.progress import console
from resclip.cli.run_summary import RunSummary, refuse_foreign
from resclip.formats.classes import CLASSES_FILE
from resclip.formats.files import RUN_FILES, files_of_run
from resclip.io.files import write_atomically
from resclip.io.images import read_picture, save_png
from resclip.io.video import FrameReader
from resclip.result import Segmentation
from resclip.text.class_names import parse_classes

if TYPE_CHECKING:
    from resclip.batch.items import Item
    from resclip.io.limits import Limits
    from resclip.io.picture import Picture, ReadOptions
    from resclip.io.video import Every
    from resclip.segmenter import Keep, Segmenter

RUN_STEMS = frozenset(name.removesuffix(".json") for name in (SUMMARY, *RUN_FILES))
"""No image's, for these files are of the whole run."""

ENDINGS = ("_labels.png", "_overlay.png", "_sheet.png")
"""Of the images that are written beside each JSON."""
MASKS = "_masks"
HEAT_MAPS = "_heatmaps"
"""The ends of folders with a picture of each class, which lie beside their image's JSON, too."""
EMBEDDING = ".safetensors"
"""The ending of the files that `resclip embed` writes."""


@dataclass(frozen=True)
class Entry:
    """An image to be segmented, or what was asked for and names none."""

    shown: str
    """What messages call it."""
    name: str
    """Relative, with "/" between parts and without a suffix: the stem of its output files, if it is free."""
    item: Item | None
    error: str | None = None

    @property
    def file_name(self) -> str:
        """What a list of images calls it."""
        name = "" if self.item is None else self.item.name
        return PurePosixPath(name).name if name == self.shown else name


def segment(arguments: argparse.Namespace) -> int:
    """Segment `arguments.images`; the exit status: 0 all done, 1 some failed.

    Raises:
        ValueError, TypeError: the options cannot be carried out, or nothing that was named holds an image.
        OSError: the output directory cannot be made.
        WeightsUnavailable: the model cannot be fetched.
    """
    if arguments.out is None and not arguments.json:
        raise ValueError("expected --out DIR to write to, or --json to print; got neither")
    classes = parse_classes(arguments.classes)
    export = export_from(arguments, arguments.format)
    if arguments.out is None and export.formats:
        raise ValueError("expected --out DIR to write format= to, got none")
    if arguments.out is None and arguments.heatmaps:
        raise ValueError("expected --out DIR to write --heatmaps to, got none")
    options = reading_from(arguments)
    entries = named_entries(arguments, options.limits)
    if arguments.out is not None:
        refuse_foreign(Path(arguments.out), files_of_run(export.formats))
        Path(arguments.out).mkdir(parents=True, exist_ok=True)

    segmenter = load_from(arguments, classes, **window_arguments(arguments))
    files = None
    if arguments.out is not None:
        folder, asked = Path(arguments.out), entries_from(arguments, classes)
        write_atomically(folder / CLASSES_FILE, classes_from(asked))
        files = RunFiles(folder, export, [entry.name for entry in asked])
    with files or contextlib.nullcontext():
        return do_each(
            arguments,
            entries,
            options.limits,
            segmenter,
            "segment",
            lambda entry, stem, frames: segment_one(
                segmenter, entry, stem, options, arguments, frames, files
            ),
            print_line=console().result if arguments.json else console().line,
        )


def named_entries(arguments: argparse.Namespace, limits: Limits) -> list[Entry]:
    """All images that `arguments.images` name; ValueError where none is one."""
    entries = [
        entry
        for asked in arguments.images
        for entry in entries_of(asked, arguments.out, limits, arguments.column, arguments.every)
    ]
    if not any(entry.item for entry in entries):
        raise ValueError("; ".join(str(entry.error) for entry in entries)[:1000])
    return entries


def do_each(
    arguments: argparse.Namespace,
    entries: Sequence[Entry],
    limits: Limits,
    segmenter: Segmenter,
    command: str,
    do_one: Callable[[Entry, str, FrameReader], str],
    print_line: Callable[[str], None],
) -> int:
    """Do something with each image, whatever fails, and leave the run's summary; the exit status.

    Args:
        command: "segment" or "embed"; its images are "segmented" or "embedded".
        do_one: given an image, the stem of its output files and what reads frames, does it and gives a line about it.
        print_line: prints that line.
    """
    done, said = 0, console()
    summary: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if arguments.out is not None:
        summary = RunSummary(
            partial(write_atomically, Path(arguments.out, SUMMARY)),
            said,
            command=command,
            source=list(map(shown, arguments.images)),
            settings=segmenter.settings,
            total=len(entries),
        )
    with (
        summary,
        FrameReader(limits) as frames,
        said.progress(len(entries), says_end=False) as progress,
    ):
        for entry, stem in zip(entries, output_stems(entries, arguments.out), strict=True):
            try:
                line = do_one(entry, stem, frames)
            except Exception as error:  # It fails this image; the others are still done.
                if arguments.debug:
                    raise
                text = explain(error)
                named = text if entry.shown in text else f"{entry.shown}: {text}"
                said.image_failed(entry.shown, text, named)
            else:
                print_line(line)
                said.image_done(entry.shown)
                done += 1
            progress.update()
    if len(entries) > 1:
        failed = f"; {len(entries) - done} failed" if done < len(entries) else ""
        did = {"segment": "segmented", "embed": "embedded"}[command]
        said.message(f"{done} of {len(entries)} images {did}{failed}")
    return 0 if done == len(entries) else 1


def entries_of(
    asked: str,
    out: str | None,
    limits: Limits,
    column: str | None = None,
    every: Every | None = None,
) -> Iterator[Entry]:
    """The images of an argument: a file, a folder, a pattern that no shell has expanded, a URL, a list, ...

    What earlier runs wrote to `out` is none of them.
    """
    from resclip.batch.items import Item
    from resclip.batch.lists import STDIN
    from resclip.batch.paths import is_pattern, local_path, suffix
    from resclip.batch.sources import KINDS, open_source

    path = local_path(asked)
    embeddings = [] if path is None else embeddings_at(path)
    for one in embeddings:
        yield Entry(str(one), one.stem, Item(0, str(one), str(one), str(one)))
    if embeddings and path is not None and not any_image_below(path):
        return
    # Not pathlib's, which raise for a text that can be no path.
    if path is not None and asked != STDIN and not os.path.isdir(path):  # noqa: PTH112
        is_image = KINDS.get(suffix(asked), "image") == "image"
        # The name of a file is no pattern, whatever is in it; reading a missing one says so.
        if is_image and (os.path.lexists(path) or not is_pattern(asked)):
            yield Entry(asked, path.stem, Item(0, asked, asked, asked))
            return
    try:
        source = open_source(asked, column=column, every=every, out=out, limits=limits)
    except (ValueError, OSError, ImportError) as error:
        yield Entry(shown(asked), "", None, explain(error))
        return
    for item in source.items:
        location = shown(item.location)
        # A part of an archive, a table or a video is known by its name in it.
        is_part = not (item.cell is None and item.length is None and item.frame is None)
        title = item.name if is_part else location
        if not is_written(item, out):
            whole = len(source.items) == 1 and not item.cell and item.frame is None
            name = PurePosixPath(item.stem).name if whole else item.stem
            yield Entry(title or item.name, name, item)


def embeddings_at(path: Path) -> list[Path]:
    """The embeddings of a folder, or of a pattern that ends as they do and that no shell has expanded."""
    if path.suffix.lower() == EMBEDDING and not os.path.lexists(path):
        return sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207
    if not path.is_dir():
        return []
    from resclip.inference.embedding import is_embedding

    return sorted(one for one in path.rglob(f"*{EMBEDDING}") if is_embedding(one))


def any_image_below(path: Path) -> bool:
    """Whether a folder has an image, by its first bytes; a pattern of embeddings has none."""
    from resclip.io.signatures import SIGNATURE_BYTES, looks_like_image

    def is_image(one: Path) -> bool:
        with one.open("rb") as stream:
            return looks_like_image(stream.read(SIGNATURE_BYTES))

    return path.is_dir() and any(one.is_file() and is_image(one) for one in path.rglob("*"))


def is_written(item: Item, out: str | None) -> bool:
    """Whether an earlier run wrote a file to `out`: its JSON lies beside it."""
    path = item.local_path
    if out is None or path is None:
        return False
    ending = next((ending for ending in ENDINGS if path.name.endswith(ending)), None)
    for folder in (MASKS, HEAT_MAPS):
        if ending is None and path.parent.name.endswith(folder):
            path, ending = path.parent, folder
    if ending is None or not path.resolve().is_relative_to(Path(out).resolve()):
        return False
    stem = path.name.removesuffix(ending)
    return stem not in RUN_STEMS and path.with_name(f"{stem}.json").exists()


def output_stems(entries: Sequence[Entry], directory: str | None) -> list[str]:
    """The stem of each image's output files: the image's own, or with -2, -3, ... where that is taken.

    A stem is taken by a file of the whole run or an earlier image, whatever the case of its letters, or if one of its
    output files would replace one of the images themselves, or a JSON that is not ours.
    """
    inputs = set(local_files(entries))
    folder = Path(directory or ".").resolve()
    taken = set(RUN_STEMS)
    stems = []
    for entry in entries:
        stem, number = entry.name, 1
        while (
            stem.casefold() in taken
            or any(folder / f"{stem}{ending}" in inputs for ending in (*ENDINGS, ".json"))
            or is_foreign(folder, stem)
        ):
            number += 1
            stem = f"{entry.name}-{number}"
        taken.add(stem.casefold())
        stems.append(stem)
    return stems


def is_foreign(folder: Path, stem: str) -> bool:
    """Whether the image's JSON would replace one that no earlier run wrote, beside a label map."""
    return (folder / f"{stem}.json").exists() and not (folder / f"{stem}_labels.png").exists()


def local_files(entries: Iterable[Entry]) -> Iterator[Path]:
    """The files of this machine that are to be segmented."""
    for entry in entries:
        path = None if entry.item is None else entry.item.local_path
        try:
            if path is not None:
                yield path.resolve()
        except (OSError, RuntimeError, ValueError):  # A link to itself, or no name at all.
            continue


def segment_one(
    segmenter: Segmenter,
    entry: Entry,
    stem: str,
    options: ReadOptions,
    arguments: argparse.Namespace,
    frames: FrameReader,
    files: RunFiles | None,
) -> str:
    """Segment and save one image; the line to print about it."""
    if entry.item is None:
        raise ValueError(entry.error)
    heats = arguments.heatmaps
    result = result_of(segmenter, entry, options, frames, keep="scores" if heats else None)
    paths: list[Path] = []
    if arguments.out is not None:
        folder = Path(arguments.out, stem).parent
        paths = result.save(folder, PurePosixPath(stem).name, overlay=arguments.overlay)
    if files is not None:
        paths += files.add(result, stem, entry.file_name)
        paths += save_heat_maps(result, files.folder / f"{stem}{HEAT_MAPS}") if heats else []
    if arguments.json:
        about = {"file": entry.shown, "written": [str(path) for path in paths]}
        return json.dumps({**about, **result.to_dict()})
    shown = paths[1] if arguments.overlay else paths[0]
    return f"{entry.shown}: {summary(result)} -> {shown}"


def result_of(
    segmenter: Segmenter,
    entry: Entry,
    options: ReadOptions,
    frames: FrameReader,
    keep: Keep | None,
) -> Segmentation:
    """The labels of an image, or of what `resclip embed` wrote of one."""
    path = None if entry.item is None else entry.item.local_path
    if path is None or path.suffix.lower() != EMBEDDING:
        return segmenter.segment(picture_of(entry, options, frames), keep=keep)
    from resclip.inference.embedding import Embedding

    return segmenter.classify(Embedding.load(path), keep=keep)


def picture_of(entry: Entry, options: ReadOptions, frames: FrameReader) -> Picture:
    """An image, read; ValueError for what was asked for and names none."""
    item = entry.item
    if item is None:
        raise ValueError(entry.error)
    source = item.source(options.limits) if item.frame is None else item.pixels(frames)
    return read_picture(source, options, name=entry.shown)


def save_heat_maps(result: Segmentation, folder: Path) -> list[Path]:
    """Write CLASS.png, the heat map of each class; their paths."""
    from resclip.formats.class_masks import mask_names

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png" for name in mask_names(result.names)]
    for name, path in zip(result.names, paths, strict=True):
        save_png(result.heatmap(name), path)
    return paths


def summary(result: Segmentation) -> str:
    """The largest classes with their areas, the mean probability, and what the image does not have."""
    areas = [f"{name} {fraction:.0%}" for name, fraction in result.areas().items()]
    more = f" and {len(areas) - 5} more" if len(areas) > 5 else ""
    labelled = result.probabilities[result.labels >= 0]
    if not labelled.size:
        return "nothing labelled: the image has no pixels"
    absent = f", {result.unlabelled:.0%} unlabelled" if result.unlabelled else ""
    confidence = float(np.mean(labelled))
    return f"{', '.join(areas[:5])}{more} (mean probability {confidence:.2f}{absent})"
