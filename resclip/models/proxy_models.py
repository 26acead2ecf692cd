"""Vision models that ProxyCLIP takes its attention from: any of timm's, and one in the box that needs no weights.

ProxyCLIP: Lan et al., ECCV 2024 (arXiv 2408.04883). The only file that asks timm for a model by name. Knows no CLIP, no
attention and no window.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resclip.errors import WeightsUnavailable
from resclip_kernels import check_count, check_float, resize_planes

COLOUR = "colour"
PREFIX = "timm:"
# Names that timm reads as a place rather than as one of its own models.
PLACES = ("hf-hub:", "local-dir:")
InputSize = int | tuple[int, int]


class Proxy(Protocol):
    """What ProxyCLIP needs of a vision model: a function of a batch of images."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), normalised with CLIP's statistics → features (B, C, H_v, W_v), of any length."""


def find_proxy(
    name: str,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    pretrained: bool = True,
    input_size: InputSize | None = None,
) -> nn.Module:
    """The proxy of a name, in eval mode.

    Args:
        name: "colour" for `ColourProxy`, or a model of timm, with or without "timm:" in front. A tag after a dot picks
            the weights: "vit_base_patch8_224.dino", "vit_base_patch14_dinov2.lvd142m" (DINOv2),
            "vit_base_patch16_dinov3.lvd1689m" (DINOv3), "samvit_base_patch16.sa1b" (SAM), "vit_base_patch16_224.mae";
            without one timm's default for that model. "timm:local-dir:FOLDER" reads a folder that timm has saved.
        mean, std: per channel, what the pixels that come were normalised with.
        device, dtype: where and in which precision the weights are held.
        pretrained: False for random weights.
        input_size: see `whole_patches`.

    Raises:
        ValueError: no such model or tag (with near matches), or one without weights.
        TypeError: a model that gives no map of features.
        WeightsUnavailable: the weights cannot be fetched or read.
        ImportError: timm is not installed.
    """
    if name == COLOUR:
        return ColourProxy(mean=mean, std=std, input_size=input_size)
    return TimmProxy.from_name(
        name.removeprefix(PREFIX),
        pretrained=pretrained,
        mean=mean,
        std=std,
        input_size=input_size,
        device=device,
        dtype=dtype,
    )


