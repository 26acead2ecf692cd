"""End-to-end cases of the released protocol: from images to label maps on the device, and from JPEG to PNG files.

Weights, text rows and images are random; the text encoder is not run.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.gpu.case import FILES, Bench, Case, missing, tried
from benchmarks.gpu.counts import Attention, Tower
from benchmarks.gpu.inputs import FUSED, text
from benchmarks.gpu.timing import Tier, Variant
from resclip.inference.prefetch import available_cores

OP = "pipeline"
PROTOCOL = "150 names, 336 × 448, windows"
FEW = "20 names, 336 × 448, windows"
MANY = "847 names, 336 × 448, windows"
LARGE = "20 names, 4096 × 4096, whole"
IMAGES = 16
FILE_IMAGES = 256
"""So many that reading the first and writing the last, 25 ms in all, are 1 to 4 % at 100 to 400 images a second."""
QUALITY = 90
"""Quality of the JPEG files: 80 kB each at 512 × 683."""
WINDOWS_A_BATCH = 48
SIZE, ORIGINAL = (336, 448), (512, 683)
TINY_SIZE, TINY_ORIGINAL = (8, 12), (10, 13)
TINY_FILE_IMAGES, TINY_WINDOWS_A_BATCH = 2, 4
WINDOWS_AN_IMAGE = 6
LARGE_SIDE = 4096
DTYPES = ("fp16", "fp32", "int64")
"""In which it calls ops."""
NEEDS = ("residual_attention", "semantic_feedback", "patch_labels", "upsample_argmax")
NO_GRAPH = "the reference decides by tensor values in Python: no graph to compile"


@cache
def tower(dry_run: bool) -> Any:
    """ViT-B/16 with random weights, or a tiny one for a dry run; on the CPU, float32."""
    from open_clip.transformer import VisionTransformer

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "image_size": 224,
        "patch_size": 16,
        "width": 768,
        "layers": 12,
        "heads": 12,
    }
    if dry_run:
        sizes = {"image_size": 16, "patch_size": 4, "width": 64, "layers": 3, "heads": 2}
    return VisionTransformer(mlp_ratio=4.0, output_dim=64 if dry_run else 512, **sizes).eval()


def segmenter(bench: Bench, names: int, implementation: str, *, window: int, **options: Any) -> Any:
    """ResCLIP with ADE20K's released settings, in float16 (which `load` takes on a GPU)."""
    from resclip import DenseEncoder, Segmenter, Vocabulary
    from resclip.methods.catalogue import find_method
    from resclip.methods.presets import find_preset

    method = find_method("resclip")
    if not bench.dry_run:
        method = find_preset("ade20k").apply(method)
    elif method.sfr is not None:
        method = replace(method, sfr=replace(method.sfr, refine_iterations=1))
    visual = copy.deepcopy(tower(bench.dry_run)).to(bench.device.name, bench.dtype(torch.float16))
    encoder = DenseEncoder(
        visual, base=method.base, rcs=method.rcs, sfr=method.sfr, implementation=implementation
    )
    rows = text(bench.device, names, encoder.tower.output_dim)
    vocabulary = Vocabulary(rows, torch.arange(names), tuple(map(str, range(names))))
    stride = window // 2 or 1
    return Segmenter(encoder, vocabulary, window=window, stride=stride, **options)


def pipeline_cases(*, tiny: bool) -> list[Case]:
    """The released protocol by number of names, and one large image whole."""
    images = 1 if tiny else IMAGES
    work = Tower(WINDOWS_AN_IMAGE * images, 197)
    cases = [
        Case(
            OP,
            name,
            work.flops,
            0,
            partial(window_variants, names=names, files=name == PROTOCOL),
            {**asdict(work), "names": names, "size": SIZE, "original": ORIGINAL},
            dtypes=DTYPES,
            needs=NEEDS,
            items=images,
            whole=True,
            tiers=tuple(Tier) if name == PROTOCOL else (Tier.FIGURE, Tier.REST),
        )
        for name, names in (
            (PROTOCOL, 3 if tiny else 150),
            (MANY, 5 if tiny else 847),
            (FEW, 2 if tiny else 20),
        )
    ]
    whole = Tower(1, 65537)
    shape = {**asdict(whole), "names": 20, "size": (LARGE_SIDE, LARGE_SIDE)}
    cases.append(Case(OP, LARGE, whole.flops, 0, large_variants, shape, DTYPES, NEEDS, whole=True))
    return cases


