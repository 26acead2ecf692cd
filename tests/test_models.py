"""Towers of every family, step by step, against the models' own forward pass; and what cannot be taken apart.

All in float64 with random weights, so that the two differ by rounding alone: the bound is 1e-10 of the largest value.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import open_clip
import pytest
import timm
import torch
from models_support import (
    OPEN_CLIP,
    TIMM,
    attend,
    open_clip_model,
    run_blocks,
    small_timm,
    timm_model,
    timm_visual,
    timm_with,
)
from open_clip.model import _build_vision_tower
from open_clip.timm_model import TimmModel
from timm.models.vision_transformer import ParallelScalingBlock
from torch import Tensor, nn

from resclip import SFR, DenseEncoder
from resclip.models import Tower, adapt, list_models
from resclip.models.tower import resize_position_embedding

KINDS = (*OPEN_CLIP, *TIMM)


def build(kind: str) -> nn.Module:
    return open_clip_model(**OPEN_CLIP[kind]) if kind in OPEN_CLIP else timm_model(kind)


# What does not depend on the variant is checked once per way of building tokens: [CLS] or none, learnt, rotary or
# resized positions, norms of queries and keys, each pool. Blocks, heads and grids are checked on all of them.
@pytest.fixture(params=("coca", "scaled", "EVA02", "SigLIP", "all norms"))
def typical_model(request: pytest.FixtureRequest, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build(request.param)


def assert_equal_but_rounding(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype == torch.float64
    assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()


def image(model: nn.Module, batch: int = 2) -> Tensor:
    """At the trained size."""
    tower = adapt(model)
    sides = [count * size for count, size in zip(tower.trained_grid, tower.patch_size, strict=True)]
    return torch.randn(batch, 3, *sides, dtype=torch.float64)


def own_tokens(visual: Any, pixels: Tensor) -> Tensor:
    """What the model's own blocks make of an image, before any norm (open_clip) or after timm's."""
    if isinstance(visual, TimmModel):
        return visual.trunk.forward_features(pixels)
    return visual.transformer(visual._embeds(pixels))


def own_pool(visual: Any, tokens: Tensor) -> Tensor:
    """The model's pooled embedding of an image whose tokens are these."""
    if isinstance(visual, TimmModel):
        return visual.head(visual.trunk.forward_head(visual.trunk.norm(tokens)))
    return visual._pool(tokens)[0] @ visual.proj


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_and_head_are_the_models_own_on_any_grid(kind: str, seed: int) -> None:
    """Oblong, one patch, and back to the trained one: nothing of the grid before is left.

    An image all of whose tokens are one and the same pools to that token alone, whatever the pool.
    """
    torch.manual_seed(seed)
    model = build(kind)
    tower = adapt(model)
    tower.check_host()
    for grid in ((5, 2), (1, 1), tower.trained_grid):
        pixels = torch.randn(2, 3, 16 * grid[0], 16 * grid[1], dtype=torch.float64)
        trained = grid == tower.trained_grid
        visual: Any = model.visual if trained else made_for(model.visual, tower, grid)
        tokens = run_blocks(tower, pixels)
        own = visual.trunk.norm(tokens) if isinstance(visual, TimmModel) else tokens
        assert_equal_but_rounding(own, own_tokens(visual, pixels))
    features = tower.head(tokens)
    assert features.shape == (*tokens.shape[:2], tower.output_dim)
    repeated = tokens.flatten(0, 1)[:, None].expand(-1, 2, -1)
    assert_equal_but_rounding(features.flatten(0, 1), own_pool(model.visual, repeated))


# Each kind of [CLS] tokens and each order of mean and norm; "plain" with OpenAI's activation.
@torch.no_grad()
@pytest.mark.parametrize(
    "kind", ("plain", "scaled", "EVA02", "all norms", "average pool", "clipa", "average")
)
def test_the_head_gives_the_models_image_embedding(kind: str, seed: int) -> None:
    """At [CLS], or as the mean of the patches."""
    torch.manual_seed(seed)
    model = open_clip_model(quick_gelu=True) if kind == "plain" else build(kind)
    pixels = image(model)
    tower = adapt(model)
    tokens = run_blocks(tower, pixels)
    if kind not in ("average pool", "clipa", "average"):
        pooled = tower.head(tokens)[:, 0]
    else:
        patches = tokens[:, int(tower.has_cls) :]
        if kind == "clipa":  # It norms after the mean.
            patches = patches.mean(1, keepdim=True)
        pooled = tower.head(patches).mean(1)
    assert_equal_but_rounding(pooled, model.encode_image(pixels))


