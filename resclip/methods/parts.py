"""What pieces and steps have in common: named parts that are there or not, in the order in which they act."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from resclip_kernels import check_type


class Parts:
    """A frozen dataclass whose fields are its parts, None where one is not there; false where none is."""

    kinds: ClassVar[Mapping[str, type[Any]]]
    """Each part's type, by its name."""

    def __post_init__(self) -> None:
        for name, part in self.items():
            kind = self.kinds[name]
            check_type(name, part, kind, f"a {kind.__name__} or None")

    def items(self) -> Iterator[tuple[str, Any]]:
        """The parts that are there, by name, in order."""
        for name in self.kinds:
            part = getattr(self, name)
            if part is not None:
                yield name, part

    def __bool__(self) -> bool:
        return any(True for _ in self.items())
