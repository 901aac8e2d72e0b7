# SPDX-License-Identifier: Apache-2.0
"""How well an image keeps to a layout of boxes: the judge as a detector, and the papers' metrics.

A detection is a connected patch of one kind of object. Its score, as any detector has one, is the
judge's mean probability of the kind over the patch. Equal objects that touch are one patch to it;
the report on true images shows what that costs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from scipy import ndimage

from spatext_lab.clip import Clip
from spatext_lab.datasets.pocket import COLOURS, KINDS, LABELS, SIZE
from spatext_lab.evaluation.average_precision import average_precision, matched, resamples
from spatext_lab.evaluation.judge import BATCH, Judge
from spatext_lab.evaluation.metrics import frechet_distance, mean_and_interval, middle
from spatext_lab.evaluation.tasks import Task
from spatext_lab.images import to_tensor, to_unit
from spatext_lab.scene import Scene
from spatext_lab.scene.places import Box, tight_box
from spatext_lab.scene.scene import box_at

LEAST_PIXELS = 12  # a smaller patch is a speck, not an object; the world's smallest have 20
LEAST_FRACTION = 0.1  # of a box that an object must fill to be what is in it; a thin moon fills 0.3


@dataclass(frozen=True)
class Detection:
    """An object that was found in an image.

    Args:
        label: one of KINDS; of a photo any text.
        colour: one of COLOURS, the most frequent of its coloured pixels; None where there are none.
        score: the judge's mean probability of the label over its pixels, in [0, 1].
        box: (x0, y0, x1, y1) as fractions of the image.
    """

    label: str
    colour: str | None
    score: float
    box: Box


@torch.no_grad()
def detections(images: Sequence[Image.Image], judge: Judge) -> list[list[Detection]]:
    """The objects in each image (64 x 64 RGB), by falling score."""
    found = []
    for start in range(0, len(images), BATCH):
        kinds, colours = judge.logits(to_tensor(images[start : start + BATCH]))
        maps = kinds.argmax(1), colours.argmax(1), kinds.softmax(1)
        found += [found_in(*each) for each in zip(*(m.numpy() for m in maps), strict=True)]
    return found


def found_in(
    kinds: Int[np.ndarray, "h w"],
    colours: Int[np.ndarray, "h w"],
    probabilities: Float[np.ndarray, "l h w"],
) -> list[Detection]:
    """The objects of one image, by falling score.

    Args:
        kinds: the judge's label map.
        colours: its colour map.
        probabilities: its probability of each of the l labels at each pixel.
    """
    found = []
    for label in np.unique(kinds[kinds < len(KINDS)]):
        # grown by a pixel, so that a boat's sail and its hull, a line of mast apart, are one boat
        patches, count = ndimage.label(ndimage.binary_dilation(kinds == label))
        for number in range(1, count + 1):
            patch = (patches == number) & (kinds == label)
            if patch.sum() < LEAST_PIXELS:
                continue
            score = float(probabilities[label][patch].mean())
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
    names = [one.label for row in found for one in row] + [kind for row in asked for kind, _ in row]
    number = {name: k for k, name in enumerate(sorted(set(names)))}
    # COCO counts areas in pixels; all sizes count here, so any scale would do
    for row, wanted in zip(found, asked, strict=True):
        guess = {
            "boxes": SIZE * torch.tensor([one.box for one in row]).reshape(-1, 4),
            "scores": torch.tensor([one.score for one in row]),
            "labels": torch.tensor([number[one.label] for one in row], dtype=torch.int64),
        }
        truth = {
            "boxes": SIZE * torch.tensor([box for _, box in wanted]).reshape(-1, 4),
            "labels": torch.tensor([number[kind] for kind, _ in wanted], dtype=torch.int64),
        }
        metric.update([guess], [truth])
    result = metric.compute()
    return {"ap": round(result["map"].item(), 4), "ap50": round(result["map_50"].item(), 4)}


def resampled_ap(
    found: Sequence[Sequence[Detection]],
    asked: Sequence[Sequence[tuple[str, Box]]],
    times: Int[np.ndarray, "draws n"],
) -> Float[np.ndarray, "ious draws"]:
    """What `box_ap` is in resamples of the images, for each of IOUS.

    Args:
        found: the detections of each of n images.
        asked: (kind, box) of every object of each image.
        times: how often each image is in a resample, see `resamples`.
    """
    kinds = sorted({kind for row in asked for kind, _ in row})
    return np.nanmean([_ap_of_kind(kind, found, asked, times) for kind in kinds], axis=0)


def _ap_of_kind(kind: str, found: Sequence, asked: Sequence, times: np.ndarray) -> np.ndarray:
    own = [[one for one in row if one.label == kind] for row in found]
    boxes = [[box for name, box in row if name == kind] for row in asked]
    hits = [matched(_boxes([d.box for d in a]), _boxes(b)) for a, b in zip(own, boxes, strict=True)]
    order = np.argsort([-one.score for row in own for one in row], kind="stable")
    of_image = np.repeat(np.arange(len(own)), [len(row) for row in own])[order]
    total = times @ [len(row) for row in boxes]
    each = (average_precision(hit, times[:, of_image], total) for hit in np.hstack(hits)[:, order])
    return np.stack(list(each))


def _boxes(some: Sequence[Box]) -> Float[np.ndarray, "k 4"]:
    return np.array(some, float).reshape(-1, 4)


def ap_intervals(
    found: Sequence[Sequence[Detection]], asked: Sequence[Sequence[tuple[str, Box]]]
) -> dict[str, list[float]]:
    """95 % bootstrap intervals of what `box_ap` returns, whole images being resampled.

    They hold for this number of images: with fewer, an average precision is higher on average.

    Args:
        found: the detections of each image, by falling score.
        asked: (kind, box) of every object of each image.

    Returns:
        ap_95 and ap50_95, each (low, high).
    """
    aps = resampled_ap(found, asked, resamples(len(asked)))
    return {
        name: [round(x, 4) for x in middle(each)]
        for name, each in {"ap_95": aps.mean(0), "ap50_95": aps[0]}.items()
    }


def class_agnostic(
    found: Sequence[Sequence[Detection]], asked: Sequence[Sequence[tuple[str, Box]]]
) -> tuple[list[list[Detection]], list[list[tuple[str, Box]]]]:
    """Detections and boxes with one kind for all objects, so that `box_ap` measures location alone.

    Args:
        found: the detections of each image.
        asked: (kind, box) of every object of each image.
    """
    kind = KINDS[0]
    merged = [[replace(one, label=kind) for one in row] for row in found]
    return merged, [[(kind, box) for _, box in row] for row in asked]


# ReCo, arXiv 2211.15518, section 4 ("region classification accuracy"): a classifier on the crops
def box_correct(
    kinds: Int[np.ndarray, "h w"],
    colours: Int[np.ndarray, "h w"],
    box: Box,
    label: int,
    colour: int | None,
) -> bool:
    """Whether the object that fills most of a box has the kind asked for, and its colour.

    Backdrop does not count, since a box is never filled to its corners; but the object must cover
    LEAST_FRACTION of the box.

    Args:
        kinds: the judge's label map of the image.
        colours: its colour map, 0 where a pixel has no colour.
        box: (x0, y0, x1, y1) as fractions of the image.
        label: index into LABELS.
        colour: number of the colour (1 ...); None where any will do.
    """
    inside = box_at(box, *kinds.shape)
    objects = kinds[inside & (kinds < len(KINDS))]
    if len(objects) == 0:
        return False
    counts = np.bincount(objects)
    if counts.argmax() != label or counts[label] < LEAST_FRACTION * inside.sum():
        return False
    if colour is None:
        return True
    coloured = colours[inside & (kinds == label) & (colours > 0)]
    return len(coloured) > 0 and bool(np.bincount(coloured).argmax() == colour)


# SceneFID: the Fréchet distance between crops of sampled and of true objects (ReCo, section 4).
# Here between CLIP's embeddings, as for whole images; no Inception network is at hand offline.
@torch.no_grad()
def scene_distance(
    images: Sequence[Image.Image],
    true: Sequence[Image.Image],
    scenes: Sequence[Scene],
    clip: Clip,
) -> float:
    """Fréchet distance between CLIP's embeddings of the boxes' crops in sampled and true images.

    Args:
        images: the sampled ones, RGB.
        true: as many.
        scenes: whose boxes are cropped, one for each image.
        clip: embeds the crops.
    """
    size = (clip.image_size, clip.image_size)
    clouds = []
    for some in (images, true):
        pairs = zip(some, scenes, strict=True)
        crops = (crop for image, scene in pairs for crop in _crops(image, scene))
        resized = to_tensor(crop.resize(size, Image.Resampling.BILINEAR) for crop in crops)
        clouds.append(clip.encode_images(to_unit(resized)).numpy())
    return round(frechet_distance(*clouds), 4)


def _crops(image: Image.Image, scene: Scene) -> Iterator[Image.Image]:
    sides = image.size * 2
    for region in scene.regions:
        yield image.crop(tuple(round(v * s) for v, s in zip(region.box, sides, strict=True)))


def layout_scores(
    todo: Sequence[Task], images: Sequence[Image.Image], judge: Judge, clip: Clip
) -> dict:
    """The metrics of images against layouts: ReCo's table 1, with our judge and our CLIP.

    Args:
        todo: the tasks, see `layout_tasks`.
        images: one for each.
        judge: labels their pixels.
        clip: embeds images and crops.

    Returns:
        regions, their number; region_accuracy, region_accuracy_seen and region_accuracy_heldout,
        means over the regions in [0, 1]; ap, ap50; ap50_place, where the kind in a box does not
        count; the 95 % interval of each by scene under its name with `_95`; and, where there is
        more than one image, frechet_distance (of images) and scene_distance (of their objects).
    """
    scene, correct, held = (np.array(c) for c in zip(*_rows(todo, images, judge), strict=True))
    report = {"regions": len(correct)}
    for name, use in {"": slice(None), "_seen": ~held, "_heldout": held}.items():
        report |= mean_and_interval(f"region_accuracy{name}", correct[use], scene[use])
    asked = [
        [(s.label, region.box) for s, region in zip(t.segments, t.scene.regions, strict=True)]
        for t in todo
    ]
    found = detections(images, judge)
    report |= box_ap(found, asked) | ap_intervals(found, asked)
    merged = class_agnostic(found, asked)
    report["ap50_place"] = box_ap(*merged)["ap50"]
    report["ap50_place_95"] = ap_intervals(*merged)["ap50_95"]
    if len(todo) > 1:  # one image has no covariance
        report |= _distances(todo, images, clip)
    return report


def _rows(
    todo: Sequence[Task], images: Sequence[Image.Image], judge: Judge
) -> Iterator[tuple[int, bool, bool]]:
    """(number of the scene, correct, held out) of each region."""
    for number, (task, maps) in enumerate(zip(todo, judge.maps(images), strict=True)):
        for segment, region in zip(task.segments, task.scene.regions, strict=True):
            wanted = LABELS.index(segment.label), COLOURS.index(segment.colour) + 1
            yield number, box_correct(*maps, region.box, *wanted), segment.held_out


@torch.no_grad()
def _distances(todo: Sequence[Task], images: Sequence[Image.Image], clip: Clip) -> dict:
    true = [Image.fromarray(task.item.image) for task in todo]
    clouds = [clip.encode_images(to_unit(to_tensor(some))).numpy() for some in (images, true)]
    scenes = [task.scene for task in todo]
    return {
        "frechet_distance": round(frechet_distance(*clouds), 4),
        "scene_distance": scene_distance(images, true, scenes, clip),
    }
