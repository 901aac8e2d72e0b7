# SPDX-License-Identifier: Apache-2.0
"""What a recipe hands to the loop."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderTiny

from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from spatext_lab.training.loop import LossAt, Plan


def device_of(name: str) -> str:
    """Where to compute: "cpu", or "cuda" where there is one and `name` does not say otherwise."""
    return "cpu" if name == "cpu" or not torch.cuda.is_available() else "cuda"


def save_half(part, folder: Path) -> None:
    """Saves a part of a model in half precision; the part itself stays as it is.

    Where it was read from is a path of this machine and does not belong into its config.
    """
    if hasattr(part, "register_to_config"):
        part.register_to_config(_name_or_path="")
    if not hasattr(part, "half"):  # a tokenizer, a schedule: no weights
        part.save_pretrained(folder)
        return
    part.half().save_pretrained(folder)
    part.float()
    if isinstance(part, AutoencoderTiny):
        # It writes this key and complains of it whenever it is read; it knows the value without.
        file = folder / "config.json"
        config = json.loads(file.read_text())
        del config["block_out_channels"]
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def save_model(model: TextToImagePipeline, folder: Path) -> None:
    """Saves all parts of a pipeline in half precision, with the index."""
    for name, part in model.parts().items():
        save_half(part, folder / name)
    model.write_index(folder)


@dataclass(frozen=True)
class Job:
    """A module to train, the loss of a step, how to save the result, and what it learned from."""

    module: torch.nn.Module
    loss_at: LossAt
    save: Callable[[Path], None]
    plan: Plan
    data: str  # one phrase for the card
