"""From the pixels of one image to its labels: windows → encoder → logits → stitched rows → labels.

`ImagePipeline` has the model and its settings, `ImageTask` one image on its way. `resclip.inference.scheduler` makes
batches of the windows of many images.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from resclip.encoder.dense_encoder import DenseEncoder
from resclip.encoder.final_block import Coarse
from resclip.errors import ManyWindowsWarning
from resclip.inference.batch_size import plan_batch_size
from resclip.inference.preprocessing import ImageRows, Preparation, normalise
from resclip.inference.rejection import Threshold, check_threshold, reject_improbable, thresholds_of
from resclip.inference.steps import PictureSteps, WindowBatch, WindowEvidence, WindowSteps
from resclip.inference.windows import (
    CentreMean,
    LogitStitcher,
    Window,
    check_window,
    count_windows,
    downsample,
    interpolate_rows,
    pad,
    padding,
    plan_windows,
    source_range,
)
from resclip.methods.catalogue import FACTORS, MOST_ITERATIONS, MOST_PIXELS
from resclip.methods.steps import Steps
from resclip.text.vocabulary import Vocabulary, check_classes_differ
from resclip_kernels import (
    FORKS,
    check_count,
    check_flag,
    check_fraction,
    check_implementation,
    check_range,
    check_type,
    resize_planes,
    upsample_argmax,
)

STRIP_BYTES = {"cpu": 1 << 27, "cuda": 1 << 30}
"""By kind of device: a result whose stitched logits and labels would take more bytes comes in strips of rows.

847 queries at 336 × 448 pixels take 0.5 GB, which a GPU does at once."""

PAMR_DILATIONS = (8, 16)

WHOLE_PIXELS = 1 << 22
"""An image of more pixels is reduced to as many before CLIP makes one vector of it."""

MAX_WINDOWS = 1_000_000
"""Most window passes of an image unless the caller says otherwise: 4 gigapixels at a stride of 112 take 342,000, and
twice as many in two rounds of SFR."""

MANY_WINDOWS = 2_000
"""More windows of one image that overlap more than `DENSE_OVERLAP` are warned of."""
DENSE_OVERLAP = 8
"""A window's side over the stride, above which more windows change little: a pixel is then in 64 windows."""


class Strip(NamedTuple):
    """Rows of an image's result. Strips come in order from row 0; the last one ends at the result's height."""

    tag: Any
    """What the caller gave with the image."""
    size: tuple[int, int]
    """(height, width) of the whole result."""
    first: int
    """The strip's first row."""
    labels: Tensor
    """(n, W) int64."""
    probabilities: Tensor
    """(n, W) float32."""
    rejects: bool = False
    """Whether `labels` may hold `UNCERTAIN`, which the host reads as −1."""
    scores: GridScores | None = None
    """Of the whole image, with its last strip, where they are kept."""

    @property
    def last(self) -> int:
        """The row after the strip's last one."""
        return self.first + len(self.labels)


class GridScores(NamedTuple):
    """Of all classes, on a grid of cells over an image's result, what probabilities are made of."""

    planes: Tensor
    """(Q, h, w) float32 or wider: logarithms of the queries' probabilities, or maps of class purification."""
    are_logarithms: bool
    cell: tuple[float, float]
    """(height, width) of a cell in pixels of the result; the first one begins at its top left."""


