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
        cells = " | ".join(_cell(row, key) for key in columns.values())
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines) + "\n"


def write(
    out: Path, name: str, rows: Sequence[dict], names: Sequence[str], columns: Mapping[str, str]
) -> None:
    """Writes `name`.json and `name`.md into the folder `out`, and says where."""
    files.write(out / f"{name}.json", json.dumps(list(rows), indent=2) + "\n")
    files.write(out / f"{name}.md", markdown(rows, names, columns))
    print(out / f"{name}.md")


def _cell(row: dict, key: str) -> str:
    value = row.get(key)
    if value is None:
        return "-"
    if isinstance(value, int):
        return str(value)
    interval = row.get(f"{key}_95")
    return f"{value:.3f}" + (f" ({interval[0]:.3f}-{interval[1]:.3f})" if interval else "")
