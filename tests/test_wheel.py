# SPDX-License-Identifier: Apache-2.0
"""An installed package works outside the checkout: the wheel carries the models and finds them."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.parametrize("part", ["pocket", "scenes"])
def test_it_carries_the_data_unchanged(wheel, part):
    inside, outside = f"spatext_lab/_data/{part}/", ROOT / "data" / part
    with zipfile.ZipFile(wheel) as archive:
        carried = {
            name.removeprefix(inside): hashlib.sha256(archive.read(name)).hexdigest()
            for name in archive.namelist()
            if name.startswith(inside)
        }
    there = {
        path.relative_to(outside).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in outside.rglob("*")
        if path.is_file()
    }
    assert carried == there
    assert any(name.endswith((".safetensors", ".json")) for name in carried)


def test_it_carries_the_whole_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if not n.startswith("spatext_lab/_data/")}
    files = {path for path in ROOT.glob("spatext_lab/**/*") if path.is_file()}
    here = {path.relative_to(ROOT).as_posix() for path in files if path.suffix != ".pyc"}
    assert {name for name in names if ".dist-info/" not in name} == here


def test_it_declares_the_command_the_licence_and_the_python(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (info,) = {n.split("/")[0] for n in archive.namelist() if ".dist-info/" in n}
        about = message_from_string(archive.read(f"{info}/METADATA").decode())
        commands = archive.read(f"{info}/entry_points.txt").decode()
        licence = archive.read(f"{info}/licenses/LICENSE").decode()
    assert about["Requires-Python"] == ">=3.11"
    assert about["License-Expression"] == "Apache-2.0"
    assert "spatext-lab = spatext_lab.cli.parser:main" in commands
    assert licence == (ROOT / "LICENSE").read_text()


def test_in_an_empty_folder_it_finds_its_own_models(wheel, tmp_path):
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = """
import json, sys, spatext_lab
from spatext_lab import zoo
folder = zoo.folder("pocket", "spatext")
print(json.dumps([spatext_lab.__file__, str(folder), [str(p) for p in zoo.verify()], sys.path]))
assert folder.is_dir(), folder
"""
    # PYTHONPATH stands before the editable install's entry, which is then asked to leave.
    leave = f"import sys; sys.path[:] = [p for p in sys.path if p != {str(ROOT)!r}]"
    done = subprocess.run(
        [sys.executable, "-c", f"{leave}\n{code}"],
        cwd=empty,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    package, folder, problems, path = json.loads(done.stdout)
    assert str(ROOT) not in path
    assert Path(package).is_relative_to(site)
    assert Path(folder) == site / "spatext_lab" / "_data" / "pocket" / "spatext"
    assert problems == []
