"""A run's document as Markdown.

Knows the document. Measures nothing.
"""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.case import VARIANTS

Document = dict[str, Any]
HEADINGS = {
    "triton": "fused",
    "torch": "portable torch",
    "reference": "reference",
    "compiled": "torch.compile of the reference",
    "sdpa": "plain SDPA, a call a branch",
    "flex": "FlexAttention",
    "files": "fused, from JPEG to PNG files",
}


def markdown(document: Document) -> str:
    """The whole file: conditions, figures, checks, and a table an op."""
    ops = list(dict.fromkeys(case["op"] for case in document["cases"]))
    parts = [
        f"# Measured on {document['device']['name']}",
        conditions(document),
        "## Figures to reach",
        figure_table(document["figures"]),
        "## Errors against float64",
        check_table(document["checks"]),
    ]
    for op in ops:
        cases = [case for case in document["cases"] if case["op"] == op]
        parts += [f"## {op}", time_table(cases), rate_table(cases, document["ceilings"])]
        parts += [notes(cases)]
    return "\n\n".join(part for part in parts if part) + "\n"


def conditions(document: Document) -> str:
    """Device, versions, commit, date and how times were taken."""
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    ceilings, device = document["ceilings"], document["device"]
    dry = "**A dry run: no number below means anything.** " if document["dry_run"] else ""
    partial = "" if document["complete"] else "**The run did not end.** "
    return (
        f"{dry}{partial}{document['date']}, commit {document['commit']}. Driver {device['driver']}, {versions}.\n\n"
        f"Measured in the same run: fp16 product {ceilings['fp16_tflops']:.0f} TFLOP/s, bf16 product "
        f"{ceilings['bf16_tflops']:.0f} TFLOP/s, copy {ceilings['copy_gbps']:,.0f} GB/s (read and written).\n\n"
        "Medians, quartiles in brackets; cache flushed before each sample, variants in turns. Ops by events on the "
        "device, the pipeline by the host until the device is idle. Memory is the peak with inputs and outputs."
    )


def figure_table(rows: list[Document]) -> str:
    """One row a figure."""
    lines = ["| | figure | measured | to reach |", "|---|---|---|---|"]
    for row in rows:
        mark = "ok" if row["reached"] else "NOT"
        what = f"{row['number']}. {row['what']}"
        lines.append(f"| {mark} | {what} | {row['measured']} | {row['wanted']} |")
    return "\n".join(lines)


def check_table(checks: list[Document]) -> str:
    """One row an op, one column a dtype: worst error and what it may be."""
    dtypes = list(dict.fromkeys(check["dtype"] for check in checks))
    lines = ["| op | " + " | ".join(dtypes) + " |", "|---|" + "---|" * len(dtypes)]
    for op in dict.fromkeys(check["op"] for check in checks):
        cells = {check["dtype"]: check_cell(check) for check in checks if check["op"] == op}
        lines.append(f"| {op} | " + " | ".join(cells.get(dtype, "") for dtype in dtypes) + " |")
    return "\n".join(lines)


def check_cell(check: Document) -> str:
    """Error over budget, or what went wrong."""
    if check["status"] != "ok":
        return f"{check['status']}: {check['reason']}".replace("|", "/")
    if not check["allowed"]:
        return "equal"
    return f"{check['error']:.1e} of {check['allowed']:.1e}"


def time_table(cases: list[Document]) -> str:
    """One row a case, one column a variant that was measured at least once."""
    names = [
        name
        for name in VARIANTS
        if any("median_ms" in case["variants"].get(name, {}) for case in cases)
    ]
    headings = [HEADINGS[name] for name in names]
    lines = ["| ms, peak memory | " + " | ".join(headings) + " |", "|---|" + "---|" * len(names)]
    for case in cases:
        cells = [time_cell(case["variants"].get(name)) for name in names]
        lines.append(f"| {case['name']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def time_cell(outcome: Document | None) -> str:
    """Median, quartiles and memory, or the status."""
    if outcome is None:
        return ""
    if "median_ms" not in outcome:
        return str(outcome["status"])
    spread = f"{number(outcome['q1_ms'])}–{number(outcome['q3_ms'])}"
    return f"{number(outcome['median_ms'])} ({spread}), {memory(outcome['peak_bytes'])}"


def rate_table(cases: list[Document], ceilings: Document) -> str:
    """The fused op's rates and their shares of the ceilings; nothing where it was not measured."""
    lines = [
        "| fused | TFLOP/s | of the fp16 product | GB/s, fewest bytes | of the copy |",
        "|---|---|---|---|---|",
    ]
    for case in cases:
        outcome = case["variants"].get("triton", {})
        if "median_ms" not in outcome:
            continue
        rate, traffic = outcome["tflops"], outcome["gbps"]
        bandwidth = "|  |"
        if case["bytes"]:
            bandwidth = f"| {traffic:,.0f} | {traffic / ceilings['copy_gbps']:.0%} |"
        lines.append(
            f"| {case['name']} | {rate:.1f} | {rate / ceilings['fp16_tflops']:.0%} {bandwidth}"
        )
    return "\n".join(lines) if len(lines) > 2 else ""


def notes(cases: list[Document]) -> str:
    """Why something was not measured, each reason once."""
    reasons: dict[str, list[str]] = {}
    for case in cases:
        for name, outcome in case["variants"].items():
            if outcome["reason"]:
                label = HEADINGS.get(name, name)
                reasons.setdefault(f"{label}: {outcome['reason']}", []).append(case["name"])
    lines = []
    for reason, names in reasons.items():
        where = "" if len(names) == len(cases) else f" ({'; '.join(names)})"
        lines.append(f"- {reason}{where}")
    return "\n".join(lines)


def number(milliseconds: float) -> str:
    """Three digits or so."""
    if milliseconds >= 100:
        return f"{milliseconds:,.0f}"
    return f"{milliseconds:.2f}" if milliseconds >= 1 else f"{milliseconds:.3f}"


def memory(count: int) -> str:
    """Bytes in the unit that fits."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
