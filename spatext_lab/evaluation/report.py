# SPDX-License-Identifier: Apache-2.0
"""`spatext-lab evaluate`: a method's scores on unseen scenes, as one dictionary."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image

from spatext_lab import zoo
from spatext_lab.clip import Clip
from spatext_lab.datasets.pocket import COLOURS, LABELS, pocket_item
from spatext_lab.evaluation.boxes import layout_scores, layout_tasks
from spatext_lab.evaluation.judge import Judge
from spatext_lab.evaluation.methods import METHODS, Draw, Task
from spatext_lab.evaluation.metrics import (
    bootstrap,
    frechet_distance,
    local_iou,
    psnr,
    region_correct,
)
from spatext_lab.figures.progress import Progress
from spatext_lab.images import to_tensor

# SpaText, arXiv 2211.14305, section 4.1: 1 to 3 segments, each at least 5 % of the image
COUNT, MIN_AREA = (1, 3), 0.05
_BATCH = 16


def tasks(count: int, seed: int = 0, split: str = "test") -> Iterator[Task]:
    """The first `count` scenes of a split that have a large enough segment; K from 1 to 3."""
    index = made = 0
    while made < count:
        item = pocket_item(split, index)
        rng = Random(f"{seed}/task/{split}/{index}")
        large = [s for s in item.segments if s.mask.mean() >= MIN_AREA]
        chosen = rng.sample(large, min(rng.randint(*COUNT), len(large)))
        if chosen:
            made += 1
            yield Task(item, tuple(chosen), tuple(s.mask for s in chosen))
        index += 1


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
    """The scores of a method on unseen pocket scenes, one image each.

    Args:
        method: a name in METHODS.
        scenes: how many, the first ones of the split.
        seed: of the first image and of the choice of segments.
        model: "pocket", a folder with its layout, or the folder of the one pipeline that is
            measured. The judge and CLIP, which measure, are always the shipped ones.
        split: "test", or another split of the pocket world.
        settings: sampling settings in place of the method's own.
        masks: a function that corrupts the masks before the method uses them, see
            `corrupted_masks`.
        protocol: "segments", SpaText's: 1 to 3 segments by their masks; "boxes", ReCo's: all
            objects by their boxes; the method's own if not given.

    Returns:
        By segments: local_iou, region_accuracy, region_accuracy_seen, region_accuracy_heldout (in
        [0, 1], means over regions; seen and held-out are about objects, stuff counts in
        region_accuracy alone), global_distance, local_distance (in [0, 2]), frechet_distance. By
        boxes: what `boxes.layout_scores` returns. Always: method, protocol, scenes, seed, split,
        passes (of the network, per step), seconds_per_picture (one at a time), settings, threads,
        and 95 % intervals. For the autoencoder also psnr (mean over the images) and psnr_pooled (of
        the mean squared error over all images), in dB.

    Raises:
        ValueError: an unknown method or protocol, scenes < 1, masks where there are only boxes; and
            what reading the model raises.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; there are {', '.join(METHODS)}")
    if scenes < 1:
        raise ValueError(f"scenes is {scenes}; give at least 1")
    protocol = protocol or METHODS[method].protocol
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol is {protocol!r}; there are {', '.join(PROTOCOLS)}")
    if masks is not None and protocol != "segments":
        raise ValueError(f"masks are given, but the protocol is {protocol!r}: it has no masks")
    choose, score = PROTOCOLS[protocol]
    chosen = settings or METHODS[method].settings
    draw = METHODS[method].drawer(model, chosen)
    todo = list(choose(scenes, seed, split))
    if masks is not None:
        todo = [replace(task, masks=tuple(map(masks, task.masks))) for task in todo]
    images = drawn(draw, todo, seed, method)
    report = {"method": method, "protocol": protocol, "scenes": scenes, "seed": seed}
    judge = Judge.from_pretrained(zoo.folder("pocket", "judge"))
    clip = Clip.from_pretrained(zoo.folder("pocket", "spatext/clip"))
    report |= {"split": split} | score(todo, images, judge, clip)
    report |= {"passes": METHODS[method].passes, "seconds_per_picture": _seconds(draw, todo)}
    report |= {"settings": chosen, "threads": torch.get_num_threads()}
    if method == "autoencoder":
        decoded = np.stack([np.asarray(image) for image in images]) / 255
        true = np.stack([task.item.image for task in todo]) / 255
        each = [psnr(a, b) for a, b in zip(decoded, true, strict=True)]
        report["psnr"] = round(float(np.mean(each)), 2)
        report["psnr_pooled"] = round(psnr(decoded, true), 2)
    return report


