# SPDX-License-Identifier: Apache-2.0
"""A comparison's numbers: what each method's images score, and how far two methods are apart.

Values are kept for each region with the number of its scene, so that two methods can be compared
scene by scene: what makes a scene hard is then the same for both, and their difference is known
better than either of them.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from spatext_lab.clip import Clip
from spatext_lab.datasets.pocket import COLOURS, LABELS
from spatext_lab.evaluation.average_precision import resamples
from spatext_lab.evaluation.boxes import (
    Detection,
    ap_intervals,
    box_ap,
    box_correct,
    detections,
    resampled_ap,
)
from spatext_lab.evaluation.judge import Judge
from spatext_lab.evaluation.metrics import (
    frechet_distance,
    local_iou,
    mean_and_interval,
    middle,
    region_correct,
)
from spatext_lab.evaluation.tasks import Task
from spatext_lab.images import to_tensor, to_unit
from spatext_lab.scene.places import Box

Images = Mapping[int, Image.Image]  # by the number of the scene
Boxes = Sequence[Sequence[Box]]
# name of a score -> a value for each region (or scene), under (number of the scene, of the region)
Values = dict[str, dict[tuple[int, int], float]]
# number of the scene -> what was found in its image, and what was asked for
Objects = dict[int, tuple[list[Detection], list[tuple[str, Box]]]]


def judged(
    todo: Sequence[Task], boxes: Boxes, images: Images, judge: Judge, protocol: str
) -> Values:
    """What the judge finds in each region.

    Args:
        todo: the tasks, their regions as masks.
        boxes: of their regions.
        images: some of them have one.
        judge: labels their pixels.
        protocol: "boxes", an object is right if it is what most of its box's objects are;
            "segments", if it is what most of its mask's pixels are.

    Returns:
        local_iou, region_accuracy, and of objects alone region_accuracy_seen and
        region_accuracy_heldout, each in [0, 1].
    """
    found: Values = {name: {} for name in ("local_iou", "region_accuracy")}
    found |= {f"region_accuracy_{name}": {} for name in ("seen", "heldout")}
    for k, maps in zip(images, judge.maps(list(images.values())), strict=True):
        task = todo[k]
        labels = [LABELS.index(segment.label) for segment in task.segments]
        ious = local_iou(maps[0], task.masks, labels)
        for r, (segment, label) in enumerate(zip(task.segments, labels, strict=True)):
            colour = COLOURS.index(segment.colour) + 1 if segment.is_thing else None
            if protocol == "boxes":
                correct = box_correct(*maps, boxes[k][r], label, colour)
            else:
                correct = region_correct(*maps, task.masks[r], label, colour)
            found["local_iou"][k, r] = float(ious[r])
            found["region_accuracy"][k, r] = float(correct)
            if segment.is_thing:
                name = "heldout" if segment.held_out else "seen"
                found[f"region_accuracy_{name}"][k, r] = float(correct)
    return found


@torch.no_grad()
def embedded(todo: Sequence[Task], images: Images, clip: Clip) -> tuple[Values, dict[str, float]]:
    """CLIP's distances of the images to their captions and texts, and to the true images.

    Returns:
        Values: global_distance (region 0 stands for the whole scene) and local_distance, in [0, 2].
        The Fréchet distance as frechet_distance, where there is more than one image.
    """
    values: Values = {"global_distance": {}, "local_distance": {}}
    clouds = []
    for k, image in images.items():
        pair = to_unit(to_tensor([image, todo[k].item.image]))
        clouds.append(clip.encode_images(pair))
        segments = clip.encode_segments(*_repeated(pair[:1], todo[k]))
        texts = [todo[k].scene.caption, *(region.text for region in todo[k].scene.regions)]
        wanted = clip.encode_text(texts)
        values["global_distance"][k, 0] = 1 - (wanted[0] @ clouds[-1][0]).item()
        apart = (1 - (wanted[1:] * segments).sum(1)).tolist()
        values["local_distance"] |= {(k, r): each for r, each in enumerate(apart)}
    if len(clouds) < 2:  # one image has no covariance
        return values, {}
    found, true = torch.stack(clouds, dim=1).numpy()
    return values, {"frechet_distance": round(frechet_distance(found, true), 4)}


def objects(todo: Sequence[Task], boxes: Boxes, images: Images, judge: Judge) -> Objects:
    """The objects that the judge finds in each image, and the (kind, box) of those asked for."""
    found = detections(list(images.values()), judge)
    return {
        k: (
            row,
            [(s.label, b) for s, b in zip(todo[k].segments, boxes[k], strict=True) if s.is_thing],
        )
        for k, row in zip(images, found, strict=True)
    }


def ap50(each: Objects) -> dict:
    """COCO's average precision at IoU 0.50 as ap50, and its 95 % interval over scenes."""
    both = list(zip(*each.values(), strict=True))
    return {"ap50": box_ap(*both)["ap50"], "ap50_95": ap_intervals(*both)["ap50_95"]}


