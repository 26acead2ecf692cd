"""`resclip_kernels` beside torch and numpy alone: what `pip install --no-deps resclip` gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import resclip_kernels

ROOT = Path(resclip_kernels.__file__).parents[1]

PROGRAM = """
import importlib.abc, sys

OTHERS = (
    "open_clip", "timm", "PIL", "tqdm", "scipy", "yaml", "psutil", "safetensors", "tabulate", "torchvision",
    "transformers", "triton", "matplotlib", "pandas", "onnx", "resclip",
)

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in OTHERS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())

import torch
before = set(sys.modules)
import resclip_kernels as ops
extra = {name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names
assert extra <= {"resclip_kernels", "torch", "numpy"}, extra

torch.manual_seed(0)
heads = torch.randn(2, 2, 7, 8)
tokens = torch.randn(2, 6, 8)
planes, image = torch.randn(2, 3, 2, 3), torch.randn(2, 3, 8, 12)
labels = torch.tensor([[[0, 0, 1], [1, 1, 0]]] * 2)
for way in ("torch", "reference"):
    feedback = ops.semantic_feedback(labels, implementation=way)
    results = [
        ops.residual_attention(
            heads, heads, heads, grid=(2, 3), neighbourhood_std=5.0, feedback=feedback,
            cross_layers=[(heads, heads)], implementation=way,
        ).output,
        ops.proxy_attention(torch.randn(2, 5, 4, 6), heads[:, :, 1:], grid=(2, 3), implementation=way),
        ops.similarity_aggregation(tokens, tokens, threshold=0.2, implementation=way),
        ops.pamr(image, torch.randn(2, 2, 8, 12), iterations=2, dilations=(1, 2), implementation=way),
        ops.patch_labels(planes, image, patch_size=(4, 4), refine_iterations=1, implementation=way),
        ops.upsample_argmax(planes, size=(8, 12), implementation=way),
        ops.laplacian_propagation(
            torch.randn(1, 3, 8, 12), torch.randn(1, 3, 8, 12), torch.randn(3, 6), grid=4, implementation=way
        ),
    ]
    for result in results:
        for tensor in result if isinstance(result, tuple) else (result,):
            assert tensor is None or tensor.isfinite().all()
module = ops.ResidualAttention.from_attention(torch.nn.MultiheadAttention(16, 2, batch_first=True))
assert module(*[torch.randn(1, 5, 16)] * 3)[0].isfinite().all()
print(sorted(extra))
"""


def test_every_op_runs_without_the_other_packages() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "resclip_kernels" in done.stdout
