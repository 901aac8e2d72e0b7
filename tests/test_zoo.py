# SPDX-License-Identifier: Apache-2.0
"""Model folders: found, sealed as `sha256sum` seals, and refused by name where damaged."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from spatext_lab import zoo

FILES = {
    "text-to-image/unet/weights.safetensors": bytes(range(256)) * 400,
    "text-to-image/model_index.json": b"{}\n",
    "spatext/a name with  two blanks.json": b"",
    "README.md": b"# a model\n",
}


@pytest.fixture
def model(tmp_path) -> Path:
    place = tmp_path / "model"
    for name, content in FILES.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    zoo.seal(place)
    return place


def test_the_seal_against_hashlib(model):
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in FILES.items()]
    assert sorted((model / zoo.SUMS).read_text().splitlines(keepends=True)) == sorted(lines)


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="there is no sha256sum here")
def test_the_seal_against_sha256sum(model):
    check = ["sha256sum", "--check", "--strict", zoo.SUMS]
    assert subprocess.run(check, cwd=model, capture_output=True, check=False).returncode == 0
    (model / "README.md").write_bytes(b"# another\n")
    done = subprocess.run(check, cwd=model, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert [line for line in done.stdout.splitlines() if "FAILED" in line] == ["README.md: FAILED"]
    assert zoo.verify(model)[0].startswith(str(model / "README.md"))


def test_sealing_twice_gives_the_same_seal(model):
    before = (model / zoo.SUMS).read_bytes()
    zoo.seal(model)
    assert (model / zoo.SUMS).read_bytes() == before


def test_a_whole_model_has_no_problems(model):
    assert zoo.verify(model) == []
    assert zoo.folder(str(model), "text-to-image") == model / "text-to-image"


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(model, name):
    (model / name).unlink()
    (problem,) = zoo.verify(model)
    assert str(model / name) in problem
    assert "is missing" in problem
    with pytest.raises(ValueError, match="is missing: copy it anew"):
        zoo.folder(str(model), name.rpartition("/")[0].partition("/")[0])


@pytest.mark.parametrize("name", [name for name, content in FILES.items() if content])
def test_one_wrong_bit_is_named(model, name):
    content = bytearray(FILES[name])
    content[len(content) // 2] ^= 1
    (model / name).write_bytes(content)
    (problem,) = zoo.verify(model)
    assert str(model / name) in problem
    assert "is damaged" in problem
    part = name.rpartition("/")[0].partition("/")[0]
    with pytest.raises(ValueError, match="is damaged: copy it anew"):
        zoo.folder(str(model), part)
    if part:  # another part does not read the damaged file
        assert zoo.folder(str(model), "spatext") == model / "spatext"


def test_a_large_file_is_read_once_and_again_when_it_was_written(model, monkeypatch):
    monkeypatch.setattr(zoo, "LARGE", 1000)
    weights = model / "text-to-image/unet/weights.safetensors"
    real, read = zoo._digest, []
    monkeypatch.setattr(zoo, "_digest", lambda path: read.append(path.name) or real(path))
    assert zoo.verify(model) == zoo.verify(model) == []
    assert read.count(weights.name) == 1
    assert read.count("README.md") == 2
    content, before = bytearray(weights.read_bytes()), weights.stat()
    content[0] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns + 10**6))
    assert "is damaged" in zoo.verify(model)[0]


def test_a_truncated_file_is_named(model):
    (model / "text-to-image/unet/weights.safetensors").write_bytes(b"\0" * 1000)
    (model / "README.md").unlink()
    problems = zoo.verify(model)
    assert [problem.split(": ")[0].rpartition("/")[2] for problem in problems] == [
        "README.md is missing",
        "weights.safetensors is damaged",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", r"is damaged \(line 1: '.n'\)"),
        (b"0123  README.md\n", r"is damaged \(line 1: '0123  README.md.n'\)"),
        (b"\xff\xfe\x00", "is damaged"),
        (b"g" * 64 + b"  README.md\n", "is damaged"),
        (b"a" * 64 + b" README.md\n", "is damaged"),
    ],
)
def test_a_damaged_seal_is_named_itself(model, content, message):
    """And no file that is as it was."""
    (model / zoo.SUMS).write_bytes(content)
    (problem,) = zoo.verify(model)
    assert problem.startswith(str(model / zoo.SUMS))
    for part in ("", "spatext", "text-to-image"):
        with pytest.raises(ValueError, match=message):
            zoo.folder(str(model), part)


def test_a_seal_that_was_cut_off_is_named(model):
    """Within a line; behind a line it is a seal of fewer files, of which nothing is wrong."""
    whole = (model / zoo.SUMS).read_bytes()
    for length in range(1, len(whole)):
        (model / zoo.SUMS).write_bytes(whole[:length])
        problems = zoo.verify(model)
        if whole[length - 1 : length] == b"\n":
            assert problems == []
        else:
            assert len(problems) == 1
            assert problems[0].startswith(f"{model / zoo.SUMS} is damaged (line ")


def test_a_model_of_ones_own_needs_no_seal(model):
    (model / zoo.SUMS).unlink()
    assert zoo.verify(model) == []
    assert zoo.folder(str(model), "spatext") == model / "spatext"


def test_what_does_not_exist_is_named(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="has no folder 'judge'"):
        zoo.folder(str(model), "judge")
    with pytest.raises(FileNotFoundError, match=r"model is '.*nowhere'; pass 'pocket' or a model"):
        zoo.folder(str(tmp_path / "nowhere"))


def test_what_can_be_fetched_is_named_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(zoo, "_HERE", tmp_path / "spatext_lab")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="to get it: spatext-lab models fetch sd15"):
        zoo.folder("sd15", "text-to-image")
    (tmp_path / "models" / "sd15" / "text-to-image").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no folder 'spatext/clip'; to get it: spatext-lab"):
        zoo.folder("sd15", "spatext/clip")
    with pytest.raises(FileNotFoundError, match=r"no folder 'reco'$"):
        zoo.folder("sd15", "reco")


def test_pocket_is_looked_for_in_the_checkout_and_then_in_the_package(monkeypatch, tmp_path):
    checkout, package = tmp_path / "data" / "pocket", tmp_path / "_data" / "pocket"
    monkeypatch.setattr(zoo, "_POCKETS", (checkout, package))
    with pytest.raises(FileNotFoundError, match="model is 'pocket'"):
        zoo.folder()
    package.mkdir(parents=True)
    assert zoo.folder("pocket") == package
    checkout.mkdir(parents=True)
    assert zoo.folder("pocket") == checkout


def test_the_remedy_fits_how_the_model_came(monkeypatch, tmp_path):
    checkout, package = tmp_path / "data" / "pocket", tmp_path / "_data" / "pocket"
    monkeypatch.setattr(zoo, "_POCKETS", (checkout, package))
    for place, remedy in ((checkout, "git checkout"), (package, "pip install")):
        place.mkdir(parents=True)
        (place / "config.json").write_text("{}")
        zoo.seal(place)
        (place / "config.json").write_text("{ }")
        (problem,) = zoo.verify(place)
        assert remedy in problem


def test_a_notebook_finds_the_checkouts_models_and_ones_own_come_first(tmp_path, monkeypatch):
    """Its working folder is not the checkout."""
    checkout, here = tmp_path / "checkout", tmp_path / "notebooks"
    (checkout / "models" / "sd15").mkdir(parents=True)
    here.mkdir()
    monkeypatch.setattr(zoo, "_HERE", checkout / "spatext_lab")
    monkeypatch.chdir(here)
    assert zoo.folder("sd15") == checkout / "models" / "sd15"
    (here / "models" / "sd15").mkdir(parents=True)
    assert zoo.folder("sd15").resolve() == here / "models" / "sd15"


def test_a_base_has_its_clip_before_it_has_a_spatext(model):
    (model / "spatext" / "clip").mkdir()
    assert zoo.folder(str(model), "spatext/clip") == model / "spatext" / "clip"
    (model / "clip").mkdir()
    assert zoo.folder(str(model), "spatext/clip") == model / "clip"
    with pytest.raises(FileNotFoundError, match="has no folder 'spatext/prior'"):
        zoo.folder(str(model), "spatext/prior")


@pytest.mark.usefixtures("as_for_users")
@pytest.mark.parametrize("part", ["..", "../other", "spatext/../../other", None])
def test_a_part_lies_within_its_model(model, part):
    (model.parent / "other").mkdir()
    for value in (part, str(model.parent / "other")):
        with pytest.raises(ValueError, match=r"part is .*; pass a folder within the model"):
            zoo.folder(str(model), value)
    with pytest.raises(ValueError, match="model is None; pass 'pocket', or a model folder"):
        zoo.folder(None)


def test_a_path_upwards_is_no_name_of_a_model(model, monkeypatch):
    """It is taken from where one is, not from models/."""
    (model / "models").mkdir()
    monkeypatch.chdir(model)
    assert zoo.folder("../model", "spatext") == Path("../model/spatext")
