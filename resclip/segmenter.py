"""`Segmenter`: a CLIP model, class names and settings, as one object that segments images.

How pixels become labels is told by `resclip.inference.pipeline` (one image), `resclip.inference.scheduler` (batches of
many images' windows) and `resclip.encoder.dense_encoder` (the model).
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Literal, TypeAlias, cast, overload

import torch
from torch import Tensor

from resclip.builtin import BUILTIN, DRAWN_ONLY, warn_of_drawn_scenes
from resclip.encoder.dense_encoder import DenseEncoder
from resclip.inference import scheduler
from resclip.inference.embedding import Embedding, EmbeddingTask, classify
from resclip.inference.memory import usable_device
from resclip.inference.pipeline import (
    MAX_WINDOWS,
    ImagePipeline,
    ImageTask,
    LogitMap,
    LogitTask,
    Strip,
    check_encoder,
    check_settings,
)
from resclip.inference.prefetch import prefetch
from resclip.inference.preprocessing import CLIP_MEAN, CLIP_STD, ArrayImage, Preparation
from resclip.inference.rejection import Threshold
from resclip.inference.scheduler import Failure, WholeResult, readable, whole_results
from resclip.io.images import (
    ImageError,
    ImageSource,
    is_lasting,
    is_one_image,
    read_image,
    read_picture,
)
from resclip.io.limits import Limits
from resclip.io.picture import Picture, ReadOptions
from resclip.methods.composition import as_parts
from resclip.methods.options_text import as_dict
from resclip.methods.steps import Steps
from resclip.models.tower import RELEASED
from resclip.result import UNLABELLED, Segmentation
from resclip.scores import ClassScores
from resclip.text.class_names import read_entries, with_background
from resclip.text.vocabulary import Classes, NameEncoder, Vocabulary
from resclip.version import __version__
from resclip_kernels import (
    check_choice,
    check_finite,
    check_flag,
    check_pair,
    check_positive,
    check_type,
    quoted,
)

Keep: TypeAlias = Literal["scores"]
"""What results may keep beside labels."""

MOST_VOCABULARIES = 64
"""Different lists of classes that `segment_many` keeps ready."""

READERS = 4
"""How many threads read images ahead; Pillow decodes without Python's lock."""


