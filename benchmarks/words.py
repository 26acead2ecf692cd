"""What other words cost on a loaded ViT-B/16, with and without an embedding, and what embeddings take on disk."""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch

import resclip
from benchmarks.reporting import RESULTS, conditions, store, table, this_machine
from resclip import Embedding, TextCache

FOUR_WORDS = ("sun; sky; tree; grass", "river; bridge; boat; shore", "cup; plate; fork; spoon")
IMAGE = Path(__file__).parents[1] / "docs/scene.png"


def seconds(call: Callable[[], Any]) -> float:
    """Wall clock of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure(rounds: int) -> list[tuple[str, str]]:
    """Rows of the table: what, and how much."""
    torch.manual_seed(0)
    model, *_ = open_clip.create_model_and_transforms("ViT-B-16")
    model.eval()
    rows: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        cache = TextCache(Path(folder))
        own = resclip.load(model, classes="cat; dog", method="naclip+rcs", cache=cache)
        cold = [seconds(lambda words=words: own.with_classes(words)) for words in FOUR_WORDS]
        rows.append(("four new words, 80 templates, never encoded", f"{min(cold):.2f} s"))
        warm = min(seconds(lambda: own.with_classes(FOUR_WORDS[0])) for _ in range(rounds))
        rows.append(("four words that are in memory", f"{1000 * warm:.1f} ms"))
        again = resclip.load(model, classes="cat; dog", method="naclip+rcs", cache=cache)
        disk = min(seconds(lambda w=words: again.with_classes(w)) for words in FOUR_WORDS)
        rows.append(("four words that are on disk", f"{1000 * disk:.1f} ms"))
        for method in ("naclip+rcs", "resclip"):
            own = resclip.load(model, classes="cat; dog; sky; grass", method=method, cache=cache)
            direct = own.segment(IMAGE)
            run = min(seconds(lambda: own.segment(IMAGE)) for _ in range(rounds))  # noqa: B023
            embedding = own.embed(IMAGE)
            same = own.classify(embedding).labels
            assert (same == direct.labels).all()
            part = min(seconds(lambda: own.classify(embedding)) for _ in range(rounds))  # noqa: B023
            rows.append((f"{method}: a run", f"{run:.2f} s"))
            rows.append(
                (
                    f"{method}: words on an embedding",
                    f"{part:.3f} s, {100 * part / run:.1f} % of a run",
                )
            )
            patches = sum(count_patches(batch) for batch in embedding.windows.values())
            for precision in ("float32", "int16", "int8"):
                path = Path(folder) / f"{precision}.safetensors"
                embedding.save(path, precision=precision)
                size = path.stat().st_size / patches
                found = own.classify(Embedding.load(path, image=IMAGE)).labels
                equal = 100 * (found == direct.labels).mean()
                rows.append(
                    (
                        f"{method}: {precision} on disk",
                        f"{size:,.0f} bytes a patch, {equal:.4f} % of labels equal",
                    )
                )
    return rows


def count_patches(batch: Any) -> int:
    """Patches of one window."""
    grid = batch.patches.shape[1:3] if batch.patches is not None else batch.inputs.grid
    return int(grid[0] * grid[1])


def words_table(run: Mapping[str, Any]) -> str:
    """The table of docs/words.md, with its conditions."""
    head = (
        "ViT-B/16 with random weights and 80 templates; NACLIP with RCS, and ResCLIP; a picture of 336 × 448 pixels,\n"
        f"6 windows of 196 patches (`python -m benchmarks words`); {conditions(run)}"
    )
    return f"{head}\n\n{table(['what', 'measured'], run['rows'])}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures, and keep them where that is asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks words", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=5, help="the best of so many counts")
    parser.add_argument("--write", action="store_true", help="keep the figures for docs/words.md")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    rows = measure(options.rounds)
    for what, figure in rows:
        print(f"{what:45} {figure}")
    if options.write:
        store(RESULTS / "words.json", {**this_machine(), "rows": rows})
    return 0
