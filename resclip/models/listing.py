"""Which models there are: read from open_clip's and timm's files, so that a list need not wait for torch."""

from __future__ import annotations
import __future__

import ast
import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TIMM_MODULES = ("vision_transformer", "eva")
"""Modules of timm whose models `TimmTower` can run in steps."""
NOT_PLAIN = {
    "eva02_enormous_patch14_clip_224",  # Its blocks norm after the attention.
    "vit_base_mci_224",  # A convolutional network makes its patches.
}
"""Models of these modules whose towers cannot be run in steps nevertheless."""

Tags = dict[str, dict[str, dict[str, Any]]]
"""Model → pretrained tag → what open_clip knows of these weights."""


def list_models() -> list[tuple[str, list[str]]]:
    """open_clip's models that `adapt` accepts, each with its pretrained tags.

    Models that the process has added to open_clip are among them.
    """
    if "open_clip" not in sys.modules:
        try:
            return read_models()
        # Another version's files may say it in other ways; the import is slow, and always true.
        except Exception:  # noqa: BLE001
            return import_models()
    return import_models()


def import_models() -> list[tuple[str, list[str]]]:
    """`list_models` as open_clip and timm themselves say it."""
    import open_clip
    from timm.models import is_model_in_modules

    return [
        (name, open_clip.list_pretrained_tags_by_model(name))
        for name in open_clip.list_models()
        if has_plain_tower(
            open_clip.get_model_config(name) or {},
            lambda model: is_model_in_modules(model, TIMM_MODULES),
        )
    ]


def read_models() -> list[tuple[str, list[str]]]:
    """`import_models` from the files of the installed packages, in a tenth of a second.

    Raises:
        Exception: of any kind, where the files are not as they were in the versions that are known.
    """
    tags = read_tags(package_folder("open_clip"))
    of_timm = read_timm_names(package_folder("timm"))
    models = {}
    for path in (package_folder("open_clip") / "model_configs").glob("*.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        if {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys():
            models[path.stem] = config
    if not models:
        raise ValueError("open_clip has no configurations where they were expected")
    return [
        (name, list(tags.get(name, {})))
        for name in sorted(models, key=natural)
        if has_plain_tower(models[name], lambda model: model.partition(".")[0] in of_timm)
    ]


def package_folder(name: str) -> Path:
    """The folder of an installed package, which is not imported."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise ImportError(f"the package {name} is not installed")
    return Path(found.origin).parent


def read_tags(folder: Path) -> Tags:
    """open_clip's table of pretrained tags.

    Its module computes the table, so its statements are run as they stand, but for the imports of other packages and
    of what tries them (torch is behind one): these serve downloads.
    """
    namespace: dict[str, Any] = {}
    for file in ("constants.py", "pretrained.py"):
        tree = ast.parse((folder / file).read_text(encoding="utf-8"))
        tree.body = [statement for statement in tree.body if stands_alone(statement)]
        code = compile(tree, str(folder / file), "exec", __future__.annotations.compiler_flag)
        exec(code, namespace)
    tags: Tags = namespace["_PRETRAINED"]
    return tags


def stands_alone(statement: ast.stmt) -> bool:
    """Whether a statement of open_clip's tables needs nothing but Python's own library."""
    if isinstance(statement, ast.Import):
        return all(
            alias.name.partition(".")[0] in sys.stdlib_module_names for alias in statement.names
        )
    if isinstance(statement, ast.ImportFrom):
        return (
            not statement.level
            and str(statement.module).partition(".")[0] in sys.stdlib_module_names
        )
    return not isinstance(statement, ast.Try)


def read_timm_names(folder: Path) -> set[str]:
    """The names of the models that `TIMM_MODULES` register: those of the functions that do so."""
    texts = [
        (folder / "models" / f"{module}.py").read_text(encoding="utf-8") for module in TIMM_MODULES
    ]
    found = [re.findall(r"^@register_model\s+def (\w+)\(", text, re.MULTILINE) for text in texts]
    if not all(found):
        raise ValueError("timm registers no models where they were expected")
    return {name for names in found for name in names}


def natural(name: str) -> list[int | str]:
    """A key by which numbers inside names are sorted as numbers, as open_clip sorts its models."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name.lower())]


def has_plain_tower(config: dict[str, Any], is_plain_in_timm: Callable[[str], bool]) -> bool:
    """Whether `adapt` accepts the image tower of a configuration; the model is not built.

    Args:
        config: of open_clip.
        is_plain_in_timm: whether a model of timm is of `TIMM_MODULES`.
    """
    vision = config.get("vision_cfg", {})
    timm_name = vision.get("timm_model_name")
    if timm_name:
        return timm_name not in NOT_PLAIN and is_plain_in_timm(timm_name)
    if vision.get("scaled_cosine_attn") or isinstance(vision.get("attentional_pool"), str):
        return False
    return isinstance(vision.get("layers"), int)  # A ResNet has a list of them.
