# SPDX-License-Identifier: Apache-2.0
"""Student and solution copies of the notebooks, from one source.

    python -m spatext_lab.course.exercises notebooks/*.ipynb --out outputs/notebooks

In the source, an exercise is two cells in a row: one tagged `exercise`, which ends with
`check_it(answer);`, and one tagged `solution`, which has the line `assert check_it(answer)`. In the
copies it is an answer cell (as the student finds it, or as it is solved) and a test cell. They and
the cells tagged `check`, which define the checks, carry nbgrader's metadata (schema 3): before it
grades, nbgrader restores what a student has changed in a check or a test. See docs/classroom.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from spatext_lab.scene import files

KINDS = ("student", "solution")
FOLDED = " The solution is folded away under it."  # true in the source alone


def make_copy(notebook: NotebookNode, kind: str, name: str = "notebook") -> NotebookNode:
    """A copy of a notebook without outputs, with blanks for students or with the solutions.

    Args:
        notebook: the source, which is not changed.
        kind: "student" or "solution".
        name: of the notebook; its exercises are named after it.

    Raises:
        ValueError: naming the cell, for an exercise without a solution or a solution without an
            exercise, and for a solution that does not assert the check that ends the exercise.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; there are {', '.join(KINDS)}")
    cells, made, number, checks = [deepcopy(cell) for cell in notebook.cells], [], 0, 0
    while cells:
        cell = cells.pop(0)
        if _is(cell, "solution"):
            raise ValueError(f"{name}: this solution has no exercise before it: {cell.source:.60}")
        if _is(cell, "exercise"):
            number += 1
            if not cells or not _is(cells[0], "solution"):
                raise ValueError(f"{name}: no solution follows this exercise: {cell.source:.60}")
            made += _exercise(cell, cells.pop(0), kind, f"{name}-{number}")
        elif _is(cell, "check"):
            checks += 1
            cell.metadata.nbgrader = _about(f"{name}-check-{checks}", "locked")
            made.append(_blank(cell))
        else:
            made.append(_blank(cell))
    copied = nbformat.v4.new_notebook(cells=made, metadata=deepcopy(notebook.metadata))
    copied.metadata.pop("widgets", None)  # they belong to outputs, which are not copied
    return copied


def _exercise(
    exercise: NotebookNode, solution: NotebookNode, kind: str, name: str
) -> list[NotebookNode]:
    """The answer cell and the test cell of an exercise."""
    blank, check = _split(exercise.source, name)
    test, lines = f"assert {check.removesuffix(';')}", solution.source.splitlines()
    if lines.count(test) != 1:
        raise ValueError(f"{name}: the exercise ends with {check!r}; its solution has no {test!r}")
    lines.remove(test)
    solved = "\n".join(lines).strip()
    solved = f"### BEGIN SOLUTION\n{solved}\n### END SOLUTION"  # nbgrader's own marks
    answer = _cell(exercise.id, blank if kind == "student" else solved)
    answer.metadata.tags = ["exercise"]
    answer.metadata.nbgrader = _about(name, "solution")
    check_cell = _cell(solution.id, test)
    check_cell.metadata.tags = ["test"]
    check_cell.metadata.nbgrader = _about(f"{name}-test", "locked", "grade") | {"points": 1}
    return [answer, check_cell]


def _split(source: str, name: str) -> tuple[str, str]:
    """The source without its last line, and the last line, which is the check."""
    body, _, last = source.rstrip().rpartition("\n")
    if "check" not in last:
        raise ValueError(f"{name}: the last line is no check but {last!r}")
    return body.rstrip(), last


def _about(name: str, *true: str) -> dict:
    """nbgrader's metadata of a code cell: who may change it, and whether it gives points."""
    known = {"schema_version": 3, "grade_id": name, "cell_type": "code", "task": False}
    return known | {key: key in true for key in ("grade", "locked", "solution")}


def _cell(id: str, source: str) -> NotebookNode:
    return nbformat.v4.new_code_cell(source, id=id)


def _blank(cell: NotebookNode) -> NotebookNode:
    if cell.cell_type == "code":
        cell.outputs, cell.execution_count = [], None
    cell.source = cell.source.replace(FOLDED, "")
    return cell


def _is(cell: NotebookNode, tag: str) -> bool:
    return tag in cell.metadata.get("tags", ())


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes OUT/student/*.ipynb and OUT/solution/*.ipynb; `arguments` are the command line's."""
    parser = argparse.ArgumentParser(description="student and solution copies of notebooks")
    parser.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK")
    parser.add_argument("--out", type=Path, default=Path("outputs/notebooks"), metavar="FOLDER")
    options = parser.parse_args(arguments)
    for kind in KINDS:
        folder = options.out / kind
        for path in options.notebooks:
            copied = make_copy(nbformat.read(path, as_version=4), kind, path.stem)
            files.write(folder / path.name, nbformat.writes(copied).rstrip("\n") + "\n")
        print(f"{len(options.notebooks)} notebooks in {folder}")


if __name__ == "__main__":
    main()
