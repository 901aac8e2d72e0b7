# SPDX-License-Identifier: Apache-2.0
"""The doctor finds what is broken, says the repair, and goes on."""

import json
import sys
from pathlib import Path

import pytest
import torch
from packaging.utils import canonicalize_name

from spatext_lab import zoo
from spatext_lab.cli import doctor

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


def examine(monkeypatch, *names):
    """Only the checks named, so that a test need not wait for the others."""
    chosen = [each for each in doctor.CHECKS if each[0] in names]
    assert len(chosen) == len(names)
    monkeypatch.setattr(doctor, "CHECKS", chosen)
    return {one.name: one for one in doctor.checks()}


def test_here_everything_works():
    done = list(doctor.checks())
    assert [one for one in done if not one.ok] == []
    assert all(one.detail for one in done)
    assert doctor.verdict(done) == f"all {len(done)} checks passed"


def test_a_missing_package_fails_and_the_others_go_on(monkeypatch):
    monkeypatch.setitem(sys.modules, "einops", None)  # how Python marks "cannot be imported"
    done = examine(monkeypatch, "einops", "pycocotools", "python")
    assert not done["einops"].ok
    assert "einops" in done["einops"].detail
    assert f"{sys.executable} -m pip install -c {CONSTRAINTS} einops" == done["einops"].fix
    assert done["python"].ok
    assert done["pycocotools"].ok
    assert doctor.verdict(list(done.values())) == "1 of 3 checks failed"


def test_a_package_that_imports_and_dies_when_called_fails(monkeypatch):
    """A CPU-only torch beside the default torchvision looks installed, and is not."""

    def nms(*args, **kwargs):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("torchvision.ops.nms", nms)
    broken = examine(monkeypatch, "torchvision", "torch")["torchvision"]
    assert not broken.ok
    assert "operator torchvision::nms does not exist" in broken.detail
    assert broken.fix.endswith("--force-reinstall torch torchvision")


def test_a_package_that_answers_wrong_fails(monkeypatch):
    monkeypatch.setattr("torchvision.ops.nms", lambda *args, **kwargs: torch.tensor([0, 1, 2]))
    broken = examine(monkeypatch, "torchvision")["torchvision"]
    assert not broken.ok
    assert "[0, 1, 2], not [0, 2]" in broken.detail


def test_a_damaged_package_is_replaced_without_what_it_stands_on(monkeypatch):
    def rearrange(*args):
        raise OSError("half a file")

    monkeypatch.setattr("einops.rearrange", rearrange)
    broken = examine(monkeypatch, "einops")["einops"]
    assert broken.fix.endswith("--force-reinstall --no-deps einops")


@pytest.fixture
def shipped(monkeypatch, tmp_path):
    """A small stand-in for data/pocket, whole and sealed."""
    for part in ("text-to-image", "spatext", "judge"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "model.safetensors").write_bytes(part.encode())
    zoo.seal(tmp_path)
    monkeypatch.setattr(zoo, "_POCKETS", (tmp_path,))
    return tmp_path


def test_whole_models_pass(monkeypatch, shipped):
    assert examine(monkeypatch, "models")["models"].ok


def damage(folder):
    (folder / "spatext" / "model.safetensors").write_bytes(b"half")


def lose_a_file(folder):
    (folder / "judge" / "model.safetensors").unlink()


def lose_a_part(folder):
    (folder / "text-to-image" / "model.safetensors").unlink()
    (folder / "text-to-image").rmdir()


def lose_the_sums(folder):
    (folder / "SHA256SUMS").unlink()


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (damage, "spatext/model.safetensors is damaged"),
        (lose_a_file, "judge/model.safetensors is missing"),
        (lose_a_part, "text-to-image"),
        (lose_the_sums, "SHA256SUMS is missing"),
    ],
)
def test_harmed_models_are_named(monkeypatch, shipped, harm, named):
    harm(shipped)
    broken = examine(monkeypatch, "models")["models"]
    assert not broken.ok
    assert named in broken.detail
    assert broken.fix == "git checkout -- data/pocket"


def test_a_model_that_is_not_there_is_no_failure(monkeypatch, tmp_path):
    monkeypatch.setattr(zoo, "_HERE", tmp_path / "spatext_lab")
    monkeypatch.chdir(tmp_path)
    done = examine(monkeypatch, "sd15", "reco-coco")
    assert done["sd15"].ok
    assert done["sd15"].detail.endswith("GB); to get it: spatext-lab models fetch sd15")
    part = tmp_path / "models" / "reco-coco"
    part.mkdir(parents=True)
    assert done["reco-coco"].ok
    facts = {"commit": "0" * 40, "files": {"model_index.json": {"size": 2}}}
    (part / "card.json").write_text(json.dumps(facts))
    broken = examine(monkeypatch, "reco-coco")["reco-coco"]
    assert not broken.ok
    assert "model_index.json is missing" in broken.detail
    assert broken.fix == "spatext-lab models fetch reco-coco"
    (part / "model_index.json").write_text("{}")
    assert examine(monkeypatch, "reco-coco")["reco-coco"].ok


@pytest.mark.parametrize(("what", "name"), [("NEEDED_DISK", "disk"), ("NEEDED_MEMORY", "memory")])
def test_too_little_room_fails(monkeypatch, what, name):
    monkeypatch.setattr(doctor, what, 1e18)
    broken = examine(monkeypatch, name)[name]
    assert not broken.ok
    assert "1000000000 GB needed" in broken.detail
    assert broken.fix


@pytest.mark.parametrize("name", [name for name, _, _ in doctor.CHECKS])
def test_every_fix_names_packages_of_the_pinned_set(name):
    (fix,) = (fix for each, _, fix in doctor.CHECKS if each == name)
    pinned = {canonicalize_name(line.partition("==")[0]) for line in CONSTRAINTS.open()}
    for error in (ModuleNotFoundError("gone"), RuntimeError("damaged")):
        said = fix(error)
        assert said
        if "pip install" in said:
            words = said.split(str(CONSTRAINTS))[1].split()
            assert {canonicalize_name(word) for word in words if word[0] != "-"} <= pinned


def test_lines_and_json_say_the_same(monkeypatch):
    monkeypatch.setitem(sys.modules, "einops", None)
    done = list(examine(monkeypatch, "einops", "python").values())
    told = json.loads(doctor.to_json(done))
    assert told["ok"] is False
    assert [each["ok"] for each in told["checks"]] == [True, False]
    for one, each in zip(done, told["checks"], strict=True):
        line = doctor.line(one)
        assert line.startswith("ok" if one.ok else "FAIL")
        assert each["detail"] in line
        assert ("fix: " + each["fix"] in line) == (not one.ok)
