"""Results as they are stored in benchmarks/results/, the figures that they must reach, and Markdown tables of both."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from resclip.io.files import write_atomically

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"

Document = dict[str, Any]
"""Results of one run, as JSON holds them."""


@dataclass(frozen=True)
class Figure:
    """Something that was measured, beside what it must reach."""

    what: str
    measured: str
    wanted: str
    reached: bool
    number: int = 0
    """By which a list of figures refers to it; 0 where there is no such list."""
    value: float | None = None

    def __str__(self) -> str:
        mark = "ok " if self.reached else "NOT"
        number = f" ({self.number})" if self.number else ""
        return f"{mark}{number} {self.what}: {self.measured} (to reach: {self.wanted})"

    def record(self) -> Document:
        """As values that JSON can hold."""
        return asdict(self)


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; a bar inside a cell becomes a slash."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines
    )


def figure_table(figures: Iterable[Mapping[str, Any]]) -> str:
    """One row for each record of a `Figure`."""
    rows = [[figure["what"], figure["measured"], figure["wanted"]] for figure in figures]
    return table(["what", "measured", "to reach"], rows)


def conditions(run: Mapping[str, Any]) -> str:
    """Machine, threads of the model and versions of a run on a CPU."""
    threads = "1 thread" if run["threads"] == 1 else f"{run['threads']} threads"
    return f"{run['machine']}, {threads}, {versions_text(run['versions'])}."


def this_machine() -> Document:
    """What `conditions` reads, of this process."""
    import torch

    from resclip.evaluation.distributed import machine_name

    return {
        "machine": machine_name(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def versions_text(versions: Mapping[str, str]) -> str:
    """Each name with its version."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def in_order(values: Iterable[Any]) -> list[Any]:
    """Each value once, in the order in which they came."""
    return list(dict.fromkeys(values))


def store(path: Path, document: Mapping[str, Any]) -> None:
    """Write results as JSON, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(document, indent=1).encode() + b"\n")


def stored(name: str) -> Any:
    """The results of one benchmark from benchmarks/results/."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
