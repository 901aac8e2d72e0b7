# SPDX-License-Identifier: Apache-2.0
"""A stopped run goes on to the last bit, and a stop while saving loses nothing."""

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from spatext_lab.training import checkpoint
from spatext_lab.training.loop import Trainer
from spatext_lab.training.plan import Plan
from tests.training import toy

NODE = platform.node()
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
    with pytest.raises(
        ValueError, match=rf"{next(iter(change))} is .*; the run in .* has .*: pass the same"
    ):
        checkpoint.load(trainer(replace(PLAN, **change)), tmp_path / "saved")


def test_a_plan_of_an_earlier_version_is_refused(tmp_path, monkeypatch):
    """`rates` was once `slower`."""
    plan = lambda plan: {"slower" if k == "rates" else k: v for k, v in asdict(plan).items()}  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "asdict", plan)
        checkpoint.save(run_to(trainer(), 3), tmp_path / "saved")
    with pytest.raises(ValueError, match=r"earlier version, its plan has slower: start without"):
        checkpoint.load(trainer(), tmp_path / "saved")


@pytest.mark.parametrize("steps", [12, 40])
def test_under_a_constant_rate_a_run_can_be_made_shorter_or_longer(tmp_path, steps):
    """It is then, to the last bit, the run that had so many steps from the first."""
    plan = replace(PLAN, cooldown=4, rates={"second": 0.5})
    checkpoint.save(run_to(trainer(plan), 8), tmp_path / "saved")
    other = replace(plan, steps=steps)
    again = trainer(other)
    checkpoint.load(again, tmp_path / "saved")
    assert_same(run_to(again, steps), run_to(trainer(other), steps))


def test_a_run_that_would_have_cooled_down_by_now_is_refused(tmp_path):
    plan = replace(PLAN, cooldown=4)
    checkpoint.save(run_to(trainer(plan), 10), tmp_path / "saved")
    with pytest.raises(ValueError, match=r"steps is 12; the run in .* has 24"):
        checkpoint.load(trainer(replace(plan, steps=12)), tmp_path / "saved")


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
    (os, "chmod"),
    (shutil, "rmtree"),
    (Path, "touch"),
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


@pytest.mark.parametrize("number", range(9))
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


# --- damage, other runs, other writers ------------------------------------------------------------

MADE = {"recipe": "toy", "shape": "line", "data": "f00d"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    checkpoint.save(run_to(trainer(), 3), folder, MADE)
    return folder


def test_every_flipped_bit_is_found(saved, tmp_path):
    """In the header, in the record, in the numbers: each is refused, with the file's name."""
    whole = (saved / checkpoint.FILE).read_bytes()
    path = tmp_path / checkpoint.FILE
    for place in range(0, len(whole), len(whole) // 60):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=rf"{path} is damaged.*; start without --resume"):
            checkpoint.load(trainer(), tmp_path, MADE)


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_checkpoint_is_named(saved, tmp_path, part):
    whole = (saved / checkpoint.FILE).read_bytes()
    (tmp_path / checkpoint.FILE).write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(ValueError, match=f"{checkpoint.FILE} is damaged"):
        checkpoint.load(trainer(), tmp_path, MADE)


@pytest.mark.parametrize("metadata", [None, {}, {"record": "{}"}, {"record": "{", "sha256": "0"}])
def test_another_safetensors_file_is_not_a_checkpoint(tmp_path, metadata):
    save_file({"a": torch.zeros(3)}, tmp_path / checkpoint.FILE, metadata)
    with pytest.raises(ValueError, match="damaged or not a checkpoint"):
        checkpoint.load(trainer(), tmp_path, MADE)


@pytest.mark.parametrize("name", MADE)
def test_another_run_is_refused_by_name(saved, name):
    match = f"{name} is 'other'; the run in .* has '{MADE[name]}': pass the same"
    with pytest.raises(ValueError, match=match):
        checkpoint.load(trainer(), saved, MADE | {name: "other"})


def test_other_shapes_are_refused(saved):
    other = trainer()
    other.weights[0] = torch.nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"has no weight.0 of shape \(2, 2\)"):
        checkpoint.load(other, saved, MADE)


def test_a_fresh_start_sets_the_old_state_aside(saved, tmp_path):
    shutil.copytree(saved, folder := tmp_path / "again")
    checkpoint.set_aside(folder)
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        checkpoint.load(trainer(), folder, MADE)
    assert (folder / checkpoint.EARLIER).read_bytes() == (saved / checkpoint.FILE).read_bytes()


def test_a_disk_that_is_full_is_an_error_with_a_name_and_keeps_the_old(saved, tmp_path):
    """A file may have 600 bytes here, and the state has more."""
    shutil.copytree(saved, folder := tmp_path / "full")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
    try:
        with pytest.raises(OSError, match=r"state\.safetensors"):
            checkpoint.save(trainer(), folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in folder.iterdir()] == [checkpoint.FILE]
    checkpoint.load(trainer(), folder, MADE)


def test_a_second_writer_is_refused_while_the_first_runs(tmp_path):
    with checkpoint.writing(tmp_path / "c"):
        with pytest.raises(ValueError, match=rf"written by process {os.getpid()} of .* since "):  # noqa: SIM117
            with checkpoint.writing(tmp_path / "c"):
                pass
        assert (tmp_path / "c" / checkpoint.LOCK).exists()
    assert list(tmp_path.iterdir()) == []
    with checkpoint.writing(tmp_path / "c"):
        pass


@pytest.mark.parametrize("left", ["ended", "recycled", "half"])
def test_the_lock_of_a_killed_run_is_taken_over(tmp_path, left):
    lock = tmp_path / checkpoint.LOCK
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    number = ended.pid if left == "ended" else os.getpid()  # in a container, numbers come again
    lock.write_text("{" if left == "half" else json.dumps({"process": number, "host": NODE}))
    if left != "ended":
        os.utime(lock, (0, 0))
    with checkpoint.writing(tmp_path):
        assert json.loads(lock.read_text())["process"] == os.getpid()


def test_a_lock_of_another_computer_is_respected(tmp_path):
    (tmp_path / checkpoint.LOCK).write_text(json.dumps({"process": 1, "host": "elsewhere"}))
    with pytest.raises(ValueError, match="of elsewhere"), checkpoint.writing(tmp_path):
        pass


def test_a_fingerprint_is_of_what_is_read(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "annotations").mkdir(parents=True)
        (tmp_path / name / "annotations" / "x.json").write_text("{}")
        (tmp_path / name / "1.png").write_bytes(b"123")
    first = checkpoint.fingerprint(tmp_path / "a")
    assert checkpoint.fingerprint(tmp_path / "b") == first
    (tmp_path / "b" / "annotations" / "x.json").write_text("[]")
    second = checkpoint.fingerprint(tmp_path / "b")
    (tmp_path / "b" / "2.png").write_bytes(b"1")
    assert len({first, second, checkpoint.fingerprint(tmp_path / "b")}) == 3
