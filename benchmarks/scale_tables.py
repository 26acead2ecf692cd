"""The tables of docs/scale.md, from results/batch.json and results/gigapixel.json.

Knows the stored figures and Markdown. Knows no model; `batch.py` and `gigapixel.py` measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

IMAGES = 100_000_000
"""Of the example."""


def batch_tables(run: dict[str, Any]) -> str:
    """One by one against together, and whole jobs."""
    ways = table(
        ["method", "window", "one by one, images/s", "together, images/s", "faster"],
        [
            [
                row["method"],
                row["window"],
                f"{row['one_by_one']:.2f}",
                f"{row['together']:.2f}",
                f"{row['ratio']:.1f} ×",
            ]
            for row in run["rows"]
        ],
    )
    note = (
        f"{run['images']} images of 60 to 250 pixels a side, built-in model, at their own size. One by one: a "
        "image and a window at a time. Together: `segment_many`, batches of "
        f"{run['batch_size']}. The labels are the same. {conditions(run)}"
    )
    jobs = table(
        ["JPEG to PNG", "window", "images/s", "megapixels/s", "bytes a label map"],
        [
            [
                job["method"],
                job["window"],
                f"{job['images_per_second']:.2f}",
                f"{job['megapixels_per_second']:.3f}",
                f"{job['bytes_per_image']:,.0f}",
            ]
            for job in run["jobs"]
        ],
    )
    return f"{ways}\n\n{note}\n\n{jobs}"


def million_table(run: dict[str, Any]) -> str:
    """What 100 million photographs take beside the model, by the measured steps."""
    steps = run["steps"]
    width, height = steps["size"]
    on_a_core = steps["read_seconds"] + steps["write_seconds"]
    rows = [
        ["reading a JPEG, and resizing it", f"{1000 * steps['read_seconds']:.1f} ms of a core"],
        [
            "writing its label map",
            f"{1000 * steps['write_seconds']:.1f} ms of a core, fsync included",
        ],
        [f"{IMAGES:,} of both", f"{IMAGES * on_a_core / 3600:,.0f} core hours"],
        ["cores that keep up with a model of 100 images/s", f"{100 * on_a_core:.1f}"],
        [f"{IMAGES:,} read", f"{IMAGES * steps['read_bytes'] / 1e12:.1f} TB"],
        [f"{IMAGES:,} written", f"{IMAGES * steps['written_bytes'] / 1e12:.2f} TB"],
        [
            "network at 100 images/s",
            f"{100 * (steps['read_bytes'] + steps['written_bytes']) / 1e6:.1f} MB/s",
        ],
    ]
    return f"{table([f'{width} × {height} pixels', 'measured'], rows)}\n\n{conditions(run)}"


def gigapixel_table(run: dict[str, Any]) -> str:
    """One very large image."""
    megapixels = run["side"] ** 2 / 1e6
    rows = [
        ["peak resident memory", f"{run['peak_gb']:.2f} GB"],
        ["the same for an image of 112 × 112", f"{run['floor_gb']:.2f} GB"],
        ["its pixels alone", f"{3 * megapixels / 1e3:.1f} GB"],
        ["its logits alone", f"{4 * run['classes'] * megapixels / 1e3:.1f} GB"],
        [
            "time",
            f"{run['seconds'] / 60:.1f} min, {megapixels / run['seconds']:.2f} megapixels/s",
        ],
        ["input", f"{run['input_bytes'] / 1e6:.0f} MB"],
        ["label map", f"{run['output_bytes'] / 1e6:.0f} MB"],
    ]
    head = [f"{run['side']:,} × {run['side']:,} pixels, {run['classes']} classes", "measured"]
    return f"{table(head, rows)}\n\n`{run['options']}`; {conditions(run)}"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def conditions(run: dict[str, Any]) -> str:
    """Machine, threads of the model, versions."""
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    threads = "1 thread" if run["threads"] == 1 else f"{run['threads']} threads"
    return f"{run['machine']}, {threads}, {versions}."
