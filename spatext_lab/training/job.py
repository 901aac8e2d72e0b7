# SPDX-License-Identifier: Apache-2.0
"""A training job: what a recipe hands to the loop, and how its result is saved."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from spatext_lab import zoo
from spatext_lab.text_to_image.base import ScenePipeline, tidy_config
from spatext_lab.training.loop import LossAt
from spatext_lab.training.plan import Plan, device_of

__all__ = ["Job", "device_of", "part", "save_half", "save_model"]


def part(given: Path | None, name: str, model: str = "pocket") -> Path:
    """The folder of a part that a recipe starts from.

    Args:
        given: a folder that another recipe wrote; None for the model's own part.
        name: the part's name in the model, such as "spatext/clip".
        model: see `zoo.folder`.
    """
    return zoo.folder(model, name) if given is None else zoo.folder(str(given))


def save_half(part, folder: Path) -> None:
    """Saves a model in half precision; the model itself stays in single precision."""
    if hasattr(part, "register_to_config"):  # where it was read from is a path of one machine
        part.register_to_config(_name_or_path="")
    part.half().save_pretrained(folder)
    part.float()
    tidy_config(folder)


def save_model(model: ScenePipeline, folder: Path) -> None:
    """Saves a pipeline as a model folder, its weights in half precision."""
    modules = [m for m in model.components.values() if isinstance(m, torch.nn.Module)]
    for module in modules:
        module.half()
    model.save_pretrained(folder)
    for module in modules:
        module.float()


@dataclass(frozen=True)
class Job:
    """A module to train, the loss of a step, a function that saves the result, and the data.

    Args:
        replayed: networks whose passes a GPU may replay, see `graphs.graphed`.
        model: the pipeline that samples with what is trained, where there is one.
        protocol: how its layouts are measured, "segments" or "boxes"; "" where it has none.
    """

    module: torch.nn.Module
    loss_at: LossAt
    save: Callable[[Path], None]
    plan: Plan
    data: str  # what it learns from, one phrase for the card
    replayed: Sequence[torch.nn.Module] = ()
    model: ScenePipeline | None = None
    protocol: str = ""

    @property
    def networks(self) -> list[torch.nn.Module]:
        """All networks of the model; those that are trained are among them."""
        parts = self.model.components.values() if self.model else [self.module]
        return [part for part in parts if isinstance(part, torch.nn.Module)]
