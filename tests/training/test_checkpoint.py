# SPDX-License-Identifier: Apache-2.0
"""A stopped run goes on to the last bit, and a stop while saving loses nothing."""

import json
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from spatext_lab.training import checkpoint
from spatext_lab.training.loop import Plan, Trainer
from tests.training import toy

PLAN = Plan(steps=24, lr=0.02, warmup=5)


def trainer(plan: Plan = PLAN) -> Trainer:
    job = toy.make(plan)
    return Trainer(job.module, job.loss_at, plan, "cpu")


def run_to(run: Trainer, done: int) -> Trainer:
    for _ in run.run():
        if run.done == done:
            break
    return run


def everything(run: Trainer) -> dict[str, torch.Tensor]:
    """All numbers of a run."""
    state = run.optimizer.state_dict()["state"]
    tensors = {f"state {k}": v for k, v in run.module.state_dict().items()}
    tensors |= {f"average {i}": v for i, v in enumerate(run.ema.shadow_params)}
    return tensors | {f"{name} {i}": v for i, row in state.items() for name, v in row.items()}


def assert_same(a: Trainer, b: Trainer) -> None:
    one, two = everything(a), everything(b)
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    assert (a.done, a.losses) == (b.done, b.losses)


@pytest.mark.parametrize("stop", [1, 5, 23, 24])
def test_a_resumed_run_is_the_unbroken_one_to_the_last_bit(tmp_path, stop):
    whole = run_to(trainer(), PLAN.steps)
    checkpoint.save(run_to(trainer(), stop), tmp_path / "saved")
    again = trainer()
    for weight in again.weights:  # whatever stands there before is replaced
        weight.data.add_(1)
    checkpoint.load(again, tmp_path / "saved")
    assert again.done == stop
    assert_same(run_to(again, PLAN.steps), whole)


def test_saving_changes_nothing(tmp_path):
    whole, watched = run_to(trainer(), PLAN.steps), trainer()
    for _ in watched.run():
        checkpoint.save(watched, tmp_path / "saved")
    assert_same(watched, whole)


def test_a_later_checkpoint_replaces_an_earlier_one(tmp_path):
    run = run_to(trainer(), 3)
    checkpoint.save(run, tmp_path / "saved")
    checkpoint.save(run_to(run, 9), tmp_path / "saved")
    again = trainer()
    checkpoint.load(again, tmp_path / "saved")
    assert_same(again, run)
    assert again.seconds == run.seconds > 0
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_a_checkpoint_is_safetensors_and_json(tmp_path):
    checkpoint.save(run_to(trainer(), 3), tmp_path / "saved")
    assert {path.suffix for path in (tmp_path / "saved").iterdir()} <= {".safetensors", ".json"}
    for path in (tmp_path / "saved").iterdir():
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            with safe_open(path, "pt") as tensors:
                assert list(tensors.keys())


@pytest.mark.parametrize("change", [{"steps": 25}, {"seed": 1}, {"lr": 0.03}, {"warmup": 6}])
def test_another_plan_is_refused(tmp_path, change):
    checkpoint.save(run_to(trainer(), 3), tmp_path / "saved")
    with pytest.raises(ValueError, match=r"plan is .* give the same steps and seed"):
        checkpoint.load(trainer(replace(PLAN, **change)), tmp_path / "saved")


def test_where_nothing_was_saved(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no checkpoint; start without --resume"):
        checkpoint.load(trainer(), tmp_path / "saved")


class Killed(Exception):
    """Stands for the moment at which a process is killed."""


CHANGES = [
    (os, "rename"),
    (os, "replace"),
    (os, "unlink"),
    (os, "rmdir"),
    (os, "mkdir"),
    (shutil, "rmtree"),
    (Path, "write_text"),
    (checkpoint, "save_file"),
]


def kill_at(monkeypatch, number: int) -> None:
    """The `number`-th change of the disk from now on does not happen, and nothing after it; of a
    file that is being written, half is there."""
    left = [number]

    def watched(change):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                if change is save_file:
                    save_file(*args, **kwargs)
                    os.truncate(args[1], args[1].stat().st_size // 2)
                raise Killed
            return change(*args, **kwargs)

        return call

    for place, name in CHANGES:
        if hasattr(place, name):
            monkeypatch.setattr(place, name, watched(getattr(place, name)))


@pytest.mark.parametrize("number", range(5))
def test_a_kill_while_saving_leaves_the_old_checkpoint_or_the_new_one(
    tmp_path, monkeypatch, number
):
    run = run_to(trainer(), 3)
    checkpoint.save(run, tmp_path / "saved")
    run_to(run, 9)
    with monkeypatch.context() as patch:
        kill_at(patch, number)
        with suppress(Killed):
            checkpoint.save(run, tmp_path / "saved")
    again = trainer()
    checkpoint.load(again, tmp_path / "saved")
    assert again.done in (3, 9)
    assert_same(run_to(again, PLAN.steps), run_to(trainer(), PLAN.steps))
    checkpoint.save(again, tmp_path / "saved")  # what the kill left behind is in nobody's way
    fresh = trainer()
    checkpoint.load(fresh, tmp_path / "saved")
    assert fresh.done == PLAN.steps
