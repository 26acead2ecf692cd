"""`ResidualBlock`: the host's own forward pass gives the method's tokens, and the host stays what it was."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from method_support import colours
from models_support import (
    EMBED,
    IMAGE,
    OPEN_CLIP,
    OpenAIVisual,
    hugging_face_model,
    open_clip_model,
    randomise,
    small_timm,
    timm_model,
)
from torch import Tensor, nn
from torch.nn.functional import normalize

from resclip import RCS, SFR, DenseEncoder, DenseFeatures, ResidualBlock
from resclip.methods.catalogue import BASES, METHODS, Method
from resclip.methods.correlation import Correlation
from resclip.models import Tower, adapt

SIZE = (48, 48)
SFR_TWICE = SFR(rounds=2, label_threshold=0.1, refine_iterations=2)


def bare_timm(name: str) -> nn.Module:
    with small_timm():
        return randomise(timm.create_model(name))


HOSTS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    "open_clip": (lambda: open_clip_model(layers=4), IMAGE),
    "open_clip, normed queries": (lambda: open_clip_model(layers=4, qk_norm=True), IMAGE),
    "open_clip's CoCa": (lambda: open_clip_model(layers=4, **OPEN_CLIP["coca"]), IMAGE),
    "open_clip's timm, SigLIP": (lambda: timm_model("SigLIP"), IMAGE),
    "open_clip's timm, EVA02": (lambda: timm_model("EVA02"), IMAGE),
    "OpenAI": (lambda: randomise(OpenAIVisual()), SIZE),
    "timm VisionTransformer": (lambda: bare_timm("vit_base_patch16_clip_224"), IMAGE),
    "timm Eva": (lambda: bare_timm("eva02_base_patch16_clip_224"), IMAGE),
    "CLIPModel": (lambda: hugging_face_model("CLIPModel"), SIZE),
    "CLIPVisionModelWithProjection": (
        lambda: hugging_face_model("CLIPVisionModelWithProjection"),
        SIZE,
    ),
    "CLIPVisionModel": (lambda: hugging_face_model("CLIPVisionModel"), SIZE),
    "SiglipModel": (lambda: hugging_face_model("SiglipModel"), SIZE),
    "SiglipVisionModel": (lambda: hugging_face_model("SiglipVisionModel"), SIZE),
}


def run(host: nn.Module, pixels: Tensor) -> Any:
    """The host's own forward pass of images."""
    if hasattr(host, "encode_image"):
        return host.encode_image(pixels)
    if hasattr(host, "get_image_features"):
        return host.get_image_features(pixel_values=pixels)
    return host(pixels)


def random_text(width: int) -> Tensor:
    return normalize(torch.randn(5, width, dtype=torch.float64), dim=1)


def place(block: ResidualBlock) -> Tower:
    """Put a block where it belongs, which is `visual.transformer.resblocks[-1]` in open_clip's own towers."""
    tower = block._method.tower
    tower.block_list[-1] = block
    return tower


def features(tower: Tower, block: ResidualBlock, pixels: Tensor, host: nn.Module) -> DenseFeatures:
    """What the block hands to the host in its forward pass, through the host's own head."""
    caught: list[Tensor] = []
    handle = block.register_forward_hook(lambda module, args, output: caught.append(output))
    run(host, pixels)
    handle.remove()
    tokens = tower.head(
        tower.block_input(caught[0] if isinstance(caught[0], Tensor) else caught[0][0])
    )
    first = int(tower.has_cls)
    return DenseFeatures(tokens[:, first:], tokens[:, 0] if first else None, None)


def encoder_of(host: nn.Module, method: Method, sfr: SFR | None) -> DenseEncoder:
    proxy = colours if method.base == "proxyclip" else None
    return DenseEncoder(host, method.base, method.rcs, sfr, proxy=proxy)


