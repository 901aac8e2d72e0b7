# SPDX-License-Identifier: Apache-2.0
"""The graph of the package's imports, for the test that it has no cycle; `make house` prints it."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "spatext_lab"


@cache
def imports(path: Path) -> frozenset[str]:
    """Every module that a file imports, dotted, wherever in the file the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write it out"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def door(module: str) -> str:
    """The file or folder at the top of the package that a module lies in."""
    return module.split(".")[1]


def graph() -> dict[str, set[str]]:
    """For each file or folder at the top of the package, those that it imports."""
    arrows: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if parts[1].startswith("__"):  # its face, which loads what is used, and its command
            continue
        own = arrows.setdefault(parts[1], set())
        named = (n for n in imports(path) if n.startswith("spatext_lab.") and "__" not in n)
        own |= {door(name) for name in named} - {parts[1]}
    return arrows


def floors(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The doors in rows; each imports only from rows before its own. Raises graphlib.CycleError."""
    sorter = TopologicalSorter(arrows)
    sorter.prepare()
    rows = []
    while sorter.is_active():
        rows.append(sorted(ready := sorter.get_ready()))
        sorter.done(*ready)
    return rows


if __name__ == "__main__":
    arrows = graph()
    for number, row in enumerate(floors(arrows), start=1):
        for name in row:
            print(f"{number}  {name:14} {', '.join(sorted(arrows[name]))}".rstrip())
