"""Every number of recorded cases of GEM, CLIP Surgery, CLIPtrase and MaskCLIP, where they run anywhere."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden import FOLDER, arrays, tower
from kernel_support import kernel_device
from torch import Tensor, nn

from resclip import RCS, SFR, DenseEncoder
from resclip.encoder.feature_surgery import redundant_similarity
from resclip.encoder.similarity import similarity
from resclip.encoder.trace import self_correlation
from resclip.heat_maps import heat_maps, points
from resclip.methods.pieces import Pieces, SecondPath
from resclip.methods.steps import ClusterVote, KeySmoothing, PromptDenoising
from resclip.steps.cluster_vote import (
    cluster_map,
    cluster_vote,
    dbscan,
    local_correlation,
    times_cls,
)
from resclip.steps.prompt_denoising import denoise_prompts, smooth_by_keys
from resclip_kernels import resize_planes
from resclip_kernels.launch import watch

IMPLEMENTATIONS = ("torch", "reference")
BASES = {"gem": "gem", "clip_surgery": "clipsurgery", "cliptrase": "cliptrase"}
MODULE_CASES = ("gem_modules", "surgery_modules", "cliptrase_modules")


@functools.cache
def cases() -> dict[str, dict[str, Any]]:
    """Settings of every case by name."""
    listed = json.loads((FOLDER / "baselines" / "cases.json").read_text())["cases"]
    return {case["name"]: case for case in listed}


def names(prefix: str) -> list[str]:
    return [name for name in cases() if name.startswith(prefix)]


def recorded(name: str) -> dict[str, Tensor]:
    return arrays(f"baselines/{name}")


def encoder(name: str, implementation: str = "torch", **changes: Any) -> DenseEncoder:
    """A `DenseEncoder` with a case's settings."""
    case = cases()[name]
    settings: dict[str, Any] = {"base": BASES[case.get("base", case["method"])]}
    if settings["base"] == "gem":
        path = SecondPath(
            blocks=case["depth"] - 1,
            iterations=case["iterations"],
            inverse_temperature=case["inverse_temperature"],
        )
        settings["pieces"] = Pieces(path=path)
    if "rcs" in case:
        temperature, weight = case["rcs"]
        settings["rcs"] = RCS((6, 7, 8, 9), weight, temperature)
    if "sfr" in case:
        temperature, weight = case["sfr"]
        settings["sfr"] = SFR(weight, temperature, case["label_threshold"])
    settings |= {"implementation": implementation, **changes}
    return DenseEncoder(tower(), **settings)


def check(got: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """As a whole and at the worst element."""
    got = got.cpu()
    assert got.shape == expected.shape
    assert (got - expected).norm() / expected.norm() <= tolerance
    assert (got - expected).abs().max() / expected.abs().max() <= tolerance


def tokens_of(features: Any) -> Tensor:
    return torch.cat([features.cls[:, None], features.patches.flatten(1, 2)], dim=1)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", MODULE_CASES)
def test_modules(name: str, implementation: str) -> None:
    """RCS alone, then with SFR, whose labels come from the method's own logits."""
    case = recorded(name)
    image = case["image"][None]
    check(tokens_of(encoder(name, implementation, sfr=None)(image))[0], case["tokens_rcs"])
    features = encoder(name, implementation)(image, case["text"])
    assert torch.equal(features.feedback_labels[0], case["labels"])
    check(tokens_of(features)[0], case["tokens"])


@pytest.mark.parametrize("name", ("gem_batched", "surgery_wide", "cliptrase_background"))
def test_tokens_by_the_kernels(name: str) -> None:
    """Of one image each: interpreted, a block takes about a second."""
    case, device = recorded(name), kernel_device()
    image, tokens = case["image"], case["tokens"]
    image, tokens = (image[:1], tokens[:1]) if image.ndim == 4 else (image[None], tokens[None])
    with watch() as watcher:
        features = encoder(name, "triton").to(device)(image.to(device))
    assert "base_kernel" in watcher.names()
    check(tokens_of(features), tokens)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "name", [n for n in names("gem_") if n not in ("gem_modules", "gem_batched")]
)
def test_gem(name: str, implementation: str) -> None:
    case = recorded(name)
    dense = encoder(name, implementation)
    image, text = case["image"][None], case["text"]
    check(tokens_of(dense(image))[0], case["tokens"])
    check(heat_maps(dense, image, text, normalise=False)[0, :, ::4, ::4], case["raw"])
    check(heat_maps(dense, image, text)[0, :, ::4, ::4], case["heatmaps"])
    original = DenseEncoder(
        tower(), base="clip", position="antialias", implementation=implementation
    )
    check(tokens_of(original(image))[0], case["tokens_original"])
    check(heat_maps(original, image, text)[0, :, ::4, ::4], case["heatmaps_original"])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gem_with_different_texts_per_image(implementation: str) -> None:
    case = recorded("gem_batched")
    dense = encoder("gem_batched", implementation)
    texts = case["text"].split(cases()["gem_batched"]["texts_per_image"])
    check(tokens_of(dense(case["image"])), case["tokens"])
    raw = heat_maps(dense, case["image"], texts, normalise=False)
    maps = heat_maps(dense, case["image"], texts)
    for number in range(2):
        # The released program gives 100 times the cosines here, and the cosines for one image.
        check(100 * raw[number][:, ::4, ::4], case[f"raw_{number}"])
        check(maps[number][:, ::4, ::4], case[f"heatmaps_{number}"])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", [n for n in names("surgery_") if n != "surgery_modules"])
