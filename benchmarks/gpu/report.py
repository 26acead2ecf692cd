"""A run's document as a page of Markdown tables, and as plots where matplotlib is installed."""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from typing import Any

from benchmarks.gpu.case import VARIANTS
from benchmarks.gpu.inputs import FUSED
from benchmarks.reporting import Document, in_order, table, versions_text
from resclip.io.files import write_atomically

COLOURS = (
    *("#1f6f8b", "#0a9396", "#94d2bd", "#b5c99a", "#3d405b", "#8d99ae", "#c1440e", "#e09f3e"),
    *("#2b2d42", "#6a994e", "#bc6c25", "#9d4edd", "#7b2d8b"),
)
"""One for each of `VARIANTS`."""
GREY, RED = "#8d99ae", "#c1440e"
HEADINGS = {
    "triton": "fused",
    "auto": 'as "auto" chooses',
    "layers": "fused, the layers alone",
    "base": "fused, the base alone",
    "library": "PyTorch's kernels alone",
    "torch": "portable torch",
    "reference": "reference",
    "compiled": "torch.compile of the reference",
    "flash": "plain SDPA, FlashAttention",
    "cudnn": "plain SDPA, cuDNN",
    "efficient": "plain SDPA, memory-efficient",
    "flex": "FlexAttention with a stored bias",
    "files": "fused, from JPEG to PNG files",
}
"""How the tables and plots call each variant."""


def markdown(document: Document) -> str:
    """The whole file: conditions, figures, checks, and a table an op."""
    ops = in_order(case["op"] for case in document["cases"])
    parts = [
        f"# Measured on {document['device']['name']}",
        conditions(document),
        "## Figures to reach",
        figure_table(document["figures"]),
        "## Errors against float64",
        check_table(document["checks"]),
        first_use_table(document["first_use"]),
        tuning_table(document["tuning"]),
        unfinished(document["steps"]),
    ]
    for op in ops:
        cases = [case for case in document["cases"] if case["op"] == op]
        parts += [f"## {op}", time_table(cases), rate_table(cases, document["ceilings"])]
        parts += [notes(cases)]
    return "\n\n".join(part for part in parts if part) + "\n"


def conditions(document: Document) -> str:
    """Device, versions, commit, date and how times were taken."""
    ceilings, device = document["ceilings"], document["device"]
    dry = "**A dry run: no number below means anything.** " if document["dry_run"] else ""
    partial = "" if document["complete"] else f"**Not all was measured: {document['stopped']}.** "
    best = (
        f"Measured in the same run: fp16 product {ceilings['fp16_tflops']:.0f} TFLOP/s, bf16 product "
        f"{ceilings['bf16_tflops']:.0f} TFLOP/s, copy {ceilings['copy_gbps']:,.0f} GB/s (read and written).\n\n"
        if ceilings
        else ""
    )
    return (
        f"{dry}{partial}{document['date']}, commit {document['commit']}. Driver {device['driver']}, "
        f"{versions_text(document['versions'])}.\n\n{best}"
        "Medians over the turns, quartiles in brackets. In a turn each variant is called many times by do_bench, which "
        "empties the cache before each call, and replayed from a CUDA graph where one can hold it; `queued` is what "
        "the host needs for a call. Calls of over 20 ms and the pipeline are timed once a turn by the host until the "
        "device is idle. Memory is the peak with inputs and outputs."
    )


def figure_table(rows: list[Document]) -> str:
    """One row a figure."""
    return table(
        ["", "figure", "measured", "to reach"],
        [
            [
                "ok" if row["reached"] else "NOT",
                f"{row['number']}. {row['what']}",
                row["measured"],
                row["wanted"],
            ]
            for row in rows
        ],
    )


def check_table(checks: list[Document]) -> str:
    """One row an op, one column a dtype: worst error and what it may be."""
    cells = {(each["op"], each["way"], each["dtype"]): check_cell(each) for each in checks}
    dtypes = in_order(check["dtype"] for check in checks)
    rows = [
        [op, way, *(cells.get((op, way, dtype), "") for dtype in dtypes)]
        for op, way in in_order((check["op"], check["way"]) for check in checks)
    ]
    return table(["op", "way", *dtypes], rows)


