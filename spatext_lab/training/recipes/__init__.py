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
    # "data": a folder in COCO layout, "base": a model to start from, "representation": a map's
    # kind, "variant": of ReCo, "bins": how many position tokens, "init": how their rows begin
    takes: tuple[str, ...] = ()

    def make(self, plan: Plan, device: str, **given: Path | str | int) -> Job:
        """Builds the module and its data; may take a while where latents have to be cached.

        given: what of `takes` the user gave.
        """
        make: Callable = import_module(f"{__name__}.{self.module}").make
        return make(plan, device, **given)


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
            Plan(steps=15_000, lr=1e-3, weight_decay=1e-4),
            0.16,
            "turns pocket pictures into latents and back: recipe autoencoder, a better decoder",
        ),
        Recipe(
            "clip",
            "clip",
            "spatext/clip",
            Plan(steps=1500, lr=1e-3, ema_decay=0.998),
            0.35,
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
            "prior",
            "prior",
            "spatext/prior",
            Plan(steps=6000, lr=1e-3, ema_decay=0.998),
            0.08,
            "turns the pocket CLIP's text vectors into image vectors",
        ),
        Recipe(
            "text-to-image",
            "text_to_image",
            "text-to-image",
            Plan(steps=4000, lr=1e-3),
            0.65,
            "draws pocket pictures from captions; what SpaText starts from",
            takes=("base",),
        ),
        Recipe(
            "spatext",
            "spatext",
            "spatext",
            Plan(steps=10_000, lr=1e-3),
            0.37,
            "draws pocket scenes: a caption, and texts for regions",
            takes=("data", "base", "representation"),
        ),
        Recipe(
            "pixel",
            "pixel",
            "spatext-pixel",
            Plan(steps=9000, lr=1e-3),
            0.33,
            "draws pocket scenes without an autoencoder: SpaText's pixel variant",
        ),
        Recipe(
            "reco",
            "reco",
            "reco",
            Plan(steps=29_000, lr=1e-3),
            0.23,
            "draws pocket scenes: a caption, and texts for boxes",
            takes=("data", "base", "variant", "bins", "init", "aided", "relearn"),
        ),
    )
}
