"""Files of weights: read as tensors alone, whatever wraps them, and said what they are where they do not fit.

A file is told by its content: safetensors, a pickle of tensors (what `torch.save` writes), or a TorchScript archive
(what `torch.jit.save` writes, as OpenAI's releases are). Nothing in a file is run: pickles are read by torch with
`weights_only`, and of an archive the tensors alone, by a reader that knows no other objects. A pickled model is
refused.
"""

from __future__ import annotations

import collections
import io
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resclip.errors import first_sentence
from resclip_kernels import quoted

State = dict[str, Tensor]

CONTAINERS = ("state_dict", "model_state_dict", "model", "module", "weights")
"""Names under which training programs (Lightning, timm, DeepSpeed) store a state dict among other things."""
PREFIXES = ("module.", "model.", "_orig_mod.", "clip.", "clip_model.", "net.")
"""What wrappers put in front of names: DataParallel, Lightning, torch.compile, modules around a model."""
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's archives hold as tensors."""
PICKLE, ZIP = b"\x80", b"PK"
SAVE = "save its state dict alone, torch.save(model.state_dict(), FILE), or as safetensors"
DAMAGED = "it is cut off or damaged: fetch it again"


def read_weights(path: Path) -> State:
    """The tensors of a file, by the names that it gives them.

    Raises:
        ValueError: it holds no weights, holds more than tensors, or is damaged; the message says what it is.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise ValueError("it is empty: fetch it again")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(
            "it is a pointer of Git LFS, not the weights: fetch them with `git lfs pull`"
        )
    if head.lstrip().startswith(b"<"):
        raise ValueError(
            "it is a web page, not weights: the link behind it needs another address or a login"
        )
    if head.startswith(ZIP):
        return read_zip(path)
    if head.startswith(PICKLE):
        return unwrapped(read_pickle(path))
    if head[8:9] == b"{":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{DAMAGED} ({first_sentence(error)})") from None
    raise ValueError(
        f"it is neither safetensors nor a file of torch.save; it begins with {quoted(head[:12])}"
    )


def read_zip(path: Path) -> State:
    """The tensors of a zip file, which `torch.save` and `torch.jit.save` both write."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if any(name.endswith("/constants.pkl") for name in names):
                return read_archive(archive)
    except (OSError, Foreign):
        raise
    # A damaged archive makes its readers raise anything.
    except Exception as error:  # noqa: BLE001
        raise ValueError(f"{DAMAGED} ({first_sentence(error)})") from None
    if not any(name.endswith("data.pkl") for name in names):
        raise ValueError(
            "it is a zip file of something else: unpack it, and name the file of weights"
        )
    return unwrapped(read_pickle(path))


def read_pickle(path: Path) -> Any:
    """What `torch.save` wrote, if that is tensors and plain values alone."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    # A damaged pickle can ask for anything.
    except Exception as error:  # noqa: BLE001
        foreign = re.search(r"GLOBAL ([\w.]+)|Unsupported (?:global|class) ([\w.]+)", str(error))
        if foreign is not None:
            raise ValueError(
                f"it is a pickle of Python objects ({foreign[1] or foreign[2]}), which could run code and is not "
                f"opened: where you trust it, load it yourself and {SAVE}"
            ) from None
        raise ValueError(
            f"{DAMAGED}, unless torch.save did not write it; then {SAVE} ({first_sentence(error)})"
        ) from None


class Foreign(ValueError):
    """An archive that holds what no TorchScript archive of weights does."""


class Held:
    """An object of a TorchScript archive, of whatever class: its attributes."""


class ArchiveReader(pickle.Unpickler):
    """Reads the attributes of a TorchScript archive's modules; any class or function of Python is unknown to it."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        self.archive = archive
        self.folder = folder
        super().__init__(io.BytesIO(self.stored("data.pkl")))
        self.storages: dict[str, Tensor] = {}

    def stored(self, name: str) -> bytes:
        """A member's bytes, which torch never packs: packed ones could stand for more than there is memory."""
        member = self.archive.getinfo(f"{self.folder}/{name}")
        if member.compress_type != zipfile.ZIP_STORED:
            raise Foreign(f"it holds packed data, which torch does not write; {SAVE}")
        return self.archive.read(member)

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return Held
        if module == "collections" and name == "OrderedDict":
            return collections.OrderedDict
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return rebuild
        if module == "torch" and name.endswith("Storage"):
            return name
        if module == "torch.jit._pickle":  # Lists of numbers, with their types.
            return first_of
        raise Foreign(
            f"it holds {quoted(f'{module}.{name}')}, which is no part of a TorchScript archive"
        )

    def persistent_load(self, pid: Any) -> Tensor:
        _, kind, key, _, count = pid
        if key not in self.storages:
            dtype = getattr(torch, kind).dtype
            data = bytearray(self.stored(f"data/{key}"))
            flat = torch.frombuffer(data, dtype=dtype, count=count) if count else torch.empty(0)
            self.storages[key] = flat
        return self.storages[key]


