"""CLIP's own tokenizer, cut down to the words that the built-in model was trained on.

Id 0 pads (as in CLIP, which never reads padding), id 1 is any unknown word, then come the tokens of CLIP's byte-pair
vocabulary that are kept, in CLIP's order, then start and end of text. The end has the largest id: open_clip's text
encoder pools at the position of the largest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from open_clip.tokenizer import SimpleTokenizer

PAD, UNKNOWN, FIRST_KEPT = 0, 1, 2
_PIECES = re.compile(r"[a-z]+|[0-9]+|[^\sa-z0-9]")


class WordTokenizer:
    """An open_clip tokenizer: texts → (N, context_length) int64; longer texts are cut, as in CLIP."""

    def __init__(self, words: Sequence[str], context_length: int = 32) -> None:
        if context_length < 3:
            raise ValueError(
                f"context_length must be at least 3 (start, a word, end), got {context_length}"
            )
        clip = SimpleTokenizer(context_length=context_length)
        pieces = {word: list(clip.encode(word)) for word in [*words, ".", ","]}
        kept = sorted({piece for ids in pieces.values() for piece in ids})
        row = {piece: FIRST_KEPT + index for index, piece in enumerate(kept)}
        self.words = frozenset(words)
        self.context_length = context_length
        self.sot_token_id = FIRST_KEPT + len(kept)
        self.eot_token_id = self.sot_token_id + 1
        self.vocab_size = self.eot_token_id + 1
        self._ids = {word: [row[piece] for piece in ids] for word, ids in pieces.items()}

    @classmethod
    def from_file(cls, path: Path) -> WordTokenizer:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return cls(stored["words"], stored["context_length"])

    def as_json(self) -> str:
        stored = {"context_length": self.context_length, "words": sorted(self.words)}
        return json.dumps(stored, indent=1) + "\n"

    def encode(self, text: str) -> list[int]:
        """Ids of one text without start and end; each unknown word is one UNKNOWN."""
        return [
            row
            for piece in _PIECES.findall(text.lower())
            for row in self._ids.get(piece, [UNKNOWN])
        ]

    def unknown_words(self, text: str) -> list[str]:
        """The words of `text` that the model does not know, each once, in order."""
        pieces = dict.fromkeys(_PIECES.findall(text.lower()))
        return [piece for piece in pieces if piece not in self._ids]

    def __call__(
        self, texts: str | Sequence[str], context_length: int | None = None
    ) -> torch.Tensor:
        length = context_length or self.context_length
        batch = [texts] if isinstance(texts, str) else list(texts)
        result = torch.full((len(batch), length), PAD, dtype=torch.int64)
        for index, text in enumerate(batch):
            ids = [self.sot_token_id, *self.encode(text)[: length - 2], self.eot_token_id]
            result[index, : len(ids)] = torch.tensor(ids)
        return result
