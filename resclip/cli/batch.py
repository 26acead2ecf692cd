"""`resclip batch`: segments any number of images on one machine or a Ray cluster; see `resclip.batch`."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, BinaryIO

from resclip.builtin import BUILTIN, warn_of_drawn_scenes
from resclip.cli.formats import (
    FORMAT_HELP,
    add_shape_options,
    batch_format_names,
    classes_from,
    entries_from,
    export_from,
)
from resclip.cli.options import (
    CLASSES_HELP,
    EVERY_HELP,
    add_model_options,
    add_reading_options,
    add_window_options,
    every_frame,
    explain,
    memory_size,
    output_folder,
    reading_from,
    request_from,
    whole_number,
    window_arguments,
)
from resclip.cli.progress import add_progress_options, console
from resclip.cli.run_summary import RunSummary, refuse_foreign
from resclip.errors import describe
from resclip.inference.prefetch import available_cores
from resclip.text.class_names import parse_classes

if TYPE_CHECKING:
    from resclip.batch.manifest import Manifest, Row
    from resclip.batch.sources import Source
    from resclip.batch.storage import Store

MAX_WORKERS = 16
"""By default at most so many threads read, and as many write."""

MAX_WORKERS_WITHIN_MEMORY = 4
"""So many where memory is limited, which their images share."""

MOST_OF_NAME = 200
"""So many characters of an image's name stand in a message."""

DESCRIPTION = """\
Segments any number of images: DIR gets NAME_labels.png for each (pixel values are class indices), and a row in
DIR/manifest.parquet with its state, classes and their areas. Images that cannot be read are named, the others done. A
run that was ended goes on where it stopped when the command is given again.
"""

