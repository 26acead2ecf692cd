"""Text embeddings kept on disk, so that a name is encoded once for each model and set of templates.

Each safetensors file has the embedding of one name: adding a name to a list encodes one name, an interrupted run keeps
what it had, and two programs that write at once write different files, or the same bytes to one file. A file that
cannot be read back whole counts as missing; any file or folder of the cache may be deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from resclip.io.files import write_atomically
from resclip.text.prompt_encoder import PromptEncoder

FORMAT = "resclip text embedding, version 2"
"""Part of every key and checksum: a change of it leaves all older files unread."""
NOT_TEXT = frozenset({"visual", "vision_model", "visual_projection", "logit_scale", "logit_bias"})
"""Parts of a CLIP model, open_clip's or Hugging Face's, that encoding text does not use."""

PROBES = (
    "a photo of a cat.",
    "The Quick_brown-fox's 12:30, 3/4 & 50% “JUMPS” (over) [it]; naïve café!",
    "  two  spaces,\ttab ",
    "猫 собака قطة बिल्ली 🐈",
    "word and number 7 " * 100,  # Longer than any context, so it shows where texts are cut.
)
"""Texts whose tokens tell tokenizers apart; the embedding of the first tells text encoders apart."""


def default_directory() -> Path:
    """`$RESCLIP_CACHE`, else `$XDG_CACHE_HOME/resclip`, else `~/.cache/resclip`.

    An empty variable counts as unset, and so does a relative `$XDG_CACHE_HOME`, as the XDG specification says.

    Raises:
        RuntimeError: neither variable is set and the home directory is unknown.
    """
    chosen = os.environ.get("RESCLIP_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if caches.is_absolute():
        return caches / "resclip"
    try:
        return Path.home() / ".cache" / "resclip"
    except RuntimeError as error:
        raise RuntimeError(
            "expected a home directory for the text cache, found none; set RESCLIP_CACHE to a directory"
        ) from error


@dataclass(frozen=True)
class TextCache:
    """Text embeddings on disk, by tower and prompts.

    Attributes:
        directory: created by the first write; `default_directory()` if left out.
    """

    directory: Path = field(default_factory=default_directory)

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", Path(self.directory))

    def path(self, tower: str, prompts: Sequence[str]) -> Path:
        """The file of the embedding of `prompts` by `tower`, whether it exists or not."""
        key = hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()
        return self.directory / "text" / tower / f"{key}.safetensors"

    def read(self, tower: str, prompts: Sequence[str]) -> Tensor | None:
        """The stored (E,) float32 embedding, on the CPU; None if it is missing or damaged.

        Args:
            tower: the fingerprint by `tower_fingerprint`.
            prompts: a name in each of its templates.
        """
        path = self.path(tower, prompts)
        try:
            if not path.is_file():
                # Whatever else has this name, a pipe among others, is not opened: it might wait for ever.
                return None
            with safe_open(path, framework="pt") as file:
                stored = (file.metadata() or {}).get("checksum")
                embedding: Tensor = file.get_tensor("embedding")
        except (OSError, SafetensorError):
            return None
        return embedding if stored == _checksum(path, embedding) else None

    def write(self, tower: str, prompts: Sequence[str], embedding: Tensor) -> None:
        """Store an (E,) float32 embedding; if the directory cannot be written to, that is a warning, not an error.

        Warns:
            RuntimeWarning: the file could not be written.
        """
        path = self.path(tower, prompts)
        embedding = embedding.detach().cpu().contiguous()
        data = save({"embedding": embedding}, {"checksum": _checksum(path, embedding)})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data)
        except OSError as error:
            warnings.warn(
                f"cannot write to the text cache in {self.directory} ({error.strerror}), so names will be encoded "
                "again next time; set RESCLIP_CACHE to a writable directory",
                RuntimeWarning,
                stacklevel=2,
            )


def _checksum(path: Path, embedding: Tensor) -> str:
    """Hash of an embedding with its tower and prompts, so that a file under another's name is not taken for it."""
    identity = f"{FORMAT}\n{path.parent.name}\n{path.stem}\n{_digest(embedding)}"
    return hashlib.sha256(identity.encode()).hexdigest()


def is_of_text(name: str) -> bool:
    """Whether a CLIP model's weight or buffer of this name takes part when text is encoded."""
    return NOT_TEXT.isdisjoint(name.split("."))


def tower_fingerprint(encoder: PromptEncoder) -> str:
    """64 hexadecimal digits that identify a text encoder: if they are equal, embeddings are equal bit for bit.

    They hash every weight and buffer that encoding text uses, the tokens of a few texts, which identify the tokenizer,
    whether prompts are cut, and one text's embedding, by the way that all names go, which depends on what weights do
    not show: the activation function, the precision, the device and how it multiplies. (open_clip's "ViT-B-16" and
    "ViT-B-16-quickgelu" can have the same weights and differ in the activation alone.)

    For the 124 million float32 weights (500 MB) of ViT-L/14's text side it takes 0.5 s on one CPU core, nearly all
    of it for hashing, which more cores share.

    Args:
        encoder: its model has `state_dict`; the weights of the image tower are left out.
    """
    tokens = encoder.tokenizer(list(PROBES))
    embedding = encoder.encode(tokens[:1])
    tensors = {
        name: tensor for name, tensor in encoder.clip_model.state_dict().items() if is_of_text(name)
    }
    tensors |= {"tokens of probes": tokens, "embedding of a probe": embedding}
    with ThreadPoolExecutor() as threads:  # Hashing releases Python's lock.
        digests = list(threads.map(_digest, tensors.values()))
    parts = [
        FORMAT,
        torch.__version__,
        encoder.device.type,
        "whole" if encoder.cut is None else "cut" if encoder.cut.encode_tree is None else "tree",
        *(f"{name} {digest}" for name, digest in zip(tensors, digests, strict=True)),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _digest(tensor: Tensor) -> str:
    """Hash of a tensor's dtype, shape and bytes, on any device."""
    content = tensor.detach().cpu().contiguous()
    total = hashlib.sha256(f"{content.dtype} {tuple(content.shape)}\n".encode())
    total.update(content.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
