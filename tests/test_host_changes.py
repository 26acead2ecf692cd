"""What was done to a host before: it takes effect as in the host itself, or is refused by name; it is never ignored.

The oracle is the host's own forward pass: with base "clip" an encoder's [CLS], and a tower with the drop-in, must give
what the changed host gives.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from models_support import (
    EMBED,
    IMAGE,
    hugging_face_model,
    open_clip_model,
    randomise,
    timm_model,
)
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from transformers.models.clip.modeling_clip import CLIPAttention

from resclip import RCS, SFR, DenseEncoder, ResidualBlock
from resclip.models import adapt

LAYERS = 4
SIZE = (48, 48)


class Factor(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return 0.5 * weight


class Low(nn.Module):
    """A linear layer with a low-rank adapter, as adapters of any library wrap it."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False).double()
        self.up = nn.Linear(2, base.out_features, bias=False).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class Int8(nn.Module):
    """A linear layer with its weights in int8, and a scale for each row."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = (
            base.in_features,
            base.out_features,
            base.bias,
        )
        self.scale = base.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("whole", (base.weight / self.scale).round().to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.whole.to(x.dtype) * self.scale, self.bias)


class Louder(nn.MultiheadAttention):
    """A subclass that does more than its parent."""

    def forward(self, *args: Any, **keywords: Any) -> Any:
        output, weights = super().forward(*args, **keywords)
        return 3 * output, weights


class Around(nn.Module):
    """A wrapper of any module, which does more than call it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **keywords: Any) -> Any:
        return scaled(self.inner(*args, **keywords))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


def scaled(output: Any) -> Any:
    """What a layer puts out or takes, each channel by another factor, which no norm behind it undoes."""
    if isinstance(output, tuple):
        return scaled(output[0]), *output[1:]
    if not isinstance(output, Tensor):
        return output
    return output * torch.linspace(0.5, 2, output.shape[-1], dtype=output.dtype)


def louder(module: nn.Module, args: Any, output: Any) -> Any:
    """A forward hook."""
    return scaled(output)


