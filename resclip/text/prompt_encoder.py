"""Prompts to text features, without computing what stands behind a prompt's end.

CLIP's tokenizers pad every prompt to the model's context, 77 tokens, of which one in a template takes 7 to 13. Its text
transformer is causal and its feature is read at the end token, so nothing behind that token can change the feature.
`PromptEncoder` sorts the prompts by length and runs them in a few groups, each cut to its longest. Where prompts begin
alike, as a name's do in all its templates, what they share is computed once instead: a tree of tokens, in which each
attends to those that lead to it. 80 prompts of a short name, of 676 tokens, are 402.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from resclip.models import Tokenizer
from resclip.models.hugging_face import (
    LEGACY_END_OF_TEXT,
    MODULES,
    HuggingFaceClip,
    is_siglip,
)
from resclip.models.tower import hook_of
from resclip_kernels import FORKS, fast_linear

PROMPTS_PER_CALL = 512
"""Most prompts in one call of the text encoder; a larger group takes several calls."""
TREE_TOKENS = 4096
"""Prompts of more tokens together are run in groups: a tree's mask is as large as their square, 64 MB."""
TREE_SHARE = 0.8
"""A tree of at least this share of the prompts' tokens saves too little for an attention over all of them."""
CALL_COST = {"cpu": 32}
"""What a call of the text encoder costs beside its tokens, in tokens, by torch's name of the device type.

ViT-B/16 on one core takes 0.88 ms a token and 20 ms a call, which is 23 tokens; 80 prompts of 756 tokens take 0.72 s in
the three groups that both 24 and 32 lead to, 0.75 s in two (48 to 128), 0.80 s in seven without padding, 0.95 s in one.
"""
CALL_COST_ELSEWHERE = 4096
"""`CALL_COST` of other devices, an estimate: a GPU launches some 200 kernels in the time of thousands of tokens."""
SAMPLES = (
    "cat",
    "a photo of a small brown cat that sits on a wooden chair by the window of a kitchen and looks at the garden.",
)
"""Prompts by which cutting is compared with `encode_text`: of few tokens, and of more than most names' prompts have."""
TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}
"""Largest norm of a feature's difference, relative to its own, by its dtype: at least four times what was measured."""


@dataclass(frozen=True)
class CutTower:
    """How a causal text tower is run on prompts that are cut behind their ends."""

    encode: Callable[[Tensor], Tensor]
    """(N, length) ids on the model's device → (N, E), for any length up to the context."""
    end_id: int | None
    """The feature is read at the first token with this id, else at the first token; None: at the largest id."""
    encode_tree: Callable[[TokenTree], Tensor] | None = None
    """Prompts that share beginnings → (N, E); None: the tower takes no other mask than its own."""


@dataclass(frozen=True)
class TokenTree:
    """Prompts as a tree of M tokens, each after the one that leads to it."""

    ids: Tensor
    """(M,)."""
    depths: Tensor
    """(M,): the position of each token in its prompts."""
    mask: Tensor
    """(M, M) float32, added to the attention's logits: 0 where a token is on the way to another, or itself."""
    ends: Tensor
    """(N,): the last token of each prompt."""

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]]) -> TokenTree:
        """Of the tokens of N prompts."""
        numbers: dict[tuple[int, int], int] = {}  # By the token before and its id.
        parents: list[int] = []
        ids: list[int] = []
        depths: list[int] = []
        ends = []
        for prompt in prompts:
            at = -1
            for depth, token in enumerate(prompt):
                key = (at, token)
                if key not in numbers:
                    numbers[key] = len(ids)
                    parents.append(at)
                    ids.append(token)
                    depths.append(depth)
                at = numbers[key]
            ends.append(at)
        leads = torch.eye(len(ids), dtype=torch.bool)
        for number, parent in enumerate(parents):
            if parent >= 0:
                leads[number] |= leads[parent]
        mask = torch.zeros(leads.shape).masked_fill_(~leads, -torch.inf)
        return cls(torch.tensor(ids), torch.tensor(depths), mask, torch.tensor(ends))


