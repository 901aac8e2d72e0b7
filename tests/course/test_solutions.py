# SPDX-License-Identifier: Apache-2.0
"""Every chapter's solution copy runs through; in a file of its own, for a process of its own."""

import nbformat
import pytest

from spatext_lab.course.exercises import make_copy
from tests.copies import NOTEBOOKS, run


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_chapters_solution_copy_runs_through(path, tmp_path):
    assert run(make_copy(nbformat.read(path, as_version=4), "solution", path.stem), tmp_path) == []
