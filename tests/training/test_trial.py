# SPDX-License-Identifier: Apache-2.0
"""What a run says of its memory and time, and what it advises where memory is not enough."""

import re

import pytest
import torch

from spatext_lab.cli.parser import main
from spatext_lab.training import memory, recipes, trial
from spatext_lab.training import run as run_module
from spatext_lab.training.loop import Step, Trainer
from spatext_lab.training.plan import Plan
from spatext_lab.training.run import run
from tests.training import toy

KEPT = memory.Memory(2**30, 0, 2**30, 2 * 2**30, 2**30, 4 * 2**30)


@pytest.fixture(autouse=True)
def recipe(monkeypatch):
    monkeypatch.setattr(recipes, "RECIPES", recipes.RECIPES)
    monkeypatch.setitem(recipes.RECIPES, "toy", None)  # taken out again afterwards
    toy.install()


def test_memory_and_time_are_said_and_the_result_is_the_same(tmp_path, monkeypatch, capsys):
    plain = run("toy", steps=12, out=tmp_path / "plain", device="cpu")
    assert "expected" not in capsys.readouterr().out  # a small model fits everywhere
    monkeypatch.setattr(trial, "SMALL", 1)
    said = run("toy", steps=12, out=tmp_path / "said", device="cpu")
    out = capsys.readouterr().out
    assert "trained: the network, 0.0 of 0.0 million weights" in out
    assert "expected in main memory: 0.0 GiB: weights 0.0, others 0.0, gradients 0.0" in out
    assert re.search(r"trial: 0\.\d\d s a step; 9 more take 0\.0 h\n", out)
    names = [f"{each}/line.safetensors" for each in ("plain", "said")]
    assert len({(tmp_path / name).read_bytes() for name in names}) == 1
    assert plain != said


def out_of_memory(step, generator):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_out_of_memory_says_what_to_change_in_this_order(tmp_path, monkeypatch, capsys):
    make = toy.make

    def breaks(plan, device, **given):
        job = make(plan, device, **given)
        loss_at = lambda n, g: (out_of_memory if n == 2 else job.loss_at)(n, g)  # noqa: E731
        return type(job)(job.module, loss_at, job.save, job.plan, job.data)

    monkeypatch.setattr(toy, "make", breaks)
    monkeypatch.setattr(run_module, "_batch", lambda recipe, given: 8)
    monkeypatch.setattr(trial.memory, "expected", lambda *args, **how: KEPT)
    held = iter([KEPT.passes - 3 * 2**30])
    monkeypatch.setattr(trial.Trial, "_checkpointed", lambda self: next(held))
    monkeypatch.setattr(trial, "_moments", lambda trainer: 2**29)
    monkeypatch.setattr(trial, "has_8bit", lambda: False)
    words = ["train", "toy", "--device", "cpu", "--out", str(tmp_path / "toy")]
    assert main([*words, "--accumulate", "2"]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("spatext-lab:")]
    assert line.removeprefix("spatext-lab: ") == (
        "the GPU's memory is not enough for about 9.0 GiB, in step 1; pass "
        "--batch 4 --accumulate 4 (2.0 GiB less, about as slow); "
        "--checkpointing on (3.0 GiB less, a third slower); --average cpu (1.0 GiB less); "
        "--adamw 8bit (1.5 GiB less, after python -m pip install bitsandbytes)"
    )


class _Device:
    type = "cuda"


class _Accelerator:
    device, mixed_precision = _Device(), "bf16"


def _trainer(plan: Plan) -> Trainer:
    """On a GPU that is not there."""
    job = toy.make(plan)
    trainer = Trainer(job.module, job.loss_at, plan, "cpu")
    trainer.accelerator = _Accelerator()
    return trainer


@pytest.mark.parametrize(("gib", "warned"), [(9.0, ""), (9.8, ""), (10.8, "+20%"), (7.2, "-20%")])
def test_the_trial_compares_with_what_the_gpu_had(monkeypatch, capsys, gib, warned):
    monkeypatch.setattr(trial, "SMALL", 1)
    monkeypatch.setattr(trial.memory, "expected", lambda *args, **how: KEPT)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: gib * 2**30)
    seen = trial.Trial(_trainer(Plan(steps=103, lr=1.0)))
    for index, seconds in enumerate((50.0, 60.0, 70.0, 80.0)):
        seen.trainer.done = index + 1
        seen(Step(index, 0.1, seconds))
    said = capsys.readouterr().out
    assert "expected on the GPU: 9.0 GiB" in said
    assert f"trial: 10.00 s a step; 100 more take 0.3 h; {gib:.1f} GiB at most\n" in said
    assert ("warning" in said) == bool(warned)
    assert warned in said


def test_the_last_resort_is_a_smaller_base(monkeypatch):
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    seen = trial.Trial(_trainer(Plan(steps=3, lr=1.0)), batch=1)
    seen.trainer.plan = Plan(steps=3, lr=1.0, checkpointing=True, average="cpu", adamw="8bit")
    assert seen.advice().endswith("pass a smaller base: there is nothing left to save")


def test_what_cannot_be_counted_is_no_reason_to_stop(tmp_path, monkeypatch, capsys):
    def fails(*args, **how):
        raise RuntimeError("no fake tensor")

    monkeypatch.setattr(trial, "SMALL", 1)
    monkeypatch.setattr(trial.memory, "expected", fails)
    run("toy", steps=4, out=tmp_path / "toy", device="cpu")
    said = capsys.readouterr().out
    assert "the memory of a step cannot be counted (no fake tensor)" in said
    assert "trial: 0.0" in said
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    seen = trial.Trial(_trainer(Plan(steps=3, lr=1.0)), batch=1)
    assert seen.advice() == (
        "the GPU's memory is not enough, in step 0; pass a smaller --batch with a larger "
        "--accumulate, then --checkpointing on, --average cpu and --adamw 8bit"
    )
