# SPDX-License-Identifier: Apache-2.0
"""How `make test` runs the chapters and their copies: that each of its checks can fail."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

ROOT = Path(__file__).parent.parent.parent
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CHECKED = "nbval-check-output"

# name: what the only cell had printed, its tags, whether it passes now that it is run again
PRINTED = {
    "same": ("4 of 5, 0.3 s, <object at 0x7f12>, ../data/a\n", [CHECKED], True),
    "other-time": ("4 of 5, 17.25 s, <object at 0x12ab>, ../data/a\n", [CHECKED], True),
    "other-folder": ("4 of 5, 0.3 s, <object at 0x7f12>, ../../a/b/data/a\n", [CHECKED], True),
    "other-file": ("4 of 5, 0.3 s, <object at 0x7f12>, ../data/b\n", [CHECKED], False),
    "other-number": ("5 of 5, 0.3 s, <object at 0x7f12>, ../data/a\n", [CHECKED], False),
    "nobody-asked": ("5 of 5, 0.3 s, <object at 0x7f12>, ../data/a\n", [], True),
}
PRINTS = "print(f'{2 + 2} of 5, 0.3 s, <object at 0x7f12>, ../data/a')"

CHECK = """seen = []

def check_double(function):
    right = function(4) == 8
    print("Right." if right else "Not yet. Hint: twice means two times")
    return right"""
RIGHT, WRONG = "double = lambda x: 2 * x", "double = lambda x: x"
# name: what a chapter begins with, its exercise, its solution, a second exercise; what fails
WRITTEN = {
    "good": (CHECK, WRONG, RIGHT, WRONG, set()),
    "solved": (CHECK, WRONG, RIGHT, RIGHT, {"student"}),
    "no-hint": (CHECK.replace("Not yet. Hint: ", "No: "), WRONG, RIGHT, WRONG, {"student"}),
    "needs-the-last-solution": (
        CHECK, WRONG, f"{RIGHT}; half = 0.5", "double = lambda x: x * half", {"student"}
    ),
    "needs-the-blank": (
        CHECK, f"{WRONG}; two = 2", "double = lambda x: two * x", WRONG, {"solution"}
    ),
    "needs-what-the-blank-changed": (
        CHECK, f"{WRONG}; seen.append(2)", "double = lambda x: seen[0] * x", WRONG, {"solution"}
    ),
    "needs-its-folder": (
        f"open('needs-its-folder.ipynb').close()\n{CHECK}", WRONG, RIGHT, WRONG, None
    ),
}  # fmt: skip


def _tagged(source: str, *tags: str, **given):
    return new_code_cell(source, metadata={"tags": [*tags]}, **given)


def _chapter(begin: str, blank: str, solution: str, second: str):
    check = "check_double(double)"
    cells = [new_code_cell(begin)]
    for exercise, solved in ((blank, solution), (second, RIGHT)):
        cells.append(_tagged(f"{exercise}\n{check};", "exercise"))
        cells.append(_tagged(f"{solved}\nassert {check}", "solution"))
    return new_notebook(cells=cells)


@pytest.fixture(scope="module")
def failed(tmp_path_factory) -> set[tuple[str, str]]:
    """Notebook and name of all that fails, of all of these at once, called as `make test` does."""
    folder = tmp_path_factory.mktemp("notebooks")
    for name, (text, tags, _) in PRINTED.items():
        output = new_output("stream", name="stdout", text=text)
        cell = _tagged(PRINTS, *tags, execution_count=1, outputs=[output])
        nbformat.write(new_notebook(cells=[cell]), folder / f"{name}.ipynb")
    for name, (*sources, _) in WRITTEN.items():
        nbformat.write(_chapter(*sources), folder / f"{name}.ipynb")
    recipe = re.search(r"-m pytest .*?\n(?=\n)", (ROOT / "Makefile").read_text(), re.DOTALL)[0]
    flags = re.findall(r"-p tests[.\w]+|--nbval-[\w-]+(?:[ =][^-\s]\S*)?", recipe)
    split = [part for flag in flags for part in re.split("[ =]", flag)]
    command = [sys.executable, "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider", *split]
    done = subprocess.run(
        [*command, folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "500"},
    )
    return set(re.findall(r"^FAILED .*?([\w-]+)\.ipynb::(\S+)", done.stdout, re.MULTILINE))


@pytest.mark.parametrize("name", PRINTED)
def test_a_changed_number_is_noticed(failed, name):
    """Times, addresses and where the data are may differ, numbers may not, unless nobody asked."""
    assert ((name, "Cell") not in failed) == PRINTED[name][-1]


@pytest.mark.parametrize("name", WRITTEN)
def test_copies_fail_where_their_chapter_does_not(failed, name):
    found = {kind for notebook, kind in failed if notebook == name}
    expected = WRITTEN[name][-1]
    assert found == expected if expected is not None else "Cell" in found


def test_all_chapters_have_checked_cells_and_each_of_them_printed():
    having = set()
    for path in CHAPTERS:
        for cell in nbformat.read(path, 4).cells:
            if CHECKED in cell.metadata.get("tags", []):
                having.add(path.name[:2])
                assert {output.output_type for output in cell.outputs} == {"stream"}, cell.source
    assert having == {path.name[:2] for path in CHAPTERS}
