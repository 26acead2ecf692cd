"""Predictors by name: those that come with the library, those that packages announce, and "module:function"."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.metadata
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resclip.errors import first_sentence
from resclip.methods.catalogue import METHODS
from resclip.methods.options_text import parse_value
from resclip_kernels import quoted

if TYPE_CHECKING:
    import torch

    from resclip.predictors.base import Predictor

GROUP = "resclip.predictors"
"""The group of entry points by which packages announce predictors."""
SHIPPED: Mapping[str, str] = {
    "groupvit": "resclip.predictors.groupvit:GroupViT",
    "clipseg": "resclip.predictors.clipseg:ClipSeg",
    "reco": "resclip.predictors.reco:ReCo",
}
"""The library's own predictors, each as "module:name"."""
PREDICTOR_SUMMARIES: Mapping[str, str] = {
    "groupvit": "groups of patches learnt from captions (Xu et al., CVPR 2022; needs transformers)",
    "clipseg": "a decoder of one text's mask (Lüddecke & Ecker, CVPR 2022; needs transformers)",
    "reco": "what reference pictures of a class have in common (Shin et al., NeurIPS 2022)",
}
"""What each of them is."""
GIVEN = ("device", "dataset")
"""Keywords that a function which makes a predictor is given where it takes them."""
_SPELLED = re.compile(r"[^\s:+]+:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def predictor_names() -> dict[str, str]:
    """What each predictor's name stands for, as "module:name"; a method's name, or one of ours, stays what it is."""
    found = dict(SHIPPED)
    for point in importlib.metadata.entry_points(group=GROUP):
        if point.name not in METHODS:
            found.setdefault(point.name, point.value)
    return found


def is_predictor(name: str) -> bool:
    """Whether a name, with or without "+rcs" or "+sfr", means a predictor and no method."""
    base = name.partition("+")[0].strip()
    return ":" in base or base in predictor_names()


def check_name(name: str) -> str:
    """The "module:name" that a predictor's name stands for.

    Raises:
        ValueError: RCS or SFR on a predictor, which have no place there; no such predictor.
    """
    base, plus, modules = (part.strip() for part in name.partition("+"))
    known = predictor_names()
    target = known.get(base, base)
    if plus:
        raise ValueError(
            f"{quoted(name)}: {obstacle(target)}; leave +{modules} out, or measure a method of `resclip methods` with "
            "it beside this one"
        )
    if not _SPELLED.fullmatch(target):
        near = difflib.get_close_matches(base, known, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(
            f"expected a predictor as module:function, or one of {', '.join(known)}; got {quoted(name)}{hint}"
        )
    return target


def obstacle(target: str) -> str:
    """Why RCS and SFR do not apply to a predictor: what it says itself as `modules_obstacle`, or what holds of any."""
    with contextlib.suppress(ValueError, ImportError):
        stated = getattr(find_maker(target), "modules_obstacle", None)
        if isinstance(stated, str):
            return stated
    return "RCS and SFR change the attention of a CLIP tower's final block, and a predictor gives scores alone"


def find_maker(name: str) -> Any:
    """What a predictor's name stands for: a class, a function or a predictor.

    The folder that a program is started in is searched for modules too, as `python -m` does.

    Raises:
        ValueError: no such module, or nothing of that name in it; see `check_name`.
        ImportError: the module lacks another one.
    """
    target = check_name(name)
    module_name, _, path = target.partition(":")
    where = str(Path.cwd())
    sys.path.insert(0, where)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"predictor {quoted(name)}: there is no module {error.name!r}; check its name, and that its package is "
            "installed or its file in the folder that the command is started in"
        ) from None
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(
            f"predictor {quoted(name)}: the module {module_name!r} cannot be imported ({first_sentence(error)})"
        ) from error
    finally:
        with contextlib.suppress(ValueError):  # The module may have tidied up itself.
            sys.path.remove(where)
    for part in path.split("."):
        if not hasattr(found, part):
            raise ValueError(
                f"predictor {quoted(name)}: {module_name!r} has no {path!r}; name a function or class in it that makes "
                "a predictor"
            )
        found = getattr(found, part)
    return found


def make_predictor(
    name: str,
    *,
    device: torch.device | str = "cpu",
    dataset: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Predictor:
    """The predictor called `name`.

    Args:
        name: one of `predictor_names`, or "module:function": a function or class, which is called, or a predictor.
        device: where it is to run, for makers that take `device`.
        dataset: the name of the dataset that it will be measured on, for makers that take `dataset`.
        options: further keywords for the maker.

    Raises:
        ValueError: no such predictor; an option that the maker does not take, or one that it needs and did not get.
        TypeError: what it makes is no predictor.
        Exception: whatever the maker raises.
    """
    from resclip.predictors.base import check_predictor

    made = find_maker(name)
    given = dict(options or {})
    if not callable(made) or (not isinstance(made, type) and hasattr(made, "scores")):
        if given:
            raise ValueError(
                f"predictor {quoted(name)} is there already and takes no options; got {', '.join(given)}"
            )
        return check_predictor(made, f"predictor {quoted(name)}")
    accepted, needed = keywords_of(made)
    for option in given:
        if accepted is not None and option not in accepted:
            raise ValueError(
                f"predictor {quoted(name)} takes the options {', '.join(sorted(accepted)) or 'none'}; got "
                f"{quoted(option)}"
            )
    automatic = {"device": device, "dataset": dataset}
    for keyword in GIVEN:
        if accepted is not None and keyword in accepted:
            given.setdefault(keyword, automatic[keyword])
    lacking = [option for option in needed if option not in given]
    if lacking:
        raise ValueError(
            f"predictor {quoted(name)} needs {', '.join(f'{option}=' for option in lacking)}; got no value for it"
        )
    return check_predictor(made(**given), f"predictor {quoted(name)}")


def device_of(name: str, predictor: Predictor, requested: torch.device | str) -> torch.device | str:
    """Where a predictor's pixels go: its own `device`, or the requested one if its maker takes it, else the CPU."""
    own: torch.device | str | None = getattr(predictor, "device", None)
    if own is not None:
        return own
    made = find_maker(name)
    accepted, _ = keywords_of(made) if callable(made) and made is not predictor else (set(), [])
    return requested if accepted is None or "device" in accepted else "cpu"


def keywords_of(maker: Callable[..., Any]) -> tuple[set[str] | None, list[str]]:
    """The keywords that a function takes (None: any), and those that it cannot do without."""
    try:
        parameters = inspect.signature(maker).parameters.values()
    except (TypeError, ValueError):
        return None, []
    named = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    needed = [one.name for one in named if one.default is one.empty]
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters)
    return None if takes_any else {one.name for one in named}, needed


def parse_options(texts: list[str]) -> dict[str, dict[str, Any]]:
    """The options of each predictor, from texts such as "groupvit,rule=hugging-face" or "mine:make,path=weights.pt".

    A comma stands between options; numbers, "true", "false" and "none" mean what they say.

    Raises:
        ValueError: a text that names no option, or an option twice.
    """
    options: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, *parts = re.split(r",(?=\s*\w+\s*=)", text)
        if not parts or "=" in name:
            raise ValueError(
                f"expected a predictor and its options, as in groupvit,rule=hugging-face; got {quoted(text)}"
            )
        of_one = options.setdefault(name.strip(), {})
        for part in parts:
            option, _, value = (piece.strip() for piece in part.partition("="))
            if option in of_one:
                raise ValueError(f"expected {option} of {name.strip()} once, got it twice")
            of_one[option] = parse_value(value, is_text=False)
    return options
