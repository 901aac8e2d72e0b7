# SPDX-License-Identifier: Apache-2.0
"""Evaluation scenes: what a method is asked for, and the truth that its image is measured by."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random

import numpy as np
from jaxtyping import Bool

from spatext_lab.datasets.pocket import PocketItem, Segment, pocket_item
from spatext_lab.datasets.pocket.paintskills import SkillPrompt
from spatext_lab.scene import Region, Scene

# SpaText, arXiv 2211.14305, section 4.1: 1 to 3 segments, each at least 5 % of the image
COUNT, MIN_AREA = (1, 3), 0.05


@dataclass(frozen=True)
class Task:
    """One evaluation scene.

    Args:
        item: where the scene is from, an unseen image of the pocket world or a skill's prompt.
        scene: what the method is given.
        segments: the true segment of each region of the scene, in its order; none for a prompt.
    """

    item: PocketItem | SkillPrompt
    scene: Scene
    segments: tuple[Segment, ...] = ()

    @property
    def masks(self) -> Bool[np.ndarray, "k h w"]:
        """The masks of the scene's k regions."""
        return np.stack([region.mask for region in self.scene.regions])

    def corrupted(self, change: Callable[[np.ndarray], np.ndarray]) -> "Task":
        """The task with other masks of its regions, each with the true segment that it had.

        The other masks may overlap. The larger ones come first, so that the smaller are on top: a
        backdrop's box would hide the objects in front of it.

        Args:
            change: from a mask to the one that is passed in its place, see
                `datasets.corrupted_masks`.
        """
        regions = [Region(r.text, mask=change(r.mask)) for r in self.scene.regions]
        pairs = zip(regions, self.segments, strict=True)
        pairs = sorted(pairs, key=lambda pair: pair[0].mask.sum(), reverse=True)
        regions, segments = zip(*pairs, strict=True)
        return replace(self, scene=Scene(self.scene.caption, regions), segments=segments)


def tasks(count: int, seed: int = 0, split: str = "test") -> Iterator[Task]:
    """SpaText's protocol: scenes of 1 to 3 segments of an image, by their masks.

    Args:
        count: number of scenes; the first of the split that have a large enough segment.
        seed: of the choice of segments.
        split: of the pocket world.
    """
    index = made = 0
    while made < count:
        item = pocket_item(split, index)
        rng = Random(f"{seed}/task/{split}/{index}")
        large = [s for s in item.segments if s.mask.mean() >= MIN_AREA]
        chosen = rng.sample(large, min(rng.randint(*COUNT), len(large)))
        if chosen:
            made += 1
            regions = [Region(segment.text, mask=segment.mask) for segment in chosen]
            yield Task(item, Scene(item.captions[0], regions), tuple(chosen))
        index += 1


def layout_tasks(count: int, split: str = "test") -> Iterator[Task]:
    """ReCo's protocol: scenes of all objects of an image, by their boxes.

    Args:
        count: number of scenes, the first of the split.
        split: of the pocket world.
    """
    for index in range(count):
        item = pocket_item(split, index)
        yield Task(item, item.layout, tuple(s for s in item.segments if s.is_thing))
