# SPDX-License-Identifier: Apache-2.0
"""Profiles: which model the cells run with, how long it takes, and who is told to be quiet."""

import os
import time
from types import SimpleNamespace

import pytest
import torch

from spatext_lab import zoo
from spatext_lab.course import profiles


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """An empty folder with a classroom model in it, and no word about a profile."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPATEXT_PROFILE", raising=False)
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "DIFFUSERS_VERBOSITY"):
        monkeypatch.setenv(name, "")
    (tmp_path / "models" / "sd15").mkdir(parents=True)


def test_pocket_is_the_model_that_nobody_asks_for():
    assert profiles.start() == profiles.Profile("pocket")
    assert zoo.folder(profiles.start().model, "text-to-image").is_dir()
    assert os.environ["DIFFUSERS_VERBOSITY"] == "error"
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"


def test_one_variable_or_the_first_cell_choose_and_the_cell_has_the_last_word(monkeypatch):
    assert profiles.start("sd15") == profiles.Profile("sd15")
    monkeypatch.setenv("SPATEXT_PROFILE", "sd15")
    assert profiles.start().model == "sd15"
    assert profiles.start("pocket").model == "pocket"


def test_a_folder_is_a_model_too(tmp_path):
    assert profiles.start(str(tmp_path)).model == str(tmp_path)


def test_a_model_that_is_not_there(monkeypatch, tmp_path):
    (tmp_path / "models" / "sd15").rmdir()
    monkeypatch.setattr(zoo, "_HERE", tmp_path / "spatext_lab")  # nor beside the package
    for name in ("sd15", "sd51"):
        with pytest.raises(FileNotFoundError, match=f"model is '{name}'; pass 'pocket' or a model"):
            profiles.start(name)


def test_what_is_expected_against_a_stopwatch():
    """A step that sleeps: 0.05 s each, so an image takes half a second, and forty are twenty."""

    def stream(scene, num_inference_steps):
        time.sleep(0.5)  # what is only done once does not count
        for _ in range(num_inference_steps):
            time.sleep(0.05)
            yield None

    slow = SimpleNamespace(stream=stream, image_size=64, device=torch.device("cpu"))
    assert profiles.seconds_per_step(slow) == pytest.approx(0.05, abs=0.02)
    told = profiles.Profile("pocket").expect(slow, 40)
    assert told.startswith("model pocket, 64 x 64 pixels: on this cpu a guided step takes 0.05")
    assert float(told.split()[-2]) == pytest.approx(20, rel=0.4)
