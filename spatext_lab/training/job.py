# SPDX-License-Identifier: Apache-2.0
"""What a recipe hands to the loop."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from spatext_lab.training.loop import LossAt, Plan


def save_half(model: torch.nn.Module, folder: Path) -> None:
    """Saves a diffusers or transformers model in half precision; the model itself stays as it is.

    Where it was read from is a path of this machine and does not belong into its config.
    """
    if hasattr(model, "register_to_config"):
        model.register_to_config(_name_or_path="")
    model.half().save_pretrained(folder)
    model.float()


@dataclass(frozen=True)
class Job:
    """A module to train, the loss of a step, how to save the result, and what it learned from."""

    module: torch.nn.Module
    loss_at: LossAt
    save: Callable[[Path], None]
    plan: Plan
    data: str  # one phrase for the card