@pytest.mark.parametrize("name", HOSTS)
@torch.no_grad()
def test_tokens_of_every_method_equal_the_encoders(name: str) -> None:
    torch.manual_seed(0)
    make, size = HOSTS[name]
    host = make()
    tower = adapt(host)
    pixels = torch.randn(2, 3, *size, dtype=torch.float64)
    text = random_text(tower.output_dim)
    keys = list(host.state_dict())
    # All methods on open_clip's own tower; every fourth on each other, from another one on.
    first, step = (0, 1) if name == "open_clip" else (list(HOSTS).index(name) % 4, 4)
    for method in list(METHODS.values())[first::step]:
        sfr = method.sfr and SFR_TWICE
        if sfr is not None and tower.text_obstacle is not None:
            continue
        pieces = BASES[method.base].pieces
        if pieces.repairs or pieces.fusion or pieces.path:
            continue  # Not of the final block alone, which is told elsewhere.
        expected = encoder_of(host, method, sfr)(pixels, text)
        block = ResidualBlock.from_tower(
            host,
            method,
            None if sfr is None else text,
            sfr=sfr,
            proxy=colours if method.base == "proxyclip" else None,
        )
        place(block)
        assert list(host.state_dict()) == keys
        came = features(tower, block, pixels, host)
        block.undo()
        wanted = expected.patches.flatten(1, 2)
        assert came.patches.shape == wanted.shape, method.name
        assert (came.patches - wanted).norm() <= 1e-5 * wanted.norm(), method.name
        if expected.cls is not None:
            assert came.cls is not None
            assert (came.cls - expected.cls).norm() <= 1e-5 * expected.cls.norm(), method.name


