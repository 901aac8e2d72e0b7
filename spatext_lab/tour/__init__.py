# SPDX-License-Identifier: Apache-2.0
"""`spatext-lab tour`: everything once, on one page of images and numbers.

A scene, its map, its images with and without the map, the guidance scales, the scene as ReCo's
sentence, a fine-tune in which control appears, the same on photos where there are some, and a few
measured numbers.
"""

from __future__ import annotations

import platform
import shutil
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Unpack

import torch

from spatext_lab import zoo
from spatext_lab.datasets.coco import PhotoChoice
from spatext_lab.scene import Scene
from spatext_lab.tour import fine_tune, measure, photos, sampling, sentence
from spatext_lab.tour.page import Page, finish, start
from spatext_lab.tour.plan import Budget, Section, Tour, quiet

__all__ = ["Budget", "run"]

SCENE = "scenes/starry-night.json"
SECTIONS: dict[str, Section] = {
    "A scene is what you ask for": sampling.scene,
    "The map is what the network reads": sampling.st_map,
    "With the map and without it": sampling.with_and_without,
    "How strong is each condition?": sampling.sweep,
    "The same as one sentence": sentence.section,
    "Control appears": fine_tune.section,
    "The same on photos": photos.section,
    "How good is it?": measure.section,
}


def run(
    out: Path,
    coco: Path | None = None,
    *,
    scene: Path | None = None,
    model: str = "pocket",
    budget: Budget = Budget(),  # noqa: B008, it is frozen
    **choice: Unpack[PhotoChoice],
) -> Path:
    """Takes the tour and returns the path of its page, whose address is the last line printed.

    out:    a new folder, or that of an earlier tour, which is replaced when this one is complete.
    coco:   a COCO 2017 folder, for the section on photos.
    scene:  a scene file; the shipped one by default.
    model:  "pocket" or a folder with the same layout.
    budget: how much of everything.
    choice: of the COCO folder's photos, see `PhotoChoice`.

    Raises ValueError where `out` is something else than a tour or the COCO folder has too few
    photos, FileNotFoundError for a missing scene, model or COCO folder, before the work begins.
    """
    if choice and not coco:
        raise ValueError(f"{next(iter(choice))} is passed, but no coco folder to choose from")
    began, out = time.perf_counter(), Path(out).resolve()
    asked = Scene.load(scene or zoo.shipped(SCENE))
    partial = start(out)
    try:
        found = photos.read(Path(coco), budget, **choice) if coco else None
        with quiet():
            tour = Tour.load(
                model,
                page=Page(partial),
                scene=asked,
                budget=budget,
                photos=found,
                home=_spelled(out),
            )
            _take(tour)
        _write(tour, time.perf_counter() - began)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    index = finish(partial, out)
    print(f"Done in {time.perf_counter() - began:.0f} s. Open this page:\n{index.as_uri()}")
    return index


def _take(tour: Tour) -> None:
    """Every section in turn, with its time."""
    todo = {k: v for k, v in SECTIONS.items() if tour.photos or v is not photos.section}
    for number, (title, section) in enumerate(todo.items(), start=1):
        print(f"{number}/{len(todo)} {title}", flush=True)
        since = time.perf_counter()
        blocks = section(tour)
        seconds = time.perf_counter() - since
        tour.page.add(title, seconds, blocks)
        print(f"    {seconds:.0f} s", flush=True)


def _write(tour: Tour, seconds: float) -> None:
    facts, count = tour.page.facts, torch.get_num_threads()
    threads = f"{count} thread{'s' * (count > 1)}"
    found = facts["measured"]
    packages = {name: version(name) for name in ("spatext_lab", "torch", "diffusers")}
    facts |= {"model": tour.model, "settings": tour.settings, "total_seconds": round(seconds, 1)}
    facts |= {"threads": count, "machine": platform.machine(), "versions": packages}
    tour.page.write(
        "What goes where",
        "A tour of spatext_lab: a scene is written down once, a small diffusion model samples "
        "images of it. "
        f"Every image and number on this page was made on this machine in {_duration(seconds)}.",
        [
            (f"{found['spatext']['local_iou']:.2f}", "local IoU with the map"),
            (f"{found['text']['local_iou']:.2f}", "local IoU with the caption alone"),
            (f"{facts['seconds_per_image']['spatext']:.2f} s", "for one image with the map"),
            (_duration(seconds), f"for this tour, on {threads}"),
        ],
        [
            f"Made on {date.today().isoformat()} with the model `{tour.model}`, "
            + ", ".join(f"{name} {number}" for name, number in packages.items())
            + f", on {threads} of a {platform.machine()} CPU. Sampling settings unless "
            f"said otherwise: {_listed(tour.settings)}. Seeds begin at 0.",
            "All numbers are in `tour.json`; the text chunks of every PNG hold its settings. "
            "Code: Apache-2.0. Texts, drawings and pocket models: CC BY 4.0.",
        ],
    )


def _spelled(out: Path) -> Path:
    """The folder as it is written from here: relative where that is shorter."""
    return out.relative_to(Path.cwd()) if out.is_relative_to(Path.cwd()) else out


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _listed(settings: dict) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in settings.items())
