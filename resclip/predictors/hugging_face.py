"""Loading models of transformers that are no CLIP, with their tokenizers, and their text features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resclip.errors import WeightsUnavailable, first_sentence
from resclip.models.hugging_face import HuggingFaceTokenizer, import_transformers, pooled
from resclip.text.class_names import ClassEntry
from resclip_kernels import check_type

PROMPTS_PER_CALL = 512
"""Most prompts in one call of a text encoder."""


def load(
    kind: str, weights: str, device: torch.device | str
) -> tuple[nn.Module, HuggingFaceTokenizer]:
    """A model of transformers and its tokenizer, in eval mode.

    Args:
        kind: the model's class in transformers: "GroupViTModel".
        weights: a repository on the hub, or a folder with what `save_pretrained` writes.
        device: where the model goes.

    Raises:
        ImportError: transformers is not installed.
        WeightsUnavailable: the model or the tokenizer cannot be fetched or read, or lacks weights.
    """
    check_type("weights", weights, str, "the name of a repository, or a folder")
    transformers = import_transformers()
    advice = (
        f"the folder must hold what save_pretrained writes for a {kind} and its tokenizer"
        if Path(weights).is_dir()
        else "check the name and the network, or pass weights= the folder that holds them"
    )
    try:
        # weights_only: a pickle must not run code.
        model, report = getattr(transformers, kind).from_pretrained(
            weights, weights_only=True, output_loading_info=True
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(weights, trust_remote_code=False)
    except Exception as error:
        raise WeightsUnavailable(
            f"cannot load the {kind} {weights!r} ({first_sentence(error)}); {advice}"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:  # The library fills them with noise and warns.
        raise WeightsUnavailable(
            f"cannot load the {kind} {weights!r}: {len(missing)} weights are missing, {missing[0]} first; {advice}"
        )
    context = model.config.text_config.max_position_embeddings
    return model.to(device).eval(), HuggingFaceTokenizer(tokenizer, context)


def check_model(model: Any, kind: str) -> nn.Module:
    """The model in eval mode; TypeError unless it, or what it is derived from, is called `kind`."""
    if kind not in {each.__name__ for each in type(model).__mro__}:
        raise TypeError(f"model must be a {kind} of transformers; got {type(model).__name__}")
    host: nn.Module = model.eval()
    return host


@torch.no_grad()
def text_features(
    features: Any,
    tokenizer: Any,
    entries: Sequence[ClassEntry],
    template: str,
    device: Any,
    *,
    unit: bool = True,
) -> Tensor:
    """(C, E) float32, a row for each class: its first query in a template; synonyms are not asked for.

    Args:
        features: the model's `get_text_features`.
        tokenizer: a list of prompts → (N, context) ids.
        entries: the classes.
        template: with "{}" for the name.
        device: the model's.
        unit: whether rows are made units.
    """
    prompts = [template.replace("{}", entry.queries[0]) for entry in entries]
    rows = [
        pooled(features(input_ids=tokenizer(prompts[first : first + PROMPTS_PER_CALL]).to(device)))
        for first in range(0, len(prompts), PROMPTS_PER_CALL)
    ]
    joined = torch.cat(rows).float()
    return F.normalize(joined, dim=-1) if unit else joined
