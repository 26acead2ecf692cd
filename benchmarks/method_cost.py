"""What each method costs beside ClearCLIP: CPU time of one image, in one process, and how memory grows with its size.

A ViT-B/16 with random weights sees one image of 224 × 224; 20 texts, float32. All methods take turns, forwards and
backwards, and CPU seconds are counted, so that other programs at work disturb least. `--write` keeps the figures for
docs/methods.md.

Memory is counted on torch's "meta" device, which has sizes and no values. Its plain attention would form the map that
the fused kernels of CPUs and GPUs never hold; so that counts as its result alone, and every other tensor as it is.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from torch import Tensor
from torch.overrides import TorchFunctionMode

from benchmarks import shapes
from benchmarks.aggregation_memory import MEBIBYTE, MOST_GROWTH, LiveTensors
from benchmarks.reporting import RESULTS, Document, conditions, store, table, this_machine
from resclip import DenseEncoder, Segmenter, Vocabulary
from resclip.encoder.similarity import similarity
from resclip.errors import UnknownChannelsWarning
from resclip.inference.preprocessing import CLIP_MEAN, CLIP_STD
from resclip.methods.catalogue import BASES, PAMR, SUFFIXES, Method, find_method
from resclip.models.proxy_models import find_proxy

SIZE = 224
QUERIES = 20
LEAST_ROUNDS = 7
BESIDE = "clearclip"
"""The method whose time is 1."""
GOALS: Mapping[str, float] = {
    "sc-clip": 1.09,
    "sfp": 1.19,
    "dih-clip": 1.37,
    "pearl": 1.16,
    "rf-clip": 1.41,
    "gem": 1.25,
}
"""The most that a method may take of ClearCLIP's time: what a plain program of the same formulas took; of GEM, 1.25,
where the released program takes 1.3 times (224 × 224) to 2 times (448 × 448) as long."""
SIDES = (32, 64, 128)
"""Patches on a side whose memory is counted; 64 are 1,024 × 1,024 pixels."""
COUNTED = (BESIDE, "sc-clip", "sfp", "dih-clip", "pearl", "rf-clip", "gem")


class Row(NamedTuple):
    """One method's figures."""

    method: str
    seconds: float
    """CPU seconds of the encoder and the cosines, median."""
    ratio: float
    """To ClearCLIP's of the same round, median."""
    with_steps: float | None
    """The same with the method's steps up to labels; None where it has none."""

    @property
    def goal(self) -> float | None:
        """The most that `ratio` may be; None for methods without one."""
        return GOALS.get(self.method)

    @property
    def reached(self) -> bool:
        """Whether it is within its goal, rounded as it is shown."""
        return self.goal is None or round(self.ratio, 2) <= self.goal


def encoder_of(method: Method, visual: torch.nn.Module) -> DenseEncoder:
    """The method on a tower, with the proxy that needs no weights."""
    proxy = None
    if BASES[method.base].proxy is not None:
        proxy = find_proxy("colour", mean=CLIP_MEAN, std=CLIP_STD)
    pieces = BASES[method.base].pieces
    with warnings.catch_warnings():
        # The list is known for OpenAI's weights, and these have their shape.
        warnings.simplefilter("ignore", UnknownChannelsWarning)
        return DenseEncoder(visual, method.base, proxy=proxy, pieces=pieces)


def calls() -> dict[str, Callable[[], Any]]:
    """What is timed: encoders by their method's name; with " labels" and " steps" behind it whole pictures' labels."""
    visual, text, pixels = shapes.vit_b16(), shapes.text(QUERIES), shapes.images(1, SIZE)
    names = [str(number) for number in range(QUERIES)]
    vocabulary = Vocabulary(text, torch.arange(QUERIES), names)
    made: dict[str, Callable[[], Any]] = {}

    def encode(encoder: DenseEncoder) -> Tensor:
        return similarity(encoder(pixels).patches, text)

    def label(encoder: DenseEncoder, **options: Any) -> Callable[[], Any]:
        segmenter = Segmenter(encoder, vocabulary, window=0, **options)
        return lambda: segmenter.predict(pixels)

    for name in (*BASES, *(f"{BESIDE}+{suffix}" for suffix in (*SUFFIXES, PAMR))):
        method = find_method(name)
        steps = BASES[name].steps if name in BASES else method.steps
        if steps is not None and steps.purification is not None:
            # How many crops of ambiguous classes it takes depends on the picture, and random weights confuse all.
            steps = replace(steps, purification=replace(steps.purification, ambiguity=2.0))
        encoder = encoder_of(method, visual)
        if name in BASES:
            made[name] = lambda encoder=encoder: encode(encoder)
        if steps or method.refine_iterations:
            made[f"{name} labels"] = label(encoder)
            made[f"{name} steps"] = label(
                encoder, steps=steps, refine_iterations=method.refine_iterations
            )
    return made


