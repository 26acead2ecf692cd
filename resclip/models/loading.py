"""Loading CLIP models: from a name to the weights, the tower in steps, the tokenizer and the pixel statistics."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from resclip.builtin import BUILTIN
from resclip.errors import ActivationWarning, WeightsUnavailable, first_sentence
from resclip.models import hugging_face
from resclip.models.checkpoints import check_finite_weights, load_weights, read_weights
from resclip.models.downloads import (
    OPEN_CLIP_FILES,
    TRANSFORMERS_FILES,
    announce_hub,
    announce_tag,
)
from resclip.models.hugging_face import import_transformers, load_clip, no_questions
from resclip.models.listing import list_models
from resclip.models.tower import ADVICE, Tower, explain_layout, hook_of
from resclip_kernels import check_callable

HUB = "hf-hub:"
HUB_PREFIXES = (HUB, "local-dir:")
"""Prefixes of names under which open_clip finds a model's configuration together with its weights."""
TRANSFORMERS_PREFIX = "transformers:"
"""Prefix of the name or folder of a Hugging Face CLIPModel."""
LOCAL_CHECKPOINTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
"""Endings by which a missing file is told from a misspelt tag."""
BIG_VISION = (".npz", ".npy")
"""Endings of files in big_vision's format, which open_clip converts."""

CLIP_TOKENS = 49_408
"""Size of the vocabulary of CLIP's tokenizer."""

Tokenizer = Callable[[list[str]], Tensor]
"""A list of N prompts → (N, context) token ids."""


class LoadedModel(NamedTuple):
    """A CLIP model with what is needed to feed it."""

    model: Any
    """With `encode_text`: (N, context) token ids → (N, E), and `encode_image`; neither where it is a tower alone."""
    visual: Tower
    """The model's image tower."""
    tokenizer: Tokenizer
    mean: tuple[float, ...]
    """Mean per channel that pixels in [0, 1] are normalised with."""
    std: tuple[float, ...]
    """Standard deviation per channel that they are normalised with."""


