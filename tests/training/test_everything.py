# SPDX-License-Identifier: Apache-2.0
"""All models by one command: order, times, interruption, failure, and the same bits again."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

from spatext_lab import zoo
from spatext_lab.training import checkpoint, everything, sizes
from spatext_lab.training import run as run_module
from spatext_lab.training.everything import (
    PHOTO_STAGES,
    STAGES,
    Stage,
    expected_hours,
    is_complete,
    is_interrupted,
    train_all,
)
from spatext_lab.training.recipes import RECIPES
from tests.photos import photo_folder

CHEAP = ("autoencoder", "decoder")


@pytest.mark.parametrize("stages", [STAGES, PHOTO_STAGES])
def test_a_stage_comes_after_what_it_needs(stages):
    seen = set()
    for stage in stages:
        assert set(stage.parts.values()) <= seen
        assert set(stage.parts) <= set(stage.job.options)
        assert "data" in stage.job.options or stages is STAGES
        assert set(stage.given) <= set(stage.job.options)
        seen.add(stage.name)


def test_every_folder_of_the_shipped_model_has_a_stage():
    shipped = {path.parent.name for path in zoo.folder("pocket").glob("*/card.json")}
    assert shipped
    assert shipped <= {stage.name for stage in STAGES}


def test_a_gpu_has_its_own_steps_and_batch(tmp_path, monkeypatch):
    """Steps and batch of the recipe's `gpu`, on the command line of the run and for the record."""
    (stage,) = (s for s in STAGES if s.name == "spatext")
    on_gpu, budget = replace(stage, on_gpu=True), stage.job.gpu
    assert (stage.steps(None), on_gpu.steps(None)) == (stage.job.plan.steps, budget["steps"])
    assert on_gpu.steps(5) == 5
    lines = []

    class Noted(subprocess.Popen):
        def __init__(self, words, **_) -> None:
            lines.append(words)

    monkeypatch.setattr(everything.subprocess, "Popen", Noted)
    for each in (stage, on_gpu):
        everything._start(each, tmp_path, None, "cpu")
    batch = ["--batch", str(budget["batch"])]
    assert not set(batch) & set(lines[0])
    assert lines[1][lines[1].index("--batch") :][:2] == batch
    assert lines[1][lines[1].index("--steps") + 1] == str(budget["steps"])


def test_photos_have_a_plan_of_their_own(tmp_path, capsys):
    """Steps, base, data and licences are the run's; it is not taken for one of pocket scenes."""
    data = photo_folder(tmp_path / "photos")
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match=r"has no complete clip; train them too"):
        train_all(out, only=["prior"], data=data, device="cpu")
    with pytest.raises(ValueError, match=r"licences chooses photos; pass the folder"):
        train_all(out, only=["clip"], licences=[4], device="cpu")
    settings = {"data": data, "licences": [4, 7], "min_area": 0.1, "steps": 1, "device": "cpu"}
    assert train_all(out, only=["autoencoder"], **settings) == []
    facts = json.loads((out / "autoencoder" / "card.json").read_text())
    assert facts["given"] == {
        "base": "pocket",
        "data": "photos",
        "licences": [4, 7],
        "min_area": 0.1,
    }
    assert facts["plan"]["lr"] == RECIPES["autoencoder"].photos.lr
    assert (out / everything.overview.INDEX).is_file()
    assert not (out / everything.overview.COMPARED).exists()
    capsys.readouterr()
    assert train_all(out, only=["autoencoder"], **settings) == []
    assert "0 models" in capsys.readouterr().out
    assert not is_complete(PHOTO_STAGES[0], out, 1)
    stage = replace(PHOTO_STAGES[0], photos={"data": data, "licences": None}, on_gpu=True)
    assert stage.steps(None) == RECIPES["autoencoder"].photos_gpu["steps"]
    assert replace(stage, on_gpu=False).steps(None) == RECIPES["autoencoder"].photos.steps


class Timed(Stage):
    """A stage of known length."""

    def hours(self, most):
        return float(self.recipe)


@pytest.mark.parametrize(("workers", "hours"), [(1, 10.0), (2, 6.0), (9, 6.0)])
def test_the_expected_time_is_that_of_the_schedule(workers, hours):
    """By hand: a row of 1 and 5 hours, one of 2 and 2 beside it, and an hour that needs both."""
    first = Timed("a", recipe="1"), Timed("b", {"vae": "a"}, "5")
    second = Timed("c", recipe="2"), Timed("d", {"vae": "c"}, "2")
    assert expected_hours([*first, *second], workers) == hours
    last = Timed("e", {"vae": "b", "clip": "d"}, "1")
    assert expected_hours([*first, *second, last], workers) == hours + 1


