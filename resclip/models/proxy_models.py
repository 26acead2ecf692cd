"""Vision models whose features make ProxyCLIP's attention: any of timm's, and one that needs no weights.

ProxyCLIP: Lan et al., ECCV 2024 (arXiv 2408.04883).
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resclip.errors import WeightsUnavailable, first_sentence, reason
from resclip.models.checkpoints import read_weights
from resclip_kernels import check_count, check_float, quoted, resize_planes

COLOUR = "colour"
PREFIX = "timm:"
# Prefixes of names by which timm loads a repository or a folder, not one of its own models.
FOLDER = "local-dir:"
SOURCES = ("hf-hub:", FOLDER)
InputSize = int | tuple[int, int]
"""What an image is resized to for a proxy, in pixels: its short side, or (height, width)."""
ADVICE = (
    "use a model with patch features at any size, such as 'vit_base_patch8_224.dino'; "
    "if you made it yourself, make it with dynamic_img_size=True"
)


class Proxy(Protocol):
    """What ProxyCLIP needs of a vision model: feature maps of a batch of images."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), normalised with CLIP's statistics → features (B, C, H_v, W_v), of any norm."""


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
    """The proxy called `name`, in eval mode.

    Args:
        name: "colour" for `ColourProxy`, "colour:16" for one with cells of 16 pixels in place of 8; or a model of timm,
            with or without "timm:" in front. A tag after a dot picks the weights: "vit_base_patch8_224.dino",
            "vit_base_patch14_dinov2.lvd142m" (DINOv2), "vit_base_patch16_dinov3.lvd1689m" (DINOv3),
            "samvit_base_patch16.sa1b" (SAM), "vit_base_patch16_224.mae"; without one timm's default for that model.
            "timm:local-dir:FOLDER" loads a folder that timm saved.
        mean, std: per channel, with which the proxy's input pixels are normalised.
        device, dtype: of the weights.
        pretrained: False for random weights.
        input_size: see `whole_patches`.

    Raises:
        ValueError: no such model or tag (with near matches), or one without weights.
        TypeError: a model that gives no map of features.
        WeightsUnavailable: the weights cannot be fetched or read.
    """
    colour, colon, cell = name.partition(":")
    if colour == COLOUR:
        if colon and not cell.isdecimal():
            raise ValueError(
                f"expected a cell's side in pixels, as in 'colour:16'; got {quoted(name)}"
            )
        patch = int(cell[:9]) if colon else ColourProxy.PATCH
        return ColourProxy(mean=mean, std=std, patch=patch, input_size=input_size)
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

    CLIP's normalisation is undone, the image resized to whole patches (see `whole_patches`) and normalised as the
    model was trained. Vision transformers (DINO and its successors, MAE, SAM's encoder after its neck) give one feature
    per patch; ResNet, ConvNeXt and other pyramids give their last stage, 32 pixels per feature, which is coarse for
    this purpose. The model stays in eval mode and in its own dtype.

    Args:
        model: from `timm.create_model`, made with `dynamic_img_size=True` if its class has that option.
        mean, std: per channel, with which the proxy's input pixels are normalised.
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
        import timm.data

        timm_data: Any = timm.data  # Untyped.
        self.model = cast(Any, model.eval())  # nn.Module's attributes have no types.
        self.mean, self.std = check_statistics(mean, std)
        self.input_size = check_input_size(input_size)
        config = timm_data.resolve_model_data_config(model)
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
        """A model of timm by its name, whose parameters require no gradient.

        `arguments` go to `timm.create_model`. Raises as `find_proxy`.
        """
        check_name(name, pretrained)
        if name.startswith(FOLDER):
            check_folder(Path(name.removeprefix(FOLDER)))
        try:
            model = create_model(name, pretrained=pretrained, **arguments)
        except TypeError:
            raise
        except Exception as error:
            if not pretrained and not name.startswith(SOURCES):
                raise
            raise WeightsUnavailable(
                f"cannot load the weights of timm's {name!r} ({first_sentence(error)}); "
                "check the network, or download them elsewhere and name their folder: 'timm:local-dir:FOLDER'"
            ) from error
        model = model.to(device, dtype).requires_grad_(False)
        return cls(model, mean=mean, std=std, input_size=input_size)

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype, and the features'."""
        dtype: torch.dtype = next(self.model.parameters()).dtype
        return dtype

    def train(self, mode: bool = True) -> TimmProxy:
        """Stay in eval mode, whatever the module around it does."""
        return super().train(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) → (B, C, H_v, W_v), one feature per patch of the resized image."""
        colours = undo_normalisation(pixels, self.mean, self.std)
        colours = fit(colours, self.patch, self.input_size)
        normalised = (colours - column(self.own_mean, colours)) / column(self.own_std, colours)
        return self.last_map(normalised.to(self.dtype))

    def last_map(self, images: Tensor) -> Tensor:
        """The last feature map of images in the model's own normalisation."""
        maps = self.model.forward_intermediates(
            images, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        features: Tensor = maps[0]
        return features

    @torch.no_grad()
    def check_maps(self) -> None:
        """TypeError unless the model gives one feature per patch of an image of 2 × 3 patches."""
        weights = next(self.model.parameters())
        image = weights.new_zeros((1, 3, 2 * self.patch, 3 * self.patch))
        try:
            size = tuple(self.last_map(image).shape[2:])
        except Exception as error:
            raise TypeError(
                f"{type(self.model).__name__} gives no feature map of an image of {2 * self.patch} × "
                f"{3 * self.patch} pixels ({first_sentence(error)}): {ADVICE}"
            ) from error
        if size != (2, 3):
            raise TypeError(
                f"{type(self.model).__name__} gives {size} features where 2 × 3 patches are: {ADVICE}"
            )


class ColourProxy(nn.Module):
    """Colour histograms in place of a vision model, to try ProxyCLIP without a download.

    A feature is the histogram of a cell's colours: 12 levels per channel, each pixel counted by a Gaussian of its
    distance to the level (σ = one level). Cells with the same mixture of colours are similar whatever they show: it
    tells sky from grass, and takes a red car for a red house. On 40 scenes of the built-in model, one-hot classes under
    noise of σ = 1.5 were right in 46 % of the cells by themselves, in 91 % averaged by the similarity of these
    histograms, and in 87 % by that of the colours' means, deviations and gradients.

    Args:
        mean, std: per channel, with which the proxy's input pixels are normalised.
        patch: side of a cell in pixels.
        input_size: see `whole_patches`.

    Raises:
        TypeError, ValueError: numbers that do not fit.
    """

    LEVELS = 12
    """Levels of the histogram per channel."""
    PATCH = 8
    """Side of a cell in pixels where none is named."""

    def __init__(
        self,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        patch: int = PATCH,
        input_size: InputSize | None = None,
    ) -> None:
        super().__init__()
        check_count("patch", patch, 1)
        self.mean, self.std = check_statistics(mean, std)
        self.patch = patch
        self.input_size = check_input_size(input_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) → (B, 36, H_v, W_v) in their dtype."""
        colours = fit(undo_normalisation(pixels, self.mean, self.std), self.patch, self.input_size)
        last = self.LEVELS - 1
        # One level at a time: 3 planes of the image are held, not 36.
        counts = [
            F.avg_pool2d(torch.exp(-0.5 * (colours * last - level).square()), self.patch)
            for level in range(self.LEVELS)
        ]
        return torch.cat(counts, dim=1).to(pixels.dtype)


def whole_patches(
    height: int, width: int, patch: int, input_size: InputSize | None = None
) -> tuple[int, int]:
    """(H, W) of an image as a proxy sees it, in pixels: whole patches, at least one each way.

    Args:
        height, width: of the image, in pixels.
        patch: side of the proxy's patches in pixels.
        input_size: None keeps the image's size, so that a patch covers as many pixels as the model was trained for; a
            number is the new short side, the ratio kept; or (H, W). Sides are rounded to the nearest whole patch.
    """
    if input_size is None and height % patch == 0 and width % patch == 0:
        return height, width
    if isinstance(input_size, int):
        scale = input_size / min(height, width)
        sides = (height * scale, width * scale)
    else:
        sides = (height, width) if input_size is None else input_size
    rows, columns = (max(1, int(side / patch + 0.5)) for side in sides)
    return rows * patch, columns * patch


def fit(images: Tensor, patch: int, input_size: InputSize | None) -> Tensor:
    """Images (B, 3, H, W) resized bilinearly to the size of `whole_patches`."""
    size = whole_patches(images.shape[2], images.shape[3], patch, input_size)
    if size == tuple(images.shape[2:]):
        return images
    return resize_planes(images, size)


def undo_normalisation(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Normalised pixels → colours in [0, 1], float32 or wider."""
    check_float("pixels", pixels, 4, "(B, 3, H, W)")
    if pixels.shape[1] != 3 or 0 in pixels.shape[2:]:
        raise ValueError(
            f"pixels must be (B, 3, H, W) of at least one pixel; got {tuple(pixels.shape)}"
        )
    wide = pixels.to(torch.promote_types(pixels.dtype, torch.float32))
    return wide * column(std, wide) + column(mean, wide)


def column(numbers: tuple[float, ...], like: Tensor) -> Tensor:
    """One number per channel, as (3, 1, 1)."""
    return torch.tensor(numbers, dtype=like.dtype, device=like.device).view(3, 1, 1)


def check_statistics(
    mean: Sequence[float], std: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Both as tuples; ValueError unless each has one number per channel and each deviation is above 0."""
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(
            f"mean and std must hold 3 numbers each, one per channel, and those of std be above 0; got {mean} and {std}"
        )
    return tuple(map(float, mean)), tuple(map(float, std))


def check_input_size(input_size: InputSize | None) -> InputSize | None:
    """`input_size` itself; TypeError or ValueError unless it is None, or sides of at least one pixel."""
    if input_size is None:
        return None
    if isinstance(input_size, tuple) and len(input_size) != 2:
        raise ValueError(f"input_size must be a short side or (H, W); got {input_size}")
    for side in input_size if isinstance(input_size, tuple) else (input_size,):
        check_count("input_size", side, 1)
    return input_size


def patch_of(model: nn.Module) -> int:
    """Side in pixels of the patch behind a feature; TypeError for a model that does not state it."""
    info = getattr(model, "feature_info", None)
    if not info or not hasattr(model, "forward_intermediates"):
        raise TypeError(f"{type(model).__name__} gives no maps of its features: {ADVICE}")
    reduction: int = info[-1]["reduction"]
    return reduction


def create_model(name: str, **arguments: Any) -> nn.Module:
    """`timm.create_model` without a classifier, for images of any size."""
    import timm

    model: nn.Module
    try:
        model = timm.create_model(name, num_classes=0, dynamic_img_size=True, **arguments)
    except TypeError as error:
        # SAM's encoder and convolutional networks take any size anyway and have no such option.
        if "dynamic_img_size" not in str(error):
            raise
        model = timm.create_model(name, num_classes=0, **arguments)
    return model


def check_folder(folder: Path) -> None:
    """WeightsUnavailable for a folder with a pickle of more than tensors, whose code older versions of timm run."""
    for file in sorted(folder.glob("*")):
        if file.suffix in (".bin", ".pt", ".pth", ".ckpt", ".tar"):
            try:
                read_weights(file)
            except (ValueError, OSError) as error:
                raise WeightsUnavailable(f"cannot load {str(file)!r}: {reason(error)}") from error


def check_name(name: str, pretrained: bool) -> None:
    """ValueError unless timm has a model of this name and tag, and weights for it if `pretrained`."""
    import timm

    if name.startswith(SOURCES):
        return
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        models = timm.list_models()
        near = difflib.get_close_matches(architecture, models, n=4)
        near += [model for model in models if architecture in model][: 4 - len(near)]
        hint = "timm.list_models() lists them"
        if near:
            hint = f"similar names are {', '.join(map(repr, near))}"
        raise ValueError(
            f"unknown proxy {name!r}; use {COLOUR!r} or a timm model: {hint}. "
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
            f"timm has no weights for {architecture!r}; name a model that has some, or pass pretrained=False"
        )
