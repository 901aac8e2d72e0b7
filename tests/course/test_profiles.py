# SPDX-License-Identifier: Apache-2.0
"""Profiles: which model the cells run with, how long it takes, and who is told to be quiet."""

import os
import time
from types import SimpleNamespace

import pytest
import torch

from spatext_lab import zoo
from spatext_lab.course import profiles
from spatext_lab.text_to_image.pipeline import TextToImagePipeline


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """An empty folder with a classroom model in it, and no word about a profile."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPATEXT_PROFILE", raising=False)
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "DIFFUSERS_VERBOSITY"):
        monkeypatch.setenv(name, "")
    (tmp_path / "models" / "sd15").mkdir(parents=True)


def test_the_pocket_profile_is_the_one_that_nobody_asks_for():
    assert profiles.start() == profiles.Profile("pocket", "pocket")
    assert zoo.folder(profiles.start().model, "text-to-image").is_dir()
    assert os.environ["DIFFUSERS_VERBOSITY"] == "error"
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"


def test_one_variable_or_the_first_cell_choose_and_the_cell_has_the_last_word(monkeypatch):
    assert profiles.start("classroom") == profiles.Profile("classroom", "sd15")
    monkeypatch.setenv("SPATEXT_PROFILE", "classroom")
    assert profiles.start().model == "sd15"
    assert profiles.start("pocket").model == "pocket"


def test_a_folder_is_a_profile_too(tmp_path):
    assert profiles.start(str(tmp_path)).model == str(tmp_path)


def test_a_profile_without_its_model(monkeypatch, tmp_path):
    (tmp_path / "models" / "sd15").rmdir()
    monkeypatch.setattr(zoo, "_HERE", tmp_path / "spatext_lab")  # nor beside the package
    want = (
        r"profile is 'classroom'; there are pocket, classroom. Its model is 'sd15'; give 'pocket'"
    )
    with pytest.raises(FileNotFoundError, match=want):
        profiles.start("classroom")
    with pytest.raises(
        FileNotFoundError, match="profile is 'clasroom'; there are pocket, classroo"
    ):
        profiles.start("clasroom")


def test_what_is_expected_against_a_stopwatch():
    """A step that sleeps: 0.05 s each, so a picture is half a second, and forty are twenty."""

    def stream(scene, steps):
        time.sleep(0.5)  # what is only done once does not count
        for _ in range(steps):
            time.sleep(0.05)
            yield None

    slow = SimpleNamespace(stream=stream, picture_size=64, device=torch.device("cpu"))
    assert profiles.seconds_per_step(slow) == pytest.approx(0.05, abs=0.02)
    said = profiles.Profile("pocket", "pocket").expect(slow, 40)
    assert said.startswith("profile pocket, 64 x 64 pixels: on this cpu a guided step takes 0.05")
    assert float(said.split()[-2]) == pytest.approx(20, rel=0.4)


def test_what_is_expected_of_the_real_one_is_what_it_takes():
    pipeline = TextToImagePipeline.from_pretrained(zoo.folder("pocket", "text-to-image"))
    step = min(profiles.seconds_per_step(pipeline) for _ in range(3))
    begin = time.perf_counter()
    list(pipeline.stream([profiles.Scene("a house")], steps=profiles.STEPS))
    whole = time.perf_counter() - begin
    assert 0.2 < profiles.STEPS * step / whole < 3
