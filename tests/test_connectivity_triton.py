"""Connectivity kernels: every bit against the portable paths and the plain table, and what they compile to."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="the kernels need triton")

from kernel_support import kernel_device, label_map, spoilt_memory

from resclip_kernels.launch import Target, watch
from resclip_kernels.ops.semantic_feedback import portable, reference
from resclip_kernels.ops.semantic_feedback import triton_connectivity as kernels

RULES = ("prefix", "line", "component")
GRIDS = [
    pytest.param((1, 1), id="one-patch"),
    pytest.param((1, 5), id="one-row"),
    pytest.param((7, 1), id="one-column"),
    pytest.param((5, 23), id="wide"),
    pytest.param((14, 14), id="vit-b16-odd-M"),
    pytest.param((17, 16), id="even-M-where-ties-arise-and-more-than-a-block-of-patches"),
]


def portable_pairs(labels: Tensor, rule: str) -> Tensor:
    """The portable bits of a batch."""
    return torch.stack([portable.far_pairs(image, rule) for image in labels])


def kernel_pairs(labels: Tensor, rule: str) -> Tensor:
    """The kernels' bits, back on the CPU."""
    return kernels.far_pairs(labels.to(kernel_device()), rule).cpu()


def drawing(rows: list[str]) -> Tensor:
    """One character per patch."""
    return torch.tensor([[[ord(cell) for cell in row] for row in rows]])


def spiral(size: int) -> Tensor:
    """One winding path of ones, zeros between its turns."""
    labels = torch.zeros(1, size, size, dtype=torch.int64)
    y, x, dy, dx = 0, 0, 0, 1
    labels[0, 0, 0] = 1
    for length in [size - 1, *(side for side in range(size - 1, 1, -2) for _ in range(2))]:
        for _ in range(length):
            y, x = y + dy, x + dx
            labels[0, y, x] = 1
        dy, dx = dx, -dy
    return labels


