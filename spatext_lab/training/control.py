# SPDX-License-Identifier: Apache-2.0
"""Control while a model learns: how well it keeps to a few layouts that it is not trained on.

A loss hardly shows when a model begins to follow its layout. Images of the same scenes and noise,
sampled again and again, do.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from spatext_lab.evaluation.layouts import Layouts, photo_layouts, pocket_layouts
from spatext_lab.evaluation.methods import JOINT, without_thin
from spatext_lab.evaluation.segmenters import segmenter_named
from spatext_lab.figures import charts
from spatext_lab.figures.png import png
from spatext_lab.scene import Scene
from spatext_lab.text_to_image.base import ScenePipeline
from spatext_lab.training.job import Job
from spatext_lab.training.log import EVERY, Log, control_rows
from spatext_lab.training.loop import Step, Trainer

PICTURE = "control.png"
SEED, AT_ONCE = 0, 4  # of the noise; images that are sampled at a time
PHOTOS = {"num_inference_steps": 20, "guidance_scale": 4.0}  # ReCo's released scale
MOST = 0.05  # of the training's time, beyond which a larger distance is advised


def layouts_of(job: Job, options: dict[str, Any], segmenter: str | None) -> Layouts | None:
    """The layouts of a job: of the pocket world, or of its photos; None without a segmenter.

    Args:
        job: whose model is asked.
        options: the recipe's, as they were given.
        segmenter: for photos, see `segmenter_named`.

    Raises:
        ValueError: a job that has no layout; and what `photo_layouts` raises.
    """
    if not job.protocol:
        raise ValueError("control needs a layout; recipes spatext, reco and gligen have one")
    data = options.get("data")
    if data is None:
        return pocket_layouts(job.protocol)
    if segmenter is None:
        print("no control is measured: photos need --segmenter, such as models/mask2former")
        return None
    choice = {k: options[k] for k in ("licences", "categories") if k in options}
    found = segmenter_named(segmenter)
    return photo_layouts(job.protocol, data, job.model.image_size, found, **choice)


class Control:
    """Measures control every so many steps, and writes it to the log.

    Args:
        trainer: its weights are changed while images are sampled, and put back to the last bit.
        job: what is trained.
        layouts: what is asked for; None to write the log alone.
        log: gets a row for each measurement, and every 50 steps.
        every: steps between measurements; None for never.
    """

    def __init__(
        self, trainer: Trainer, job: Job, layouts: Layouts | None, log: Log, every: int | None
    ) -> None:
        self.trainer, self.job, self.layouts, self.log = trainer, job, layouts, log
        self.every = every if layouts else None
        photos = layouts is not None and layouts.true[0].width > 64
        self.settings = PHOTOS if photos else JOINT
        self.warned = False
        if self.layouts and not self.log.rows:
            print(f"{layouts.name} of true images {layouts.score(layouts.true):.3f}")
            self._tell(self.log.add(self.measure()))

    def __call__(self, step: Step) -> None:
        """Called after each step."""
        done = step.index + 1
        last = done == self.trainer.plan.steps
        if self.every and (last or done % self.every == 0):
            start = time.perf_counter()
            control = self.measure()
            self._warn(time.perf_counter() - start, step)
            self._tell(self.log.add(control))
        elif last or done % EVERY == 0:
            self.log.add()

    @torch.no_grad()
    def measure(self) -> float:
        """The score of images that the average of the weights samples, from the same noise."""
        pipeline, images = self.job.model, []
        pipeline.set_progress_bar_config(disable=True)
        scenes = [_expressible(pipeline, scene) for scene in self.layouts.scenes]
        with averaged(self.trainer), self.trainer.accelerator.autocast():
            for k in range(0, len(scenes), AT_ONCE):
                images += pipeline(scenes[k : k + AT_ONCE], seed=SEED + k, **self.settings).images
        return self.layouts.score(images)

    def _tell(self, row: dict[str, Any]) -> None:
        loss = f", loss {row['loss']:.4f}" if "loss" in row else ""
        print(f"step {row['step']}: {self.layouts.name} {row['control']:.3f}{loss}", flush=True)

    def _warn(self, seconds: float, step: Step) -> None:
        """Says once where measuring takes more than its part of the time."""
        training = self.every * step.seconds / (step.index + 1)
        if seconds > MOST * training and not self.warned:
            more = round(self.every * seconds / (MOST * training))
            print(f"measuring takes {seconds / training:.0%} of the time; --control {more} less")
            self.warned = True

    def draw(self, folder: Path) -> None:
        """Writes the curve into a model's folder, where something was measured."""
        points = list(control_rows(self.log.rows)) if self.layouts else []
        if not points:
            return
        name, steps = self.layouts.name, [step for step, _ in points]
        true = {"true images": self.layouts.score(self.layouts.true)}
        lines = {name: (steps, [value for _, value in points])}
        figure = charts.curve(lines, "step", name, true)
        alt = f"{name} on held-out layouts against the step of the training."
        (folder / PICTURE).write_bytes(png(figure, alt))


def _expressible(pipeline: ScenePipeline, scene: Scene) -> Scene:
    """The scene without boxes that ReCo's position tokens cannot express."""
    tokens = getattr(pipeline, "position_tokens", None)
    return without_thin(pipeline, scene) if tokens and tokens.bins else scene


@contextmanager
def averaged(trainer: Trainer) -> Iterator[None]:
    """The trainer's module with the average of its weights, ready to sample; then as it was."""
    training = trainer.module.training
    trainer.ema.store(trainer.weights)
    trainer.ema.copy_to(trainer.weights)
    trainer.module.eval()
    try:
        yield
    finally:
        trainer.ema.restore(trainer.weights)
        trainer.module.train(training)