def check_cell(check: Document) -> str:
    """Error over budget, or what went wrong."""
    if check["status"] != "ok":
        return f"{check['status']}: {check['reason']}"
    if not check["allowed"]:
        return "equal"
    return f"{check['error']:.1e} of {check['allowed']:.1e}"


def first_use_table(found: Document) -> str:
    """What comparing each op with torch took, compilation included; nothing where it was not measured."""
    rows = [[op, f"{each['seconds']:.2f}", each["reason"] or "sound"] for op, each in found.items()]
    head = ["first use, fp16", "seconds", "verdict"]
    return f"## First use\n\n{table(head, rows)}" if rows else ""


def tuning_table(places: list[Document]) -> str:
    """The rows that the launch table should have, beside what it has; nothing where none was sought."""
    rows = []
    for each in places:
        if "proposed" not in each:
            rows.append([each["name"], f"{each['today_ms']:.3f}", "not ended", "", ""])
            continue
        changed = {
            part: program
            for part, program in each["proposed"].items()
            if program != each["today"][part]
        }
        times = [f"{each[key]:.3f}" for key in ("proposed_ms", "library_layers_ms")]
        what = "; ".join(
            f"{part}: " + ", ".join(f"{name} {value}" for name, value in program.items())
            for part, program in changed.items()
        )
        rows.append([each["name"], f"{each['today_ms']:.3f}", what or "today's row", *times])
    head = ["ms", "today's row", "proposed", "with it", "and the layers by the library"]
    return f"## Programs of residual_attention\n\n{table(head, rows)}" if rows else ""


def unfinished(steps: dict[str, str]) -> str:
    """Steps that were not taken to their end, and why."""
    return "\n".join(f"- {name}: {status}" for name, status in steps.items() if status != "ok")


def time_table(cases: list[Document]) -> str:
    """One row a case, one column a variant that was measured at least once."""
    names = [
        name
        for name in VARIANTS
        if any("median_ms" in case["variants"].get(name, {}) for case in cases)
    ]
    rows = [
        [case["name"], *(time_cell(case["variants"].get(name)) for name in names)] for case in cases
    ]
    return table(["ms, peak memory", *(HEADINGS[name] for name in names)], rows)


def time_cell(outcome: Document | None) -> str:
    """Median, quartiles and memory, or the status."""
    if outcome is None:
        return ""
    if "median_ms" not in outcome:
        return str(outcome["status"])
    low, middle, high = (number(outcome[key]) for key in ("q1_ms", "median_ms", "q3_ms"))
    count = outcome["peak_bytes"]
    memory = f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
    return f"{middle} ({low}–{high}), {memory}"


def rate_table(cases: list[Document], ceilings: Document) -> str:
    """The fused op's rates and their shares of the ceilings; nothing where it was not measured."""
    rows = []
    for case in cases:
        outcome = case["variants"].get(FUSED, {})
        if "median_ms" not in outcome:
            continue
        rate, traffic = outcome["tflops"], outcome["gbps"]
        queued = "" if outcome["queue_ms"] is None else number(outcome["queue_ms"])
        bandwidth = ["", ""]
        if case["bytes"]:
            bandwidth = [f"{traffic:,.0f}", share(traffic, ceilings, "copy_gbps")]
        shares = [share(rate, ceilings, "fp16_tflops"), *bandwidth]
        rows.append([case["name"], f"{rate:.1f}", *shares, queued])
    head = ["fused", "TFLOP/s", "of the fp16 product", "GB/s, fewest bytes", "of the copy"]
    return table([*head, "queued, ms"], rows) if rows else ""


def share(rate: float, ceilings: Document, name: str) -> str:
    """A rate as a part of what the device can do, where that is known."""
    return f"{rate / ceilings[name]:.0%}" if name in ceilings else ""