def made_for(visual: nn.Module, tower: Tower, grid: tuple[int, int]) -> nn.Module:
    """A copy with the position embedding resized by our rule, and timm's own rotary table for the grid."""
    visual = copy.deepcopy(visual)
    if not isinstance(visual, TimmModel):
        resized = resize_position_embedding(visual.positional_embedding, tower.trained_grid, grid)
        visual.positional_embedding = nn.Parameter(resized)
        return visual
    trunk = visual.trunk
    cls = trunk.cls_token is not None and not trunk.no_embed_class
    resized = resize_position_embedding(trunk.pos_embed[0], tower.trained_grid, grid, has_cls=cls)
    trunk.set_input_size(img_size=(16 * grid[0], 16 * grid[1]))
    trunk.pos_embed = nn.Parameter(resized[None])
    return visual


@torch.no_grad()
def test_shapes_and_what_a_tower_says_of_itself(typical_model: nn.Module) -> None:
    tower = adapt(typical_model)
    pixels = image(typical_model)
    height, width = pixels.shape[2:]
    assert (tower.depth, len(tower.blocks)) == (2, 2)
    assert tower.grid(height, width) == tower.trained_grid
    assert tower.grid(height + 15, width + 15) == tower.trained_grid
    assert (tower.dtype, tower.device.type) == (torch.float64, "cpu")
    length = height // 16 * (width // 16) + int(tower.has_cls)
    tokens = tower.embed(pixels)
    assert tokens.shape == (2, length, tower.width)
    block = tower.blocks[0]
    query, key, value = tower.project_qkv(block, tower.norm(block, tokens), tower.trained_grid)
    assert query.shape == key.shape == value.shape == (2, 2, length, tower.width // 2)
    heads = attend(query, key, value)
    some = tower.project_out(block, heads[:, :, 3:5])
    assert_equal_but_rounding(some, tower.project_out(block, heads)[:, 3:5])
    assert not typical_model.training
    # What remains past the last patch is not seen.
    wider = torch.cat([pixels, torch.full_like(pixels[..., :15], torch.nan)], dim=3)
    assert torch.equal(tower.embed(wider), tokens)


@torch.no_grad()
@pytest.mark.parametrize("kind", ("plain", "EVA02", "SigLIP"))
def test_low_precision_and_another_device(kind: str, seed: int) -> None:
    """After a run at another grid, whose rotary table must not be met again."""
    torch.manual_seed(seed)
    model = build(kind)
    tower = adapt(model)
    pixels = torch.randn(1, 3, 32, 80, dtype=torch.float64)
    exact = tower.head(run_blocks(tower, pixels))
    model.to(torch.bfloat16)
    rough = tower.head(run_blocks(tower, pixels.bfloat16()))
    assert rough.dtype is torch.bfloat16
    assert (rough.double() - exact).norm() <= 0.05 * exact.norm()  # Eight bits, through two blocks.
    tower.to("meta")
    assert tower.device.type == "meta"
    assert run_blocks(tower, pixels.bfloat16().to("meta")).shape[:2] == exact.shape[:2]


def test_only_siglip_like_towers_lack_cls() -> None:
    without = {kind for kind in KINDS if not adapt(build(kind)).has_cls}
    siglip = {"SigLIP", "SigLIP2 giant", "PE-Core giant"}
    assert without == siglip | {"average", "average, normed after"}


def test_a_position_embedding_at_its_own_grid_is_untouched() -> None:
    embedding = torch.randn(1 + 9, 4)
    assert resize_position_embedding(embedding, (3, 3), (3, 3)) is embedding
    resized = resize_position_embedding(embedding, (3, 3), (5, 2))
    assert resized.shape == (11, 4)
    assert torch.equal(resized[0], embedding[0])
    bare = resize_position_embedding(embedding[1:], (3, 3), (5, 2), has_cls=False)
    assert torch.equal(bare, resized[1:])
    half = resize_position_embedding(embedding.bfloat16(), (3, 3), (5, 2))
    assert half.dtype is torch.bfloat16


def test_models_towers_and_adapted_towers_are_accepted() -> None:
    for kind in ("plain", "SigLIP"):
        model = build(kind)
        tower = adapt(model)
        assert isinstance(tower, Tower)
        assert tower.visual is model.visual
        assert adapt(model.visual).visual is model.visual
        assert adapt(tower) is tower


# A tower of open_clip's own, one of timm's, one that is nearly a vision transformer, and one that ends in one.
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("RN50", "ModifiedResNet"),
        ("convnext_tiny", "ConvNeXt"),
        ("vit_relpos_medium_patch16_cls_224", "VisionTransformerRelPos"),
        ("MobileCLIP-B", "a hybrid"),
    ],
)
def test_towers_that_are_no_vision_transformers_are_refused(name: str, reason: str) -> None:
    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        visual = _build_vision_tower(config["embed_dim"], config["vision_cfg"])
    refused(visual, reason)
    assert name not in dict(list_models())


def refused(visual: Any, reason: str) -> None:
    with pytest.raises(TypeError, match=reason) as caught:
        adapt(visual)
    for name in ("ViT-B-16", "ViT-L-14", "ViT-B-16-SigLIP2", "EVA02-B-16"):
        assert repr(name) in str(caught.value)


VIT = "vit_base_patch16_224"


