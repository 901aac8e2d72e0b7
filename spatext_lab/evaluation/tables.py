# SPDX-License-Identifier: Apache-2.0
"""Reports as tables: Markdown for people, JSON for programs, one from the other."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from spatext_lab.scene import files


def markdown(rows: Sequence[dict], names: Sequence[str], columns: Mapping[str, str]) -> str:
    """A table in Markdown: a row for each report, with 95 % intervals in brackets.

    Args:
        rows: the reports; the interval of the value KEY is under KEY_95.
        names: of the rows.
        columns: heading -> key of the reports.
    """
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in zip(names, rows, strict=True):
        cells = " | ".join(cell(row, key) for key in columns.values())
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines) + "\n"


def write(
    out: Path,
    name: str,
    rows: Sequence[dict],
    names: Sequence[str],
    columns: Mapping[str, str],
    command: str,
) -> None:
    """Writes `name`.json and `name`.md into a folder, and says where.

    Args:
        out: the folder.
        name: of the table.
        rows: the reports.
        names: of the rows; the JSON file has each in its row, as name.
        columns: heading -> key of the reports, for the Markdown file.
        command: what measured the rows; the JSON file has it beside them.
    """
    named = [{"name": each} | row for each, row in zip(names, rows, strict=True)]
    content = {"command": command, "rows": named}
    files.write(out / f"{name}.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    files.write(out / f"{name}.md", markdown(rows, names, columns))
    print(out / f"{name}.md")


def cell(row: dict, key: str, digits: int = 3) -> str:
    """A value as it stands in a table, with its 95 % interval in brackets; "-" where there is none.

    Args:
        row: a report.
        key: of the value; its interval is under KEY_95.
        digits: after the point.
    """
    value = row.get(key)
    if value is None:
        return "-"
    if isinstance(value, int):
        return str(value)
    low_and_high = row.get(f"{key}_95")
    ends = f" [{', '.join(_rounded(end, digits) for end in low_and_high)}]" if low_and_high else ""
    return _rounded(value, digits) + ends


def _rounded(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"  # no "-0.000"
