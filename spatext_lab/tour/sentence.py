# SPDX-License-Identifier: Apache-2.0
"""The tour's ReCo: the same scene as one token sequence with boxes, and its images."""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup

from spatext_lab.evaluation.methods import RECO
from spatext_lab.figures import outline
from spatext_lab.scene import Region, Scene
from spatext_lab.tour.markup import figure, prose, tiles
from spatext_lab.tour.plan import Tour


def section(tour: Tour) -> list[Markup]:
    """The tokens and the images, or why this scene cannot be tokenized."""
    lead = prose(
        "ReCo needs no map. Each edge of a region's box is rounded to one of "
        f"{tour.reco.position_tokens.bins} positions, each position is a token, and four of them "
        "precede the region's text. The text encoder reads it all as one sequence. Regions as wide "
        "as the image, such as a sky, are left to the caption here."
    )
    asked = Scene(tour.scene.caption, list(_objects(tour.scene)))
    try:
        sentence = tour.reco.tokens(asked)
    except ValueError as error:
        tour.page.facts["sentence"] = {"refused": str(error)}
        return [lead, prose(f"This scene cannot be tokenized: {error}.")]
    used = sum(token.region >= 0 for token in sentence.tokens)
    tour.page.facts["sentence"] = {"tokens": used, "room": len(sentence.tokens)}
    tour.page.facts["sentence"]["dropped"] = list(sentence.dropped)
    return [
        lead,
        Markup(sentence._repr_html_()),
        figure(
            tiles(_pictures(tour, asked), 200),
            "The same seeds as above, conditioned on boxes in place of outlines. Objects should "
            "fill their boxes; their shapes are up to the model.",
            "The pocket model was trained on boxes of objects alone: with a box for the sky too, "
            "it may smear the objects in it. On 512 unseen scenes one object in "
            "sixteen was not the one in the scene; of equal objects one may be missing.",
        ),
    ]


def _objects(scene: Scene) -> Iterator[Region]:
    """Boxes for the regions that are not as wide as the image."""
    for region in scene.regions:
        x0, _, x1, _ = region.box
        if x1 - x0 < 1:
            yield Region(region.text, box=region.box)


def _pictures(tour: Tour, asked: Scene) -> list[tuple[Markup, str]]:
    settings = RECO | {"num_inference_steps": tour.budget.denoising_steps}
    cells = []
    for seed, image in enumerate(tour.reco([asked] * tour.budget.seeds, **settings).images):
        label = f"ReCo, seed {seed}"
        alt = f"{asked.caption}: sampled by {label}, boxes outlined"
        shown = tour.page.image(f"reco-{seed}", outline(image, asked), alt, seed=seed, **settings)
        cells.append((shown, label))
    return cells
