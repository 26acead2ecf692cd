"""What encoding a batch of windows takes of memory: live tensors, counted op by op, and pages of a fresh process.

As a script it measures a process's pages and prints a row a case: python tests/memory_support.py
"""

from __future__ import annotations

import ctypes
import functools
import gc
import json
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toys import toy_clip

from resclip import RCS, SFR, DenseEncoder
from resclip.encoder.similarity import similarity
from resclip.inference.batch_size import window_bytes
from resclip.models import BUILTIN, load_model


class Case(NamedTuple):
    """One batch."""

    tower: str
    method: str
    side: int
    queries: int
    windows: int


CASES = [
    Case("ViT-B/16", "naclip", 112, 2, 1),  # The least there is: libraries' workspaces count.
    Case("ViT-B/16", "naclip", 224, 150, 1),  # The blocks alone decide.
    Case("toy", "resclip", 224, 2, 4),  # Planes above a group's bytes.
    # Groups of many planes: most of it does not grow with the batch.
    Case("toy", "resclip", 112, 150, 1),
    Case("builtin", "resclip", 112, 20, 4),  # A trained model's label maps.
]


@functools.cache
def tower(name: str) -> nn.Module:
    if name == "toy":
        return toy_clip()
    if name == "builtin":
        device = torch.device("cpu")
        return load_model(BUILTIN, None, device=device, dtype=torch.float32).visual
    return VisionTransformer(224, 16, 768, 12, 12, 4.0, output_dim=512).eval()


def encoder(visual: nn.Module, method: str) -> DenseEncoder:
    # Random features rarely reach the default threshold; without one the label maps are as ragged as maps get.
    both = {"rcs": RCS(), "sfr": SFR(label_threshold=0.0)} if method == "resclip" else {}
    return DenseEncoder(visual, **both)


def encode(dense: DenseEncoder, side: int, queries: int, windows: int) -> Tensor:
    """Logits of random windows, made as a stream of windows makes them."""
    device = dense.tower.device
    text = normalize(torch.randn(queries, dense.tower.output_dim, device=device), dim=-1)
    views = [torch.randn(3, side, side, device=device) for _ in range(windows)]
    batch = torch.stack(views)
    coarse = None
    if dense.overview is not None:
        coarse = dense.coarse(batch[:1])[torch.zeros(windows, dtype=torch.long)]
    return similarity(dense(batch, text, coarse).patches, text)


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of tensors that exist at once, of those that are made within it."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = 0
        self.peak = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = {storage(tensor) for tensor in tree_leaves((args, kwargs)) if is_tensor(tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in filter(is_tensor, tree_leaves(result)):
            key = storage(tensor)
            if key not in given and key not in self.sizes:
                self.sizes[key] = tensor.untyped_storage().nbytes()
                self.now += self.sizes[key]
                weakref.finalize(tensor.untyped_storage(), self.forget, key)
        self.peak = max(self.peak, self.now)
        return result

    def forget(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


def is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def live_bytes(dense: DenseEncoder, side: int, queries: int, windows: int) -> int:
    """The most that tensors take at once."""
    encode(dense, 2 * max(dense.tower.patch_size), queries, 1)
    with LiveTensors() as live:
        encode(dense, side, queries, windows)
    return live.peak


def resident_growth(dense: DenseEncoder, case: Case) -> int:
    """By how many bytes the process's resident pages grow at most, beyond those that a first small window left."""
    encode(dense, 32, case.queries, 1)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    # Has the kernel forget the process's highest count so far.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    encode(dense, case.side, case.queries, case.windows)
    return resident("VmHWM") - before


def resident(entry: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(entry))


def main() -> None:
    torch.manual_seed(0)
    for case in CASES:
        dense = encoder(tower(case.tower), case.method)
        growth = resident_growth(dense, case)
        estimate = window_bytes(dense, (case.side, case.side), case.queries, case.windows)
        print(json.dumps([*case, growth, estimate]), flush=True)


if __name__ == "__main__":
    main()