SOURCE_HELP = """\
a folder, a glob such as "photos/**/*.jpg", a text file with a path or URL a line, or "-" to read such lines from the
standard input, a table (.csv, .tsv, .jsonl, .parquet) with a column of paths or URLs, or in Parquet of bytes, or
WebDataset shards such as "shard-{000..099}.tar"; on this machine or any URL that fsspec knows (s3://, gs://, https://).
Or a video on this machine
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `resclip batch`."""
    parser.add_argument("source", metavar="SOURCE", help=SOURCE_HELP)
    parser.add_argument(
        "--out", required=True, type=output_folder, metavar="DIR", help="folder or URL to write to"
    )
    parser.add_argument("--classes", required=True, metavar="NAMES", help=CLASSES_HELP)
    files = parser.add_argument_group("files")
    files.add_argument(
        "--format",
        action="extend",
        type=batch_format_names,
        default=[],
        metavar="NAMES",
        help="of label maps: png, or tif for GeoTIFFs with the input's coordinate system (default: png); and other "
        f"{FORMAT_HELP}",
    )
    add_shape_options(files)
    files.add_argument("--overlay", action="store_true", help="write NAME_overlay.png too")
    files.add_argument(
        "--scores",
        action="store_true",
        help="write NAME_scores.png too: each pixel's probability, 65535 is 1",
    )
    files.add_argument(
        "--overwrite", action="store_true", help="do everything anew, whatever DIR holds"
    )
    files.add_argument("--every", type=every_frame, metavar="N", help=EVERY_HELP)
    files.add_argument(
        "--video",
        action="store_true",
        help="of a video: write NAME_overlay.mp4 too, its frames with the classes' colours",
    )
    files.add_argument("--column", metavar="NAME", help="of a table: where its images are")
    files.add_argument(
        "--member",
        metavar="NAME",
        help="of WebDataset shards: which members are the images, by their names after the key: jpg, input.png",
    )
    add_reading_options(files)
    engine = parser.add_argument_group("engine")
    engine.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="this process, or Ray Data: a model per GPU or per share of the cores (default: local)",
    )
    engine.add_argument("--address", help="of a Ray cluster (default: one on this machine)")
    engine.add_argument(
        "--actors", type=whole_number, metavar="N", help="models that Ray runs (default: one a GPU)"
    )
    engine.add_argument(
        "--workers", type=whole_number, metavar="N", help="threads that read (default: one a core)"
    )
    engine.add_argument(
        "--max-memory",
        type=memory_size,
        metavar="SIZE",
        help='most memory to use, such as "8GB": batches are made as small as it takes',
    )
    add_model_options(parser)
    add_window_options(parser)
    add_progress_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do the job; the exit status: 0 every image is done, 1 some are not.

    Raises:
        ValueError, TypeError: the options cannot be carried out, be it for want of a package or of the source.
        OSError: the source cannot be read, or the output not be written.
        WeightsUnavailable: the model cannot be fetched.
    """
    try:
        return _run(arguments)
    except ImportError as error:
        raise ValueError(describe(error)) from error


def _run(arguments: argparse.Namespace) -> int:
    from resclip.batch.job import BatchJob, Form
    from resclip.batch.manifest import Manifest
    from resclip.batch.output_names import SUMMARY
    from resclip.batch.paths import local_path, shown
    from resclip.batch.sources import open_source
    from resclip.batch.storage import open_store
    from resclip.formats.classes import CLASSES_FILE
    from resclip.formats.files import YOLO_FILE, files_of_run
    from resclip.formats.yolo import yolo_data

    classes = parse_classes(arguments.classes)
    if arguments.engine == "local" and (arguments.address or arguments.actors):
        raise ValueError('address= and actors= are Ray\'s: add engine="ray", or leave them out')
    forms = [name for name in ("png", "tif") if name in arguments.format]
    if len(forms) > 1:
        raise ValueError("expected png or tif for label maps, got both: leave one out of format=")
    form: Form = "tif" if forms == ["tif"] else "png"
    export = export_from(arguments, [name for name in arguments.format if name not in forms])
    if form == "tif":
        import resclip.io.geotiff  # noqa: F401 - where rasterio is not installed, say so now
    on_disk = local_path(arguments.out)
    if on_disk is not None:
        refuse_foreign(on_disk, files_of_run(export.formats))
    store = open_store(arguments.out)
    store.check_writable()
    reading = reading_from(arguments)
    try:
        source = open_source(
            arguments.source,
            column=arguments.column,
            member=arguments.member,
            every=arguments.every,
            out=arguments.out,
            limits=reading.limits,
        )
    except FileNotFoundError as error:
        raise ValueError(describe(error)) from error
    check_video(arguments, source)
    console().message(source.description)
    request = request_from(
        arguments,
        classes,
        **window_arguments(arguments),
        pad_batches=True,
        max_memory=arguments.max_memory,
    )
    segmenter = request()
    workers = arguments.workers or min(available_cores(), MAX_WORKERS)
    if arguments.max_memory is not None and segmenter.device.type == "cpu":
        from resclip.inference.memory import held_memory

        workers = arguments.workers or min(workers, MAX_WORKERS_WITHIN_MEMORY)
        left = arguments.max_memory - held_memory(segmenter.device)
        limits = replace(reading.limits, max_memory=max(1, left // workers))
        reading = replace(reading, limits=limits)
    job = BatchJob(
        segmenter.vocabulary.names,
        segmenter.preparation,
        form,
        arguments.overlay,
        arguments.scores,
        reading,
        export=export,
    )
    asked = entries_from(arguments, classes)
    with Manifest(
        store,
        job.settings(segmenter),
        source=shown(arguments.source),
        overwrite=arguments.overwrite,
    ) as manifest:
        store.clean()
        store.write(CLASSES_FILE, classes_from(asked))
        if "yolo" in export.formats:
            store.write(YOLO_FILE, yolo_data(job.names).encode())
        missing = manifest.missing(source.items, reading.limits)
        summary = RunSummary(
            partial(store.write, SUMMARY),
            console(),
            command="batch",
            source=[shown(arguments.source)],
            settings={**segmenter.settings, **job.settings(segmenter)},
            total=len(source.items),
            skipped=len(source.items) - len(missing),
        )
        if arguments.engine == "ray":
            from resclip.batch import ray_engine

            rows = ray_engine.run(
                job,
                request,
                segmenter,
                missing,
                store,
                address=arguments.address,
                actors=arguments.actors,
            )
        else:
            from resclip.batch import steps

            rows = steps.run(
                job,
                segmenter,
                missing,
                store,
                workers=workers,
                segmenting=steps.segmenting_threads(segmenter, len(missing)),
            )
        with summary:
            tally = follow(
                rows, manifest, len(missing), knows_scenes_alone=arguments.model == BUILTIN
            )
            if arguments.video and source.rate is not None:
                from resclip.batch.overlay_video import write_overlay_video

                folder = source.items[0].stem.rpartition("/")[0]
                name = f"{folder}_overlay.mp4"
                write_overlay_video(job, store, source.items, source.rate, name)
                console().message(f"the video is {shown(arguments.out).rstrip('/')}/{name}")
    if "coco" in export.formats:
        write_coco(store, job.names)
    return report(tally, len(source.items), arguments.out)


def check_video(arguments: argparse.Namespace, source: Source) -> None:
    """ValueError for options that do not fit a source of frames, or one of other images."""
    if source.rate is None:
        if arguments.video:
            raise ValueError(
                f"expected a video for --video, got {source.description.partition(':')[0]}; leave --video out"
            )
        return
    if arguments.engine == "ray":
        raise ValueError(
            'expected engine="local" for a video, whose frames are read one after another, got ray; leave it out'
        )
    if arguments.video and "tif" in arguments.format:
        raise ValueError(
            'expected format="png" for --video, which is drawn by the label maps, got tif; '
            "leave one of them out"
        )


def write_coco(store: Store, names: Sequence[str]) -> None:
    """Write the run's COCO file, of all images that are done by now, from the files of each."""
    from resclip.batch.manifest import done_outputs
    from resclip.formats.coco import merge
    from resclip.formats.files import COCO_FILE

    def parts() -> Iterator[BinaryIO]:
        for outputs in done_outputs(store):
            for name in outputs:
                if name.endswith("_coco.json"):
                    with store.open(name) as stream:
                        yield stream

    with store.create(COCO_FILE) as stream:
        merge(parts(), names, stream)


