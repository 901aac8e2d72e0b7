# SPDX-License-Identifier: Apache-2.0
"""What the processes of `test_processes.py` do under torchrun: runs, a stop, and a death."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from spatext_lab.cli.parser import main
from spatext_lab.training import launch, sizes
from spatext_lab.training import run as module
from spatext_lab.training.job import Job
from tests.training import toy

STEPS, ACCUMULATE, STOP = 20, 4, 8
RECIPES = {
    "toy": {"accumulate": ACCUMULATE},
    "spatext": {"accumulate": 2, "batch": 4},
    "reco": {"accumulate": 2, "batch": 4},
}
original = toy.make


def make(plan, device, **given) -> Job:
    """The toy, but in the second process from other weights: all must get those of the first."""
    job = original(plan, device, **given)
    for weight in job.module.parameters():
        weight.data.add_(launch.rank())
    return job


def signals(when: Callable[[int], bool], number: signal.Signals, mark: Path | None = None):
    """A recipe in which a process sends itself a signal at a micro-batch of its share."""

    def made(plan, device, **given) -> Job:
        job = make(plan, device, **given)

        def loss_at(n, generator):
            if when(n // plan.accumulate):
                if mark:
                    mark.write_text(str(time.time()))
                os.kill(os.getpid(), number)
            return job.loss_at(n, generator)

        return Job(job.module, loss_at, job.save, job.plan, job.data)

    return made


def refusals() -> list[str]:
    """What is said of runs that cannot be shared out, to every process alike."""
    said = []
    for given in ({"accumulate": 3}, {"slope": float(launch.rank())}):
        try:
            module.run("toy", steps=3, out=Path("refused"), device="cpu", **given)
        except ValueError as error:
            said.append(str(error))
    return said


def share(reports: Path) -> None:
    """All that two processes do and live."""
    report = {"refused": refusals()}
    for name, given in RECIPES.items():
        module.run(name, steps=STEPS, out=Path(name), device="cpu", **given)
    sizes.MINUTES = -1.0  # after every step
    module.run("toy", steps=STEPS, out=Path("one-two"), device="cpu", resume=True)
    toy.make = signals(lambda step: step == STOP, signal.SIGINT)
    try:
        module.run("toy", steps=STEPS, out=Path("two-one"), device="cpu", accumulate=ACCUMULATE)
    except KeyboardInterrupt as stop:
        report["stop"] = str(stop)
    before = signal.getsignal(signal.SIGTERM)
    toy.make = make
    module.run("toy", steps=1, out=Path("plain"), device="cpu")
    report["handler"] = signal.getsignal(signal.SIGTERM) == before
    (reports / f"report-{launch.rank()}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    root, out = map(Path, sys.argv[1:])
    os.chdir(out / ["", "elsewhere"][launch.rank()])  # as on two machines: no shared disk
    # here, for a process of pytest's has it all imported before
    from tests.training.small import shrink

    shrink(pytest.MonkeyPatch(), root)
    toy.install()
    toy.make = make
    share(out)
    toy.make = signals(lambda s: launch.rank() == 1 and s == 50, signal.SIGKILL, out / "killed")
    raise SystemExit(
        main(["train", "toy", "--out", "dead", "--device", "cpu", "--steps", "100000"])
    )
