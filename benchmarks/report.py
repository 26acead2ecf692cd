"""The figures of a benchmark run, and the README's generated tables.

`report.py` prints the figures of results/benchmark.json and of the methods in results/builtin.json beside what they
must reach, and writes between the README's markers: both as tables, the figures of every results/gpu_*.json, and what
the quick start and `resclip evaluate` print; into docs/evaluation.md the published figures, into docs/scale.md and
docs/high-resolution.md what was measured for them. `report.py --figures` only prints, and fails where a figure falls
short.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import high_resolution_table
import scale_tables

from resclip.cli.evaluate import METHODS
from resclip.evaluation.report import Evaluation, Report
from resclip.evaluation.runner import row_names, selection
from resclip.evaluation.tables import COLUMNS, bases_of, conditions, report_table, row_of

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results"


class Figure(NamedTuple):
    """One line of the table of figures."""

    what: str
    measured: str
    wanted: str
    reached: bool


def figures(run: dict[str, Any]) -> list[Figure]:
    """The published figures of a pytest-benchmark run."""
    best = {entry["name"]: entry["stats"]["min"] for entry in run["benchmarks"]}
    extra = {entry["name"]: entry["extra_info"] for entry in run["benchmarks"]}

    def ratio(what: str, slow: str, fast: str) -> Figure:
        factor = best[slow] / best[fast]
        measured = f"{factor:.1f} × ({best[slow]:.2f} s against {best[fast]:.2f} s)"
        return Figure(what, measured, "≥ 15 × faster", factor >= 15)

    names = best["test_names[847]"] / best["test_names[20]"]
    batch = best["test_batch[8]"] / best["test_batch[1]"]
    large = extra["test_large_image"]
    return [
        ratio(
            "encoder, ViT-B/16, 224 × 224, 150 queries: torch against reference",
            "test_encoder[reference]",
            "test_encoder[torch]",
        ),
        ratio(
            "PAMR alone, 150 planes of 224 × 224: torch against reference",
            "test_pamr[reference]",
            "test_pamr[torch]",
        ),
        Figure(
            "2048 × 2048 image, whole, ViT-B/16, 20 queries",
            f"{large['seconds']:.0f} s, peak memory {large['peak_gb']:.1f} GB",
            "under 8 GB",
            large["peak_gb"] < 8,
        ),
        Figure("847 names against 20, same image", f"{names:.1f} × the time", "≤ 8 ×", names <= 8),
        Figure(
            "batch of 8 against 8 singles: time per image (labels identical)",
            f"{batch:.2f} ×",
            "≤ 1 ×",
            batch <= 1,
        ),
    ]


def figure_table(run: dict[str, Any]) -> str:
    """Markdown, with the conditions under it."""
    rows = ["| what | measured | to reach |", "|---|---|---|"]
    rows += [f"| {row.what} | {row.measured} | {row.wanted} |" for row in figures(run)]
    machine = run["machine_info"]
    brand = machine.get("cpu", {}).get("brand_raw", machine["machine"])
    return "\n".join(
        [*rows, "", f"{brand}, 2 threads, float32, Python {machine['python_version']}."]
    )


def method_figures(evaluation: Evaluation) -> list[Figure]:
    """What the methods must reach on the drawn scenes: the papers' order, no class lost, and in what time."""
    ordered = ("clip", "maskclip", "naclip", "naclip+rcs+sfr")
    means = [miou_of(evaluation, name) for name in ordered]
    low, label = weakest(evaluation, ordered[-1])
    usual = usual_rows(evaluation).rows.values()
    seconds = sum(row.cost.seconds for row in usual)
    return [
        Figure(
            "mIoU of clip, maskclip, naclip, resclip",
            ", ".join(f"{mean:.1f}" for mean in means),
            "each above the one before",
            all(lower < higher for lower, higher in pairwise(means)),
        ),
        Figure("mIoU of resclip", f"{means[-1]:.1f}", "> 55", means[-1] > 55),
        Figure("weakest class of resclip", f"{label} {low:.1f}", "> 20", low > 20),
        Figure(
            f"time of `resclip evaluate`, {len(usual)} methods",
            f"{seconds:.0f} s",
            "under 120 s",
            seconds < 120,
        ),
    ]


def usual_rows(evaluation: Evaluation) -> Evaluation:
    """The rows that `resclip evaluate` measures where it is not told which."""
    return selection(evaluation, row_names(METHODS.split(",")))


def miou_of(evaluation: Evaluation, name: str) -> float:
    """Of a row, which must be there."""
    miou = evaluation.rows[name].scores.miou
    if miou is None:
        raise ValueError(f"expected a mean of row {name!r}, got none: measure it again")
    return miou


