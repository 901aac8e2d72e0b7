# SPDX-License-Identifier: Apache-2.0
"""ReCo's training examples: random views of images with a text for each box."""

from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from random import Random
from typing import Unpack

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from spatext_lab.datasets.augment import random_view
from spatext_lab.datasets.coco import CocoItem, PhotoChoice, thing_names
from spatext_lab.datasets.pocket import pocket_item
from spatext_lab.datasets.pocket.paintskills import SKILLS, skill_item
from spatext_lab.datasets.pocket.pretraining import large_objects
from spatext_lab.datasets.pocket.world import PocketItem, composed
from spatext_lab.scene import Region, Scene
from spatext_lab.text_to_image.base import ScenePipeline
from spatext_lab.text_to_image.unet import PocketUNet
from spatext_lab.training import cache

LARGE, SCENES, PER_SKILL = 20_000, 12_000, 3_000
LARGE_AREA = 1 / 16  # of the image, at least, that a large object's box covers
VIEWS, MIN_AREA = 4, 0.005  # of a COCO photo, and of an object in it
# ReCo takes 20 boxes of an image at most; the context length is the tighter limit.
MOST_REGIONS = 20


class Stages:
    """Which views a training step has: one large object, several, then whole scenes.

    A box first has an effect where its object fills much of the image and where nobody has to tell
    which of several boxes is whose. So the first steps have views with one large box, at half the
    resolution; the next ones several; then come all views, one step of four at half the resolution.
    On whole scenes from the start the pocket model did not learn boxes at all. A cache without half
    latents has one stage, the last.

    Args:
        pool: the views.
        ends: the step before which all have one large box, and the one before which all have large
            boxes alone.
    """

    def __init__(self, pool: cache.Cache, ends: tuple[int, int]) -> None:
        self.pool, self.ends = pool, ends
        staged = pool.half_latents is not None
        smallest = [_smallest(scene) for scene in pool.scenes] if staged else []
        large = [i for i, area in enumerate(smallest) if area >= LARGE_AREA]
        one = [i for i in large if len(pool.scenes[i].regions) == 1]
        self.one, self.large, self.all = map(torch.tensor, (one, large, range(len(pool))))

    def draw(
        self, step: int, batch: int, generator: torch.Generator
    ) -> tuple[Int[Tensor, "b"], Float[Tensor, "b c h w"]]:
        """The indices of a step's views, uniformly at random, and their latents."""
        staged = self.pool.half_latents is not None
        one, large = (step < end for end in self.ends)
        known = self.one if one else self.large if large else self.all
        if not (staged and len(known)):
            known = self.all
        small = staged and (large or step % 4 == 0)
        index = known[torch.randint(len(known), (batch,), generator=generator)]
        return index, (self.pool.half_latents if small else self.pool.latents)[index]


def _smallest(scene: Scene) -> float:
    """The area of a scene's smallest box, as a fraction of the image; 0 where it has none."""
    boxes = (region.box for region in scene.regions)
    return min(((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes), default=0.0)


def training_pool(
    model: ScenePipeline,
    data: Path | None,
    seed: int,
    folder: Path | None = None,
    **choice: Unpack[PhotoChoice],
) -> tuple[cache.Cache, str]:
    """The views that a model is trained on, and a phrase for the card.

    Args:
        data: a folder in COCO layout; None for pocket scenes and PaintSkills' four skills in them.
        folder: of caches of photos, see `cache.opened`.
        choice: of the photos.
    """
    halves = isinstance(model.unet, PocketUNet)  # a base that knows 8 x 8 latents begins with them
    if data is None:
        total = LARGE + SCENES + len(SKILLS) * PER_SKILL
        views = pocket_views(LARGE, SCENES, PER_SKILL, model.image_size, seed)
        phrase = (
            f"random views of {LARGE} pocket images of large objects, scenes train 0-{SCENES - 1} "
            f"and {PER_SKILL} of each skill"
        )
        return cache.build(views, total, model.vae, halves=halves), phrase
    photos = coco_views(data, model.image_size, seed, **choice)
    pool = cache.opened(photos, model.vae, halves=halves, folder=folder)
    shown = f"{len(pool) // VIEWS} photos of {data.name}, train2017"
    return pool, f"{VIEWS} random views each of {shown}"


def pocket_views(
    large: int, scenes: int, per_skill: int, size: int, seed: int
) -> Iterator[cache.Example]:
    """A random view each of large objects, training scenes and every skill's training prompts."""
    close = (_close_item(seed, i) for i in range(large))
    worlds = (pocket_item("train", i) for i in range(scenes))
    skills = (skill_item(skill, "train", i) for i in range(per_skill) for skill in SKILLS)
    shown = chain(
        ((item.image, item.captions, item.layout.regions) for item in chain(close, worlds)),
        ((item.image, (item.prompt,), item.scene.regions) for item in skills),
    )
    for k, (image, captions, regions) in enumerate(shown):
        yield _view(Image.fromarray(image), captions, regions, size, Random(f"{seed}/view/{k}"))


def _close_item(seed: int, index: int) -> PocketItem:
    """One to four objects that fill much of the image, as the text-to-image model learned them."""
    rng = Random(f"{seed}/close/{index}")
    return composed(rng, "train", index, lambda: large_objects(rng))


def _view(image: Image.Image, captions, regions, size: int, rng: Random) -> cache.Example:
    view = random_view(image, captions, regions, size, rng)
    return cache.Example(view.image, view.captions, Scene(view.captions[0], view.regions))


def coco_views(data: Path, size: int, seed: int, **choice: Unpack[PhotoChoice]) -> cache.Photos:
    """VIEWS random views of each photo of a COCO folder, with its objects as boxes."""
    usual = {"min_area": MIN_AREA, "categories": thing_names(data, "train")}
    fixed = {"regions": (1, MOST_REGIONS), "boxes": True}
    made = {"kind": "views", "size": size, "views": VIEWS, "seed": seed}
    return cache.Photos(data, usual | choice | fixed, made, partial(_views, VIEWS, size, seed))


def _views(count: int, size: int, seed: int, item: CocoItem) -> list[cache.Example]:
    image = item.image()
    regions = [Region(region.text, box=region.box) for region in item.scene.regions]
    names = (f"{seed}/view/{item.image_id}/{k}" for k in range(count))
    return [_view(image, item.captions, regions, size, Random(name)) for name in names]