y, x = torch.meshgrid(torch.arange(11), torch.arange(9), indexing="ij")
PATTERNS = {
    "one-label": torch.full((1, 6, 9), 3),
    "stripes": (x // 2 % 2)[None],
    "checkerboard": ((x + y) % 2)[None],
    "diagonals": ((x + y) // 2 % 3)[None],
    "every-label-once": torch.arange(30).flip(0).view(1, 5, 6),
    "spiral": spiral(11),
    "comb": drawing(["#.#.#.#.#", "#.#.#.#.#", "#########", "#.#.#.#.#"]),
    "corners-touch": drawing(["#..#.", ".##..", "#..#.", "....#"]),
    "valley": drawing(["#.....#", ".#...#.", "..#.#..", "...#..."]),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("grid", GRIDS)
def test_bits_equal_the_portable_ones(seed: int, grid, rule: str) -> None:
    # One map that is mostly noise, one in blobs: the images of a batch do not meet.
    labels = torch.cat([label_map(seed, grid=grid, classes=3, blob=blob) for blob in (1, 4)])
    assert torch.equal(kernel_pairs(labels, rule), portable_pairs(labels, rule))


@pytest.mark.parametrize("rule", RULES)
def test_bits_equal_the_plain_table(rule: str) -> None:
    for pattern, labels in PATTERNS.items():
        flat = labels[0].flatten()
        far = (flat[:, None] == flat) & ~reference.connected(labels[0], rule)
        assert torch.equal(kernel_pairs(labels, rule)[0], portable.pack(far)), pattern


@pytest.mark.parametrize("rule", RULES)
def test_the_tiles_of_a_gpu(seed: int, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = kernels.bits_launch(Target("cuda", 90), rule, 100)
    monkeypatch.setattr(kernels, "bits_launch", lambda *_: plan)
    # 7 blocks of 8 rows, 7 bytes: neither rows nor columns fill their last tile.
    labels = label_map(seed, grid=(6, 9), classes=2)
    assert torch.equal(kernel_pairs(labels, rule), portable_pairs(labels, rule))


def test_strips_of_several_tiles(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = kernels.BitsLaunch(64, 1)
    monkeypatch.setattr(kernels, "bits_launch", lambda *_: plan)
    monkeypatch.setattr(kernels.BitsLaunch, "split", lambda *_: (1, 3, 3))
    labels = label_map(seed, grid=(7, 8), classes=2)
    for rule in ("prefix", "component"):
        assert torch.equal(kernel_pairs(labels, rule), portable_pairs(labels, rule)), rule


def test_strips_cover_every_tile_and_bound_the_programs() -> None:
    sizes = ((0, 9), (1, 1), (1, 196), (64, 196), (1, 65536))
    for rule, (batch, patches) in itertools.product(RULES, sizes):
        plan = kernels.bits_launch(Target("cuda", 90), rule, patches)
        row_blocks, strips, tiles = plan.split(batch, patches)
        assert row_blocks * plan.rows >= patches > (row_blocks - 1) * plan.rows
        assert strips * tiles * plan.octets * 8 >= patches > (strips - 1) * tiles * plan.octets * 8
        assert 1 <= tiles <= 16
        assert batch * row_blocks * strips < 2**31


def test_radius_is_the_distance_to_another_label(seed: int) -> None:
    """A smaller one gives the same bits, more slowly."""
    labels = label_map(seed, batch=2, grid=(11, 13), classes=3, blob=6)
    words = kernels.boundary_words(labels.to(kernel_device())).cpu()
    expected = torch.stack([portable.boundary_distance(image) for image in labels]).flatten(1)
    assert torch.equal(words & 1023, expected.int())
    alike = kernels.boundary_words(torch.ones(1, 3, 4, dtype=torch.int64, device=kernel_device()))
    assert (alike == 1023).all()


def test_roots_across_programs(seed: int) -> None:
    labels = label_map(seed, batch=2, grid=(37, 23), classes=2, blob=1)
    _, roots = kernels.component_words(labels.to(kernel_device()))
    for got, image in zip(roots.cpu(), labels, strict=True):
        assert torch.equal(got, portable.connected_components(image).flatten().int())


@pytest.mark.parametrize("rule", ("prefix", "component"))
def test_labels_of_any_value(seed: int, rule: str) -> None:
    labels = label_map(seed, grid=(6, 7), classes=4)
    # Equal in their lower, or upper, 32 bits.
    values = torch.tensor([-(2**63), 2**63 - 1, 2**32 - 1, -1])
    assert torch.equal(kernel_pairs(values[labels], rule), portable_pairs(labels, rule))


def test_non_contiguous_labels(seed: int) -> None:
    labels = label_map(seed, batch=2, grid=(5, 4)).transpose(1, 2)
    assert torch.equal(kernel_pairs(labels, "prefix"), portable_pairs(labels, "prefix"))


@pytest.mark.parametrize("rule", ("prefix", "component"))
def test_everything_is_written(seed: int, rule: str) -> None:
    labels = label_map(seed, batch=2, grid=(5, 7))
    with spoilt_memory():
        got = kernel_pairs(labels, rule)
    assert torch.equal(got, portable_pairs(labels, rule))


def test_no_image_is_no_work() -> None:
    for rule in RULES:
        assert kernel_pairs(torch.zeros(0, 3, 5, dtype=torch.int64), rule).shape == (0, 15, 2)


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        ("prefix", ["row_distances_kernel", "radii_kernel", "far_bits_kernel"]),
        (
            "component",
            ["row_runs_kernel", "unite_runs_kernel", "component_roots_kernel", "far_bits_kernel"],
        ),
    ],
)
def test_which_kernels_run(seed: int, rule: str, names: list[str]) -> None:
    with watch() as watcher:
        kernel_pairs(label_map(seed, grid=(4, 4)), rule)
    assert watcher.names() == names
    with watch(execute=False, target=Target("cuda", 90)) as watcher:
        far = kernels.far_pairs(torch.empty(3, 64, 64, dtype=torch.int64, device="meta"), rule)
    assert watcher.names() == names
    assert far.shape == (3, 4096, 512)


# Compiles what the launchers ask for; a grid of one patch has sizes that Triton turns into constants. What spills, the
# kernels' report says.
COMPILE = r"""
import re, torch, triton
from benchmarks.cubin import gpu_target, specialise
from resclip_kernels.launch import Target, watch
from resclip_kernels.ops.semantic_feedback import triton_connectivity as kernels

cuda, hip = Target("cuda", 90), Target("hip", "gfx942")
cases = [(target, rule, (2, 37, 41)) for target in (cuda, hip) for rule in ("prefix", "line", "component")]
for target, rule, grid in [*cases, (cuda, "prefix", (1, 1, 1)), (cuda, "component", (1, 1, 1))]:
    with watch(execute=False, target=target) as watcher:
        kernels.far_pairs(torch.empty(grid, dtype=torch.int64, device="meta"), rule)
    for launch in watcher.launches:
        made = specialise(launch, target)
        source = triton.compiler.ASTSource(made.kernel, made.signature, made.constants, made.attributes)
        compiled = triton.compile(source, target=gpu_target(target), options=dict(made.options))
        if target is cuda:
            contracted = len(re.findall(r"\bfma\.rn", compiled.asm["ptx"]))
        else:
            # A division is five explicit fused operations between v_div_scale and v_div_fixup.
            code = compiled.asm["amdgcn"]
            fused = len(re.findall(r"v_(?:pk_)?(?:fma|mac|fmac|mad)_f", code))
            contracted = fused - 5 * len(re.findall("v_div_fixup_f32", code))
        print(target.backend, launch.kernel.__name__, rule, contracted)
"""


def test_compiles_without_contraction() -> None:
    """Contracting a product and a sum into one rounding would decide ties of "prefix" the other way."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env=environment,
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [line.split() for line in done.stdout.splitlines()]
    # Three kernels by either rule of paths, four by components.
    assert len(found) == 2 * (3 + 3 + 4) + 3 + 4
    assert [line for line in found if line[-1] != "0"] == []
