# SPDX-License-Identifier: Apache-2.0
"""ReCo's training examples: random views of images with a text for each box."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from random import Random
from typing import Unpack

from PIL import Image

from spatext_lab.datasets.augment import random_view
from spatext_lab.datasets.coco import PhotoChoice, read_coco, thing_names
from spatext_lab.datasets.pocket import pocket_item
from spatext_lab.datasets.pocket.paintskills import SKILLS, skill_item
from spatext_lab.scene import Region, Scene
from spatext_lab.training import cache

SCENES, PER_SKILL = 24_000, 12_000
VIEWS, MIN_AREA = 4, 0.005  # of a COCO photo, and of an object in it
# ReCo takes 20 boxes of an image at most; the context length is the tighter limit.
MOST_REGIONS = 20


def examples(
    data: Path | None, size: int, seed: int, **choice: Unpack[PhotoChoice]
) -> tuple[Iterator[cache.Example], int, str]:
    """The views, how many, and a phrase for the card.

    Args:
        data: a folder in COCO layout; None for pocket scenes and PaintSkills' four skills in them.
        choice: of its photos.
    """
    if data is None:
        total = SCENES + len(SKILLS) * PER_SKILL
        phrase = f"random views of pocket scenes train 0-{SCENES - 1} and {PER_SKILL} of each skill"
        return pocket_views(SCENES, PER_SKILL, size, seed), total, phrase
    views, total = coco_views(data, size, seed, **choice)
    photos = f"{total // VIEWS} photos of {data.name}, train2017"
    return views, total, f"{VIEWS} random views each of {photos}"


def pocket_views(count: int, per_skill: int, size: int, seed: int) -> Iterator[cache.Example]:
    """A random view each of pocket training scenes and of every skill's training prompts."""
    worlds = (pocket_item("train", i) for i in range(count))
    skills = (skill_item(skill, "train", i) for i in range(per_skill) for skill in SKILLS)
    shown = chain(
        ((item.image, item.captions, item.layout.regions) for item in worlds),
        ((item.image, (item.prompt,), item.scene.regions) for item in skills),
    )
    for k, (image, captions, regions) in enumerate(shown):
        yield _view(Image.fromarray(image), captions, regions, size, Random(f"{seed}/view/{k}"))


def _view(image: Image.Image, captions, regions, size: int, rng: Random) -> cache.Example:
    view = random_view(image, captions, regions, size, rng)
    return cache.Example(view.image, view.captions, Scene(view.captions[0], view.regions))


def coco_views(
    data: Path, size: int, seed: int, **choice: Unpack[PhotoChoice]
) -> tuple[Iterator[cache.Example], int]:
    """VIEWS random views of each photo of a COCO folder, with its objects as boxes; how many."""
    usual = {"min_area": MIN_AREA, "categories": thing_names(data, "train")} | choice
    subset = read_coco(data, "train", regions=(1, MOST_REGIONS), boxes=True, **usual)
    print(subset.report.text())
    subset.not_empty()

    def views() -> Iterator[cache.Example]:
        for item in subset.items:
            image = item.image()
            regions = [Region(region.text, box=region.box) for region in item.scene.regions]
            for k in range(VIEWS):
                rng = Random(f"{seed}/view/{item.image_id}/{k}")
                yield _view(image, item.captions, regions, size, rng)

    return views(), VIEWS * len(subset.items)
