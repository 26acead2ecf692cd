"""Class names become text features: templates, synonyms, and which query stands for which class.

Knows prompts and text encoders. Knows no picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from resclip.backbone import Tokenizer, imagenet_templates
from resclip.class_names import check_classes, split_synonyms

PROMPTS_PER_BATCH = 512


@dataclass(frozen=True)
class Vocabulary:
    """The classes to tell apart, as text features."""

    embeddings: Tensor
    """(Q, E) float: unit rows, one a query (a name of a class)."""
    query_to_class: Tensor
    """(Q,) int64: the class of each query."""
    names: tuple[str, ...]
    """One name a class."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        if self.embeddings.ndim != 2 or not self.embeddings.is_floating_point():
            raise ValueError(
                f"embeddings must be a floating (Q, E) tensor; got {self.embeddings.dtype} "
                f"{tuple(self.embeddings.shape)}"
            )
        queries = len(self.embeddings)
        object.__setattr__(self, "query_to_class", torch.as_tensor(self.query_to_class).long())
        if self.query_to_class.shape != (queries,) or not queries:
            raise ValueError(
                f"query_to_class must hold one class for each of the {queries} embeddings (at least one); "
                f"got {tuple(self.query_to_class.shape)}"
            )
        present = set(self.query_to_class.tolist())
        if present != set(range(len(self.names))):
            raise ValueError(
                f"query_to_class must name each of the {len(self.names)} classes at least once and no other; "
                f"got classes {min(present)} to {max(present)}, {len(present)} of them"
            )

    def __len__(self) -> int:
        """Number of classes."""
        return len(self.names)

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Vocabulary:
        """The same vocabulary on another device, in another precision."""
        return Vocabulary(
            self.embeddings.to(device, dtype), self.query_to_class.to(device), self.names
        )

    @classmethod
    def from_names(
        cls,
        classes: Sequence[str],
        clip_model: Any,
        tokenizer: Tokenizer | Callable[[list[str]], Tensor],
        *,
        templates: Sequence[str] | None = None,
        progress: bool = False,
    ) -> Vocabulary:
        """Encode class names with a CLIP text tower.

        Each name is put into every template; the embeddings are unit-normed, averaged and unit-normed again (CLIP,
        Radford et al. 2021, section 3.1.4).

        Args:
            classes: one entry a class, synonyms separated by commas ("cat, kitten"): each synonym is a query of its
                own, and the class takes the best of them. The first synonym is the class's name.
            clip_model: has `encode_text`; runs on the device of its parameters.
            tokenizer: list of prompts → (N, context) token ids.
            templates: strings with "{}" for the name; None for CLIP's 80 ImageNet templates.
            progress: draw a progress bar on stderr.

        Raises:
            ValueError: no class, an empty or repeated name, a template without "{}".
        """
        check_classes(classes)
        templates = imagenet_templates() if templates is None else tuple(templates)
        for template in templates:
            if "{}" not in template:
                raise ValueError(f"template {template!r} has no '{{}}' for the class name")
        if not templates:
            raise ValueError("templates must hold at least one; '{}' is the name alone")
        synonyms = [split_synonyms(entry) for entry in classes]
        queries = [name for group in synonyms for name in group]
        query_to_class = [number for number, group in enumerate(synonyms) for _ in group]
        embeddings = encode_names(queries, clip_model, tokenizer, templates, progress)
        names = tuple(group[0] for group in synonyms)
        return cls(embeddings, torch.tensor(query_to_class), names)


@torch.no_grad()
def encode_names(
    names: Sequence[str],
    clip_model: Any,
    tokenizer: Callable[[list[str]], Tensor],
    templates: Sequence[str],
    progress: bool = False,
) -> Tensor:
    """(Q, E) float32 unit rows: the mean over templates of each name's unit text embedding."""
    device = next(clip_model.parameters()).device
    names_per_batch = max(1, PROMPTS_PER_BATCH // len(templates))
    starts = range(0, len(names), names_per_batch)
    means = []
    for start in tqdm(starts, "class names", disable=not progress, leave=False):
        group = names[start : start + names_per_batch]
        prompts = [template.replace("{}", name) for name in group for template in templates]
        embeddings = F.normalize(
            clip_model.encode_text(tokenizer(prompts).to(device)).float(), dim=-1
        )
        means.append(embeddings.unflatten(0, (len(group), len(templates))).mean(dim=1))
    return F.normalize(torch.cat(means), dim=-1)
