"""The attention modules: parameters, copies, dtypes and compilation, and what they refuse."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import open_clip
import pytest
import torch
from attention_support import (
    HEADS,
    LAYERS,
    WIDTH,
    attention,
    pixels,
    projected,
    put_modules,
    tokens,
    tower,
    with_recorder,
)
from kernel_support import check_budget, label_map
from open_clip.transformer import Attention
from torch import Tensor, nn

from resclip_kernels import semantic_feedback
from resclip_kernels.modules import QueryKeyRecorder, ResidualAttention


def test_parameters_are_shared_and_the_state_dict_is_the_same(seed: int) -> None:
    visual = tower(seed)
    state = {name: tensor.clone() for name, tensor in visual.state_dict().items()}
    parameters = dict(visual.named_parameters())
    put_modules(visual)
    assert list(visual.state_dict()) == list(state)
    for name, parameter in visual.named_parameters():
        assert parameter is parameters[name]
        assert torch.equal(parameter, state[name])
    visual.load_state_dict(tower(seed + 1).state_dict(), strict=True)
    blocks = visual.transformer.resblocks
    assert not torch.equal(
        blocks[-1].attn.in_proj_weight, state["transformer.resblocks.3.attn.in_proj_weight"]
    )


@pytest.mark.parametrize(("kind", "bias"), [(ResidualAttention, True), (QueryKeyRecorder, False)])
def test_alone_it_is_initialised_like_multihead_attention(
    kind: type, bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    original = nn.MultiheadAttention(WIDTH, HEADS, bias=bias, dtype=torch.float64)
    torch.manual_seed(seed)
    module = kind(WIDTH, HEADS, bias=bias, dtype=torch.float64)
    assert module.batch_first is False
    state = module.state_dict()
    assert list(state) == list(original.state_dict())
    for name, tensor in original.state_dict().items():
        assert torch.equal(state[name], tensor)
    original.load_state_dict(state, strict=True)


def test_making_one_draws_no_random_numbers(seed: int) -> None:
    original = attention(seed)
    before = torch.random.get_rng_state()
    ResidualAttention.from_attention(original)
    QueryKeyRecorder.from_attention(original)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@torch.no_grad()
def test_conversion_moves_the_shared_parameters(dtype: torch.dtype, seed: int) -> None:
    original = attention(seed).double()
    module = ResidualAttention.from_attention(original, correlation="qk").to(dtype)
    assert original.in_proj_weight.dtype == original.out_proj.weight.dtype == dtype
    x = tokens(seed).to(dtype)
    output = module(x, x, x)[0]
    oracle = copy.deepcopy(original).double()(*[x.double()] * 3)[0]
    check_budget(output, original(x, x, x, need_weights=False)[0], oracle)


@torch.no_grad()
def test_open_clip_finds_it_when_it_lowers_the_precision(seed: int) -> None:
    visual = tower(seed)
    put_modules(visual, grid=(4, 6))
    open_clip.convert_weights_to_lp(visual, torch.bfloat16)
    for block in visual.transformer.resblocks:
        assert block.attn.in_proj_weight.dtype == torch.bfloat16
        assert block.attn.in_proj_bias.dtype == torch.bfloat16


def test_mode_follows_the_module_and_the_tower(seed: int) -> None:
    original = attention(seed).train()
    assert ResidualAttention.from_attention(original).training
    assert not QueryKeyRecorder.from_attention(original.eval()).training
    visual = tower(seed)
    module = put_modules(visual)
    assert not module.training
    assert visual.train().transformer.resblocks[-1].attn.training


@torch.no_grad()
def test_recorder_drops_attention_while_training_as_the_original(seed: int) -> None:
    original = attention(seed, dropout=0.5).train()
    recorder = QueryKeyRecorder.from_attention(original)
    x = tokens(seed)
    dropped = recorder(x, x, x)[0]
    assert not torch.allclose(dropped, recorder.eval()(x, x, x)[0])
    torch.testing.assert_close(recorder(x, x, x)[0], original.eval()(x, x, x)[0])


@torch.no_grad()
def test_autocast_lowers_recorders_and_attention_alike(seed: int) -> None:
    x = tokens(seed)
    module, recorder = with_recorder(seed, x)
    with torch.autocast(x.device.type, torch.bfloat16):
        recorder(x, x, x)
        output = module(x, x, x)[0]
    assert recorder.query.dtype == output.dtype == torch.bfloat16


@torch.no_grad()
def test_copy_and_pickle_of_a_tower_are_whole_and_apart(seed: int) -> None:
    visual, images = tower(seed), pixels(seed)
    module = put_modules(visual, grid=(4, 6))
    expected = projected(visual, images)
    buffer = io.BytesIO()
    with module.two_passes():
        visual(images)
        torch.save(visual, buffer)
        copies = [copy.deepcopy(visual), pickle.loads(pickle.dumps(visual))]
    buffer.seek(0)
    copies.append(torch.load(buffer, weights_only=False))
    for other in copies:
        blocks = other.transformer.resblocks
        attn = blocks[-1].attn
        assert attn.scope is None
        assert attn.recorders == tuple(blocks[layer - 1].attn for layer in LAYERS)
        with pytest.raises(ValueError, match="recorded nothing"):
            _ = attn.recorders[0].key
        assert torch.equal(projected(other, images), expected)
        assert attn.in_proj_weight is not module.in_proj_weight


@pytest.fixture
def _fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("kind", (ResidualAttention, QueryKeyRecorder))
@torch.no_grad()
def test_module_compiles_whole(kind: type, seed: int) -> None:
    module = kind.from_attention(attention(seed))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for x in (tokens(seed), tokens(seed, patches=25), tokens(seed, batch=3)):
        torch.testing.assert_close(compiled(x, x, x)[0], module(x, x, x)[0])


@pytest.mark.usefixtures("_fresh_compiler")
@torch.no_grad()
def test_tower_and_scope_compile_whole(seed: int) -> None:
    visual = tower(seed)
    module = put_modules(visual, grid=(4, 6))
    compiled = torch.compile(visual, fullgraph=True, backend="aot_eager")
    for images in (pixels(seed), pixels(seed + 1)):
        expected = visual(images)[1]
        recorded = module.recorders[0].query
        torch.testing.assert_close(compiled(images)[1], expected)
        torch.testing.assert_close(module.recorders[0].query, recorded)

    block = visual.transformer.resblocks[-1]
    compiled_block = torch.compile(block, fullgraph=True, backend="aot_eager")
    x = tokens(seed, patches=24)
    feedback = semantic_feedback(label_map(seed, batch=2, grid=(4, 6)).to(x.device))
    outputs = []
    for run in (block, compiled_block):
        with module.two_passes():
            run(x)
            module.feedback = feedback
            outputs.append(run(x))
            assert module.scope is not None
            assert module.scope.cached is not None
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: ((x, x.clone(), x), {}), ValueError, "is self-attention.*got different ones"),
        (lambda x: ((x, x, x.clone()), {}), ValueError, "is self-attention.*got different ones"),
        (lambda x: ((x[0, 0],) * 3, {}), ValueError, r"\(L, E\) with E = 64; got \(64,\)"),
        (lambda x: ((x[..., :32].clone(),) * 3, {}), ValueError, r"E = 64; got \(2, 17, 32\)"),
        (lambda x: (([1.0],) * 3, {}), TypeError, "torch.Tensor; got list"),
        (lambda x: ((x, x, x), {"need_weights": True}), ValueError, "need_weights=False"),
        (lambda x: ((x, x, x), {"attn_mask": x}), ValueError, "attn_mask=None"),
        (lambda x: ((x, x, x), {"key_padding_mask": x}), ValueError, "key_padding_mask=None"),
        (lambda x: ((x, x, x), {"is_causal": True}), ValueError, "is_causal=False"),
    ],
)
def test_call_that_does_not_fit(call: Any, error: type[Exception], message: str) -> None:
    """Both kinds have one `forward`."""
    assert ResidualAttention.forward is QueryKeyRecorder.forward
    arguments, keywords = call(tokens(0))
    with pytest.raises(error, match=message):
        QueryKeyRecorder.from_attention(attention(0))(*arguments, **keywords)


@pytest.mark.parametrize("kind", (ResidualAttention, QueryKeyRecorder))
def test_source_that_does_not_fit(kind: type) -> None:
    with pytest.raises(TypeError, match="must be an nn.MultiheadAttention; got Attention"):
        kind.from_attention(Attention(WIDTH, HEADS))
    for option in ({"kdim": 32, "vdim": 32}, {"add_bias_kv": True}, {"add_zero_attn": True}):
        with pytest.raises(ValueError, match=f"got one with {', '.join(option)}"):
            kind.from_attention(attention(0, **option))
    with pytest.raises(ValueError, match="multiple of num_heads; got 64 and 5"):
        kind(64, 5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        # The options' own checks are those of the op.
        ({"correlation": "kq"}, ValueError, "correlation must be one of"),
        ({"correlation": "identity", "neighbourhood_std": 5.0}, ValueError, "has no score"),
        ({"correlation": "pp"}, ValueError, "projections with themselves; got none"),
        ({"implementation": "fast"}, ValueError, "implementation must be one of"),
        ({"grid": (4,)}, TypeError, r"grid must be \(h, w\)"),
        ({"grid": (4, 0)}, ValueError, r"grid must be .* at least 1 each; got \(4, 0\)"),
        ({"recorders": [nn.Identity()]}, TypeError, "got Identity: make one with"),
    ],
)
def test_option_that_does_not_fit(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ResidualAttention.from_attention(attention(0), **options)


def test_grid_that_does_not_fit() -> None:
    module = ResidualAttention.from_attention(attention(0))
    for patches, message in ((15, r"15 patches, .* set \.grid = \(h, w\)"), (0, "one patch")):
        x = tokens(0, patches=patches)
        with pytest.raises(ValueError, match=message):
            module(x, x, x)
    module.grid = (3, 4)
    x = tokens(0)
    with pytest.raises(ValueError, match=r"3 × 4 patches has 13 tokens with \[CLS\]; got 17: set"):
        module(x, x, x)
    module.grid = None
    assert module(x, x, x)[0].shape == x.shape


def test_dropout_while_training_is_refused() -> None:
    module = ResidualAttention.from_attention(attention(0, dropout=0.1))
    x = tokens(0)
    module(x, x, x)
    with pytest.raises(ValueError, match=r"drops 0\.1 while training: call \.eval\(\)"):
        module.train()(x, x, x)


def test_recorder_that_has_not_run_or_ran_on_other_shapes(seed: int) -> None:
    recorder = QueryKeyRecorder.from_attention(attention(seed))
    module = ResidualAttention.from_attention(attention(seed), recorders=[recorder])
    x, fewer = tokens(seed), tokens(seed, batch=1)
    with pytest.raises(ValueError, match="run the model up to that block first"):
        module(x, x, x)
    recorder(fewer, fewer, fewer)
    with pytest.raises(ValueError, match=r"cross_layers\[0\]'s query must have query's shape"):
        module(x, x, x)


@torch.no_grad()
def test_threads_that_share_a_model_do_not_mix_their_images(seed: int) -> None:
    """Every step of one thread stands between two of the other's."""
    visual = tower(seed)
    module = put_modules(visual, grid=(4, 6))
    last = visual.transformer.resblocks[-1]
    feedbacks = [
        semantic_feedback(label_map(seed + number, batch=2, grid=(4, 6)).to(pixels(seed).device))
        for number in range(2)
    ]
    takes_turns = threading.Barrier(2, timeout=20)

    def run(number: int, wait: Callable[[], object]) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            images = pixels(seed + number)
            wait()
            once = projected(visual, images)
            wait()
            recorded = module.recorders[0].query
            x = tokens(seed + number, patches=24)
            with module.two_passes():
                wait()
                last(x)
                wait()
                module.feedback = feedbacks[number]
                wait()
                twice = last(x)
            return once, recorded, twice

    alone = [run(number, lambda: None) for number in range(2)]
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(lambda number: run(number, takes_turns.wait), range(2)))
    for mine, expected in zip(together, alone, strict=True):
        for part, other in zip(mine, expected, strict=True):
            assert torch.equal(part, other)
