"""Which blocks of the built-in model localise: `python -m resclip.builtin.training.diagnostics`.

For each block and each patch that is inside one class, it measures the share of the patch's attention on patches that
are mostly of the same class. The line "chance" is the share that uniform attention would have.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from resclip.builtin import load_builtin
from resclip.builtin.scenes import Scene, validation_scenes
from resclip.builtin.things import CLASS_NAMES, GROUNDS, SKIES
from resclip.builtin.training.batches import normalised

PURE = 0.75
"""Share of a patch's pixels that must be of one class for the patch to be measured."""
FIRST_THING = len(SKIES) + len(GROUNDS)


def patch_classes(
    mask: NDArray[np.uint8], patch: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(n,) most frequent class of each patch, and whether it has PURE of the pixels."""
    height, width = mask.shape[0] // patch, mask.shape[1] // patch
    blocks = mask[: height * patch, : width * patch].reshape(height, patch, width, patch)
    pixels = blocks.transpose(0, 2, 1, 3).reshape(height * width, -1)
    shares = np.stack([(pixels == label).mean(1) for label in range(len(CLASS_NAMES))], 1)
    return shares.argmax(1), shares.max(1) >= PURE


def attention_maps(visual: Any, pixels: Tensor) -> dict[str, Tensor]:
    """Each block's query-key attention among patches, mean over heads, rows summing to 1; the last one's qq and kk too.

    Names are "1 qk", "2 qk", ..., values (B, n, n). [CLS] is left out before the softmax.
    """
    maps: dict[str, Tensor] = {}
    x = visual._embeds(pixels)
    blocks = visual.transformer.resblocks
    for number, block in enumerate(blocks, 1):
        attention = block.attn
        qkv = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
        q, k, _ = (
            part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for part in qkv.chunk(3, -1)
        )
        pairs = {"qk": (q, k)}
        if number == len(blocks):
            pairs |= {"qq": (q, q), "kk": (k, k)}
        for name, (left, right) in pairs.items():
            scores = left[:, :, 1:] @ right[:, :, 1:].transpose(-1, -2) / q.shape[-1] ** 0.5
            maps[f"{number} {name}"] = scores.softmax(-1).mean(1)
        x = block(x)
    return maps


def own_class_shares(visual: Any, scenes: Iterable[Scene]) -> dict[str, tuple[float, float]]:
    """By map, and for "chance": the mean own-class share for patches of things, and of skies and grounds."""
    patch = cast(int, visual.patch_size[0])
    kept: dict[str, list[list[float]]] = {}
    for scene in scenes:
        classes, pure = patch_classes(scene.mask, patch)
        same = torch.from_numpy(classes[:, None] == classes[None, :]).float()
        maps = attention_maps(visual, normalised(scene.image[None]))
        shares = {name: (weights[0] * same).sum(1) for name, weights in maps.items()}
        shares["chance"] = same.mean(1)
        for kind, of_kind in enumerate((classes >= FIRST_THING, classes < FIRST_THING)):
            chosen = torch.from_numpy(pure & of_kind)
            for name, share in shares.items():
                kept.setdefault(name, [[], []])[kind] += share[chosen].tolist()
    return {
        name: (float(np.mean(things)), float(np.mean(rest)))
        for name, (things, rest) in kept.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m resclip.builtin.training.diagnostics",
        description=(__doc__ or "").splitlines()[0],
    )
    parser.add_argument(
        "--scenes", type=int, default=40, help="validation scenes to look at (%(default)s)"
    )
    parser.add_argument("--model", type=Path, help="folder of another export (the packaged one)")
    options = parser.parse_args(argv)
    if options.scenes < 1:
        parser.error(f"--scenes must be at least 1, got {options.scenes}")
    try:
        model, _, _, _ = load_builtin(folder=options.model)
    except FileNotFoundError as error:
        parser.error(str(error))
    with torch.no_grad():
        shares = own_class_shares(model.visual, validation_scenes(options.scenes))
    print(
        f"{'block':<8}{'things':>9}{'sky, ground':>14}   share of a patch's attention on its own class"
    )
    for name, (things, rest) in shares.items():
        print(f"{name:<8}{things:>9.2f}{rest:>14.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
