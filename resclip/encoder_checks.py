"""What an encoder refuses: parts that do not fit together, and inputs that do not fit it.

Knows the sentences that say what would fit. Knows nothing of what is computed.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from resclip.backbones import Tower
from resclip.correlation import Correlation
from resclip.methods import Base, FinalBlockKind, Overview
from resclip.overview import Coarse



def check_proxy(
    base: Base,
    proxy: Callable[[Tensor], Tensor] | None,
    correlation: Correlation | None,
    final_block: FinalBlockKind | None,
) -> None:
    """ValueError unless there is a proxy just where the base attends by one."""
    if base.proxy is None:
        if proxy is not None:
            raise ValueError(
                f"base {base.name!r} has no use for a proxy; use base 'proxyclip', or proxy=None"
            )
        return
    if proxy is None:
        raise ValueError(
            f"base {base.name!r} takes its attention from another vision model: pass proxy=, such as "
            "resclip.proxies.find_proxy('colour') or find_proxy('vit_base_patch8_224.dino')"
        )
    if correlation is not None:
        raise ValueError(
            f"base {base.name!r} compares the proxy's features, so correlation must be None; "
            f"got {correlation.scores!r}"
        )
    if final_block not in (None, base.final_block):
        raise ValueError(
            f"base {base.name!r} works on the proxy's grid, where the final block has no residual: "
            f"final_block must be None or {base.final_block!r}; got {final_block!r}"
        )


def check_overview(base: Base, correlation: Correlation) -> None:
    """ValueError unless the base compares tokens, which it can then do with those of a coarse pass."""
    if base.proxy is not None:
        raise ValueError(
            f"an overview compares CLIP's tokens, and base {base.name!r} attends by another model's features: "
            "use overview=None or another base"
        )
    if correlation.scores in ("identity", "none"):
        raise ValueError(
            f"an overview attends by what the base compares, and correlation {correlation.scores!r} of base "
            f"{base.name!r} compares nothing: use overview=None or another correlation"
        )


def check_pixels(pixels: Tensor, tower: Tower) -> None:
    """TypeError or ValueError unless these are normalised pictures of at least one patch."""
    if not isinstance(pixels, Tensor) or pixels.ndim != 4 or pixels.shape[1] != 3:
        came = tuple(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
        raise ValueError(f"pixels must be a (B, 3, H, W) tensor; got {came}")
    if not pixels.is_floating_point():
        raise TypeError(
            f"pixels must be normalised floats; got {pixels.dtype}. "
            "Divide by 255 and normalise, or pass pictures to Segmenter.segment"
        )
    height, width = pixels.shape[2:]
    if 0 in tower.grid(height, width):
        patch_height, patch_width = tower.patch_size
        raise ValueError(
            f"a picture of {height} × {width} pixels is smaller than one patch of "
            f"{patch_height} × {patch_width}: enlarge it first"
        )


def check_text(text: Tensor | None, width: int) -> None:
    """ValueError unless this is the text that SFR segments by: (Q, width), at least one query."""
    if text is None:
        raise ValueError("SFR segments once before it refines, so it needs text: pass (Q, E)")
    if text.ndim != 2 or text.shape[1] != width or not len(text):
        raise ValueError(
            f"text must be (Q, {width}), the image tower's output width; got {tuple(text.shape)}"
        )


def check_coarse(coarse: Coarse | None, overview: Overview | None, windows: int) -> None:
    """ValueError unless there is a coarse pass for each window, just where the encoder has an overview."""
    if overview is None:
        if coarse is not None:
            raise ValueError(
                "this encoder has no overview, so it cannot use a coarse pass: leave coarse out, or give "
                "DenseEncoder an Overview"
            )
        return
    if coarse is None:
        raise ValueError(
            "an encoder with an overview needs the coarse pass of each window's picture: "
            "pass coarse=encoder.coarse(pictures)"
        )
    if len(coarse) != windows:
        raise ValueError(
            f"expected one coarse pass for each of {windows} windows; got {len(coarse)}: pick each window's "
            "picture, such as coarse[[0, 0, 1]]"
        )
