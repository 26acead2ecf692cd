"""Which folder may import which: imports point one way, wherever in a file they stand."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import resclip_kernels

ROOT = Path(__file__).parents[1]

# From the foundation upwards. A module may import from its own folder and from the floors below it.
FLOORS = (
    ("resclip_kernels", "resclip.version", "resclip.errors"),
    ("resclip.io",),
    (
        "resclip.builtin",
        "resclip.methods",
        "resclip.visualization",
        "resclip.geometry",
        "resclip.scores",
    ),
    ("resclip.builtin.training", "resclip.models", "resclip.formats"),
    ("resclip.encoder", "resclip.text", "resclip.result"),
    ("resclip.steps", "resclip.patching", "resclip.export", "resclip.heat_maps"),
    ("resclip.inference",),
    ("resclip.segmenter", "resclip.predictors"),
    ("resclip.loading",),
    ("resclip.batch", "resclip.evaluation"),
    ("resclip.speed",),
    ("resclip.cli",),
    ("resclip", "resclip.__main__"),
)
FLOOR_OF = {folder: number for number, floor in enumerate(FLOORS) for folder in floor}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path
    for package in ("resclip", "resclip_kernels")
    for path in sorted((ROOT / package).rglob("*.py"))
}


@functools.cache
def statements(module: str) -> list[ast.Import | ast.ImportFrom]:
    """The import statements of a module: at its head, inside functions, or for type checks."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]


def imports(module: str) -> Iterator[str]:
    """The project's modules that a module imports."""
    for node in statements(module):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert not node.level, f"{module}: imports are absolute, so that they can be read here"
            members = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in members]
        yield from (name for name in names if name in MODULES and name != module)


def folder_of(module: str) -> str:
    """The entry of FLOORS that a module belongs to: the longest that is a prefix of its name."""
    if module == "resclip":
        return module
    candidates = [
        folder
        for folder in FLOOR_OF
        if folder != "resclip" and f"{module}.".startswith(f"{folder}.")
    ]
    assert candidates, f"{module} is on no floor: give its folder a place in FLOORS"
    return max(candidates, key=len)


def test_imports_point_down() -> None:
    wrong = [
        f"{module} imports {other}: {folder_of(module)} may import the floors below it, not {folder_of(other)}"
        for module in MODULES
        for other in imports(module)
        if folder_of(other) != folder_of(module)
        and FLOOR_OF[folder_of(other)] >= FLOOR_OF[folder_of(module)]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_circles_between_modules() -> None:
    """A package's __init__ gathers names for users, who come from above: its own modules do not count it."""
    edges = {
        module: {other for other in imports(module) if MODULES[other].name != "__init__.py"}
        for module in MODULES
    }
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join((*path[path.index(module) :], module))
        if module not in finished:
            for other in sorted(edges[module]):
                visit(other, (*path, module))
            finished.add(module)

    for module in MODULES:
        visit(module, ())


def test_implementations_of_an_op_do_not_import_each_other() -> None:
    """Else one could not be the check of another."""
    implementations = {"reference", "portable", "triton"}
    for module in MODULES:
        op, _, name = module.rpartition(".")
        if op.startswith("resclip_kernels.ops.") and name in implementations:
            forbidden = {f"{op}.{other}" for other in implementations - {name}}
            assert not forbidden & set(imports(module)), module


def test_resclip_uses_what_resclip_kernels_exports() -> None:
    """From the package itself, and only names of its `__all__`: its modules may change."""
    exported = set(resclip_kernels.__all__)
    for module in MODULES:
        if module.partition(".")[0] != "resclip":
            continue
        for node in statements(module):
            if isinstance(node, ast.Import):
                inner = [
                    name.name for name in node.names if name.name.startswith("resclip_kernels.")
                ]
                assert not inner, f"{module} imports {', '.join(inner)}"
            elif str(node.module).startswith("resclip_kernels"):
                assert node.module == "resclip_kernels", f"{module} imports from {node.module}"
                missing = {name.name for name in node.names} - exported
                assert not missing, f"{module} imports what is not exported: {', '.join(missing)}"


def test_the_floors_are_real() -> None:
    """An entry that names nothing, or comes twice, would allow what nobody meant."""
    assert len(FLOOR_OF) == sum(map(len, FLOORS))
    for folder in FLOOR_OF:
        assert any(folder_of(module) == folder for module in MODULES), folder
