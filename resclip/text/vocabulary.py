"""From class names to text features: each query in every template, encoded, and the class that it belongs to."""

from __future__ import annotations

import math
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from resclip.errors import CutTextWarning
from resclip.models import Tokenizer
from resclip.text.class_names import ClassEntry, read_entries
from resclip.text.embedding_cache import TextCache, is_of_text, tower_fingerprint
from resclip.text.prompt_encoder import PromptEncoder
from resclip.text.templates import find_templates
from resclip_kernels import check_callable, check_flag, check_type, quoted


@dataclass(frozen=True)
class Vocabulary:
    """The classes to tell apart, as text features."""

    embeddings: Tensor
    """(Q, E) float: unit rows, one per query."""
    query_to_class: Tensor
    """(Q,) int64: the class of each query."""
    names: tuple[str, ...]
    """The name of each class."""

    def __post_init__(self) -> None:
        if isinstance(self.names, str) or not isinstance(self.names, Iterable):
            raise TypeError(
                f"names must be a list of texts, one per class; got {quoted(self.names)}"
            )
        object.__setattr__(self, "names", tuple(self.names))
        for name in self.names:
            check_type("each of names", name, str, "a text")
        check_type("embeddings", self.embeddings, Tensor, "a floating (Q, E) tensor")
        if self.embeddings.ndim != 2 or not self.embeddings.is_floating_point():
            raise ValueError(
                f"embeddings must be a floating (Q, E) tensor; got {self.embeddings.dtype} "
                f"{tuple(self.embeddings.shape)}"
            )
        queries = len(self.embeddings)
        object.__setattr__(self, "query_to_class", whole_numbers(self.query_to_class))
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
        classes: Classes,
        clip_model: Any,
        tokenizer: Tokenizer,
        *,
        templates: str | os.PathLike[str] | Sequence[str] | None = None,
        cache: TextCache | None = None,
        progress: bool = False,
    ) -> Vocabulary:
        """Encode class names with a CLIP text encoder.

        Each query is put into every template; the embeddings are unit-normed, averaged and unit-normed again (CLIP,
        Radford et al. 2021, section 3.1.4).

        Args:
            classes: a list with one entry per class: "cat", "cat, kitten" or "background: sky, wall"; or, as on the
                command line, one text ("cat, kitten; dog"), "@voc21", or a file. `resclip.text.class_names` defines
                them. A class scores as the best of its queries.
            clip_model: has `encode_text`; runs on the device of its parameters.
            tokenizer: list of prompts → (N, context) token ids.
            templates: a set's name ("imagenet", "short", "plain", "name"), strings with "{}" for the name, or a file
                of them; None for CLIP's 80 ImageNet templates. See `resclip.text.templates.find_templates`.
            cache: embeddings on disk, read and added to; None for none. Results are the same bit for bit either way.
            progress: draw a progress bar on stderr.

        Raises:
            ValueError: no class, an empty or repeated name, names that differ only behind what the model reads,
                unknown templates, or one without "{}".
            TypeError: classes or templates that are no text, or token ids that the model does not take.

        Warns:
            CutTextWarning: a name is longer than the model reads.
        """
        entries = read_entries(classes)
        return NameEncoder(clip_model, tokenizer, templates=templates, cache=cache).encode(
            entries, progress=progress
        )


Classes: TypeAlias = "str | os.PathLike[str] | Sequence[str | ClassEntry]"
"""Class names as `resclip.text.class_names.read_entries` takes them."""


