# SPDX-License-Identifier: Apache-2.0
"""`spatext-lab train all`: every shipped model, in the order in which they need each other."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Unpack

from spatext_lab import zoo
from spatext_lab.datasets.coco import PhotoChoice
from spatext_lab.training import checkpoint, overview
from spatext_lab.training.plan import Device, cores, device_of
from spatext_lab.training.recipes import RECIPES, Recipe
from spatext_lab.training.result import CARD

_POLL = 0.2  # seconds


@dataclass(frozen=True, eq=False)
class Stage:
    """One recipe's run.

    Args:
        name: of its folder.
        parts: for options of the recipe that are folders, the stages that write them.
        recipe: its name; that of the folder if not given.
        given: other options of the recipe.
        on_gpu: whether a GPU trains it, with the recipe's steps and batch for that.
        photos: what to learn from instead of pocket scenes, as options of the recipe.
    """

    name: str
    parts: dict[str, str] = field(default_factory=dict)
    recipe: str = ""
    given: dict[str, Any] = field(default_factory=dict)
    on_gpu: bool = False
    photos: dict[str, Any] = field(default_factory=dict)

    @property
    def job(self) -> Recipe:
        """The recipe."""
        return RECIPES[self.recipe or self.name]

    @property
    def gpu(self) -> dict[str, int]:
        """Its steps and batch on a GPU, where they are others."""
        return (self.job.photos_gpu if self.photos else self.job.gpu) if self.on_gpu else {}

    def steps(self, most: int | None) -> int:
        """The recipe's own number of steps, or at most so many."""
        own = self.gpu.get("steps", self.job.budget(self.photos).steps)
        return min(own, most or own)

    def hours(self, most: int | None) -> float:
        """The expected time on one CPU core."""
        return self.steps(most) * self.job.seconds_per_step / 3600


STAGES = (
    Stage("autoencoder"),
    Stage("decoder", {"vae": "autoencoder"}),
    Stage("clip"),
    Stage("judge"),
    Stage("prior", {"clip": "clip"}),
    Stage("text-to-image", {"vae": "decoder", "clip": "clip"}),
    Stage("spatext", {"base": "text-to-image", "clip": "clip", "prior": "prior"}),
    Stage("spatext-pixel", {"clip": "clip", "prior": "prior"}, "pixel"),
    Stage("reco", {"base": "text-to-image"}),
    Stage("gligen", {"base": "text-to-image"}),
    Stage("update-mask", {"base": "spatext"}),
    Stage("energy", {"vae": "decoder", "clip": "clip"}),
)
# What continues the pocket's models on photos; judge and rivals are the pocket's alone.
PHOTO_STAGES = (
    Stage("autoencoder", given={"base": "pocket"}),
    Stage("clip"),
    Stage("prior", {"clip": "clip"}),
    Stage("text-to-image", {"vae": "autoencoder", "clip": "clip"}, given={"base": "pocket"}),
    Stage(
        "spatext",
        {"base": "text-to-image", "clip": "clip", "prior": "prior"},
        given={"views": 4},  # as ReCo has them
    ),
    Stage("reco", {"base": "text-to-image"}),
)


def train_all(
    out: Path,
    *,
    only: Collection[str] = (),
    steps: int | None = None,
    workers: int | None = None,
    device: Device = "auto",
    data: Path | None = None,
    **choice: Unpack[PhotoChoice],
) -> list[str]:
    """Trains every shipped model; what is complete in `out` stays, what was interrupted goes on.

    Each run is a process of its own with one thread, and writes to OUT/NAME.log. On a GPU some have
    fewer steps and a larger batch, see `Recipe.gpu`. At the end there is a page, OUT/index.html:
    loss curves, scores, images.

    Args:
        out: a folder for the models, one folder each.
        only: names of models to train; others that they need have to be in `out`. All by default.
        steps: at most so many steps of each, to try the whole chain.
        workers: runs at a time; by default one per core, on a GPU one.
        device: where to train; auto is a GPU where there is one.
        data: a folder in COCO layout, on whose photos the pocket's autoencoder, text-to-image
            model, SpaText and ReCo are continued, with a CLIP and a prior of their own; every
            shipped model is trained anew on pocket scenes if not given.
        choice: of the folder's photos, see `PhotoChoice`.

    Returns:
        The names of those that failed and those that need them; empty if all is well.

    Raises:
        ValueError: an unknown name, a number out of range, a choice of photos without data.
        FileNotFoundError: a model that one of `only` needs is not there.
    """
    on_gpu = device_of(device) == "cuda"
    if choice and data is None:
        raise ValueError(f"{min(choice)} chooses photos; pass the folder that has them as data")
    photos = {} if data is None else {"data": Path(data).absolute()} | choice
    every = PHOTO_STAGES if photos else STAGES
    stages = [replace(stage, on_gpu=on_gpu, photos=photos) for stage in every]
    chosen = _chosen(stages, only)
    workers = workers or (1 if on_gpu else cores())
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    done = {stage.name for stage in stages if is_complete(stage, out, steps)}
    needed = {name for stage in chosen for name in stage.parts.values()}
    if missing := sorted(needed - done - {stage.name for stage in chosen}):
        raise FileNotFoundError(f"{out} has no complete {', '.join(missing)}; train them too")
    waiting = [stage for stage in chosen if stage.name not in done]
    hours = expected_hours(waiting, workers, steps)
    for stage in waiting:
        alone = "" if on_gpu else f", {stage.hours(steps):.2f} h"
        after = f", after {', '.join(stage.parts.values())}" if stage.parts else ""
        print(f"{stage.name}: {stage.steps(steps)} steps{alone}{after}")
    estimate = "on a GPU" if on_gpu else f"about {hours:.2f} h on {workers} CPU cores"
    print(f"{len(waiting)} models, {estimate}; done: {len(done)}")
    failed = _run(waiting, done, out, steps, workers, device)
    if not failed:
        made = [stage.name for stage in every if (out / stage.name).is_dir()]
        overview.write(out, made, 0 if photos else overview.SCENES)
    return failed


