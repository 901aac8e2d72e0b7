# SPDX-License-Identifier: Apache-2.0
"""What a tour works with: the models, the scene, and how much of everything there is time for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from spatext_lab import zoo
from spatext_lab.datasets.coco import CocoItem, CocoReport, write_coco
from spatext_lab.datasets.pocket import pocket_item
from spatext_lab.evaluation.judge import Judge
from spatext_lab.evaluation.methods import JOINT
from spatext_lab.reco.pipeline import ReCoPipeline
from spatext_lab.scene import Scene
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from spatext_lab.tour.page import Page

COCO_SCENES = 256  # training scenes of the shipped COCO-format subset


@dataclass(frozen=True)
class Budget:
    """How much of everything; the defaults keep two cores busy for about four minutes."""

    denoising_steps: int = JOINT["num_inference_steps"]
    seeds: int = 4  # images of the scene, with the map and without
    scales: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0)  # of each condition, in the sweep
    swept: int = 7  # validation scenes that give the number of a cell
    judged: int = 20  # validation scenes behind each point of a curve
    points: int = 6  # of a curve
    tune_scenes: int = 256  # of the shipped subset, to learn from
    tune_steps: int = 140  # optimiser steps, about a minute
    rate: float = 2e-3  # of learning; steeper than the recipe's, for there is only a minute
    photos: int = 60  # at most, to learn from
    shown: int = 5  # photos that are set apart and sampled
    photo_steps: int = 100
    scenes: int = 32  # unseen, for the numbers


@dataclass(frozen=True)
class Photos:
    """Photos that can be used, and what became of all others."""

    items: Sequence[CocoItem]
    reports: Sequence[CocoReport]
    lack: str = ""  # why there are too few


@dataclass(frozen=True)
class Tour:
    """What every section is given."""

    page: Page
    scene: Scene
    budget: Budget
    model: str
    base: TextToImagePipeline
    spatext: SpaTextPipeline
    reco: ReCoPipeline
    judge: Judge
    photos: Photos | None
    home: Path  # where the page will be, as the reader would write it

    @property
    def settings(self) -> dict:
        """Sampling settings of all images but the sweep's."""
        return JOINT | {"num_inference_steps": self.budget.denoising_steps}

    @classmethod
    def load(cls, model: str, **rest: Any) -> Tour:
        """Reads the models. Raises what `zoo.folder` raises for a missing or damaged one."""
        return cls(
            model=model,
            base=TextToImagePipeline.from_pretrained(zoo.folder(model, "text-to-image")),
            spatext=SpaTextPipeline.from_pretrained(zoo.folder(model, "spatext")),
            reco=ReCoPipeline.from_pretrained(zoo.folder(model, "reco")),
            judge=Judge.from_pretrained(zoo.folder(model, "judge")),
            **rest,
        )


Section = Callable[[Tour], list[Markup]]


def coco_subset(scratch: Path) -> Path:
    """data/pocket-coco; an installed wheel comes without it, then it is rendered."""
    try:
        return zoo.shipped("pocket-coco")
    except FileNotFoundError:
        write_coco(scratch, "train", (pocket_item("train", i) for i in range(COCO_SCENES)))
        return scratch


@contextmanager
def quiet() -> Iterator[None]:
    """Suppresses the libraries' notices and loading bars, for the tour prints its own."""
    import diffusers
    import transformers

    kept = diffusers.logging.get_verbosity()
    bars = transformers.utils.logging.is_progress_bar_enabled()
    diffusers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers.logging.set_verbosity(kept)
        if bars:
            transformers.utils.logging.enable_progress_bar()