@pytest.mark.parametrize(
    ("name", "pool", "arguments", "reason"),
    [
        ("eva02_enormous_patch14_clip_224", "token", {}, "EvaBlockPostNorm"),
        (VIT, "token", {"block_fn": ParallelScalingBlock}, "timm's ParallelScalingBlock"),
        (VIT, "token", {"attn_layer": "diff"}, "attention is timm's DiffAttention"),
        (VIT, "prr", {}, "no single patch"),
        (VIT, "token", {"reg_tokens": 2}, "register tokens"),
        (VIT, "token", {"pos_embed": "none"}, "no position embedding"),
        (
            "eva02_base_patch16_clip_224",
            "token",
            {"attn_type": "rope", "num_kv_heads": 1},
            "shares keys",
        ),
        ("eva02_base_patch16_clip_224", "token", {"rope_type": "mixed"}, "RotaryEmbeddingMixed"),
        ("eva02_base_patch16_clip_224", "token", {"rope_rotate_half": True}, "is not EVA's"),
    ],
)
def test_timm_variants_that_cannot_be_taken_apart_are_refused(
    name: str, pool: str, arguments: dict[str, Any], reason: str
) -> None:
    refused(timm_visual(name, pool, **arguments), reason)


def test_models_that_were_changed_are_refused() -> None:
    gated = timm_visual(VIT)
    gated.trunk.blocks[1].attn.gate = nn.Linear(32, 32)
    refused(gated, "has gates")
    pruned = open_clip_model()
    pruned.visual.proj = None
    refused(pruned, "output projection")
    other = open_clip_model()
    other.visual.transformer.resblocks[1] = nn.Identity()
    refused(other, "Identity")


@pytest.mark.parametrize(
    ("vision", "reason"),
    [
        ({"scaled_cosine_attn": True}, "cosines"),
        ({"attentional_pool": "cascade", "attn_pooler_heads": 2}, "two attention pools"),
    ],
)
def test_open_clip_variants_that_cannot_be_taken_apart_are_refused(
    vision: dict[str, Any], reason: str
) -> None:
    refused(open_clip_model(**vision), reason)


def test_what_is_no_model_of_images_and_text_is_refused() -> None:
    for something, named in (
        (nn.Linear(2, 2), "Linear of torch"),
        ("ViT-B-16", "str"),
    ):
        refused(something, f"expected a CLIP model of open_clip.* got {named}")


def test_a_timm_model_without_an_output_layer_has_features_and_no_text() -> None:
    with small_timm():
        tower = adapt(timm.create_model(VIT, num_classes=0))
    assert DenseEncoder(tower, "naclip")(torch.randn(1, 3, 48, 64)).patches.shape == (1, 3, 4, 32)
    with pytest.raises(ValueError, match="SFR segments by text, and this timm model has no output"):
        DenseEncoder(tower, sfr=SFR())
    with (
        small_timm()
    ):  # What SigLIP's pool gives lies in its text's space, without an output layer.
        tower = adapt(timm.create_model("vit_base_patch16_siglip_224", num_classes=0))
    DenseEncoder(tower, sfr=SFR())(torch.randn(1, 3, 48, 64), torch.eye(32)[:3])


def test_every_listed_name_is_adapted() -> None:
    """All of them, with two blocks each and without memory."""
    models = dict(list_models())
    assert len(models) > 80
    configs = {name: open_clip.get_model_config(name) for name in models}
    different = {  # Many names differ in their text side alone.
        json.dumps({**config["vision_cfg"], "layers": 2, "timm_drop_path": None}): config
        for config in configs.values()
    }
    for vision, config in different.items():
        with torch.device("meta"), timm_with(depth=2):
            tower = adapt(_build_vision_tower(config["embed_dim"], json.loads(vision)))
        assert tower.output_dim == config["embed_dim"], vision
        tower.check_host()  # Nothing of it passes for changed.


@pytest.mark.parametrize(
    ("name", "depth", "heads", "width", "patch", "grid", "output_dim"),
    [
        ("ViT-L-14-336", 24, 16, 1024, 14, 24, 768),
        ("ViT-g-14", 40, 16, 1408, 14, 16, 1024),
        ("EVA02-B-16", 12, 12, 768, 16, 14, 512),
        ("ViT-B-16-SigLIP2-384", 12, 12, 768, 16, 24, 768),
    ],
)
def test_sizes_of_known_models(
    name: str, depth: int, heads: int, width: int, patch: int, grid: int, output_dim: int
) -> None:
    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        tower = adapt(_build_vision_tower(config["embed_dim"], config["vision_cfg"]))
        features = tower.head(tower.embed(torch.empty(1, 3, 2 * patch, 3 * patch)))
    assert (tower.depth, tower.heads, tower.width) == (depth, heads, width)
    assert tower.patch_size == (patch, patch)
    assert tower.trained_grid == (grid, grid)
    assert tower.output_dim == output_dim
    assert features.shape == (1, 6 + tower.has_cls, output_dim)
