# SPDX-License-Identifier: Apache-2.0
"""A stopped training run on disk: one safetensors file, nothing pickled, never half-written."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from spatext_lab.training.loop import Trainer

FILE = "state.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def save(trainer: Trainer, folder: Path) -> None:
    """Writes weights, average, optimiser moments, losses and plan as one file of `folder`.

    One file, written beside and renamed: whenever the process is killed, the old state or the new
    one is there, never a part of each.
    """
    optimiser = trainer.optimizer.state_dict()["state"]
    tensors = {f"weight.{i}": w.detach() for i, w in enumerate(trainer.weights)}
    tensors |= {f"average.{i}": w for i, w in enumerate(trainer.ema.shadow_params)}
    tensors |= {f"{m}.{i}": s[m] for i, s in optimiser.items() for m in _MOMENTS}
    tensors |= {f"buffer.{name}": b for name, b in trainer.module.named_buffers()}
    record = {"done": trainer.done, "losses": trainer.losses, "seconds": trainer.seconds}
    record |= {"plan": asdict(trainer.plan), "average_steps": trainer.ema.optimization_step}
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f"{FILE}.part"
    save_file(
        {k: v.to("cpu").contiguous().clone() for k, v in tensors.items()},
        beside,
        {"record": json.dumps(record)},
    )
    os.replace(beside, folder / FILE)


def load(trainer: Trainer, folder: Path) -> None:
    """Puts a saved run into a trainer that was built the same way.

    Raises FileNotFoundError where nothing was saved, ValueError where the plan is another one:
    going on under another plan would give a loss curve that no single run has.
    """
    if not (folder / FILE).is_file():
        raise FileNotFoundError(f"{folder} holds no checkpoint; start without --resume")
    with safe_open(folder / FILE, "pt") as file:
        record = json.loads(file.metadata()["record"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if record["plan"] != asdict(trainer.plan):
        raise ValueError(
            f"plan is {asdict(trainer.plan)}; the run in {folder} has {record['plan']}: "
            "give the same steps and seed, or start without --resume"
        )
    with torch.no_grad():
        for i, (weight, average) in enumerate(
            zip(trainer.weights, trainer.ema.shadow_params, strict=True)
        ):
            weight.copy_(tensors[f"weight.{i}"])
            average.copy_(tensors[f"average.{i}"])
        for name, buffer in trainer.module.named_buffers():
            buffer.copy_(tensors[f"buffer.{name}"])
    state = trainer.optimizer.state_dict()
    moments = range(len(trainer.weights))
    state["state"] = {i: {m: tensors[f"{m}.{i}"] for m in _MOMENTS} for i in moments}
    trainer.optimizer.load_state_dict(state)
    trainer.ema.optimization_step = record["average_steps"]
    trainer.done, trainer.losses = record["done"], record["losses"]
    trainer.seconds = record["seconds"]