@torch.no_grad()
def diversity(todo: Sequence[Task], images: Sequence[Images], clip: Clip) -> Values:
    """How different a scene's images are: CLIP's mean cosine distance of two of them.

    Args:
        todo: the tasks, their regions as masks.
        images: several of each scene, each with another seed.
        clip: embeds the whole images, and each region's pixels.

    Returns:
        diversity (region 0 stands for the whole scene) and diversity_in_regions, in [0, 2].
    """
    found: Values = {"diversity": {}, "diversity_in_regions": {}}
    for k in sorted(set.intersection(*(set(some) for some in images))):
        several = to_unit(to_tensor([some[k] for some in images]))
        found["diversity"][k, 0] = pairwise_distance(clip.encode_images(several).numpy())
        inside = [clip.encode_segments(*_repeated(each[None], todo[k])) for each in several]
        for r, embeddings in enumerate(torch.stack(inside, dim=1).numpy()):
            found["diversity_in_regions"][k, r] = pairwise_distance(embeddings)
    return found


def pairwise_distance(embeddings: Float[np.ndarray, "n d"]) -> float:
    """The mean cosine distance of all pairs of n unit embeddings."""
    n = len(embeddings)
    cosines = embeddings @ embeddings.T
    return float(1 - (cosines.sum() - np.trace(cosines)) / (n * (n - 1)))


def _repeated(image: torch.Tensor, task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    """One image for each region of a task, and the regions' masks."""
    masks = torch.from_numpy(task.masks)
    return image.expand(len(masks), -1, -1, -1), masks


# --- from values to a table -----------------------------------------------------------------------


def summary(values: Values) -> dict:
    """The mean of each score and its 95 % interval over scenes, under its name with `_95`."""
    report: dict = {}
    for name, each in values.items():
        report |= mean_and_interval(name, list(each.values()), [scene for scene, _ in each])
    return report


def difference(values: Values, reference: Values) -> dict:
    """How far a method is above another one on the scenes that both could read, with intervals.

    Args:
        values: of the method.
        reference: of the other one.

    Returns:
        The mean difference of each score and its 95 % interval over scenes, whole scenes being
        resampled for both at once.
    """
    report: dict = {}
    for name, each in values.items():
        both = sorted(each.keys() & reference.get(name, {}).keys())
        apart = [each[key] - reference[name][key] for key in both]
        report |= mean_and_interval(name, apart, [scene for scene, _ in both])
    return report


def ap50_difference(each: Objects, reference: Objects) -> dict:
    """How far a method's AP50 is above another one's on the scenes that both could read.

    Args:
        each: of the method.
        reference: of the other one.

    Returns:
        ap50, and its 95 % interval, the same scenes being resampled for both; nothing where no
        scene is common.
    """
    both = sorted(each.keys() & reference.keys())
    if not both:
        return {}
    times = np.vstack([np.ones((1, len(both)), int), resamples(len(both))])
    here, there = (
        resampled_ap(*zip(*(some[k] for k in both), strict=True), times)[0]
        for some in (each, reference)
    )
    apart = here - there
    interval = [round(x, 4) for x in middle(apart[1:])]
    return {"ap50": round(float(apart[0]), 4), "ap50_95": interval}
