# SPDX-License-Identifier: Apache-2.0
"""Every model that this project ships, as a recipe: what is trained, on what, for how long."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from spatext_lab.training.job import Job
from spatext_lab.training.loop import Plan


@dataclass(frozen=True)
class Recipe:
    """A recipe by name; its module is imported, and torch with it, only when it is made."""

    name: str  # what `spatext-lab train` is given
    module: str  # file in this folder, holds make(plan, device, data) -> Job
    folder: str  # where the result lies under data/pocket
    plan: Plan  # the budget of the shipped weights
    seconds_per_step: float  # measured on one CPU core, for the expected time that is printed
    use: str  # intended use, for the card
    reads_data: bool = False  # whether it can learn from a folder in COCO layout

    def make(self, plan: Plan, device: str, data: Path | None) -> Job:
        """Builds the module and its data; may take a while where latents have to be cached."""
        make: Callable = import_module(f"{__name__}.{self.module}").make
        return make(plan, device, data)


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "autoencoder",
            "autoencoder",
            "text-to-image/vae",
            Plan(steps=6500, lr=2e-3, weight_decay=1e-4),
            0.2,
            "turns 64 x 64 pocket pictures into 16 x 16 x 4 latents and back",
        ),
        Recipe(
            "decoder",
            "decoder",
            "text-to-image/vae",
            Plan(steps=4500, lr=1e-3, weight_decay=1e-4),
            0.2,
            "turns pocket pictures into latents and back: recipe autoencoder, its decoder refined",
        ),
        Recipe(
            "clip",
            "clip",
            "spatext/clip",
            Plan(steps=1500, lr=1e-3, ema_decay=0.998),
            0.9,
            "compares texts with pocket pictures and their segments",
        ),
        Recipe(
            "judge",
            "judge",
            "judge",
            Plan(steps=3000, lr=2e-3, ema_decay=0.998),
            0.3,
            "measures generated pocket pictures; never used to make them",
        ),
        Recipe(
            "text-to-image",
            "text_to_image",
            "text-to-image",
            Plan(steps=1400, lr=1e-3),
            1.1,
            "draws pocket pictures from captions; what SpaText starts from",
        ),
        Recipe(
            "spatext",
            "spatext",
            "spatext",
            Plan(steps=3200, lr=1e-3),
            0.45,
            "draws pocket scenes: a caption, and texts for regions",
            reads_data=True,
        ),
    )
}
