"""How kernels are called, most of all PAMR's and the labels': few parameters, few variants, launches prepared once."""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import pkgutil
import random
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import resclip_kernels
from resclip_kernels import patch_labels, upsample_argmax
from resclip_kernels.launch import Launch, Target, watch

triton = pytest.importorskip("triton")
interpreter = pytest.importorskip("triton.runtime.interpreter")
pamr = pytest.importorskip("resclip_kernels.ops.pamr.triton")
majority = pytest.importorskip("resclip_kernels.ops.patch_labels.triton")

SM_90 = Target("cuda", 90)
PACKAGE = Path(resclip_kernels.__file__).parent
MOST_PARAMETERS = 16


def functions() -> dict[str, Any]:
    """Every kernel of the package, and every function that kernels call."""
    kinds = (interpreter.InterpretedFunction, triton.runtime.jit.JITFunction)
    names = pkgutil.walk_packages([str(PACKAGE)], "resclip_kernels.")
    modules = [importlib.import_module(module.name) for module in names]
    return {
        f"{module.__name__}.{name}": value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, kinds) and value.fn.__module__ == module.__name__
    }


@functools.cache
def compiled(kernel: Any) -> Any:
    """The kernel as the compiler sees it: here it may be interpreted."""
    if isinstance(kernel, interpreter.InterpretedFunction):
        return triton.runtime.jit.JITFunction(kernel.fn, **kernel.kwargs)
    return kernel


def variants(launches: list[Launch]) -> dict[str, int]:
    """How many compilations each kernel's launches need."""
    from benchmarks.cubin import specialise

    keys = defaultdict(set)
    for launch in launches:
        made = specialise(replace(launch, kernel=compiled(launch.kernel)), SM_90)
        keys[made.kernel.__name__].add(made.key)
    return {name: len(found) for name, found in keys.items()}


def pictures(seed: int) -> list[tuple[int, int]]:
    draw = random.Random(seed)
    return [(draw.randint(60, 300), draw.randint(60, 300)) for _ in range(37)] + [
        (320, 320),
        (224, 64),
        (64, 64),
    ]


def test_no_function_takes_more_than_16_parameters() -> None:
    found = functions()
    written = [path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")]
    assert len(found) == sum(text.count("@triton.jit") for text in written)
    counts = {name: len(inspect.signature(one.fn).parameters) for name, one in found.items()}
    assert {name: count for name, count in counts.items() if count > MOST_PARAMETERS} == {}


@pytest.mark.parametrize("queries", (20, 600))
def test_forty_sizes_of_pictures_are_few_variants(seed: int, queries: int) -> None:
    """What refines queries, and what refines a plane a patch where there are more queries."""
    with watch(execute=False, target=SM_90) as watcher:
        for height, width in pictures(seed):
            logits = torch.empty(1, queries, height // 16, width // 16, device="meta")
            guide = torch.empty(1, 3, height, width, device="meta")
            refined = {"guide": guide, "refine_iterations": 1}
            patch_labels(
                logits, guide, patch_size=(16, 16), refine_iterations=1, implementation="triton"
            )
            arguments = {"query_to_class": torch.empty(queries, dtype=torch.int64, device="meta")}
            arguments["implementation"] = "triton"
            upsample_argmax(logits, (height, width), **arguments)
            upsample_argmax(logits, (height, width), **refined, **arguments)
    found = variants(watcher.launches)
    assert {"fold_basis_kernel", "fold_planes_kernel"} <= set(found)
    # Of the ops: one labels queries, the other classes and gives probabilities too. An image one patch wide or high has
    # a column stride of its own.
    most = {
        "upsample_best_kernel": 1,
        "upsample_planes_kernel": 2 if queries == 20 else 3,
        "fold_planes_kernel": 2,
        "fold_basis_kernel": 2,
        "pamr_weights_kernel": 1,
        "pamr_step_kernel": 1,
        "majority_kernel": 1,
    }
    assert {name: (count, most[name]) for name, count in found.items() if count > most[name]} == {}


def test_a_size_that_is_specialised_would_be_seen(seed: int) -> None:
    plain = triton.runtime.jit.JITFunction(majority.majority_kernel.fn)

    def launch(rows: int) -> Launch:
        with watch(execute=False, target=SM_90) as watcher:
            labels = torch.empty(1, 8 * rows, 8, dtype=torch.int32, device="meta")
            majority.majority(labels, (8, 8))
        (made,) = watcher.launches
        return replace(made, kernel=plain)

    assert variants([launch(3), launch(5)]) == {"majority_kernel": 1}
    assert variants([launch(3), launch(16), launch(1)]) == {"majority_kernel": 3}


def test_a_step_swaps_source_and_output_and_nothing_else() -> None:
    planes, weights = (torch.empty(2, count, 40, 90, device="meta") for count in (5, 16))
    with watch(execute=False, target=SM_90) as watcher:
        result = pamr.refine(planes, weights, 4, (8, 16))
    launches = watcher.launches
    assert launches[0].arguments["source"] is planes
    assert launches[-1].arguments["output"] is result
    for one, next_one in itertools.pairwise(launches):
        assert next_one.arguments["source"] is one.arguments["output"]
        assert next_one.constants is one.constants
        assert next_one.programs == one.programs
        changed = {
            name for name in one.arguments if next_one.arguments[name] is not one.arguments[name]
        }
        assert changed <= {"source", "output", "stride_image", "stride_plane", "stride_row"}
    assert len({id(launch.arguments["output"]) for launch in launches}) == 2


def test_refined_planes_go_where_they_are_wanted(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    planes = torch.randn(1, 2, 5, 6, generator=generator)
    weights = pamr.pamr_weights(torch.randn(1, 3, 5, 6, generator=generator), (2,))
    room = torch.full((1, 3, 5, 6), torch.nan)
    for iterations in (1, 2):
        given = pamr.refine(planes, weights, iterations, (2,), room[:, :2])
        assert given.data_ptr() == room.data_ptr()
        assert torch.equal(room[:, :2], pamr.refine(planes, weights, iterations, (2,)))
        assert room[:, 2].isnan().all()
