"""The studies of SCLIP and ProxyCLIP that measure one option's settings; `ablate` measures them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from resclip.evaluation.ablation import STUDIES, Study, Variation
from resclip.methods.catalogue import Method, ProxyAttention
from resclip.methods.correlation import Correlation
from resclip.models.proxy_models import COLOUR

SHARPENINGS = (2, 4)
"""How many times sharper than CLIP's its attention is tried; 2 is SCLIP's τ."""
LOCAL_WINDOWS = (3, 5)
"""Sides in patches of the local windows that are tried; 3 is SCLIP's w."""
EARLY_BLOCK = 3
"""The block whose attention SCLIP's paper tries in the final one's place."""
MOST_BLOCKS = 6
"""Correlative self-attention is tried in up to so many of the last blocks."""
BETAS = (0.0, 0.4, 0.8, 1.0, 1.2, 1.4, 1.6, 2.0)
GAMMAS = (1.0, 2.0, 3.0, 5.0, 10.0, 20.0)
"""The values of ProxyCLIP's β and γ that are tried, its own 1.2 and 3 among them."""
PROXY_WINDOW = 336
"""Side in pixels of ProxyCLIP's own windows."""
SIZES = (0.5, 1.0, 1.5, 2.0)
"""Sides at which the other model sees a window, as multiples of the window's."""
COLOUR_CELLS = ("colour:4", "colour:8", "colour:16")
DINO_MODELS = (
    "vit_small_patch16_224.dino",
    "vit_small_patch8_224.dino",
    "vit_base_patch16_224.dino",
    "vit_base_patch8_224.dino",
)
"""Models with patches of other sizes that are tried, beside the one that is asked for."""


def with_correlation(label: str, method: Method, correlation: Correlation) -> Variation:
    """The method with another correlation."""
    return Variation(label, label, replace(method, correlation=correlation))


def projections(learned: Path | None, method: Method, _: int) -> list[Variation]:
    """SCLIP's choices of W_r; `learned` is the file of a learned one, None for none."""
    choices = {
        "identity": Correlation("xx"),
        "W_q": Correlation("qq"),
        "W_k": Correlation("kk"),
        "random (one)": Correlation("random"),
        **({} if learned is None else {"learned": Correlation("learned", path=str(learned))}),
        "W_q + W_k": Correlation("qq+kk"),
    }
    return [with_correlation(label, method, choice) for label, choice in choices.items()]


