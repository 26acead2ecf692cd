"""The encoder: every base with and without each module, any size, batches, and its errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from golden import arrays, cases, encoder, tower
from kernel_support import kernel_device
from open_clip.transformer import VisionTransformer
from torch.nn.functional import normalize

from resclip import RCS, SFR, DenseEncoder
from resclip.methods.catalogue import BASES
from resclip_kernels.launch import watch

MODULES = {
    "none": (None, None),
    "rcs": (RCS(), None),
    "sfr": (None, SFR(refine_iterations=1)),
    "both": (RCS(), SFR(refine_iterations=1)),
}


def small_tower(**changes: Any) -> VisionTransformer:
    torch.manual_seed(0)
    settings = {
        "image_size": 64,
        "patch_size": 16,
        "width": 64,
        "layers": 4,
        "heads": 2,
        "mlp_ratio": 2.0,
        "output_dim": 32,
        **changes,
    }
    return VisionTransformer(**settings).eval()


def text(queries: int = 5, width: int = 32) -> torch.Tensor:
    return normalize(torch.randn(queries, width, generator=torch.Generator().manual_seed(1)), dim=1)


def kernel_encoder(base: str, rcs: RCS | None, sfr: SFR | None, **changes: Any) -> DenseEncoder:
    return DenseEncoder(small_tower(), base=base, rcs=rcs, sfr=sfr, **changes).to(kernel_device())


@pytest.mark.parametrize("base", ("naclip", "sclip", "clearclip", "maskclip"))
def test_kernels_give_the_same_features(base: str) -> None:
    sfr = None if base == "maskclip" else SFR(refine_iterations=1, label_threshold=0.0)
    pixels = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(2))
    pixels, queries = pixels.to(kernel_device()), text(3).to(kernel_device())
    expected = kernel_encoder(base, RCS(), sfr, implementation="torch")(pixels, queries)
    with watch() as watcher:
        features = kernel_encoder(base, RCS(), sfr, implementation="triton")(pixels, queries)
    # Two passes, and no kernel of ours for the plain attention of the blocks before.
    passes = 1 if sfr is None else 2
    assert watcher.names().count("residual_attention_kernel") == passes
    assert ("majority_kernel" in watcher.names()) == (sfr is not None)
    torch.testing.assert_close(features.patches, expected.patches, rtol=1e-3, atol=1e-4)
    if sfr is not None:
        assert torch.equal(features.feedback_labels, expected.feedback_labels)


@pytest.mark.parametrize(
    ("implementation", "size"),
    [
        pytest.param("torch", (64, 64), id="torch-trained-grid"),
        pytest.param("torch", (32, 48), id="torch-another-grid"),
        pytest.param("triton", (32, 48), id="triton"),
    ],
)
def test_a_compiled_encoder_is_one_graph(implementation: str, size: tuple[int, int]) -> None:
    encoder = kernel_encoder(
        "naclip", RCS(), SFR(refine_iterations=1), implementation=implementation
    )
    pixels = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(2))
    pixels, queries = pixels.to(kernel_device()), text().to(kernel_device())
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager", dynamic=False)
    torch._dynamo.reset()
    features, expected = compiled(pixels, queries), encoder(pixels, queries)
    assert torch.equal(features.feedback_labels, expected.feedback_labels)
    torch.testing.assert_close(features.patches, expected.patches, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("modules", MODULES)
@pytest.mark.parametrize("base", [name for name in BASES if name != "proxyclip"])
def test_every_base_with_every_module(base: str, modules: str) -> None:
    rcs, sfr = MODULES[modules]
    if base == "maskclip" and sfr is not None:
        with pytest.raises(ValueError, match="'maskclip' has none"):
            DenseEncoder(small_tower(), base=base, rcs=rcs, sfr=sfr)
        return
    pixels = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    results = [
        DenseEncoder(small_tower(), base=base, rcs=rcs, sfr=sfr, implementation=name)(
            pixels, text()
        )
        for name in ("torch", "reference")
    ]
    assert results[0].patches.shape == (2, 4, 6, 32)
    assert results[0].cls.shape == (2, 32)
    assert (results[0].feedback_labels is None) == (sfr is None)
    torch.testing.assert_close(results[0].patches, results[1].patches, rtol=1e-4, atol=1e-5)


def test_plain_clip_is_open_clips_own_forward() -> None:
    visual = small_tower()
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    cls = DenseEncoder(visual, base="clip")(pixels).cls
    torch.testing.assert_close(cls, visual(pixels), rtol=1e-4, atol=1e-5)


def test_the_tower_is_left_as_it_was() -> None:
    visual = small_tower()
    before = {name: value.clone() for name, value in visual.state_dict().items()}
    pixels = torch.randn(1, 3, 64, 64)
    expected = visual(pixels)
    DenseEncoder(visual, rcs=RCS(), sfr=SFR())(pixels, text())
    assert all(torch.equal(value, before[name]) for name, value in visual.state_dict().items())
    assert torch.equal(visual(pixels), expected)


@pytest.mark.parametrize("size", [(16, 16), (17, 100), (160, 48), (63, 65)])
def test_any_size_of_at_least_a_patch(size: tuple[int, int]) -> None:
    dense = DenseEncoder(small_tower(), rcs=RCS(), sfr=SFR())
    features = dense(torch.randn(1, 3, *size), text())
    assert features.patches.shape == (1, size[0] // 16, size[1] // 16, 32)
    assert torch.isfinite(features.patches).all()


def test_pixels_past_the_last_whole_patch_are_not_seen_by_the_tower() -> None:
    pixels = torch.randn(1, 3, 64, 70)
    dense = DenseEncoder(small_tower())
    assert torch.equal(dense(pixels).patches, dense(pixels[..., :64]).patches)


def test_a_batch_gives_what_single_images_give() -> None:
    recorded = arrays("naclip_resclip")
    dense = encoder(cases()["naclip_resclip"], "torch")
    image = recorded["image"]
    batch = torch.stack([image, image.flip(-1), -image, image.flip(-2)])
    together = dense(batch, recorded["text"])
    for number, single in enumerate(batch):
        alone = dense(single[None], recorded["text"])
        assert torch.equal(alone.feedback_labels[0], together.feedback_labels[number])
        error = (alone.patches[0] - together.patches[number]).norm() / alone.patches.norm()
        assert error < 1e-5
    permuted = dense(batch.flip(0), recorded["text"])
    assert torch.equal(permuted.feedback_labels.flip(0), together.feedback_labels)


def test_neutral_modules_change_nothing() -> None:
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    for name in ("torch", "reference"):
        plain = DenseEncoder(small_tower(), implementation=name)(pixels).patches
        rcs = RCS(weight=0.0, temperature=1.0)
        neutral = DenseEncoder(small_tower(), rcs=rcs, implementation=name)(pixels).patches
        assert torch.equal(plain, neutral)


def test_layer_scale_and_float64_and_other_activations() -> None:
    visual = small_tower(ls_init_value=0.1, act_layer=torch.nn.SiLU).double()
    pixels = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    cls = DenseEncoder(visual, base="clip")(pixels).cls
    torch.testing.assert_close(cls, visual(pixels))


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_low_precision_stays_near(dtype: torch.dtype) -> None:
    recorded = arrays("naclip_rcs")
    low = encoder(cases()["naclip_rcs"], "torch", dtype=dtype)(recorded["image"][None])
    assert low.patches.dtype is dtype
    got = low.patches[0].flatten(0, 1).float()
    error = (got - recorded["tokens"][1:]).norm() / recorded["tokens"][1:].norm()
    assert error < 30 * torch.finfo(dtype).eps


@pytest.mark.parametrize(
    ("depth", "layers"), [(12, (6, 7, 8, 9)), (24, tuple(range(12, 19))), (4, (2, 3)), (2, (1,))]
)
def test_default_layers_scale_with_depth(depth: int, layers: tuple[int, ...]) -> None:
    assert RCS().layers_of(depth) == layers


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base": "deeplab"}, "unknown base 'deeplab'; use one of: clip, maskclip"),
        ({"rcs": RCS(layers=(4,))}, "between 1 and 3 .block 4 is the final one.*got 4"),
        ({"rcs": RCS(layers=(0, 9))}, "got 0, 9"),
        ({"final_block": "half"}, "'attention_only', 'full_residual'.*got 'half'"),
        ({"implementation": "cuda"}, "got 'cuda'"),
    ],
)
def test_wrong_settings_name_the_valid_ones(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DenseEncoder(small_tower(), **arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RCS(layers=()), "at least one layer"),
        (lambda: RCS(weight=1.2), "RCS weight must lie between 0 and 1; got 1.2"),
        (lambda: RCS(temperature=0), "above 0; got 0"),
        (lambda: SFR(weight=-0.1), "SFR weight"),
        (lambda: SFR(label_threshold=math.nan), "label_threshold must lie between 0 and 1"),
        (lambda: SFR(connectivity="walk"), "'prefix', 'line', 'component', or None; got 'walk'"),
        (lambda: SFR(smoothing_std=-1), "at least 0"),
        (lambda: SFR(refine_iterations=-1), "at least 0"),
    ],
)
def test_wrong_options_say_what_is_valid(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("pixels", "words", "error", "message"),
    [
        (torch.zeros(3, 64, 64), None, ValueError, r"\(B, 3, H, W\) tensor; got \(3, 64, 64\)"),
        (torch.zeros(1, 3, 64, 64).byte(), None, TypeError, "normalised floats; got torch.uint8"),
        (torch.zeros(1, 3, 15, 64), None, ValueError, "smaller than one patch of 16 × 16"),
        (torch.zeros(1, 3, 64, 64), None, ValueError, "needs text"),
        (torch.zeros(1, 3, 64, 64), text(3, 40), ValueError, r"\(Q, 32\).*got \(3, 40\)"),
    ],
)
def test_wrong_inputs_say_what_was_expected(pixels, words, error, message: str) -> None:
    with pytest.raises(error, match=message):
        DenseEncoder(small_tower(), sfr=SFR())(pixels, words)


def test_other_models_are_refused_with_alternatives() -> None:
    with pytest.raises(TypeError, match="got Linear of torch: use a model with .* 'ViT-B-16'"):
        DenseEncoder(torch.nn.Linear(2, 2))


def test_the_recorded_tower_keeps_its_names() -> None:
    assert DenseEncoder(tower()).tower.trained_grid == (14, 14)
