"""`load`: from names to a segmenter: the model, the method with its options, the classes, the device."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import nn

from resclip.encoder.dense_encoder import DenseEncoder
from resclip.errors import (
    SlowPrecisionWarning,
    UnknownChannelsWarning,
    UnknownWordsWarning,
)
from resclip.inference.memory import cap_memory, usable_device
from resclip.inference.pipeline import MAX_WINDOWS, check_settings
from resclip.inference.rejection import Threshold, check_threshold
from resclip.methods.catalogue import BASES, RCS, SFR, Method, Overview, ProxyAttention, find_method
from resclip.methods.composition import compose
from resclip.methods.correlation import Correlation
from resclip.methods.pieces import Pieces
from resclip.methods.presets import find_preset
from resclip.methods.steps import Steps
from resclip.models import BUILTIN, load_model, unwrap, wrap_model
from resclip.models.proxy_models import find_proxy
from resclip.models.recommended import DEFAULT_MODEL, DEFAULT_TAG
from resclip.segmenter import Segmenter
from resclip.text.class_names import ClassEntry, read_entries, with_background
from resclip.text.embedding_cache import TextCache
from resclip.text.vocabulary import Classes, NameEncoder, Vocabulary, check_classes_differ
from resclip_kernels import (
    check_implementation,
    check_type,
    multiplies_bfloat16,
    quoted,
)

BATCH_SIZE = 8
"""Windows per batch on a CPU, where 16 take a fifth more time: their activations are mapped anew for every layer."""
BATCH_SIZES = {"cuda": 16}
"""Windows per batch on other devices, by torch's name of the device type."""
Module = TypeVar("Module", RCS, SFR)
WITH_BACKGROUND = ("voc21", "context60", "coco-object")
"""The presets of benchmarks whose first class is their background."""
DEEP = 24
"""Blocks of ViT-L/14, for which some settings differ."""
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def load(
    model: str | nn.Module | None = None,
    pretrained: str | None = None,
    *,
    classes: Classes | Vocabulary,
    method: str | Method = "resclip",
    preset: str | None = None,
    correlation: Correlation | str | None = None,
    proxy: str | ProxyAttention | None = None,
    rcs: RCS | Mapping[str, Any] | None = None,
    sfr: SFR | Mapping[str, Any] | None = None,
    overview: Overview | None = None,
    pieces: Pieces | Mapping[str, Any] | None = None,
    steps: Steps | Mapping[str, Any] | None = None,
    position: str | None = None,
    device: str | torch.device | None = None,
    precision: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    short_side: int | None = None,
    probability_threshold: float | None = None,
    threshold: Threshold | None = None,
    min_margin: float | None = None,
    background: str | None = None,
    logit_scale: float | None = None,
    refine_iterations: int | None = None,
    batch_size: int | None = None,
    pad_batches: bool = False,
    max_memory: int | None = None,
    max_windows: int | None = None,
    implementation: str = "auto",
    templates: str | Sequence[str] | None = None,
    tokenizer: Any = None,
    cache: TextCache | bool | None = True,
    progress: bool = False,
) -> Segmenter:
    """A segmenter from names: model, method and classes.

    Args:
        model: an open_clip model with a vision transformer, "transformers:NAME" for Hugging Face's, or "builtin", the
            small built-in model for drawn scenes; `resclip models` lists them. None: "ViT-B-16", with the weights
            "openai" unless `pretrained` names others. Or a CLIP model that is there already,
            see `resclip.models.adapt`: it is used as it is and where it is, in eval mode.
        pretrained: open_clip tag, or the path of a checkpoint (safetensors, or a pickle of tensors alone).
        classes: a list with one entry per class: "cat, kitten" (synonyms, the first is its name) or "pet: cat, dog"
            (a name, then its queries); or, as on the command line, one text such as "cat, kitten; dog", "@voc21", or
            the path of a file, see `resclip.text.class_names`; or a ready `Vocabulary`.
        method: a base of `resclip.methods.catalogue.BASES`, or "resclip", with "+rcs", "+sfr" and steps such as "+tlp"
            behind it, see `find_method`; or a `Method`.
        preset: a name of `resclip.methods.presets.PRESETS`; None:
            the method's defaults (the built-in model has its own).
        correlation: what the final block compares, instead of the base's choice; see `Correlation`.
        proxy: ProxyCLIP's vision model, by name or with β, γ and input size; None: "colour" for the built-in model,
            else the base's own.
        rcs, sfr: a module's options, replacing all of the method's and the preset's, or a mapping that replaces some;
            a method without the module gets it.
        overview: windows also see the whole image at a low resolution; None: they see themselves alone.
        pieces: what is done to tokens and maps beside the attention: a `Pieces`, or changes of the base's own by name,
            such as {"outliers": {"detector": "norm"}, "stream": None}; see `resclip.methods.composition.compose`.
        steps: what is done behind the tokens: a `Steps`, or changes of the method's own by name.
        position: how position embeddings are resized, see `DenseEncoder`; None: the base's own.
        device: None: a GPU if there is one.
        precision: "fp32", "fp16" or "bf16"; None: fp16 on a GPU, fp32 elsewhere. "bf16" is faster on CPUs that
            multiply it (AVX512-BF16, AMX), and a `SlowPrecisionWarning` on others; it changed 3 in
            10,000 labels of drawn scenes, where two classes are about equally probable.
        window, stride, short_side, probability_threshold, logit_scale, refine_iterations: see `Segmenter`; None: the
            base's (ProxyCLIP has its own windows), else the preset's, else its defaults; the built-in model's preset
            overrides the base.
        threshold, min_margin: which pixels are too uncertain for a class and stay unlabelled, see `Segmenter`. With the
            preset of a benchmark whose first class is its background, a number as `threshold` is what the protocol says
            instead: such pixels are of that class.
        background: a list of names, "voc21" or "coco-object", for a first class of what is none of `classes`.
        batch_size: most windows per batch; None: 16 on a GPU, 8 elsewhere.
        pad_batches, max_memory, max_windows: see `Segmenter`; None: its defaults.
        implementation: of the ops: "auto", "triton", "library", "torch" or "reference".
        templates: prompts with "{}" for the name, or the name of a set of `resclip.text.templates.TEMPLATE_SETS`; None:
            CLIP's 80 ImageNet templates (the built-in model has its own).
        tokenizer: of a model that is passed itself, where it is not CLIP's own: a function of a list of prompts, or a
            tokenizer of transformers.
        cache: text features on disk: a `TextCache`; True: the one in the user's cache folder; False or None: none.
        progress: draw a progress bar while names are encoded.

    Raises:
        ValueError: an unknown name, with the valid ones.
        WeightsUnavailable: weights that cannot be fetched or read.

    Warns:
        DownloadWarning: weights that are not on this machine are about to be fetched.
        UnknownWordsWarning: the built-in model has never read a word of the names.
    """
    if model is None:
        model, pretrained = DEFAULT_MODEL, DEFAULT_TAG if pretrained is None else pretrained
    is_builtin = isinstance(model, str) and model == BUILTIN
    if preset is None and is_builtin:
        preset = BUILTIN
    chosen = find_method(method)
    if rcs is not None and chosen.rcs is None:
        chosen = replace(chosen, rcs=RCS())
    if sfr is not None and chosen.sfr is None:
        chosen = replace(chosen, sfr=SFR())
    values = dict(BASES[chosen.base].segmenter)
    if preset is not None:
        settings = find_preset(preset).settings_of(chosen)
        chosen = find_preset(preset).apply(chosen)
        # A base's own windows, as ProxyCLIP has, stand above those of a dataset, and a model's above both.
        values = {**values, **settings} if preset == BUILTIN else {**settings, **values}
    chosen = replace(
        chosen,
        rcs=with_options("rcs", chosen.rcs, rcs),
        sfr=with_options("sfr", chosen.sfr, sfr),
    )
    base = BASES[chosen.base]
    composed = compose(base.pieces if chosen.pieces is None else chosen.pieces, pieces)
    behind = compose(base.steps if chosen.steps is None else chosen.steps, steps)
    requested = {
        "window": window,
        "stride": stride,
        "short_side": short_side,
        "probability_threshold": probability_threshold,
        "logit_scale": logit_scale,
        "refine_iterations": refine_iterations or chosen.refine_iterations or None,
        "threshold": threshold,
        "min_margin": min_margin,
    }
    if threshold is not None and protocol_of(preset) and probability_threshold is None:
        check_threshold(threshold)
        if not isinstance(threshold, (int, float)):
            raise ValueError(
                f"preset {preset!r} gives improbable pixels its first class, the background, by one number; got "
                f"{quoted(threshold)}: pass one number, or leave the preset out"
            )
        requested |= {"threshold": None, "probability_threshold": threshold}
    values.update({name: value for name, value in requested.items() if value is not None})
    if window is None and behind.clusters is not None:
        values["window"] = 0  # A cluster vote takes whole pictures, whatever a preset says.
    if stride is None and isinstance(window, int) and window:
        values["stride"] = max(1, window // 2)
    # A request that cannot be carried out is refused before a model is fetched and loaded for it.
    vocabulary = classes if isinstance(classes, Vocabulary) else None
    if isinstance(classes, Vocabulary):
        entries, names = [], list(classes.names)
        if background is not None:
            raise ValueError(
                "background is a list of names, and a Vocabulary has been encoded: give the classes as names"
            )
    else:
        entries = read_entries(classes)
        if background is not None:
            entries = read_entries(with_background(entries, background))
        names = [entry.name for entry in entries]
        check_classes_differ(names)
    if values.get("threshold") is not None:
        check_threshold(values["threshold"], names)
    if cache is True:
        cache = TextCache()
    elif cache is not False and cache is not None:
        check_type(
            "cache", cache, TextCache, "a TextCache, True for the user's, False or None for none"
        )
    attention = choose_proxy(chosen, proxy, is_builtin)
    limits: dict[str, Any] = {
        "batch_size": batch_size,
        "pad_batches": pad_batches,
        "max_memory": max_memory,
        "max_windows": MAX_WINDOWS if max_windows is None else max_windows,
    }
    check_settings({**values, **limits})
    if isinstance(model, str):
        torch_device = choose_device(device)
        dtype = choose_precision(precision, torch_device)
    else:
        check_own_model(pretrained=pretrained, device=device, precision=precision)
        loaded = wrap_model(model, tokenizer)
        torch_device, dtype = loaded.visual.device, loaded.visual.dtype
    check_implementation(implementation, torch.empty(0, device=torch_device, dtype=dtype))
    if batch_size is None:
        limits["batch_size"] = BATCH_SIZES.get(torch_device.type, BATCH_SIZE)
    if max_memory is not None:
        cap_memory(torch_device, max_memory)
    if isinstance(model, str):
        if tokenizer is not None:
            raise ValueError(
                f"model {model!r} comes with its tokenizer; leave out tokenizer=, or pass the model itself"
            )
        loaded = load_model(model, pretrained, device=torch_device, dtype=dtype)
    name_encoder = None
    if hasattr(loaded.model, "encode_text"):
        if is_builtin and vocabulary is None:
            from resclip.builtin import TEMPLATES

            templates = TEMPLATES if templates is None else templates
        name_encoder = NameEncoder(
            loaded.model,
            loaded.tokenizer,
            templates=templates,
            cache=cache or None,
            check=warn_of_unknown_words if is_builtin else None,
        )
    if vocabulary is None:
        if name_encoder is None:
            raise ValueError(
                f"a {type(loaded.model).__name__} has no text side to encode names with: pass a whole CLIP model, or "
                "classes as a Vocabulary"
            )
        vocabulary = name_encoder.encode(entries, progress=progress)
    encoder = DenseEncoder(
        loaded.visual,
        base=chosen.base,
        rcs=chosen.rcs,
        sfr=chosen.sfr,
        final_block=chosen.final_block,
        implementation=implementation,
        correlation=chosen.correlation if correlation is None else correlation,
        proxy=None
        if attention is None
        else find_proxy(
            attention.model,
            mean=loaded.mean,
            std=loaded.std,
            device=torch_device,
            dtype=dtype,
            input_size=attention.input_size,
        ),
        proxy_attention=attention,
        overview=overview,
        pieces=composed,
        position=chosen.position if position is None else position,
    )
    if preset is not None and encoder.tower.depth == DEEP:
        own = find_preset(preset).own_settings(chosen)
        given = {name for name, value in requested.items() if value is not None}
        values.update(
            {}
            if own is None
            else {name: value for name, value in own.deep.items() if name not in given}
        )
    warn_of_foreign_channels(encoder, model, pretrained)
    name = method if isinstance(method, str) else chosen.name
    source = {
        "model": model if isinstance(model, str) else type(unwrap(model)).__name__,
        "pretrained": pretrained,
        "method": name,
        "preset": preset,
        "templates": list(templates) if isinstance(templates, (list, tuple)) else templates,
    }
    return Segmenter(
        encoder,
        vocabulary,
        steps=behind,
        **limits,
        mean=loaded.mean,
        std=loaded.std,
        source=source,
        name_encoder=name_encoder,
        **values,
    )


def protocol_of(preset: str | None) -> bool:
    """Whether a preset is a benchmark's whose first class is its background, which improbable pixels get."""
    return preset in WITH_BACKGROUND


def warn_of_foreign_channels(
    encoder: DenseEncoder, model: str | nn.Module, pretrained: str | None
) -> None:
    """UnknownChannelsWarning if tokens are denoised by the channels of another checkpoint than this one."""
    denoising = encoder.pieces.denoising
    if denoising is None or denoising.channels is not None or pretrained == "openai":
        return
    tower = encoder.tower
    if denoising.channels_of(tower.depth, tower.width, tower.patch_size[0]):
        named = f"{model}, {pretrained}" if isinstance(model, str) else type(unwrap(model)).__name__
        warnings.warn(
            f"base {encoder.base.name!r} denoises tokens by channels that stand out in OpenAI's weights, and these are "
            f"others ({named}): name their own with pieces={{'denoising': {{'channels': …}}}}, or leave denoising out",
            UnknownChannelsWarning,
            stacklevel=3,
        )


def check_own_model(**requested: Any) -> None:
    """ValueError for arguments that say how to load a model, where the model itself was passed."""
    for name, value in requested.items():
        if value is not None:
            raise ValueError(
                f"{name} says how a named model is loaded, and this one is there already: leave {name} out, and "
                "move or convert the model itself"
            )


def with_options(
    name: str, module: Module | None, options: Module | Mapping[str, Any] | None
) -> Module | None:
    """The module with some of its options replaced, or replaced as a whole."""
    if isinstance(options, Mapping):
        if module is None:
            return None
        known = [field.name for field in fields(module)]
        for option in options:
            if option not in known:
                raise TypeError(
                    f"{name} must name options of {', '.join(known)}; got {quoted(option)}"
                )
        return replace(module, **options)
    return module if options is None else options


def choose_proxy(
    method: Method, requested: str | ProxyAttention | None, is_builtin: bool
) -> ProxyAttention | None:
    """ProxyCLIP's options for a method, None for other methods; ValueError if these were given a proxy."""
    default = method.proxy or BASES[method.base].proxy
    if default is None:
        if requested is not None:
            raise ValueError(
                f"method {method.name!r} has no use for a proxy; leave out proxy=, or use method 'proxyclip'"
            )
        return None
    if isinstance(requested, ProxyAttention):
        return requested
    if requested is None:
        requested = "colour" if is_builtin else default.model
    return replace(default, model=requested)


def choose_device(device: str | torch.device | None) -> torch.device:
    """The requested device, or the best one of this machine; ValueError if it cannot be used."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return usable_device(device)


def choose_precision(precision: str | None, device: torch.device) -> torch.dtype:
    """The requested dtype of the weights, or fp16 on a GPU and fp32 elsewhere."""
    if precision is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise ValueError(
            f"unknown precision {quoted(precision)}; use one of: {', '.join(PRECISIONS)}"
        )
    if precision == "bf16" and device.type == "cpu" and multiplies_bfloat16() is False:
        warnings.warn(
            'precision="bf16" is slower than "fp32" here: this CPU has no instructions for bfloat16; leave it out, or '
            "use a GPU",
            SlowPrecisionWarning,
            stacklevel=3,
        )
    return PRECISIONS[precision]


def warn_of_unknown_words(entries: Sequence[ClassEntry], tokenizer: Any) -> None:
    """UnknownWordsWarning if the built-in model's tokenizer does not know all words of the queries."""
    queries = (query for entry in entries for query in entry.queries)
    words = (word for query in queries for word in tokenizer.unknown_words(query))
    unknown = list(dict.fromkeys(words))
    if unknown:
        from resclip.builtin.scenes import CLASS_NAMES

        named = ", ".join(map(repr, unknown[:8]))
        more = f" and {len(unknown) - 8:,} more" if len(unknown) > 8 else ""
        warnings.warn(
            f"the built-in model has never read {named}{more}, so these names mean nothing to it; it knows "
            f"{', '.join(CLASS_NAMES)} in drawn scenes: for anything else choose another model=",
            UnknownWordsWarning,
            stacklevel=3,
        )
