# SPDX-License-Identifier: Apache-2.0
"""The house in order: one set of versions, imports, licences, nothing of one machine."""

import re
import subprocess
import sys
import tomllib
from functools import cache
from graphlib import CycleError
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from spatext_lab import __version__
from tests.house import floors, graph, imports

ROOT = Path(__file__).parents[1]

# What torch brings for one platform alone, and what comes with Python itself.
NOT_PINNED = re.compile(r"^(nvidia-|cuda-|triton|pip$|setuptools$|wheel$|spatext-lab$)")

TOP_LEVEL = {
    *("spatext_lab", "notebooks", "data", "tests", "benchmarks", "docs"),
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "LICENSE-data.md"),
    *("Makefile", "pyproject.toml", "constraints.txt", "environment.yml"),
    *(".ci", ".gitignore", ".gitattributes", ".pre-commit-config.yaml"),
}


@cache
def project_files() -> tuple[Path, ...]:
    """What is tracked, or would be with the next `git add`."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return tuple(ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file())


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def declared(*, dev: bool) -> dict[str, Requirement]:
    texts = pyproject()["dependencies"]
    texts = texts + pyproject()["optional-dependencies"]["dev"] if dev else texts
    return {canonicalize_name((r := Requirement(text)).name): r for text in texts}


def pins(lines: list[str]) -> dict[str, str]:
    found = {}
    for line in lines:
        name, _, version = line.partition("==")
        assert re.fullmatch(r"[0-9][0-9a-z.]*", version), f"{line!r} is not name==version"
        assert canonicalize_name(name) not in found, f"{name} is pinned twice"
        found[canonicalize_name(name)] = version
    return found


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return pins([line for line in lines if line and not line.startswith("#")])


# --- versions -------------------------------------------------------------------------------------


def test_constraints_and_environment_are_one_set():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (from_pip,) = (part["pip"] for part in environment["dependencies"] if isinstance(part, dict))
    assert pins(from_pip) == constraints()


def test_every_range_admits_its_pin():
    for name, requirement in declared(dev=True).items():
        pin = constraints()[name]
        assert requirement.specifier.contains(pin), f"{requirement} does not admit {pin}"


def test_ranges_are_lower_bounds():
    for requirement in declared(dev=True).values():
        assert {part.operator for part in requirement.specifier} == {">="}, requirement


def test_pins_are_exactly_what_the_declared_packages_need():
    here = installed()
    if any(
        here[name].version.split("+")[0] != pin
        for name, pin in constraints().items()
        if name in here
    ):
        pytest.skip("this environment has other versions than constraints.txt")
    needed = {name for name in closure(set(declared(dev=True))) if not NOT_PINNED.match(name)}
    assert needed - set(constraints()) == set(), "needed and not pinned"
    assert (set(constraints()) & set(here)) - needed == set(), "pinned and not needed"


@cache
def installed() -> dict[str, metadata.Distribution]:
    return {canonicalize_name(each.name): each for each in metadata.distributions()}


def closure(names: set[str]) -> set[str]:
    """All installed packages that `names` stand on, extras asked for along the way included."""
    seen: set[tuple[str, str]] = set()
    queue = [(name, "") for name in names]
    while queue:
        name, extra = queue.pop()
        if (name, extra) in seen or name not in installed():
            continue
        seen.add((name, extra))
        for requirement in map(Requirement, installed()[name].requires or []):
            where = default_environment() | {"extra": extra}
            if requirement.marker is None or requirement.marker.evaluate(where):
                queue += [
                    (canonicalize_name(requirement.name), e) for e in ("", *requirement.extras)
                ]
    return {name for name, _ in seen}


def test_pre_commit_has_the_ruff_of_the_constraints():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert len(hooks) == 2
    for hook in hooks:
        assert hook["additional_dependencies"] == [f"ruff=={constraints()['ruff']}"]


def test_python_versions_agree():
    assert pyproject()["requires-python"] == ">=3.11"
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["dependencies"][0].startswith("python >=3.11")


def test_the_citation_and_the_changelog_have_the_packages_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert Version(citation["version"]) == Version(__version__)
    assert citation["license"] == pyproject()["license"]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    assert newest == __version__


# --- imports --------------------------------------------------------------------------------------


def package_files() -> list[Path]:
    return sorted((ROOT / "spatext_lab").rglob("*.py"))


IMPORTED_AS = {"pillow": "PIL", "open-clip-torch": "open_clip", "ipython": "IPython"}


def test_every_runtime_import_is_declared():
    known = {IMPORTED_AS.get(name, name.replace("-", "_")) for name in declared(dev=False)}
    known |= sys.stdlib_module_names | {"spatext_lab"}
    for path in package_files():
        foreign = {name.partition(".")[0] for name in imports(path)} - known
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}: not in pyproject.toml"


def test_folders_form_a_graph_without_cycles():
    assert sum(map(len, floors(arrows := graph()))) == len(arrows)  # CycleError names the cycle


def test_the_check_finds_a_cycle():
    with pytest.raises(CycleError, match="cycle"):
        floors(graph() | {"scene": {"spatext"}})


def test_the_top_level_can_be_overlooked():
    assert len(graph()) <= 17, sorted(graph())


def test_the_two_methods_stand_apart_and_know_no_rival():
    arrows = graph()
    assert "reco" not in arrows["spatext"] | arrows["text_to_image"]
    assert "spatext" not in arrows["reco"] | arrows["text_to_image"]
    for method in ("spatext", "reco", "text_to_image", "diffusion"):
        assert "baselines" not in arrows[method]


# --- files ----------------------------------------------------------------------------------------


def test_top_level_is_the_architecture():
    assert {path.relative_to(ROOT).parts[0] for path in project_files()} == TOP_LEVEL


def test_tests_mirror_the_package():
    for path in (ROOT / "tests").rglob("test_*.py"):
        folder = path.relative_to(ROOT / "tests").parent
        assert (ROOT / "spatext_lab" / folder).is_dir(), f"{path}: spatext_lab has no {folder}"


def test_each_python_file_names_its_licence():
    for path in project_files():
        if path.suffix == ".py":
            first = path.read_text().partition("\n")[0]
            assert first == "# SPDX-License-Identifier: Apache-2.0", path.relative_to(ROOT)


def test_scripts_and_styles_keep_to_the_house():
    """What ruff does for Python: a licence in the first line, 100 characters at most."""
    for path in project_files():
        if path.suffix in {".js", ".css"}:
            lines = path.read_text().splitlines()
            assert "SPDX-License-Identifier: Apache-2.0" in lines[0], path.relative_to(ROOT)
            long = [number for number, line in enumerate(lines, start=1) if len(line) > 100]
            assert long == [], f"{path.relative_to(ROOT)}: lines {long} are too long"


def test_licences_are_whole():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert "CC-BY-4.0" in (ROOT / "LICENSE-data.md").read_text()


def test_ci_runs_the_readmes_test_command():
    assert "make test" in (ROOT / ".ci/run").read_text()
    assert (ROOT / ".ci/run").stat().st_mode & 0o111, ".ci/run is not executable"
    assert "make test" in (ROOT / "README.md").read_text()
    assert "make tour" in (ROOT / "README.md").read_text()


def test_the_makefile_leaves_the_number_of_threads_to_the_library():
    """It respects OMP_NUM_THREADS as the user's own choice, so only the tests may set it."""
    lines = [line for line in (ROOT / "Makefile").read_text().splitlines() if "OMP_NUM" in line]
    assert [line.split()[0] for line in lines] == ["@OMP_NUM_THREADS=1"]


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len([line for line in lines if not line.startswith("<!--")]) <= 200