def _chosen(stages: Sequence[Stage], only: Collection[str]) -> list[Stage]:
    known = [stage.name for stage in stages]
    for name in only:
        if name not in known:
            raise ValueError(f"only is {name!r}; there are {', '.join(known)}")
    return [stage for stage in stages if not only or stage.name in only]


def is_complete(stage: Stage, out: Path, most: int | None = None) -> bool:
    """Whether a stage's folder holds the whole model, of so many steps, undamaged.

    Raises:
        ValueError: naming the file, for one that is damaged.
    """
    card = out / stage.name / CARD
    if not card.is_file():
        return False
    if problems := zoo.verify(out / stage.name):
        raise ValueError("; ".join(problems))
    facts = json.loads(card.read_text(encoding="utf-8"))
    learned = Path(stage.photos["data"]).name if stage.photos else None
    return facts["plan"]["steps"] == stage.steps(most) and facts["given"].get("data") == learned


def is_interrupted(stage: Stage, out: Path, most: int | None = None) -> bool:
    """Whether a run of so many steps of a stage was begun and not ended."""
    record = checkpoint.record(out / f"{stage.name}.checkpoint")
    return record is not None and record["done"] < record["plan"]["steps"] == stage.steps(most)


def expected_hours(stages: Iterable[Stage], workers: int, most: int | None = None) -> float:
    """How long the stages take when each begins as soon as its parts and a worker are there."""
    stages = list(stages)
    names, free, end = {stage.name for stage in stages}, [0.0] * workers, {}
    while len(end) < len(stages):
        ready = {
            stage: max([0.0, *(end[n] for n in stage.parts.values() if n in names)])
            for stage in stages
            if stage.name not in end and all(n in end for n in stage.parts.values() if n in names)
        }
        worker = min(range(workers), key=free.__getitem__)
        stage = min(ready, key=lambda s: (max(ready[s], free[worker]), stages.index(s)))
        free[worker] = max(ready[stage], free[worker]) + stage.hours(most)
        end[stage.name] = free[worker]
    return max(end.values(), default=0.0)


def _run(
    waiting: list[Stage], done: set[str], out: Path, steps: int | None, workers: int, device: str
) -> list[str]:
    """Starts what can start until nothing is left; the names of those that did not end well."""
    running: dict[subprocess.Popen, Stage] = {}
    failed: list[str] = []
    try:
        while waiting or running:
            for stage in [s for s in waiting if set(s.parts.values()) & set(failed)]:
                print(f"{stage.name}: left out, it needs {' and '.join(stage.parts.values())}")
                failed.append(stage.name)
                waiting.remove(stage)
            for stage in [s for s in waiting if set(s.parts.values()) <= done]:
                if len(running) < workers:
                    running[_start(stage, out, steps, device)] = stage
                    waiting.remove(stage)
            time.sleep(_POLL)
            for process in [p for p in running if p.poll() is not None]:
                stage = running.pop(process)
                if process.returncode == 0:
                    print(f"{stage.name}: done ({time.strftime('%H:%M')})")
                    done.add(stage.name)
                else:
                    log = (out / f"{stage.name}.log").read_text(encoding="utf-8").strip()
                    print(f"{stage.name}: failed: {log.splitlines()[-1] if log else 'no word'}")
                    failed.append(stage.name)
    except KeyboardInterrupt:  # the runs have had Ctrl-C too, and write what they have
        raise KeyboardInterrupt("stopped; the same command continues") from None
    finally:
        for process in running:
            process.terminate()
            process.wait()
    return failed


def _start(stage: Stage, out: Path, steps: int | None, device: str) -> subprocess.Popen:
    """The process of a stage's run; it continues from a checkpoint where there is one."""
    words = ["train", stage.job.name, "--out", out / stage.name, "--device", device]
    words += ["--steps", stage.steps(steps)]
    if "batch" in stage.gpu:
        words += ["--batch", stage.gpu["batch"]]
    parts = {option: out / name for option, name in stage.parts.items()}
    for option, value in (stage.given | stage.photos | parts).items():
        alone = isinstance(value, Path | float | int | str)
        values = ["all"] if value is None else [value] if alone else value
        words += [f"--{option.replace('_', '-')}", *values]
    words += ["--resume"] if is_interrupted(stage, out, steps) else []
    print(f"{stage.name}: {'continued' if '--resume' in words else 'started'}; {stage.name}.log")
    with (out / f"{stage.name}.log").open("a", encoding="utf-8") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "spatext_lab", *map(str, words)],
            stdout=log,
            stderr=log,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
