# SPDX-License-Identifier: Apache-2.0
"""`spatext-lab evaluate`: a method's scores on unseen scenes, as one dictionary."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from spatext_lab import zoo
from spatext_lab.datasets.pocket import COLOURS, LABELS, PocketItem, Segment, pocket_item
from spatext_lab.evaluation.judge import Judge
from spatext_lab.evaluation.metrics import bootstrap, local_iou, psnr, region_correct
from spatext_lab.scene import Region, Scene
from spatext_lab.spatext.pipeline import SpaTextPipeline, TextToImagePipeline, encode, to_images
from spatext_lab.training.data import to_tensor

# SpaText, arXiv 2211.14305, section 4.1: 1 to 3 segments, each at least 5 % of the picture
COUNT, MIN_AREA = (1, 3), 0.05
# Chosen on the validation split. One scale for all is the paper's fast form, 2 passes a step.
SETTINGS = {
    "text": {"steps": 10, "guidance_scale": 2.0},
    "spatext": {"steps": 10, "guidance_scale": 2.0},
}
METHODS = ("spatext", "text", "autoencoder", "true")
_BATCH = 16

Draw = Callable[[Sequence["Task"], int], list[Image.Image]]


@dataclass(frozen=True)
class Task:
    """One evaluation scene: some segments of an unseen picture, with a caption of the whole."""

    item: PocketItem
    segments: tuple[Segment, ...]

    @property
    def scene(self) -> Scene:
        """What the method is given."""
        regions = [Region(s.text, mask=s.mask) for s in self.segments]
        return Scene(self.item.captions[0], regions)


def tasks(count: int, seed: int = 0, split: str = "test") -> Iterator[Task]:
    """The first `count` scenes of a split that have a large enough segment; K drawn from 1-3."""
    index = made = 0
    while made < count:
        item = pocket_item(split, index)
        rng = Random(f"{seed}/task/{split}/{index}")
        large = [s for s in item.segments if s.mask.mean() >= MIN_AREA]
        chosen = rng.sample(large, min(rng.randint(*COUNT), len(large)))
        if chosen:
            made += 1
            yield Task(item, tuple(chosen))
        index += 1


def evaluate(
    method: str,
    *,
    scenes: int = 512,
    seed: int = 0,
    model: str = "pocket",
    split: str = "test",
    settings: dict | None = None,
) -> dict:
    """Scores of `method` on `scenes` unseen pocket scenes, one picture each.

    method: "spatext", "text" (the caption alone), "autoencoder" (the true picture, encoded and
    decoded) or "true" (the true picture: the judge's own error).
    settings: sampling settings in place of SETTINGS[method].

    Returns method, scenes, seed, local_iou, region_accuracy, region_accuracy_seen,
    region_accuracy_heldout (all in [0, 1], means over regions), seconds_per_picture (one picture
    at a time), settings, threads, and 95 % intervals. Seen and held-out are about things; stuff
    counts in region_accuracy alone. The autoencoder's report also has psnr (the mean of the
    pictures' values) and psnr_pooled (of the mean squared error over all pictures) in dB.
    Raises ValueError for an unknown method or scenes < 1.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; there are {', '.join(METHODS)}")
    if scenes < 1:
        raise ValueError(f"scenes is {scenes}; give at least 1")
    chosen = settings or SETTINGS.get(method, {})
    draw = _drawer(method, model, chosen)
    todo = list(tasks(scenes, seed, split))
    images = []
    for start in tqdm(range(0, scenes, _BATCH), desc=method, unit="batch"):
        images += draw(todo[start : start + _BATCH], seed + start)
    report = {"method": method, "scenes": scenes, "seed": seed, "split": split}
    report |= scores(todo, images, Judge.from_pretrained(zoo.folder(model, "judge")))
    report |= {"seconds_per_picture": _seconds(draw, todo), "settings": chosen}
    report["threads"] = torch.get_num_threads()
    if method == "autoencoder":
        drawn = np.stack([np.asarray(image) for image in images]) / 255
        true = np.stack([task.item.image for task in todo]) / 255
        each = [psnr(a, b) for a, b in zip(drawn, true, strict=True)]
        report["psnr"] = round(float(np.mean(each)), 2)
        report["psnr_pooled"] = round(psnr(drawn, true), 2)
    return report


def scores(todo: Sequence[Task], images: Sequence[Image.Image], judge: Judge) -> dict:
    """The metrics of pictures against their tasks, with 95 % intervals by scene."""
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


def _judged(task: Task, kinds: np.ndarray, colours: np.ndarray) -> Iterator[tuple]:
    """(local IoU, correct, is a thing, is held out) of each region."""
    labels = [LABELS.index(s.label) for s in task.segments]
    ious = local_iou(kinds, np.stack([s.mask for s in task.segments]), labels)
    for segment, label, iou in zip(task.segments, labels, ious, strict=True):
        colour = COLOURS.index(segment.colour) + 1 if segment.is_thing else None
        correct = region_correct(kinds, colours, segment.mask, label, colour)
        yield iou, correct, segment.is_thing, segment.held_out


def _drawer(method: str, model: str, settings: dict) -> Draw:
    """A function from tasks and the first one's seed to pictures."""
    if method == "true":
        return lambda todo, seed: [Image.fromarray(task.item.image) for task in todo]
    if method == "autoencoder":
        vae = TextToImagePipeline.from_pretrained(zoo.folder(model, "text-to-image")).vae
        return lambda todo, seed: _through(vae, todo)
    kind, part = {
        "spatext": (SpaTextPipeline, "spatext"),
        "text": (TextToImagePipeline, "text-to-image"),
    }[method]
    pipeline = kind.from_pretrained(zoo.folder(model, part))
    return lambda todo, seed: pipeline([task.scene for task in todo], seed=seed, **settings)


@torch.no_grad()
def _through(vae, todo: Sequence[Task]) -> list[Image.Image]:
    latents = encode(vae, to_tensor(np.stack([task.item.image for task in todo])))
    return to_images(vae.decode(latents / vae.config.scaling_factor).sample)


def _seconds(draw: Draw, todo: Sequence[Task]) -> float:
    """Median seconds for one picture drawn alone, after one to warm up."""
    draw(todo[:1], 0)
    times = []
    for task in todo[:5]:
        start = time.perf_counter()
        draw([task], 0)
        times.append(time.perf_counter() - start)
    return round(float(np.median(times)), 3)