class PromptEncoder:
    """The text encoder of a CLIP model, with its tokenizer.

    Attributes:
        cut: how prompts are cut; None: they are encoded whole, by the model's own `encode_text`.
    """

    @torch.no_grad()
    def __init__(self, clip_model: Any, tokenizer: Tokenizer) -> None:
        """Find out whether prompts can be cut, which takes two runs of two prompts.

        Args:
            clip_model: has `encode_text`; runs on the device of its parameters.
            tokenizer: list of prompts → (N, context) token ids.
        """
        self.clip_model = clip_model
        self.tokenizer = tokenizer
        self.device: torch.device = next(clip_model.parameters()).device
        self.cut = find_cut_tower(clip_model)
        # Whatever was done to the model that its layers do not show (a method replaced on it or on its class, a hook
        # around several layers) is in what encode_text gives, and only there.
        if self.cut is not None and not self._is_exact(self.cut):
            self.cut = None

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """(N, E): the prompts' features, in their order; a row depends on the other prompts by rounding alone."""
        return self.encode(self.tokenizer(list(prompts)))

    @torch.no_grad()
    def encode(self, tokens: Tensor) -> Tensor:
        """(N, context) ids → (N, E) features."""
        if self.cut is None:
            return self._run(self.clip_model.encode_text, tokens)
        return self._encode_cut(
            self.cut, tokens, CALL_COST.get(self.device.type, CALL_COST_ELSEWHERE)
        )

    def _encode_cut(self, cut: CutTower, tokens: Tensor, call_cost: int) -> Tensor:
        """`encode` in the groups that `group_sizes` makes for a call's cost."""
        lengths = (end_positions(tokens, cut.end_id) + 1).tolist()
        if cut.encode_tree is not None and call_cost and sum(lengths) <= TREE_TOKENS:
            tree = self._tree(tokens, lengths)
            if len(tree.ids) < TREE_SHARE * sum(lengths):
                return self._run_tree(cut.encode_tree, tree)
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        sizes = group_sizes([lengths[row] for row in order], call_cost)
        features = [
            self._run(cut.encode, tokens[rows, : lengths[int(rows[-1])]])
            for rows in torch.tensor(order).split(sizes)
        ]
        return torch.cat(features)[torch.tensor(order).argsort().to(self.device)]

    def _tree(self, tokens: Tensor, lengths: Sequence[int]) -> TokenTree:
        rows = tokens.tolist()
        return TokenTree.of([row[:length] for row, length in zip(rows, lengths, strict=True)])

    def _run_tree(self, encode: Callable[[TokenTree], Tensor], tree: TokenTree) -> Tensor:
        """`_run` for a tree of prompts."""
        FORKS.check()
        moved = {one.name: getattr(tree, one.name).to(self.device) for one in fields(tree)}
        with fast_linear():
            return encode(TokenTree(**moved))

    def _run(self, encode: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
        """The one place where the model runs: (N, length) ids → (N, E)."""
        FORKS.check()
        calls = tokens.split(PROMPTS_PER_CALL)
        with fast_linear():
            return torch.cat([encode(part.to(self.device)) for part in calls])

    def _is_exact(self, cut: CutTower) -> bool:
        """Whether a few prompts, cut, have the features of the model's own `encode_text`, up to rounding."""
        try:
            tokens = self.tokenizer(list(SAMPLES))
            if int(end_positions(tokens, cut.end_id).min()) + 1 == tokens.shape[1]:
                return False  # None would be cut.
            whole = self._run(self.clip_model.encode_text, tokens)
            # As calls cost nothing, each sample is cut to its own length.
            found = [self._encode_cut(cut, tokens, 0)]
            if cut.encode_tree is not None:
                lengths = (end_positions(tokens, cut.end_id) + 1).tolist()
                found.append(self._run_tree(cut.encode_tree, self._tree(tokens, lengths)))
            difference = (torch.stack(found) - whole).double().norm(dim=2)
            bound = TOLERANCES[whole.dtype] * whole.double().norm(dim=1)
        except Exception:  # noqa: BLE001 - a layer may refuse fewer tokens, a tokenizer these words, in any way
            return False
        return bool((difference <= bound).all())


def end_positions(tokens: Tensor, end_id: int | None) -> Tensor:
    """(N, L) ids → (N,): where each row's feature is read; see `CutTower.end_id`."""
    return (tokens if end_id is None else (tokens == end_id).int()).argmax(dim=1)


def group_sizes(lengths: Sequence[int], call_cost: int) -> list[int]:
    """The sizes of consecutive groups that cost the fewest tokens, padding included.

    Args:
        lengths: of the prompts in tokens, ascending.
        call_cost: tokens that each group costs beside those of its prompts, each padded to the longest.
    """
    starts = [row for row in range(len(lengths)) if not row or lengths[row] != lengths[row - 1]]
    best: dict[int, tuple[int, list[int]]] = {0: (0, [])}  # Of the first so many prompts.
    for end in [*starts[1:], len(lengths)]:
        best[end] = min(
            (
                best[start][0] + call_cost + (end - start) * lengths[end - 1],
                [*best[start][1], end - start],
            )
            for start in starts
            if start < end
        )
    return best[len(lengths)][1]


def find_cut_tower(clip_model: Any) -> CutTower | None:
    """How the prompts of a model are cut; None for a model that is not known to be causal and to read at the end.

    Known are open_clip's `CLIP`, its `CustomTextCLIP` with a `TextTransformer`, and Hugging Face's `CLIPModel`.
    """
    if isinstance(clip_model, HuggingFaceClip):
        return cut_hugging_face(clip_model)

    from open_clip.model import CLIP, CustomTextCLIP
    from open_clip.transformer import TextTransformer

    if has_own(clip_model, "encode_text", CLIP):
        side = clip_model
        pool, eos_id = side.text_pool_type, getattr(side, "text_eos_id", None)
    elif (
        has_own(clip_model, "encode_text", CustomTextCLIP)
        and has_own(clip_model.text, "forward", TextTransformer)
        and clip_model.text.cls_emb is None
        and not hook_of(clip_model.text)
    ):
        side = clip_model.text
        pool, eos_id = side.pool_type, side.eos_id
    else:
        return None
    if pool not in {"argmax", "eos"} or not is_causal(side.attn_mask):
        return None
    end_id = eos_id if pool == "eos" else None
    return CutTower(
        partial(encode_open_clip, side, end_id), end_id, partial(encode_open_clip_tree, side)
    )


def encode_open_clip(side: Any, end_id: int | None, tokens: Tensor) -> Tensor:
    """What open_clip's `encode_text` does, with positions and mask cut to the length of the prompts.

    Args:
        side: what has the text side's layers, the model itself or its `text`; they are called as it calls them.
        end_id: see `CutTower`.
        tokens: (N, length) ids.

    Returns:
        (N, E).
    """
    length = tokens.shape[1]
    dtype = side.transformer.get_cast_dtype()
    x = side.token_embedding(tokens).to(dtype)
    x = x + side.positional_embedding[:length].to(dtype)
    x = side.ln_final(side.transformer(x, attn_mask=side.attn_mask[:length, :length]))
    return project_ends(
        side, x[torch.arange(len(x), device=x.device), end_positions(tokens, end_id)]
    )


def encode_open_clip_tree(side: Any, tree: TokenTree) -> Tensor:
    """`encode_open_clip` for prompts that share beginnings: (N, E)."""
    dtype = side.transformer.get_cast_dtype()
    x = side.token_embedding(tree.ids).to(dtype)
    x = x + side.positional_embedding[tree.depths].to(dtype)
    x = side.ln_final(side.transformer(x.unsqueeze(0), attn_mask=tree.mask.to(dtype)))
    return project_ends(side, x[0, tree.ends])


def project_ends(side: Any, ends: Tensor) -> Tensor:
    """The features of the tokens at which prompts end."""
    projection = side.text_projection
    if projection is None:
        return ends
    features: Tensor = projection(ends) if isinstance(projection, nn.Linear) else ends @ projection
    return features


def cut_hugging_face(clip: HuggingFaceClip) -> CutTower | None:
    """Hugging Face's CLIP takes shorter prompts as it is; SigLIP is not causal."""
    host: Any = clip.visual.visual
    if is_siglip(host) or type(host.text_model).__module__ not in MODULES:
        return None
    end_id = host.text_model.eos_token_id
    return CutTower(clip.encode_text, None if end_id == LEGACY_END_OF_TEXT else end_id)


def has_own(instance: Any, method: str, kind: type) -> bool:
    """Whether an instance has a method just as the class defines it."""
    found = getattr(type(instance), method, None)
    return found is getattr(kind, method) and method not in vars(instance)


def is_causal(mask: Any) -> bool:
    """Whether no token sees one behind it, by the (L, L) mask that is added to the attention's logits."""
    if not isinstance(mask, Tensor) or mask.ndim != 2 or not mask.is_floating_point():
        return False
    behind = torch.ones_like(mask, dtype=torch.bool).triu(1)
    return bool(mask[behind].isneginf().all())
