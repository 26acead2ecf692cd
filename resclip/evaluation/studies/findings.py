"""What a study that is no sweep came to: its table, notes, figures for JSON and CSV, and its picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resclip.evaluation.datasets.base import Problem
from resclip.evaluation.tables import aligned, csv_text, markdown, markdown_list
from resclip.io.files import make_folder, write_atomically
from resclip.segmenter import Segmenter

FORMAT = "resclip study"
KEPT_SETTINGS = (
    "model", "pretrained", "preset", "base", "short_side", "long_side", "device", "precision", "resclip", "torch",
)  # fmt: skip
"""The settings of a segmenter that decide the figures of these studies, or say where they were taken."""


@dataclass(frozen=True)
class Finding:
    """One study on one dataset or image."""

    study: str
    """Its name, as `resclip ablate --study` takes it."""
    subject: str
    """What it was measured on, as it stands in names of files: the dataset's name."""
    title: str
    columns: Sequence[str]
    """Of the table and the CSV file, in order."""
    lines: Sequence[Mapping[str, Any]]
    """By column: texts, whole numbers, and numbers, which are shown to `decimals`; None for what there is not."""
    notes: Sequence[str]
    """Sentences on what was measured, and how to read it."""
    settings: Mapping[str, Any]
    """JSON-able: what decides the figures."""
    draw: Callable[[Path], None] | None
    """Draws the picture into a PNG file; None: there is none."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able: more than the table has, such as curves."""
    problems: Sequence[Problem] = ()
    """Images that could not be read."""
    decimals: int = 3
    """Of the numbers in the table."""

    @property
    def stem(self) -> str:
        """The name of its files, without an ending."""
        return f"{self.study}_{self.subject}"

    def cells(self) -> list[list[str]]:
        """The table's cells, line by line."""
        return [
            [shown(line[column], self.decimals) for column in self.columns] for line in self.lines
        ]

    def text(self) -> str:
        """Title, table and notes."""
        table = aligned(list(self.columns), self.cells())
        return f"{self.study}: {self.title}\n\n{table}\n\n" + "\n".join(self.notes)

    def markdown(self) -> str:
        """Table and notes in Markdown."""
        return f"{markdown(self.columns, self.cells())}\n\n{markdown_list(self.notes)}\n"

    def write(self, folder: Path) -> list[Path]:
        """STUDY_SUBJECT.json, .csv and, where there is a picture, .png in a folder, which is made; their paths.

        Raises:
            OSError: a file cannot be written.
            ImportError: the picture needs matplotlib.
        """
        make_folder(folder)
        paths = [folder / f"{self.stem}.{ending}" for ending in ("json", "csv", "png")]
        content = {
            "format": FORMAT,
            "study": self.study,
            "subject": self.subject,
            "settings": self.settings,
            "notes": list(self.notes),
            "problems": [[problem.name, problem.reason] for problem in self.problems],
            "lines": list(self.lines),
            "details": self.details,
        }
        text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
        for path, part in zip(paths, (text, csv_text(self.columns, self.lines)), strict=False):
            # Names of files may hold bytes that are no UTF-8.
            write_atomically(path, part.encode(errors="backslashreplace"))
        if self.draw is None:
            return paths[:2]
        self.draw(paths[2])
        return paths


def shown(value: Any, decimals: int = 3) -> str:
    """A cell of a table."""
    if value is None:
        return "-"
    return f"{value:.{decimals}f}" if isinstance(value, float) else str(value)


def settings_of(segmenter: Segmenter, **more: Any) -> dict[str, Any]:
    """The settings that decide a finding."""
    settings = segmenter.settings
    return {**{name: settings.get(name) for name in KEPT_SETTINGS}, **more}


def subject_in_words(segmenter: Segmenter, description: str, images: int) -> str:
    """A note on what was measured: images, model, and that these are seen whole."""
    settings = segmenter.settings
    weights = f" ({settings['pretrained']})" if settings.get("pretrained") else ""
    count = f"{images:,} image{'' if images == 1 else 's'}"
    side = f", short side {settings['short_side']}" if settings["short_side"] else ""
    return f"{count} of {description}, seen whole{side}; {settings['model']}{weights}, {settings['precision']}."
