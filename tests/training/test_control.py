# SPDX-License-Identifier: Apache-2.0
"""Measuring control changes nothing that is trained, and shows when control appears."""

import json
import re
from contextlib import suppress
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from spatext_lab.training import control as module
from spatext_lab.training import log, sizes, trial
from spatext_lab.training.control import averaged, layouts_of
from spatext_lab.training.loop import Trainer
from spatext_lab.training.run import run
from spatext_lab.zoo import shipped
from tests.training import toy

COUNT = 2


@pytest.fixture
def two(monkeypatch, small, request):
    """Two layouts that any judge scores at once: how light an image is."""
    real = module.pocket_layouts

    def layouts(protocol):
        found = real(protocol, COUNT)
        light = lambda images: sum(_light(image) for image in images) / COUNT  # noqa: E731
        return type(found)(found.scenes, light, found.true, found.name)

    monkeypatch.setattr(module, "pocket_layouts", layouts)
    monkeypatch.setattr(module, "JOINT", {"num_inference_steps": 2, "guidance_scale": 2.0})


def _light(image: Image.Image) -> float:
    return float(np.asarray(image).mean() / 255)


def weights(out) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(out.rglob("*.safetensors"))}


@pytest.mark.parametrize("recipe", ["spatext", "reco", "gligen"])
def test_training_is_the_same_to_the_last_bit(tmp_path, two, recipe, capsys, monkeypatch):
    how = {"steps": 4, "device": "cpu"}
    plain = run(recipe, out=tmp_path / "plain", **how)
    capsys.readouterr()
    monkeypatch.setattr(trial, "SMALL", 1)  # count the memory, too
    watched = run(recipe, out=tmp_path / "watched", control=2, **how)
    assert weights(watched) == weights(plain) != {}
    rows = log.read(tmp_path / "watched.checkpoint" / log.FILE)
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert len({row["control"] for row in rows}) > 1
    said = capsys.readouterr().out
    assert "step 4:" in said
    assert re.search(r"expected in main memory: .*, passes \d", said)
    with Image.open(watched / module.PICTURE) as picture:
        assert picture.info["Description"].endswith("against the step of the training.")
    assert not (plain / module.PICTURE).exists()
    assert not (tmp_path / "plain.checkpoint" / log.FILE).exists()
    losses = [json.loads((out / "card.json").read_text())["final_loss"] for out in (plain, watched)]
    assert losses[0] == losses[1]


def test_a_run_that_goes_on_has_the_rows_of_one_that_was_not_stopped(tmp_path, two, monkeypatch):
    how = {"device": "cpu", "control": 2}
    run("spatext", steps=6, out=tmp_path / "whole", **how)
    monkeypatch.setattr(sizes, "MINUTES", -1.0)
    step = Trainer._step

    def stops(self, index):
        if index == 5:
            raise KeyboardInterrupt
        return step(self, index)

    monkeypatch.setattr(Trainer, "_step", stops)
    with pytest.raises(KeyboardInterrupt):
        run("spatext", steps=6, out=tmp_path / "parts", **how)
    monkeypatch.setattr(Trainer, "_step", step)
    run("spatext", steps=6, out=tmp_path / "parts", resume=True, **how)
    tables = [log.read(tmp_path / f"{n}.checkpoint" / log.FILE) for n in ("whole", "parts")]
    same = [[{k: row.get(k) for k in ("step", "loss", "control")} for row in t] for t in tables]
    assert same[0] == same[1]
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_what_is_measured_is_the_average_and_the_weights_come_back():
    job = toy.make(toy.Plan(steps=3, lr=0.1))
    trainer = Trainer(job.module, job.loss_at, job.plan, "cpu")
    list(trainer.run())
    before = [weight.clone() for weight in trainer.weights]
    with suppress(RuntimeError), averaged(trainer):
        pairs = zip(trainer.weights, trainer.ema.shadow_params, strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert not trainer.module.training
        raise RuntimeError("while it samples")
    assert all(torch.equal(a, b) for a, b in zip(trainer.weights, before, strict=True))
    assert trainer.module.training


def test_where_nothing_can_be_measured_it_is_said(tmp_path, capsys):
    job = toy.make(toy.Plan(steps=3, lr=0.1))
    assert layouts_of(replace(job, protocol="segments"), {"data": tmp_path}, None) is None
    assert "photos need --segmenter" in capsys.readouterr().out
    with pytest.raises(ValueError, match="recipes spatext, reco and gligen"):
        layouts_of(job, {}, None)
    with pytest.raises(ValueError, match="pass --control N too"):
        run("spatext", segmenter="judge", out=tmp_path / "a")
    with pytest.raises(ValueError, match="control is 0; pass a number above 0"):
        run("spatext", control=0, out=tmp_path / "a")
    with pytest.raises(ValueError, match=r"lr is -1; pass a number above 0"):
        run("spatext", lr=-1, out=tmp_path / "a")


def test_photos_are_measured_by_a_segmenter(tmp_path, small, monkeypatch):
    """Through `run`, on photos of val2017 that the training does not see."""
    monkeypatch.setattr(module, "JOINT", {"num_inference_steps": 2, "guidance_scale": 2.0})
    monkeypatch.setattr(module, "photo_layouts", partial(module.photo_layouts, count=COUNT))
    how = {"steps": 2, "control": 2, "segmenter": "judge", "cache": tmp_path / "cache"}
    out = run("spatext", data=shipped("pocket-coco"), out=tmp_path / "a", device="cpu", **how)
    rows = log.read(tmp_path / "a.checkpoint" / log.FILE)
    assert [row["step"] for row in rows] == [0, 2]
    assert all(0 <= row["control"] <= 1 for row in rows)
    assert (out / module.PICTURE).is_file()
