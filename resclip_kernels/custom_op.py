"""Ops as operators of torch.library, which torch.compile puts into its graph as one call and never looks into.

An operator takes tensors, numbers, strings and lists of these alone, and an op takes options, a feedback state and
tuples as well. Here, for all ops, such arguments are flattened on the way into an operator and rebuilt inside it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import wraps
from types import NoneType
from typing import (
    Any,
    Literal,
    NamedTuple,
    ParamSpec,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import torch
from torch import Tensor

from resclip_kernels.dispatch import Implementation, needs_gradient

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

SCHEMA_TYPES = {Tensor: "Tensor", int: "SymInt", float: "float", bool: "bool", str: "str"}
PAIRS_OF_TENSORS = tuple[tuple[Tensor, Tensor], ...]


class Leaf(NamedTuple):
    """One argument of an operator: a parameter of the op, or a field of a dataclass among them."""

    parameter: int
    path: tuple[str, ...]
    """Attribute names that lead from the parameter's value to this one; empty for the value itself."""
    schema: str
    """Its type in the operator's schema."""
    is_pairs: bool
    """Pairs of tensors, which become a list of all of them."""


def custom_op(
    name: str,
    fake: Callable[Parameters, Any],
    graph: Callable[Parameters, Any] | None = None,
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Decorates an op's function, so that a caller that is being compiled calls it as one operator.

    It is called as it is wherever nothing is compiled, or where a gradient has to be followed through it. Tensors on
    "meta", which have no values, get their shapes from `fake`, unless an implementation is asked for by name.

    Args:
        name: of the operator, in the namespace "resclip_kernels".
        fake: the op's results on tensors without values, in the function's form; the two take the same arguments.
        graph: the op in plain operators whose sizes may be symbols, in the function's form, for `torch.export`, whose
            programs then need nothing of this package; None: they call the operator.

    The function's parameters are positional, with types: tensors, numbers and strings, tuples of these, pairs of
    tensors, dataclasses of all of them, or None in place of any; the last one names the implementation. It returns a
    tensor or a tuple of tensors; a result that may be None has more than one axis where there is one.
    """

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        hints = get_type_hints(function)
        returned = hints.pop("return")
        kinds = list(hints.values())
        leaves = [leaf for number, kind in enumerate(kinds) for leaf in leaves_of(kind, number, ())]
        single = returned is Tensor
        optional = [
            NoneType in get_args(kind) for kind in ([Tensor] if single else get_args(returned))
        ]
        names = list(inspect.signature(function).parameters)
        arguments = ", ".join(
            f"{leaf.schema} {'_'.join((names[leaf.parameter], *leaf.path))}" for leaf in leaves
        )
        results = ", ".join("Tensor" for _ in optional)

        def run_flat(run: Callable[..., Any], flat: Sequence[Any]) -> Any:
            tensors = flat_tensors(flat)
            result = run(*rebuild_all(kinds, flat))
            if single:
                return as_result(result, tensors)
            return tuple(as_result(tensor, tensors) for tensor in result)

        def operate(*flat: Any) -> Any:
            return run_flat(function, flat)

        operator = torch.library.custom_op(
            f"resclip_kernels::{name}",
            operate,
            mutates_args=(),
            schema=f"({arguments}) -> ({results})",
        )
        operator.register_fake(lambda *flat: run_flat(fake, flat))
        overload = getattr(torch.ops.resclip_kernels, name).default

        @wraps(function)
        def call(*arguments: Any) -> Any:
            if graph is not None and torch.compiler.is_exporting():
                return graph(*arguments)  # type: ignore[call-arg]
            if is_on_meta(arguments) and arguments[-1] == Implementation.AUTO:
                return fake(*arguments)  # type: ignore[call-arg]
            if not torch.compiler.is_compiling():
                return function(*arguments)  # type: ignore[call-arg]
            flat = [flatten(leaf, arguments) for leaf in leaves]
            if needs_gradient(*flat_tensors(flat)):
                return function(*arguments)  # type: ignore[call-arg]
            results = overload(*flat)
            if single:
                return results
            return tuple(
                None if may_be_none and result.ndim == 1 else result
                for result, may_be_none in zip(results, optional, strict=True)
            )

        return call  # type: ignore[return-value]

    return decorate


def is_on_meta(arguments: Sequence[Any]) -> bool:
    """Whether the first tensor of an op has no values."""
    return next((one.is_meta for one in arguments if isinstance(one, Tensor)), False)


def leaves_of(
    kind: Any, parameter: int, path: tuple[str, ...], optional: bool = False
) -> Iterator[Leaf]:
    """The operator's arguments for a parameter, or a field, of this type."""
    kind, has_none = without_none(kind)
    optional = optional or has_none
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        for field in fields(kind):
            yield from leaves_of(hints[field.name], parameter, (*path, field.name), optional)
        return
    is_pairs = kind == PAIRS_OF_TENSORS
    if is_pairs:
        schema = "Tensor[]"
    elif get_origin(kind) is tuple:
        schema = f"{SCHEMA_TYPES[get_args(kind)[0]]}[]"
    else:
        schema = "str" if get_origin(kind) is Literal else SCHEMA_TYPES[kind]
    yield Leaf(parameter, path, schema + "?" * optional, is_pairs)


def without_none(kind: Any) -> tuple[Any, bool]:
    """A type without its None, and whether it had one."""
    members = get_args(kind)
    if NoneType not in members:
        return kind, False
    (other,) = (member for member in members if member is not NoneType)
    return other, True


def flatten(leaf: Leaf, arguments: Sequence[Any]) -> Any:
    """This leaf's value among the op's arguments; None where the dataclass that it is a field of is None."""
    value = arguments[leaf.parameter]
    for name in leaf.path:
        value = None if value is None else getattr(value, name)
    return [tensor for pair in value for tensor in pair] if leaf.is_pairs else value


def rebuild_all(kinds: Sequence[Any], flat: Sequence[Any]) -> list[Any]:
    """The op's arguments, from those of its operator."""
    values = iter(flat)
    return [rebuild(kind, values) for kind in kinds]


def rebuild(kind: Any, values: Iterator[Any], optional: bool = False) -> Any:
    """One argument or field of this type from the next of `values`; `optional` where what holds it may be None."""
    kind, has_none = without_none(kind)
    optional = optional or has_none
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        parts = {field.name: rebuild(hints[field.name], values, optional) for field in fields(kind)}
        if optional and all(part is None for part in parts.values()):
            return None
        # Past the checks of its constructor, which it has passed; sizes may be symbols by now, which they refuse.
        made: Any = object.__new__(kind)  # type: ignore[arg-type]
        vars(made).update(parts)
        return made
    value = next(values)
    if kind == PAIRS_OF_TENSORS:
        return tuple(zip(value[::2], value[1::2], strict=True))
    return tuple(value) if get_origin(kind) is tuple and value is not None else value


def flat_tensors(flat: Sequence[Any]) -> list[Tensor]:
    """The tensors among an operator's arguments."""
    lists = (value if isinstance(value, (list, tuple)) else [value] for value in flat)
    return [value for values in lists for value in values if isinstance(value, Tensor)]


def as_result(tensor: Tensor | None, arguments: Sequence[Tensor]) -> Tensor:
    """What an operator may return: dense, none of its own arguments, and an empty tensor for None."""
    if tensor is None:
        return arguments[0].new_empty(0)
    if any(tensor is argument for argument in arguments):
        return tensor.clone(memory_format=torch.contiguous_format)
    return tensor.contiguous()
