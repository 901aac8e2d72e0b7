# SPDX-License-Identifier: Apache-2.0
"""The folder that a training run leaves: the model, its card, its checksums."""

import json
import platform
import shlex
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from spatext_lab import zoo
from spatext_lab.scene import files
from spatext_lab.training import launch, licences
from spatext_lab.training.control import Control
from spatext_lab.training.job import Job
from spatext_lab.training.loop import Trainer
from spatext_lab.training.recipes import Recipe

CARD, README = "card.json", "README.md"


def write_model(out: Path, job: Job, facts: dict, drawn: Iterable[Control]) -> None:
    """Writes a model's whole folder beside `out`, sealed, and puts it there at once.

    What others have put into a folder that it replaces (tables, notes) is kept.

    Args:
        out: the folder.
        job: saves the model.
        facts: see `facts_of`.
        drawn: curves of control, drawn into the folder.

    Raises:
        OSError: it cannot be written; the old folder is as it was.
    """
    with files.replacing(out) as beside:
        beside.mkdir()
        try:
            job.save(beside)
        except SafetensorError as error:
            raise OSError(f"{out} cannot be written: {error}") from None
        files.write(beside / CARD, json.dumps(facts, indent=2) + "\n")
        for control in drawn:
            control.draw(beside)
        zoo.seal(beside)
        if out.is_dir():
            _keep_additions(out, beside)
        files.write(beside / README, card(facts, sorted(beside.glob("*.md"))))


def _keep_additions(old: Path, new: Path) -> None:
    """Copies what others have put into a model's folder: tables, notes."""
    sums = old / zoo.SUMS
    lines = sums.read_text(errors="replace").splitlines() if sums.is_file() else []
    sealed = {line.partition("  ")[2] for line in lines} | {zoo.SUMS, CARD, README}
    for path in sorted(p for p in old.rglob("*") if p.is_file()):
        name = path.relative_to(old).as_posix()
        if name not in sealed and not (new / name).exists():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, new / name)


def facts_of(recipe: Recipe, job: Job, trainer: Trainer, given: dict, out: Path) -> dict:
    """The facts on a model's card, JSON values: how it was made, and from what.

    Args:
        recipe: what it was trained by.
        job: the job.
        trainer: of the job, after its last step.
        given: the options that were passed.
        out: the model's folder.
    """
    last, beside = trainer.losses[-100:], _beside(given, out)
    return {
        "recipe": recipe.name,
        "use": recipe.use,
        "data": job.data,
        "given": _given({key: value for key, value in given.items() if key not in beside}),
        "beside": beside,
        "licences": licences.inherited(given),
        "plan": asdict(job.plan),
        "final_loss": round(sum(last) / len(last), 5),
        "seconds": round(trainer.seconds),
        "hardware": _hardware(trainer.accelerator.device, launch.count()),
        "versions": {p: version(p) for p in ("torch", "diffusers", "transformers")},
    }


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were used; no choice of licences (None) is "all", as it is typed."""
    used = {key: "all" if key == "licences" and v is None else v for key, v in options.items()}
    used.pop("cache", None)  # a place of this machine
    return {key: short(v) for key, v in used.items() if v is not None and v is not False}


def _beside(options: dict[str, Any], out: Path) -> dict[str, str]:
    """The options that are models in the folder of `out`, as `train all` passes them, by name."""
    folders = {key: Path(value) for key, value in options.items() if isinstance(value, str | Path)}
    models = {key: place for key, place in folders.items() if (place / CARD).is_file()}
    home = out.resolve().parent
    return {key: place.name for key, place in models.items() if place.resolve().parent == home}


def short(value: Any) -> Any:
    """An option's value as it is, a folder by its name: its path belongs to this machine."""
    return Path(value).name if isinstance(value, str | Path) else value


def card(facts: dict, tables: list[Path]) -> str:
    """A model's card as Markdown, with the tables (Markdown files) that lie in its folder."""
    plan = facts["plan"]
    beside = [f"{name} (`--{key}`)" for key, name in facts.get("beside", {}).items()]
    words = ["spatext-lab", "train", facts["recipe"]]
    several = {"accumulate": plan["accumulate"]} if plan.get("accumulate", 1) > 1 else {}
    given = {"seed": plan["seed"], "steps": plan["steps"]} | several | facts["given"]
    for key, value in given.items():
        values = value if isinstance(value, list | tuple) else [value]
        words += [f"--{key.replace('_', '-')}", *([] if value is True else map(str, values))]
    lines = [
        f"# {facts['recipe']}",
        "",
        f"Intended use: {facts['use']}.",
        "",
        f"* Made by `{shlex.join(words)}` in {facts['seconds'] / 60:.0f} minutes on "
        f"{facts['hardware']}.",
        *([f"* From models beside this one: {', '.join(beside)}."] if beside else []),
        f"* Data: {facts['data']}.",
        f"* Mean loss of the last 100 steps: {facts['final_loss']}.",
        "* Versions: " + ", ".join(f"{k} {v}" for k, v in facts["versions"].items()) + ".",
        f"* {_licence(facts)}",
    ]
    for table in tables:
        if table.name != README:
            text = table.read_text(encoding="utf-8").rstrip()
            lines += ["", f"## {table.stem.capitalize()}", "", text]
    return "\n".join(lines) + "\n"


def _licence(facts: dict) -> str:
    """What holds for the weights: the licence of what they were fine-tuned from is passed on."""
    inherited = [f"{each['name']} ({each['address']})" for each in facts.get("licences", [])]
    if not inherited and facts["given"].get("data"):
        return "Card: CC BY 4.0. Weights: mind the photos' licences (ATTRIBUTION.csv beside them)."
    if not inherited:
        return "Weights and card: CC BY 4.0."
    return f"The licences of what this was trained from hold for it, too: {'; '.join(inherited)}."


def _hardware(device: torch.device, processes: int) -> str:
    times = f"{processes} x " if processes > 1 else ""
    if device.type == "cuda":
        return times + torch.cuda.get_device_name(device)
    return f"{times}CPU ({platform.machine()}), {torch.get_num_threads()} threads"
