# SPDX-License-Identifier: Apache-2.0
"""`spatext-lab train`: a recipe from its first step to a model folder with a card."""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch

from spatext_lab import zoo
from spatext_lab.datasets.coco import PhotoChoice
from spatext_lab.diffusion import few_threads
from spatext_lab.figures.progress import Progress
from spatext_lab.training import checkpoint, launch, peers, processes
from spatext_lab.training.control import Control, layouts_of
from spatext_lab.training.graphs import graphed
from spatext_lab.training.log import Kind, Log
from spatext_lab.training.log import check as check_log
from spatext_lab.training.loop import Step, Trainer
from spatext_lab.training.plan import Average, Bits, Device, Plan, device_of
from spatext_lab.training.recipes import RECIPES, Recipe
from spatext_lab.training.result import CARD, facts_of, short, write_model
from spatext_lab.training.sizes import accumulated, suited
from spatext_lab.training.trial import Trial


def run(
    name: str,
    *,
    steps: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    resume: bool = False,
    device: Device = "auto",
    accumulate: int | None = None,
    lr: float | None = None,
    checkpointing: Literal["on", "off"] | None = None,
    average: Average | None = None,
    adamw: Bits | None = None,
    save_every: float | None = None,
    log: Kind | None = None,
    control: int | None = None,
    segmenter: str | None = None,
    **options: Any,
) -> Path:
    """Trains a recipe and writes its model folder, with a card.

    A checkpoint lies beside the result (`OUT.checkpoint`) and is renewed every minute. Under
    torchrun all processes call this and share the work; process 0 writes and prints. The plan suits
    the size of the base, see `sizes`.

    Args:
        name: a recipe in RECIPES.
        steps: optimiser steps; the recipe's own if not given.
        seed: of weights, data and noise.
        out: the folder to write; `outputs/train/NAME` if not given. A model of the same recipe
            that lies there is replaced when this one is complete.
        resume: continue from the checkpoint of an interrupted run, with the same loss curve.
        device: where to train; auto is a GPU where there is one.
        accumulate: micro-batches a step, in all processes together; if not given, those of the
            continued run, or of the plan. With another batch a large base's plan has as many
            images a step.
        lr: the highest learning rate; the plan's if not given.
        checkpointing: compute activations again in the backward pass instead of keeping them; on
            for a large base if not given.
        average: where the weights' moving average lies; "cpu" for a large base if not given.
        adamw: bits of AdamW's moments; 8 for a large base on a GPU with bitsandbytes if not given.
        save_every: minutes between checkpoints; 1, or 30 for a large base, if not given.
        log: write OUT.checkpoint/log.csv, "tensorboard" event files too; csv with control.
        control: every so many steps, sample held-out layouts and measure how they are kept to.
        segmenter: measures control on photos: a folder such as models/mask2former.
        options: the recipe's, see its `make`.

    Returns:
        The model folder.

    Raises:
        ValueError: an unknown recipe, option or device, a value out of range, a folder that holds
            something else, and what `checkpoint.load` and `processes.join` raise.
        FileNotFoundError: nothing to resume.
        ConnectionError: another process has ended or is not there.
    """
    recipe = _recipe(name, options)
    _check_watching(log, control, segmenter, save_every)
    suit = suited(name, recipe.budget(options), _base(recipe, options), device_of(device) == "cuda")
    plan = accumulated(suit.plan, suit.batch, options.get("batch"))
    given = {"steps": steps, "lr": lr, "average": average, "adamw": adamw, "accumulate": accumulate}
    given["checkpointing"] = checkpointing and checkpointing == "on"
    given = {key: value for key, value in given.items() if value is not None}
    plan = replace(plan, seed=seed, **given)
    options = ({"batch": suit.batch} if suit.batch else {}) | options
    out = Path(out or f"outputs/train/{name}")
    _refuse_foreign(out, name)
    saved = out.with_name(out.name + ".checkpoint")
    processes.join(device)
    if accumulate is None:
        accumulate = _accumulate(plan, saved if resume else None)
    plan = replace(plan, accumulate=accumulate)
    processes.share(accumulate)
    with _alone(saved):
        made = _made(recipe, options)
        processes.check_alike(made | asdict(plan))
        if resume and launch.rank() == 0:
            checkpoint.check(saved, plan, made)  # now, not after minutes of caching
        print(_first_line(recipe, plan, options, device, out), *suit.lines, sep="\n")
        job = recipe.make(plan, device, **options)
        trainer = Trainer(job.module, job.loss_at, job.plan, device)
        if resume:
            checkpoint.load(trainer, saved, made)
        elif launch.rank() == 0:
            checkpoint.set_aside(saved)
        batch = _batch(recipe, options)
        with few_threads(job.module), graphed([] if plan.checkpointing else job.replayed):
            watch: list[Any] = [Trial(trainer, job.networks, batch)]
            if launch.rank() == 0 and (log or control):
                layouts = layouts_of(job, options, segmenter) if control else None
                rows = Log(saved, trainer, batch and batch * plan.accumulate, log or "csv")
                watch.append(Control(trainer, job, layouts, rows, control))
            _train(trainer, saved, made, watch, 60 * (save_every or suit.minutes))
        trainer.use_average()
        if launch.rank() == 0:
            typed = {"lr": lr, "checkpointing": checkpointing, "average": average, "adamw": adamw}
            facts = facts_of(recipe, job, trainer, options | typed, out)
            write_model(out, job, facts, watch[1:])
    return out