def drawn(draw: Draw, todo: Sequence[Any], seed: int, what: str) -> list[Image.Image]:
    """An image for each task, the k-th with seed `seed` + k; shows its progress."""
    images = []
    with Progress(total=len(todo), desc=what, unit="image") as bar:
        for start in range(0, len(todo), _BATCH):
            images += draw(todo[start : start + _BATCH], seed + start)
            bar.update(len(images) - bar.n)
    return images


# SpaText, arXiv 2211.14305, section 4 ("global distance", "local distance"): CLIP's cosine distance
@torch.no_grad()
def distances(todo: Sequence[Task], images: Sequence[Image.Image], clip: Clip) -> dict:
    """CLIP's distances of images from their captions and of regions from their texts.

    The local distance compares a region's text with the image's segment under the region's mask.
    The Fréchet distance is between CLIP's embeddings of the generated and of the true images.
    """
    whole, local, drawn, true = [], [], [], []
    for task, image in zip(todo, images, strict=True):
        pair = torch.from_numpy(np.stack([np.asarray(image), task.item.image])) / 255
        pair = rearrange(pair, "n h w c -> n c h w")
        seen, real = clip.encode_images(pair)
        masks = torch.from_numpy(np.stack(task.masks))
        segments = clip.encode_segments(pair[:1].expand(len(masks), -1, -1, -1), masks)
        caption, *texts = clip.encode_text(
            [task.item.captions[0], *(s.text for s in task.segments)]
        )
        whole.append(1 - (caption @ seen).item())
        local += (1 - (torch.stack(texts) * segments).sum(1)).tolist()
        drawn.append(seen.numpy())
        true.append(real.numpy())
    scenes = [i for i, task in enumerate(todo) for _ in task.masks]
    report = {
        "global_distance": round(float(np.mean(whole)), 4),
        "global_distance_95": [round(x, 4) for x in bootstrap(whole, range(len(whole)))],
        "local_distance": round(float(np.mean(local)), 4),
        "local_distance_95": [round(x, 4) for x in bootstrap(local, scenes)],
    }
    if len(todo) > 1:  # one image has no covariance
        report["frechet_distance"] = round(frechet_distance(np.stack(drawn), np.stack(true)), 4)
    return report


def scores(todo: Sequence[Task], images: Sequence[Image.Image], judge: Judge) -> dict:
    """The metrics of images against their tasks, with 95 % intervals by scene."""
    rows = []
    for start in range(0, len(todo), _BATCH):
        chunk = np.stack([np.asarray(image) for image in images[start : start + _BATCH]])
        kinds, colours = (seen.numpy() for seen in judge(to_tensor(chunk)))
        for i, task in enumerate(todo[start : start + _BATCH]):
            rows += [(start + i, *row) for row in _judged(task, kinds[i], colours[i])]
    scene, iou, correct, thing, held = (np.array(column) for column in zip(*rows, strict=True))
    report = {"regions": len(rows)}
    groups = {
        "local_iou": (iou, iou >= 0),
        "region_accuracy": (correct, iou >= 0),
        "region_accuracy_seen": (correct, thing & ~held),
        "region_accuracy_heldout": (correct, thing & held),
    }
    for name, (values, use) in groups.items():
        report[name] = round(float(values[use].mean()), 4) if use.any() else None
        if use.any():
            report[f"{name}_95"] = [round(x, 4) for x in bootstrap(values[use], scene[use])]
    return report


def segment_scores(
    todo: Sequence[Task], images: Sequence[Image.Image], judge: Judge, clip: Clip
) -> dict:
    """SpaText's protocol: the judge's scores in the masks, and CLIP's distances."""
    return scores(todo, images, judge) | distances(todo, images, clip)


def _judged(task: Task, kinds: np.ndarray, colours: np.ndarray) -> Iterator[tuple]:
    """(local IoU, correct, is a thing, is held out) of each region."""
    labels = [LABELS.index(s.label) for s in task.segments]
    ious = local_iou(kinds, np.stack(task.masks), labels)
    for segment, mask, label, iou in zip(task.segments, task.masks, labels, ious, strict=True):
        colour = COLOURS.index(segment.colour) + 1 if segment.is_thing else None
        correct = region_correct(kinds, colours, mask, label, colour)
        yield iou, correct, segment.is_thing, segment.held_out


def _seconds(draw: Draw, todo: Sequence[Any]) -> float:
    """Median seconds for one image sampled alone, after one to warm up."""
    draw(todo[:1], 0)
    times = []
    for task in todo[:5]:
        start = time.perf_counter()
        draw([task], 0)
        times.append(time.perf_counter() - start)
    return round(float(np.median(times)), 3)


# How scenes are chosen, and how their images are scored.
PROTOCOLS = {
    "segments": (tasks, segment_scores),
    "boxes": (layout_tasks, layout_scores),
}