def test_the_readmes_images_are_there_small_and_described():
    images = re.findall(r"!\[(.*?)\]\((.*?)\)", (ROOT / "README.md").read_text())
    assert len(images) >= 5
    for alt, path in images:
        assert len(alt) > 20, f"{path} has the alt text {alt!r}"
        assert (ROOT / path).stat().st_size < 150_000, path


FOREIGN = {
    "a package registry": "(py" r"pi|python" r"hosted|np" r"mjs)\.(org|com)|download\.py" "torch",
    "a place of one machine": r"/(work|root|opt|tmp|home/\w+)/|[A-Z]:\\Users",
}


@pytest.mark.parametrize("what", FOREIGN)
def test_nothing_names(what):
    pattern = re.compile(FOREIGN[what])
    for path in project_files():
        if path.suffix in {".png", ".safetensors", ".npz", ".jpg"}:
            continue
        text = re.sub(r"[A-Za-z0-9+/=]{200,}", "", path.read_text(errors="replace"))  # pictures
        if found := pattern.search(text):
            pytest.fail(f"{path.relative_to(ROOT)} names {what}: {found.group()}")


def test_nothing_is_pickled():
    risky = {".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib"}
    assert [path.name for path in project_files() if path.suffix in risky] == []


def test_shapes_are_checked_in_every_module_as_tests_run():
    """None was imported before the hook of `conftest.py`, by a plugin of pytest's, say."""
    modules = {name: m for name, m in sys.modules.items() if name.split(".")[0] == "spatext_lab"}
    assert modules
    unchecked = [n for n, m in modules.items() if "jaxtyping" not in type(m.__loader__).__module__]
    assert unchecked == []
