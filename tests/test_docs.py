# SPDX-License-Identifier: Apache-2.0
"""What the documentation names is there, and a checkout has the bytes that were committed."""

import ast
import inspect
import re
import shlex
import subprocess
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from pkgutil import resolve_name, walk_packages

import pytest
import yaml
from PIL import Image

from spatext_lab import zoo
from spatext_lab.cli.parser import build_parser

ROOT = Path(__file__).parents[1]


# --- a checkout on Windows ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def windows_clone(tmp_path_factory) -> Path:
    """A clone of what is committed, made as Git for Windows does by default."""
    clone = tmp_path_factory.mktemp("clone") / "spatext_lab"
    command = ["git", "clone", "-q", "-c", "core.autocrlf=true", ROOT.as_uri(), clone]
    subprocess.run(command, check=True, capture_output=True)
    return clone


def test_the_models_survive_a_checkout_on_windows(windows_clone):
    assert zoo.verify(windows_clone / "data" / "pocket") == []


def test_no_file_is_changed_by_a_checkout_on_windows(windows_clone):
    """Git's own word: the line ends in the index (i/) and in the working tree (w/) are equal."""
    command = ["git", "-c", "core.quotepath=off", "ls-files", "--eol"]
    listed = subprocess.run(
        command, cwd=windows_clone, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert len(listed) > 500
    ends = [line.split()[:2] for line in listed]
    assert [line for line, (i, w) in zip(listed, ends, strict=True) if i[2:] != w[2:]] == []


# --- what is to be typed --------------------------------------------------------------------------


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page that are marked with this language."""
    fenced = re.split(r"^```", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE)[1::2]
    return [text for mark, _, text in (each.partition("\n") for each in fenced) if mark == language]


def test_the_readmes_code_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec("\n".join(blocks("README.md", "python")), names := {})
    assert Image.open("house.png").size == Image.open("house-reco.png").size == (64, 64)
    assert len(names["result"].images) == 4
    assert capsys.readouterr().out.splitlines()[-1] == "4"


PAGES = ["README.md", "CONTRIBUTING.md", "docs/stable-diffusion.md", "docs/classroom.md"]


@pytest.mark.parametrize("page", PAGES)
def test_commands_can_be_typed(page):
    """Each line is parsed and not run; every option, choice, target and module must exist."""
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in "".join(blocks(page, "")).splitlines():
        words = shlex.split(line, comments=True)
        if "spatext-lab" in words:  # behind `flock FILE` or a variable too
            build_parser().parse_args(words[words.index("spatext-lab") + 1 :])  # or SystemExit
        elif "make" in words:
            assert words[words.index("make") + 1] in targets, line
        if "-m" in words:
            assert find_spec(words[words.index("-m") + 1]), line


def test_the_classs_commands_and_settings_are_whole():
    """Commands within the text too; settings of other programs can at least be read."""
    text = (ROOT / "docs" / "classroom.md").read_text(encoding="utf-8")
    inline = re.findall(r"(?<!`)`spatext-lab ([^`]+)`(?!`)", text)
    assert inline
    for words in map(shlex.split, inline):
        build_parser().parse_args(words)
    modules = re.findall(r"python -m (\w+(?:\.\w+)*)", text)
    assert modules
    assert [name for name in modules if not find_spec(name)] == []
    for block in blocks("docs/classroom.md", "python"):
        ast.parse(block)
    (values,) = map(yaml.safe_load, blocks("docs/classroom.md", "yaml"))
    assert values["singleuser"]["storage"]["extraVolumeMounts"][0]["readOnly"] is True


# --- tables and pages -----------------------------------------------------------------------------


def table_rows(page: str) -> list[dict[str, str]]:
    """Every row of every table of a page, by the names of its columns."""
    rows, columns = [], None
    for line in (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if not line.startswith("|"):
            columns = None
        elif columns is None:
            columns = cells
        elif not line.startswith("|-"):
            rows.append(dict(zip(columns, cells, strict=True)))
    return rows


def code(cell: str) -> list[str]:
    """What stands between backticks in a cell."""
    found = re.findall(r"`([^`]+)`", cell)
    assert found, f"{cell!r} names nothing"
    return found


@pytest.mark.parametrize("row", table_rows("equations.md"), ids=lambda row: row["function"])
def test_an_equation_has_its_function_its_test_and_its_chapter(row):
    for name in code(row["function"]):
        resolve_name(f"spatext_lab.{name}")  # ImportError or AttributeError says which is missing
    tests = "".join((ROOT / path).read_text(encoding="utf-8") for path in code(row["test"]))
    names = "|".join(name.rpartition(".")[2] for name in code(row["function"]))
    assert re.search(rf"\b({names})\b", tests), f"{row['test']} has none of {names}"
    if row["chapter"] != "-":
        assert len(list((ROOT / "notebooks").glob(f"{row['chapter']}_*.ipynb"))) == 1


@pytest.mark.parametrize("row", table_rows("glossary.md"), ids=lambda row: row["term"])
def test_a_term_has_its_name_in_the_library(row):
    for name in code(row["in the library"]):
        resolve_name(f"spatext_lab.{name}")


def test_the_glossary_has_each_term_once():
    terms = [term for row in table_rows("glossary.md") for term in row["term"].split(", ")]
    assert sorted(set(terms)) == sorted(terms)
    wanted = "image embedding encode latent condition sample render truncate timestep token bin"
    assert set(wanted.split()) <= set(terms)


def test_links_lead_to_files_and_headings():
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("data/*/README.md")):
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
            name, _, anchor = link.partition("#")
            path = (page.parent / name) if name else page
            assert path.exists(), f"{page.relative_to(ROOT)} links {link}"
            if anchor:
                assert anchor in headings(path), f"{page.relative_to(ROOT)} links {link}"


def headings(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# --- generated pages ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def make_api():
    spec = spec_from_file_location("make_api", ROOT / "docs" / "make_api.py")
    spec.loader.exec_module(module := module_from_spec(spec))
    return module


@pytest.mark.parametrize("page", ["api.md", "tree.md"])
def test_a_generated_page_is_up_to_date(make_api, page):
    assert (ROOT / "docs" / page).read_text(encoding="utf-8") == make_api.pages()[page], (
        f"docs/{page} is older than the docstrings: run `make api`"
    )


def test_the_api_page_has_what_importing_finds(make_api):
    """The page is made by parsing; here the modules are imported and looked at."""
    sections = re.split(r"^## (.*)$", make_api.api(), flags=re.MULTILINE)
    listed = {
        name: re.findall(r"^### `(.*)`$", text, re.MULTILINE) for name, text in pairs(sections)
    }
    folders = {name.partition(".")[0] for name in listed}
    assert folders == set(make_api.FOLDERS)
    for name in all_modules(folders):
        module = import_module(f"spatext_lab.{name}")
        own = [
            each
            for each, value in vars(module).items()
            if not each.startswith("_")
            and (inspect.isclass(value) or inspect.isfunction(inspect.unwrap(value)))
            and value.__module__ == module.__name__
        ]
        assert [each for each in listed.get(name, []) if "." not in each] == own, name


def pairs(sections: list[str]) -> list[tuple[str, str]]:
    return list(zip(sections[1::2], sections[2::2], strict=True))


def all_modules(folders: set[str]) -> list[str]:
    found = walk_packages([str(ROOT / "spatext_lab")], "spatext_lab.")
    names = [each.name.partition(".")[2] for each in found]
    return [name for name in names if name.partition(".")[0] in folders]


# --- docstrings -----------------------------------------------------------------------------------


def public_nodes(make_api) -> list[tuple[str, ast.AST]]:
    """Every public function, class and method with its dotted name."""
    found = []
    for path in (each for folder in make_api.FOLDERS for each in make_api.sources(folder)):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts[1:])
        for node in filter(make_api.public, ast.parse(path.read_text(encoding="utf-8")).body):
            found.append((f"{module}.{node.name}", node))
            inside = node.body if isinstance(node, ast.ClassDef) else []
            methods = [each for each in inside if make_api.public(each) and not is_setter(each)]
            found += [(f"{module}.{node.name}.{each.name}", each) for each in methods]
    return found


def is_setter(method: ast.AST) -> bool:
    return any(ast.unparse(each).endswith(".setter") for each in method.decorator_list)


def test_public_docstrings_have_one_format(make_api):
    """One summary sentence; then paragraphs, and blocks whose arguments exist."""
    faults = []
    for name, node in public_nodes(make_api):
        text = ast.get_docstring(node) or ""
        summary = text.partition("\n\n")[0]
        if not summary.endswith((".", "?")) or "\n" in summary:
            faults.append(f"{name}: no summary in one line")
        if re.search(r"^(Raises|Returns) |[.;] Raises [A-Z]\w+Error", text, re.MULTILINE):
            faults.append(f"{name}: errors and results belong into Raises: and Returns: blocks")
        args = re.search(r"^Args:\n((?:    .*\n?|\n)+)", text, re.MULTILINE)
        listed = re.findall(r"^    ([\w, *]+):", args[1], re.MULTILINE) if args else []
        if isinstance(node, make_api.Function):
            known = {each.arg for each in ast.walk(node.args) if isinstance(each, ast.arg)}
            unknown = {each.strip(" *") for names in listed for each in names.split(",")} - known
            faults += [f"{name}: Args: names {each!r}" for each in unknown]
    assert not faults, "\n".join(faults)
