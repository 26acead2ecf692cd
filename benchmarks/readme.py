"""The generated parts of README.md and of the pages in docs/, from stored results.

`python -m benchmarks readme` prints the figures of results/benchmark.json and of the methods in results/builtin.json,
and writes between the pages' markers. With `--figures` it only prints, and fails where a figure falls short.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import batch, cpu, gigapixel, high_resolution, method_facts
from benchmarks.reporting import (
    RESULTS,
    ROOT,
    Figure,
    figure_table,
    stored,
    table,
    versions_text,
)
from benchmarks.words import words_table
from resclip.cli.evaluate import METHODS
from resclip.evaluation.report import DatasetReport, Report
from resclip.evaluation.runner import row_names
from resclip.evaluation.tables import (
    MODULE_COLUMNS,
    bases_of,
    conditions,
    module_values,
    report_tables,
)
from resclip.speed import Speed

DROP_IN = """\
prints, for each patch of `docs/scene.png`, the first letter of its word (on another machine a patch may fall to its
neighbour):

"""


def cpu_table(run: dict[str, Any]) -> str:
    """The CPU's figures, with their conditions."""
    machine = run["machine_info"]
    brand = machine.get("cpu", {}).get("brand_raw", machine["machine"])
    rows = figure_table(row.record() for row in cpu.figures(run))
    return f"{rows}\n\n{brand}, 2 threads, float32, Python {machine['python_version']}."


def method_figures(evaluation: DatasetReport) -> list[Figure]:
    """What the methods must reach on the drawn scenes: the papers' order, no class lost, and in what time."""
    ordered = ("clip", "maskclip", "naclip", "naclip+rcs+sfr")
    means = [miou_of(evaluation, name) for name in ordered]
    low, label = lowest_class(evaluation, ordered[-1])
    usual = usual_rows(evaluation).rows.values()
    seconds = sum(row.seconds for row in usual)
    return [
        Figure(
            "mIoU of clip, maskclip, naclip, resclip",
            ", ".join(f"{mean:.1f}" for mean in means),
            "each above the one before",
            all(lower < higher for lower, higher in pairwise(means)),
        ),
        Figure("mIoU of resclip", f"{means[-1]:.1f}", "> 55", means[-1] > 55),
        Figure("lowest IoU of a class of resclip", f"{label} {low:.1f}", "> 20", low > 20),
        Figure(
            f"time of `resclip evaluate`, {len(usual)} methods",
            f"{seconds:.0f} s",
            "under 120 s",
            seconds < 120,
        ),
    ]


def usual_rows(evaluation: DatasetReport) -> DatasetReport:
    """The rows that `resclip evaluate` measures where it is not told which."""
    return evaluation.selection(row_names(METHODS.split(",")))


def miou_of(evaluation: DatasetReport, name: str) -> float:
    """Of a row, which must be there."""
    miou = evaluation.rows[name].scores.miou
    if miou is None:
        raise ValueError(f"expected a mean of row {name!r}, got none: measure it again")
    return miou


def lowest_class(evaluation: DatasetReport, name: str) -> tuple[float, str]:
    """The lowest IoU of a row, in per cent, and its class."""
    iou = evaluation.rows[name].scores.iou
    return min(
        (value, label)
        for value, label in zip(iou, evaluation.classes, strict=True)
        if value is not None
    )


def method_table(evaluation: DatasetReport) -> str:
    """mIoU of each base by what is put on it, the best of a row in bold, with the class that it finds hardest."""
    means = {name: miou_of(evaluation, name) for name in evaluation.rows}
    rows = []
    for base in bases_of(means):
        best = max(
            (name for name in means if name.partition("+")[0] == base), key=means.__getitem__
        )
        shown = ["–" if mean is None else f"{mean:.1f}" for mean in module_values(base, means)]
        # Figures that read the same are equally good.
        bold = [f"**{mean}**" if mean == f"{means[best]:.1f}" else mean for mean in shown]
        low, label = lowest_class(evaluation, best)
        rows.append([base, *bold, f"{label} {low:.1f}"])
    heads = ["base", *MODULE_COLUMNS.values(), "class with the lowest IoU"]
    return f"{table(heads, rows)}\n\nmIoU in per cent: {conditions(evaluation)}"


def evaluation_output(evaluation: DatasetReport) -> str:
    """What `resclip evaluate` prints."""
    table = report_tables(Report({evaluation.dataset: usual_rows(evaluation)})).text
    return f"prints\n\n```text\n{table}\n```"


