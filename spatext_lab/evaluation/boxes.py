# SPDX-License-Identifier: Apache-2.0
"""How well an image follows a layout of boxes: the judge as a detector, and the papers' metrics.

A detection is a connected segment of one kind of object. Its score is the judge's mean probability
of the kind over the segment. Equal objects that touch are one segment to it; the report on true
images shows what that costs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from scipy import ndimage

from spatext_lab.clip import Clip
from spatext_lab.datasets.pocket import COLOURS, KINDS, LABELS, PocketItem, Segment, pocket_item
from spatext_lab.evaluation.judge import Judge
from spatext_lab.evaluation.metrics import bootstrap, frechet_distance
from spatext_lab.images import to_tensor
from spatext_lab.scene import Scene
from spatext_lab.scene.places import Box, tight_box
from spatext_lab.scene.scene import box_at

LEAST_PIXELS = 12  # of a segment; the smallest objects of the pocket world have 20
LEAST_SHARE = 0.1  # the least fraction of a box that its object fills; a thin moon fills 0.3


@dataclass(frozen=True)
class Detection:
    """One object found in an image."""

    label: str  # one of KINDS
    colour: str | None  # one of COLOURS: of most of its pixels that have a colour
    score: float  # in [0, 1]
    box: Box  # normalised xyxy


@torch.no_grad()
def detections(images: Sequence[Image.Image], judge: Judge) -> list[list[Detection]]:
    """The objects in each image (64 x 64 RGB), in order of falling score."""
    pixels = to_tensor(np.stack([np.asarray(image) for image in images]))
    kinds, colours = judge.logits(pixels)
    sure = kinds.softmax(1)
    seen = zip(kinds.argmax(1).numpy(), colours.argmax(1).numpy(), sure.numpy(), strict=True)
    return [found_in(*maps) for maps in seen]


def found_in(
    kinds: Int[np.ndarray, "h w"], colours: Int[np.ndarray, "h w"], sure: Float[np.ndarray, "l h w"]
) -> list[Detection]:
    """The objects of one image, from the judge's labels and probabilities at each pixel."""
    found = []
    for label in np.unique(kinds[kinds < len(KINDS)]):
        # dilated by one pixel, so that a boat's sail and hull, separated by its mast, are one boat
        patches, count = ndimage.label(ndimage.binary_dilation(kinds == label))
        for number in range(1, count + 1):
            patch = (patches == number) & (kinds == label)
            if patch.sum() < LEAST_PIXELS:
                continue
            score = float(sure[label][patch].mean())
            found.append(Detection(LABELS[label], _colour(colours[patch]), score, tight_box(patch)))
    return sorted(found, key=lambda one: -one.score)


def _colour(pixels: Int[np.ndarray, " n"]) -> str | None:
    coloured = pixels[pixels > 0]
    return COLOURS[np.bincount(coloured).argmax() - 1] if len(coloured) else None


def box_ap(
    found: Sequence[Sequence[Detection]], asked: Sequence[Sequence[tuple[str, Box]]]
) -> dict[str, float]:
    """COCO's average precision of the boxes found against those asked for, by torchmetrics.

    Args:
        found: the detections of each image.
        asked: (kind, box) of every object of each image.

    Returns:
        ap (mean over IoU 0.50 to 0.95) and ap50, both in [0, 1], means over the kinds.
    """
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(box_format="xyxy", iou_type="bbox")
    size = 64.0  # COCO counts areas in pixels; all sizes count here, so any scale would do
    for drawn, wanted in zip(found, asked, strict=True):
        guess = {
            "boxes": size * torch.tensor([one.box for one in drawn]).reshape(-1, 4),
            "scores": torch.tensor([one.score for one in drawn]),
            "labels": torch.tensor([LABELS.index(one.label) for one in drawn], dtype=torch.int64),
        }
        truth = {
            "boxes": size * torch.tensor([box for _, box in wanted]).reshape(-1, 4),
            "labels": torch.tensor([LABELS.index(kind) for kind, _ in wanted], dtype=torch.int64),
        }
        metric.update([guess], [truth])
    result = metric.compute()
    return {"ap": round(result["map"].item(), 4), "ap50": round(result["map_50"].item(), 4)}


def anything(
    found: Sequence[Sequence[Detection]], asked: Sequence[Sequence[tuple[str, Box]]]
) -> tuple[list[list[Detection]], list[list[tuple[str, Box]]]]:
    """Merges all kinds into one, so that `box_ap` measures location only."""
    one = KINDS[0]
    drawn = [[replace(thing, label=one) for thing in row] for row in found]
    return drawn, [[(one, box) for _, box in row] for row in asked]


