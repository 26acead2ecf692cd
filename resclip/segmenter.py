"""The whole pipeline in one sitting: image → windows → encoder → logits → stitch → labels.

Knows the order of the stages; each stage is a function elsewhere that knows nothing of the others.
"""

from __future__ import annotations

import contextlib
import itertools
import platform
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import Tensor

from resclip.encoder.dense_encoder import DenseEncoder, similarity
from resclip.encoder.final_block import Coarse
from resclip.inference.batch_size import plan_batch_size
from resclip.inference.prefetch import map_ahead
from resclip.inference.preprocessing import ArrayImage, ImageRows, Preparation, normalise
from resclip.inference.scheduler import Crop, Failure, Frame, Job, Strip, stream, whole_results
from resclip.inference.windows import (
    check_window,
    pad,
    padding,
    plan_windows,
    resized_rows,
    shrunk,
    source_span,
)
from resclip.io.images import MAX_PIXELS, ImageError, ImageSource, PixelArray, read_image
from resclip.methods.options_text import as_dict
from resclip.result import Segmentation
from resclip.text.vocabulary import Vocabulary
from resclip.version import __version__
from resclip_kernels import check_count, resize_planes, upsample_argmax

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

STRIP_BYTES = {"cpu": 1 << 27, "cuda": 1 << 30}
"""A result comes out in strips of rows where its stitched logits and labels would take more memory than this.

847 names at 336 × 448 take 0.5 GB, which a GPU does at once."""

READERS = 4
"""Threads that read images ahead; Pillow decodes without Python's lock."""

PAMR_DILATIONS = (8, 16)


