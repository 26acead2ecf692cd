"""Random damage to everything that is parsed: `make fuzz`, with ARGS="--minutes 60 --seed 7 --target images".

Every reader answers any bytes with a value, or with a ValueError or OSError of one line; nothing else, and soon. Inputs
are whole files with bytes changed, cut, repeated or exchanged, drawn by Hypothesis from a seed that is printed: the
same seed draws the same inputs. What fails is made as small as it can be and kept in the folder `fuzz`.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import json
import shutil
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from resclip.batch.manifest import Manifest
from resclip.batch.sources import open_source
from resclip.batch.storage import open_store
from resclip.evaluation.datasets import open_dataset
from resclip.evaluation.datasets.base import read_values
from resclip.io.images import read_picture
from resclip.io.limits import Limits
from resclip.io.picture import ReadOptions
from resclip.text.class_names import parse_classes, read_classes

KEPT = Path("fuzz")
"""Inputs that failed."""

SECONDS = 20
"""An input that takes longer is a hang."""

LONGEST_MESSAGE = 700
"""Characters; a longer message prints data."""

OPTIONS = ReadOptions(limits=Limits(max_pixels=1_000_000, max_bytes=1 << 24))


def encoded(kind: str, mode: str = "RGB", **options: object) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (24, 32, 4), dtype=np.uint8)
    Image.fromarray(noise).convert("RGB").convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def tiff(driver: str = "GTiff", dtype: str = "uint8", bands: int = 3, **options: object) -> bytes:
    values = np.random.default_rng(2).integers(0, 255, (bands, 24, 32)).astype(dtype)
    shape = {"count": bands, "height": 24, "width": 32, "dtype": dtype}
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(1.0, 0.0, 0.0, 0.0, -1.0, 9.0)}
    with rasterio.MemoryFile() as memory:
        with memory.open(driver=driver, **shape, **place, **options) as dataset:
            dataset.write(values)
        return bytes(memory.getbuffer())


def image_files() -> list[bytes]:
    exif = Image.Exif()
    exif[274] = 6
    return [
        encoded("PNG"), encoded("PNG", "P", transparency=3), encoded("PNG", "I;16"), encoded("PNG", "LA"),
        encoded("JPEG", exif=exif), encoded("JPEG", "CMYK"), encoded("WEBP"), encoded("GIF"), encoded("BMP"),
        encoded("TIFF"), encoded("TIFF", compression="tiff_lzw"), encoded("PPM"), encoded("AVIF"),
        encoded("JPEG2000"), encoded("TIFF", "LAB"), tiff(nodata=3), tiff(dtype="uint16", photometric="RGB"),
        tiff(dtype="float32", bands=1), tiff(bands=4, photometric="RGB", alpha="YES"),
        tiff(tiled=True, blockxsize=16, blockysize=16, compress="deflate"), tiff("PNG", "uint16"),
        tiff("JP2OpenJPEG"), tiff(compress="lerc"),
    ]  # fmt: skip


def class_files() -> list[bytes]:
    categories = {"categories": [{"id": 2, "name": "dog"}, {"id": 1, "name": "cat"}]}
    documents = (
        ["sky", ["cat", "kitten"]],
        {"0": "sky", "1": "tree"},
        {"cat": ["kitten"]},
        categories,
    )
    texts = ("sky\ntree, wood\nbackground: wall, road\n", "0\tsky\n1\ttree\n", "# comment\nsky\n")
    yaml = "- sky\n- [cat, kitten]\n- pet: dog\n"
    return [
        *(text.encode() for text in (*texts, yaml)),
        *(json.dumps(d).encode() for d in documents),
    ]


def tables() -> list[bytes]:
    files = []
    for columns in (
        {"image": [encoded("PNG"), encoded("JPEG")] * 20, "name": ["a", "b"] * 20},
        {"URL": ["a.png", "sub/b.png"], "key": [1, 2]},
    ):
        stream = io.BytesIO()
        pq.write_table(pa.table(columns), stream, row_group_size=8, data_page_size=512)
        files.append(stream.getvalue())
    return files


def shards() -> list[bytes]:
    files = []
    for form in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
            for name in ("000.jpg", "000.mask.png", "a/001.png", "x" * 120 + ".png"):
                member = tarfile.TarInfo(name)
                data = encoded("PNG")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
            link = tarfile.TarInfo("002.png")
            link.type, link.linkname = tarfile.LNKTYPE, "000.jpg"
            archive.addfile(link)
        files.append(stream.getvalue())
    return files


def manifests() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        with Manifest(open_store(folder), {"names": ["sky"]}):
            pass
        return [path.read_bytes() for path in Path(folder).rglob("*.parquet")]


def read_as_image(data: bytes, folder: Path) -> None:
    path = folder / "image"
    path.write_bytes(data)
    for source in (path, data):
        read_picture(source, OPTIONS)


def read_as_mask(data: bytes, folder: Path) -> None:
    path = folder / "mask.png"
    path.write_bytes(data)
    read_values(path)


def read_as_classes(data: bytes, folder: Path) -> None:
    for suffix in (".txt", ".json", ".yaml"):
        path = folder / f"classes{suffix}"
        path.write_bytes(data)
        try:
            read_classes(path)
        except ValueError as error:
            check_message(error)
    parse_classes(data.decode("latin-1").replace("\0", ""))


def read_as_source(suffix: str) -> Callable[[bytes, Path], None]:
    def read(data: bytes, folder: Path) -> None:
        path = folder / f"source{suffix}"
        path.write_bytes(data)
        for item in open_source(str(path)).items[:50]:
            try:
                read_picture(item.read(), OPTIONS)
            except (ValueError, OSError) as error:
                check_message(error)

    return read


def read_as_manifest(data: bytes, folder: Path) -> None:
    (folder / "manifest.parquet").write_bytes(data)
    with Manifest(open_store(str(folder)), {"names": ["sky"]}):
        pass


def read_as_coco(data: bytes, folder: Path) -> None:
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    (folder / "classes.txt").write_bytes(data)
    for name in ("images/a.png", "masks/a.png"):
        (folder / name).write_bytes(encoded("PNG", "L"))
    dataset = open_dataset("folder", folder)
    for sample in dataset.samples:
        sample.truth.read()


TARGETS: dict[str, tuple[Callable[[], list[bytes]], Callable[[bytes, Path], None]]] = {
    "images": (image_files, read_as_image),
    "masks": (image_files, read_as_mask),
    "classes": (class_files, read_as_classes),
    "tables": (tables, read_as_source(".parquet")),
    "shards": (shards, read_as_source(".tar")),
    "lists": (lambda: [b"a.png\nhttp://127.0.0.1:9/x.png\n# note\ns3://b/c.jpg\n"], read_as_source(".txt")),
    "manifests": (manifests, read_as_manifest),
    "datasets": (class_files, read_as_coco),
}  # fmt: skip


def check_message(error: BaseException) -> None:
    """Of one line, and not of data."""
    text = str(error)
    assert text.strip(), f"{type(error).__name__} without a word"
    assert "\n" not in text, f"more than a line: {text!r}"
    assert len(text) <= LONGEST_MESSAGE, f"{len(text)} characters: {text[:200]!r}"


@st.composite
def damaged(draw: st.DrawFn, files: list[bytes]) -> bytes:
    """A file with up to eight changes, most of them near its beginning, where headers are."""
    data = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(0, 8))):
        end = min(len(data), 512) if draw(st.booleans()) else len(data)
        at = draw(st.integers(0, max(0, end - 1)))
        match draw(st.sampled_from(("byte", "number", "cut", "repeat", "insert", "drop"))):
            case "byte":
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "number":
                value = draw(
                    st.sampled_from((0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF))
                )
                order = draw(st.sampled_from(("little", "big")))
                data[at : at + 4] = value.to_bytes(4, order)
            case "cut":
                del data[at:]
            case "repeat":
                data[at:at] = data[at : at + draw(st.integers(1, 64))] * draw(st.integers(1, 9))
            case "insert":
                data[at:at] = draw(st.binary(max_size=16))
            case "drop":
                del data[at : at + draw(st.integers(1, 32))]
    return bytes(data)


def run(name: str, number: int, examples: int) -> int:
    """Try a target with inputs of one seed; how many were tried."""
    files, target = TARGETS[name]
    tried = 0
    last = b""

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(data=damaged(files()))
    def test(data: bytes) -> None:
        nonlocal tried, last
        tried += 1
        last = data
        (KEPT / "last").write_bytes(data)
        folder = Path(tempfile.mkdtemp(prefix="resclip-fuzz-"))
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                target(data, folder)
        except (ValueError, OSError) as error:
            check_message(error)
        finally:
            faulthandler.cancel_dump_traceback_later()
            shutil.rmtree(folder, ignore_errors=True)

    try:
        test()
    except BaseException:
        (KEPT / f"{name}-{number}").write_bytes(last)
        print(
            f"{name}, seed {number}: failed; the input is {KEPT / f'{name}-{number}'}", flush=True
        )
        raise
    return tried


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first round")
    parser.add_argument("--target", choices=TARGETS, action="append", help="default: all")
    parser.add_argument("--examples", type=int, default=100, help="of a target in a round")
    arguments = parser.parse_args()
    KEPT.mkdir(exist_ok=True)
    end = time.monotonic() + 60 * arguments.minutes
    number, total = arguments.seed, 0
    while time.monotonic() < end:
        for name in arguments.target or TARGETS:
            total += run(name, number, arguments.examples)
        print(f"seed {number}: {total:,} inputs so far, no failure", flush=True)
        number += 1
    (KEPT / "last").unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
