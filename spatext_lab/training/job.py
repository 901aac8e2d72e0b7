# SPDX-License-Identifier: Apache-2.0
"""A training job: what a recipe hands to the loop, and how its result is saved."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderTiny

from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from spatext_lab.training.loop import LossAt
from spatext_lab.training.plan import Plan, device_of

__all__ = ["Job", "device_of", "save_half", "save_model"]


def save_half(part, folder: Path) -> None:
    """Saves a part of a model in half precision; the part itself is not changed.

    The path that it was loaded from is left out of its config: it belongs to this machine.
    """
    if hasattr(part, "register_to_config"):
        part.register_to_config(_name_or_path="")
    if not hasattr(part, "half"):  # a tokenizer or a scheduler has no weights
        part.save_pretrained(folder)
        return
    part.half().save_pretrained(folder)
    part.float()
    if isinstance(part, AutoencoderTiny):
        # diffusers writes this key, derives it when loading, and then warns about it.
        file = folder / "config.json"
        config = json.loads(file.read_text())
        del config["block_out_channels"]
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def save_model(model: TextToImagePipeline, folder: Path) -> None:
    """Saves all parts of a pipeline in half precision, and its `model_index.json`."""
    for name, part in model.parts().items():
        save_half(part, folder / name)
    model.write_index(folder)


@dataclass(frozen=True)
class Job:
    """A module to train, the loss of a step, a function that saves the result, and the data."""

    module: torch.nn.Module
    loss_at: LossAt
    save: Callable[[Path], None]
    plan: Plan
    data: str  # what it learns from, one phrase for the card