class TimmProxy(nn.Module):
    """The last layer's features of a timm model, after its final norm, without [CLS] and registers.

    The image is taken back from CLIP's normalisation, resized to whole patches (see `whole_patches`) and normalised
    as the model was trained. Vision transformers give a feature a patch (DINO and its successors, MAE; SAM's encoder
    after its neck); ResNet, ConvNeXt and other pyramids their last stage, 32 pixels a feature: coarse for this purpose.
    Always in eval mode, without gradients, in the model's own dtype.

    Args:
        model: from `timm.create_model`, made with `dynamic_img_size=True` where its class knows that.
        mean, std: per channel, what the pixels that come were normalised with.
        input_size: see `whole_patches`.

    Raises:
        TypeError: a model that gives no map of features, or none at other sizes than it was made for.
        ValueError: statistics or a size that do not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        input_size: InputSize | None = None,
    ) -> None:
        super().__init__()
        timm = import_timm()
        self.model = cast(Any, model.eval())  # nn.Module's attributes have no types.
        self.mean, self.std = check_statistics(mean, std)
        self.input_size = check_input_size(input_size)
        config = timm.data.resolve_model_data_config(model)
        self.own_mean, self.own_std = check_statistics(config["mean"], config["std"])
        self.patch = patch_of(model)
        self.check_maps()

    @classmethod
    def from_name(
        cls,
        name: str,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        pretrained: bool = True,
        input_size: InputSize | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        **arguments: Any,
    ) -> TimmProxy:
        """A model of timm by its name; `arguments` go to `timm.create_model`. Raises as `find_proxy`."""
        check_name(name, pretrained)
        try:
            model = create_model(name, pretrained=pretrained, **arguments)
        except TypeError:
            raise
        except Exception as error:
            if not pretrained and not name.startswith(PLACES):
                raise
            raise WeightsUnavailable(
                f"cannot load the weights of timm's {name!r} ({type(error).__name__}: {first_line(error)}); "
                "check the network, or fetch them where there is one and name their folder: 'timm:local-dir:FOLDER'"
            ) from error
        return cls(model.to(device, dtype), mean=mean, std=std, input_size=input_size)

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype, and the features'."""
        dtype: torch.dtype = next(self.model.parameters()).dtype
        return dtype

    def train(self, mode: bool = True) -> TimmProxy:
        """Stay in eval mode, whatever the module around it does."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) → (B, C, H_v, W_v), each feature a patch of the resized image."""
        colours = take_back(pixels, self.mean, self.std)
        colours = fit(colours, self.patch, self.input_size)
        normalised = (colours - column(self.own_mean, colours)) / column(self.own_std, colours)
        return self.last_map(normalised.to(self.dtype))

    def last_map(self, images: Tensor) -> Tensor:
        """What the model makes of images in its own normalisation."""
        maps = self.model.forward_intermediates(
            images, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        features: Tensor = maps[0]
        return features

    @torch.no_grad()
    def check_maps(self) -> None:
        """TypeError unless the model gives a feature a patch of an image of 2 × 3 patches."""
        weights = next(self.model.parameters())
        image = weights.new_zeros((1, 3, 2 * self.patch, 3 * self.patch))
        try:
            size = tuple(self.last_map(image).shape[2:])
        except Exception as error:
            raise TypeError(
                f"{type(self.model).__name__} gives no map of features of an image of {2 * self.patch} × "
                f"{3 * self.patch} pixels ({first_line(error)}): {ADVICE}"
            ) from error
        if size != (2, 3):
            raise TypeError(
                f"{type(self.model).__name__} gives {size} features where 2 × 3 patches are: {ADVICE}"
            )


ADVICE = (
    "use a model with patch features at any size, such as 'vit_base_patch8_224.dino'; "
    "if you made it yourself, make it with dynamic_img_size=True"
)


class ColourProxy(nn.Module):
    """A stand-in for a vision model, to try ProxyCLIP without a download: how often each cell has which colours.

    A feature is the histogram of a cell's colours: 12 levels a channel, each pixel counted by a Gaussian of its
    distance to the level (σ = one level). Cells of one colour or one mixture are alike, whatever they show: it tells
    sky from grass, and takes a red car for a red house. On 40 of the scenes in the box, one-hot classes under noise of
    σ = 1.5 were read rightly in 46 % of the cells as they were, in 91 % aggregated by these histograms, and in 87 % by
    the colours' means, deviations and gradients.

    Args:
        mean, std: per channel, what the pixels that come were normalised with.
        patch: side of a cell in pixels.
        input_size: see `whole_patches`.

    Raises:
        TypeError, ValueError: numbers that do not fit.
    """

    LEVELS = 12

    def __init__(
        self,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        patch: int = 8,
        input_size: InputSize | None = None,
    ) -> None:
        super().__init__()
        check_count("patch", patch, 1)
        self.mean, self.std = check_statistics(mean, std)
        self.patch = patch
        self.input_size = check_input_size(input_size)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) → (B, 36, H_v, W_v) in their dtype."""
        colours = fit(take_back(pixels, self.mean, self.std), self.patch, self.input_size)
        last = self.LEVELS - 1
        # A level at a time: 3 planes of the image are held, not 36.
        counts = [
            F.avg_pool2d(torch.exp(-0.5 * (colours * last - level).square()), self.patch)
            for level in range(self.LEVELS)
        ]
        return torch.cat(counts, dim=1).to(pixels.dtype)


def whole_patches(
    height: int, width: int, patch: int, input_size: InputSize | None = None
) -> tuple[int, int]:
    """The size at which a proxy sees an image of height × width pixels: (H, W), whole patches, at least one.

    Args:
        height, width: of the image.
        patch: side of the proxy's patches in pixels.
        input_size: None for the image's own size, so that a patch covers as many pixels as the model was made for; a
            short side, the ratio kept; or (H, W). Each side is rounded to the nearest number of patches.
    """
    if isinstance(input_size, int):
        scale = input_size / min(height, width)
        sides = (height * scale, width * scale)
    else:
        sides = (height, width) if input_size is None else input_size
    rows, columns = (max(1, int(side / patch + 0.5)) for side in sides)
    return rows * patch, columns * patch


def fit(images: Tensor, patch: int, input_size: InputSize | None) -> Tensor:
    """Images (B, 3, H, W) at the size of `whole_patches`, bilinearly; as they are where that is their size."""
    size = whole_patches(images.shape[2], images.shape[3], patch, input_size)
    if size == tuple(images.shape[2:]):
        return images
    return resize_planes(images, size)


def take_back(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Normalised pixels → colours in [0, 1], float32 or wider."""
    check_float("pixels", pixels, 4, "(B, 3, H, W)")
    if pixels.shape[1] != 3 or 0 in pixels.shape[2:]:
        raise ValueError(
            f"pixels must be (B, 3, H, W) of at least one pixel; got {tuple(pixels.shape)}"
        )
    wide = pixels.to(torch.promote_types(pixels.dtype, torch.float32))
    return wide * column(std, wide) + column(mean, wide)


