"""A predictor, the classes of a dataset and how images are cut into windows, as one object that labels images."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip.errors import WeightsUnavailable, first_sentence, is_out_of_memory
from resclip.inference.memory import release
from resclip.inference.pipeline import MAX_WINDOWS, STRIP_BYTES
from resclip.inference.preprocessing import Preparation
from resclip.inference.windows import (
    LogitStitcher,
    Window,
    count_windows,
    interpolate_rows,
    pad,
    padding,
    plan_windows,
)
from resclip.predictors.base import (
    OWN,
    SETTINGS,
    Predictor,
    PredictorSettings,
    check_predictor,
    options_of,
)
from resclip.text.class_names import BACKGROUND, ClassEntry, parse_entries
from resclip.version import __version__
from resclip_kernels import check_count, check_pair, check_type, quoted

REQUESTS = (ValueError, TypeError, OSError, ImportError, WeightsUnavailable)
"""What a predictor may raise about its options and the classes: its own words are passed on."""


class ClassNames(NamedTuple):
    """The classes of a segmenter, by name."""

    names: tuple[str, ...]


class PredictorSegmenter:
    """Labels images by a predictor: windows → its scores → their mean, at the image's own size → arg-max.

    Args:
        predictor: what gives the scores.
        classes: one entry per class, as `resclip.text.class_names` reads them. A first class called "background" falls
            under the predictor's background rule.
        device: where pixels go; None: the predictor's own `device`, or the CPU where it states none.
        max_windows: an image that takes more windows is refused.
        changes: settings in place of the predictor's; None for one that is left as it is. With a `window` and no
            `stride`, windows overlap by half.

    Raises:
        TypeError, ValueError: what is no predictor, or a setting that does not fit.
        RuntimeError: the predictor fails in `prepare` otherwise than by an error about its options.
    """

    def __init__(
        self,
        predictor: Predictor,
        classes: Sequence[str | ClassEntry],
        *,
        device: torch.device | str | None = None,
        max_windows: int | None = None,
        **changes: Any,
    ) -> None:
        self.predictor = check_predictor(predictor, "predictor")
        for name in changes:
            if name not in SETTINGS:
                raise TypeError(
                    f"expected settings among {', '.join(SETTINGS)}; got {quoted(name)}"
                )
        given = {name: value for name, value in changes.items() if value is not None}
        if "stride" not in given and isinstance(window := given.get("window"), int) and window:
            given["stride"] = max(1, window // 2)
        self.chosen: PredictorSettings = replace(predictor.settings, **given)
        if max_windows is not None:
            check_count("max_windows", max_windows, 1)
        self.max_windows = MAX_WINDOWS if max_windows is None else max_windows
        self.device = torch.device(device or getattr(predictor, "device", None) or "cpu")
        entries = parse_entries(classes)
        self.vocabulary = ClassNames(tuple(entry.name for entry in entries))
        is_background = entries[0].name.casefold() == BACKGROUND and len(entries) > 1
        self.background = self.chosen.background if is_background else None
        self.queried = entries if self.background is None else entries[1:]
        self.has_own = self.chosen.background == OWN
        self.batch_size = self.chosen.batch_size
        with torch.no_grad():
            try:
                self.state = predictor.prepare(self.queried)
            except REQUESTS:
                raise
            except Exception as error:
                raise self.failure("prepare", error) from error

    @property
    def preparation(self) -> Preparation:
        """What is done to images before they are cut into windows; picklable, for other processes."""
        chosen = self.chosen
        smallest = (chosen.smallest, chosen.smallest)
        return Preparation(chosen.short_side, chosen.long_side, smallest, chosen.mean, chosen.std)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides a result, as JSON-able values."""
        chosen = self.chosen
        return {
            "predictor": {
                "name": self.predictor.name,
                **options_of(self.predictor),
                "background": self.background,
                "templates": list(chosen.templates),
                "mean": list(chosen.mean),
                "std": list(chosen.std),
            },
            "window": chosen.window,
            "stride": chosen.stride,
            "pad_multiple": chosen.pad_multiple,
            "short_side": chosen.short_side,
            "long_side": chosen.long_side,
            "device": self.device.type,
            "resclip": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }

    @torch.no_grad()
    def predict_many(
        self, pixels: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Labels of normalised images of any sizes, and the scores that they won by.

        Args:
            pixels: one (3, H, W) float tensor for each image.
            sizes: (height, width) of each image's result.

        Returns:
            For each image its (height, width) int64 classes and float32 scores, on the segmenter's device.

        Raises:
            TypeError, ValueError: images that do not fit, or scores of another shape or kind than they must have.
            RuntimeError: the predictor fails.
            MemoryError: there is not enough for a single window.
        """
        if len(sizes) != len(pixels):
            raise ValueError(
                f"sizes must be one (height, width) for each of {len(pixels)} images; got {len(sizes)}"
            )
        results = []
        for image, size in zip(pixels, sizes, strict=True):
            check_type("each image of pixels", image, Tensor, "a (3, H, W) tensor")
            if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
                raise ValueError(
                    f"each image of pixels must be a (3, H, W) tensor; got {tuple(image.shape)}"
                )
            if not image.is_floating_point():
                raise TypeError(f"pixels must be normalised floats; got {image.dtype}")
            check_pair("each of sizes", size, "(height, width) in pixels", 1)
            results.append(self.labels(self.stitched(image.to(self.device, torch.float32)), size))
        return results

    def stitched(self, image: Tensor) -> LogitStitcher:
        """The scores of all windows of a (3, H, W) image."""
        chosen = self.chosen
        height, width = (int(side) for side in image.shape[1:])
        count = count_windows(height, width, chosen.window, chosen.stride)
        if count > self.max_windows:
            raise ValueError(
                f"an image of {height:,} × {width:,} pixels, as {self.predictor.name} gets it, takes {count:,} windows "
                f"of {chosen.window} pixels, one every {chosen.stride}; {self.max_windows:,} are allowed: take a "
                "larger stride=, a smaller short_side=, or raise max_windows="
            )
        windows = plan_windows(height, width, chosen.window, chosen.stride)
        stitcher = LogitStitcher(height, width, windows, chosen.pad_multiple)
        done = 0
        while done < len(windows):
            batch = windows[done : done + self.batch_size]
            try:
                scores = self.scores(image, batch)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise MemoryError(
                        f"there is not enough memory for one window of {batch[0].height} × {batch[0].width} pixels by "
                        f"{self.predictor.name}: take a smaller window= or fewer classes"
                    ) from error
                self.batch_size = len(batch) // 2
            else:
                for window, grid in zip(batch, scores, strict=True):
                    stitcher.add(window, grid)
                done += len(batch)
                continue
            # Outside the handler: its traceback would keep the failed batch's tensors.
            release()
        return stitcher

    def scores(self, image: Tensor, windows: Sequence[Window]) -> Tensor:
        """(B, C, h, w) float: what the predictor makes of windows of one size, checked."""
        views = torch.stack(
            [
                pad(image[:, one.rows, one.columns], padding(one, self.chosen.pad_multiple))
                for one in windows
            ]
        )
        try:
            scores = self.predictor.scores(views, self.state)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise self.failure("scores", error) from error
        must = f"scores() of predictor {self.predictor.name!r} must return"
        if not isinstance(scores, Tensor):
            raise TypeError(f"{must} a tensor (B, C, h, w); got {quoted(scores)}")
        shape = (len(windows), len(self.queried) + self.has_own)
        if scores.ndim != 4 or tuple(scores.shape[:2]) != shape or 0 in scores.shape:
            own = "the background and " if self.has_own else ""
            raise ValueError(
                f"{must} ({shape[0]}, {shape[1]}, h, w), of {shape[0]} window{'s' if shape[0] > 1 else ''} and {own}"
                f"{len(self.queried)} classes; got {tuple(scores.shape)}"
            )
        if not scores.is_floating_point():
            raise TypeError(f"{must} floats; got {scores.dtype}")
        if scores.device != views.device:
            raise ValueError(
                f"{must} scores on the pixels' device, {views.device}; got them on {scores.device}"
            )
        if not scores.isfinite().all():
            what = "NaN" if scores.isnan().any() else "infinity"
            raise ValueError(
                f"{must} finite scores; got {what} among them: look for it in the weights or the text, and give "
                "what cannot be a low score"
            )
        if self.has_own and self.background is None:
            scores = scores[:, 1:]  # The dataset has no background.
        return scores.to(torch.promote_types(scores.dtype, torch.float32))

    def labels(self, stitcher: LogitStitcher, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The (height, width) classes of an image and the scores that they won by, a few rows at a time."""
        height, width = size
        bytes_per_row = 4 * len(self.vocabulary.names) * (stitcher.width + width)
        limit = STRIP_BYTES.get(self.device.type, STRIP_BYTES["cpu"])
        step = max(1, limit // bytes_per_row)
        labels, best = [], []
        for first in range(0, height, step):
            last = min(height, first + step)
            rows = interpolate_rows(stitcher.rows, stitcher.height, height, first, last)
            if width != stitcher.width:
                rows = F.interpolate(rows[None], (last - first, width), mode="bilinear")[0]
            won, classes = rows.max(dim=0)
            if isinstance(self.background, (int, float)):
                # Of equal scores the background's, which stands in front, wins.
                classes = (classes + 1).where(won > self.background, 0)
                won = won.clamp(min=self.background)
            labels.append(classes)
            best.append(won.float())
        return torch.cat(labels), torch.cat(best)

    def failure(self, method: str, error: Exception) -> RuntimeError:
        """An error of the predictor's code, with its name."""
        return RuntimeError(
            f"predictor {self.predictor.name!r} failed in {method}(): {first_sentence(error)}"
        )
