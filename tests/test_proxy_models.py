"""Proxies: timm's families with random weights, at odd sizes and against the model fed by hand; colours; names."""

from __future__ import annotations

import functools
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from models_support import Payload
from timm.models import save_for_hf
from torch import Tensor, nn

from resclip.errors import WeightsUnavailable
from resclip.models.proxy_models import ColourProxy, Proxy, TimmProxy, find_proxy
from resclip_kernels.ops.proxy_attention import proxy_rows

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
STATISTICS = {"mean": MEAN, "std": STD}
# A model a family, cut down to what differs between them.
FAMILIES: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"depth": 2},  # DINO and MAE are of this class: [CLS].
    "vit_small_patch14_reg4_dinov2": {"depth": 2},  # Four registers, patches of 14.
    "vit_small_patch16_dinov3": {"depth": 2},  # Rotary embeddings; timm's Eva.
    "samvit_base_patch16": {
        "depth": 2,
        "embed_dim": 32,
        "num_heads": 2,
        "img_size": 256,
        "global_attn_indexes": (1,),  # The other block sees windows of 14 patches.
    },
    "resnet10t": {},  # The last stage: 32 pixels a feature.
}
CHANNELS = {"samvit_base_patch16": 256, "resnet10t": 512, "vit_tiny_patch16_224": 192}


@functools.cache
def proxy(name: str) -> TimmProxy:
    torch.manual_seed(0)
    made = TimmProxy.from_name(name, pretrained=False, **STATISTICS, **FAMILIES[name])
    for parameter in made.model.parameters():
        # Fresh biases and positions are 0: features would not tell where they are.
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return made


def colours(seed: int, height: int, width: int, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def normalised(images: Tensor, mean: Any = MEAN, std: Any = STD) -> Tensor:
    columns = [torch.tensor(numbers).view(3, 1, 1) for numbers in (mean, std)]
    return (images - columns[0]) / columns[1]


# One patch where attention has windows or positions of its own.
@pytest.mark.parametrize(
    ("name", "patches"),
    [
        *((name, (3, 5)) for name in FAMILIES),
        ("vit_small_patch16_dinov3", (1, 1)),
        ("samvit_base_patch16", (1, 1)),
    ],
)
def test_features_are_the_models_own(seed: int, name: str, patches: tuple[int, int]) -> None:
    made = proxy(name)
    images = colours(seed, *(made.patch * count for count in patches))
    features = made(normalised(images))
    assert features.shape == (2, CHANNELS.get(name, 384), *patches)
    model = made.model
    with torch.no_grad():
        tokens = model.forward_features(
            normalised(images, model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
        )
    if tokens.ndim == 3:
        tokens = tokens[:, model.num_prefix_tokens :].mT.unflatten(2, patches)
    torch.testing.assert_close(features, tokens, rtol=1e-4, atol=1e-4)
    assert not features.requires_grad


# The image is resized before any model sees it: one with tokens, one with maps.
@pytest.mark.parametrize("name", ("vit_small_patch14_reg4_dinov2", "resnet10t"))
def test_odd_sizes_become_whole_patches(seed: int, name: str) -> None:
    made = proxy(name)
    patch = made.patch
    images = colours(seed, 2 * patch + patch // 2, 3 * patch - 1, batch=1)
    features = made(normalised(images))
    assert features.shape[2:] == (3, 3)
    resized = F.interpolate(images, size=(3 * patch, 3 * patch), mode="bilinear")
    torch.testing.assert_close(features, made(normalised(resized)), rtol=1e-3, atol=1e-4)


def test_the_models_own_statistics_are_used(seed: int) -> None:
    # The plain ViT was trained with 0.5 and 0.5, DINOv2 with ImageNet's mean: neither with CLIP's.
    assert proxy("vit_tiny_patch16_224").own_mean == (0.5, 0.5, 0.5)
    assert proxy("vit_small_patch14_reg4_dinov2").own_std == (0.229, 0.224, 0.225)
    given: list[Tensor] = []
    made = proxy("vit_tiny_patch16_224")
    handle = made.model.patch_embed.register_forward_pre_hook(lambda _, x: given.append(x[0]))
    images = colours(seed, 32, 16)
    made(normalised(images))
    handle.remove()
    torch.testing.assert_close(given[0], 2 * images - 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("image", "input_size", "grid"),
    [
        pytest.param((224, 300), None, (16, 21), id="nearest-patch-below"),
        pytest.param((231, 7), None, (17, 1), id="halves-up"),
        pytest.param((3, 500), None, (1, 36), id="at-least-one"),
        pytest.param((300, 100), 28, (6, 2), id="short-side"),
        pytest.param((100, 200), (30, 20), (2, 1), id="both-sides"),
    ],
)
def test_whole_patches(
    seed: int, image: tuple[int, int], input_size: Any, grid: tuple[int, int]
) -> None:
    pixels = normalised(colours(seed, *image, batch=1))
    made = ColourProxy(**STATISTICS, patch=14, input_size=input_size)
    assert made(pixels).shape[2:] == grid
    timms = TimmProxy(proxy("vit_small_patch14_reg4_dinov2").model, **STATISTICS, input_size=28)
    assert min(timms(pixels).shape[2:]) == 2


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float64), ids=str)
def test_the_models_dtype_is_the_features(seed: int, dtype: torch.dtype) -> None:
    name = "timm:vit_tiny_patch16_224"
    made = find_proxy(name, pretrained=False, dtype=dtype, **STATISTICS, device="cpu")
    # Half-precision pixels lose nothing more on their way: they are widened before they are shifted.
    for pixels in (normalised(colours(seed, 32, 32)), normalised(colours(seed, 32, 32)).half()):
        assert made(pixels).dtype is dtype


def test_a_proxy_stays_in_eval_mode() -> None:
    made = proxy("resnet10t")
    around = nn.ModuleList([made]).train()
    assert around.training
    assert not any(module.training for module in made.modules())


def test_a_model_that_was_made_by_hand(seed: int) -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1, dynamic_img_size=True)
    made: Proxy = TimmProxy(model, **STATISTICS)
    assert made(normalised(colours(seed, 48, 32))).shape == (2, 192, 3, 2)
    strict = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1)
    with pytest.raises(TypeError, match="32 × 48.*dynamic_img_size=True"):
        TimmProxy(strict, **STATISTICS)