@torch.no_grad()
def test_two_lines_are_the_method() -> None:
    """As the README has it, with open_clip's own way to get tokens."""
    torch.manual_seed(0)
    model: Any = open_clip_model(layers=4)
    visual, text = model.visual, random_text(EMBED)
    pixels = torch.randn(2, 3, *IMAGE, dtype=torch.float64)
    expected = DenseEncoder(visual, rcs=RCS(), sfr=SFR())(pixels, text)
    visual.output_tokens = True
    visual.transformer.resblocks[-1] = ResidualBlock.from_tower(visual, "resclip", text)
    pooled, tokens = visual(pixels)
    patches = (tokens @ visual.proj).unflatten(1, (3, 4))
    assert torch.allclose(patches, expected.patches, rtol=1e-9, atol=1e-12)
    assert torch.allclose(pooled, expected.cls, rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_patches_come_out_as_the_readme_says() -> None:
    """In each library by its own means; timm's never calls the model itself."""
    torch.manual_seed(0)
    clip: Any = hugging_face_model("CLIPModel")
    pixels = torch.randn(1, 3, *SIZE, dtype=torch.float64)
    expected = DenseEncoder(clip, rcs=RCS())(pixels).patches.flatten(1, 2)
    place(ResidualBlock.from_tower(clip, "naclip+rcs"))
    vision = clip.vision_model
    output = vision(pixel_values=pixels)
    tokens = clip.visual_projection(vision.post_layernorm(output.last_hidden_state))
    torch.testing.assert_close(tokens[:, 1:], expected)
    model: Any = bare_timm("vit_base_patch16_clip_224")
    pixels = torch.randn(1, 3, *IMAGE, dtype=torch.float64)
    text = random_text(1000)
    expected = DenseEncoder(model, rcs=RCS(), sfr=SFR_TWICE)(pixels, text).patches.flatten(1, 2)
    model.blocks[-1] = ResidualBlock.from_tower(model, "resclip", text, sfr=SFR_TWICE)
    tokens = model.head(model.fc_norm(model.forward_features(pixels)))
    torch.testing.assert_close(tokens[:, 1:], expected)


@pytest.mark.parametrize("asked_before", (False, True))
@torch.no_grad()
def test_the_host_finds_its_blocks_by_type(asked_before: bool) -> None:
    """transformers collects hidden states by hooks on layers of its own type, open_clip and timm look for theirs."""
    torch.manual_seed(0)
    host: Any = hugging_face_model("CLIPVisionModel")
    pixels = torch.randn(1, 3, *SIZE, dtype=torch.float64)
    if asked_before:
        host(pixel_values=pixels, output_hidden_states=True)
    kind = type(adapt(host).block_list[-1])
    block = ResidualBlock.from_tower(host, "naclip+rcs")
    place(block)
    assert isinstance(block, kind)
    output = host(pixel_values=pixels, output_hidden_states=True)
    assert len(output.hidden_states) == 5
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    with pytest.raises(ValueError, match="never holds an attention map"):
        host(pixel_values=pixels, output_attentions=True)
    host(pixel_values=pixels)


@torch.no_grad()
def test_the_words_may_change_between_calls() -> None:
    torch.manual_seed(0)
    host: Any = open_clip_model(layers=4)
    pixels = torch.randn(1, 3, *IMAGE, dtype=torch.float64)
    block = ResidualBlock.from_tower(host, "clip", sfr=SFR_TWICE)
    tower = place(block)
    for text in (random_text(EMBED), random_text(EMBED)):
        block.text = text
        came = features(tower, block, pixels, host).patches
        alone = copy.deepcopy(host)
        alone.visual.transformer.resblocks[-1].undo()
        wanted = DenseEncoder(alone, "clip", sfr=SFR_TWICE)(pixels, text).patches
        assert torch.allclose(came, wanted.flatten(1, 2), rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_compared_blocks_other_than_the_final_one() -> None:
    torch.manual_seed(0)
    host = open_clip_model(layers=4)
    pixels = torch.randn(2, 3, *IMAGE, dtype=torch.float64)
    for correlation in (Correlation("qq+kk", layer=2), Correlation("random", layer=3)):
        wanted = DenseEncoder(host, "sclip", RCS(), correlation=correlation)(pixels).patches
        block = ResidualBlock.from_tower(host, "sclip+rcs", correlation=correlation)
        came = features(place(block), block, pixels, host).patches
        block.undo()
        assert torch.allclose(came, wanted.flatten(1, 2), rtol=1e-9, atol=1e-12), correlation


def through(host: Any, pixels: Tensor) -> Tensor:
    """The tokens that an open_clip host puts out."""
    host.visual.output_tokens = True
    with torch.no_grad():
        tokens: Tensor = host.visual(pixels)[1]
    return tokens


def host_with_block(**arguments: Any) -> tuple[Any, ResidualBlock]:
    torch.manual_seed(0)
    host: Any = open_clip_model(layers=4).float()
    text = random_text(EMBED).float()
    block = ResidualBlock.from_tower(host, "resclip", text, **arguments)
    place(block)
    return host, block


def test_wrappers_are_seen_through(tmp_path: Path) -> None:
    host = open_clip_model(layers=4)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(host)
        for model in (nn.DataParallel(host), wrapped, torch.compile(host), torch.compile(wrapped)):
            block = ResidualBlock.from_tower(model, "naclip")
            assert place(block).visual is host.visual
            block.undo()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("index", (0, 1, 2))
def test_a_block_at_another_index_is_refused(index: int) -> None:
    host: Any = open_clip_model(layers=4).float()
    block = ResidualBlock.from_tower(host, "naclip+rcs")
    host.visual.transformer.resblocks[index] = block
    with pytest.raises(ValueError, match="must be the final block.*index -1"):
        through(host, torch.randn(1, 3, *IMAGE))


def test_what_an_earlier_pass_left_is_never_used() -> None:
    """A pass of the tower without the block, one that fails midway, and one through another of the model's ways."""
    torch.manual_seed(0)
    host, other = (open_clip_model(layers=4).float() for _ in range(2))
    first, second = torch.randn(1, 3, *IMAGE), torch.randn(1, 3, *IMAGE)
    block = ResidualBlock.from_tower(host, "resclip", random_text(EMBED).float())
    through(host, first)  # Not placed.
    assert block._runs.current() is None
    other.visual.transformer.resblocks[-1] = block
    with pytest.raises(ValueError, match="no pixels have come through"):
        through(other, first)
    place(block)
    expected = through(host, second)
    fails = host.visual.transformer.resblocks[2].register_forward_hook(lambda *call: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        through(host, first)
    fails.remove()
    with torch.no_grad():
        came = host.visual.forward_intermediates(second, output_fmt="NLC")["image_intermediates"]
    pooled = host.visual.ln_post(came[-1]) @ host.visual.proj
    assert torch.allclose(pooled, expected @ host.visual.proj, rtol=1e-4, atol=1e-5)


def test_from_tower_again_without_placing() -> None:
    host = open_clip_model(layers=4).float()
    pixels = torch.randn(1, 3, *IMAGE)
    before = through(host, pixels)
    for _ in range(3):
        block = ResidualBlock.from_tower(host, "naclip+rcs")
    with pytest.raises(TypeError, match="a ResidualBlock that was made from this tower"):
        DenseEncoder(host)
    block.undo()
    assert torch.equal(through(host, pixels), before)
    DenseEncoder(host)


def test_a_block_that_cannot_be_made_leaves_nothing_behind() -> None:
    host: Any = open_clip_model(layers=4).float()
    attention = host.visual.transformer.resblocks[2].attn
    attention.__class__ = type("Louder", (nn.MultiheadAttention,), {})
    with pytest.raises(
        TypeError, match=r"resblocks\.2\.attn \(Louder\) is of a type that is not known"
    ):
        ResidualBlock.from_tower(host, "naclip", rcs=RCS(layers=(1, 2, 3)))
    assert type(host.visual.transformer.resblocks[0].attn) is nn.MultiheadAttention
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in host.modules())


def test_what_became_of_the_block_outlives_it() -> None:
    host: Any = open_clip_model(layers=4).float()
    block = ResidualBlock.from_tower(host, "naclip+rcs")
    place(block)
    state = {name: 2 * value for name, value in host.state_dict().items()}
    host.train()
    host.load_state_dict(state, assign=True)
    host.eval()
    block.undo()
    assert all(torch.equal(value, state[name]) for name, value in host.state_dict().items())
    assert not any(module.training for module in host.modules())


def test_undo_leaves_the_host_as_it_was() -> None:
    host: Any = open_clip_model(layers=4).float()
    modules = dict(host.named_modules())
    pixels = torch.randn(1, 3, *IMAGE)
    before = through(host, pixels)
    block = ResidualBlock.from_tower(host, "resclip", random_text(EMBED))
    host.visual.transformer.resblocks[-1] = block
    assert not torch.equal(through(host, pixels), before)
    block.undo()
    block.undo()
    assert dict(host.named_modules()) == modules
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in host.modules())
    assert torch.equal(through(host, pixels), before)
    block.undo()


@pytest.mark.parametrize(
    "copied", (copy.deepcopy, lambda host: pickle.loads(pickle.dumps(host))), ids=("copy", "pickle")
)
def test_a_copy_stands_alone(copied: Callable[[nn.Module], Any]) -> None:
    host, block = host_with_block()
    pixels = torch.randn(1, 3, *IMAGE)
    expected = through(host, pixels)
    other = copied(host)
    assert torch.equal(through(other, pixels), expected)
    block.undo()
    assert torch.equal(through(other, pixels), expected)
    inner = other.visual.transformer.resblocks[-1]
    inner.undo()
    assert torch.equal(through(other, pixels), through(host, pixels))


def test_a_method_is_a_name_or_a_method() -> None:
    host, block = host_with_block()
    block.undo()
    with pytest.raises(TypeError, match="method must be a name such as 'resclip', or a Method"):
        ResidualBlock.from_tower(host, 5)  # type: ignore[arg-type]


def test_nothing_of_an_image_stays() -> None:
    host, block = host_with_block()
    through(host, torch.randn(1, 3, *IMAGE))
    assert block._runs.current() is None
    with pytest.raises(ValueError, match="no pixels have come through the tower"):
        block(torch.randn(1, 13, 32))


def test_threads_do_not_see_each_others_images() -> None:
    host, _ = host_with_block()
    images = [torch.randn(1, 3, *IMAGE) for _ in range(8)]
    expected = [through(host, image) for image in images]
    came: list[Tensor | None] = [None] * len(images)

    def work(number: int) -> None:
        for _ in range(5):
            came[number] = through(host, images[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(one, two) for one, two in zip(came, expected, strict=True))


def replica(module: nn.Module) -> nn.Module:
    """What `DataParallel` makes of a module for another device: shallow copies, with parameters of their own."""
    copies = {one: one._replicate_for_data_parallel() for one in module.modules()}
    for one, two in copies.items():
        for name, child in one._modules.items():
            setattr(two, name, None if child is None else copies[child])
        for name, parameter in one._parameters.items():
            setattr(two, name, None if parameter is None else 2 * parameter.detach())
        for name, buffer in one._buffers.items():
            setattr(two, name, buffer)
    return copies[module]


@pytest.mark.parametrize("name", ("open_clip", "OpenAI", "timm VisionTransformer", "CLIPModel"))
@torch.no_grad()
def test_a_replica_runs_by_its_own_parameters(name: str) -> None:
    """Parameters of a replica lie on another device; here they have other values instead."""
    torch.manual_seed(0)
    make, size = HOSTS[name]
    host = make()
    pixels = torch.randn(2, 3, *size, dtype=torch.float64)
    block = ResidualBlock.from_tower(nn.DataParallel(host), "naclip+rcs")
    place(block)
    other = replica(host)
    doubled = copy.deepcopy(host)
    for parameter in doubled.parameters():
        parameter.mul_(2)
    expected, came = run(doubled, pixels), run(other, pixels)
    if not isinstance(expected, Tensor):
        expected, came = expected.pooler_output, came.pooler_output
    assert torch.equal(came, expected)


@pytest.mark.parametrize(
    "method",
    (*(pytest.param(name, marks=pytest.mark.slow) for name in ("naclip", "sclip+rcs")), "resclip"),
)
def test_a_compiled_tower_is_one_graph(method: str) -> None:
    torch.manual_seed(0)
    host: Any = open_clip_model(layers=4).float()
    text = random_text(EMBED).float() if method == "resclip" else None
    host.visual.transformer.resblocks[-1] = ResidualBlock.from_tower(host, method, text)
    pixels = torch.randn(2, 3, *IMAGE)
    expected = through(host, pixels)
    torch._dynamo.reset()
    compiled = torch.compile(host.visual, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.allclose(compiled(pixels)[1], expected, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.slow
def test_a_tower_that_was_compiled_before() -> None:
    host: Any = open_clip_model(layers=4).float()
    pixels = torch.randn(1, 3, *IMAGE)
    torch._dynamo.reset()
    compiled = torch.compile(host.visual, backend="eager")
    with torch.no_grad():
        compiled(pixels)
    block = ResidualBlock.from_tower(compiled, "naclip+rcs")
    host.visual.transformer.resblocks[-1] = block
    host.visual.output_tokens = True
    with torch.no_grad():
        assert torch.allclose(compiled(pixels)[1], through(host, pixels), rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float64))
def test_it_follows_the_hosts_dtype(dtype: torch.dtype) -> None:
    host, _ = host_with_block()
    pixels = torch.randn(1, 3, *IMAGE)
    expected = through(copy.deepcopy(host).double(), pixels.double())
    came = through(host.to(dtype), pixels.to(dtype))
    assert came.dtype == dtype
    assert torch.cosine_similarity(came.double(), expected, dim=-1).mean() > 0.99


def test_training_mode() -> None:
    """Gradients flow through the attention; dropout of the attention is refused."""
    host: Any = open_clip_model(layers=4).float()
    block = ResidualBlock.from_tower(host, "naclip+rcs")
    place(block)
    host.train()
    assert block.training
    host.visual(torch.randn(1, 3, *IMAGE)).sum().backward()
    for number in (1, 2, 3):  # RCS reads blocks 2 and 3 of 4.
        gradient = host.visual.transformer.resblocks[number].attn.in_proj_weight.grad
        assert gradient.abs().sum() > 0
    host.visual.transformer.resblocks[-1].attn.dropout = 0.1
    with pytest.raises(ValueError, match="dropout"):
        host.visual(torch.randn(1, 3, *IMAGE))
    host.eval()
    host.visual(torch.randn(1, 3, *IMAGE))


TOKENS = torch.randn(1, 13, 32, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "said"),
    (
        (lambda host: ResidualBlock.from_tower(host, "naclp"), "unknown method 'naclp'.*'naclip'"),
        (
            lambda host: ResidualBlock.from_tower(host, "naclip", random_text(EMBED)),
            "no SFR.*leave text out",
        ),
        (lambda host: ResidualBlock.from_tower(host, "resclip", torch.ones(2, 3)), r"\(Q, 24\)"),
        (lambda host: run(host, torch.randn(1, 3, 8, 8).double()), "smaller than one patch|size"),
        (
            lambda host: ResidualBlock.from_tower(host, "naclip", rcs=RCS(layers=(4,))),
            "RCS layers.*between 1 and 3.*got 4",
        ),
        (lambda host: with_block(host, "resclip"), "SFR .*needs text"),
        (
            lambda host: ResidualBlock.from_tower(host, "naclip")(TOKENS),
            "no pixels have come through the tower",
        ),
        (lambda host: with_block(open_clip_model(layers=4), "naclip", run_on=host), "no pixels"),
        (lambda host: with_block(host, "naclip", twice=True), "already: call undo"),
        (lambda host: ResidualBlock.from_tower(host, "proxyclip"), "pass proxy="),
        (lambda host: ResidualBlock.from_tower(host, "resclip", sfr=False), "sfr must be an SFR"),
        (lambda host: DenseEncoder(host, rcs={"weight": 1}), "rcs must be an RCS or None"),
        (lambda host: ResidualBlock.from_tower(host, "resclip", ["cat"]), "float tensor.*got list"),
        (
            lambda host: ResidualBlock.from_tower(
                hugging_face_model("CLIPVisionModel"), "resclip", random_text(32)
            ),
            "SFR segments by text, and a CLIPVisionModel has no projection",
        ),
    ),
)
def test_refusals(call: Callable[[Any], Any], said: str) -> None:
    with pytest.raises((ValueError, TypeError, RuntimeError), match=f"(?s){said}"):
        call(open_clip_model(layers=4))


def with_block(host: Any, method: str, *, run_on: Any = None, twice: bool = False) -> None:
    """A block in place, perhaps in another host than the one it was made for, and a forward pass."""
    block = ResidualBlock.from_tower(host, method)
    place(block)
    if twice:
        ResidualBlock.from_tower(host, method)
    if run_on is not None:
        run_on.visual.transformer.resblocks[-1] = block
    run(host if run_on is None else run_on, torch.randn(1, 3, *IMAGE).double())


def test_an_encoder_over_a_host_with_a_drop_in_is_refused() -> None:
    host, block = host_with_block()
    with pytest.raises(TypeError, match="drop-in already: call undo"):
        DenseEncoder(host)
    block.undo()
    DenseEncoder(host)


def test_a_copy_of_openais_tower_that_computes_something_else_is_refused() -> None:
    visual = OpenAIVisual().eval()
    forward = type(visual).forward
    other = type("Changed", (OpenAIVisual,), {"forward": lambda self, x: 2 * forward(self, x)})()
    with pytest.raises(TypeError, match="layout of OpenAI's CLIP and another head"):
        adapt(other.eval())


@torch.no_grad()
def test_a_block_that_is_appended_or_was_undone_says_so() -> None:
    pixels = torch.randn(1, 3, *IMAGE)
    host: Any = open_clip_model(layers=4).float()
    host.visual.transformer.resblocks.append(ResidualBlock.from_tower(host, "naclip"))
    with pytest.raises(ValueError, match="index -1 of its 4 blocks, in place of the one there"):
        through(host, pixels)
    host = open_clip_model(layers=4).float()
    first = ResidualBlock.from_tower(host, "naclip+rcs")
    ResidualBlock.from_tower(host, "naclip+rcs")
    place(first)
    with pytest.raises(
        ValueError, match="was undone, by undo\\(\\) or because another one was made"
    ):
        through(host, pixels)


@torch.no_grad()
def test_a_block_that_runs_without_the_blocks_before_it_says_so() -> None:
    host, block = host_with_block()
    host.visual.conv1(torch.randn(1, 3, *IMAGE))
    with pytest.raises(ValueError, match="block 2 did not run in this pass.*call the whole tower"):
        block(torch.randn(1, 13, 32))
    host.visual.transformer.resblocks[0] = block
    with pytest.raises(
        ValueError, match="did not run in this pass.*at index -1 of its blocks alone"
    ):
        through(host, torch.randn(1, 3, *IMAGE))


@torch.no_grad()
def test_a_pass_that_fails_midway_leaves_nothing() -> None:
    host, block = host_with_block()
    fails = host.visual.transformer.resblocks[2].register_forward_hook(lambda *call: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        through(host, torch.randn(1, 3, *IMAGE))
    fails.remove()
    assert block._runs.current() is None


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@torch.no_grad()
def test_a_tower_with_a_block_can_be_traced() -> None:
    torch.manual_seed(0)
    host: Any = open_clip_model(layers=4).float()
    place(ResidualBlock.from_tower(host, "naclip+rcs"))
    pixels = torch.randn(1, 3, *IMAGE)
    traced = torch.jit.trace(host.visual, pixels)
    assert torch.equal(traced(pixels), host.visual(pixels))


@pytest.mark.parametrize(
    ("proxy", "said"),
    (
        (lambda pixels: None, "proxy= must return a tensor of features.*got NoneType"),
        (lambda pixels: pixels.mean((2, 3)), r"proxy= must return.*for 2 images; got \(2, 3\)"),
        (lambda pixels: pixels[:1], r"proxy= must return.*for 2 images; got \(1, 3, 48, 64\)"),
    ),
)
def test_a_proxy_that_gives_no_features_is_refused(proxy: Any, said: str) -> None:
    host: Any = open_clip_model(layers=4).float()
    pixels = torch.randn(2, 3, *IMAGE)
    with pytest.raises((TypeError, ValueError), match=said):
        DenseEncoder(host, "proxyclip", proxy=proxy)(pixels)
    place(ResidualBlock.from_tower(host, "proxyclip", proxy=proxy))
    with pytest.raises((TypeError, ValueError), match=said):
        through(host, pixels)


@torch.no_grad()
def test_changes_are_noticed_in_copies_too() -> None:
    host, _ = host_with_block()
    encoder = DenseEncoder(open_clip_model(layers=4).float())
    pixels = torch.randn(1, 3, *IMAGE)
    for copied in (copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))):
        one = copied(encoder)
        one(pixels)
        one.tower.visual.transformer.resblocks[-1].attn.num_heads = 4
        with pytest.raises(TypeError, match="has another num_heads"):
            one(pixels)
        other = copied(host)
        through(replica(copied(host)), pixels)
        through(other, pixels)
        other.visual.transformer.resblocks[-1].attn.num_heads = 4
        with pytest.raises(TypeError, match="has another num_heads"):
            through(other, pixels)
