# SPDX-License-Identifier: Apache-2.0
"""Cells whose printed numbers are compared when the notebooks run: that the comparison can fail."""

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


def _rerun(folder: Path, source: str, printed: str, tags: list[str]) -> int:
    """Exit status of nbval, called as `make test` calls it, on a cell that had printed that."""
    output = new_output("stream", name="stdout", text=printed)
    said = {"execution_count": 1, "outputs": [output], "metadata": {"tags": tags}}
    cell = new_code_cell(source, **said)
    nbformat.write(new_notebook(cells=[cell]), folder / "one.ipynb")
    flags = re.findall(r"--nbval-[\w-]+(?:[ =][^-\s]\S*)?", (ROOT / "Makefile").read_text())
    split = [part for flag in flags for part in re.split("[ =]", flag)]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *split]
    return subprocess.run([*command, str(folder / "one.ipynb")], cwd=ROOT).returncode


@pytest.mark.parametrize(
    ("printed", "tags", "status"),
    [
        ("4 of 5, 0.3 s, <object at 0x7f12>\n", [CHECKED], 0),
        ("4 of 5, 17.25 s, <object at 0x12ab>\n", [CHECKED], 0),  # times and addresses may differ
        ("5 of 5, 0.3 s, <object at 0x7f12>\n", [CHECKED], 1),  # numbers may not
        ("5 of 5, 0.3 s, <object at 0x7f12>\n", [], 0),  # unless nobody asked
    ],
)
def test_a_changed_number_is_noticed(tmp_path, printed, tags, status):
    source = "print(f'{2 + 2} of 5, 0.3 s, <object at 0x7f12>')"
    assert _rerun(tmp_path, source, printed, tags) == status


def test_all_chapters_have_checked_cells_and_each_of_them_printed():
    having = set()
    for path in CHAPTERS:
        for cell in nbformat.read(path, 4).cells:
            if CHECKED in cell.metadata.get("tags", []):
                having.add(path.name[:2])
                assert {output.output_type for output in cell.outputs} == {"stream"}, cell.source
    assert having == {path.name[:2] for path in CHAPTERS}
