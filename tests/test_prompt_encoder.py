"""Prompts cut behind their ends: the features of `encode_text`, from fewer positions, and only where that is exact."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import open_clip
import pytest
import torch
from models_support import EMBED, hugging_face_model, randomise
from torch import Tensor, nn
from torch.nn.utils import parametrize

from resclip.models.hugging_face import HuggingFaceClip
from resclip.text import prompt_encoder
from resclip.text.prompt_encoder import (
    CALL_COST,
    SAMPLES,
    TOLERANCES,
    PromptEncoder,
    end_positions,
    group_sizes,
)

CONTEXT, VOCABULARY = 16, 100
VISION = {"image_size": 32, "patch_size": 16, "layers": 1, "width": 32, "head_width": 16}
TEXT = {
    "context_length": CONTEXT,
    "vocab_size": VOCABULARY,
    "width": 32,
    "heads": 2,
    "layers": 2,
}
EOS = 5
"""An end of text that most words' ids exceed."""
PROMPTS = [
    " ".join(f"word{(length * number) % 61}" for number in range(length))
    for length in (3, 1, 20, 5, 3, 14, 2, 0, 13, 3, 1, 8, *[4, 6, 9] * 20)
]
"""Of one word, of none, of the full context (14), beyond it (20), and of lengths that several share."""


class Words:
    """A tokenizer: start (1), a word's id from 6 to 98, the end, and padding by `pad`."""

    def __init__(self, end: int = VOCABULARY - 1, pad: int = 0) -> None:
        self.end, self.pad = end, pad

    def __call__(self, prompts: list[str]) -> Tensor:
        rows = []
        for prompt in prompts:
            ids = [6 + sum(map(ord, word)) % 93 for word in prompt.split()[: CONTEXT - 2]]
            ids = [1, *ids, self.end]
            rows.append(ids + [self.pad] * (CONTEXT - len(ids)))
        return torch.tensor(rows)


def plain(quick_gelu: bool = False, **text: Any) -> nn.Module:
    return finished(open_clip.CLIP(EMBED, VISION, {**TEXT, **text}, quick_gelu=quick_gelu))


def custom(**text: Any) -> nn.Module:
    return finished(open_clip.CustomTextCLIP(EMBED, VISION, {**TEXT, **text}))


def hugging_face(kind: str = "CLIPModel", eos: int = 2) -> nn.Module:
    torch.manual_seed(0)
    model = hugging_face_model(kind, layers=2)
    if kind == "CLIPModel":
        model.text_model.eos_token_id = eos
    return HuggingFaceClip(model).float().eval()


