# SPDX-License-Identifier: Apache-2.0
"""Two processes under torchrun against one: the same curve, one writer, an end when one dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from spatext_lab.cli.parser import main
from spatext_lab.training import checkpoint, peers, processes, recipes
from spatext_lab.training import run as run_module
from spatext_lab.training.loop import Trainer
from spatext_lab.training.plan import Plan
from spatext_lab.training.run import run
from tests.training import toy
from tests.training.several import ACCUMULATE, RECIPES, STEPS, STOP

ROOT = Path(__file__).parents[2]
PATHS = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(autouse=True)
def recipe(monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, "toy", None)  # taken out again afterwards
    toy.install()


@dataclass
class Launched:
    """What two processes have left."""

    out: Path
    stdout: str
    stderr: str
    code: int
    ended: float

    def reports(self) -> list[dict]:
        """What each process has found."""
        return [json.loads((self.out / f"report-{k}.json").read_text()) for k in (0, 1)]

    def said(self) -> list[str]:
        """The lines in which the program says why it ends."""
        return [line for line in self.stderr.splitlines() if line.startswith("spatext-lab:")]


@pytest.fixture(scope="module")
def two(root, tmp_path_factory) -> Launched:
    """One launch for all that needs one, for it takes seconds."""
    out = tmp_path_factory.mktemp("two")
    (out / "elsewhere").mkdir()
    stopped_by_one(out / "one-two")
    words = ["torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    words += ["-m", "tests.training.several", root, out]
    process = subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        cwd=ROOT,
        env=os.environ | PATHS,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return Launched(out, process.stdout, process.stderr, process.returncode, time.time())


def stopped_by_one(out: Path) -> None:
    """The checkpoint of one process's run after STOP steps."""
    toy.install()
    made = run_module._made(recipes.RECIPES["toy"], {})
    one = trainer()
    for step in one.run():
        if step.index + 1 == STOP:
            checkpoint.save(one, out.with_name(f"{out.name}.checkpoint"), made)
            break


def trainer() -> Trainer:
    plan = Plan(steps=STEPS, lr=0.01, warmup=5, accumulate=ACCUMULATE)
    job = toy.make(plan)
    return Trainer(job.module, job.loss_at, plan, "cpu")


