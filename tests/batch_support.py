"""What the tests of batch jobs share: images of many sizes, some of them broken, and a small segmenter for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow.parquet
import torch
from PIL import Image
from toys import CONFIG, toy_clip, toy_tokenizer

from resclip import DenseEncoder, Segmenter, Vocabulary
from resclip.batch.output_names import SUMMARY

CLASSES = ["cat, kitten", "dog", "grass"]


def toy_segmenter(**arguments: Any) -> Segmenter:
    """A random model; picklable as a function, so that other processes can make the same one."""
    dense = DenseEncoder(toy_clip().visual, base="naclip")
    vocabulary = Vocabulary.from_names(CLASSES, toy_clip(), toy_tokenizer, templates=["{}"])
    given = {"window": 32, "stride": 16, "short_side": 48, "batch_size": 8, "pad_batches": True}
    return Segmenter(dense, vocabulary, **{**given, **arguments})


def coarse_segmenter() -> Segmenter:
    """One whose patches are so large that a large image's pixels, not its model, take the time."""
    config = {**CONFIG["vision_cfg"], "layers": 2, "image_size": 224, "patch_size": 32}
    torch.manual_seed(0)
    model = open_clip.CLIP(**{**CONFIG, "vision_cfg": config}).eval()
    vocabulary = Vocabulary.from_names(CLASSES, model, toy_tokenizer, templates=["{}"])
    given = {"window": 224, "stride": 224, "short_side": 0, "batch_size": 8}
    return Segmenter(DenseEncoder(model.visual, base="naclip"), vocabulary, **given)


def make_images(folder: Path, count: int, broken: int = 0, seed: int = 0) -> list[str]:
    """Write `count` images, the last `broken` of them spread among the others and damaged in turn; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    bad = set(range(1, count, max(1, count // broken))[:broken] if broken else ())
    names = []
    for number in range(count):
        height, width = generator.integers(20, 90, 2)
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        path = folder / f"{number:03}.{('png', 'jpg')[number % 2]}"
        Image.fromarray(pixels).save(path)
        if number in bad:
            damage(path, len(names) % 3)
        names.append(path.name)
    return names


def damage(path: Path, kind: int) -> None:
    """Cut a file short, empty it, or fill it with something else."""
    data = path.read_bytes()
    path.write_bytes((data[: len(data) // 2], b"", b"no image at all")[kind])


def files_in(folder: Path) -> dict[str, bytes]:
    """Every file of a job's folder but those of the whole run, by its path in it."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(("manifest", "classes.json", SUMMARY))
    }


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The manifest's rows, without what a clock decides."""
    rows = pyarrow.parquet.read_table(folder / "manifest.parquet").to_pylist()
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]
