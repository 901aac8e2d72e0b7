# SPDX-License-Identifier: Apache-2.0
"""A fine-tune short enough to wait for: the text-to-image model begins to read maps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from markupsafe import Markup
from PIL import Image

from spatext_lab.datasets.coco import CocoSubset, read_coco
from spatext_lab.evaluation.report import scores
from spatext_lab.evaluation.tasks import Task, tasks
from spatext_lab.figures import curve, outline
from spatext_lab.figures.progress import Progress
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.tour.markup import figure, prose, tiles
from spatext_lab.tour.plan import Tour, coco_subset
from spatext_lab.training import cache
from spatext_lab.training.cache import Cache
from spatext_lab.training.loop import Plan, Trainer
from spatext_lab.training.recipes.spatext import BATCH, MIN_AREA, fine_tune, widened

SIZE = 64  # of pocket images, in pixels
WARMUP = 10  # steps


@dataclass(frozen=True)
class Reading:
    """A learner looked at after `step` optimiser steps."""

    step: int
    seconds: float  # of training alone
    pipeline: SpaTextPipeline


def learn(tour: Tour, pool: Cache, steps: int, points: int) -> Iterator[Reading]:
    """Fine-tunes on `pool`, yielding the learner before the first step and `points` - 1 times more.

    What is looked at is the moving average of the weights, as in all recipes.
    """
    plan = Plan(steps, tour.budget.rate, warmup=WARMUP)
    learner = widened(tour.base, tour.spatext.clip, tour.spatext.prior)
    job = fine_tune(learner, pool, plan, "the tour")
    trainer = Trainer(job.module, job.loss_at, job.plan, "cpu")
    stops = {round(k * steps / (points - 1)) for k in range(1, points)}
    yield Reading(0, 0.0, learner)
    seconds, last = 0.0, time.perf_counter()
    with Progress(total=steps, desc="learning", unit="step") as bar:
        for step in trainer.run():
            bar.update()
            if step.index + 1 in stops:
                seconds += time.perf_counter() - last
                with _averaged(trainer):
                    yield Reading(step.index + 1, seconds, learner)
                last = time.perf_counter()


@contextmanager
def _averaged(trainer: Trainer) -> Iterator[None]:
    trainer.ema.store(trainer.weights)
    trainer.ema.copy_to(trainer.weights)
    try:
        yield
    finally:
        trainer.ema.restore(trainer.weights)


def section(tour: Tour) -> list[Markup]:
    """Control appears during a fine-tune: images of one scene, and a validation curve."""
    pool, budget = _pool(tour), tour.budget
    todo = list(tasks(budget.judged, split="val"))
    shipped, _ = _look(tour, tour.spatext, todo)
    points, strip, seconds = [], [], 0.0
    for reading in learn(tour, pool, budget.tune_steps, budget.points):
        numbers, image = _look(tour, reading.pipeline, todo)
        label = f"step {reading.step}, IoU {numbers['local_iou']:.2f}"
        alt = f"{tour.scene.caption}: sampled after {reading.step} steps, regions outlined"
        shown = tour.page.image(f"tune-{reading.step}", outline(image, tour.scene), alt, seed=0)
        points.append({"step": reading.step} | numbers)
        strip.append((shown, label))
        seconds = reading.seconds
    tour.page.facts["fine_tune"] = {
        "images": len(pool), "batch": BATCH, "rate": budget.rate, "seconds": round(seconds, 1),
        "scenes": len(todo), "points": points, "shipped": shipped,
    }  # fmt: skip
    return _shown(tour, strip)


def _pool(tour: Tour) -> Cache:
    """Latents and segment vectors of the shipped COCO-format subset."""
    with TemporaryDirectory() as scratch:
        root = coco_subset(Path(scratch))
        how = {"min_area": MIN_AREA, "regions": (1, cache.SEGMENTS)}
        subset = read_coco(root, "train", limit=tour.budget.tune_scenes, **how)
        print(subset.report.text())
        return cached(tour, subset)


def cached(tour: Tour, subset: CocoSubset) -> Cache:
    """What can be learned from a subset's images."""
    found = list(cache.coco_examples(subset, SIZE))
    return cache.build(found, len(found), tour.base.vae, tour.spatext.clip)


def _look(
    tour: Tour, pipeline: SpaTextPipeline, todo: Sequence[Task]
) -> tuple[dict[str, float], Image.Image]:
    """The numbers on validation scenes, and an image of the tour's own scene."""
    images = pipeline([tour.scene, *(task.scene for task in todo)], **tour.settings).images
    found = scores(todo, images[1:], tour.judge)
    return {name: found[name] for name in ("local_iou", "region_accuracy")}, images[0]


def _shown(tour: Tour, strip: list[tuple[Markup, str]]) -> list[Markup]:
    facts = tour.page.facts["fine_tune"]
    steps = [point["step"] for point in facts["points"]]
    values, correct = (
        [point[name] for point in facts["points"]] for name in ("local_iou", "region_accuracy")
    )
    shipped = facts["shipped"]["local_iou"]
    chart = curve(
        {"local IoU": (steps, values), "region accuracy": (steps, correct)},
        "optimiser steps",
        "fraction, 0 to 1",
        {f"local IoU of the shipped model, {shipped:.2f}": shipped},
        (840, 360),
    )
    alt = f"Local IoU rises from {values[0]:.2f} at step 0 to {values[-1]:.2f} at step {steps[-1]}"
    return [
        prose(
            "The first convolution of the text-to-image U-Net gets new input channels for the map, "
            "with weights of zero, so at step 0 the map has no effect at all. Then it learns from "
            f"{facts['images']} images of `data/pocket-coco`, read as any COCO folder is read: "
            f"{steps[-1]} steps of {facts['batch']} images in {facts['seconds']:.0f} s."
        ),
        figure(
            tiles(strip, 140),
            "One scene and one seed at some steps of the fine-tune. At step 0 the outlines mean "
            "nothing to the model. Watch when objects begin to move into them, and when they get "
            "the right kind and colour.",
            f"{steps[-1]} steps are a taste: compare the last one with the shipped model's above.",
        ),
        figure(
            tour.page.image("curve", chart, alt),
            f"Local IoU on {facts['scenes']} validation scenes, which the fine-tune never saw: "
            f"{values[0]:.2f} at step 0, {values[-1]:.2f} at the end. Region accuracy asks for the "
            f"kind and the colour: {correct[0]:.2f} and {correct[-1]:.2f}.",
            f"Each point stands on {facts['scenes']} scenes only, so it wavers by some hundredths.",
        ),
    ]