def alternatives(method: Method, depth: int) -> list[Variation]:
    """CLIP's own attention, and ways to make it local that SCLIP's paper weighs against its own."""
    choices = {"CLIP: q·k": Correlation("qk")}
    for times in SHARPENINGS:
        choices[f"sharpening τ = {times}"] = Correlation("qk", temperature=1 / times)
    for side in LOCAL_WINDOWS:
        choices[f"local attention w = {side}"] = Correlation("qk", window=side)
    for layer in sorted({EARLY_BLOCK, depth // 2, depth - 1}):
        if 1 <= layer < depth:
            choices[f"attention of block {layer}"] = Correlation("qk", layer=layer)
    choices["SCLIP: q·q + k·k"] = Correlation("qq+kk")
    return [with_correlation(label, method, choice) for label, choice in choices.items()]


def last_blocks(method: Method, depth: int) -> list[Variation]:
    """The correlation in the final block, and in more and more of the blocks before it."""
    correlation = replace(method.correlation or Correlation("qq+kk"), layer=None)
    return [
        Variation(
            str(count),
            float(count),
            replace(method, correlation=replace(correlation, blocks=count)),
        )
        for count in range(1, min(depth, MOST_BLOCKS) + 1)
    ]


def proxy_of(method: Method) -> ProxyAttention:
    """The proxy's options that a study starts from."""
    return method.proxy or ProxyAttention()


def with_proxy(label: str, x: float | str, method: Method, proxy: ProxyAttention) -> Variation:
    """The method with other options of its proxy."""
    return Variation(label, x, replace(method, proxy=proxy))


def proxy_parts(method: Method, _: int) -> list[Variation]:
    """The proxy's attention as it is, and without its two parts: S itself is γ = 1 and β = 0."""
    start = proxy_of(method)
    choices = {
        "both": start,
        "no normalisation": replace(start, beta=0.0, gamma=1.0),
        "no masking": replace(start, masked=False),
        "neither": replace(start, beta=0.0, gamma=1.0, masked=False),
    }
    return [with_proxy(label, label, method, choice) for label, choice in choices.items()]


def betas(method: Method, _: int) -> list[Variation]:
    """Values of β."""
    start = proxy_of(method)
    return [with_proxy(f"{beta:g}", beta, method, replace(start, beta=beta)) for beta in BETAS]


def gammas(method: Method, _: int) -> list[Variation]:
    """Values of γ."""
    start = proxy_of(method)
    return [
        with_proxy(f"{gamma:g}", gamma, method, replace(start, gamma=gamma)) for gamma in GAMMAS
    ]


def proxy_sizes(side: int, method: Method, _: int) -> list[Variation]:
    """The other model at several sizes of its input, and models with patches of other sizes.

    Args:
        side: of the windows, in pixels: what an input size is a multiple of.
    """
    start = proxy_of(method)
    variations = []
    for times in SIZES:
        # At a window's own size nothing is resized.
        size = None if times == 1 else max(1, round(side * times))
        label = f"{start.model} at {times:g} × the window"
        variations.append(with_proxy(label, label, method, replace(start, input_size=size)))
    is_colour = start.model.partition(":")[0] == COLOUR
    usual = "colour:8" if start.model == COLOUR else start.model
    variations += [
        with_proxy(model, model, method, replace(start, model=model))
        for model in (COLOUR_CELLS if is_colour else DINO_MODELS)
        if model != usual
    ]
    return variations


def sclip_study(name: str, title: str, shows: str, **others: object) -> Study:
    """A study of what a base compares, on SCLIP."""
    given = {"x_label": "attention", "scale": "kinds", "about": "correlation", "base": "sclip"}
    return Study(name=name, title=title, shows=shows, needs=(), reference=(), **{**given, **others})  # type: ignore[arg-type]


def proxy_study(name: str, title: str, shows: str, **others: object) -> Study:
    """A study of ProxyCLIP's options."""
    given = {"scale": "numbers", "about": "proxy", "base": "proxyclip"}
    return Study(name=name, title=title, shows=shows, needs=(), reference=(), **{**given, **others})  # type: ignore[arg-type]


PAPER_STUDIES: Sequence[Study] = (
    sclip_study(
        "sclip-projection",
        "SCLIP: what projects the tokens",
        "The map is softmax(x W (x W)ᵀ/√d) for one W_r, and the sum of two such maps for W_q + W_k, as in the ablation "
        "of arXiv 2312.01597. The learned W_r starts from the identity and learns from labelled images that are not "
        "measured on.",
        x_label="W_r",
        vary=partial(projections, None),
    ),
    sclip_study(
        "sclip-alternatives",
        "SCLIP: other ways to make attention local",
        "CLIP's own attention, sharpened (its score times τ), within w × w patches, or with an earlier block's map, "
        "as in arXiv 2312.01597.",
        vary=alternatives,
    ),
    sclip_study(
        "sclip-blocks",
        "SCLIP: its attention in several blocks",
        "The last blocks attend by the correlation in place of their query-key attention; 1: the final one alone.",
        x_label="last blocks",
        scale="numbers",
        vary=last_blocks,
        min_depth=2,
    ),
    proxy_study(
        "proxy-switches",
        "ProxyCLIP: without normalisation, without masking",
        "With S the cosines of the other model's features, the map is the softmax of γ(S − β mean S) where that is not "
        "negative (arXiv 2408.04883, section 3.3). No normalisation: of S where that is not negative. No masking: of "
        "γ(S − β mean S), in which β cancels. Neither: of S.",
        x_label="strategies",
        scale="kinds",
        vary=proxy_parts,
    ),
    proxy_study(
        "proxy-beta",
        "ProxyCLIP: β",
        "How far above the image's mean similarity an entry has to lie, as a multiple of the mean.",
        x_label="β",
        vary=betas,
    ),
    proxy_study(
        "proxy-gamma",
        "ProxyCLIP: γ",
        "How sharp the softmax over the entries that are left is.",
        x_label="γ",
        vary=gammas,
    ),
    proxy_study(
        "proxy-size",
        "ProxyCLIP: how finely the other model sees",
        "The size at which it sees a window, and models with patches of other sizes.",
        x_label="model and input",
        scale="kinds",
        vary=partial(proxy_sizes, PROXY_WINDOW),
    ),
)
"""In the order in which they are shown."""

SWEEPS: Sequence[Study] = (*STUDIES, *PAPER_STUDIES)
"""Every study that `ablate` measures."""
