"""The floors of the package: an import only points down, no modules import each other, no file is long.

Every import statement counts, also one inside a function or under ``TYPE_CHECKING``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOORS = (  # from the top; two rooms on one floor don't import each other
    ("__main__",),
    ("cli",),
    ("__init__",),
    ("pipeline",),
    ("data", "acceleration", "convert"),
    ("models",),
    ("priors",),
    ("sampling",),
    ("nn",),
    ("functional", "saving"),
    ("checks",),
    ("ops",),
    ("files",),
)
DEPTH = {room: depth for depth, rooms in enumerate(FLOORS) for room in rooms}
FOLDERS = ("vqfast", "csrc", "tests", "benchmarks", "examples")
MAX_LINES = 400


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted((ROOT / "vqfast").rglob("*.py"))}


def room(module: str) -> str:
    """The part of the package that a module belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def imported_by(module: str) -> Iterator[str]:
    """The modules of vqfast that ``module`` imports; of ``from package import name``, the one meant."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in below]
        else:
            continue
        yield from (name for name in names if name in MODULES and name != module)


def test_every_room_has_its_floor():
    assert {room(module) for module in MODULES} <= DEPTH.keys()


def test_an_import_only_points_down():
    pairs = [(module, other) for module in MODULES for other in imported_by(module)]
    upward = [
        f"{module} imports {other}"
        for module, other in pairs
        if room(module) != room(other) and DEPTH[room(module)] >= DEPTH[room(other)]
    ]
    assert not upward


def test_no_modules_import_each_other():
    graph = {module: set(imported_by(module)) for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = error.args[1]
        raise AssertionError(" is imported by ".join(circle)) from None


def test_no_file_is_long():
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    sources = [path for path in paths if path.suffix in {".py", ".cpp", ".h"}]
    lines = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in sources
    }
    assert not {path: count for path, count in lines.items() if count > MAX_LINES}