class Segmenter:
    """Segments images by the classes of a vocabulary.

    Args:
        encoder: the model with its method.
        vocabulary: the classes; its embeddings come from the encoder's own CLIP model.
        window: side of the square windows in pixels; 0: the whole image at once.
        stride: step between windows, at most `window`.
        probability_threshold: pixels whose largest class probability is below it get class 0, as the protocols of
            benchmarks with a background say; other users want `threshold`.
        threshold: pixels whose largest class probability is below it are unlabelled, −1: one number, one for each class
            in their order, or numbers by class name, such as {"cat": 0.5}.
        min_margin: so are pixels whose two most probable classes differ by less than this.
        refine_iterations: iterations of PAMR on the full-size logits; 0 for none.
        logit_scale: factor of the logits before the softmax over queries.
        short_side: images given to `segment` are resized to it with their aspect ratio kept; 0: their own size.
        long_side: the resized long side is at most this.
        batch_size: at most this many windows, of one image or several, run through the encoder together; fewer where
            memory is short.
        pad_batches: whether incomplete batches are filled up with empty windows. A matrix product of another shape
            rounds its last bit differently; with filled batches an image's result is the same bit for bit whatever
            other images are in the batch. Windows of another size, as small and whole images have, then run one by one.
        max_windows: an image that takes more windows, times the rounds of SFR, is refused before it is begun.
        max_memory: bytes that the process, or its part of a GPU, should hold at most; None: what is free.
        pad_multiple: windows are zero-padded evenly on both sides to a multiple of this many pixels, and their logits
            cut back (ProxyCLIP's protocol: 56); 0 for no padding.
        steps: what is done behind the tokens, see `resclip.methods.steps`; None: nothing (`load` takes the method's).
        second_text: (Q, E) unit rows, other descriptions of the vocabulary's queries, which class purification compares
            crops with; None: the vocabulary's own.
        mean, std: of each channel, for pixels in [0, 1].
        source: entries of `settings` that say where the model came from.
        name_encoder: the model's text side, for other words later (`with_classes`); None: these come as a Vocabulary.

    Raises:
        ValueError, TypeError: a value that does not fit, with what would; a single class; a `max_memory` that is too
            small for one window.

    Warns:
        ManyWindowsWarning: before the first image that takes very many overlapping windows.
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
        max_windows: int = MAX_WINDOWS,
        pad_multiple: int = 0,
        steps: Steps | None = None,
        second_text: Tensor | None = None,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        source: dict[str, Any] | None = None,
        threshold: Threshold = 0.0,
        min_margin: float = 0.0,
        name_encoder: NameEncoder | None = None,
    ) -> None:
        check_type("encoder", encoder, DenseEncoder, "a DenseEncoder")
        check_settings({"short_side": short_side, "long_side": long_side})
        if steps is not None:
            check_type("steps", steps, Steps, "a Steps, or None for none")
        self.pipeline = ImagePipeline(
            encoder,
            vocabulary,
            Preparation(
                short_side,
                long_side,
                encoder.tower.patch_size,
                check_channels("mean", mean),
                check_channels("std", std, check_positive),
            ),
            window=window,
            stride=stride,
            probability_threshold=probability_threshold,
            refine_iterations=refine_iterations,
            logit_scale=logit_scale,
            batch_size=batch_size,
            pad_batches=pad_batches,
            max_memory=max_memory,
            max_windows=max_windows,
            pad_multiple=pad_multiple,
            steps=Steps() if steps is None else steps,
            second_text=second_text,
            threshold=threshold,
            min_margin=min_margin,
        )
        if name_encoder is not None:
            check_type("name_encoder", name_encoder, NameEncoder, "a NameEncoder, or None")
        self.name_encoder = name_encoder
        if source is not None:
            check_type("source", source, Mapping, "a mapping of settings, or None")
        self.source = dict(source or {})

    def __repr__(self) -> str:
        names, pipeline = self.vocabulary.names, self.pipeline
        more = f" and {len(names) - 4:,} more" if len(names) > 4 else ""
        model = " ".join(
            str(self.source[key]) for key in ("model", "pretrained") if self.source.get(key)
        )
        method = self.source.get("method") or self.encoder.base.name
        windows = (
            f"windows of {pipeline.window} every {pipeline.stride} pixels"
            if pipeline.window
            else "whole images"
        )
        precision = str(self.encoder.tower.dtype).removeprefix("torch.")
        return (
            f"Segmenter({model or 'a model of yours'}, {method}, {len(names):,} classes: "
            f"{', '.join(names[:4])}{more}; {windows}; {self.device}, {precision})"
        )

    def to(self, device: str | torch.device) -> Segmenter:
        """Move the model, with its text side, and the classes to a device; returns the segmenter itself.

        Whatever else uses the same model finds it on that device too.

        Raises:
            ValueError: a device that cannot be used.
        """
        device = usable_device(device)
        if self.name_encoder is not None:
            self.name_encoder.clip_model.to(device)
        self.encoder.to(device)
        self.pipeline = self.pipeline.with_encoder(self.encoder)
        return self

    @property
    def encoder(self) -> DenseEncoder:
        """What runs the tower."""
        return self.pipeline.encoder

    @property
    def vocabulary(self) -> Vocabulary:
        """The classes, on the model's device."""
        return self.pipeline.vocabulary

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self.pipeline.device

    @property
    def preparation(self) -> Preparation:
        """What is done to images before they are cut into windows; picklable, for other processes."""
        return self.pipeline.preparation

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
            **self.composition,
            "neighbourhood_std": self.encoder.neighbourhood_std,
            "implementation": self.encoder.implementation.value,
            "window": self.pipeline.window,
            "stride": self.pipeline.stride,
            "pad_multiple": self.pipeline.pad_multiple,
            "short_side": self.preparation.short_side,
            "long_side": self.preparation.long_side,
            "logit_scale": self.pipeline.logit_scale,
            "probability_threshold": self.pipeline.probability_threshold,
            **self.rejection,
            "refine_iterations": self.pipeline.refine_iterations,
            "device": str(self.device),
            "precision": str(self.encoder.tower.dtype).removeprefix("torch."),
            "resclip": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }

    @property
    def rejection(self) -> dict[str, Any]:
        """What makes pixels too uncertain for a class, where anything does."""
        pipeline = self.pipeline
        found: dict[str, Any] = {}
        if pipeline.thresholds is not None:
            given = pipeline.threshold
            found["threshold"] = dict(given) if isinstance(given, Mapping) else given
        if pipeline.min_margin:
            found["min_margin"] = pipeline.min_margin
        return found

    @property
    def composition(self) -> dict[str, Any]:
        """Pieces, steps and the way to resize positions, where the segmenter or its base has any of its own."""
        base, encoder = self.encoder.base, self.encoder
        found: dict[str, Any] = {}
        if encoder.pieces or base.pieces:
            found["pieces"] = as_parts(encoder.pieces)
        if self.pipeline.steps or base.steps:
            found["steps"] = as_parts(self.pipeline.steps)
        if encoder.position != RELEASED or base.position != RELEASED:
            found["position"] = encoder.position
        return found

    def with_encoder(self, encoder: DenseEncoder, **source: Any) -> Segmenter:
        """The same classes and settings with another encoder, such as another method on the same tower.

        Args:
            encoder: with the same output width.
            source: entries of `source` that differ.

        Raises:
            TypeError, ValueError: an encoder that does not fit.
        """
        check_encoder(encoder, self.vocabulary, self.pipeline.window)
        other = copy.copy(self)
        other.pipeline = self.pipeline.with_encoder(encoder)
        other.source = {**self.source, **source}
        return other

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes. Setting them takes what `with_classes` does, for this segmenter itself."""
        return self.vocabulary.names

    @classes.setter
    def classes(self, classes: Classes | Vocabulary) -> None:
        self.pipeline = self.pipeline.with_vocabulary(self.encode_classes(classes))

    def with_classes(
        self, classes: Classes | Vocabulary, *, background: str | None = None
    ) -> Segmenter:
        """The same model and settings for other classes; names that were encoded before cost nothing.

        Args:
            classes: as `load` takes them: a list, "cat, kitten; dog", "@voc21", a file, or a Vocabulary.
            background: a list of names for what is none of them, "voc21" or "coco-object", as a first class.

        Raises:
            TypeError, ValueError: classes that do not fit; names for a segmenter that was made without a name encoder.

        Example:
            >>> import resclip
            >>> segmenter = resclip.load("builtin", classes="sky; tree; house")
            >>> segmenter.with_classes("sun; sky").classes
            ('sun', 'sky')
        """
        other = copy.copy(self)
        other.pipeline = self.pipeline.with_vocabulary(self.encode_classes(classes, background))
        return other

    def encode_classes(
        self, classes: Classes | Vocabulary, background: str | None = None
    ) -> Vocabulary:
        """The classes as text features of this model; see `with_classes`."""
        if isinstance(classes, Vocabulary):
            if background is not None:
                raise ValueError(
                    "background is a list of names, and a Vocabulary has been encoded: give the classes as names"
                )
            return classes
        if self.name_encoder is None:
            raise ValueError(
                "this segmenter has no text side to encode names with: pass a Vocabulary, or make the segmenter by "
                "resclip.load or with name_encoder="
            )
        entries = read_entries(classes)
        if background is not None:
            entries = read_entries(with_background(entries, background))
        return self.name_encoder.encode(entries)

    @overload
    def segment(
        self,
        image: ImageSource,
        *,
        bands: Sequence[int | str] | None = None,
        value_range: tuple[float, float] | None = None,
        max_pixels: int | None = None,
        keep: Keep | None = None,
    ) -> Segmentation: ...
    @overload
    def segment(
        self,
        image: list[ImageSource] | tuple[ImageSource, ...],
        *,
        bands: Sequence[int | str] | None = None,
        value_range: tuple[float, float] | None = None,
        max_pixels: int | None = None,
        keep: Keep | None = None,
    ) -> list[Segmentation]: ...

    def segment(
        self,
        image: ImageSource | Iterable[ImageSource],
        *,
        bands: Sequence[int | str] | None = None,
        value_range: tuple[float, float] | None = None,
        max_pixels: int | None = None,
        keep: Keep | None = None,
    ) -> Segmentation | list[Segmentation]:
        """Segment an image, or several whose windows share batches.

        Args:
            image: a path, bytes, an open file, a PIL image, an (H, W, 3) array or a (3, H, W) tensor; or any
                iterable of them. `resclip.io.images.read_picture` says which arrays and tensors.
            bands: which bands of a file are red, green and blue, or the one that is grey: numbers from 1, or names.
            value_range: (low, high) of the values that become black and white, for deep images.
            max_pixels: images with more pixels are refused; None: 178,956,970. `resclip.io.images.read_picture` tells
                how images are read.
            keep: "scores": the results keep the probabilities of all classes, for each patch, as `result.scores` and
                `result.heatmap(name)`. They are those of the stitched logits, before refinement by pixels.

        Returns:
            A `Segmentation` at the image's own size, upright; a list for several. What the image does not have, by
            transparency, a nodata value or a mask, is unlabelled: −1.

        Raises:
            ImageError: a file that is no image.
            TypeError, ValueError: an argument that does not fit.

        Example:
            >>> import resclip
            >>> segmenter = resclip.load("builtin", classes=["sky", "tree", "house"])
            >>> segmenter.segment("docs/scene.png").labels.shape
            (336, 448)
        """
        several = is_several(image)
        results = self.segment_many(
            cast("Iterable[ImageSource]", image if several else [image]),
            bands=bands,
            value_range=value_range,
            max_pixels=max_pixels,
            keep=keep,
        )
        return list(results) if several else next(results)

    @overload
    def segment_many(
        self,
        images: Iterable[ImageSource],
        *,
        bands: Sequence[int | str] | None = None,
        value_range: tuple[float, float] | None = None,
        max_pixels: int | None = None,
        keep: Keep | None = None,
        classes: Iterable[Classes | Vocabulary] | None = None,
    ) -> Iterator[Segmentation]: ...
    @overload
    def segment_many(
        self,
        images: Iterable[ImageSource],
        *,
        bands: Sequence[int | str] | None = None,
        value_range: tuple[float, float] | None = None,
        max_pixels: int | None = None,
        keep: Keep | None = None,
        classes: Iterable[Classes | Vocabulary] | None = None,
        return_errors: Literal[True],
    ) -> Iterator[Segmentation | ImageError]: ...

    def segment_many(
        self,
        images: Iterable[ImageSource],
        *,
        bands: Sequence[int | str] | None = None,
        value_range: tuple[float, float] | None = None,
        max_pixels: int | None = None,
        keep: Keep | None = None,
        classes: Iterable[Classes | Vocabulary] | None = None,
        return_errors: bool = False,
    ) -> Iterator[Segmentation | ImageError]:
        """Segment any number of images; windows of different images share batches.

        Threads read a few images ahead; memory does not grow with the number of images.

        Args:
            images: what `segment` takes; read as results are asked for. Arrays, tensors, PIL images and open files are
                read as they are taken, so that a buffer may be used again for the next one.
            bands, value_range, max_pixels, keep: see `segment`.
            classes: other words for each image, as many as images: what `with_classes` takes. Images with the same
                words share batches. None: this segmenter's classes for all.
            return_errors: yield the error of an image that cannot be read in its place, instead of raising it.

        Yields:
            One `Segmentation` per image, in the order of `images`.

        Warns:
            DrawnScenesWarning: the built-in model has an image that is none of its drawn scenes; the results' settings
                have "notes" that say so too.

        Raises:
            ImageError: an image cannot be read.
            TypeError, ValueError: an argument that does not fit.
        """
        check_images_iterable(images)
        check_flag("return_errors", return_errors)
        check_keep(keep)
        options = ReadOptions(
            bands,
            value_range,
            Limits(max_pixels=max_pixels),
        )
        # A copy: this segmenter may be given other classes before the last result is there.
        same = itertools.repeat(copy.copy(self))
        segmenters = same if classes is None else self.each_with(classes)
        return self._segment_many(
            pair_with(images, segmenters, is_endless=classes is None), options, keep, return_errors
        )

    def each_with(self, classes: Iterable[Classes | Vocabulary]) -> Iterator[Segmenter]:
        """A segmenter for each entry of `classes`, one and the same where words come again.

        Raises:
            TypeError: what is no list of classes for several images.
        """
        if isinstance(classes, (str, bytes, os.PathLike, Vocabulary)) or not isinstance(
            classes, Iterable
        ):
            raise TypeError(
                "classes must be a list with the classes of each image, such as ['cat; dog', 'sky; tree']; got "
                f"{quoted(classes)}; with_classes() sets one list for all images"
            )
        # With the classes themselves, so that no later object has the identity of a Vocabulary that is gone.
        known: dict[Any, tuple[Any, Segmenter]] = {}

        def of(one: Classes | Vocabulary) -> Segmenter:
            words = one if isinstance(one, Vocabulary) else read_entries(one)
            key = id(words) if isinstance(words, Vocabulary) else tuple(map(str, words))
            if key not in known:
                while len(known) >= MOST_VOCABULARIES:
                    del known[next(iter(known))]
                known[key] = words, self.with_classes(words)
            return known[key][1]

        return map(of, classes)

    def _segment_many(
        self,
        images: Iterable[tuple[ImageSource, Segmenter]],
        options: ReadOptions,
        keep: Keep | None,
        return_errors: bool,
    ) -> Iterator[Segmentation | ImageError]:
        """`segment_many`, whose arguments are checked when it is called and not with the first result."""

        def read(entry: tuple[ImageSource | Failure, Segmenter]) -> ImageTask | Failure:
            source, segmenter = entry
            if isinstance(source, Failure):
                return source
            try:
                picture = read_picture(source, options)
            except ImageError as error:
                return Failure(source, error)
            return segmenter.pipeline.task(
                ArrayImage(picture.pixels), (picture, segmenter), keep_scores=keep == "scores"
            )

        def take(
            entry: tuple[ImageSource, Segmenter],
        ) -> tuple[ImageSource | Failure, Segmenter]:
            # At once, for the caller may fill them with the next image.
            source, segmenter = entry
            if is_lasting(source):
                return entry
            try:
                return read_picture(source, options), segmenter
            except ImageError as error:
                return Failure(source, error), segmenter

        tasks = prefetch(read, map(take, images), workers=READERS)
        with contextlib.closing(tasks):
            said = False
            for result in whole_results(scheduler.run(tasks)):
                if not isinstance(result, Failure):
                    picture, segmenter = result.tag
                    if not said and self.notes_on(picture):
                        warn_of_drawn_scenes()
                        said = True
                    yield segmenter.segmentation(result, picture)
                elif return_errors and isinstance(result.error, ImageError):
                    yield result.error
                else:
                    raise result.error

    def segmentation(self, result: WholeResult, picture: Picture) -> Segmentation:
        """The result of an image as users get it."""
        if picture.absent is not None:
            result.labels[picture.absent] = UNLABELLED
            result.probabilities[picture.absent] = 0.0
        kept = None
        if result.scores is not None:
            kept = ClassScores(
                self.vocabulary.names,
                result.scores.planes.float().cpu().numpy(),
                self.vocabulary.query_to_class.tolist(),
                result.scores.cell,
                (picture.pixels.shape[0], picture.pixels.shape[1]),
                picture.absent,
                are_logarithms=result.scores.are_logarithms,
            )
        notes = self.notes_on(picture)
        return Segmentation(
            picture.pixels,
            result.labels,
            result.probabilities,
            self.vocabulary.names,
            {**self.settings, **({"notes": notes} if notes else {})},
            picture.georeference,
            picture.record,
            kept,
        )

    def notes_on(self, picture: Picture) -> list[str]:
        """What has to stand beside a result for this picture: that the built-in model does not know its kind."""
        is_foreign = self.source.get("model") == BUILTIN and not picture.record.get("scene")
        return [DRAWN_ONLY] if is_foreign else []

    @overload
    def embed(
        self, image: ImageSource, *, keep_image: bool = True, **reading: Any
    ) -> Embedding: ...
    @overload
    def embed(
        self,
        image: list[ImageSource] | tuple[ImageSource, ...],
        *,
        keep_image: bool = True,
        **reading: Any,
    ) -> list[Embedding]: ...

    def embed(
        self,
        image: ImageSource | Iterable[ImageSource],
        *,
        keep_image: bool = True,
        **reading: Any,
    ) -> Embedding | list[Embedding]:
        """Run an image through the model once, to be classified by any words later.

        Of a method with SFR, whose second pass depends on the words, what the final block reads is kept, 12 to 18 times
        as much, and `classify` runs both of its passes.

        Args:
            image: as `segment` takes it, or several.
            keep_image: whether the embedding holds the image, which SFR, refinement by pixels and pictures need.
            reading: `bands`, `value_range` and `max_pixels`, see `segment`.

        Raises:
            ImageError: a file that is no image.
            TypeError, ValueError: an argument that does not fit.

        Example:
            >>> import resclip
            >>> segmenter = resclip.load("builtin", classes="sky; tree; house", method="naclip+rcs")
            >>> embedding = segmenter.embed("docs/scene.png")
            >>> segmenter.classify(embedding, "sun; sky").labels.shape
            (336, 448)
        """
        several = is_several(image)
        images = cast("Iterable[ImageSource]", image if several else [image])
        found = self.embed_many(images, keep_image=keep_image, **reading)
        return list(found) if several else next(found)

    def embed_many(
        self,
        images: Iterable[ImageSource],
        *,
        keep_image: bool = True,
        bands: Sequence[int | str] | None = None,
        value_range: tuple[float, float] | None = None,
        max_pixels: int | None = None,
    ) -> Iterator[Embedding]:
        """`embed` for any number of images, in their order; windows of different images share batches."""
        check_images_iterable(images)
        check_flag("keep_image", keep_image)
        options = ReadOptions(bands, value_range, Limits(max_pixels=max_pixels))

        def tasks() -> Iterator[EmbeddingTask]:
            for image in images:
                yield EmbeddingTask(self.pipeline, read_picture(image, options))

        # Each task says what comes of it.
        for event in cast("Iterator[Embedding | Failure]", scheduler.run(tasks())):
            if isinstance(event, Failure):
                raise event.error
            yield event if keep_image else event.without_image()

    def classify(
        self,
        embedding: Embedding,
        classes: Classes | Vocabulary | None = None,
        *,
        keep: Keep | None = None,
    ) -> Segmentation:
        """The labels of an embedded image, as `segment` gives them, in a fraction of its time.

        Args:
            embedding: of `embed`, by this segmenter or one made alike, or loaded from a file.
            classes: as `with_classes` takes them; None: this segmenter's own.
            keep: see `segment`.

        Returns:
            The `Segmentation`. Where the embedding holds no image, its image is grey.

        Raises:
            EmbeddingError: an embedding of another model, method or size, or without an image that the method needs.
            TypeError, ValueError: classes that do not fit.
        """
        check_keep(keep)
        segmenter = self if classes is None else self.with_classes(classes)
        strips = classify(segmenter.pipeline, embedding, None, keep_scores=keep == "scores")
        (result,) = whole_results(strips)
        if isinstance(result, Failure):
            raise result.error
        picture = embedding.as_picture()
        if segmenter.notes_on(picture):
            warn_of_drawn_scenes()
        return segmenter.segmentation(result, picture)

    @overload
    def predict(self, pixels: Tensor) -> Tensor: ...
    @overload
    def predict(self, pixels: Sequence[Tensor]) -> list[Tensor]: ...

    def predict(self, pixels: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Class of every pixel of normalised images.

        Args:
            pixels: (B, 3, H, W) float, or a list of (3, H, W) of any sizes; on any device.

        Returns:
            (B, H, W) int64, or a list of (H, W); on the images' devices.

        Raises:
            TypeError, ValueError: a shape or dtype that does not fit, or logits that hold NaN.
        """
        images = check_images(pixels)
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        labels = [
            labels.to(image.device)
            for image, (labels, _) in zip(images, self.predict_many(images, sizes), strict=True)
        ]
        if not isinstance(pixels, Tensor):
            return labels
        return like(pixels, labels, tuple(pixels.shape[2:])).long()

    @overload
    def logits(self, pixels: Tensor, *, upsample: bool = False) -> Tensor: ...
    @overload
    def logits(self, pixels: Sequence[Tensor], *, upsample: bool = False) -> list[Tensor]: ...

    def logits(
        self, pixels: Tensor | Sequence[Tensor], *, upsample: bool = False
    ) -> Tensor | list[Tensor]:
        """Similarity of every patch, or pixel, to every query: the mean over the windows that see it.

        `softmax(logit_scale · logits)` over the queries is what labels are made of.

        Args:
            pixels: (B, 3, H, W) float, normalised, or a list of (3, H, W) of any sizes; on any device.
            upsample: to the images' own sizes; else one value for each patch, h = H // patch height by w.

        Returns:
            (B, Q, h, w), or (B, Q, H, W); or a list of (Q, h, w). Float32 or wider, on the images' devices.

        Raises:
            TypeError, ValueError: a shape or dtype that does not fit, or logits that hold NaN.
        """
        check_flag("upsample", upsample)
        images = check_images(pixels)
        tasks = (
            LogitTask(self.pipeline, image.to(self.device), number, upsample)
            for number, image in enumerate(images)
        )
        came: list[Tensor] = []
        # Each task says what comes of it.
        events = cast("Iterator[LogitMap | Failure]", scheduler.run(tasks))
        for event in events:
            if isinstance(event, Failure):
                raise of_image(event)
            came.append(event.logits.to(images[event.tag].device))
        if not isinstance(pixels, Tensor):
            return came
        size = pixels.shape[2:] if upsample else self.encoder.tower.grid(*pixels.shape[2:])
        return like(pixels, came, (len(self.vocabulary.embeddings), *size))

    def predict_many(
        self, pixels: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Labels and probabilities of normalised images of any sizes, on the model's device.

        Args:
            pixels: one (3, H, W) float tensor for each image.
            sizes: (height, width) of each image's result.

        Returns:
            For each image its (height, width) int64 classes and float32 probabilities.

        Raises:
            TypeError, ValueError: a shape or dtype that does not fit, or logits that hold NaN.
        """
        images = check_images(pixels)
        check_type("sizes", sizes, (tuple, list), "a list of (height, width)")
        if len(sizes) != len(images):
            raise ValueError(
                f"sizes must be one (height, width) for each of {len(images)} images; got {len(sizes)}"
            )
        for size in sizes:
            check_pair("each of sizes", size, "(height, width) in pixels", 1)
        tasks = (
            ImageTask(self.pipeline, image.to(self.device), size, number)
            for number, (image, size) in enumerate(zip(images, sizes, strict=True))
        )
        # Every image is queued before labels are waited for.
        events = []
        for event in scheduler.run(tasks):
            if isinstance(event, Failure):
                raise of_image(event)
            events.append(event)
        strips: list[list[Strip]] = [[] for _ in images]
        for event in readable(events):
            if isinstance(event, Failure):
                raise of_image(event)
            strips[event.tag].append(event)
        return [
            (
                torch.cat([strip.labels for strip in parts]),
                torch.cat([strip.probabilities for strip in parts]),
            )
            for parts in strips
        ]

    def prepare(self, image: ImageSource) -> Tensor:
        """What `segment` takes → (3, H', W') float32: resized, at least one patch large, normalised; for `predict`."""
        pixels = self.preparation.resize(read_image(image))
        return self.preparation.normalise(torch.tensor(pixels))


def is_several(image: Any) -> bool:
    """Whether this is a collection of images, and not an image, a path or an open file."""
    return isinstance(image, Iterable) and not is_one_image(image)


def check_images_iterable(images: Any) -> None:
    """TypeError for what is no collection of images, or has none in an order."""
    if not is_several(images):
        raise TypeError(
            f"images must be a list of images, or another iterable; got {quoted(images)}: pass [image], or use "
            "segment()"
        )
    if isinstance(images, (Mapping, AbstractSet)):
        raise TypeError(
            f"images must be a list of images, or another iterable of them in order; got a {type(images).__name__}: "
            "pass list(images.values()), or a sorted list"
        )


def check_keep(keep: str | None) -> None:
    """ValueError for what cannot be kept."""
    if keep is not None:
        check_choice("keep", keep, ("scores",), ", or None for labels and their probabilities")


def pair_with(
    images: Iterable[ImageSource], segmenters: Iterator[Segmenter], *, is_endless: bool
) -> Iterator[tuple[ImageSource, Segmenter]]:
    """Each image with its segmenter; ValueError, where it shows, unless there are as many of both."""
    count = 0
    for count, image in enumerate(images, 1):
        segmenter = next(segmenters, None)
        if segmenter is None:
            raise ValueError(
                f"classes must have an entry for each image; got {count - 1} for more images: give as many"
            )
        yield image, segmenter
    if not is_endless and next(segmenters, None) is not None:
        raise ValueError(
            f"classes must have an entry for each image; got more than {count} for {count} images: give as many"
        )


def of_image(failure: Failure) -> ValueError:
    """The error of one of several images, with its number."""
    return ValueError(f"image {failure.tag} of pixels cannot be segmented: {failure.error}")


def check_images(pixels: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """The images one by one; ValueError or TypeError unless they are float tensors of (3, H, W)."""
    is_batch = isinstance(pixels, Tensor) and pixels.ndim == 4
    if not is_batch and (hasattr(pixels, "ndim") or not isinstance(pixels, Iterable)):
        got = tuple(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
        raise ValueError(
            f"pixels must be a (B, 3, H, W) tensor, or a list of (3, H, W) tensors; got {got}"
        )
    images = list(pixels)
    for image in images:
        if not isinstance(image, Tensor) or image.ndim != 3 or image.shape[0] != 3:
            got = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise ValueError(f"each image of pixels must be a (3, H, W) tensor; got {got}")
        if 0 in image.shape:
            raise ValueError(
                f"each image of pixels must have at least one row and column; got {tuple(image.shape)}"
            )
        if not image.is_floating_point():
            raise TypeError(
                f"pixels must be normalised floats; got {image.dtype}. Divide by 255 and normalise, or pass images to "
                "segment()"
            )
    return images


def check_channels(
    name: str, values: Sequence[float], check: Callable[[str, float], None] = check_finite
) -> tuple[float, ...]:
    """The values as a tuple; TypeError or ValueError unless they are three numbers that pass the check."""
    check_type(name, values, Iterable, "three numbers, one per channel")
    channels = tuple(values)
    if len(channels) != 3:
        raise ValueError(f"{name} must be three numbers, one per channel; got {quoted(values)}")
    for value in channels:
        check(f"each of {name}", value)
    return channels


def like(pixels: Tensor, images: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    """The images as one batch; for no image an empty one of this shape."""
    if images:
        return torch.stack(images)
    return torch.empty(0, *shape, device=pixels.device)