def weakest(evaluation: Evaluation, name: str) -> tuple[float, str]:
    """The lowest IoU of a row, in per cent, and its class."""
    iou = evaluation.rows[name].scores.iou
    return min(
        (value, label)
        for value, label in zip(iou, evaluation.classes, strict=True)
        if value is not None
    )


def method_table(evaluation: Evaluation) -> str:
    """Markdown: a row a base, mIoU by what is put on it, the row's best in bold and that one's weakest class."""
    heads = ["base", *COLUMNS.values(), "class with the lowest IoU"]
    rows = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    means = {name: miou_of(evaluation, name) for name in evaluation.rows}
    for base in bases_of(means):
        best = max(
            (name for name in means if name.partition("+")[0] == base), key=means.__getitem__
        )
        shown = ["–" if mean is None else f"{mean:.1f}" for mean in row_of(base, means)]
        # Figures that read the same are equally good.
        bold = [f"**{mean}**" if mean == f"{means[best]:.1f}" else mean for mean in shown]
        low, label = weakest(evaluation, best)
        rows.append(f"| {' | '.join([base, *bold, f'{label} {low:.1f}'])} |")
    return "\n".join([*rows, "", f"mIoU in per cent: {conditions(evaluation)}"])


def evaluation_output(evaluation: Evaluation) -> str:
    """What `resclip evaluate` prints."""
    table = report_table(Report({evaluation.dataset: usual_rows(evaluation)}))
    return f"prints\n\n```text\n{table}\n```"


def published_table() -> str:
    """Markdown: the figures of the packaged table, as their sources state them."""
    with (ROOT / "resclip/data/published_miou.csv").open(encoding="utf-8", newline="") as stream:
        heads, *lines = csv.reader(stream)
    rows = [heads, ["---"] * len(heads), *([cell or "–" for cell in line] for line in lines)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def gpu_table(folder: Path) -> str:
    """The figures of each GPU that was measured, with their conditions; a sentence where none was."""
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("gpu_*.json"))]
    if not runs:
        return (
            "No GPU has been measured yet, so there are no figures: the kernels' results are checked in Triton's "
            "interpreter, and that they compile without spills by `make kernels-report`. `make bench-gpu` measures."
        )
    parts = []
    for run in runs:
        rows = ["| what | measured | to reach |", "|---|---|---|"]
        rows += [
            f"| {row['what']} | {row['measured']} | {row['wanted']} |" for row in run["figures"]
        ]
        versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        parts += ["\n".join([*rows, "", f"{run['device']['name']}, {versions}."])]
    return "\n\n".join(parts)


def quick_start(readme: str) -> str:
    """What the README's first Python block prints, run in the project's root as it stands."""
    source = readme.split("```python\n")[1].split("```", maxsplit=1)[0]
    with tempfile.TemporaryDirectory() as folder:
        finished = subprocess.run(
            [sys.executable, "-c", source.replace('"out"', repr(folder))],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    return f"prints\n\n```text\n{finished.stdout.rstrip()}\n```"


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


def stored(name: str) -> Any:
    """What a benchmark has written into results/."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def main() -> int:
    """Print the figures; write or check the README."""
    parser = argparse.ArgumentParser(description="Figures and the README's tables.")
    parser.add_argument("--figures", action="store_true", help="print the figures, no more")
    only_figures = parser.parse_args().figures
    run = stored("benchmark")
    methods = Report.read(RESULTS / "builtin.json").sets["builtin"]
    rows = [*figures(run), *method_figures(methods)]
    for row in rows:
        mark = "ok " if row.reached else "NOT"
        print(f"{mark} {row.what}: {row.measured} (to reach: {row.wanted})")
    if only_figures:
        return int(not all(row.reached for row in rows))
    readme = ROOT / "README.md"
    fill_file(
        readme,
        {
            "figures": figure_table(run),
            "gpu": gpu_table(RESULTS),
            "methods": method_table(methods),
            "evaluate": evaluation_output(methods),
            "quick start": quick_start(readme.read_text(encoding="utf-8")),
        },
    )
    fill_file(ROOT / "docs/evaluation.md", {"published": published_table()})
    fill_file(
        ROOT / "docs/scale.md",
        {
            "batch": scale_tables.batch_tables(stored("batch")),
            "million": scale_tables.million_table(stored("batch")),
            "gigapixel": scale_tables.gigapixel_table(stored("gigapixel")),
        },
    )
    fill_file(
        ROOT / "docs/high-resolution.md", high_resolution_table.tables(stored("high_resolution"))
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
