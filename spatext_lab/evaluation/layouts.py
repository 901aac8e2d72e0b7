# SPDX-License-Identifier: Apache-2.0
"""A few layouts that no training saw, and how well images keep to them: one number, quickly."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from jaxtyping import Bool
from PIL import Image

from spatext_lab import zoo
from spatext_lab.datasets.coco import PhotoChoice, read_coco, thing_names
from spatext_lab.evaluation.boxes import Detection, box_ap, detections
from spatext_lab.evaluation.judge import Judge
from spatext_lab.evaluation.metrics import touching
from spatext_lab.evaluation.report import scores
from spatext_lab.evaluation.segmenters import Segmenter
from spatext_lab.evaluation.tasks import layout_tasks, tasks
from spatext_lab.scene import Region, Scene
from spatext_lab.scene.places import tight_box

COUNT = 16
NAMES = {"segments": "local IoU", "boxes": "box AP50"}


@dataclass(frozen=True)
class Layouts:
    """Scenes, and the score of an image for each.

    Args:
        scenes: what a model is asked for.
        score: from as many images to a number in [0, 1].
        true: the images that the scenes are from.
        name: of the number, for tables.
    """

    scenes: tuple[Scene, ...]
    score: Callable[[Sequence[Image.Image]], float]
    true: tuple[Image.Image, ...]
    name: str


def pocket_layouts(protocol: str, count: int = COUNT) -> Layouts:
    """Scenes of the pocket world's validation split, judged by the shipped judge.

    Args:
        protocol: "segments", by their masks and local IoU; "boxes", by their boxes and COCO's
            average precision at an IoU of 0.5.
        count: number of scenes.
    """
    judge = Judge.from_pretrained(zoo.folder("pocket", "judge"))
    todo = list((tasks if protocol == "segments" else layout_tasks)(count, split="val"))

    def local_iou(images: Sequence[Image.Image]) -> float:
        return scores(todo, images, judge)["local_iou"]

    def ap(images: Sequence[Image.Image]) -> float:
        asked = [
            [(s.label, region.box) for s, region in zip(t.segments, t.scene.regions, strict=True)]
            for t in todo
        ]
        return box_ap(detections(images, judge), asked)["ap50"]

    true = tuple(Image.fromarray(task.item.image) for task in todo)
    score = local_iou if protocol == "segments" else ap
    return Layouts(tuple(task.scene for task in todo), score, true, NAMES[protocol])


def photo_layouts(
    protocol: str,
    root: Path,
    size: int,
    segmenter: Segmenter,
    count: int = COUNT,
    **choice: Unpack[PhotoChoice],
) -> Layouts:
    """Scenes of photos of val2017, judged by a segmenter that knows their categories' names.

    Args:
        protocol: as for `pocket_layouts`.
        root: a folder in COCO layout.
        size: of the squares, in pixels.
        segmenter: finds texts with masks in an image, see `segmenters`.
        count: number of photos, at most.
        choice: of the folder's photos.

    Raises:
        FileNotFoundError: the folder has no val2017.
        ValueError: no photo passes.
    """
    usual: dict[str, Any] = {"regions": (1, 3), "min_area": 0.05, "limit": count}
    if protocol == "boxes":  # of things alone, as ReCo is trained
        usual["categories"] = thing_names(root, "val")
    subset = read_coco(root, "val", **usual | choice).not_empty()
    rows = [(Image.fromarray(image), scene) for _, image, scene in subset.squares(size)]
    true, masked = zip(*rows, strict=True)

    def local_iou(images: Sequence[Image.Image]) -> float:
        pairs = zip(images, masked, strict=True)
        ious = [x for image, scene in pairs for x in segment_ious(image, scene, segmenter)]
        return round(float(np.mean(ious)), 4)

    def ap(images: Sequence[Image.Image]) -> float:
        found = [found_boxes(image, segmenter) for image in images]
        asked = [[(region.text, region.box) for region in scene.regions] for scene in boxed]
        return box_ap(found, asked)["ap50"]

    boxed = tuple(Scene(s.caption, [_boxed(region) for region in s.regions]) for s in masked)
    if protocol == "segments":
        return Layouts(masked, local_iou, true, NAMES[protocol])
    return Layouts(boxed, ap, true, NAMES[protocol])


def _boxed(region: Region) -> Region:
    return Region(region.text, box=tight_box(region.mask))


def segment_ious(image: Image.Image, scene: Scene, segmenter: Segmenter) -> list[float]:
    """The intersection over union of each region's mask with what the segmenter finds for it.

    It is `metrics.local_iou` for any segmenter.

    Args:
        image: of the size of the masks.
        scene: regions with masks; those of one text share one segment.
        segmenter: its text for a segment is compared with the regions'.
    """
    found: dict[str, Bool[np.ndarray, "h w"]] = {}
    for text, mask in segmenter(image):
        found[text] = found.get(text, False) | mask
    ious = []
    for region in scene.regions:
        asked = np.any([r.mask for r in scene.regions if r.text == region.text], axis=0)
        seen = touching(found.get(region.text, np.zeros_like(asked)), asked)
        ious.append(float((asked & seen).sum() / (asked | seen).sum()))
    return ious


def found_boxes(image: Image.Image, segmenter: Segmenter) -> list[Detection]:
    """The boxes of an image's segments, the largest first: their area is their score."""
    found = [
        Detection(text, None, float(mask.mean()), tight_box(mask))
        for text, mask in segmenter(image)
    ]
    return sorted(found, key=lambda one: -one.score)
