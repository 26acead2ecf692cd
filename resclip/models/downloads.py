"""What is about to be downloaded: said before it is, and only then."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from resclip.errors import DownloadWarning

OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Names of open_clip's weights on the hub."""
TRANSFORMERS_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Names of the weights of transformers on the hub."""


def announce_tag(name: str, pretrained: str, tag: Mapping[str, Any]) -> None:
    """DownloadWarning unless the weights of a pretrained tag are on this machine.

    Args:
        name, pretrained: the model, and its tag.
        tag: what open_clip knows of these weights. It takes them from the hub where it can.
    """
    where = str(tag.get("hf_hub", ""))
    what = f"{name}, {pretrained}"
    if where and importlib.util.find_spec("huggingface_hub") is not None:
        repository, file = os.path.split(where)
        announce_hub(what, repository, [file] if file else OPEN_CLIP_FILES, size_of(name))
    elif url := str(tag.get("url", "")):
        folder = Path("~/.cache/clip").expanduser()
        if not (folder / Path(url).name).is_file():
            say(what, size_of(name), url, folder)


def announce_hub(what: str, repository: str, files: Iterable[str], size: str = "") -> None:
    """DownloadWarning unless one of the files of a hub's repository is on this machine, or the hub may not be asked."""
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if constants.HF_HUB_OFFLINE:
        return
    try:
        if any(isinstance(try_to_load_from_cache(repository, file), str) for file in files):
            return
    except HFValidationError:  # No name of a repository, which the download itself will say.
        return
    say(what, size, f"{repository} on the Hugging Face hub", Path(constants.HF_HUB_CACHE))


def say(what: str, size: str, source: str, folder: Path) -> None:
    warnings.warn(
        f"fetching the weights of {what}{size} from {source}; they are kept in {folder}",
        DownloadWarning,
        stacklevel=2,
    )


def size_of(name: str) -> str:
    """How large an open_clip model's weights are as float32, as ", about 0.60 GB"; empty where that is not known."""
    count = count_parameters(name)
    return "" if count is None else f", about {count * 4 / 1e9:.2f} GB,"


def count_parameters(name: str) -> int | None:
    """How many parameters an open_clip model has; None where that needs its weights, as of some text towers."""
    import open_clip
    from open_clip.model import CLIP, CustomTextCLIP

    config = dict(open_clip.get_model_config(name) or {})
    try:
        with torch.device("meta"):
            model = (CustomTextCLIP if config.pop("custom_text", False) else CLIP)(**config)
    # A text tower of transformers asks the network; other kinds of models have other classes.
    except Exception:  # noqa: BLE001
        return None
    count: int = sum(parameter.numel() for parameter in model.parameters())
    return count