def test_clip_surgery(name: str, implementation: str) -> None:
    case = recorded(name)
    dense = encoder(name, implementation)
    image, text, redundant = case["image"][None], case["text"], case["redundant"]
    features = dense(image)
    check(tokens_of(features)[0], case["tokens"])
    plain = similarity(features.patches, text)
    surgery = dense.final.logits(features.patches, features.cls, text)
    single = redundant_similarity(features.patches, text, redundant)
    check(plain[0].flatten(1).mT, case["similarity_plain"][1:])
    check(surgery[0].flatten(1).mT, case["similarity"][1:])
    check(single[0].flatten(1).mT, case["similarity_redundant"][1:])
    if "heatmaps" not in case:  # The released program makes maps of squares alone.
        return
    size = tuple(cases()[name]["picture_size"])
    maps = heat_maps(dense, image, text, order="patches", size=size)
    check(maps[0, :, ::4, ::4], case["heatmaps"])
    maps = heat_maps(dense, image, text, order="patches", size=size, redundant=redundant)
    check(maps[0, :, ::4, ::4], case["heatmaps_redundant"])
    for number in range(2):
        prompts = points(surgery[0, number], size)
        assert torch.equal(prompts.coordinates, case[f"points_{number}"])
        assert torch.equal(prompts.labels, case[f"point_labels_{number}"].long())


def released_maskclip_tower() -> Any:
    """The recorded tower with LayerNorm's ε 1e-6 and GELU by erf.

    The released program builds its own vision transformer with these two whatever the checkpoint was trained with, so
    that its tokens can be met only by a tower that has them too.
    """
    visual = tower()
    for module in visual.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    for block in visual.transformer.resblocks:
        block.mlp.gelu = nn.GELU()
    return visual


def maskclip(implementation: str) -> DenseEncoder:
    return DenseEncoder(
        released_maskclip_tower(),
        base="maskclip",
        final_block="full_residual",
        position="bicubic",
        implementation=implementation,
    )


def test_maskclip_by_the_kernels() -> None:
    case, device = recorded("maskclip_padded"), kernel_device()
    image = F.pad(case["image"], (0, 8, 0, 10))[None]  # 150 × 200 pixels, to whole patches.
    patches = maskclip("triton").to(device)(image.to(device)).patches
    check(patches[0].flatten(0, 1), case["tokens"])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", names("maskclip_"))
def test_maskclip(name: str, implementation: str) -> None:
    """On a tower with the released program's own ε and GELU, see `released_maskclip_tower`."""
    settings, case = cases()[name], recorded(name)
    dense = maskclip(implementation)
    image = case["image"]
    # The released program fills the last patches with zeros after normalisation.
    image = F.pad(image, (0, -image.shape[2] % 16, 0, -image.shape[1] % 16))[None]
    features = dense(image)
    check(features.patches[0].flatten(0, 1), case["tokens"])
    inputs = dense.run_blocks(image)
    with torch.no_grad():
        keys = dense.final.patch_keys(inputs.tokens, inputs.grid)
    check(keys[0], case["keys"])
    logits = dense.final.logits(features.patches, features.cls, case["text"])
    check(logits[0], case["logits"])
    smoothing = KeySmoothing(settings["ks_threshold"])
    denoised = denoise_prompts(logits, PromptDenoising(settings["pd_threshold"]))
    assert (denoised == -100).all(dim=(2, 3)).sum() == settings["classes_dropped"]
    check(denoised[0], case["logits_pd"])
    check(smooth_by_keys(logits, keys, smoothing)[0], case["logits_ks"])
    check(smooth_by_keys(denoised, keys, smoothing)[0], case["logits_ks_pd"])


def last_but_one(dense: DenseEncoder, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of the block before the final one."""
    host, grid = dense.tower, dense.tower.grid(*image.shape[2:])
    seen = []
    tokens = host.embed(image, dense.position)
    for block in host.blocks[:-1]:
        heads = host.project_qkv(block, host.norm(block, tokens), grid)
        seen.append(heads)
        attended = F.scaled_dot_product_attention(*heads)
        tokens = host.feed_forward(block, tokens + host.project_out(block, attended))
    return seen[-1]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", [n for n in names("cliptrase_") if n != "cliptrase_modules"])
def test_cliptrase(name: str, implementation: str) -> None:
    settings, case = cases()[name], recorded(name)
    dense = encoder(name, implementation)
    image, text = case["image"][None], case["text"]
    grid, size = dense.tower.grid(*image.shape[2:]), tuple(image.shape[2:])
    features = dense(image)
    check(tokens_of(features)[0], case["tokens"])
    with torch.no_grad():
        correlation = self_correlation(*last_but_one(dense, image))
    check(correlation[0], case["correlation"])
    scale = settings["logit_scale"]
    logits = dense.final.logits(features.patches, features.cls, text)
    pixel_logits = resize_planes(scale * logits, size)
    check(pixel_logits[0, :, ::4, ::4], case["pixel_logits"])
    if settings["dataset"] == "VOC20":
        logits = times_cls(logits, features.cls, text, scale)
        pixel_logits = resize_planes(scale * logits, size)
    # Queries for the background come last, and all of them are one class.
    labels = pixel_logits.argmax(dim=1).clamp(
        max=len(text) - max(1, settings["background_queries"])
    )
    assert (labels[0] == case["before_vote"]).float().mean() >= 0.999
    local = local_correlation(correlation[0])
    clusters = dbscan(local, settings["eps"], settings["min_samples"])
    assert torch.equal(clusters, case["clusters"].long())
    regions = cluster_map(local, clusters, grid, size)
    assert (regions == case["cluster_map"]).float().mean() >= 0.999
    voted = cluster_vote(
        labels, correlation, grid, ClusterVote(settings["eps"], settings["min_samples"])
    )
    assert (voted[0] == case["prediction"]).float().mean() >= 0.999
