"""Numbers of a tower's blocks, as tuples or as text."""

from __future__ import annotations

from resclip_kernels import quoted

MOST_LAYERS = 1_000
"""Largest number of a block; no tower is as deep."""


def parse_layers(name: str, layers: tuple[int, ...] | str) -> tuple[int, ...]:
    """Block numbers from a tuple, or from text such as "6-9" or "3,6-9"; ValueError unless each occurs once."""
    if isinstance(layers, str):
        numbers: list[int] = []
        for part in layers.split(","):
            first, dash, last = (piece.strip() for piece in part.partition("-"))
            last = last if dash else first
            if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
                raise ValueError(
                    f'{name} as text are block numbers and ranges, such as "6-9" or "3,6-9"; got {quoted(layers)}'
                )
            if max(len(first), len(last)) > 9 or int(last) > MOST_LAYERS:
                raise ValueError(f"{name} must be at most {MOST_LAYERS:,}; got {quoted(layers)}")
            numbers += range(int(first), int(last) + 1)
        layers = tuple(numbers)
    if not isinstance(layers, (tuple, list, range)):
        raise TypeError(
            f'{name} must be a tuple of block numbers, or text such as "6-9"; got {quoted(layers)}'
        )
    if len(layers) > MOST_LAYERS:
        raise ValueError(f"{name} must be at most {MOST_LAYERS:,} blocks; got {len(layers):,}")
    layers = tuple(layers)
    if not layers:
        raise ValueError(
            f"{name} must name at least one block; got none: to turn the module off, use None"
        )
    for layer in layers:
        if isinstance(layer, bool) or not isinstance(layer, int):
            raise TypeError(f"{name} must be block numbers; got {quoted(layer)}")
    if len(set(layers)) != len(layers):
        raise ValueError(f"{name} must name each block once; got {quoted(layers)}")
    return layers