class NameEncoder:
    """A CLIP model's text side, ready for more and more names: what it has encoded once, it knows.

    Several threads may use it at once. A model whose weights were changed since is noticed, and asked again.

    Args:
        clip_model, tokenizer, templates, cache: see `Vocabulary.from_names`.
        check: called with the classes and the tokenizer before they are encoded; it may warn of them.

    Raises:
        TypeError, ValueError: what is no CLIP model, tokenizer, cache or template.
    """

    def __init__(
        self,
        clip_model: Any,
        tokenizer: Tokenizer,
        *,
        templates: str | os.PathLike[str] | Sequence[str] | None = None,
        cache: TextCache | None = None,
        check: Callable[[Sequence[ClassEntry], Any], None] | None = None,
    ) -> None:
        if not hasattr(clip_model, "encode_text"):
            raise TypeError(
                f"clip_model must be a CLIP model with encode_text; got {quoted(clip_model)}"
            )
        check_callable("tokenizer", tokenizer, "a function of a list of prompts")
        if cache is not None:
            check_type("cache", cache, TextCache, "a TextCache or None")
        self.clip_model = clip_model
        self.tokenizer = CheckedTokenizer(tokenizer, clip_model)
        self.templates = find_templates(templates)
        self.cache = cache
        self.check = check
        self._lock = threading.Lock()
        self._weights: tuple[Any, ...] | None = None
        self._prompts: PromptEncoder | None = None
        self._fingerprint = ""
        self._rows: dict[str, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the lock; a copy of the model is asked anew."""
        state = {**self.__dict__, "_weights": None, "_prompts": None, "_rows": {}}
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def encode(self, classes: Classes, *, progress: bool = False) -> Vocabulary:
        """The classes as text features; see `Vocabulary.from_names`."""
        check_flag("progress", progress)
        entries = read_entries(classes)
        if self.check is not None:
            self.check(entries, self.tokenizer.tokenizer)
        check_lengths(entries, self.tokenizer, self.templates)
        queries = [query for entry in entries for query in entry.queries]
        query_to_class = [number for number, entry in enumerate(entries) for _ in entry.queries]
        names = tuple(entry.name for entry in entries)
        rows = self.encode_rows(queries, progress=progress)
        return Vocabulary(rows, torch.tensor(query_to_class), names)

    def encode_rows(self, names: Sequence[str], *, progress: bool = False) -> Tensor:
        """(Q, E) float32 unit rows: the mean over templates of each name's unit text embedding.

        A row depends on its own name alone, since each name is encoded by itself: rounding changes with the prompts in
        a call (by up to 4.5e-8 on a CPU, with one template), and with 80 prompts per name a call for several names
        saves little.
        """
        with self._lock:
            return self._encode_rows(names, progress)

    def _encode_rows(self, names: Sequence[str], progress: bool) -> Tensor:
        encoder, rows = self._current(), self._rows
        missing = [name for name in dict.fromkeys(names) if name not in rows]
        # miniters: after many names from the cache, tqdm would wait for as many before it draws again.
        for name in tqdm(
            missing, "class names", unit="name", miniters=1, disable=not progress, leave=False
        ):
            prompts = [template.replace("{}", name) for template in self.templates]
            row = None if self.cache is None else self.cache.read(self._fingerprint, prompts)
            if row is None:
                row = unit_mean(encoder(prompts))
                if self.cache is not None:
                    self.cache.write(self._fingerprint, prompts, row)
            rows[name] = row.to(encoder.device)
        found = torch.stack([rows[name] for name in names])
        while len(rows) > MOST_ROWS:
            del rows[next(iter(rows))]
        return found

    def _current(self) -> PromptEncoder:
        """The prompts' encoder of the model as it is now, whose weights are hashed where there is a cache."""
        weights = tuple(
            (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)  # noqa: SLF001
            for name, tensor in self.clip_model.state_dict().items()
            if is_of_text(name)
        )
        if self._prompts is None or weights != self._weights:
            self._rows.clear()
            self._prompts = PromptEncoder(self.clip_model, self.tokenizer)
            self._fingerprint = "" if self.cache is None else tower_fingerprint(self._prompts)
            self._weights = weights
        return self._prompts


MOST_ROWS = 1 << 14
"""Names that a `NameEncoder` keeps in memory: 32 MB of rows of 512."""


def check_classes_differ(names: Sequence[str]) -> None:
    """ValueError for a class alone, which would be the answer for every pixel of every image."""
    if len(names) == 1:
        raise ValueError(
            f"expected at least two classes to tell apart, got {quoted(names[0])} alone, which every pixel would be: "
            "name what else there is, or put a background in front (resclip.text.class_names.with_background; "
            "--background voc21 on the command line)"
        )


def whole_numbers(values: Any) -> Tensor:
    """The values as an int64 tensor; TypeError unless they are integers."""
    try:
        numbers = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        numbers = torch.empty(0)
    if numbers.is_floating_point() or numbers.is_complex():
        raise TypeError(f"query_to_class must be integers, one per query; got {quoted(values)}")
    return numbers.long()


class CheckedTokenizer:
    """A tokenizer whose token ids are compared with what a model's text side takes, call by call."""

    def __init__(self, tokenizer: Tokenizer, clip_model: Any) -> None:
        self.tokenizer = tokenizer
        # A CLIP model of transformers says in its configuration what the others say themselves.
        host = getattr(getattr(clip_model, "visual", None), "visual", None)
        text = getattr(getattr(host, "config", None), "text_config", clip_model)
        self.tokens = getattr(text, "vocab_size", None) or math.inf
        self.context = (
            getattr(text, "max_position_embeddings", 0)
            or getattr(clip_model, "context_length", 0)
            or math.inf
        )
        # open_clip's CLIP and OpenAI's add it to as many tokens as it has; other text sides take fewer tokens too.
        self.is_exact = hasattr(clip_model, "positional_embedding")

    def __call__(self, prompts: list[str]) -> Tensor:
        ids = self.tokenizer(prompts)
        if not isinstance(ids, Tensor):
            raise TypeError(
                f"tokenizer must return a tensor (N, context) of token ids; got {quoted(ids)}"
            )
        if ids.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"tokenizer must return token ids in int64; got {ids.dtype}")
        fits = ids.ndim == 2 and len(ids) == len(prompts) and 1 <= ids.shape[1] <= self.context
        if not fits or (self.is_exact and ids.shape[1] != self.context):
            context = "context" if self.context == math.inf else self.context
            raise ValueError(
                f"tokenizer must return ({len(prompts)}, {context}) token ids for {len(prompts)} prompts; "
                f"got {tuple(ids.shape)}"
            )
        if not 0 <= int(ids.min()) <= int(ids.max()) < self.tokens:
            raise ValueError(
                f"tokenizer must return token ids from 0 to {self.tokens - 1}, which the model's text side has; "
                f"got {int(ids.min())} to {int(ids.max())}"
            )
        return ids


