"""Prompt templates: the sentences that a class name is put into before it is encoded."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from resclip.io.files import is_file, read_text

SHORT_TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
"""The seven of the 80 that the prompt engineering notebook of CLIP's authors selects."""


def imagenet_templates() -> tuple[str, ...]:
    """CLIP's 80 ImageNet prompt templates (Radford et al. 2021), each with "{}" for the class name."""
    import open_clip  # It takes seconds to import, and only this set needs it.

    return tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)


TEMPLATE_SETS: Mapping[str, Callable[[], tuple[str, ...]]] = {
    "imagenet": imagenet_templates,
    "short": lambda: SHORT_TEMPLATES,
    "plain": lambda: ("a photo of a {}.",),
    "name": lambda: ("{}",),
}
"""The named sets, each as a function that returns its templates."""


def find_templates(
    templates: str | os.PathLike[str] | Sequence[str] | None = None,
) -> tuple[str, ...]:
    """The templates of a named set, of a file, or of a list, checked.

    Args:
        templates: a name of `TEMPLATE_SETS`; or one template, recognised by its "{}"; or the path of a UTF-8 file with
            one template per line, blank lines skipped; or a list of templates. None: "imagenet".

    Returns:
        At least one template, each with "{}" wherever the name goes.

    Raises:
        ValueError: an unknown name (with the valid ones), no template, or one without "{}".
        TypeError: a template that is no text.
        OSError: the file cannot be read.
    """
    if templates is None:
        templates = "imagenet"
    if isinstance(templates, str):
        if templates in TEMPLATE_SETS:
            return TEMPLATE_SETS[templates]()
        if "{}" in templates:
            return (templates,)
        if not is_file(templates):
            raise ValueError(
                f"unknown templates {templates!r}; use one of: {', '.join(TEMPLATE_SETS)}, a sentence with '{{}}' for "
                "the class name, or the path of a file with one template per line"
            )
        templates = Path(templates)
    if isinstance(templates, os.PathLike):
        return _read_templates(Path(templates))
    if not isinstance(templates, (tuple, list)):
        raise TypeError(
            f"templates must be a set's name, a list of sentences with '{{}}', or the path of a file; got {templates!r}"
        )
    if not templates:
        raise ValueError("templates must hold at least one; '{}' is the name alone")
    for template in templates:
        _check_template(template, "")
    return tuple(templates)


def _read_templates(path: Path) -> tuple[str, ...]:
    lines = read_text(path, "prompt templates, one per line").splitlines()
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ValueError(f"{path}: expected one prompt template per line, got an empty file")
    for number, line in numbered:
        _check_template(line, f"{path}, line {number}: ")
    return tuple(line for _, line in numbered)


def _check_template(template: object, position: str) -> None:
    if not isinstance(template, str):
        raise TypeError(f"{position}expected templates to be text, got {template!r}")
    if "{}" not in template:
        raise ValueError(f"{position}template {template!r} has no '{{}}' for the class name")