def quieter(module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """A forward pre-hook, for calls by position and by name."""
    # A block's self-attention is called with one tensor three times, which has to stay one.
    changed = {id(value): scaled(value) for value in (*args, *keywords.values())}
    return (
        tuple(changed[id(value)] for value in args),
        {name: changed[id(value)] for name, value in keywords.items()},
    )


def hook(path: str) -> Callable[[nn.Module], None]:
    return lambda visual: (visual.get_submodule(path).register_forward_hook(louder), None)[1]


def pre_hook(path: str) -> Callable[[nn.Module], None]:
    return lambda visual: (
        visual.get_submodule(path).register_forward_pre_hook(quieter, with_kwargs=True),
        None,
    )[1]


def put(path: str, make: Callable[[Any], nn.Module]) -> Callable[[nn.Module], None]:
    """Replace the module at a path by what is made of it."""

    def change(visual: nn.Module) -> None:
        visual.set_submodule(path, make(visual.get_submodule(path)))

    return change


def instance_forward(path: str) -> Callable[[nn.Module], None]:
    def change(visual: nn.Module) -> None:
        module = visual.get_submodule(path)
        original = module.forward
        module.forward = lambda *args, **keywords: scaled(original(*args, **keywords))

    return change


def parametrized(path: str, name: str) -> Callable[[nn.Module], None]:
    return lambda visual: (
        parametrize.register_parametrization(visual.get_submodule(path), name, Factor()),
        None,
    )[1]


def of_class(path: str, kind: type) -> Callable[[nn.Module], None]:
    return lambda visual: setattr(visual.get_submodule(path), "__class__", kind)


def subclass(path: str) -> Callable[[nn.Module], None]:
    """Of the module's own class, with a forward that does more."""

    def change(visual: nn.Module) -> None:
        module = visual.get_submodule(path)
        parent = type(module)

        class Changed(parent):  # type: ignore[misc, valid-type]
            def forward(self, *args: Any, **keywords: Any) -> Any:
                return scaled(super().forward(*args, **keywords))

        module.__class__ = Changed

    return change


def weight_norm(visual: nn.Module) -> None:
    layer = parametrizations.weight_norm(visual.get_submodule("transformer.resblocks.3.mlp.c_fc"))
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(1.5)


def weights(visual: nn.Module) -> None:
    with torch.no_grad():
        for weight in visual.parameters():
            weight.mul_(1.1)


OPEN_CLIP = {
    **{
        f"hook on {path}": hook(path)
        for path in (
            "conv1",
            "ln_pre",
            "transformer.resblocks.0",
            "transformer.resblocks.0.attn",
            "transformer.resblocks.1.attn",
            "transformer.resblocks.1.ln_1",
            "transformer.resblocks.1.mlp",
            "transformer.resblocks.1.mlp.c_fc",
            "transformer.resblocks.3",
            "transformer.resblocks.3.attn",
            "transformer.resblocks.3.ln_1",
            "transformer.resblocks.3.ln_2",
            "transformer.resblocks.3.mlp.gelu",
            "transformer",
            "ln_post",
        )
    },
    **{
        f"pre-hook on {path}": pre_hook(path)
        for path in (
            "transformer.resblocks.1",
            "transformer.resblocks.1.attn",
            "transformer.resblocks.1.mlp",
            "transformer.resblocks.3",
            "transformer.resblocks.3.attn",
            "transformer.resblocks.3.ln_1",
        )
    },
    "wrapped attention": put("transformer.resblocks.3.attn", Around),
    "wrapped attention of a middle block": put("transformer.resblocks.1.attn", Around),
    "wrapped block": put("transformer.resblocks.3", Around),
    "wrapped MLP": put("transformer.resblocks.3.mlp", Around),
    "subclassed attention": of_class("transformer.resblocks.3.attn", Louder),
    "subclassed attention of a middle block": of_class("transformer.resblocks.1.attn", Louder),
    "subclassed block": subclass("transformer.resblocks.3"),
    "subclassed first block": subclass("transformer.resblocks.0"),
    "subclassed norm": subclass("transformer.resblocks.3.ln_1"),
    "forward of an instance: attention": instance_forward("transformer.resblocks.3.attn"),
    "forward of an instance: middle attention": instance_forward("transformer.resblocks.1.attn"),
    "forward of an instance: block": instance_forward("transformer.resblocks.1"),
    "forward of an instance: MLP": instance_forward("transformer.resblocks.1.mlp"),
    "adapter on the MLP": put("transformer.resblocks.3.mlp.c_fc", Low),
    "int8 MLP": put("transformer.resblocks.1.mlp.c_proj", Int8),
    "parametrized MLP": parametrized("transformer.resblocks.3.mlp.c_fc", "weight"),
    "parametrized attention": parametrized("transformer.resblocks.3.attn", "in_proj_weight"),
    "parametrized middle attention": parametrized("transformer.resblocks.1.attn", "in_proj_weight"),
    "parametrized output layer": parametrized("transformer.resblocks.3.attn.out_proj", "weight"),
    "weight norm": weight_norm,
    "other weights": weights,
}
TIMM = {
    "adapter on qkv": put("trunk.blocks.1.attn.qkv", Low),
    "adapter on a middle qkv": put("trunk.blocks.0.attn.qkv", Low),
    "adapter on the output layer": put("trunk.blocks.1.attn.proj", Low),
    "int8 qkv": put("trunk.blocks.1.attn.qkv", Int8),
    "hook on q_norm": hook("trunk.blocks.1.attn.q_norm"),
    "hook on attention": hook("trunk.blocks.1.attn"),
    "hook on the trunk": hook("trunk"),
    "pre-hook on patch_embed": pre_hook("trunk.patch_embed"),
    "wrapped blocks": put("trunk.blocks", Around),
}
HUGGING_FACE = {
    "adapter on q_proj": put("vision_model.encoder.layers.3.self_attn.q_proj", Low),
    "adapter on a middle k_proj": put("vision_model.encoder.layers.1.self_attn.k_proj", Low),
    "adapter on out_proj": put("vision_model.encoder.layers.3.self_attn.out_proj", Low),
    "adapter on the projection": put("visual_projection", Low),
    "int8 v_proj": put("vision_model.encoder.layers.3.self_attn.v_proj", Int8),
    "hook on v_proj": hook("vision_model.encoder.layers.3.self_attn.v_proj"),
    "hook on a middle q_proj": hook("vision_model.encoder.layers.1.self_attn.q_proj"),
    "hook on attention": hook("vision_model.encoder.layers.3.self_attn"),
    "hook on a layer": hook("vision_model.encoder.layers.1"),
    "pre-hook on the encoder": pre_hook("vision_model.encoder"),
    "subclassed layer": subclass("vision_model.encoder.layers.3"),
}


def open_clip_host() -> nn.Module:
    return open_clip_model(layers=LAYERS, image_size=SIZE).visual


def normed_host() -> nn.Module:
    return open_clip_model(layers=LAYERS, image_size=SIZE, qk_norm=True).visual


def timm_host() -> nn.Module:
    model: Any = timm_model("all norms")
    return model.visual


def hugging_face_host() -> nn.Module:
    config = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=2,
        num_hidden_layers=LAYERS,
        image_size=SIZE[0],
        patch_size=16,
        projection_dim=EMBED,
    )
    return randomise(transformers.CLIPVisionModelWithProjection(config))