def finished(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return randomise(model).float()


def coca() -> nn.Module:
    text = {**TEXT, "embed_cls": True, "output_tokens": True}
    vision = {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
    return finished(open_clip.CoCa(EMBED, {**TEXT, "heads": 2}, text, vision))


class OpenAI(nn.Module):
    """The layout of OpenAI's `clip`: each block has the mask of the whole context itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = plain()
        self.transformer, self.text_projection = self.inner.transformer, self.inner.text_projection

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.inner.encode_text(tokens)


class OwnText(open_clip.CLIP):
    def encode_text(self, tokens: Tensor) -> Tensor:
        return super().encode_text(tokens).flip(1)


CUT: dict[str, tuple[Callable[[], nn.Module], Words]] = {
    "open_clip": (plain, Words()),
    "open_clip, the first end": (lambda: plain(pool_type="eos", eos_id=EOS), Words(EOS)),
    "open_clip, a linear projection": (lambda: plain(proj_bias=True), Words()),
    "open_clip, no projection": (lambda: plain(proj_type="none"), Words()),
    "open_clip, other blocks": (lambda: plain(qk_norm=True, ls_init_value=0.5), Words()),
    "a text tower of its own": (custom, Words()),
    "its first end": (lambda: custom(pool_type="eos", eos_id=EOS), Words(EOS)),
    "transformers": (lambda: hugging_face(eos=EOS), Words(EOS)),
    # OpenAI's files pad with the end: the first of the largest ids counts.
    "transformers, old": (hugging_face, Words(pad=VOCABULARY - 1)),
    "transformers, padded with ends": (lambda: hugging_face(eos=EOS), Words(EOS, pad=EOS)),
}
WHOLE: dict[str, Callable[[], nn.Module]] = {
    "SigLIP of transformers": lambda: hugging_face("SiglipModel"),
    "SigLIP of open_clip": lambda: custom(no_causal_mask=True, pool_type="last"),
    "CoCa": coca,
    "a text tower with its own [CLS]": lambda: custom(embed_cls=True),
    "no mask": lambda: plain(no_causal_mask=True),
    "the last token": lambda: plain(pool_type="last"),
    "OpenAI": OpenAI,
    "a subclass": lambda: finished(OwnText(EMBED, VISION, TEXT)),
}


@torch.no_grad()
def errors(encoder: PromptEncoder, prompts: list[str]) -> Tensor:
    """Norm of each feature's difference from the model's own, relative to its norm."""
    own = encoder.clip_model.encode_text(encoder.tokenizer(prompts)).double()
    return (encoder(prompts).double() - own).norm(dim=1) / own.norm(dim=1)


def count_positions(model: nn.Module) -> list[int]:
    """A list that grows by the positions of every call of the text tower."""
    counts: list[int] = []
    (embedding,) = {
        part
        for part in model.modules()
        if isinstance(part, nn.Embedding) and part.num_embeddings == VOCABULARY
    }
    embedding.register_forward_pre_hook(lambda _, came: counts.append(came[0].numel()))
    return counts


def check_cut(model: nn.Module, tokenizer: Words) -> Tensor:
    """The errors of a model that is cut, and runs as many positions as its groups have, or what prompts share less."""
    encoder = PromptEncoder(model, tokenizer)
    assert encoder.cut is not None
    counts = count_positions(model)
    shared = torch.zeros(1, dtype=torch.float64)
    if encoder.cut.encode_tree is not None:
        shared = errors(encoder, PROMPTS)
        begun = {
            tuple(row[: n + 1])
            for row in (("", *p.split(), "") for p in PROMPTS)
            for n in range(len(row))
        }
        assert counts[1] <= len(begun) + len(PROMPTS)
        assert counts[1] < 0.8 * sum(len(prompt.split()) + 2 for prompt in PROMPTS)
        encoder.cut = replace(encoder.cut, encode_tree=None)
        counts.clear()
    encoder(PROMPTS)
    lengths = sorted(len(prompt.split()[: CONTEXT - 2]) + 2 for prompt in PROMPTS)
    groups, start = [], 0
    for size in group_sizes(lengths, CALL_COST["cpu"]):
        start += size
        groups.append(size * lengths[start - 1])
    assert counts == groups
    assert len(groups) > 1
    assert sum(groups) < 0.7 * CONTEXT * len(PROMPTS)
    return torch.cat([errors(encoder, PROMPTS), shared])


@pytest.mark.parametrize("kind", CUT)
def test_cut_prompts_have_the_models_own_features(kind: str) -> None:
    make, tokenizer = CUT[kind]
    assert check_cut(make(), tokenizer).max() <= 2e-6


def test_the_built_in_model_is_cut() -> None:
    from resclip.builtin import TEMPLATES, load_builtin

    model, tokenizer, _, _ = load_builtin()
    encoder = PromptEncoder(model, tokenizer)
    assert encoder.cut is not None
    counts: list[int] = []
    model.token_embedding.register_forward_pre_hook(lambda _, came: counts.append(came[0].numel()))
    prompts = [template.replace("{}", "red house") for template in TEMPLATES]
    encoder(prompts)
    assert sum(counts) <= 9 * len(prompts)
    assert errors(encoder, prompts).max() <= 2e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["open_clip", "a text tower of its own", "transformers"])
def test_half_precision_is_cut(kind: str, dtype: torch.dtype) -> None:
    make, tokenizer = CUT[kind]
    assert check_cut(make().to(dtype), tokenizer).max() <= TOLERANCES[dtype]


@pytest.mark.parametrize("make", WHOLE.values(), ids=WHOLE)
def test_models_that_are_not_known_go_whole(make: Callable[[], nn.Module]) -> None:
    check_whole(make().eval())


@torch.no_grad()
def check_whole(model: nn.Module) -> None:
    encoder = PromptEncoder(model, Words())
    assert encoder.cut is None
    torch.testing.assert_close(encoder(PROMPTS), model.encode_text(Words()(PROMPTS)))


def replaced_on_the_class(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = open_clip.CLIP.encode_text
    monkeypatch.setattr(open_clip.CLIP, "encode_text", lambda self, ids: own(self, ids) + 1e-3)


def replaced_on_the_instance(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = model.encode_text
    model.encode_text = lambda ids: own(ids) + 1e-3


def open_mask(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model.attn_mask[3, 4] = 0.0


def mean_over_positions(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model.transformer.register_forward_hook(lambda _, __, x: x + x.mean(dim=1, keepdim=True))


def refuses_short_prompts(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(_: nn.Module, came: tuple[Tensor]) -> None:
        if came[0].shape[1] != CONTEXT:
            raise LookupError("no such length")

    model.ln_final.register_forward_pre_hook(check)


@pytest.mark.parametrize(
    "change",
    [
        replaced_on_the_class,
        replaced_on_the_instance,
        open_mask,
        mean_over_positions,
        refuses_short_prompts,
    ],
)
def test_a_change_that_cutting_would_miss_is_kept(
    change: Callable[[Any, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = plain()
    change(model, monkeypatch)
    check_whole(model)


@pytest.mark.parametrize("listens", [True, False])
def test_a_hook_on_the_whole_text_tower_is_kept(listens: bool) -> None:
    """One that changes nothing too: its owner wants to see the calls."""
    model = custom()
    model.text.register_forward_hook(lambda _, __, x: None if listens else 2 * x)
    check_whole(model)


def hooked(model: Any) -> None:
    model.transformer.resblocks[0].register_forward_hook(lambda _, __, x: 1.5 * x)
    model.token_embedding.register_forward_hook(lambda _, __, x: x + 0.1)
    model.ln_final.register_forward_pre_hook(lambda _, came: (came[0] + 0.2,))


def adapted(model: Any) -> None:
    class Adapter(nn.Module):
        def __init__(self, layer: nn.Linear) -> None:
            super().__init__()
            self.layer = layer
            self.weight = layer.weight
            self.down = nn.Linear(layer.in_features, 2)
            self.up = nn.Linear(2, layer.out_features)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + self.up(self.down(x))

    mlp = model.transformer.resblocks[1].mlp
    mlp.c_fc = Adapter(mlp.c_fc)


def parametrized(model: Any) -> None:
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    parametrize.register_parametrization(model, "positional_embedding", Doubled())


@pytest.mark.parametrize("change", [hooked, adapted, parametrized])
def test_changes_of_layers_take_effect(change: Callable[[Any], None]) -> None:
    model = plain()
    before = PromptEncoder(model, Words())(PROMPTS)
    change(model)
    encoder = PromptEncoder(model, Words())
    assert encoder.cut is not None
    assert errors(encoder, PROMPTS).max() <= 2e-6
    assert ((encoder(PROMPTS) - before).norm(dim=1) > 1e-2 * before.norm(dim=1)).all()


def test_a_row_without_an_end_is_read_where_the_model_reads_it() -> None:
    """At its first token, by both libraries."""
    tokens = Words(EOS)(PROMPTS)
    tokens[::2] = tokens[::2].masked_fill(tokens[::2] == EOS, 7)
    assert not end_positions(tokens, EOS)[::2].any()
    for model in (plain(pool_type="eos", eos_id=EOS), hugging_face(eos=EOS)):
        with torch.no_grad():
            own = model.encode_text(tokens)
        torch.testing.assert_close(PromptEncoder(model, Words(EOS)).encode(tokens), own)


def test_a_tokenizer_may_refuse_the_samples() -> None:
    """Prompts are then encoded whole, as nothing is known; and so where no sample would be cut."""

    def few_words(prompts: list[str]) -> Tensor:
        if not all(word.startswith("word") for prompt in prompts for word in prompt.split()):
            raise KeyError("cat")
        return Words()(prompts)

    def long(prompts: list[str]) -> Tensor:
        return Words()([prompt + " x" * CONTEXT for prompt in prompts])

    model = plain()
    for tokenizer in (few_words, long):
        encoder = PromptEncoder(model, tokenizer)
        assert encoder.cut is None
        with torch.no_grad():
            assert torch.equal(encoder(PROMPTS), model.encode_text(tokenizer(PROMPTS)))


def test_large_groups_take_several_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    for model in (plain(), OpenAI()):
        at_once = PromptEncoder(model, Words())(PROMPTS)
        counts = count_positions(model)
        monkeypatch.setattr(prompt_encoder, "PROMPTS_PER_CALL", 7)
        torch.testing.assert_close(PromptEncoder(model, Words())(PROMPTS), at_once)
        assert max(counts) <= 7 * CONTEXT
        monkeypatch.undo()


def test_what_the_check_costs() -> None:
    """Two prompts, whole, cut and as a tree, whatever the number of names."""
    model = plain()
    counts = count_positions(model)
    PromptEncoder(model, Words())
    assert counts[0] == CONTEXT * len(SAMPLES)
    assert sum(counts) < 2.5 * CONTEXT * len(SAMPLES)


@pytest.mark.parametrize(
    ("lengths", "call_cost", "sizes"),
    [
        ([7], 32, [1]),
        ([7, 7, 7], 0, [3]),
        # Padding 10 prompts by 3 tokens costs 30: as a call of their own they cost 20, or 40.
        ([4] * 10 + [7], 20, [10, 1]),
        ([4] * 10 + [7], 40, [11]),
    ],
)
def test_groups_by_hand(lengths: list[int], call_cost: int, sizes: list[int]) -> None:
    assert group_sizes(lengths, call_cost) == sizes


def test_groups_are_the_cheapest() -> None:
    """Compared with every way to part nine prompts."""
    lengths = [2, 3, 3, 5, 6, 6, 6, 9, 14]

    def cost(sizes: list[int], call_cost: int) -> int:
        ends = itertools.accumulate(sizes)
        return sum(
            call_cost + size * lengths[end - 1] for size, end in zip(sizes, ends, strict=True)
        )

    for call_cost in range(0, 40, 3):
        ways = []
        for ends in itertools.product([False, True], repeat=len(lengths) - 1):
            bounds = [0, *(number + 1 for number, end in enumerate(ends) if end), len(lengths)]
            ways.append([end - start for start, end in itertools.pairwise(bounds)])
        sizes = group_sizes(lengths, call_cost)
        assert sum(sizes) == len(lengths)
        assert cost(sizes, call_cost) == min(cost(way, call_cost) for way in ways)
