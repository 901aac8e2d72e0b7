# SPDX-License-Identifier: Apache-2.0
"""The scenes of a comparison: the same for all methods, as masks or as boxes."""

from dataclasses import dataclass, replace

from spatext_lab.evaluation.methods import METHODS
from spatext_lab.evaluation.tasks import Task, layout_tasks, tasks
from spatext_lab.scene import Region, Scene
from spatext_lab.scene.places import Box, tight_box

SPLIT = "test"
MAIN = "scenes"  # the set of the table
AGAIN = 3  # further images of a scene, for its diversity
DIVERSE = 32  # scenes whose diversity is measured, at most
_APART = 100_003  # between the seeds of a scene's images


@dataclass(frozen=True)
class SceneSet:
    """Scenes that are sampled one after the other, image k with seed `seed` + k.

    Args:
        name: of the folder that keeps their images.
        todo: the tasks, their regions as masks.
        boxes: the box of each region of each task.
        seed: of the first image.
    """

    name: str
    todo: tuple[Task, ...]
    boxes: tuple[tuple[Box, ...], ...]
    seed: int

    def asked(self, method: str) -> list[Task]:
        """The tasks as a method reads them: with boxes if ReCo's protocol is its own."""
        if METHODS[method].protocol != "boxes":
            return list(self.todo)
        return [with_boxes(*each) for each in zip(self.todo, self.boxes, strict=True)]


def with_boxes(task: Task, boxes: tuple[Box, ...]) -> Task:
    """The task with a box for each region, in place of its mask."""
    pairs = zip(task.scene.regions, boxes, strict=True)
    regions = [Region(region.text, box=box) for region, box in pairs]
    return replace(task, scene=Scene(task.scene.caption, regions))


def with_masks(task: Task) -> Task:
    """The task with the true segment's mask for each region, in place of its box."""
    regions = [Region(segment.text, mask=segment.mask) for segment in task.segments]
    return replace(task, scene=Scene(task.scene.caption, regions))


def scene_sets(scenes: int, seed: int, protocol: str) -> list[SceneSet]:
    """The scenes of the table, and the first of them again with other seeds.

    Args:
        scenes: how many, the first of the test split.
        seed: of the first image, and of the choice of segments.
        protocol: "boxes", all objects of a scene; "segments", 1 to 3 of its segments.
    """
    if protocol == "boxes":
        todo = [with_masks(task) for task in layout_tasks(scenes, SPLIT)]
    else:
        todo = list(tasks(scenes, seed, SPLIT))
    boxes = tuple(tuple(tight_box(mask) for mask in task.masks) for task in todo)
    sets = [SceneSet(MAIN, tuple(todo), boxes, seed)]
    some = min(scenes, DIVERSE)
    return sets + [
        SceneSet(f"again-{k}", tuple(todo[:some]), boxes[:some], seed + k * _APART)
        for k in range(1, AGAIN + 1)
    ]