def published_table() -> str:
    """The published figures, as their sources state them."""
    with (ROOT / "resclip/data/published_miou.csv").open(encoding="utf-8", newline="") as stream:
        heads, *lines = csv.reader(stream)
    return table(heads, [[cell or "–" for cell in line] for line in lines])


def gpu_table(folder: Path) -> str:
    """The figures of each GPU that was measured, with their conditions; a sentence where none was."""
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("gpu_*.json"))]
    if not runs:
        return (
            "No GPU has been measured yet, so there are no figures: the kernels' results are checked in Triton's "
            "interpreter, and that they compile without spills by `make kernels-report`. `make bench-gpu` measures."
        )
    figures = [
        f"{figure_table(run['figures'])}\n\n{run['device']['name']}, {versions_text(run['versions'])}."
        for run in runs
    ]
    return "\n\n".join(filter(None, [*figures, speed_tables(folder, gpus=True)]))


def speed_tables(folder: Path, *, gpus: bool) -> str:
    """What `resclip bench` measured on a CPU, or on GPUs, each run with its conditions; empty for none."""
    runs = [
        Speed.read(path) for path in sorted(folder.glob("speed*.json"), key=lambda path: path.stem)
    ]
    return "\n\n".join(
        f"```text\n{run.table()}\n```\n\n{stage_text(run)}{run.conditions()}"
        for run in runs
        if run.device.startswith("cuda") == gpus
    )


def stage_text(run: Speed) -> str:
    """Where the time goes, for the runs in which torch has no slower rival of this project beside it."""
    if any(row.rival == "reference" for row in run.rows):
        return ""
    return f"Milliseconds of each stage; `text` is one name in 80 templates:\n\n```text\n{run.stage_table()}\n```\n\n"


def printed(readme: str, word: str) -> str:
    """What the first Python block of the README with this word prints, run in the project's root as it stands."""
    blocks = (part.split("```", maxsplit=1)[0] for part in readme.split("```python\n")[1:])
    source = next(block for block in blocks if word in block)
    with tempfile.TemporaryDirectory() as folder:
        finished = subprocess.run(
            [sys.executable, "-c", source.replace('"out"', repr(folder))],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    return f"```text\n{finished.stdout.rstrip()}\n```"


def fill(text: str, name: str, content: str) -> str:
    """Replace what stands between `<!-- name -->` and `<!-- end name -->`."""
    start, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(f"expected {start} and {end} once each in the text to fill")
    before, rest = text.split(start)
    return f"{before}{start}\n{content}\n{end}{rest.split(end)[1]}"


def fill_file(path: Path, contents: dict[str, str]) -> None:
    """Replace what stands between a file's markers."""
    text = path.read_text(encoding="utf-8")
    for name, content in contents.items():
        text = fill(text, name, content)
    path.write_text(text, encoding="utf-8")


def judge_stored() -> int:
    """Print the figures of the stored results; returns 1 where one falls short, else 0."""
    methods = Report.read(RESULTS / "builtin.json").datasets["builtin"]
    rows = [*cpu.figures(stored("benchmark")), *method_figures(methods)]
    print("\n".join(map(str, rows)))
    return int(not all(row.reached for row in rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures, then fill the pages."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks readme", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--figures", action="store_true", help="print the figures, no more")
    only_figures = parser.parse_args(arguments).figures
    status = judge_stored()
    if only_figures:
        return status
    methods = Report.read(RESULTS / "builtin.json").datasets["builtin"]
    readme = ROOT / "README.md"
    fill_file(
        readme,
        {
            "figures": cpu_table(stored("benchmark")),
            "gpu": gpu_table(RESULTS),
            "methods": method_table(methods),
            "evaluate": evaluation_output(methods),
            "speed": speed_tables(RESULTS, gpus=False),
            "drop-in": DROP_IN + printed(readme.read_text(encoding="utf-8"), "ResidualBlock"),
            "quick start": "prints\n\n" + printed(readme.read_text(encoding="utf-8"), "areas()"),
        },
    )
    fill_file(ROOT / "docs/evaluation.md", {"published": published_table()})
    fill_file(ROOT / "docs/words.md", {"embeddings": words_table(stored("words"))})
    fill_file(ROOT / "docs/methods.md", {"facts": method_facts.facts_table()})
    fill_file(
        ROOT / "docs/scale.md",
        {
            "batch": batch.batch_tables(stored("batch")),
            "million": batch.million_table(stored("batch")),
            "gigapixel": gigapixel.gigapixel_table(stored("gigapixel")),
        },
    )
    fill_file(ROOT / "docs/high-resolution.md", high_resolution.tables(stored("high_resolution")))
    return 0