def check_lengths(
    entries: Sequence[ClassEntry], tokenizer: CheckedTokenizer, templates: Sequence[str]
) -> None:
    """ValueError for names of two classes that are equal as far as the model reads; CutTextWarning for any cut name."""
    context = tokenizer.context if tokenizer.context < math.inf else tokenizer(["."]).shape[1]
    longest = max(templates, key=len)
    class_of = {query: entry.name for entry in entries for query in entry.queries}
    # A token is at least a byte, and few more begin and end a text: most names cannot be too long.
    queries = [query for query in class_of if len((longest + query).encode()) + 4 > context]
    if not queries:
        return
    prompts = [longest.replace("{}", query) for query in queries]
    # Where one word more changes no token, the tokenizer has already cut, or the very last one was the last to fit.
    is_full = tokenizer(prompts) == tokenizer([f"{prompt} picture" for prompt in prompts])
    cut = [query for query, full in zip(queries, is_full.all(dim=1).tolist(), strict=True) if full]
    first: dict[bytes, str] = {}
    for query in cut:
        of_query = tokenizer([template.replace("{}", query) for template in templates])
        earlier = first.setdefault(of_query.cpu().numpy().tobytes(), query)
        if class_of[earlier] != class_of[query]:
            raise ValueError(
                f"classes {quoted(class_of[earlier])} and {quoted(class_of[query])} are the same to the model, which "
                f"reads {context} tokens and cuts what is behind them: shorten their names so that these differ earlier"
            )
    if cut:
        more = f" and {len(cut) - 1:,} more" if len(cut) > 1 else ""
        warnings.warn(
            f"the model reads {context} tokens, so the end of {quoted(cut[0])}{more} is cut: shorten it",
            CutTextWarning,
            stacklevel=3,
        )


def unit_mean(features: Tensor) -> Tensor:
    """(N, E) → (E,) float32: the unit mean of the rows, each made a unit first."""
    units = F.normalize(features.float(), dim=-1)
    return F.normalize(units.mean(dim=0), dim=0)