def measure(made: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each call in every round, after one that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for run in made.values():
        run()
    for number in range(rounds):
        for name in list(made) if number % 2 else reversed(list(made)):
            start = time.process_time()
            made[name]()
            seconds[name].append(time.process_time() - start)
    return seconds


def rows_of(seconds: Mapping[str, Sequence[float]]) -> list[Row]:
    """A row for each method, and for each step on ClearCLIP."""
    beside = seconds[BESIDE]
    rows = []
    for name in dict.fromkeys(name.partition(" ")[0] for name in seconds):
        alone = seconds.get(name, beside)
        with_steps = None
        if f"{name} steps" in seconds:
            added = zip(
                alone, seconds[f"{name} steps"], seconds[f"{name} labels"], beside, strict=True
            )
            with_steps = statistics.median(
                (own + steps - labels) / other for own, steps, labels, other in added
            )
        ratio = statistics.median(own / other for own, other in zip(alone, beside, strict=True))
        rows.append(Row(name, statistics.median(alone), ratio, with_steps))
    return rows


def cost_table(rows: Sequence[Row]) -> str:
    """The rows beside their goals."""
    return table(
        ["method", "CPU seconds", f"× {BESIDE}", "at most", "with its steps"],
        [
            [
                row.method,
                f"{row.seconds:.3f}",
                f"{row.ratio:.2f}{'' if row.reached else ' NOT'}",
                "–" if row.goal is None else f"{row.goal:.2f}",
                "–" if row.with_steps is None else f"{row.with_steps:.2f}",
            ]
            for row in rows
        ],
    )


class FusedAttention(TorchFunctionMode):
    """Plain attention as the fused kernels do it: its result, and no map."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is F.scaled_dot_product_attention:
            query, value = args[0], args[2]
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return function(*args, **(kwargs or {}))


def peak_of(base: str, side: int) -> int:
    """Bytes of all tensors that a method has at once over one image of so many patches on a side, without weights."""
    with torch.device("meta"):
        visual = VisionTransformer(SIZE, 16, 768, 12, 12, 4.0, output_dim=shapes.OUTPUT).eval()
        pixels = torch.empty(1, 3, 16 * side, 16 * side)
    encoder = encoder_of(find_method(base), visual)
    with FusedAttention(), LiveTensors() as live:
        encoder(pixels)
    return live.peak


def growth(peaks: Sequence[int]) -> float:
    """How much more a patch takes at the largest size than at the one before."""
    per_patch = [peak / side**2 for peak, side in zip(peaks, SIDES, strict=True)]
    return [after / before for before, after in pairwise(per_patch)][-1]


def memory_table(peaks: Mapping[str, Sequence[int]]) -> str:
    """Peaks in MiB, and in KiB a patch."""
    rows = [
        [
            base,
            *(
                f"{peak / MEBIBYTE:,.0f} ({peak / side**2 / 1024:.0f})"
                for peak, side in zip(of_base, SIDES, strict=True)
            ),
            "yes" if growth(of_base) <= MOST_GROWTH else "NO",
        ]
        for base, of_base in peaks.items()
    ]
    maps = [f"{4 * 12 * (side**2 + 1) ** 2 / MEBIBYTE:,.0f}" for side in SIDES]
    rows.append(["one block's maps, float32", *maps, "no"])
    return table(["method", *(f"{side} × {side} patches" for side in SIDES), "linear"], rows)


def document(rows: Sequence[Row], rounds: int) -> Document:
    """As it is stored."""
    return {"rows": [row._asdict() for row in rows], "rounds": rounds, **this_machine()}


def stored_rows(run: Mapping[str, Any]) -> list[Row]:
    """The rows of a stored run."""
    return [Row(**row) for row in run["rows"]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print both tables; exit status 1 where a method is over its goal, or its memory grows faster than the patches."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks method-cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--rounds", type=int, default=LEAST_ROUNDS, metavar="N", help="at least 7 (%(default)s)"
    )
    parser.add_argument(
        "--write", action="store_true", help="keep the times in benchmarks/results/"
    )
    parser.add_argument("--no-times", action="store_true", help="count memory alone")
    options = parser.parse_args(arguments)
    if options.rounds < LEAST_ROUNDS:
        parser.error(f"--rounds must be at least {LEAST_ROUNDS}, got {options.rounds}")
    if options.write and options.no_times:
        parser.error("--write keeps times, and --no-times measures none: leave one of them out")
    rows: list[Row] = []
    if not options.no_times:
        rows = rows_of(measure(calls(), options.rounds))
        run = document(rows, options.rounds)
        print(f"{cost_table(rows)}\n\n{conditions_of(run)}\n", flush=True)
        if options.write:
            store(RESULTS / "method-cost.json", run)
    peaks = {base: [peak_of(base, side) for side in SIDES] for base in COUNTED}
    print("Peak of live tensors in MiB (KiB a patch), one image, ViT-B/16, float32, by torch:\n")
    print(memory_table(peaks))
    is_linear = all(growth(of_base) <= MOST_GROWTH for of_base in peaks.values())
    return int(not is_linear or not all(row.reached for row in rows))


def conditions_of(run: Mapping[str, Any]) -> str:
    """What the times hold for, as a sentence."""
    return (
        f"Median of {run['rounds']} rounds in which all take turns: ViT-B/16 with random weights, one image of "
        f"{SIZE} × {SIZE}, {QUERIES} texts, float32; {conditions(run)}"
    )


if __name__ == "__main__":
    sys.exit(main())
