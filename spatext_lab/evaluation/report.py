# SPDX-License-Identifier: Apache-2.0
"""`spatext-lab evaluate`: a method's scores on unseen scenes, as one dictionary."""

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image

from spatext_lab import zoo
from spatext_lab.clip import Clip
from spatext_lab.datasets.pocket import COLOURS, LABELS
from spatext_lab.evaluation.boxes import layout_scores
from spatext_lab.evaluation.judge import BATCH, Judge
from spatext_lab.evaluation.methods import METHODS, Sampler
from spatext_lab.evaluation.metrics import (
    frechet_distance,
    local_iou,
    mean_and_interval,
    psnr,
    region_correct,
)
from spatext_lab.evaluation.tasks import Task, layout_tasks, tasks
from spatext_lab.figures.progress import Progress
from spatext_lab.images import to_tensor, to_unit

PROTOCOLS = ("segments", "boxes")


def evaluate(
    method: str,
    *,
    scenes: int = 512,
    seed: int = 0,
    model: str = "pocket",
    split: str = "test",
    settings: dict | None = None,
    masks: Callable[[np.ndarray], np.ndarray] | None = None,
    protocol: str | None = None,
) -> dict:
    """Scores of a method on unseen pocket scenes, one image each.

    Args:
        method: a name in METHODS.
        scenes: number of scenes.
        seed: of the first image, and of the choice of segments.
        model: "pocket", a folder with its layout, or the folder of the one model that is measured.
            The judge and the CLIP that measure are always the shipped ones.
        split: of the pocket world.
        settings: sampling settings in place of the method's own.
        masks: from a mask to the one that the method gets in its place, see
            `datasets.corrupted_masks`; the scores are against it too. None for the true masks.
        protocol: "segments", SpaText's: 1 to 3 segments by their masks; "boxes", ReCo's: all
            objects by their boxes; the method's own if not given.

    Returns:
        method, protocol, scenes, seed, split; what `segment_scores` or `layout_scores` returns;
        passes (of the network, per step), seconds_per_image (median, one image at a time),
        settings, threads. For the autoencoder also psnr (mean over the images) and psnr_pooled
        (of the squared error over all images), in dB.

    Raises:
        ValueError: an unknown method or protocol, scenes < 1, masks where there are only boxes; and
            what reading the model raises.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; there are {', '.join(METHODS)}")
    if scenes < 1:
        raise ValueError(f"scenes is {scenes}; pass at least 1")
    protocol = protocol or METHODS[method].protocol
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol is {protocol!r}; there are {', '.join(PROTOCOLS)}")
    if masks is not None and protocol != "segments":
        raise ValueError(f"masks are passed, but the protocol is {protocol!r}: it has no masks")
    chosen = settings or METHODS[method].settings
    sampler = METHODS[method].load(model, chosen)
    if protocol == "segments":
        todo, score = list(tasks(scenes, seed, split)), segment_scores
    else:
        todo, score = list(layout_tasks(scenes, split)), layout_scores
    if masks is not None:
        todo = [task.corrupted(masks) for task in todo]
    images = sampled(sampler, todo, seed, method)
    report = {"method": method, "protocol": protocol, "scenes": scenes, "seed": seed}
    judge = Judge.from_pretrained(zoo.folder("pocket", "judge"))
    clip = Clip.from_pretrained(zoo.folder("pocket", "spatext/clip"))
    report |= {"split": split} | score(todo, images, judge, clip)
    passes = METHODS[method].passes([task.scene for task in todo])
    report |= {"passes": passes, "seconds_per_image": _seconds(sampler, todo)}
    report |= {"settings": chosen, "threads": torch.get_num_threads()}
    return report | (_psnr(todo, images) if method == "autoencoder" else {})


def sampled(sampler: Sampler, todo: Sequence[Task], seed: int, what: str) -> list[Image.Image]:
    """An image for each task, the k-th with seed `seed` + k; shows its progress.

    Args:
        what: is being sampled, for the progress bar.
    """
    images = []
    with Progress(total=len(todo), desc=what, unit="image") as bar:
        for start in range(0, len(todo), BATCH):
            images += sampler(todo[start : start + BATCH], seed + start)
            bar.update(len(images) - bar.n)
    return images


def segment_scores(
    todo: Sequence[Task], images: Sequence[Image.Image], judge: Judge, clip: Clip
) -> dict:
    """SpaText's protocol: what the judge finds in the masks, and CLIP's distances.

    Returns:
        What `scores` and `distances` return.
    """
    return scores(todo, images, judge) | distances(todo, images, clip)


def scores(todo: Sequence[Task], images: Sequence[Image.Image], judge: Judge) -> dict:
    """What the judge finds in the masks of the scenes.

    Args:
        todo: the tasks, with masks.
        images: one for each.
        judge: labels their pixels.

    Returns:
        regions, their number; local_iou, region_accuracy, region_accuracy_seen and
        region_accuracy_heldout, means over the regions in [0, 1], and the 95 % interval of each by
        scene under its name with `_95`. Seen and held-out combinations are those of objects alone.
    """
    rows = []
    for k, (task, maps) in enumerate(zip(todo, judge.maps(images), strict=True)):
        rows += [(k, *row) for row in _judged(task, *maps)]
    scene, iou, correct, thing, held = (np.array(column) for column in zip(*rows, strict=True))
    groups = {
        "local_iou": (iou, iou >= 0),
        "region_accuracy": (correct, iou >= 0),
        "region_accuracy_seen": (correct, thing & ~held),
        "region_accuracy_heldout": (correct, thing & held),
    }
    report = {"regions": len(rows)}
    for name, (values, use) in groups.items():
        report |= mean_and_interval(name, values[use], scene[use])
    return report


def _judged(task: Task, kinds: np.ndarray, colours: np.ndarray) -> Iterator[tuple]:
    """(local IoU, correct, is a thing, is held out) of each region."""
    labels = [LABELS.index(segment.label) for segment in task.segments]
    ious = local_iou(kinds, task.masks, labels)
    for segment, mask, label, iou in zip(task.segments, task.masks, labels, ious, strict=True):
        colour = COLOURS.index(segment.colour) + 1 if segment.is_thing else None
        correct = region_correct(kinds, colours, mask, label, colour)
        yield iou, correct, segment.is_thing, segment.held_out


# SpaText, arXiv 2211.14305, section 4 ("global distance", "local distance"): CLIP's cosine distance
@torch.no_grad()
def distances(todo: Sequence[Task], images: Sequence[Image.Image], clip: Clip) -> dict:
    """CLIP's distances of the images to their captions, and of the regions to their texts.

    The local distance compares a region's text with the segment of the image under its mask. The
    Fréchet distance is between CLIP's embeddings of the sampled and of the true images.

    Returns:
        global_distance and local_distance, means in [0, 2], their 95 % intervals; and
        frechet_distance, where there is more than one image.
    """
    whole, local, clouds = [], [], []
    for task, image in zip(todo, images, strict=True):
        pair = to_unit(to_tensor([image, task.item.image]))
        clouds.append(clip.encode_images(pair))
        masks = torch.from_numpy(task.masks)
        segments = clip.encode_segments(pair[:1].expand(len(masks), -1, -1, -1), masks)
        texts = [task.scene.caption, *(region.text for region in task.scene.regions)]
        embeddings = clip.encode_text(texts)
        whole.append(1 - (embeddings[0] @ clouds[-1][0]).item())
        local += (1 - (embeddings[1:] * segments).sum(1)).tolist()
    scenes = [k for k, task in enumerate(todo) for _ in task.segments]
    report = mean_and_interval("global_distance", whole, range(len(whole)))
    report |= mean_and_interval("local_distance", local, scenes)
    if len(todo) > 1:  # one image has no covariance
        found, true = torch.stack(clouds, dim=1).numpy()
        report["frechet_distance"] = round(frechet_distance(found, true), 4)
    return report


def _psnr(todo: Sequence[Task], images: Sequence[Image.Image]) -> dict:
    decoded = np.stack([np.asarray(image) for image in images]) / 255
    true = np.stack([task.item.image for task in todo]) / 255
    each = [psnr(a, b) for a, b in zip(decoded, true, strict=True)]
    return {"psnr": round(float(np.mean(each)), 2), "psnr_pooled": round(psnr(decoded, true), 2)}


def _seconds(sampler: Sampler, todo: Sequence[Task]) -> float:
    """Median seconds of one image alone, after one to warm up."""
    sampler(todo[:1], 0)
    times = []
    for task in todo[:5]:
        start = time.perf_counter()
        sampler([task], 0)
        times.append(time.perf_counter() - start)
    return round(float(np.median(times)), 3)