# ReCo, arXiv 2211.15518, section 4 ("region classification accuracy"): a classifier on the crops
def box_correct(
    kinds: Int[np.ndarray, "h w"],
    colours: Int[np.ndarray, "h w"],
    box: Box,
    label: int,
    colour: int | None,
) -> bool:
    """Whether the object that fills most of a box is of the kind asked for, and in its colour.

    The backdrop does not count, because no object fills a box to its corners; but the object must
    cover at least LEAST_SHARE of the box.

    Args:
        kinds: the judge's label map (index into LABELS).
        colours: the judge's colour map.
        box: normalised xyxy.
        label: index into LABELS.
        colour: number of the colour (1 ...); None where any will do.
    """
    inside = box_at(box, *kinds.shape)
    things = kinds[inside & (kinds < len(KINDS))]
    if len(things) == 0:
        return False
    counts = np.bincount(things)
    if counts.argmax() != label or counts[label] < LEAST_SHARE * inside.sum():
        return False
    if colour is None:
        return True
    coloured = colours[inside & (kinds == label) & (colours > 0)]
    return len(coloured) > 0 and bool(np.bincount(coloured).argmax() == colour)


# SceneFID: the Fréchet distance between crops of generated and of true objects (ReCo, section 4).
# Here between CLIP's embeddings, as for whole images; no Inception network is at hand offline.
@torch.no_grad()
def scene_distance(
    drawn: Sequence[Image.Image],
    true: Sequence[Image.Image],
    scenes: Sequence[Scene],
    clip: Clip,
) -> float:
    """Fréchet distance between CLIP's embeddings of the boxes' contents, generated against true."""
    clouds = []
    for images in (drawn, true):
        crops = [
            crop.resize((clip.image_size, clip.image_size), Image.Resampling.BILINEAR)
            for image, scene in zip(images, scenes, strict=True)
            for crop in _crops(image, scene)
        ]
        pixels = (to_tensor(np.stack([np.asarray(crop) for crop in crops])) + 1) / 2
        clouds.append(clip.encode_images(pixels).numpy())
    return round(frechet_distance(*clouds), 4)


def _crops(image: Image.Image, scene: Scene) -> list[Image.Image]:
    w, h = image.size
    boxes = [region.box for region in scene.regions]
    return [
        image.crop(tuple(round(v * s) for v, s in zip(b, (w, h, w, h), strict=True))) for b in boxes
    ]


@dataclass(frozen=True)
class LayoutTask:
    """One evaluation scene of the box protocol: all objects of an unseen image, as boxes."""

    item: PocketItem

    @property
    def scene(self) -> Scene:
        """The scene that the method is conditioned on."""
        return self.item.layout

    @property
    def things(self) -> list[Segment]:
        """The truth of each region of the scene, in its order."""
        return [segment for segment in self.item.segments if segment.is_thing]


def layout_tasks(count: int, seed: int = 0, split: str = "test") -> Iterator[LayoutTask]:
    """The first `count` scenes of a split; `seed` has no effect here."""
    return (LayoutTask(pocket_item(split, index)) for index in range(count))


def layout_scores(
    todo: Sequence[LayoutTask], images: Sequence[Image.Image], judge: Judge, clip: Clip
) -> dict:
    """The metrics of images against layouts: ReCo's table 1, with our judge and our CLIP.

    Returns:
        regions, region_accuracy and the same for seen and held-out combinations, each with a 95 %
        interval by scene; ap, ap50; ap50_place, where a box counts whatever kind of object is in
        it; frechet_distance of images, scene_distance of their objects.
    """
    scene, correct, held = (np.array(c) for c in zip(*_rows(todo, images, judge), strict=True))
    report = {"regions": len(correct)}
    groups = {"": correct == correct, "_seen": ~held, "_heldout": held}
    for name, use in groups.items():
        values = correct[use]
        report[f"region_accuracy{name}"] = round(float(values.mean()), 4) if use.any() else None
        if use.any():
            interval = bootstrap(values, scene[use])
            report[f"region_accuracy{name}_95"] = [round(x, 4) for x in interval]
    asked = [
        [(thing.label, region.box) for thing, region in zip(t.things, t.scene.regions, strict=True)]
        for t in todo
    ]
    found = detections(images, judge)
    report |= box_ap(found, asked)
    report["ap50_place"] = box_ap(*anything(found, asked))["ap50"]
    if len(todo) > 1:  # one image has no covariance
        report |= _distances(todo, images, clip)
    return report


def _rows(
    todo: Sequence[LayoutTask], images: Sequence[Image.Image], judge: Judge
) -> Iterator[tuple[int, bool, bool]]:
    """(number of the scene, correct, held out) of each region."""
    for number, (task, image) in enumerate(zip(todo, images, strict=True)):
        kinds, colours = (seen[0].numpy() for seen in judge(to_tensor(np.array(image)[None])))
        for thing, region in zip(task.things, task.scene.regions, strict=True):
            wanted = LABELS.index(thing.label), COLOURS.index(thing.colour) + 1
            yield number, box_correct(kinds, colours, region.box, *wanted), thing.held_out


@torch.no_grad()
def _distances(todo: Sequence[LayoutTask], images: Sequence[Image.Image], clip: Clip) -> dict:
    true = [Image.fromarray(task.item.image) for task in todo]
    scenes = [task.scene for task in todo]
    drawn, real = (
        clip.encode_images(
            (to_tensor(np.stack([np.asarray(image) for image in some])) + 1) / 2
        ).numpy()
        for some in (images, true)
    )
    return {
        "frechet_distance": round(frechet_distance(drawn, real), 4),
        "scene_distance": scene_distance(images, true, scenes, clip),
    }
