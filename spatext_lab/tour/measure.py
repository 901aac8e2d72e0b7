# SPDX-License-Identifier: Apache-2.0
"""The last part of the tour: numbers on scenes that no training saw."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

from markupsafe import Markup

from spatext_lab.evaluation.methods import METHODS
from spatext_lab.evaluation.report import evaluate
from spatext_lab.scene import Scene
from spatext_lab.tour.markup import figure, prose, table
from spatext_lab.tour.plan import Tour

ROUNDS = 9
NAMES = {
    "spatext": "SpaText (caption and map)",
    "text": "text-to-image (caption alone)",
    "autoencoder": "the true image, through the autoencoder",
    "true": "the true image",
}


def section(tour: Tour) -> list[Markup]:
    """The shipped models, and the two ceilings of what could be reached."""
    found = {}
    for method in NAMES:
        settings = METHODS[method].settings
        if settings:
            settings = settings | {"num_inference_steps": tour.budget.denoising_steps}
        found[method] = evaluate(
            method, scenes=tour.budget.scenes, model=tour.model, settings=settings
        )
    pipelines = {"spatext": tour.spatext, "text": tour.base}
    times = _seconds(pipelines, tour.scene, tour.budget.denoising_steps)
    tour.page.facts |= {"measured": found, "seconds_per_image": times}
    rows = [
        [
            NAMES[method],
            *(_share(numbers, name) for name in ("local_iou", "region_accuracy")),
            f"{times[method]:.2f} s" if method in times else "",
        ]
        for method, numbers in found.items()
    ]
    quality = found["autoencoder"]["psnr"]
    return [
        prose(
            f"{tour.budget.scenes} scenes of the test split, one to three regions each, one "
            "image per scene. A small segmenter, the judge, labels each pixel. Local IoU: how well "
            "the generated object fills its region. Region accuracy: how often it has the kind and "
            "the colour of the region's text. In brackets, 95 % intervals."
        ),
        figure(
            table(["", "local IoU", "region accuracy", "one image"], rows),
            "The map puts objects in their place: compare the first two rows.",
            "The last row is the judge's own error, and the third adds what the autoencoder "
            f"({quality:.1f} dB) loses: a method passes them by luck alone. "
            f"With {tour.budget.scenes} scenes the intervals are wide; "
            "`spatext-lab evaluate --method spatext --scenes 512` narrows them.",
        ),
    ]


def _seconds(pipelines: Mapping[str, Callable], scene: Scene, steps: int) -> dict[str, float]:
    """Seconds of one image by method: the median of ROUNDS, in which the methods take turns.

    So one busy moment of the machine does not make one of them look slow.
    """
    times: dict[str, list[float]] = {method: [] for method in pipelines}
    for _ in range(ROUNDS):
        for method, pipeline in pipelines.items():
            settings = METHODS[method].settings | {"num_inference_steps": steps}
            start = time.perf_counter()
            pipeline(scene, **settings)
            times[method].append(time.perf_counter() - start)
    return {method: round(median(taken), 3) for method, taken in times.items()}


def _share(numbers: dict, name: str) -> str:
    low, high = numbers[f"{name}_95"]
    return f"{numbers[name]:.2f} ({low:.2f}–{high:.2f})"
