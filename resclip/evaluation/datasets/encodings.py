"""Masks that lie in one folder in several encodings, told apart by how their files are called.

Knows file names. Opens no mask, and knows no benchmark: which encodings there are is a reader's part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from resclip.evaluation.datasets.layout import files_under, names_in_words
from resclip.evaluation.datasets.samples import DatasetError, Values


_CONVERTED = "TrainIds"
"""In the name of every mask that mmsegmentation's and GroupViT's converters write, beside the archive's own masks."""


@dataclass(frozen=True)
class Encoding:
    """One kind of masks."""

    ending: str
    """Of their files' names; ".png" stands for the masks that no converter wrote."""
    values: Values


def best_masks(
    folder: Path, encodings: Sequence[Encoding], pictures: Mapping[str, Path]
) -> tuple[Encoding, dict[str, Path]]:
    """The masks below `folder` in the encoding that most of `pictures` have.

    Args:
        folder: with masks, nested folders included.
        encodings: the preferred one first: of two that as many pictures have, it is taken.
        pictures: by the name that a picture and its mask share.

    Returns:
        The encoding, and its masks by name, whether or not their pictures are there.

    Raises:
        DatasetError: there is no mask of any of the encodings; or as `files_under`.
    """
    found = [(encoding, _masks(folder, encoding.ending)) for encoding in encodings]
    if not any(masks for _, masks in found):
        endings = " or ".join(f"*{encoding.ending}" for encoding in encodings)
        there = sorted(path.name for path in folder.rglob("*") if path.is_file())
        raise DatasetError(
            f"{folder}: expected masks called {endings}, found {names_in_words(there)}; "
            "check that they were unpacked there"
        )
    return max(found, key=lambda masks: len(masks[1].keys() & pictures.keys()))


def _masks(folder: Path, ending: str) -> dict[str, Path]:
    files = files_under(folder, [ending])
    return {name: path for name, path in files.items() if _CONVERTED not in name}
