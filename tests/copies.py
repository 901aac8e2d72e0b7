# SPDX-License-Identifier: Apache-2.0
"""Runs a copy of a notebook and says what failed."""

from pathlib import Path

from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


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