def _base(recipe: Recipe, given: dict[str, Any]) -> str | None:
    """The base that a recipe starts from; None for a recipe without one."""
    usual = recipe.options.get("base")
    return given.get("base", usual.default) if usual else None


def _batch(recipe: Recipe, given: dict[str, Any]) -> int | None:
    """The images of a micro-batch, where that is an option of the recipe."""
    usual = recipe.options.get("batch")
    return given.get("batch", usual.default) if usual else None


def _check_watching(
    log: Kind | None, control: int | None, segmenter: str | None, save_every: float | None
) -> None:
    check_log(log)
    for name, value in (("control", control), ("save_every", save_every)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; pass a number above 0")
    if segmenter and not control:
        raise ValueError(f"segmenter is {segmenter}; it measures control: pass --control N too")


def _recipe(name: str, options: dict[str, Any]) -> Recipe:
    """The recipe of that name, if it has all these options."""
    if name not in RECIPES:
        raise ValueError(f"recipe is {name!r:.40}; there are {', '.join(RECIPES)}")
    for key, value in options.items():
        if key not in RECIPES[name].options:
            able = [recipe.name for recipe in RECIPES.values() if key in recipe.options]
            raise ValueError(
                f"{key} is {short(value)}; {name} has no such option, "
                + (f"these have: {', '.join(able)}" if able else "nor has any other recipe")
            )
    photos = dict.fromkeys(PhotoChoice.__annotations__, "chooses photos")
    photos["cache"] = "keeps what is made of photos"
    for key in photos.keys() & options.keys() if not options.get("data") else ():
        raise ValueError(f"{key} {photos[key]}; pass the folder that has them as data")
    if (batch := options.get("batch", 1)) < 1:
        raise ValueError(f"batch is {batch}; pass a whole number, 1 or more")
    return RECIPES[name]


def _refuse_foreign(out: Path, name: str) -> None:
    """Raises ValueError where something other than a model of this recipe would be overwritten."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        card = json.loads((out / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        card = None
    if not isinstance(card, dict) or card.get("recipe") != name:
        raise ValueError(
            f"out is {out}, which is there and is not a model of the recipe {name}: "
            "pass a new folder, or move it away"
        )


def _made(recipe: Recipe, given: dict[str, Any]) -> dict[str, Any]:
    """What a run is made from, for its checkpoint: folders by what is in them, not by their path.

    Device, number of processes and the place of the cache are left out: they may differ when a run
    is resumed.
    """
    made = {key: option.default for key, option in recipe.options.items()} | given
    made.pop("cache", None)
    for key, value in made.items():
        if key == "base" and value is not None:
            made[key] = _base_made(zoo.folder(value), recipe.reads)
        elif isinstance(value, Path):
            if not value.is_dir():
                raise FileNotFoundError(f"{key} is {value}, which is not a folder")
            made[key] = checkpoint.fingerprint(value)
    return json.loads(json.dumps({"recipe": recipe.name} | made))  # tuples as lists, as when read


def _base_made(place: Path, reads: Sequence[str]) -> str | list[str]:
    """The fingerprint of a base, or those of the parts that are read of a folder of models: others
    are trained into the same folder meanwhile, as this one may be."""
    whole = (place / "model_index.json").is_file() or (place / zoo.SUMS).is_file()
    parts = [] if whole else [_read_part(place, part) for part in reads]
    found = [checkpoint.fingerprint(part) for part in parts if part.is_dir()]
    return found or checkpoint.fingerprint(place)


def _read_part(place: Path, part: str) -> Path:
    """The folder of a part, which may lie beside those that are trained, as `zoo.folder` reads."""
    beside = place / Path(part).name
    return beside if beside.is_dir() else place / part


def _accumulate(plan: Plan, begun: Path | None) -> int:
    """The micro-batches a step where the caller does not say: those of the run that is continued,
    or the plan's own, and at least one for each process."""
    known = checkpoint.record(begun) if begun else None
    if known:
        plan = Plan(**known["plan"])
    else:
        plan = replace(
            plan, accumulate=math.ceil(plan.accumulate / launch.count()) * launch.count()
        )
    return processes.told(plan.accumulate)


@contextmanager
def _alone(saved: Path) -> Iterator[None]:
    """One process holds the checkpoint and is heard; all end when one does."""
    held = checkpoint.writing(saved) if launch.rank() == 0 else nullcontext()
    with launch.one_voice(), peers.ending_once(), held:
        yield


def _first_line(recipe: Recipe, plan: Plan, given: dict, device: str, out: Path) -> str:
    """What is going to be done, by how many, and how long that takes."""
    count, where = launch.count(), "GPU" if device_of(device) == "cuda" else "CPU"
    size = _batch(recipe, given)
    several = f"micro-batch{'es' * (plan.accumulate > 1)}"
    of = f" of {plan.accumulate} " + (f"x {size} images" if size else several)
    minutes = plan.batches / count * recipe.seconds_per_step / 60
    return (
        f"{recipe.name}: {plan.steps} steps{of} on {count} process{'es' * (count > 1)} ({where}), "
        f"about {minutes:.0f} min on one CPU core{' each' * (count > 1)}; result in {out}"
    )


def _train(
    trainer: Trainer, saved: Path, made: dict, watch: Sequence[Callable[[Step], None]], every: float
) -> None:
    """Trains to the end with a progress bar, and a checkpoint every so many seconds.

    The first of `watch`, which see each step, knows what to do where memory is not enough.
    """
    last, full = time.perf_counter(), False
    total, unit = {"total": trainer.plan.steps, "initial": trainer.done}, "step"
    try:
        with Progress(desc="training", unit=unit, mininterval=1, **total) as bar:
            for step in trainer.run():
                bar.update()
                bar.set_postfix(loss=f"{step.loss:.4f}", refresh=False)
                for see in watch:
                    see(step)
                if time.perf_counter() - last > every:
                    checkpoint.save(trainer, saved, made)
                    last = time.perf_counter()
    except (KeyboardInterrupt, ConnectionError) as stop:
        raise type(stop)(_farewell(stop, trainer, saved)) from None
    except torch.OutOfMemoryError:
        full = True  # the error holds all activations until this block is left
    if full:
        raise OSError(watch[0].advice())
    checkpoint.save(trainer, saved, made)


def _farewell(stop: BaseException, trainer: Trainer, saved: Path) -> str:
    """Why a run stops, and how it goes on."""
    kept = (checkpoint.record(saved) or {}).get("done")
    onward = f"--resume continues after step {kept}" if kept else "before the first checkpoint"
    if launch.rank() > 0 and not kept:  # another machine has it
        onward = "--resume continues from the checkpoint of process 0"
    parts = [str(stop), f"stopped after step {trainer.done}", onward]
    return "; ".join(filter(None, parts))
