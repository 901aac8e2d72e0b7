# SPDX-License-Identifier: Apache-2.0
"""The tables of README, docs and cards are what was measured: `make tables` changes nothing."""

import json
import re
import shlex
import shutil
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from spatext_lab import zoo
from spatext_lab.cli.parser import build_parser
from spatext_lab.evaluation import reco_tables

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "data" / "pocket"


@pytest.fixture
def make_tables():
    spec = spec_from_file_location("make_tables", ROOT / "docs" / "make_tables.py")
    spec.loader.exec_module(module := module_from_spec(spec))
    return module


def tables(text: str) -> dict[str, list[list[str]]]:
    """The cells of each marked table, read line by line."""
    found: dict[str, list[list[str]]] = {}
    name = None
    for line in text.splitlines():
        if line.startswith("<!-- table: "):
            name = line.removeprefix("<!-- table: ").removesuffix(" -->")
        elif line == "<!-- end -->":
            name = None
        elif name is not None:
            found.setdefault(name, []).append([cell.strip() for cell in line[1:-1].split("|")])
    return found


def test_every_page_is_what_the_command_writes(make_tables):
    stale = [path for path, text in make_tables.pages().items() if path.read_text("utf-8") != text]
    assert stale == [], "run `make tables`"


def test_every_table_is_on_a_page_and_every_file_in_a_table(make_tables):
    """A card that was written anew without its tables is seen here."""
    named = [name for path in make_tables.pages() for name in tables(path.read_text("utf-8"))]
    assert set(named) == set(make_tables.TABLES)
    used = {name for table in make_tables.TABLES.values() for name in table.files}
    assert {path.stem for path in make_tables.files()} == used
    beside = {path.parent.name for path in make_tables.pages()}
    assert {"reco", "spatext"} <= beside


def test_a_row_that_is_chosen_is_one_that_is_measured(make_tables):
    """A row without numbers yet is left out, so a wrong name would not be seen in the page."""
    known = {name for _, name, _ in reco_tables.VARIANTS}
    for table in make_tables.TABLES.values():
        assert set((table.rows or {}).values()) <= known | set(make_tables.measured(table.files))


def test_no_table_of_numbers_stands_beside_the_markers(make_tables):
    """By hand are only what others measured, and what has no intervals to measure."""
    for path in (ROOT / "README.md", *MODELS.rglob("README.md")):
        text = make_tables.PLACE.sub("", path.read_text("utf-8"))
        loose = [line for line in text.splitlines() if re.match(r"\|.*\| [\d.]+ [\[(|]", line)]
        assert loose == [], path


CELLS = (
    *("README.md", "readme-spatext", "**SpaText**", "local IoU"),
    *("segments", "SpaText", "local_iou"),
    *("README.md", "readme-reco", "**ReCo**", "AP50", "layouts", "ReCo, as shipped", "ap50"),
    *("docs/ablation.md", "masks", "a box", "held out"),
    *("masks", "a box", "region_accuracy_heldout"),
    *("data/pocket/reco/README.md", "bins", "8 bins", "mean error, pixels"),
    *("bins", "8 bins", "mean_error"),
)


@pytest.mark.parametrize(
    ("page", "table", "row", "column", "file", "name", "key"),
    [CELLS[k : k + 7] for k in range(0, len(CELLS), 7)],
)
def test_cells_against_the_files(page, table, row, column, file, name, key):
    """Read by hand, without the code that writes them."""
    head, _, *body = tables((ROOT / page).read_text("utf-8"))[table]
    (cells,) = [line for line in body if line[0] == row]
    rows = json.loads((ROOT / "docs" / "measured" / f"{file}.json").read_text("utf-8"))["rows"]
    (known,) = [each for each in rows if each["name"] == name]
    want = f"{known[key]:.3f}"
    if f"{key}_95" in known:
        want += " [{:.3f}, {:.3f}]".format(*known[f"{key}_95"])
    assert cells[head.index(column)] == want


def test_every_number_has_the_command_that_measured_it(make_tables):
    parser = build_parser()
    for path in make_tables.files():
        content = json.loads(path.read_text("utf-8"))
        commands = [row["command"] for row in content["rows"] if "command" in row]
        for command in commands or [content["command"]]:
            program, *words = shlex.split(command)
            if words[:1] == ["-m"]:
                assert find_spec(words[1])
                continue
            if program == "python":
                assert (ROOT / words[0]).is_file()
                continue
            assert program == "spatext-lab"
            parser.parse_args(words)  # SystemExit says what it does not know


def test_the_scores_of_a_card_are_those_of_its_json():
    for path in MODELS.glob("*/card.json"):
        text = (path.parent / "README.md").read_text("utf-8")
        for name, value in json.loads(path.read_text("utf-8")).get("scores", {}).items():
            assert f"* {name}: {value}.\n" in text, path


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def copy(make_tables, tmp_path, monkeypatch):
    """A checkout of pages, measured numbers and a model with one weight."""
    place = tmp_path / "data" / "pocket"
    (place / "reco").mkdir(parents=True)
    (place / "reco" / "weights").write_bytes(b"0")
    for page in ("README.md", "data/pocket/reco/README.md"):
        shutil.copy(ROOT / page, tmp_path / page)
    shutil.copytree(ROOT / "docs" / "measured", tmp_path / "docs" / "measured")
    zoo.seal(place)
    for name, path in {"ROOT": tmp_path, "MODELS": place}.items():
        monkeypatch.setattr(make_tables, name, path)
    monkeypatch.setattr(make_tables, "MEASURED", tmp_path / "docs" / "measured")
    return tmp_path


def measure(copy: Path, value: float, interval: list[float] | None = None) -> None:
    """ReCo's AP and AP50, in older files without an interval."""
    path = copy / "docs" / "measured" / "layouts.json"
    content = json.loads(path.read_text())
    for name in ("ap", "ap50"):
        content["rows"][0] |= {name: value, f"{name}_95": interval}
        if interval is None:
            del content["rows"][0][f"{name}_95"]
    path.write_text(json.dumps(content))


def test_a_new_number_reaches_every_page_and_the_seal(make_tables, copy, capsys):
    seal = copy / "data" / "pocket" / zoo.SUMS
    before = seal.read_text()
    make_tables.main()
    assert capsys.readouterr().out == ""
    for interval, ends in ((None, ""), ([0.1, 0.2], " [0.100, 0.200]")):
        measure(copy, 0.1239, interval)
        make_tables.main()
        pages = ["README.md", "data/pocket/reco/README.md"]
        assert sorted(capsys.readouterr().out.split()) == pages
        assert f"| **ReCo** | 0.124{ends} |" in (copy / pages[0]).read_text()
        row = f"| ReCo, as shipped | 0.124{ends} | 0.124{ends} |"
        assert row in (copy / pages[1]).read_text()
    assert seal.read_text() != before
    assert zoo.verify(copy / "data" / "pocket") == []


def test_a_damaged_weight_is_not_sealed(make_tables, copy):
    measure(copy, 0.5)
    (copy / "data/pocket/reco/weights").write_bytes(b"1")
    with pytest.raises(SystemExit, match="weights is damaged"):
        make_tables.main()
    assert len(zoo.verify(copy / "data" / "pocket")) == 1


def test_a_table_that_nobody_knows_is_an_error(make_tables):
    with pytest.raises(KeyError, match="unknown"):
        make_tables.filled("<!-- table: unknown -->\n<!-- end -->\n")