def column(numbers: tuple[float, ...], like: Tensor) -> Tensor:
    """A number a channel, as (3, 1, 1)."""
    return torch.tensor(numbers, dtype=like.dtype, device=like.device).view(3, 1, 1)


def check_statistics(
    mean: Sequence[float], std: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Both as tuples; ValueError unless each has a number a channel and each deviation is above 0."""
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(
            f"mean and std must hold 3 numbers each, a channel's, and std be above 0; got {mean} and {std}"
        )
    return tuple(map(float, mean)), tuple(map(float, std))


def check_input_size(input_size: InputSize | None) -> InputSize | None:
    """The size itself; TypeError or ValueError unless it is None, a side, or (H, W), each of at least a pixel."""
    if input_size is None:
        return None
    if isinstance(input_size, tuple) and len(input_size) != 2:
        raise ValueError(f"input_size must be a short side or (H, W); got {input_size}")
    for side in input_size if isinstance(input_size, tuple) else (input_size,):
        check_count("input_size", side, 1)
    return input_size


def patch_of(model: nn.Module) -> int:
    """Pixels a feature along each side; TypeError for a model that does not say so."""
    info = getattr(model, "feature_info", None)
    if not info or not hasattr(model, "forward_intermediates"):
        raise TypeError(f"{type(model).__name__} gives no maps of its inner features: {ADVICE}")
    reduction: int = info[-1]["reduction"]
    return reduction


def import_timm() -> Any:
    """The package, or ImportError that says where it comes from."""
    try:
        import timm
        import timm.data
    except ImportError as error:
        raise ImportError(
            "a proxy of timm needs the package timm, which comes with open_clip_torch: pip install timm; "
            f"the proxy {COLOUR!r} needs none"
        ) from error
    return timm


def create_model(name: str, **arguments: Any) -> nn.Module:
    """`timm.create_model` without a classifier, for images of any size where the model has to be told."""
    timm = import_timm()
    model: nn.Module
    try:
        model = timm.create_model(name, num_classes=0, dynamic_img_size=True, **arguments)
    except TypeError as error:
        # SAM's encoder and convolutional networks take any size and do not know the word.
        if "dynamic_img_size" not in str(error):
            raise
        model = timm.create_model(name, num_classes=0, **arguments)
    return model


def check_name(name: str, pretrained: bool) -> None:
    """ValueError unless timm has a model of this name and tag, and weights for it where they are wanted."""
    timm = import_timm()
    if name.startswith(PLACES):
        return
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        models = timm.list_models()
        near = difflib.get_close_matches(architecture, models, n=4)
        near += [model for model in models if architecture in model][: 4 - len(near)]
        hint = f"near are {', '.join(map(repr, near))}" if near else "timm.list_models() has them"
        raise ValueError(
            f"unknown proxy {name!r}; use {COLOUR!r} or a model of timm: {hint}. "
            "A tag after a dot picks the weights, as in 'vit_base_patch8_224.dino'"
        )
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise ValueError(
            f"timm's model {architecture!r} has no tag {tag!r}, which picks its weights; "
            f"it has: {', '.join(tags) or 'none'}"
        )
    if pretrained and not tags:
        raise ValueError(
            f"timm has no weights for {architecture!r}; name a model that has, or take pretrained=False"
        )


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or ["no message"])[0][:200]
