# SPDX-License-Identifier: Apache-2.0
"""`spatext-lab train`: a recipe from its first step to a model folder with a card."""

import platform
import time
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import torch
from tqdm import tqdm

from spatext_lab.training import checkpoint
from spatext_lab.training.card import write_card
from spatext_lab.training.job import Job
from spatext_lab.training.loop import Trainer
from spatext_lab.training.recipes import RECIPES, Recipe

CHECKPOINT_SECONDS = 60.0


def run(
    name: str,
    *,
    steps: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    resume: bool = False,
    device: str = "auto",
    data: Path | None = None,
    base: str | None = None,
    representation: str | None = None,
    variant: str | None = None,
    bins: int | None = None,
    init: str | None = None,
    aided: bool | None = None,
    relearn: bool | None = None,
) -> Path:
    """Trains recipe `name` and returns the model folder that it wrote.

    A checkpoint lies beside the result (`OUT.checkpoint`) and is renewed every minute; `resume`
    goes on from it with the loss curve that an unbroken run has.

    data: a folder in COCO layout to learn from, for recipes that can; None for pocket scenes.
    base: the model to start from, "pocket" or a folder, for recipes that can; None for the
        recipe's own start.
    representation: what SpaText's map holds, a kind of `Representation`.
    variant, bins, init, aided, relearn: of ReCo, see `recipes.reco.make`.

    Raises ValueError for an unknown recipe, for what it does not take and for steps < 1, and what
    checkpoint.load raises.
    """
    given = {"data": data, "base": base, "representation": representation}
    given |= {"variant": variant, "bins": bins, "init": init, "aided": aided or None}
    given |= {"relearn": relearn or None}
    given = {key: value for key, value in given.items() if value is not None}
    recipe = _checked(name, given, steps)
    plan = replace(recipe.plan, seed=seed, steps=steps or recipe.plan.steps)
    out = Path(out or f"outputs/train/{name}")
    minutes = plan.steps * recipe.seconds_per_step / 60
    print(f"{name}: {plan.steps} steps, about {minutes:.0f} min on one CPU core; result in {out}")
    job = recipe.make(plan, device, **given)
    trainer = Trainer(job.module, job.loss_at, job.plan, device)
    saved = out.with_name(out.name + ".checkpoint")
    if resume:
        checkpoint.load(trainer, saved)
    _train(trainer, saved)
    trainer.use_average()
    job.save(out)
    write_card(out, _facts(recipe, job, trainer, given))
    return out


def _checked(name: str, given: dict, steps: int | None) -> Recipe:
    """The recipe of that name, if it takes what is given."""
    if name not in RECIPES:
        raise ValueError(f"recipe is {name!r}; there are {', '.join(RECIPES)}")
    for key, value in given.items():
        if key not in RECIPES[name].takes:
            able = ", ".join(r.name for r in RECIPES.values() if key in r.takes)
            raise ValueError(f"{key} is {value}; {name} takes none, these do: {able}")
    if steps is not None and steps < 1:
        raise ValueError(f"steps is {steps}; give at least 1")
    return RECIPES[name]


def _facts(recipe: Recipe, job: Job, trainer: Trainer, given: dict) -> dict:
    """What the model's card says."""
    last = trainer.losses[-100:]
    return {
        "recipe": recipe.name,
        "use": recipe.use,
        "data": job.data,
        "given": {key: _named(value) for key, value in given.items()},
        "plan": asdict(job.plan),
        "final_loss": round(sum(last) / len(last), 5),
        "seconds": round(trainer.seconds),
        "hardware": _hardware(trainer.accelerator.device),
        "versions": {p: version(p) for p in ("torch", "diffusers", "transformers")},
    }


def _named(value: Path | str | int) -> str | int:
    """A choice as it is, a folder by its name: where it lies is a path of one machine."""
    return value if isinstance(value, int) else Path(value).name


def _train(trainer: Trainer, saved: Path) -> None:
    """The loop with a progress bar, and a checkpoint every minute."""
    last = time.perf_counter()
    bar = tqdm(total=trainer.plan.steps, initial=trainer.done, unit="step", mininterval=1)
    for step in trainer.run():
        bar.update()
        bar.set_postfix(loss=f"{step.loss:.4f}", refresh=False)
        if time.perf_counter() - last > CHECKPOINT_SECONDS:
            checkpoint.save(trainer, saved)
            last = time.perf_counter()
    bar.close()
    checkpoint.save(trainer, saved)


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}), {torch.get_num_threads()} threads"