def curve(out: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """A run's losses, and its weights, averages and moments, in single precision."""
    folder = out.with_name(f"{out.name}.checkpoint")
    numbers = load_file(folder / checkpoint.FILE)
    numbers = {name: each for name, each in numbers.items() if "buffer" not in name}
    return checkpoint.record(folder)["losses"], numbers


def assert_same_run(one: Path, other: Path) -> None:
    (losses, numbers), (others, other_numbers) = curve(one), curve(other)
    assert len(losses) == STEPS
    assert_close(losses, others, atol=1e-5, rtol=0)
    assert_close(numbers, other_numbers, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_are_one(two, small, as_for_users, tmp_path, name):
    alone = tmp_path / name
    run(name, steps=STEPS, out=alone, device="cpu", **RECIPES[name])
    assert_same_run(two.out / name, alone)


def test_one_begins_and_two_go_on(two, tmp_path):
    """Nothing says how many micro-batches: as many as the run had that is continued."""
    run("toy", steps=STEPS, out=tmp_path / "toy", device="cpu", accumulate=ACCUMULATE)
    assert_same_run(two.out / "one-two", tmp_path / "toy")


def test_two_begin_are_stopped_and_one_goes_on(two, tmp_path):
    first, second = two.reports()
    stopped = f"stopped after step {STOP}; --resume continues "
    assert first["stop"] == f"{stopped}after step {STOP}"
    assert second["stop"] == f"{stopped}from the checkpoint of process 0"
    assert first["handler"]
    assert second["handler"]
    out = two.out / "two-one"
    run("toy", steps=STEPS, out=out, device="cpu", resume=True)
    run("toy", steps=STEPS, out=tmp_path / "toy", device="cpu", accumulate=ACCUMULATE)
    assert_same_run(out, tmp_path / "toy")


def test_one_process_writes_and_prints(two):
    lines = two.stdout.splitlines()
    for name, given in RECIPES.items():
        accumulate = given["accumulate"]
        size = f"{accumulate} x 4 images" if "batch" in given else f"{accumulate} micro-batches"
        first = [line for line in lines if line.endswith(f"result in {name}")]
        assert len(first) == 1
        assert first[0].startswith(f"{name}: {STEPS} steps of {size} on 2 processes (CPU), about")
        card = json.loads((two.out / name / "card.json").read_text())
        assert card["plan"]["accumulate"] == accumulate
        assert card["hardware"].startswith("2 x CPU")
        assert f"--accumulate {accumulate}" in (two.out / name / "README.md").read_text()
    assert len(lines) == len(set(lines))
    made = {path.name for path in two.out.iterdir() if path.is_dir()}
    folders = {*RECIPES, "one-two", "two-one", "plain", "dead"}
    assert made <= folders | {f"{name}.checkpoint" for name in folders} | {"elsewhere"}
    assert list((two.out / "elsewhere").iterdir()) == []
    assert not [path for path in two.out.rglob("*") if path.name == checkpoint.LOCK]


def test_what_cannot_be_shared_is_refused_by_all(two):
    for report in two.reports():
        few, unlike = report["refused"]
        assert few == "accumulate is 3, for 2 processes; pass a multiple of their number"
        assert unlike.startswith("slope is not the same in process 1 on ")


def test_when_one_dies_the_other_says_so_and_ends(two):
    assert two.code != 0
    killed = float((two.out / "killed").read_text())
    assert two.ended - killed < 30
    (line,) = two.said()
    assert line == (
        "spatext-lab: process 1 has ended; stopped after step 50; --resume continues after step 50"
    )
    plan = Plan(steps=100_000, lr=0.01, warmup=5, accumulate=2)
    record, _ = checkpoint.check(two.out / "dead.checkpoint", plan)  # whole
    assert record["done"] == 50


# --- without torchrun -----------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def test_a_process_that_does_not_come_is_said_in_one_line():
    port = free_port()
    code = "from datetime import timedelta; from spatext_lab.training import processes as p; "
    code += "p.START = timedelta(seconds=1); p.join('cpu')"
    told = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    told |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | PATHS | told,
        capture_output=True,
        text=True,
        timeout=300,
    )
    last = process.stderr.strip().splitlines()[-1]
    assert last.startswith("ConnectionError: not all 2 processes have come in 1 s. Is the same")
    assert f"can each reach localhost:{port}?" in last


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"4 processes were started .* has 2 GPUs: start one for"):
        processes.join("auto")


def test_accelerate_that_has_started_one_process_of_several_is_named(monkeypatch):
    """What `accelerate launch --cpu --num_processes 2` sets, and no WORLD_SIZE."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(ValueError, match=r"has started 1 process, .* use torchrun"):
        processes.join("cpu")


@pytest.mark.parametrize("words", ["train all", "evaluate --method spatext", "doctor"])
def test_commands_that_cannot_be_shared_are_refused_once(monkeypatch, capsys, words):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert main(words.split()) == 2
        said = capsys.readouterr().err
        assert said.count("torchrun shares out the work of train RECIPE alone") == lines
        with pytest.raises(SystemExit, match="2"):
            main(["train", "nothing"])
        assert ("invalid choice" in capsys.readouterr().err) == bool(lines)


@pytest.mark.parametrize(("accumulate", "count"), [(1, 1), (6, 1), (6, 2), (6, 3), (6, 6)])
def test_each_micro_batch_is_computed_once(monkeypatch, accumulate, count):
    monkeypatch.setenv("WORLD_SIZE", str(count))
    shares = []
    for rank in range(count):
        monkeypatch.setenv("RANK", str(rank))
        shares.append(processes.share(accumulate))
    assert [number for share in shares for number in share] == list(range(accumulate))
    assert len({len(share) for share in shares}) == 1


def test_a_second_signal_does_not_interrupt_the_end(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        said = pytest.raises(KeyboardInterrupt, match="another process has ended, or torchrun was")
        with said, peers.ending_once():
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
