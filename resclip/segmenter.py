"""The whole pipeline in one sitting: picture → windows → encoder → logits → stitch → labels.

Knows the order of the stages; each stage is a function elsewhere that knows nothing of the others.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor

import resclip
from resclip.encoder import DenseEncoder, similarity
from resclip.images import ImageSource, PixelArray, read_image, resize, resize_shape
from resclip.knobs import as_dict
from resclip.result import Segmentation
from resclip.vocabulary import Vocabulary
from resclip.windows import Window, check_window, pad, padding, plan_windows, stitch
from resclip_kernels import upsample_argmax
from resclip_kernels.checks import check_count

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preparation:
    """What is done to a picture before it is cut into windows; small and picklable, for worker processes.

    Args:
        short_side, long_side: see `Segmenter`.
        smallest: (height, width) that a picture has at least: a patch.
        mean, std: per channel, of pixels in [0, 1].
    """

    short_side: int
    long_side: int
    smallest: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def resize(self, picture: PixelArray) -> PixelArray:
        """(H, W, 3) uint8 → (H', W', 3) uint8."""
        height, width = picture.shape[:2]
        if self.short_side:
            height, width = resize_shape(height, width, self.short_side, self.long_side)
        return resize(picture, (max(height, self.smallest[0]), max(width, self.smallest[1])))

    def normalise(self, pixels: Tensor) -> Tensor:
        """(H', W', 3) uint8 → (3, H', W') float32, on the same device."""
        return normalise(pixels, self.mean, self.std)


class Crop(NamedTuple):
    """One window of one picture of a batch."""

    picture: int
    window: Window


class Segmenter:
    """Segments pictures by the classes of a vocabulary.

    Args:
        encoder: runs the tower.
        vocabulary: the classes; its embeddings come from the encoder's own CLIP model.
        window: side of the square windows in pixels; 0: the whole picture at once.
        stride: step between windows, at most `window`.
        probability_threshold: pixels whose largest class probability is under it get class 0.
        refine_iterations: of PAMR on the full-size logits; 0 for none.
        logit_scale: factor of the logits before the softmax over queries.
        short_side: pictures given to `segment` are resized to it, ratio kept; 0: their own size.
        long_side: cap of the resized long side.
        batch_size: windows that run through the encoder together.
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
        self.pad_multiple = pad_multiple
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.source = dict(source or {})

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides a result, as JSON-able values."""
        return {
            **self.source,
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
            "resclip": resclip.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }

    @overload
    def segment(self, image: ImageSource) -> Segmentation: ...
    @overload
    def segment(self, image: list[ImageSource]) -> list[Segmentation]: ...

    def segment(self, image: ImageSource | list[ImageSource]) -> Segmentation | list[Segmentation]:
        """Segment a picture, or a list of pictures whose windows share batches.

        Args:
            image: a path, a PIL image or an (H, W, 3) uint8 array; or a list of them.

        Returns:
            A `Segmentation` at the picture's own size (after its EXIF orientation); a list for a list.

        Raises:
            ImageError: a file that is no picture.
        """
        if not isinstance(image, list):
            return self.segment([image])[0]
        pictures = [read_image(source) for source in image]
        pixels = [self.prepare(picture) for picture in pictures]
        sizes = [(picture.shape[0], picture.shape[1]) for picture in pictures]
        return [
            Segmentation(
                image=picture,
                labels=labels.cpu().numpy(),
                probabilities=probabilities.float().cpu().numpy(),
                names=self.vocabulary.names,
                settings=self.settings,
            )
            for picture, (labels, probabilities) in zip(
                pictures, self.classify(pixels, sizes), strict=True
            )
        ]

    def predict(self, pixels: Tensor) -> Tensor:
        """Class of every pixel of a batch of normalised pictures: (B, 3, H, W) float → (B, H, W) int64."""
        if not isinstance(pixels, Tensor) or pixels.ndim != 4:
            came = tuple(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
            raise ValueError(f"pixels must be a (B, 3, H, W) tensor; got {came}")
        size = (pixels.shape[2], pixels.shape[3])
        results = self.classify(list(pixels), [size] * len(pixels))
        labels = [labels for labels, _ in results]
        return torch.stack(labels) if labels else pixels.new_empty(0, *size, dtype=torch.int64)

    @property
    def preparation(self) -> Preparation:
        """What `prepare` does, without the model."""
        return Preparation(
            self.short_side,
            self.long_side,
            self.encoder.tower.patch_size,
            self.mean,
            self.std,
        )

    def prepare(self, picture: PixelArray) -> Tensor:
        """(H, W, 3) uint8 → (3, H', W') float32: resized, at least one patch large, normalised."""
        preparation = self.preparation
        return preparation.normalise(torch.tensor(preparation.resize(picture)))

    @torch.no_grad()
    def classify(
        self, pixels: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Labels and probabilities of pictures of any sizes.

        Args:
            pixels: (3, H, W) normalised, one a picture.
            sizes: (height, width) of each picture's result.

        Returns:
            For each picture (height, width) int64 classes and float32 probabilities.
        """
        pixels = [picture.to(self.device) for picture in pixels]
        crops = [
            Crop(number, window)
            for number, picture in enumerate(pixels)
            for window in plan_windows(picture.shape[1], picture.shape[2], self.window, self.stride)
        ]
        logits = self.crop_logits(pixels, crops)
        results = []
        for number, (picture, size) in enumerate(zip(pixels, sizes, strict=True)):
            own = [position for position, crop in enumerate(crops) if crop.picture == number]
            grids = [logits[position] for position in own]
            windows = [crops[position].window for position in own]
            results.append(self.combine(picture, grids, windows, size))
        return results

    def crop_logits(self, pixels: Sequence[Tensor], crops: Sequence[Crop]) -> dict[int, Tensor]:
        """(Q, h, w) logits of every crop, by position: crops of one size run in batches, whatever their picture."""
        by_size: dict[tuple[int, int], list[int]] = {}
        for position, (_, window) in enumerate(crops):
            by_size.setdefault((window.height, window.width), []).append(position)
        logits: dict[int, Tensor] = {}
        text = self.vocabulary.embeddings
        for positions in by_size.values():
            for first in range(0, len(positions), self.batch_size):
                batch = positions[first : first + self.batch_size]
                views = [self.view(pixels, crops[position]) for position in batch]
                features = self.encoder(torch.stack(views), text)
                logits.update(zip(batch, similarity(features.patches, text), strict=True))
        return logits

    def view(self, pixels: Sequence[Tensor], crop: Crop) -> Tensor:
        """A crop's pixels, padded as asked for: (3, height, width)."""
        window = crop.window
        cut = pixels[crop.picture][:, window.rows, window.columns]
        return pad(cut, padding(window, self.pad_multiple))

    def combine(
        self,
        picture: Tensor,
        grids: Sequence[Tensor],
        windows: Sequence[Window],
        size: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """One picture's window logits → its (height, width) labels and probabilities."""
        height, width = picture.shape[1:]
        # A single window is the whole picture: its small grid goes to the op, which never holds it at full size.
        single = len(windows) == 1 and not any(padding(windows[0], self.pad_multiple))
        logits = grids[0] if single else stitch(grids, windows, height, width, self.pad_multiple)
        guide = None
        if self.refine_iterations:
            guide = F.interpolate(
                picture.unsqueeze(0), size=size, mode="bilinear", align_corners=False
            )
        labels, probabilities = upsample_argmax(
            logits.unsqueeze(0),
            size,
            query_to_class=self.vocabulary.query_to_class,
            logit_scale=self.logit_scale,
            threshold=self.probability_threshold,
            through=(height, width) if single else None,
            guide=guide,
            refine_iterations=self.refine_iterations,
            implementation=self.encoder.implementation,
        )
        return labels[0], probabilities[0]


def normalise(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(H, W, 3) uint8 → (3, H, W) float32: (x / 255 − mean) / std per channel, the same bits on every device."""
    pixels = image.permute(2, 0, 1).float()
    # By a tensor: a GPU multiplies by a number's reciprocal instead, which may end in another bit.
    pixels = pixels / pixels.new_tensor(255.0)
    return (pixels - pixels.new_tensor(mean).view(3, 1, 1)) / pixels.new_tensor(std).view(3, 1, 1)
