# SPDX-License-Identifier: Apache-2.0
"""Exercises from one source: student copies fail exactly at their blanks."""

import copy
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from spatext_lab.course.exercises import KINDS, main, make_copy

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))

CHECK = """def check_double(function):
    right = function(4) == 8
    print("Right." if right else "Not yet. Hint: twice means two times")
    return right"""


def tagged(source: str, tag: str):
    return new_code_cell(source, metadata={"tags": [tag]})


def run(notebook, folder: Path) -> list[tuple[str, str]]:
    """Runs all cells; (tag, name of the error) of those that failed."""
    NotebookClient(
        notebook, timeout=300, allow_errors=True, resources={"metadata": {"path": folder}}
    ).execute()
    return [
        (*cell.metadata.get("tags", ["none"]), output.ename)
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "error"
    ]


@pytest.fixture
def source():
    output = new_output("stream", name="stdout", text="8")
    return new_notebook(
        cells=[
            new_markdown_cell(
                "### Double\n\nAs it stands, not right. The solution is folded away under it."
            ),
            tagged(CHECK, "check"),
            tagged(
                "def double(x):\n    return x  # change this\n\n\ncheck_double(double);", "exercise"
            ),
            tagged("def double(x):\n    return 2 * x\n\n\nassert check_double(double)", "solution"),
            new_code_cell("print(double(4))", outputs=[output], execution_count=7),
        ],
        metadata={"widgets": {"some": "state"}},
    )


def test_a_student_finds_a_blank_and_a_hint(source, tmp_path):
    student = make_copy(source, "student", "double")
    sources = [cell.source for cell in student.cells]
    assert sources[2:4] == [
        "def double(x):\n    return x  # change this",
        "assert check_double(double)",
    ]
    assert "2 * x" not in "".join(sources)
    assert run(student, tmp_path) == [("test", "AssertionError")]
    assert student.cells[3].outputs[0].text == "Not yet. Hint: twice means two times\n"


def test_what_a_solution_asserts_beyond_the_check_is_no_students(source):
    source.cells[3].source += "\nassert double(3) == 6"
    assert "double(3)" not in str(make_copy(source, "student").cells)
    solution = make_copy(source, "solution").cells
    assert "assert double(3) == 6" in solution[2].source
    assert solution[3].source == "assert check_double(double)"


def test_a_solution_runs_through(source, tmp_path):
    solution = make_copy(source, "solution", "double")
    assert run(solution, tmp_path) == []
    assert solution.cells[-1].outputs[0].text == "8\n"


@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_clean_and_the_source_is_left_alone(source, kind):
    before = copy.deepcopy(source)
    copied = make_copy(source, kind)
    assert source == before
    assert all(not cell.outputs for cell in copied.cells if cell.cell_type == "code")
    assert "widgets" not in copied.metadata
    assert copied.cells[0].source == "### Double\n\nAs it stands, not right."
    nbformat.validate(copied)


def test_nbgrader_finds_what_it_needs(source):
    """The fields of its schema 3: an answer may be changed, a check and a test may not."""
    _, check, answer, test, _ = make_copy(source, "solution", "ch").cells
    known = {"schema_version": 3, "task": False, "cell_type": "code"}
    assert check.metadata.nbgrader == known | {
        "grade_id": "ch-check-1", "grade": False, "locked": True, "solution": False,
    }  # fmt: skip
    assert answer.metadata.nbgrader == known | {
        "grade_id": "ch-1", "grade": False, "locked": False, "solution": True,
    }  # fmt: skip
    assert test.metadata.nbgrader == known | {
        "grade_id": "ch-1-test", "points": 1, "grade": True, "locked": True, "solution": False,
    }  # fmt: skip
    assert answer.source.startswith("### BEGIN SOLUTION\n")
    assert answer.source.endswith("\n### END SOLUTION")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda cells: cells.pop(3), "no solution follows"),
        (lambda cells: cells.pop(2), "no exercise before"),
        (lambda cells: cells[2].update(source="x = 1"), "the last line is no check"),
        (
            lambda cells: cells[3].update(source="x = 2\nassert check_other(x)"),
            "its solution has no",
        ),
    ],
)
def test_a_damaged_source_is_refused(source, change, says):
    change(source.cells)
    with pytest.raises(ValueError, match=says):
        make_copy(source, "student", "double")


def test_the_command_writes_both(source, tmp_path, capsys):
    nbformat.write(source, tmp_path / "a.ipynb")
    main([str(tmp_path / "a.ipynb"), "--out", str(tmp_path / "out")])
    assert "1 notebooks in" in capsys.readouterr().out
    for kind in KINDS:
        written = nbformat.read(tmp_path / "out" / kind / "a.ipynb", as_version=4)
        assert written.cells == make_copy(source, kind, "a").cells


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_chapter_has_three_exercises(path):
    student = make_copy(nbformat.read(path, as_version=4), "student", path.stem)
    known = [cell.metadata.nbgrader for cell in student.cells if "nbgrader" in cell.metadata]
    assert sum(each.get("points", 0) for each in known) >= 3
    assert sum(each["solution"] for each in known) == sum(each["grade"] for each in known)
    checks = [
        c for c in student.cells if c.source.startswith("def ") and "\ndef check_" in c.source
    ]
    assert all(check.metadata.nbgrader.locked for check in checks)  # no student rewrites a check
    ids = [each.grade_id for each in known]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", each) for each in ids)


@pytest.mark.parametrize("kind", KINDS)
def test_nbgrader_itself_accepts_each_chapter(kind):
    """By its own validator, where it is installed."""
    v3 = pytest.importorskip("nbgrader.nbgraderformat.v3", reason="nbgrader is not installed")
    for path in NOTEBOOKS:
        copied = make_copy(nbformat.read(path, as_version=4), kind, path.stem)
        v3.MetadataValidatorV3().validate_nb(copied)