class ImageTask:
    """One image on its way: its windows, the logits of those that are done, and the rows that have come out.

    Args:
        pipeline: the model and the settings.
        pixels: at the size at which they go through the model: rows of uint8, read as windows need them, or a
            normalised (3, H, W) tensor on the model's device.
        size: (height, width) of the result.
        tag: the caller's own, handed back with the result.
        keep_scores: whether the last strip has the probabilities of all classes.
    """

    def __init__(
        self,
        pipeline: ImagePipeline,
        pixels: ImageRows | Tensor,
        size: tuple[int, int],
        tag: Any = None,
        *,
        keep_scores: bool = False,
    ) -> None:
        self.pipeline = pipeline
        self.pixels = pixels
        if isinstance(pixels, Tensor):
            self.shape = (int(pixels.shape[1]), int(pixels.shape[2]))
        else:
            self.shape = (pixels.height, pixels.width)
        self.size = size
        self.tag = tag
        self.obstacle = pipeline.check_work(*self.shape)
        """Why this image is not begun: it takes more windows than are allowed."""
        windows = (
            [] if self.obstacle else plan_windows(*self.shape, pipeline.window, pipeline.stride)
        )
        self.stitcher = LogitStitcher(*self.shape, windows, pipeline.pad_multiple)
        self.overview: Coarse | None = None
        self.image_vector: Tensor | None = None
        """(E,): CLIP's own vector of the whole image, for the steps that ask for it."""
        self.evidence: dict[Window, WindowEvidence] = {}
        """What waits for the image's other windows, or for its labels."""
        self.error: ValueError | OSError | None = None
        """Why nothing more will come of this image."""
        self.windows_read = 0
        self.rows_out = 0
        self.centres: CentreMean | None = None
        """The logits at the centres of the image's patches, where scores are kept."""
        self.summed = 0
        """Windows whose logits are in `centres`."""
        if keep_scores:
            tower = pipeline.encoder.tower
            self.centres = CentreMean(
                tower.grid(*self.shape), tower.patch_size, pipeline.pad_multiple
            )

    def read_windows(self) -> Iterator[WindowPixels]:
        """Each window's pixels, from top left to bottom right.

        Rows of the image are read when the windows that start there are asked for, and not before.

        Raises:
            ValueError: there are more windows than are allowed.
            ValueError, OSError: the pixels cannot be read.
        """
        FORKS.check()
        if self.obstacle is not None:
            raise ValueError(self.obstacle)
        self.overview = self.pipeline.encode_overview(self)
        self.image_vector = self.pipeline.encode_image(self)
        for _, row in itertools.groupby(self.stitcher.windows, key=lambda window: window.top):
            windows = list(row)
            pixels = self.normalised_rows(windows[0].rows.start, windows[0].rows.stop)
            for window in windows:
                self.windows_read += 1
                yield WindowPixels(self, window, pixels[:, :, window.columns])

    def encode(self, windows: Sequence[WindowPixels], limit: int) -> list[Any]:
        """What `put` takes of each window of a batch, of this image and of others by the same pipeline."""
        return self.pipeline.encode_windows(windows, limit)

    def put(self, window: Window, result: WindowEvidence) -> None:
        """Take what came of a window; windows may come in any order."""
        if self.error is not None:
            return
        steps = self.pipeline.window_steps
        if steps.waits_for_all:
            self.evidence[window] = result
            if len(self.evidence) < len(self.stitcher.windows):
                return
            # In the order of the windows, whatever that of the batches.
            results = [self.evidence.pop(one) for one in self.stitcher.windows]
            steps.finish(results)
            for one, finished in zip(self.stitcher.windows, results, strict=True):
                self.take(one, finished)
        else:
            self.take(window, result)

    def take(self, window: Window, result: WindowEvidence) -> None:
        """A window's logits, and what its image's labels still need of it."""
        self.stitcher.add(window, result.of_steps())
        if result.context:
            self.evidence[window] = result

    @property
    def is_finished(self) -> bool:
        """Whether nothing more comes of this image: all its rows have come out, or it has failed."""
        return self.error is not None or self.rows_out == self.size[0]

    @torch.no_grad()
    def next_strip(self) -> Strip | None:
        """The next rows of the result; None while windows that they depend on are missing.

        Raises:
            ValueError: the logits hold NaN.
        """
        pipeline, height = self.pipeline, self.size[0]
        first = self.rows_out
        last = min(height, first + self._strip_height())
        top, bottom = max(0, first - pipeline.margin), min(height, last + pipeline.margin)
        if self.stitcher.complete_rows < source_range(self.shape[0], height, top, bottom)[1]:
            return None
        labels, probabilities = self.decide(Picture(self, top, bottom))
        self.sum_centres()
        scores = self.scores() if last == height else None
        self.rows_out = last
        next_top = max(0, last - pipeline.margin)
        self.stitcher.drop_above(source_range(self.shape[0], height, next_top, height)[0])
        inner = slice(first - top, last - top)
        return Strip(
            self.tag,
            self.size,
            first,
            labels[inner],
            probabilities[inner],
            self.pipeline.rejects,
            scores,
        )

    def sum_centres(self) -> None:
        """Take the logits of windows, in their order, before the stitcher forgets them."""
        if self.centres is None or self.stitcher.is_single:
            return
        complete = self.stitcher.complete
        for window in complete[self.summed :]:
            self.centres.add(window, self.stitcher.grids[window])
        self.summed = len(complete)

    def scores(self) -> GridScores | None:
        """The probabilities of all classes over the image, once all of its windows are there; None: not kept."""
        if self.centres is None:
            return None
        if self.stitcher.is_single:
            logits = self.stitcher.grids[self.stitcher.windows[0]]
            cell = (self.size[0] / logits.shape[1], self.size[1] / logits.shape[2])
        else:
            logits, patch = self.centres.result(), self.centres.cell
            cell = (
                patch[0] * self.size[0] / self.shape[0],
                patch[1] * self.size[1] / self.shape[1],
            )
        planes = self.pipeline.picture_steps.class_scores(logits)
        return GridScores(planes, self.pipeline.steps.purification is None, cell)

    def decide(self, picture: Picture) -> tuple[Tensor, Tensor]:
        """Labels and probabilities of rows of the result, (n, W) each; uncertain ones are `UNCERTAIN`."""
        labels, probabilities = self.most_probable(picture)
        if self.pipeline.thresholds is not None:
            labels = reject_improbable(labels, probabilities, self.pipeline.thresholds)
        return labels, probabilities

    def most_probable(self, picture: Picture) -> tuple[Tensor, Tensor]:
        """Labels and probabilities of rows of the result, whatever these are."""
        pipeline = self.pipeline
        if pipeline.picture_steps:
            return pipeline.picture_steps.labels(picture, list(self.evidence.values()))
        labels, probabilities = upsample_argmax(
            picture.logits.unsqueeze(0),
            picture.size,
            query_to_class=pipeline.vocabulary.query_to_class,
            logit_scale=pipeline.logit_scale,
            threshold=pipeline.probability_threshold,
            through=picture.through,
            guide=picture.guide[None] if pipeline.refine_iterations else None,
            refine_iterations=pipeline.refine_iterations,
            dilations=PAMR_DILATIONS,
            implementation=pipeline.encoder.implementation,
        )
        return labels[0], probabilities[0]

    def normalised_rows(self, first: int, last: int) -> Tensor:
        """(3, last − first, W') normalised pixels, on the model's device."""
        if isinstance(self.pixels, Tensor):
            return self.pixels[:, first:last]
        pixels = torch.tensor(self.pixels.rows(first, last)).to(self.pipeline.device)
        return normalise(pixels, self.pipeline.preparation.mean, self.pipeline.preparation.std)

    def _strip_height(self) -> int:
        """Rows of the result that come out together: all of them, or as many as `STRIP_BYTES` hold."""
        (height, width), (rows, columns) = self.size, self.shape
        if self.pipeline.picture_steps and self.pipeline.picture_steps.needs_all_rows:
            return height
        queries = len(self.pipeline.vocabulary.embeddings)
        # Bytes a pixel: the op's result; and PAMR's weights and twice the planes of 8 queries.
        result = (64 + 128 * bool(self.pipeline.refine_iterations)) * width
        stitched = 0 if self.stitcher.is_single else 4 * queries * rows * columns
        limit = STRIP_BYTES.get(self.pipeline.device.type, STRIP_BYTES["cpu"])
        if self.stitcher.is_single or stitched + result * height <= limit:
            return height
        # At least twice the margin, or most rows would be refined only for their neighbours.
        return max(1, limit // (4 * queries * columns + result), 2 * self.pipeline.margin)


class Picture:
    """Rows of an image's result, before their labels: what its logits and pixels are at that size.

    Args:
        task: the image, whose windows are all there as far as these rows reach.
        first, last: rows of the result.
    """

    def __init__(self, task: ImageTask, first: int, last: int) -> None:
        self.task = task
        self.first = first
        self.size = (last - first, task.size[1])
        is_whole = (first, last) == (0, task.size[0])
        is_one_window = is_whole and task.stitcher.is_single
        self.through = task.shape if is_one_window else None
        """A size to which the logits are resized first; None: they are there at once."""
        height = task.shape[0]
        if is_one_window:
            # The op takes the small grid of the image's only window, and never holds it at full size.
            self.logits = task.stitcher.grids[task.stitcher.windows[0]]
        elif is_whole:
            self.logits = task.stitcher.rows(0, height)
        else:
            self.logits = interpolate_rows(task.stitcher.rows, height, task.size[0], first, last)

    @property
    def guide(self) -> Tensor:
        """(3, n, W): these rows of the normalised image at the size of its result."""
        task, last = self.task, self.first + self.size[0]
        rows = interpolate_rows(task.normalised_rows, task.shape[0], task.size[0], self.first, last)
        return resize_planes(rows.unsqueeze(0), self.size)[0]


class LogitMap(NamedTuple):
    """An image's logits, in place of its strips."""

    tag: Any
    """What the caller gave with the image."""
    logits: Tensor
    """(Q, h, w) in patches, or (Q, H', W') in pixels, on the model's device."""


class LogitTask(ImageTask):
    """An image of which the logits are wanted and not the labels.

    Args:
        upsample: to the image's own size; else one for each of its patches.
    """

    def __init__(self, pipeline: ImagePipeline, pixels: Tensor, tag: Any, upsample: bool) -> None:
        super().__init__(pipeline, pixels, (int(pixels.shape[1]), int(pixels.shape[2])), tag)
        self.upsample = upsample

    @torch.no_grad()
    def next_strip(self) -> LogitMap | None:  # type: ignore[override]
        """All logits, once the last window is there.

        Raises:
            ValueError: they hold NaN.
        """
        if self.stitcher.complete_rows < self.shape[0]:
            return None
        self.rows_out = self.size[0]
        if self.upsample:
            logits = self.stitcher.rows(0, self.shape[0])
        elif self.stitcher.is_single:
            logits = self.stitcher.grids[self.stitcher.windows[0]]
        else:
            tower = self.pipeline.encoder.tower
            logits = self.stitcher.at_centres(tower.grid(*self.shape), tower.patch_size)
        if logits.isnan().any():
            raise ValueError(
                "the logits hold NaN: look for it in the pixels, the weights or the text"
            )
        return LogitMap(self.tag, logits)


class WindowPixels(NamedTuple):
    """A window of an image that waits for a batch."""

    task: ImageTask
    window: Window
    pixels: Tensor
    """(3, h, w) normalised, on the model's device."""

    @property
    def key(self) -> tuple[Any, ...]:
        """Windows with equal keys can share a batch."""
        overview = None if self.task.overview is None else self.task.overview.key
        # Images with other words have a pipeline of their own.
        return self.window.height, self.window.width, overview, id(self.task.pipeline)


def check_encoder(encoder: DenseEncoder, vocabulary: Vocabulary, window: int) -> None:
    """TypeError or ValueError unless this encoder gives what windows are segmented by, where it is."""
    check_type("encoder", encoder, DenseEncoder, "a DenseEncoder")
    weights = torch.empty(0, device=encoder.tower.device, dtype=encoder.tower.dtype)
    check_implementation(encoder.implementation, weights)
    if encoder.tower.text_obstacle is not None:
        raise ValueError(
            f"images are segmented by text, and {encoder.tower.text_obstacle}; DenseEncoder gives its features"
        )
    if vocabulary.embeddings.shape[1] != encoder.tower.output_dim:
        raise ValueError(
            f"the vocabulary's embeddings are {vocabulary.embeddings.shape[1]} wide, the image tower's "
            f"output {encoder.tower.output_dim}: encode the names with the same CLIP model"
        )
    if window == 0 and encoder.overview is not None:
        raise ValueError(
            "an overview is what windows see of the whole image, and window=0 is the whole image: "
            "leave one of them out"
        )


SETTINGS: Mapping[str, Callable[[str, Any], None]] = {
    "short_side": partial(check_count, least=0),
    "long_side": partial(check_count, least=1),
    "probability_threshold": check_fraction,
    "threshold": lambda name, value: check_threshold(value),
    "min_margin": check_fraction,
    "refine_iterations": partial(check_count, least=0, most=MOST_ITERATIONS),
    "logit_scale": partial(check_range, least=FACTORS[0], most=FACTORS[1]),
    "batch_size": partial(check_count, least=1),
    "pad_batches": check_flag,
    "max_memory": partial(check_count, least=1),
    "max_windows": partial(check_count, least=1),
    "pad_multiple": partial(check_count, least=0, most=MOST_PIXELS),
}
"""What each of these arguments of `resclip.Segmenter` has to be, whatever the model is."""


def check_settings(settings: Mapping[str, Any]) -> None:
    """TypeError or ValueError unless each of these settings fits by itself; None is what may be left out."""
    for name, value in settings.items():
        if name in SETTINGS and value is not None:
            SETTINGS[name](name, value)
    if "window" in settings:
        check_window(settings["window"], settings.get("stride", 1), (1, 1))


class ImagePipeline:
    """A model, the classes, and how images are cut into windows and put together again.

    Args: see `resclip.Segmenter`, which makes it.
    """

    def __init__(
        self,
        encoder: DenseEncoder,
        vocabulary: Vocabulary,
        preparation: Preparation,
        *,
        window: int,
        stride: int,
        probability_threshold: float,
        refine_iterations: int,
        logit_scale: float,
        batch_size: int,
        pad_batches: bool,
        max_memory: int | None,
        pad_multiple: int,
        max_windows: int,
        steps: Steps,
        second_text: Tensor | None,
        threshold: Threshold = 0.0,
        min_margin: float = 0.0,
    ) -> None:
        check_type("vocabulary", vocabulary, Vocabulary, "a Vocabulary")
        check_classes_differ(vocabulary.names)
        check_window(window, stride, encoder.tower.patch_size)
        check_encoder(encoder, vocabulary, window)
        check_settings(
            {
                "probability_threshold": probability_threshold,
                "refine_iterations": refine_iterations,
                "logit_scale": logit_scale,
                "batch_size": batch_size,
                "pad_batches": pad_batches,
                "max_memory": max_memory,
                "max_windows": max_windows,
                "pad_multiple": pad_multiple,
                "min_margin": min_margin,
            }
        )
        self.encoder = encoder
        self.preparation = preparation
        self.window = window
        self.stride = stride
        self.probability_threshold = probability_threshold
        self.refine_iterations = refine_iterations
        self.logit_scale = logit_scale
        self.batch_size = batch_size
        self.pad_batches = pad_batches
        self.max_memory = max_memory
        self.pad_multiple = pad_multiple
        self.max_windows = max_windows
        self.steps = steps
        self.threshold = threshold
        self.min_margin = min_margin
        self.take_words(vocabulary, second_text)
        if steps.clusters is not None and window != 0:
            raise ValueError(
                "a cluster vote takes pictures that go through the model whole, and these go by windows: use window=0, "
                "or leave clusters out"
            )
        self._warned = False
        if 0 < window <= preparation.long_side:
            # Where memory is too short for a window of any image, say so once and not for every image.
            side = min(window, preparation.short_side or window)
            self.batch_limit(Window(0, 0, side, side))

    def take_words(self, vocabulary: Vocabulary, second_text: Tensor | None) -> None:
        """Make what depends on the classes, on the encoder's device."""
        encoder = self.encoder
        self.device = encoder.tower.device
        self.vocabulary = vocabulary.to(self.device)
        second_text = None if second_text is None else second_text.to(self.device)
        self.window_steps = WindowSteps(self.steps, encoder, self.vocabulary, second_text)
        self.picture_steps = PictureSteps(
            self.steps,
            self.vocabulary,
            logit_scale=self.logit_scale,
            threshold=self.probability_threshold,
            refine_iterations=self.refine_iterations,
            dilations=PAMR_DILATIONS,
            implementation=encoder.implementation,
            min_margin=self.min_margin,
        )
        self.thresholds = thresholds_of(self.threshold, vocabulary.names, self.device)
        """(classes,): below which a pixel has no class; None: always one."""
        if self.thresholds is not None and self.steps.purification is not None:
            raise ValueError(
                "threshold is a probability, and the maps of class purification are none: leave one of them out"
            )

    @property
    def reads_guide(self) -> bool:
        """Whether labels are made with the image's pixels at hand."""
        return bool(self.refine_iterations) or self.steps.laplacian is not None

    @property
    def rejects(self) -> bool:
        """Whether pixels may be too uncertain for any class."""
        return self.thresholds is not None or self.min_margin > 0

    def with_encoder(self, encoder: DenseEncoder) -> ImagePipeline:
        """The same classes, settings and steps with another encoder."""
        other = copy.copy(self)
        other.encoder = encoder
        other.take_words(self.vocabulary, self.window_steps.second_text)
        return other

    def with_vocabulary(self, vocabulary: Vocabulary) -> ImagePipeline:
        """The same model, settings and steps with other classes.

        Raises:
            TypeError, ValueError: classes that do not fit the model, the steps, or thresholds by class.
        """
        check_type("vocabulary", vocabulary, Vocabulary, "a Vocabulary")
        check_classes_differ(vocabulary.names)
        check_encoder(self.encoder, vocabulary, self.window)
        if self.window_steps.second_text is not None:
            raise ValueError(
                "second_text has a row for each query of the classes it came with: make a Segmenter of the new classes "
                "and their second_text"
            )
        other = copy.copy(self)
        other.take_words(vocabulary, None)
        return other

    @property
    def margin(self) -> int:
        """Rows above and below a strip that its refinement reads.

        An iteration moves logits by up to the largest dilation, and the weights look as far once more.
        """
        return (self.refine_iterations + 1) * max(PAMR_DILATIONS) if self.refine_iterations else 0

    def task(self, image: ImageRows, tag: Any = None, *, keep_scores: bool = False) -> ImageTask:
        """An image at its own size, to be segmented at the model's; the result has the image's size."""
        size = (image.height, image.width)
        pixels = self.preparation.resized(image)
        return ImageTask(self, pixels, size, tag, keep_scores=keep_scores)

    def check_work(self, height: int, width: int) -> str | None:
        """Why an image of this size at the model would take too many windows; None where it does not.

        Warns:
            ManyWindowsWarning: it takes many that overlap much; said for the first such image only.
        """
        count = count_windows(height, width, self.window, self.stride)
        rounds = 1 if self.encoder.sfr is None else self.encoder.sfr.rounds
        takes = (
            f"an image of {height:,} × {width:,} pixels, as the model gets it, takes {count:,} windows of "
            f"{self.window} pixels, one every {self.stride}"
        )
        if count * rounds > self.max_windows:
            in_rounds = f", {rounds} times each for the rounds of SFR" if rounds > 1 else ""
            return (
                f"{takes}{in_rounds}; {self.max_windows:,} are allowed: take a larger stride=, a smaller short_side=, "
                "or raise max_windows="
            )
        if count > MANY_WINDOWS and self.stride * DENSE_OVERLAP < self.window and not self._warned:
            self._warned = True
            wider = self.window // 2
            warnings.warn(
                f"{takes}, in {-(-count // self.batch_size):,} batches; every {wider} pixels they would be "
                f"{count_windows(height, width, self.window, wider):,}: take a larger stride= unless time is no matter",
                ManyWindowsWarning,
                stacklevel=2,
            )
        return None

    def encode_overview(self, task: ImageTask) -> Coarse | None:
        """The whole image at low resolution, encoded for the windows to attend to; None where that is not wanted."""
        overview = self.encoder.overview
        if overview is None:
            return None
        size = overview.size(*task.shape, self.window, self.encoder.tower.patch_size)
        return self.encoder.coarse(downsample(task.normalised_rows, task.shape, size).unsqueeze(0))

    def encode_image(self, task: ImageTask) -> Tensor | None:
        """(E,): CLIP's own vector of the whole image, where a step asks for it; reduced if it is very large.

        None where it is not asked for, and where the image is one window, of which the encoder gives it by itself.
        """
        if not self.window_steps.reads_whole_image or (
            task.stitcher.is_single and not self.pad_multiple
        ):
            return None
        height, width = task.shape
        if height * width <= WHOLE_PIXELS:
            pixels = task.normalised_rows(0, height)
        else:
            factor = (WHOLE_PIXELS / (height * width)) ** 0.5
            size = (max(1, round(height * factor)), max(1, round(width * factor)))
            pixels = downsample(task.normalised_rows, task.shape, size)
        return self.encoder.image_vectors(pixels.unsqueeze(0))[0]

    def batch_limit(self, window: Window) -> int:
        """How many windows of this size may run together.

        Raises:
            ValueError: there is not enough memory for one.
        """
        # Windows of another size are rare: one of them would fill a batch with empty windows all by itself.
        is_smaller = (window.height, window.width) != (self.window, self.window)
        return plan_batch_size(
            self.encoder,
            padded_size(window, self.pad_multiple),
            len(self.vocabulary.embeddings),
            batch_size=1 if self.pad_batches and is_smaller else self.batch_size,
            max_memory=self.max_memory,
        )

    @torch.no_grad()
    def encode_windows(self, windows: Sequence[WindowPixels], limit: int) -> list[WindowEvidence]:
        """The logits of each window of a batch, or what they will be made of.

        Args:
            windows: with equal keys.
            limit: to which the batch is filled up with empty windows where `pad_batches` is on, so that every batch
                goes through products of one shape.
        """
        batch = self.read_windows(windows, limit)
        evidence = [self.evidence_of(one.task, one.window) for one in windows]
        self.window_steps.take(batch, evidence)
        return evidence

    @torch.no_grad()
    def read_windows(self, windows: Sequence[WindowPixels], limit: int) -> WindowBatch:
        """What the model makes of a batch of windows, and of empty ones behind them, before it has seen a word.

        Args: see `encode_windows`.
        """
        empty = limit - len(windows) if self.pad_batches else 0
        views = [pad(one.pixels, padding(one.window, self.pad_multiple)) for one in windows]
        views += [torch.zeros_like(views[0])] * empty
        overviews = [one.task.overview for one in windows if one.task.overview is not None]
        overview = Coarse.stack(overviews + overviews[:1] * empty) if overviews else None
        return self.window_steps.read(torch.stack(views), overview)

    def evidence_of(self, task: ImageTask, window: Window) -> WindowEvidence:
        """What is kept of a window, still empty."""
        corner = (window.top, window.left)
        return WindowEvidence(corner, padded_size(window, self.pad_multiple), task.image_vector)


def padded_size(window: Window, multiple: int) -> tuple[int, int]:
    """(height, width) of a window as the encoder gets it."""
    around = padding(window, multiple)
    return (
        around.top + window.height + around.bottom,
        around.left + window.width + around.right,
    )