def notes(cases: list[Document]) -> str:
    """Why something was not measured, each reason once."""
    reasons: dict[str, list[str]] = {}
    for case in cases:
        for name, outcome in case["variants"].items():
            if outcome["reason"]:
                label = HEADINGS.get(name, name)
                reasons.setdefault(f"{label}: {outcome['reason']}", []).append(case["name"])
    return "\n".join(
        f"- {reason}" + ("" if len(names) == len(cases) else f" ({'; '.join(names)})")
        for reason, names in reasons.items()
    )


def number(milliseconds: float) -> str:
    """Three digits or so."""
    if milliseconds >= 100:
        return f"{milliseconds:,.0f}"
    return f"{milliseconds:.2f}" if milliseconds >= 1 else f"{milliseconds:.3f}"


def draw(document: Document, folder: Path, stem: str) -> list[Path]:
    """Write the plots beside the tables; the files written, none without matplotlib."""
    try:
        matplotlib = importlib.import_module("matplotlib")
        matplotlib.use("Agg")
        pyplot = importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        print(f"no plots: matplotlib cannot be imported ({error}); pip install matplotlib")
        return []
    paths = []
    for op, axis in (("residual_attention", "tokens"), ("semantic_feedback", "patches")):
        cases = [case for case in document["cases"] if case["op"] == op]
        if cases:
            path = folder / f"{stem}_{op}.png"
            write_atomically(path, by_length(pyplot, cases, axis, document))
            paths.append(path)
    path = folder / f"{stem}_ops.png"
    write_atomically(path, speedups(pyplot, document))
    return [*paths, path]


def length(case: Document) -> int:
    """Patches of one image of a case, with which its work per image grows."""
    height, width = case["shape"]["grid"]
    return int(height * width)


def by_length(pyplot: Any, cases: list[Document], axis: str, document: Document) -> bytes:
    """Two panels over the number of patches: milliseconds and peak gigabytes an image, a line a variant."""
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.2))
    cases = sorted(cases, key=length)
    for name, colour in zip(VARIANTS, COLOURS, strict=True):
        shown = [case for case in cases if "median_ms" in case["variants"].get(name, {})]
        if not shown:
            continue
        lengths = [length(case) for case in shown]
        for panel, key, unit in zip(panels, ("median_ms", "peak_bytes"), (1.0, 1e9), strict=True):
            values = [case["variants"][name][key] / unit / case["shape"]["batch"] for case in shown]
            panel.plot(lengths, values, marker="o", color=colour, label=HEADINGS[name])
    for panel, label in zip(panels, ("ms an image", "peak GB an image"), strict=True):
        panel.set(xscale="log", yscale="log", xlabel="patches of an image", ylabel=label)
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    figure.suptitle(f"{cases[0]['op']} by {axis}, {document['device']['name']}")
    return png(pyplot, figure)


def speedups(pyplot: Any, document: Document) -> bytes:
    """A bar a case: how many times faster the fused op is than the reference, or than portable torch without one."""
    names, ratios, colours = [], [], []
    for case in document["cases"]:
        variants = case["variants"]
        for other, colour in (("reference", RED), ("torch", GREY)):
            if all("median_ms" in variants.get(name, {}) for name in (FUSED, other)):
                names.append(f"{case['op']}: {case['name']}")
                ratios.append(variants[other]["median_ms"] / variants[FUSED]["median_ms"])
                colours.append(colour)
                break
    figure, panel = pyplot.subplots(figsize=(10, 1.2 + 0.3 * len(names)))
    panel.barh(names, ratios, color=colours)
    panel.invert_yaxis()
    panel.set(xlabel="times faster than the reference (grey: than portable torch)")
    if ratios:
        panel.set_xscale("log")
    panel.axvline(1.0, color="black", linewidth=0.8)
    figure.suptitle(f"Fused ops, {document['device']['name']}")
    return png(pyplot, figure)


def png(pyplot: Any, figure: Any) -> bytes:
    """The figure's bytes."""
    figure.tight_layout()
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    pyplot.close(figure)
    return stream.getvalue()