def pooled(host: nn.Module, pixels: Tensor) -> Tensor:
    """The host's own result."""
    output = host(pixels)
    result: Tensor = output if isinstance(output, Tensor) else output.image_embeds
    return result


def through_encoder(host: nn.Module, pixels: Tensor) -> Tensor:
    result = DenseEncoder(host, base="clip")(pixels).cls
    assert result is not None
    return result


def through_block(host: nn.Module, pixels: Tensor) -> Tensor:
    """The host with the drop-in in place, which computes CLIP's own final block; it records the middle blocks too."""
    tower = adapt(host)
    layers = (tower.depth // 2,)
    block = ResidualBlock.from_tower(host, "clip", rcs=RCS(layers, weight=0, temperature=1))
    tower.block_list[-1] = block
    return pooled(host, pixels)


CASES = [
    pytest.param(make, change, id=f"{family}: {name}")
    for family, make, changes in (
        ("open_clip", open_clip_host, OPEN_CLIP),
        ("timm", timm_host, TIMM),
        ("hugging face", hugging_face_host, HUGGING_FACE),
    )
    for name, change in changes.items()
]


@pytest.mark.parametrize("route", (through_encoder, through_block))
@pytest.mark.parametrize(("make", "change"), CASES)
@torch.no_grad()
def test_a_change_takes_effect_or_is_refused(
    make: Callable[[], nn.Module],
    change: Callable[[nn.Module], None],
    route: Callable[[nn.Module, Tensor], Tensor],
) -> None:
    torch.manual_seed(0)
    host = make()
    size = IMAGE if make is timm_host else SIZE
    pixels = torch.randn(2, 3, *size, dtype=torch.float64)
    before = pooled(host, pixels)
    change(host)
    expected = pooled(host, pixels)
    assert (expected - before).norm() > 1e-3 * before.norm(), "the change changes nothing"
    came = result_or_refusal(lambda: route(host, pixels))
    if isinstance(came, str):
        assert re.search(r"take it away|of type (Around|Changed)|is an? Around", came)
    else:
        assert (came - expected).norm() <= 1e-12 * expected.norm()


def class_method(kind: type, name: str) -> Callable[[nn.Module, pytest.MonkeyPatch], None]:
    """A method of a class, replaced by one that does more."""

    def change(host: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
        original = getattr(kind, name)
        monkeypatch.setattr(
            kind, name, lambda self, *args, **keywords: scaled(original(self, *args, **keywords))
        )

    return change


def on_instance(path: str, name: str) -> Callable[[nn.Module, pytest.MonkeyPatch], None]:
    def change(host: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
        module = host.get_submodule(path)
        original = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *args, **keywords: scaled(original(*args, **keywords))
        )

    return change


def setting(path: str, name: str, value: Any) -> Callable[[nn.Module, pytest.MonkeyPatch], None]:
    return lambda host, monkeypatch: monkeypatch.setattr(host.get_submodule(path), name, value)


def eager(host: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' own other attention function, which gives the same."""
    host.set_attn_implementation("eager")  # type: ignore[operator]


LAST, LAYER = "transformer.resblocks.3", "vision_model.encoder.layers.3"
WITHOUT_A_TRACE = {
    "class of blocks": (open_clip_host, class_method(ResidualAttentionBlock, "forward")),
    "attention of blocks": (open_clip_host, class_method(ResidualAttentionBlock, "attention")),
    "method of the final block": (open_clip_host, on_instance(LAST, "attention")),
    "method of the tower": (open_clip_host, on_instance("", "_embeds")),
    "number of heads": (open_clip_host, setting(f"{LAST}.attn", "num_heads", 4)),
    "an added key": (open_clip_host, setting(f"{LAST}.attn", "add_zero_attn", True)),
    "scale": (hugging_face_host, setting(f"{LAYER}.self_attn", "scale", 1.0)),
    "attention of layers": (hugging_face_host, class_method(CLIPAttention, "forward")),
    "forward of the model": (hugging_face_host, on_instance("", "forward")),
    "eager attention": (hugging_face_host, eager),
}


@pytest.mark.parametrize("route", (through_encoder, through_block))
@pytest.mark.parametrize("name", WITHOUT_A_TRACE)
@torch.no_grad()
def test_a_change_that_leaves_no_trace_on_modules_is_found_by_what_comes_out(
    name: str, route: Callable[[nn.Module, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    make, change = WITHOUT_A_TRACE[name]
    host = make()
    pixels = torch.randn(2, 3, *SIZE, dtype=torch.float64)
    change(host, monkeypatch)
    expected = pooled(host, pixels)
    came = result_or_refusal(lambda: route(host, pixels))
    if isinstance(came, str):
        assert name != "eager attention"
        assert re.search("computes something else|take it away", came)
    else:  # transformers' eager attention takes its softmax in float32.
        assert (came - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("wrap", (nn.DataParallel, torch.compile))
def test_a_hook_on_a_wrapper_is_refused(wrap: Callable[[nn.Module], nn.Module]) -> None:
    wrapped = wrap(open_clip_host())
    wrapped.register_forward_hook(louder)
    with pytest.raises(TypeError, match="around the model has a hook"):
        DenseEncoder(wrapped)


def test_a_backward_hook_on_what_is_replaced_is_refused() -> None:
    host = open_clip_host()
    host.transformer.resblocks[-1].register_full_backward_hook(lambda *call: None)
    with pytest.raises(TypeError, match=r"resblocks\.3 .* has a hook"):
        ResidualBlock.from_tower(host, "naclip")


@torch.no_grad()
def test_what_was_put_on_the_head_counts_where_sfr_reads_it() -> None:
    host = hugging_face_model("SiglipVisionModel")
    host.head.register_forward_hook(louder)
    with pytest.raises(TypeError, match="head .* has a hook"):
        DenseEncoder(host)
    block = ResidualBlock.from_tower(host, "clip", torch.eye(32)[:3], sfr=SFR())
    block._method.tower.block_list[-1] = block
    with pytest.raises(TypeError, match="head .* has a hook"):
        host(torch.randn(1, 3, *SIZE, dtype=torch.float64))


@torch.no_grad()
def test_a_change_made_later_is_noticed_too() -> None:
    host = open_clip_host()
    pixels = torch.randn(1, 3, *SIZE, dtype=torch.float64)
    encoder = DenseEncoder(host)
    encoder(pixels)
    handle = host.transformer.resblocks[-1].attn.register_forward_hook(louder)
    with pytest.raises(TypeError, match=r"resblocks\.3\.attn .* has a hook \(louder\)"):
        encoder(pixels)
    handle.remove()
    encoder(pixels)
    put("transformer.resblocks.3.attn", Around)(host)
    with pytest.raises(
        TypeError,
        match=r"resblocks\.3\.attn \(Around\) was put there since the method was given to the model",
    ):
        encoder(pixels)


def test_adapters_of_peft_count_once_they_are_merged() -> None:
    peft = pytest.importorskip("peft", reason="peft is no dependency; pip install peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["attn", "c_fc"], r=4, init_lora_weights=False)
    model = peft.get_peft_model(open_clip_model(layers=LAYERS, image_size=SIZE), config)
    model.add_adapter("other", config)
    model = model.double().eval()
    pixels = torch.randn(2, 3, *SIZE, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"resblocks\.0\.attn .* LoRA adapters .*merge_adapter"):
        DenseEncoder(model)
    for adapters in (["default"], ["default", "other"]):
        model.merge_adapter(adapters)
        with torch.no_grad():
            expected = model.get_base_model().visual(pixels)
            for route in (through_encoder, through_block):
                came = route(model.get_base_model().visual, pixels)
                assert (came - expected).norm() <= 1e-12 * expected.norm()
                restore(model)
        model.unmerge_adapter()


@pytest.mark.parametrize(
    "path", ("trunk.blocks.0.attn.q_norm", "trunk.blocks.0.attn.k_norm", "trunk.blocks.0.attn")
)
@torch.no_grad()
def test_a_hook_that_is_added_behind_the_drop_ins_own_takes_effect(path: str) -> None:
    torch.manual_seed(0)
    host = timm_host()
    pixels = torch.randn(1, 3, *IMAGE, dtype=torch.float64)
    rcs = RCS(layers=(1,))
    block = ResidualBlock.from_tower(host, "naclip", rcs=rcs)
    adapt(host).block_list[-1] = block
    before = pooled(host, pixels)
    host.get_submodule(path).register_forward_hook(louder)
    came = pooled(host, pixels)
    assert not torch.equal(came, before)
    block.undo()
    again = ResidualBlock.from_tower(host, "naclip", rcs=rcs)
    adapt(host).block_list[-1] = again
    assert torch.equal(came, pooled(host, pixels))


def restore(model: nn.Module) -> None:
    """Take a drop-in out again, if there is one."""
    for module in list(model.modules()):
        if isinstance(module, ResidualBlock):
            module.undo()


def test_int8_tensors_in_place_of_weights() -> None:
    quantization = pytest.importorskip(
        "torchao.quantization", reason="torchao is no dependency; pip install torchao"
    )
    torch.manual_seed(0)
    host = open_clip_host().float()
    pixels = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        before = pooled(host, pixels)
        quantization.quantize_(host, quantization.Int8WeightOnlyConfig())
        expected = pooled(host, pixels)
        assert (expected - before).norm() > 1e-3 * before.norm()
        for route in (through_encoder, through_block):
            assert (route(host, pixels) - expected).norm() <= 1e-5 * expected.norm()


def result_or_refusal(call: Callable[[], Tensor]) -> Tensor | str:
    """What a call gives, or the sentence it is refused with."""
    try:
        return call()
    except TypeError as error:
        return str(error)


def refused(call: Callable[[], Any]) -> str:
    """The sentence that a call is refused with."""
    with pytest.raises(TypeError) as raised:
        call()
    return str(raised.value)


@torch.no_grad()
def test_a_layer_that_is_read_and_never_called_is_never_called_by_the_drop_in_either() -> None:
    host = open_clip_host()
    pixels = torch.randn(1, 3, *SIZE, dtype=torch.float64)
    host.transformer.resblocks[1].attn.out_proj.register_forward_hook(louder)
    expected = pooled(host, pixels)
    assert (through_block(host, pixels) - expected).norm() <= 1e-12 * expected.norm()


def changed_forward(module: nn.Module) -> None:
    original = module.forward
    module.forward = lambda *args, **keywords: scaled(original(*args, **keywords))  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("make", "path", "change"),
    (
        (hugging_face_host, "vision_model.encoder.layers.1.self_attn", "is_causal"),
        (hugging_face_host, "vision_model.encoder.layers.1.self_attn", "scale"),
        (hugging_face_host, "vision_model.encoder.layers.1.self_attn", "forward"),
        (timm_host, "trunk.blocks.0.attn", "forward"),
        (normed_host, "transformer.resblocks.1.attn", "forward"),
        (open_clip_host, "transformer.resblocks.1.attn", "class"),
    ),
)
def test_the_attention_of_a_block_that_rcs_reads_is_looked_at_too(
    make: Callable[[], nn.Module], path: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = make()
    if change == "forward":
        changed_forward(host.get_submodule(path))
    elif change == "class":
        class_method(nn.MultiheadAttention, "forward")(host, monkeypatch)
    else:
        setattr(host.get_submodule(path), change, 3.0 if change == "scale" else True)
    if change != "class":
        ResidualBlock.from_tower(host, "naclip").undo()
    rcs = RCS(layers=(1,) if make is timm_host else (2,))
    said = refused(lambda: ResidualBlock.from_tower(host, "naclip+rcs", rcs=rcs))
    assert re.search("attention of block 2 computes|has its forward replaced|block 4", said)


def replaced(path: str, name: str) -> Callable[[nn.Module, pytest.MonkeyPatch], None]:
    """A method on an instance, which does what it did."""

    def change(host: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
        module = host.get_submodule(path)
        original = getattr(module, name)
        monkeypatch.setattr(module, name, original, raising=False)

    return change


def projected_tokens(host: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(host.get_submodule("trunk")._modules, "pos_drop", nn.Linear(32, 32))


def hook_on_all(host: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = torch.nn.modules.module._global_forward_hooks
    monkeypatch.setitem(hooks, -1, louder)


LATER = {
    "method": (open_clip_host, replaced(LAST, "attention"), "has its attention replaced"),
    "heads": (open_clip_host, setting(f"{LAST}.attn", "num_heads", 4), "another num_heads"),
    "added key": (open_clip_host, setting(f"{LAST}.attn", "add_zero_attn", True), "add_zero_attn"),
    "added key of a middle block": (
        open_clip_host,
        setting("transformer.resblocks.1.attn", "add_zero_attn", True),
        r"resblocks\.1\.attn .* another add_zero_attn",
    ),
    "scale": (hugging_face_host, setting(f"{LAYER}.self_attn", "scale", 1.0), "another scale"),
    "mask of a middle block": (
        hugging_face_host,
        setting("vision_model.encoder.layers.1.self_attn", "is_causal", True),
        "another is_causal",
    ),
    "class of blocks": (
        open_clip_host,
        class_method(ResidualAttentionBlock, "attention"),
        "ResidualAttentionBlock.attention was replaced",
    ),
    "class of attention": (
        open_clip_host,
        class_method(nn.MultiheadAttention, "forward"),
        "MultiheadAttention.forward was replaced",
    ),
    "class of transformers": (
        hugging_face_host,
        class_method(CLIPAttention, "forward"),
        "CLIPAttention.forward was replaced",
    ),
    "hook on all modules": (open_clip_host, hook_on_all, r"hook on all modules \(louder\)"),
}


@pytest.mark.parametrize("name", LATER)
@torch.no_grad()
def test_a_setting_or_function_that_is_changed_later_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, change, said = LATER[name]
    encoder, host = DenseEncoder(make()), make()
    pixels = torch.randn(1, 3, *SIZE, dtype=torch.float64)
    block = ResidualBlock.from_tower(host, "naclip+rcs", rcs=RCS(layers=(2,)))
    block._method.tower.block_list[-1] = block
    for visual, run in ((encoder.tower.visual, encoder), (host, host)):
        run(pixels)
        with monkeypatch.context() as within:
            change(visual, within)
            assert re.search(said, refused(lambda run=run: run(pixels)))
        run(pixels)


@torch.no_grad()
def test_what_an_encoder_stands_in_for_around_the_blocks_is_refused_later_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixels = torch.randn(1, 3, *IMAGE, dtype=torch.float64)
    host: Any = timm_host()
    encoder = DenseEncoder(host)
    for change, said in (
        (replaced("trunk", "_pos_embed"), "has its _pos_embed replaced"),
        (projected_tokens, r"pos_drop \(Linear\) was put there since"),
    ):
        with monkeypatch.context() as within:
            change(host, within)
            assert re.search(said, refused(lambda: encoder(pixels)))
        encoder(pixels)
    host.output_tokens = (
        True  # It changes what the model gives, and nothing that the steps compute.
    )
    encoder(pixels)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32))
@pytest.mark.parametrize("factor", (1.0, 1.05))
def test_an_attention_that_is_scaled_a_little_is_seen_in_every_dtype(
    dtype: torch.dtype, factor: float
) -> None:
    torch.manual_seed(0)
    host = open_clip_host().to(dtype)
    block = host.transformer.resblocks[-1]
    original = block.attention
    block.attention = lambda *args, **keywords: factor * original(*args, **keywords)
    state = {name: weight.clone() for name, weight in host.state_dict().items()}
    for make in (DenseEncoder, ResidualBlock.from_tower):
        if factor == 1:
            make(host)
        else:
            assert "block 4 computes something else" in refused(lambda make=make: make(host))
    assert all(
        torch.equal(weight, state[name]) and weight.dtype == dtype
        for name, weight in host.state_dict().items()
    )


@torch.no_grad()
def test_a_compiled_model_is_looked_at_when_it_is_compiled() -> None:
    host: Any = open_clip_host().float()
    pixels = torch.randn(1, 3, *SIZE)
    encoder = DenseEncoder(open_clip_host().float())
    host.transformer.resblocks[-1] = ResidualBlock.from_tower(host, "clip")
    for visual, run in ((host, host), (encoder.tower.visual, encoder)):
        torch._dynamo.reset()
        visual.transformer.resblocks[-1].attn.register_forward_hook(louder)
        with pytest.raises(Exception, match=r"resblocks\.3\.attn .* has a hook \(louder\)"):
            torch.compile(run, backend="eager", fullgraph=True)(pixels)
    torch._dynamo.reset()


@pytest.mark.parametrize("later", (False, True))
@torch.no_grad()
def test_the_guide_is_the_pixels_before_hooks_on_the_patch_embedding(later: bool) -> None:
    torch.manual_seed(0)
    size, sfr = (96, 96), SFR()
    hosts: list[Any] = [open_clip_model(layers=LAYERS, image_size=size).visual]
    hosts.append(copy.deepcopy(hosts[0]))
    pixels = torch.randn(2, 3, *size, dtype=torch.float64)
    text = F.normalize(torch.randn(5, EMBED, dtype=torch.float64), dim=1)
    if not later:
        hosts[0].conv1.register_forward_pre_hook(brighter)
    block = ResidualBlock.from_tower(hosts[0], "naclip", text, sfr=sfr)
    hosts[0].transformer.resblocks[-1] = block
    hosts[0].output_tokens = True
    if later:
        hosts[0].conv1.register_forward_pre_hook(brighter)
    hosts[1].conv1.register_forward_pre_hook(brighter)
    expected = DenseEncoder(hosts[1], "naclip", sfr=sfr)(pixels, text).patches.flatten(1, 2)
    for _ in range(2):
        came = hosts[0](pixels)[1] @ hosts[0].proj
        assert (came - expected).norm() <= 1e-12 * expected.norm()


def brighter(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    """A hook that normalises within the model."""
    return (args[0] * torch.tensor([-1.0, 2, 5]).view(3, 1, 1) + args[0].flip(2),)


class Hidden(nn.Module):
    """A wrapper that hides what it is around."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **keywords: Any) -> Any:
        return self.inner(*args, **keywords)


@pytest.mark.parametrize("wrap", (Hidden, nn.Sequential))
@pytest.mark.parametrize("route", (DenseEncoder, ResidualBlock.from_tower))
@pytest.mark.parametrize(
    ("make", "path"),
    (
        (open_clip_host, "conv1"),
        (open_clip_host, "transformer.resblocks.0.attn"),
        (open_clip_host, "transformer"),
        (timm_host, "trunk.patch_embed.proj"),
        (hugging_face_host, "vision_model"),
        (hugging_face_host, "vision_model.embeddings"),
        (hugging_face_host, "vision_model.embeddings.patch_embedding"),
        (hugging_face_host, "vision_model.encoder"),
        (hugging_face_host, "vision_model.encoder.layers.3"),
        (hugging_face_host, "vision_model.encoder.layers.3.self_attn"),
    ),
)
def test_a_part_that_hides_what_is_read_is_named(
    make: Callable[[], nn.Module], path: str, route: Callable[[nn.Module], Any], wrap: type
) -> None:
    host = make()
    put(path, wrap)(host)
    said = refused(lambda: route(host))
    assert re.search(rf"the model's {path} \({wrap.__name__}\) has no '\w+'", said)


def test_a_part_that_hides_what_the_steps_read_is_named_when_they_run() -> None:
    host = hugging_face_host()
    put("vision_model.embeddings.position_embedding", nn.Sequential)(host)
    assert "position_embedding (Sequential) has no 'weight'" in refused(lambda: DenseEncoder(host))


def test_pruned_attention_of_a_middle_block() -> None:
    host = open_clip_host()
    pixels = torch.randn(1, 3, *SIZE, dtype=torch.float64)
    prune.l1_unstructured(host.transformer.resblocks[1].attn, "in_proj_weight", amount=0.5)
    expected = pooled(host, pixels)
    assert (through_block(host, pixels) - expected).norm() <= 1e-12 * expected.norm()


def test_adapters_on_the_patch_embedding_count() -> None:
    peft = pytest.importorskip("peft", reason="peft is no dependency; pip install peft")
    pixels = torch.randn(1, 3, *SIZE, dtype=torch.float64)
    for host, name in ((open_clip_host(), "conv1"), (hugging_face_host(), "patch_embedding")):
        config = peft.LoraConfig(target_modules=[name], r=4, init_lora_weights=False)
        model = peft.get_peft_model(host, config).double().eval()
        with torch.no_grad():
            expected = pooled(model.get_base_model(), pixels)
            for route in (through_encoder, through_block):
                came = route(model.get_base_model(), pixels)
                assert (came - expected).norm() <= 1e-12 * expected.norm()
                restore(model)