class Segmenter:
    """Segments images by the classes of a vocabulary.

    Args:
        encoder: runs the tower.
        vocabulary: the classes; its embeddings come from the encoder's own CLIP model.
        window: side of the square windows in pixels; 0: the whole image at once.
        stride: step between windows, at most `window`.
        probability_threshold: pixels whose largest class probability is under it get class 0.
        refine_iterations: of PAMR on the full-size logits; 0 for none.
        logit_scale: factor of the logits before the softmax over queries.
        short_side: images given to `segment` are resized to it, ratio kept; 0: their own size.
        long_side: cap of the resized long side.
        batch_size: most windows that run through the encoder together, of whatever images; fewer where memory is
            short.
        pad_batches: whether a batch that is not full is filled up with empty windows. A product of other shape rounds
            its last bit differently; so filled, an image's result is the same bit for bit whatever is segmented beside
            it. Windows of another size, as small images and whole ones have, then run one by one.
        max_memory: most bytes that the process, or its part of a GPU, should come to hold; None: what is free.
        pad_multiple: windows are zero-padded evenly on both sides to a multiple of it, and their logits cut back
            (ProxyCLIP's protocol: 56); 0 for none.
        mean, std: per channel, of pixels in [0, 1].
        source: what `settings` says about where the model came from.

    Raises:
        ValueError, TypeError: a value that does not fit, with what would.
    """

    def __init__(
        self,
        encoder: DenseEncoder,
        vocabulary: Vocabulary,
        *,
        window: int = 224,
        stride: int = 112,
        probability_threshold: float = 0.0,
        refine_iterations: int = 0,
        logit_scale: float = 40.0,
        short_side: int = 336,
        long_side: int = 2048,
        batch_size: int = 16,
        pad_batches: bool = False,
        max_memory: int | None = None,
        pad_multiple: int = 0,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        source: dict[str, Any] | None = None,
    ) -> None:
        check_window(window, stride, encoder.tower.patch_size)
        if vocabulary.embeddings.shape[1] != encoder.tower.output_dim:
            raise ValueError(
                f"the vocabulary's embeddings are {vocabulary.embeddings.shape[1]} wide, the image tower's "
                f"output {encoder.tower.output_dim}: encode the names with the same CLIP model"
            )
        if window == 0 and encoder.overview is not None:
            raise ValueError(
                "an overview is what windows see of the whole image, and window 0 is the whole image: "
                "leave one of them out"
            )
        check_count("batch_size", batch_size, 1)
        check_count("pad_multiple", pad_multiple, 0)
        if short_side < 0 or long_side < 1:
            raise ValueError(
                f"short_side must be at least 0 and long_side at least 1; got {short_side} and {long_side}"
            )
        self.encoder = encoder
        self.device = encoder.tower.device
        self.vocabulary = vocabulary.to(self.device)
        self.window = window
        self.stride = stride
        self.probability_threshold = probability_threshold
        self.refine_iterations = refine_iterations
        self.logit_scale = logit_scale
        self.short_side = short_side
        self.long_side = long_side
        self.batch_size = batch_size
        self.pad_batches = pad_batches
        self.max_memory = max_memory
        self.pad_multiple = pad_multiple
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.source = dict(source or {})

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides a result, as JSON-able values."""
        overview = as_dict(self.encoder.overview)
        return {
            **self.source,
            **({} if overview is None else {"overview": overview}),
            "base": self.encoder.base.name,
            "correlation": as_dict(self.encoder.correlation),
            "proxy": as_dict(self.encoder.final.proxy_attention),
            "rcs": as_dict(self.encoder.rcs),
            "rcs_layers": list(self.encoder.layers),
            "sfr": as_dict(self.encoder.sfr),
            "final_block": self.encoder.final_block,
            "neighbourhood_std": self.encoder.neighbourhood_std,
            "implementation": self.encoder.implementation.value,
            "window": self.window,
            "stride": self.stride,
            "pad_multiple": self.pad_multiple,
            "short_side": self.short_side,
            "long_side": self.long_side,
            "logit_scale": self.logit_scale,
            "probability_threshold": self.probability_threshold,
            "refine_iterations": self.refine_iterations,
            "device": str(self.device),
            "precision": str(self.encoder.tower.dtype).removeprefix("torch."),
            "resclip": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }

    @overload
    def segment(self, image: ImageSource) -> Segmentation: ...
    @overload
    def segment(self, image: list[ImageSource]) -> list[Segmentation]: ...

    def segment(self, image: ImageSource | list[ImageSource]) -> Segmentation | list[Segmentation]:
        """Segment an image, or a list of images whose windows share batches.

        Args:
            image: a path, a PIL image or an (H, W, 3) uint8 array; or a list of them.

        Returns:
            A `Segmentation` at the image's own size (after its EXIF orientation); a list for a list.

        Raises:
            ImageError: a file that is no image.
        """
        if isinstance(image, list):
            return list(self.segment_many(image))
        return next(self.segment_many([image]))

    @overload
    def segment_many(
        self, images: Iterable[ImageSource], *, max_pixels: int = MAX_PIXELS
    ) -> Iterator[Segmentation]: ...
    @overload
    def segment_many(
        self,
        images: Iterable[ImageSource],
        *,
        max_pixels: int = MAX_PIXELS,
        return_errors: Literal[True],
    ) -> Iterator[Segmentation | ImageError]: ...

    def segment_many(
        self,
        images: Iterable[ImageSource],
        *,
        max_pixels: int = MAX_PIXELS,
        return_errors: bool = False,
    ) -> Iterator[Segmentation | ImageError]:
        """Segment any number of images as they come, their windows in shared batches.

        Images are read in threads, a few ahead of the one that is asked for: memory does not grow with their number.

        Args:
            images: what `segment` takes; read as results are asked for.
            max_pixels: larger images are refused; see `resclip.io.images.read_image`.
            return_errors: an image that cannot be read yields its error in its place, which is else raised.

        Yields:
            One `Segmentation` an image, in the order of `images`.

        Raises:
            ImageError: an image cannot be read.
        """

        def read(source: ImageSource) -> Frame | Failure:
            try:
                image = read_image(source, max_pixels=max_pixels)
            except ImageError as error:
                return Failure(source, error)
            return self.frame(ArrayImage(image), image)

        readings = map_ahead(read, images, workers=READERS, ahead=READERS)
        with contextlib.closing(readings):
            for result in whole_results(self.stream(readings)):
                if not isinstance(result, Failure):
                    yield Segmentation(
                        result.tag,
                        result.labels,
                        result.probabilities,
                        self.vocabulary.names,
                        self.settings,
                    )
                elif return_errors and isinstance(result.error, ImageError):
                    yield result.error
                else:
                    raise result.error

    def predict(self, pixels: Tensor) -> Tensor:
        """Class of every pixel of a batch of normalised images: (B, 3, H, W) float → (B, H, W) int64."""
        if not isinstance(pixels, Tensor) or pixels.ndim != 4:
            came = tuple(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
            raise ValueError(f"pixels must be a (B, 3, H, W) tensor; got {came}")
        size = (pixels.shape[2], pixels.shape[3])
        labels = [labels for labels, _ in self.classify(list(pixels), [size] * len(pixels))]
        return torch.stack(labels) if labels else pixels.new_empty(0, *size, dtype=torch.int64)

    def classify(
        self, pixels: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Labels and probabilities of images of any sizes, on the model's device.

        Args:
            pixels: (3, H, W) normalised, one an image.
            sizes: (height, width) of each image's result.

        Returns:
            For each image (height, width) int64 classes and float32 probabilities.
        """
        frames = (
            Frame(image.to(self.device), (image.shape[1], image.shape[2]), size, number)
            for number, (image, size) in enumerate(zip(pixels, sizes, strict=True))
        )
        strips: list[list[Strip]] = [[] for _ in pixels]
        for event in self.stream(frames):
            if isinstance(event, Failure):
                raise event.error
            strips[event.frame.tag].append(event)
        return [
            (
                torch.cat([strip.labels for strip in own]),
                torch.cat([strip.probabilities for strip in own]),
            )
            for own in strips
        ]

    @property
    def preparation(self) -> Preparation:
        """What is done to images before they are cut into windows."""
        return Preparation(
            self.short_side,
            self.long_side,
            self.encoder.tower.patch_size,
            self.mean,
            self.std,
        )

    def prepare(self, image: PixelArray) -> Tensor:
        """(H, W, 3) uint8 → (3, H', W') float32: resized, at least one patch large, normalised."""
        preparation = self.preparation
        return preparation.normalise(torch.tensor(preparation.resize(image)))

    def frame(self, image: ImageRows, tag: Any = None) -> Frame:
        """An image, resized, for `stream`; its result is of its own size."""
        pixels = self.preparation.resized(image)
        return Frame(pixels, (pixels.height, pixels.width), (image.height, image.width), tag)

    def stream(self, frames: Iterable[Frame | Failure]) -> Iterator[Strip | Failure]:
        """Segment images of any number and size as strips of rows; see `resclip.inference.scheduler.stream`.

        Args:
            frames: as `frame` makes them; or `Frame`s of normalised pixels, (3, H, W) on the model's device.

        Yields:
            Strips on the model's device; a `Failure` in place of what cannot be done, or was none already.

        Raises:
            MemoryError: there is not enough for a single window.
        """
        return stream(self, frames)

    # The stages, in the order in which an image goes through them; see `resclip.inference.scheduler.Stages`.

    def begin(self, frame: Frame) -> Job:
        """Where an image's windows are, and its coarse pass where there is one."""
        job = Job(frame, plan_windows(*frame.shape, self.window, self.stride), self.pad_multiple)
        overview = self.encoder.overview
        if overview is not None:
            size = overview.size(*frame.shape, self.window, self.encoder.tower.patch_size)
            pixels = shrunk(partial(self.rows, frame), frame.shape, size)
            job.coarse = self.encoder.coarse(pixels.unsqueeze(0))
        return job

    def cut(self, job: Job) -> Iterator[Crop]:
        """Each window's normalised pixels; rows are read when their windows' turn comes, and at no other time."""
        for _, row in itertools.groupby(job.windows, key=lambda window: window.top):
            windows = list(row)
            pixels = self.rows(job.frame, windows[0].rows.start, windows[0].rows.stop)
            for window in windows:
                yield Crop(job, window, pixels[:, :, window.columns])

    def rows(self, frame: Frame, first: int, last: int) -> Tensor:
        """(3, last − first, W') normalised pixels, on the model's device."""
        if isinstance(frame.pixels, Tensor):
            return frame.pixels[:, first:last]
        pixels = torch.tensor(frame.pixels.rows(first, last))
        return normalise(pixels.to(self.device), self.mean, self.std)

    def limit(self, crop: Crop) -> int:
        """Windows a batch: as many as were asked for, or fewer where memory is short."""
        window = crop.window
        around = padding(window, self.pad_multiple)
        # A batch of an odd size might have one window, and be filled up with fifteen empty ones.
        is_odd = (window.height, window.width) != (self.window, self.window)
        return plan_batch_size(
            self.encoder,
            (
                around.top + window.height + around.bottom,
                around.left + window.width + around.right,
            ),
            len(self.vocabulary.embeddings),
            device=self.device,
            most=1 if self.pad_batches and is_odd else self.batch_size,
            max_memory=self.max_memory,
        )

    @torch.no_grad()
    def run(self, crops: Sequence[Crop], limit: int) -> Iterable[Tensor]:
        """A batch of windows → their (Q, h, w) logits."""
        text = self.vocabulary.embeddings
        empty = limit - len(crops) if self.pad_batches else 0
        views = [pad(crop.pixels, padding(crop.window, self.pad_multiple)) for crop in crops]
        views += [torch.zeros_like(views[0])] * empty
        coarse = None
        if self.encoder.overview is not None:
            seen = [crop.job.coarse for crop in crops]
            coarse = Coarse.stack(seen + seen[:1] * empty)
        features = self.encoder(torch.stack(views), text, coarse)
        return similarity(features.patches, text)[: len(crops)]

    @torch.no_grad()
    def next_strip(self, job: Job) -> tuple[Tensor, Tensor] | None:
        """Labels and probabilities of an image's next rows, once all windows that they hang on are done."""
        height, width = job.frame.size
        first = job.rows_out
        last = min(height, first + self.strip_rows(job))
        top, bottom = max(0, first - self.margin), min(height, last + self.margin)
        needed = source_span(job.frame.shape[0], height, top, bottom)[1]
        if job.final_rows < needed:
            return None
        whole = (top, bottom) == (0, height)
        single = whole and job.is_single
        if single:
            # The whole image's small grid goes to the op, which never holds it at full size.
            logits = job.mosaic.grids[job.windows[0]]
        elif whole:
            logits = job.mosaic.rows(0, job.frame.shape[0])
        else:
            logits = resized_rows(job.mosaic.rows, job.frame.shape[0], height, top, bottom)
        labels, probabilities = upsample_argmax(
            logits.unsqueeze(0),
            (bottom - top, width),
            query_to_class=self.vocabulary.query_to_class,
            logit_scale=self.logit_scale,
            threshold=self.probability_threshold,
            through=job.frame.shape if single else None,
            guide=self.guide(job.frame, top, bottom) if self.refine_iterations else None,
            refine_iterations=self.refine_iterations,
            dilations=PAMR_DILATIONS,
            implementation=self.encoder.implementation,
        )
        next_top = max(0, last - self.margin)
        job.mosaic.forget(source_span(job.frame.shape[0], height, next_top, height)[0])
        inner = slice(first - top, last - top)
        return labels[0, inner], probabilities[0, inner]

    def strip_rows(self, job: Job) -> int:
        """Rows of a result that come out together: all of them, or as many as `STRIP_BYTES` hold."""
        (height, width), (rows, columns) = job.frame.size, job.frame.shape
        queries = len(self.vocabulary.embeddings)
        # The op holds its result and, on a CPU, planes of a group of 8 queries.
        result = 64 * width
        stitched = 0 if job.is_single else 4 * queries * rows * columns
        most = STRIP_BYTES.get(self.device.type, STRIP_BYTES["cpu"])
        if job.is_single or stitched + result * height <= most:
            return height
        # Twice the margin at least, or most rows would be refined for their neighbours' sake.
        return max(1, most // (4 * queries * columns + result), 2 * self.margin)

    @property
    def margin(self) -> int:
        """Rows above and below a strip that its refinement reads.

        An iteration moves logits by up to the largest dilation, and the weights look as far once more.
        """
        return (self.refine_iterations + 1) * max(PAMR_DILATIONS) if self.refine_iterations else 0

    def guide(self, frame: Frame, first: int, last: int) -> Tensor:
        """(1, 3, last − first, W): the image at its result's size, these rows of it."""
        rows = resized_rows(partial(self.rows, frame), frame.shape[0], frame.size[0], first, last)
        return resize_planes(rows.unsqueeze(0), (last - first, frame.size[1]))