@dataclass
class Tally:
    """Counts of a run: images that are done, that failed, the pixels of the former, and seconds."""

    done: int = 0
    failed: int = 0
    pixels: int = 0
    seconds: float = 0.0


def follow(
    rows: Generator[Row, None, None],
    manifest: Manifest,
    total: int,
    *,
    knows_scenes_alone: bool = False,
) -> Tally:
    """Enter rows as they come, name what failed, and say how far it is.

    Args:
        knows_scenes_alone: whether the model is the built-in one, whose first image of another kind is noted.
    """
    tally = Tally()
    start = time.monotonic()
    # Closed: else an interrupt would leave the engine at work until this function's traceback is gone.
    with console().progress(total, says_end=False) as progress, contextlib.closing(rows):
        for row in rows:
            manifest.add(row)
            if row.status == "done":
                tally.done += 1
                tally.pixels += (row.width or 0) * (row.height or 0)
                if knows_scenes_alone and not json.loads(row.input or "{}").get("scene"):
                    warn_of_drawn_scenes()
                    knows_scenes_alone = False
                console().image_done(row.name)
            else:
                tally.failed += 1
                console().image_failed(row.name, explain(row.error or "failed"), named(row))
            tally.seconds = time.monotonic() - start
            progress.update(remark=f"{tally.pixels / 1e6 / tally.seconds:.1f} MP/s")
    return tally


def named(row: Row) -> str:
    """A failure, with the image's name in it and options in place of parameters."""
    error = explain(row.error or "failed")
    name = row.name if len(row.name) <= MOST_OF_NAME else f"{row.name[:MOST_OF_NAME]}…"
    return error if name in error else f"{name}: {error}"


def report(tally: Tally, total: int, out: str) -> int:
    """Say what was done; the exit status."""
    from resclip.batch.paths import shown

    earlier = total - tally.done - tally.failed
    before = f", {earlier:,} earlier" if earlier else ""
    rate = ""
    if tally.done:
        per_second = tally.done / tally.seconds
        megapixels = tally.pixels / 1e6 / tally.seconds
        rate = (
            f" in {tally.seconds:.1f} s: {per_second:.2f} images/s, {megapixels:.2f} megapixels/s"
        )
    console().message(f"{tally.done:,} of {total:,} images done{before}{rate}")
    if tally.failed:
        where = f"{shown(out).rstrip('/')}/manifest.parquet"
        console().message(f"{tally.failed:,} failed; {where} says why")
    return 1 if tally.failed else 0