def window_variants(bench: Bench, names: int, *, files: bool) -> Sequence[Variant]:
    """Ours on all images at once, their windows sharing batches; the reference an image at a time.

    Args:
        bench: where they run.
        names: of classes.
        files: whether ours is also run on the same images as files.
    """
    count = 1 if bench.dry_run else IMAGES
    size, original = (TINY_SIZE, TINY_ORIGINAL) if bench.dry_run else (SIZE, ORIGINAL)
    pixels = list(bench.device.images(count, size, torch.float32))

    def variant(implementation: str, images: list[Tensor], *, share: float = 1.0) -> Variant:
        tier = Tier.FIGURE if implementation == FUSED else Tier.REST

        def make() -> Variant:
            model = segmenter(
                bench,
                names,
                implementation,
                window=8 if bench.dry_run else 224,
                batch_size=WINDOWS_A_BATCH if len(images) > 1 else WINDOWS_AN_IMAGE,
            )

            def run() -> Any:
                return model.predict_many(images, [original] * len(images))

            held = (*images, *weights(model))
            return Variant(implementation, run, held=held, tier=tier, share=share)

        return tried(implementation, make, tier)

    from_files = tried(FILES, lambda: file_variant(bench, names, pixels), Tier.RIVAL)
    return [
        variant(FUSED, pixels),
        *([from_files] if files else []),
        variant("torch", pixels),
        # Its time of one image is set against that of all images.
        variant("reference", pixels[:1], share=1 / count),
        missing("compiled", NO_GRAPH),
    ]


def file_variant(bench: Bench, names: int, pixels: list[Tensor]) -> Variant:
    """Ours from JPEG files to PNG files, with batches as `resclip batch` makes them."""
    size, original, count = (
        (TINY_SIZE, TINY_ORIGINAL, TINY_FILE_IMAGES)
        if bench.dry_run
        else (SIZE, ORIGINAL, FILE_IMAGES)
    )
    model = segmenter(
        bench,
        names,
        FUSED,
        window=8 if bench.dry_run else 224,
        batch_size=TINY_WINDOWS_A_BATCH if bench.dry_run else WINDOWS_A_BATCH,
        pad_batches=True,
        short_side=min(size),
    )
    run = file_job(model, pixels, original, count, bench.scratch)
    share = count / len(pixels)
    return Variant(FILES, run, held=weights(model), tier=Tier.RIVAL, share=share)


def file_job(
    segmenter: Any, pixels: list[Tensor], size: tuple[int, int], count: int, folder: Path
) -> Callable[[], None]:
    """Write images as files, and return a job that labels them all, each time into a new folder.

    The inputs have just been written, so that reading them costs decoding and no disk. Each output is on the disk
    before its image counts as done, as in every job of `resclip batch`.

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
    # Imported here: without the packages that files need, all else is still measured.
    from resclip.batch import steps
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
        rows = list(steps.run(job, segmenter, source.items, store, workers=workers))
        done = sum(row.status == "done" for row in rows)
        if done < count:
            errors = "; ".join(f"{row.name}: {row.error}" for row in rows if row.error)
            raise RuntimeError(f"expected {count} images to be done, got {done}: {errors}")

    return run


def as_image(pixels: Tensor, size: tuple[int, int], segmenter: Any) -> Image.Image:
    """An image, (3, H, W) normalised, as bytes and of another size."""
    resized = F.interpolate(pixels.unsqueeze(0), size, mode="bilinear", align_corners=False)[0]
    scale = segmenter.preparation
    mean, std = (resized.new_tensor(each).view(3, 1, 1) for each in (scale.mean, scale.std))
    levels = (255 * (resized * std + mean)).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().cpu().numpy())


def large_variants(bench: Bench) -> Sequence[Variant]:
    """One image as one window."""
    side = 16 if bench.dry_run else LARGE_SIDE
    pixels = bench.device.images(1, (side, side), torch.float32)

    def variant(implementation: str) -> Variant:
        tier = Tier.FIGURE if implementation == FUSED else Tier.REST

        def make() -> Variant:
            model = segmenter(bench, 20, implementation, window=0, batch_size=1)
            held = (pixels, *weights(model))
            return Variant(implementation, lambda: model.predict(pixels), held=held, tier=tier)

        return tried(implementation, make, tier)

    needs = Attention(1, 12, (256, 256)).reference_bytes
    return [
        variant(FUSED),
        variant("torch"),
        missing("reference", f"its maps need {needs / 1e9:,.0f} GB by prediction"),
        missing("compiled", NO_GRAPH),
    ]


def weights(model: Any) -> tuple[Tensor, ...]:
    """What the segmenter holds on the device."""
    return (*model.encoder.parameters(), *model.encoder.buffers(), model.vocabulary.embeddings)