def rebuild(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    """A tensor of a storage; RuntimeError where it would lie outside of it."""
    return storage.as_strided(size, stride, offset)


def first_of(value: Any, *_: Any) -> Any:
    """What torch.jit's list builders are given."""
    return value


def read_archive(archive: zipfile.ZipFile) -> State:
    """The parameters, buffers and other tensors of the modules of a TorchScript archive, by path."""
    folder = next(name for name in archive.namelist() if name.endswith("/constants.pkl"))
    reader = ArchiveReader(archive, folder.removesuffix("/constants.pkl"))
    top = reader.load()
    state: State = {}
    waiting = [("", top)]
    seen = {id(top)}
    while waiting:
        path, one = waiting.pop()
        for name, value in vars(one).items() if isinstance(one, Held) else ():
            if isinstance(value, Tensor):
                state[path + name] = value
            # An object may hold itself.
            elif isinstance(value, Held) and id(value) not in seen:
                seen.add(id(value))
                waiting.append((f"{path}{name}.", value))
    return state


def unwrapped(content: Any) -> State:
    """The state dict in what was stored, by itself or among other things."""
    seen: set[int] = set()
    while isinstance(content, Mapping):
        # A mapping may hold itself.
        if id(content) in seen:
            raise ValueError(f"it holds no tensors by name, but itself: {SAVE}")
        seen.add(id(content))
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        inner = next(
            (content[name] for name in CONTAINERS if isinstance(content.get(name), Mapping)), None
        )
        if inner is None or len(tensors) > len(content) // 2:
            if tensors:
                return tensors
            held = ", ".join(quoted(name) for name in list(content)[:5])
            within = next((name for name, value in content.items() if has_tensors(value)), None)
            if within is not None:
                name = quoted(within)
                raise ValueError(
                    f"it holds {held}, of which {name} has tensors by name: save that alone, "
                    f"torch.save(torch.load(FILE)[{name}], OTHER)"
                )
            raise ValueError(f"it holds no tensors by name, but {held or 'nothing'}: {SAVE}")
        content = inner
    raise ValueError(f"it holds a {type(content).__name__}, not a state dict: {SAVE}")


def has_tensors(content: Any) -> bool:
    """Whether this is a mapping with a tensor in it."""
    return isinstance(content, Mapping) and any(isinstance(one, Tensor) for one in content.values())


def fit_names(state: State, expected: Iterable[str]) -> State:
    """The weights under the names that a model gives them, without what wrappers put in front of these."""
    expected = set(expected)
    for _ in range(4):  # Wrappers in wrappers.
        state = {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}
        if expected & state.keys():
            break
        for prefix in PREFIXES:
            inside = {
                name.removeprefix(prefix): tensor
                for name, tensor in state.items()
                if name.startswith(prefix)
            }
            if inside:
                state = inside
                break
        else:
            break
    return {name: tensor for name, tensor in state.items() if name not in NOT_WEIGHTS}


def load_weights(model: nn.Module, weights: State) -> None:
    """Fill an open_clip model with what `read_weights` has read.

    Raises:
        ValueError: they are not this model's; the message says what they look like.
    """
    from open_clip.convert import convert_state_dict
    from open_clip.model import (
        convert_to_custom_text_state_dict,
        resize_pos_embed,
        resize_text_pos_embed,
    )

    clip: Any = model
    own = model.state_dict()
    split = convert_to_custom_text_state_dict(dict(own))
    merged = {name.removeprefix("text.") for name in own}
    state = fit_names(weights, {*own, *split, *merged})
    not_stored = {name for name, _ in model.named_buffers()} - own.keys()
    state = {name: tensor for name, tensor in state.items() if name not in not_stored}
    came = dict(state)
    check_dense(came, own)
    # As open_clip does: other programs' names, the text side apart, one number as a scalar, other sizes of images.
    try:
        state = convert_state_dict(model, state)
        if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
            state = convert_to_custom_text_state_dict(state)
        for name in ("logit_scale", "logit_bias"):
            if name in state and name in own and state[name].numel() == 1:
                state[name] = state[name].reshape(own[name].shape)
        if "logit_bias" in own and "logit_scale" in state:
            state.setdefault("logit_bias", torch.zeros_like(own["logit_bias"]))
        if "text.transformer.embeddings.position_ids" not in own:
            state.pop("text.transformer.embeddings.position_ids", None)
        if not own.keys() - state.keys():
            resize_pos_embed(state, clip)
            resize_text_pos_embed(state, clip)
    # What is of another shape than its name promises makes open_clip raise anything; the shapes say more.
    except Exception:  # noqa: BLE001
        state = came
    check_fit(came, state, own)
    model.load_state_dict(state)


def check_dense(came: State, own: Mapping[str, Tensor]) -> None:
    """ValueError for weights that are packed, or that numbers of another kind stand for."""
    for name, tensor in came.items():
        kind = None
        if tensor.is_meta:
            kind = "has no data (device meta)"
        elif tensor.layout is not torch.strided:
            kind = "is sparse"
        elif tensor.is_quantized:
            kind = "is quantised"
        elif name in own and own[name].is_floating_point() and not tensor.is_floating_point():
            kind = f"is of {tensor.dtype}, not of floating numbers"
        if kind is not None:
            raise ValueError(f"its {quoted(name)} {kind}: save the weights as plain float tensors")


def check_fit(came: State, state: State, own: Mapping[str, Tensor]) -> None:
    """ValueError unless the weights have the model's names and shapes."""
    missing = [name for name in own if name not in state]
    surplus = [name for name in state if name not in own]
    other = [
        name for name, tensor in own.items() if name in state and state[name].shape != tensor.shape
    ]
    if not missing and not surplus and not other:
        return
    if other:
        name = other[0]
        wrong = (
            f"{name} is {tuple(state[name].shape)} there and {tuple(own[name].shape)} in the model"
        )
    elif missing:
        wrong = f"{len(missing)} of {len(own)} weights are missing, {missing[0]} first"
        front = next((name for name in came if name.endswith(f".{missing[0]}")), None)
        if front is not None:
            prefix = quoted(front.removesuffix(missing[0]))
            wrong += f", whose name has {prefix} in front: take that off all names"
    else:
        wrong = f"{len(surplus)} weights have no place in the model, {surplus[0]} first"
    first = ", ".join(
        f"{quoted(name)} {tuple(tensor.shape)}" for name, tensor in list(came.items())[:3]
    )
    kind = looks_like(came)
    if kind == looks_like(own):
        # To name this very model would not help.
        kind = "is otherwise of this model's kind"
    raise ValueError(f"{wrong}; the file begins with {first or 'nothing'}, and {kind}")


def looks_like(state: Mapping[str, Tensor]) -> str:
    """What weights look like, and what to call, in words."""
    names = list(state)
    if any(name.startswith("vision_model.") for name in names):
        return "looks like a CLIPModel of transformers: name the folder that it is in, 'transformers:FOLDER'"
    if any(re.search(r"(^|\.)layer1\.0\.", name) for name in names):
        return "looks like a ResNet, which has no transformer blocks: use weights of a vision transformer"
    patches = next(
        (
            tensor
            for name, tensor in state.items()
            if tensor.ndim == 4 and re.search(r"(conv1|patch_embed\.proj)\.weight$", name)
        ),
        None,
    )
    if patches is None:
        return "has no image tower that is known here: pass the state dict of the whole CLIP model"
    width, _, patch, _ = patches.shape
    kind = f"a vision transformer of width {width} with patches of {patch}"
    if not any("token_embedding" in name or name.startswith("text.") for name in names):
        return (
            f"looks like {kind} alone, without the text side that encodes names: pass the whole CLIP model's weights, "
            "or load the tower yourself and pass it with classes= as a Vocabulary"
        )
    blocks = {found[1] for name in names if (found := re.search(r"visual\.\D*(\d+)\.", name))}
    output = state.get("visual.proj")
    matching = models_like(width, patch, len(blocks), None if output is None else output.shape[-1])
    named = " or ".join(map(repr, matching[:3]))
    return f"looks like a CLIP model with {kind}" + (f": use model={named}" if named else "")


def models_like(width: int, patch: int, blocks: int, output: int | None) -> list[str]:
    """open_clip's models whose image tower has this width, patches of this size, so many blocks and this output."""
    import open_clip

    wanted = (width, patch, blocks)
    found = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name) or {}
        vision = config.get("vision_cfg", {})
        came = vision.get("width"), vision.get("patch_size"), vision.get("layers")
        if came == wanted and output in (None, config.get("embed_dim")):
            found.append(name)
    return found


def check_finite_weights(model: nn.Module) -> None:
    """ValueError for a weight that is no number, after which nothing would be."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"its {name} holds NaN or infinity: fetch or train it again")
