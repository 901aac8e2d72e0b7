# SPDX-License-Identifier: Apache-2.0
"""The chapters' student and solution copies, tested where nbval runs the chapters themselves:
`pytest -p tests.copies notebooks/*.ipynb --nbval-lax ...`.

A copy differs from its chapter only from the first exercise on. So the chapter is run once; in
front of its first exercise its kernel is forked, and each fork runs the rest of one copy.
"""

import inspect
import json
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from nbformat import NotebookNode
from nbval.plugin import IPyNbCell

# A fork has none of its parent's threads, and waits for them in vain.
ALONE = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In front of each chapter's first exercise, its two copies."""
    from spatext_lab.course.exercises import KINDS  # later than conftest.py's hook for imports

    for chapter, cells in groupby([*items], key=lambda item: item.parent):
        first = next((cell for cell in cells if "exercise" in tags(cell)), None)
        if first:
            copies = [Copy.from_parent(chapter, name=f"{kind} copy", kind=kind) for kind in KINDS]
            items[items.index(first) : items.index(first)] = copies


@pytest.hookimpl(trylast=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Chapters run in an empty folder, for their copies are not used where they are."""
    if isinstance(item, IPyNbCell) and item.cell_num == 0:
        folder = TemporaryDirectory()
        item.parent.addfinalizer(folder.cleanup)
        execute(item.parent, f"__import__('os').environ.update({ALONE})")
        execute(item.parent, f"__import__('os').chdir({folder.name!r})")


class Copy(pytest.Item):
    """A student's copy fails exactly at its blanks, with hints; a solution copy not at all."""

    def __init__(self, *, kind: str, **given) -> None:
        super().__init__(**given)
        self.kind = kind

    def runtest(self) -> None:
        from spatext_lab.course.exercises import make_copy

        copied = make_copy(self.parent.nb, self.kind, self.parent.path.stem)
        found = run_rest(self.parent, code(copied))
        tests = [said for tag, _, said in found if tag == "test"]
        failed = [(tag, error) for tag, error, _ in found if error]
        if self.kind == "solution":
            assert failed == []
        else:
            assert failed == [("test", "AssertionError")] * len(tests)
            for said in tests:
                assert said.startswith("Not yet. Hint: "), said

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"{self.parent.name}: {self.name}"


def tags(cell: pytest.Item) -> list[str]:
    return cell.cell.metadata.get("tags", []) if isinstance(cell, IPyNbCell) else []


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def run_rest(chapter: pytest.File, copied: list[NotebookNode]) -> list[tuple[str, str, str]]:
    """The tag of each cell from the first exercise on, the name of its error, what it printed.

    The cells before it have run, in the chapter: they are the same ones.
    """
    own = code(chapter.nb)
    start = next(i for i, cell in enumerate(own) if "exercise" in cell.metadata.get("tags", []))
    assert [cell.source for cell in copied[:start]] == [cell.source for cell in own[:start]]
    cells = [((*cell.metadata.get("tags", []), "")[0], cell.source) for cell in copied[start:]]
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        # in a namespace of its own: the chapter's is not touched
        forked = f"{inspect.getsource(run_forked)}\nrun_forked({cells!r}, {str(report)!r})"
        execute(chapter, f"exec({forked!r}, {{}})")
        return json.loads(report.read_text())


def execute(chapter: pytest.File, line: str) -> None:
    kernel, seconds = chapter.kernel, chapter.config.option.nbval_cell_timeout
    number = kernel.kc.execute(line, silent=True, allow_stdin=False)
    kernel.await_reply(number, timeout=seconds)


def run_forked(cells: list[tuple[str, str]], report: str) -> None:
    """In the chapter's kernel: a copy of this process runs the cells, and leaves a report."""
    import json
    import os
    from pathlib import Path

    from IPython import get_ipython
    from IPython.utils.capture import capture_output

    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        found = []
        for tag, source in cells:
            with capture_output() as said:
                done = get_ipython().run_cell(source)
            error = done.error_before_exec or done.error_in_exec
            found.append((tag, type(error).__name__ if error else "", said.stderr + said.stdout))
        Path(report).write_text(json.dumps(found))
    finally:
        os._exit(0)
