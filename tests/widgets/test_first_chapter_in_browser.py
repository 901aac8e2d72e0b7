# SPDX-License-Identifier: Apache-2.0
"""The first chapter as a student meets it: open, run all cells, paint, generate."""

from pathlib import Path

import nbformat
import numpy as np

from spatext_lab.course.exercises import make_copy
from tests.widgets.conftest import open_notebook

CHAPTER = Path(__file__).parents[2] / "notebooks" / "00_start_here.ipynb"
RUN = 180_000  # ms, for all cells on a busy machine


def test_all_cells_run_and_the_widgets_answer(lab):
    with open_notebook(lab, make_copy(nbformat.read(CHAPTER, 4), "solution", "ch00")) as notebook:
        page = notebook.page
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.locator(".sx-live").wait_for(timeout=RUN)
        assert notebook.python("bool(live.image)")  # answers when the cells are done
        assert page.locator(".jp-OutputArea-output[data-mime-type*=error]").count() == 0
        assert page.locator(".jp-OutputArea-output[data-mime-type*=stderr]").count() == 0

        live = page.locator(".widget-box:has(.sx-live)")
        before = np.array(notebook.python("painter.label_map.tolist()"))
        sheet = live.get_by_role("application", name="The sheet to paint on")
        sheet.scroll_into_view_if_needed()
        sheet.click(position={"x": 200, "y": 40})
        notebook.becomes(f"painter.label_map.tolist() != {before.tolist()}", True)
        live.get_by_role("button", name="Generate the image").click()
        live.get_by_text("Done", exact=True).wait_for()
        same = "(live.generate() == live.pipelines['SpaText'](painter.scene, seed=0).images[0])"
        assert notebook.python(same)
        assert notebook.troubles == []