def load_model(
    name: str,
    pretrained: str | None = None,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> LoadedModel:
    """Load a CLIP model by name, in eval mode.

    Args:
        name: "builtin" for the built-in model; a name of `list_models`; "hf-hub:ORG/NAME" or "local-dir:FOLDER" for
            a model in open_clip's format; "transformers:ORG/NAME" or "transformers:FOLDER" for a CLIPModel in Hugging
            Face's.
        pretrained: for a plain name, an open_clip pretrained tag, or the path of a local checkpoint: safetensors, a
            pickle that torch can load with `weights_only`, or a TorchScript archive such as OpenAI's, of which the
            tensors alone are read. What Lightning, DataParallel or torch.compile put around the names is taken off.
            None: the weights that come with any other name.
        device, dtype: of the weights.

    Raises:
        ValueError: an unknown model or tag (with the valid ones), no `pretrained` for a plain name, or one for a name
            that comes with weights.
        TypeError: the model's tower cannot be run in steps.
        ImportError: the model needs transformers, an extra.
        WeightsUnavailable: the weights or the tokenizer cannot be fetched or read, or do not fit one another.

    Warns:
        DownloadWarning: weights that are not on this machine are about to be fetched.
        ActivationWarning: a file of weights for a model of which others were trained with another activation function.
    """
    brings_weights = name == BUILTIN or name.startswith((*HUB_PREFIXES, TRANSFORMERS_PREFIX))
    if brings_weights and pretrained is not None:
        raise ValueError(f"model {name!r} comes with its weights; leave out pretrained=")
    model: Any
    tokenizer: Tokenizer
    if name == BUILTIN:
        from resclip.builtin import load_builtin

        model, tokenizer, mean, std = load_builtin()
    elif name.startswith(TRANSFORMERS_PREFIX):
        source = name.removeprefix(TRANSFORMERS_PREFIX)
        if not Path(source).exists():
            announce_hub(source, source, TRANSFORMERS_FILES)
        model, tokenizer, mean, std = load_clip(source)
    else:
        if not brings_weights:
            name = find_model(name, pretrained)
        tokenizer = load_tokenizer(name)  # First: a tokenizer that fails costs no large download.
        model = load_open_clip(name, pretrained)
        mean, std = image_statistics(model, name, pretrained)
    try:
        check_finite_weights(model)
    except ValueError as error:
        raise WeightsUnavailable(f"cannot use the weights of {name!r}: {error}") from None
    check_tokenizer(name, tokenizer, model)
    tower = adapt(model)
    return LoadedModel(model.to(device, dtype).eval(), tower, tokenizer, mean, std)


def check_tokenizer(name: str, tokenizer: Tokenizer, model: Any) -> None:
    """WeightsUnavailable where a tokenizer gives ids that a model's text side has no embedding for."""
    embedding = next(
        (
            module
            for path, module in model.named_modules()
            if isinstance(module, nn.Embedding)
            and path.endswith(("token_embedding", "word_embeddings"))
        ),
        None,
    )
    # Rare letters, and ids that begin and end a text, are among the largest.
    largest = int(tokenizer(["a photo of a cat.", "猫 собака 🐈"]).max())
    if embedding is not None and largest >= embedding.num_embeddings:
        raise WeightsUnavailable(
            f"the tokenizer of {name!r} gives ids up to {largest:,} at least, and the model's text side has "
            f"{embedding.num_embeddings:,}: they belong to different models; correct the tokenizer in the "
            "configuration, or load the model yourself and pass tokenizer="
        )


def wrap_model(model: nn.Module, tokenizer: Any = None) -> LoadedModel:
    """A model that is there already, with what is needed to feed it; it is used as it is, in eval mode.

    Args:
        model: what `adapt` takes. Only a whole CLIP model can encode names.
        tokenizer: of the model, a function of a list of prompts or a tokenizer of transformers. None: open_clip's own
            for a text side with CLIP's 49,408 tokens; for a model of transformers the one of its name or folder.

    Raises:
        TypeError: a model that `adapt` refuses.
    """
    if tokenizer is not None:
        check_callable(
            "tokenizer",
            tokenizer,
            "a function of a list of prompts, or a tokenizer of transformers",
        )
    tower = adapt(model)
    tower.check_host()
    tower.check_result()
    host = unwrap(model).eval()
    if not hugging_face.is_clip(host):
        mean, std = stated_statistics(tower.visual)
        tokenizer = Deferred(lambda: clip_tokenizer(host)) if tokenizer is None else tokenizer
        return LoadedModel(host, tower, tokenizer, mean, std)
    if tokenizer is None:
        tokenizer = Deferred(lambda: hugging_face.find_tokenizer(host))
    elif type(tokenizer).__module__.startswith("transformers."):
        tokenizer = hugging_face.fit_tokenizer(tokenizer, host)
    has_text = hasattr(host, "get_text_features")
    clip = hugging_face.HuggingFaceClip(host, tower) if has_text else host
    return LoadedModel(clip.eval(), tower, tokenizer, *hugging_face.statistics(host))


class Deferred:
    """A tokenizer that is made when it is first needed: whoever brings a ready `Vocabulary` needs none."""

    def __init__(self, make: Callable[[], Tokenizer]) -> None:
        self.make = make
        self.made: Tokenizer | None = None

    def __call__(self, prompts: list[str]) -> Tensor:
        self.made = self.made or self.make()
        return self.made(prompts)


def clip_tokenizer(clip: Any) -> Tokenizer:
    """CLIP's own tokenizer, in the length that a model's text side takes.

    Raises:
        ValueError: the text side has other tokens than CLIP's.
    """
    import open_clip

    size = getattr(clip, "vocab_size", None)
    if size != CLIP_TOKENS:
        raise ValueError(
            f"this model's text side has {size} tokens, not CLIP's {CLIP_TOKENS:,}: pass its tokenizer="
        )
    tokenizer: Tokenizer = open_clip.SimpleTokenizer(context_length=clip.context_length)
    return tokenizer


def stated_statistics(visual: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel that a tower says it was trained with; OpenAI's where it says nothing."""
    import open_clip

    stated = (
        getattr(visual, "preprocess_cfg", None) or getattr(visual, "pretrained_cfg", None) or {}
    )
    mean = stated.get("mean") or open_clip.OPENAI_DATASET_MEAN
    std = stated.get("std") or open_clip.OPENAI_DATASET_STD
    return tuple(mean), tuple(std)


def find_name(name: str) -> str:
    """open_clip's own spelling of a model's name; ValueError for an unknown model, or one without a plain tower."""
    import open_clip

    models = dict(list_models())
    spellings = {plain(model): model for model in models}
    if plain(name) not in spellings:
        if plain(name) in map(plain, open_clip.list_models()):
            raise ValueError(f"model {name!r} has no plain vision transformer tower; {ADVICE}")
        raise ValueError(
            f"unknown model {name!r}; use 'builtin', 'hf-hub:…' for an open_clip model on the hub, "
            f"'transformers:…' for a Hugging Face CLIPModel, or one of: {', '.join(models)}"
        )
    return spellings[plain(name)]


def find_model(name: str, pretrained: str | None) -> str:
    """open_clip's own spelling of a model's name, for weights that there are.

    Raises:
        ValueError: an unknown model, a missing or unknown tag, a missing checkpoint.
    """
    import open_clip

    model = find_name(name)
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained is None:
        raise ValueError(
            f"model {name!r} needs pretrained weights: a tag of {', '.join(tags) or 'none (no tags)'}, "
            "or the path of a local checkpoint"
        )
    if Path(pretrained).is_file() or pretrained in tags:
        return model
    if pretrained.endswith(LOCAL_CHECKPOINTS) or "/" in pretrained:
        raise ValueError(
            f"no checkpoint at {pretrained!r}; pass a file, or a tag: {', '.join(tags)}"
        )
    raise ValueError(
        f"model {name!r} has no pretrained tag {pretrained!r}; it has: {', '.join(tags) or 'none'}"
    )


def plain(name: str) -> str:
    """A name as it is compared: "/" and "-" and the case of letters make no difference."""
    return name.replace("/", "-").lower()


def load_open_clip(name: str, pretrained: str | None) -> Any:
    """An open_clip model with its weights; WeightsUnavailable if they cannot be loaded."""
    import open_clip

    file = None if pretrained is None or not Path(pretrained).is_file() else Path(pretrained)
    try:
        with no_questions():
            if file is not None and file.suffix not in BIG_VISION:
                weights = read_weights(file)
                model = new_model(name)
                load_weights(model, weights)
                warn_of_activation(name, file)
            else:
                # Some tags, "openai" for one, were trained with QuickGELU though the model's name does not say so.
                tag = open_clip.get_pretrained_cfg(name, pretrained or "") or {}
                if file is None and pretrained is not None:
                    announce_tag(name, pretrained, tag)
                elif name.startswith(HUB):
                    announce_hub(name, name.removeprefix(HUB), OPEN_CLIP_FILES)
                model = open_clip.create_model(
                    name,
                    pretrained=pretrained,
                    force_quick_gelu=bool(tag.get("quick_gelu")),
                    weights_only=True,
                    require_pretrained=True,
                )
    except Exception as error:
        raise WeightsUnavailable(explain(name, pretrained, error)) from error
    return model


def new_model(name: str) -> Any:
    """An open_clip model with random weights, without open_clip's line in the log that says so."""
    import open_clip

    def is_other(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("No pretrained weights")

    log = logging.getLogger()
    log.addFilter(is_other)
    try:
        return open_clip.create_model(name, pretrained_text=False, load_weights=False)
    finally:
        log.removeFilter(is_other)


def warn_of_activation(name: str, file: Path) -> None:
    """ActivationWarning where some weights for this model's shape were trained with QuickGELU, and others were not."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    quick = {
        bool((open_clip.get_pretrained_cfg(name, tag) or {}).get("quick_gelu")) for tag in tags
    }
    other = f"{name}-quickgelu"
    if len(quick) > 1 and other in open_clip.list_models():
        warnings.warn(
            f"{file.name} does not say by which activation function its weights were trained, and {name!r} computes "
            f"GELU: if they come from OpenAI's weights, or were trained further from these, use {other!r}, which "
            "computes QuickGELU as they do",
            ActivationWarning,
            stacklevel=2,
        )


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of an open_clip model; many are Hugging Face's (SigLIP, CLIPA, the multilingual models)."""
    import open_clip

    try:
        # A configuration could hand this on to transformers, which would then run what a repository holds.
        if "trust_remote_code" in json.dumps(open_clip.get_model_config(name)):
            raise ValueError(
                "its configuration asks to run code, trust_remote_code, which is refused"
            )
        with no_questions():
            tokenizer: Tokenizer = open_clip.get_tokenizer(name)
    except ImportError:
        import_transformers()
        raise
    except Exception as error:
        raise WeightsUnavailable(
            f"cannot fetch the tokenizer of {name!r} ({first_sentence(error)}); check the network"
        ) from error
    return tokenizer


def image_statistics(
    model: Any, name: str, pretrained: str | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of the pixels in [0, 1] that the model was trained on.

    A checkpoint file does not state them. They are taken from the model's tags if all of these agree (0.5 for
    SigLIP); if they differ, OpenAI's are the likely ones, which open_clip takes too.
    """
    import open_clip

    configs = [model.visual.preprocess_cfg]
    if pretrained is not None and Path(pretrained).is_file():
        tags = open_clip.list_pretrained_tags_by_model(name)
        configs = [open_clip.get_pretrained_cfg(name, tag) for tag in tags] or configs
    stated = {(tuple(config["mean"]), tuple(config["std"])) for config in configs}
    if len(stated) == 1:
        return stated.pop()
    return open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD


def explain(name: str, pretrained: str | None, error: Exception) -> str:
    """One sentence on why a model's weights could not be loaded, and what to do."""
    source = f"{name!r}" if pretrained is None else f"{name!r} with pretrained {pretrained!r}"
    if pretrained is not None and Path(pretrained).is_file():
        if isinstance(error, ValueError):
            return f"cannot load {source}: {error}"
        return (
            f"cannot load {source}: {first_sentence(error)}; the file must be a state dict of this model, as "
            "safetensors, a pickle of tensors alone or a TorchScript archive"
        )
    advice = (
        "check the network, pass the path of a checkpoint as pretrained=, name a model whose weights are on this "
        'machine, or take model="builtin" for drawn scenes'
        if pretrained is not None
        else "check the name and the network"
    )
    return f"cannot fetch the weights of {source} ({first_sentence(error)}); {advice}"


def adapt(visual: Any) -> Tower:
    """The tower of a CLIP model, in steps; its modules are used as they are.

    Args:
        visual: open_clip's `VisionTransformer`, or its `TimmModel` around a plain timm vision transformer; an open_clip
            model that has one of these as its `visual`; a model of OpenAI's `clip` package, or its `visual`; timm's
            `VisionTransformer` or `Eva`; Hugging Face's `CLIPModel`, `CLIPVisionModel`,
            `CLIPVisionModelWithProjection`, `SiglipModel` or `SiglipVisionModel`; any of these in `DataParallel`,
            `DistributedDataParallel`, `torch.compile` or a `PeftModel`; or a `Tower`, which is returned as it is.

    Raises:
        TypeError: anything else, or a tower whose final block cannot be rebuilt; the message names models that work.
    """
    try:
        tower = find_tower(visual)
        tower.check_layout()
    except AttributeError as error:
        raise TypeError(explain_layout(visual, error)) from error
    return tower


def find_tower(visual: Any) -> Tower:
    """What `adapt` returns, before its layout is looked at."""
    visual = unwrap(visual)
    if isinstance(visual, Tower):
        return visual
    if hugging_face.is_clip(visual):
        return hugging_face.HuggingFaceTower(visual)
    tower = unwrap(getattr(visual, "visual", visual))  # CLIP models hold their image tower there.
    if isinstance(tower, Tower):
        return tower

    import timm.models.eva
    import timm.models.vision_transformer
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    from resclip.models.open_clip_vit import OpenAITower, OpenClipTower
    from resclip.models.timm_vit import TimmTower

    if isinstance(tower, VisionTransformer):
        return OpenClipTower(tower)
    timm_models = (timm.models.vision_transformer.VisionTransformer, timm.models.eva.Eva)
    if isinstance(tower, (TimmModel, *timm_models)):
        return TimmTower(tower)
    if OpenAITower.fits(tower):
        return OpenAITower(tower)
    if isinstance(tower, ModifiedResNet):
        raise TypeError(f"the tower is a ModifiedResNet, a convolutional network: {ADVICE}")
    kind = type(tower)
    library = f" of {kind.__module__.partition('.')[0]}" if isinstance(tower, nn.Module) else ""
    raise TypeError(
        "expected a CLIP model of open_clip, OpenAI's clip or transformers (CLIP, SigLIP), its image tower, or a "
        f"vision transformer of timm; got {kind.__name__}{library}: {ADVICE}"
    )


def unwrap(model: Any) -> Any:
    """The model inside `DataParallel`, `DistributedDataParallel`, `torch.compile` and PEFT's `PeftModel`."""
    while (inner := inside(model)) is not None:
        if hook_of(model):
            raise TypeError(
                f"the {type(model).__name__} around the model has a hook, which a method would ignore: take it away, "
                "or put it on a layer inside"
            )
        model = inner
    return model


def inside(model: Any) -> Any:
    """What a wrapper is around; None for anything that `unwrap` does not take off."""
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return model.module
    if type(model).__module__.startswith("peft.") and hasattr(model, "get_base_model"):
        return model.get_base_model()
    if isinstance(model, nn.Module):
        # What torch.compile returns has no public way to what it compiled.
        return dict(model.named_children()).get("_orig_mod")
    return None