def test_a_short_chain_twice_gives_the_same_bits(tmp_path, capsys):
    """Once by one command, once run by run."""
    assert train_all(tmp_path / "a", only=CHEAP, steps=2, device="cpu") == []
    for stage, parts in (("autoencoder", {}), ("decoder", {"vae": tmp_path / "b" / "autoencoder"})):
        run_module.run(stage, steps=2, out=tmp_path / "b" / stage, device="cpu", **parts)
    for stage in CHEAP:
        weights = f"{stage}/diffusion_pytorch_model.safetensors"
        assert (tmp_path / "a" / weights).read_bytes() == (tmp_path / "b" / weights).read_bytes()
    page = (tmp_path / "a" / everything.overview.INDEX).read_text()
    assert page.count("<article>") == page.count("data:image/png") == len(CHEAP)
    capsys.readouterr()
    assert train_all(tmp_path / "a", only=CHEAP, steps=2, device="cpu") == []
    assert "0 models" in capsys.readouterr().out
    damaged = tmp_path / "a" / "decoder" / "diffusion_pytorch_model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model.safetensors is damaged"):
        train_all(tmp_path / "a", only=CHEAP, steps=2, device="cpu")


def test_the_page_has_each_models_scores(tmp_path, monkeypatch):
    """Those of its card; where it has none, the comparison's."""
    facts = json.loads((zoo.folder("pocket") / "judge" / "card.json").read_text(encoding="utf-8"))
    for name in ("judge", "spatext", "clip"):
        (tmp_path / name).mkdir()
        known = {"scores": {"local iou": 0.9749}} if name == "judge" else {"scores": {}}
        (tmp_path / name / "card.json").write_text(json.dumps(facts | known), encoding="utf-8")
    row = {"method": "spatext", "local_iou": 0.91, "local_iou_95": [0.9, 0.92], "ap50": None}
    monkeypatch.setattr(everything.overview, "compare", lambda *_, **__: {"rows": [row]})
    page = everything.overview.write(tmp_path, ["judge", "spatext", "clip"]).read_text()
    judge, spatext, clip = page.split("<article>")[1:]
    assert "<dt>local iou</dt><dd>0.9749</dd>" in judge
    assert "<dt>local IoU</dt><dd>0.910 [0.900, 0.920]</dd>" in spatext
    assert "<dl>" not in clip


def test_what_fails_is_named_and_what_needs_it_left_out(tmp_path, capsys):
    (tmp_path / "autoencoder").mkdir()
    (tmp_path / "autoencoder" / "mine.txt").write_text("not a model")
    failed = train_all(tmp_path, only=("autoencoder", "decoder"), steps=1, device="cpu")
    assert failed == ["autoencoder", "decoder"]
    said = capsys.readouterr().out
    assert "autoencoder: failed: " in said
    assert "is not a model of the recipe autoencoder" in said
    assert "decoder: left out, it needs autoencoder" in said
    assert not (tmp_path / everything.overview.INDEX).exists()


def test_a_chain_that_was_stopped_goes_on_to_the_same_bits(tmp_path, monkeypatch, capsys):
    """Stopped after a checkpoint; then the command of the whole chain."""
    run_module.run("judge", steps=4, out=tmp_path / "whole" / "judge", device="cpu")
    save = checkpoint.save

    def stop(trainer, *args):
        save(trainer, *args)
        if trainer.done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(sizes, "MINUTES", -1.0)
    monkeypatch.setattr(checkpoint, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        run_module.run("judge", steps=4, out=tmp_path / "cut" / "judge", device="cpu")
    stage = next(stage for stage in STAGES if stage.name == "judge")
    assert is_interrupted(stage, tmp_path / "cut", 4)
    assert not is_interrupted(stage, tmp_path / "cut", 5)
    assert not is_complete(stage, tmp_path / "cut", 4)
    capsys.readouterr()
    assert train_all(tmp_path / "cut", only=["judge"], steps=4, device="cpu") == []
    assert "judge: continued" in capsys.readouterr().out
    assert is_complete(stage, tmp_path / "cut", 4)
    weights = "judge/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "cut" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_terminated_chain_leaves_no_run_behind(tmp_path):
    code = "from spatext_lab.cli.parser import main; raise SystemExit(main())"
    words = ["train", "all", "--only", "judge", "--device", "cpu", "--out", str(tmp_path / "out")]
    process = subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.PIPE)
    log, end = tmp_path / "out" / "judge.log", time.monotonic() + 120
    while not (log.is_file() and "judge: " in log.read_text()) and time.monotonic() < end:
        time.sleep(0.1)
    (run,) = psutil.Process(process.pid).children()
    process.terminate()
    assert process.wait(timeout=60) == 130
    assert b"the same command continues" in process.stderr.read()
    assert not run.is_running()


def test_wrong_input_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"only is 'spatxt'; there are autoencoder, decoder, "):
        train_all(tmp_path, only=["spatxt"])
    with pytest.raises(FileNotFoundError, match=r"has no complete clip, prior, text-to-image; "):
        train_all(tmp_path, only=["spatext"])
