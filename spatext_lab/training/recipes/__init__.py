# SPDX-License-Identifier: Apache-2.0
"""Every model that this project ships, as a recipe: what is trained, on what, for how long.

A recipe is a file of this folder with a function `make(plan, device, *, ...) -> Job`; its keyword
parameters are the recipe's options, for `run` and for the command line.
"""

from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from spatext_lab.training.options import Option, options
from spatext_lab.training.plan import Plan

if TYPE_CHECKING:  # it imports torch, and the recipes' names must be had without
    from spatext_lab.training.job import Job


@dataclass(frozen=True)
class Recipe:
    """A recipe; its file is imported, and torch with it, only when the job is made."""

    name: str
    plan: Plan  # the budget of the shipped weights
    seconds_per_step: float  # measured on one CPU core, for the expected time that is printed
    use: str  # intended use, for the card
    module: str = ""  # that has `make`; the file of the recipe's name in this folder
    gpu: dict[str, int] = field(default_factory=dict)  # its steps and batch where a GPU trains it
    photos: Plan | None = None  # of a run on photos, where that is another: an evening for them all
    photos_gpu: dict[str, int] = field(default_factory=dict)  # as `gpu`, for some 5000 photos
    # parts of a base, which is a folder of models, that it may start from
    reads: tuple[str, ...] = ("text-to-image", "spatext/clip", "spatext/prior")

    @property
    def home(self) -> str:
        """The dotted name of the module that has `make`."""
        return self.module or f"{__name__}.{self.name.replace('-', '_')}"

    @property
    def options(self) -> dict[str, Option]:
        """What `make` takes beside the plan and the device."""
        found = options(self.home, "make")
        return {name: each for name, each in found.items() if name not in ("plan", "device")}

    def budget(self, given: dict[str, Any]) -> Plan:
        """The plan of a run with these options: `photos` where it has `data`."""
        return self.photos if self.photos and given.get("data") else self.plan

    def make(self, plan: Plan, device: str, **given: Any) -> "Job":
        """Builds the module and its data; takes minutes where latents have to be cached.

        Args:
            plan: how long and how fast to learn.
            device: "auto", "cpu" or "cuda".
            given: some of `options`.
        """
        return import_module(self.home).make(plan, device, **given)


RECIPES = {
    "autoencoder": Recipe(
        "autoencoder",
        Plan(steps=6500, lr=2e-3, weight_decay=1e-4),
        0.2,
        "encodes 64 x 64 images as 16 x 16 x 4 latents and decodes them",
        photos=Plan(steps=1500, lr=1e-3, weight_decay=1e-4),
        photos_gpu={"steps": 20_000, "batch": 32},
    ),
    "decoder": Recipe(
        "decoder",
        Plan(steps=15_000, lr=1e-3, weight_decay=1e-4),
        0.16,
        "encodes pocket images as recipe autoencoder does, and decodes them with a better decoder",
    ),
    "clip": Recipe(
        "clip",
        Plan(steps=1500, lr=1e-3, ema_decay=0.998),
        0.35,
        "compares texts with pocket images and their segments",
    ),
    "judge": Recipe(
        "judge",
        Plan(steps=3000, lr=2e-3, ema_decay=0.998),
        0.3,
        "measures generated pocket images; never used to make them",
    ),
    "prior": Recipe(
        "prior",
        Plan(steps=6000, lr=1e-3, ema_decay=0.998),
        0.08,
        "turns the pocket CLIP's text embeddings into image embeddings",
    ),
    "text-to-image": Recipe(
        "text-to-image",
        Plan(
            steps=22_500,
            lr=1e-3,
            warmup=500,
            cooldown=3000,
            ema_decay=0.9995,
            rates={"text_encoder": 0.2},
        ),
        0.65,
        "generates pocket images from captions; the base of SpaText and ReCo",
        gpu={"steps": 8450, "batch": 256},
        photos=Plan(
            steps=6000,
            lr=5e-4,
            warmup=300,
            cooldown=1500,
            ema_decay=0.9995,
            rates={"text_encoder": 0.2},
        ),
        photos_gpu={"steps": 8000, "batch": 256},
    ),
    "spatext": Recipe(
        "spatext",
        Plan(steps=10_000, lr=1e-3),
        0.37,
        "generates pocket scenes: a caption, and texts for regions",
        gpu={"steps": 6000, "batch": 64},
        photos_gpu={"steps": 6000, "batch": 64},
    ),
    "other-maps": Recipe(
        "other-maps",
        Plan(steps=10_000, lr=1e-3),
        0.37,
        "generates pocket scenes as SpaText does, from another kind of map; for comparison",
    ),
    "pixel": Recipe(
        "pixel",
        Plan(steps=9000, lr=1e-3),
        0.33,
        "generates pocket scenes without an autoencoder: SpaText's pixel variant",
        gpu={"steps": 9000, "batch": 64},
    ),
    "reco": Recipe(
        "reco",
        Plan(steps=8000, lr=1e-3, cooldown=1000),
        1.2,
        "generates pocket scenes: a caption, and texts for boxes",
        reads=("text-to-image",),
    ),
    "gligen": Recipe(
        "gligen",
        # Until a gate opens, no gradient reaches the layers behind it: gates learn faster.
        Plan(steps=7000, lr=2e-3, cooldown=1500, rates={"alpha": 5.0}),
        0.95,
        "generates pocket scenes by a frozen text-to-image model: texts for boxes; for comparison",
        reads=("text-to-image",),
    ),
    "update-mask": Recipe(
        "update-mask",
        Plan(steps=1000, lr=2e-3, ema_decay=0.99),
        0.05,
        "says which parts of a pocket image SpaText still changes; from a summary, not the paper",
        reads=("spatext",),
    ),
    "energy": Recipe(
        "energy",
        Plan(steps=2000, lr=2e-3, cooldown=600, ema_decay=0.998),
        0.1,
        "scores how well noisy pocket images fit a spatio-textual map; for guidance",
    ),
}
