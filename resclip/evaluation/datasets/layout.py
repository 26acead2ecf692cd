"""Finding a data set's folders, split files, pictures and masks, with errors that say what was looked for and found.

Knows folders and file names. Opens no picture, and knows no benchmark: which names to look for is a reader's part.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from resclip.evaluation.datasets.samples import (
    DatasetError,
    LabelFile,
    PictureFile,
    Problem,
    Sample,
    Values,
)
from resclip.files import read_text


_SHOWN = 8  # Names that an error lists: two lines of a terminal.


def first_that_exists(root: Path, what: str, candidates: Sequence[str]) -> Path:
    """The first of `candidates`, paths below `root`, that is there: a folder or a file.

    Args:
        root: the folder that a person named.
        what: is looked for, for the error: "the pictures of PASCAL VOC 2012".
        candidates: relative paths with "/", the preferred one first.

    Raises:
        DatasetError: `root` is no folder, or holds none of them: what was looked for, and what `root` does hold.
    """
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing there"
        raise DatasetError(f"{root}: expected a folder with {what}, got {found}; check the path")
    for candidate in candidates:
        if (root / candidate).exists():
            return root / candidate
    looked_for = " or ".join(map(repr, candidates))
    raise DatasetError(
        f"{root}: expected {what}, looked for {looked_for}, found {_contents(root)}; "
        "name the folder that holds what was looked for"
    )


def split_names(path: Path) -> list[str]:
    """The lines of a split file, in its order, without blank ones and spaces at the ends.

    Raises:
        DatasetError: the file is missing (the error lists the splits that are there), empty or not UTF-8.
    """
    if not path.is_file():
        there = _contents(path.parent) if path.parent.is_dir() else "no such folder"
        raise DatasetError(
            f"{path}: expected a split file with a picture's name a line, got none; "
            f"in {path.parent.name}: {there}; name another split, or get the file"
        )
    return lines_of(path, "a picture's name a line")


def lines_of(path: Path, expected: str) -> list[str]:
    """The lines of a text file, without blank ones and spaces at the ends.

    Args:
        expected: what the file should hold, for the error: "a picture's name a line".

    Raises:
        DatasetError: there is no such line, or the file is not UTF-8.
        OSError: the file cannot be read.
    """
    try:
        lines = [line.strip() for line in read_text(path, expected).splitlines()]
    except ValueError as error:
        raise DatasetError(str(error)) from None
    if not any(lines):
        raise DatasetError(f"{path}: expected {expected}, got an empty file; get it again")
    return [line for line in lines if line]


def files_under(folder: Path, endings: Sequence[str]) -> dict[str, Path]:
    """The files below `folder`, nested folders included, whose names end in one of `endings`.

    Hidden files and folders, such as macOS's "._0001.png", are no part of a data set and skipped.

    Args:
        endings: of names, whatever the case: ".jpg", or "_gtFine_labelIds.png".

    Returns:
        By the path below `folder` without the ending, with "/" on any system: "frankfurt/frankfurt_000000_000294".

    Raises:
        DatasetError: a folder cannot be read, a link leads round in a circle, or two files differ in nothing but
            their endings.
    """
    found: dict[str, Path] = {}
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = Path(place)
        if here.is_symlink() and here.parent.resolve().is_relative_to(here.resolve()):
            raise DatasetError(
                f"{here}: expected a folder, got a link to one that it is in; remove it"
            )
        for file in files:
            ending = next((end for end in endings if file.lower().endswith(end.lower())), None)
            if ending is None or file.startswith("."):
                continue
            path = here / file
            name = path.relative_to(folder).as_posix().removesuffix(file[len(file) - len(ending) :])
            if name in found:
                first, second = sorted((found[name].name, file))
                raise DatasetError(
                    f"{here}: expected one file called {name!r}, got {first} and {second}; remove one"
                )
            found[name] = path
    return found


def pair_up(
    name: str,
    pictures: Mapping[str, Path],
    masks: Mapping[str, Path],
    listed: Sequence[str] | None = None,
) -> tuple[list[tuple[str, Path, Path]], tuple[Problem, ...]]:
    """Pictures with their masks, and a `Problem` for each that has no counterpart: nothing is dropped silently.

    Args:
        name: of the data set, for the error.
        pictures, masks: the files that are there, by the name that a picture and its mask share.
        listed: the names that should be there, as of a split file; what else is there does not belong to the split.
            None: all that are there.

    Returns:
        (name, picture, mask) of each whole pair, and the problems; both sorted by name.

    Raises:
        DatasetError: there is no pair at all, or a name is listed twice.
    """
    names = sorted({*pictures, *masks} if listed is None else set(listed))
    if listed is not None and len(names) < len(listed):
        twice = next(some for some in names if listed.count(some) > 1)
        raise DatasetError(
            f"{name}: expected each picture once, got {twice!r} {listed.count(twice)} times in the split file"
        )
    pairs: list[tuple[str, Path, Path]] = []
    problems: list[Problem] = []
    for some in names:
        if some in pictures and some in masks:
            pairs.append((some, pictures[some], masks[some]))
        elif some in pictures:
            problems.append(Problem(some, f"{pictures[some]}: the picture has no mask"))
        elif some in masks:
            problems.append(Problem(some, f"{masks[some]}: the mask has no picture"))
        else:
            problems.append(
                Problem(some, "listed in the split file, but there is neither picture nor mask")
            )
    if not pairs:
        example = f", such as {problems[0].name!r}: {problems[0].reason}" if problems else ""
        raise DatasetError(
            f"{name}: expected pictures with masks of the same names, got {len(pictures):,} pictures and "
            f"{len(masks):,} masks, of which no two belong together{example}"
        )
    return pairs, tuple(problems)


def samples_of(pairs: Sequence[tuple[str, Path, Path]], values: Values) -> tuple[Sample, ...]:
    """`pair_up`'s pairs as a data set's samples, all masks read by `values`."""
    return tuple(
        Sample(name, PictureFile(picture), LabelFile(mask, values)) for name, picture, mask in pairs
    )


def describe(count: int, what: str, place: Path, root: Path, official: int | None = None) -> str:
    """A data set in words: "1,449 pictures of PASCAL VOC 2012's val (VOCdevkit/VOC2012)".

    Args:
        count: of pictures that can be measured on.
        what: they are of: "PASCAL VOC 2012's val".
        place: the folder that they were found in: `root` or below it.
        root: the folder that a person named.
        official: how many the set is published with, where that is known; said where `count` is another number.
    """
    pictures = f"{count:,} picture{'' if count == 1 else 's'} of {what}"
    if official not in (None, count):
        pictures += f", which has {official:,}"
    below = place.relative_to(root).as_posix()
    return f"{pictures} ({place.name if below == '.' else below})"


def names_in_words(names: Sequence[str]) -> str:
    """The first few of `names` as an error shows them: "a, b and 3 more"; "nothing" where there is none."""
    if not names:
        return "nothing"
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest:,} more" if rest > 0 else "")


def _contents(folder: Path) -> str:
    """What is in a folder, in words; folders end in "/"."""
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        return f"a folder that cannot be read ({error.strerror})"
    return names_in_words([path.name + "/" * path.is_dir() for path in paths])


def _refuse(error: OSError) -> None:
    raise DatasetError(
        f"{error.filename}: expected a folder that can be read ({error.strerror}); check the path and its permissions"
    ) from error