def test_models_without_maps_are_refused() -> None:
    with pytest.raises(TypeError, match="Linear gives no maps"):
        TimmProxy(nn.Linear(3, 3), **STATISTICS)
    # An MLP over the positions is made for one number of them.
    with pytest.raises(TypeError, match="MlpMixer gives no .*Input height.*vit_base_patch8"):
        TimmProxy.from_name("mixer_s32_224", pretrained=False, **STATISTICS)


def test_a_folder_that_timm_saved(seed: int, tmp_path: Any) -> None:
    made = proxy("vit_tiny_patch16_224")
    save_for_hf(made.model, tmp_path, model_args={"depth": 2})
    found = find_proxy(f"timm:local-dir:{tmp_path}", **STATISTICS)
    pixels = normalised(colours(seed, 32, 48))
    torch.testing.assert_close(found(pixels), made(pixels), rtol=1e-5, atol=1e-5)
    with pytest.raises(WeightsUnavailable, match="local-dir:.*nowhere"):
        find_proxy(f"local-dir:{tmp_path / 'nowhere'}", **STATISTICS)


def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **arguments: Any) -> nn.Module:
        assert arguments["pretrained"]
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(timm, "create_model", offline)
    message = "'vit_base_patch8_224.dino' .ConnectionError: no route to host.;.*FOLDER"
    with pytest.raises(WeightsUnavailable, match=message):
        find_proxy("vit_base_patch8_224.dino", **STATISTICS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:vit_base_patch16_dino3", "'vit_base_.*_dino3'.*'colour'.*'vit_base_.*_dinov3'"),
        ("qqqqqqqq", r"'qqqqqqqq'.*timm.list_models\(\)"),
        ("vit_base_patch8_224.dinov9", "'dinov9'.*it has: .*dino"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_proxy(name, **STATISTICS)


def test_a_model_without_weights_is_refused_where_they_are_wanted() -> None:
    models = timm.list_models()
    bare = next(name for name in models if not timm.list_pretrained(f"{name}.*"))
    with pytest.raises(ValueError, match="no weights for .*pretrained=False"):
        find_proxy(bare, **STATISTICS)


def test_colours_by_hand() -> None:
    # Two cells: one black, one half white half black; levels 0 and 11 of 12 are black and white.
    images = torch.zeros(1, 3, 8, 16)
    images[..., :4, 8:] = 1.0
    features = find_proxy("colour", **STATISTICS)(normalised(images))
    assert features.shape == (1, 36, 1, 2)
    levels = features[0, :, 0].view(12, 3, 2)
    torch.testing.assert_close(levels[0], torch.tensor([1.0, 0.5]).expand(3, 2))
    torch.testing.assert_close(levels[11], torch.tensor([0.0, 0.5]).expand(3, 2))
    torch.testing.assert_close(levels[1, 0, 0], torch.tensor(-0.5).exp())


def test_colours_tell_regions_apart(seed: int) -> None:
    # Left of column 24 reddish noise, right of it bluish: a row of the map stays on its side.
    images = 0.2 * colours(seed, 32, 48)
    images[:, 0, :, :24] += 0.6
    images[:, 2, :, 24:] += 0.6
    features = find_proxy("colour", **STATISTICS)(normalised(images))
    rows = proxy_rows(features, torch.tensor([0, 5])).unflatten(2, (4, 6))
    torch.testing.assert_close(rows[:, 0, :, :3].sum(dim=(1, 2)), torch.ones(2))
    torch.testing.assert_close(rows[:, 1, :, 3:].sum(dim=(1, 2)), torch.ones(2))
    assert (rows[:, 0, :, :3] > 0).all()


def test_colours_of_odd_sizes_dtypes_and_batches(seed: int) -> None:
    made = ColourProxy(**STATISTICS)
    pixels = normalised(colours(seed, 20, 35))
    features = made(pixels)
    assert features.shape == (2, 36, 3, 4)
    assert torch.equal(made(pixels[1:]), features[1:])
    assert made(pixels.double()).dtype is torch.float64
    half = made(pixels.half())
    assert half.dtype is torch.float16
    torch.testing.assert_close(half.float(), features, rtol=0.02, atol=5e-3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ColourProxy(mean=(0.5,), std=STD), ValueError, "3 numbers each"),
        (lambda: ColourProxy(mean=MEAN, std=(1, 1, 0)), ValueError, "above 0"),
        (lambda: ColourProxy(**STATISTICS, patch=0), ValueError, "patch must be at least 1"),
        (lambda: ColourProxy(**STATISTICS, input_size=0), ValueError, "input_size.*at least 1"),
        (lambda: ColourProxy(**STATISTICS, input_size=(1, 2, 3)), ValueError, "short side or"),
        (lambda: ColourProxy(**STATISTICS, input_size=2.5), TypeError, "input_size.*integer"),
        (lambda: ColourProxy(**STATISTICS)(torch.rand(3, 8, 8)), ValueError, "4 dimensions"),
        (lambda: ColourProxy(**STATISTICS)(torch.rand(1, 1, 8, 8)), ValueError, "pixels must be"),
        (lambda: ColourProxy(**STATISTICS)(torch.ones(1, 3, 8, 8).int()), TypeError, "floating"),
    ],
)
def test_errors_say_what_was_expected(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_folder_with_a_pickle_of_code_is_refused(tmp_path: Path) -> None:
    """Before timm sees it, whose older versions would run it."""
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(), protocol=2))
    with pytest.raises(WeightsUnavailable, match=r"pickle of Python objects .*could run code"):
        find_proxy(f"timm:local-dir:{tmp_path}", **STATISTICS)
