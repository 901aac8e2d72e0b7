# SPDX-License-Identifier: Apache-2.0
"""The last part of the tour: numbers on scenes that no training saw."""

from __future__ import annotations

from spatext_lab.evaluation.methods import METHODS
from spatext_lab.evaluation.report import evaluate
from spatext_lab.tour.markup import Html, figure, prose, table
from spatext_lab.tour.plan import Tour

NAMES = {
    "spatext": "SpaText (caption and map)",
    "text": "text-to-image (caption alone)",
    "autoencoder": "the true picture, through the autoencoder",
    "true": "the true picture",
}


def section(tour: Tour) -> list[Html]:
    """7: the shipped models, and the two ceilings of what could be reached."""
    found = {}
    for method in NAMES:
        settings = METHODS[method].settings
        if settings:
            settings = settings | {"num_inference_steps": tour.budget.denoising_steps}
        found[method] = evaluate(
            method, scenes=tour.budget.scenes, model=tour.model, settings=settings
        )
    tour.page.facts["measured"] = found
    rows = [
        [
            NAMES[method],
            *(_share(numbers, name) for name in ("local_iou", "region_accuracy")),
            f"{numbers['seconds_per_picture']:.2f} s" if METHODS[method].settings else "",
        ]
        for method, numbers in found.items()
    ]
    quality = found["autoencoder"]["psnr"]
    return [
        prose(
            f"{tour.budget.scenes} scenes of the test split, one to three regions each, one "
            "picture a scene. A small segmenter, the judge, says what is to be seen at each pixel. "
            "Local IoU: how well the drawn thing fills its region. Region accuracy: how often it "
            "is the kind and the colour that was asked for. In brackets, 95 % intervals."
        ),
        figure(
            table(["", "local IoU", "region accuracy", "one picture"], rows),
            "The map is what puts things in their place: compare the first two rows.",
            "The last row is the judge's own error, and the third adds what the autoencoder "
            f"({quality:.1f} dB) loses: a method passes them by luck alone. "
            f"With {tour.budget.scenes} scenes the intervals are wide; "
            "`spatext-lab evaluate --method spatext --scenes 512` narrows them.",
        ),
    ]


def _share(numbers: dict, name: str) -> str:
    low, high = numbers[f"{name}_95"]
    return f"{numbers[name]:.2f} ({low:.2f}–{high:.2f})"
