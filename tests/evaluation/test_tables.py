# SPDX-License-Identifier: Apache-2.0
"""Tables of reports: read back as a reader of Markdown and a program read them."""

import json

import pytest

from spatext_lab.evaluation.tables import markdown, write

COLUMNS = {"Fréchet": "frechet_distance", "accuracy": "region_accuracy", "passes": "passes"}
ROWS = [
    {"frechet_distance": 0.12345, "region_accuracy": 0.5, "region_accuracy_95": [0.4, 0.6]},
    {"region_accuracy": 1, "passes": 2, "passes_95": [1, 3], "other": "not asked for"},
    {"frechet_distance": None, "frechet_distance_95": [0.1, 0.2], "passes": 0},
    {"frechet_distance": -1e-9, "region_accuracy": -0.0251, "region_accuracy_95": [-0.1, 0.0]},
]
NAMES = ["ReCo", "text-to-image", "true", "a difference"]
COMMAND = "spatext-lab ablation --scenes 2"


def cells(table: str) -> list[list[str]]:
    """The fields of each line, the line under the headings too."""
    lines = [line for line in table.splitlines() if line]
    assert all(line.startswith("|") and line.endswith("|") for line in lines)
    return [[field.strip() for field in line[1:-1].split("|")] for line in lines]


def test_a_table_has_a_row_for_each_report_and_a_column_for_each_heading():
    headings, rule, *rows = cells(markdown(ROWS, NAMES, COLUMNS))
    assert headings == ["", *COLUMNS]
    assert set(rule) == {"---"}
    assert {len(row) for row in (rule, *rows)} == {len(headings)}
    assert [row[0] for row in rows] == NAMES


def test_numbers_have_three_places_counts_none_and_what_is_not_there_is_a_dash():
    """0 is a number; an interval of a count, or of what is not there, is not written."""
    _, _, *rows = cells(markdown(ROWS, NAMES, COLUMNS))
    assert [row[1:] for row in rows] == [
        ["0.123", "0.500 [0.400, 0.600]", "-"],
        ["-", "1", "2"],
        ["-", "-", "0"],
        ["0.000", "-0.025 [-0.100, 0.000]", "-"],
    ]


def test_as_many_names_as_reports():
    with pytest.raises(ValueError, match="zip"):
        markdown(ROWS, NAMES[:2], COLUMNS)


def test_both_files_hold_the_same(tmp_path, capsys):
    place = tmp_path / "new" / "folder"
    write(place, "layouts", tuple(ROWS), NAMES, COLUMNS, COMMAND)
    assert capsys.readouterr().out.strip() == str(place / "layouts.md")
    found = json.loads((place / "layouts.json").read_text(encoding="utf-8"))
    named = [{"name": name} | row for name, row in zip(NAMES, ROWS, strict=True)]
    assert found == {"command": COMMAND, "rows": named}
    assert (place / "layouts.md").read_text(encoding="utf-8") == markdown(ROWS, NAMES, COLUMNS)
    assert sorted(path.name for path in place.iterdir()) == ["layouts.json", "layouts.md"]
    write(place, "layouts", ROWS[:1], NAMES[:1], COLUMNS, COMMAND)
    assert len(json.loads((place / "layouts.json").read_text())["rows"]) == 1
