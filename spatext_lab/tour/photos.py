# SPDX-License-Identifier: Apache-2.0
"""The tour's section on real photos, for a COCO folder: what carries over, and what does not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from markupsafe import Markup

from spatext_lab.datasets.coco import CocoItem, CocoSubset, PhotoChoice, read_coco
from spatext_lab.evaluation.metrics import psnr
from spatext_lab.figures import draw_scene, map_image, outline
from spatext_lab.images import encode, to_tensor
from spatext_lab.scene import Scene
from spatext_lab.tour.fine_tune import SIZE, cached, learn
from spatext_lab.tour.markup import figure, folded, legend, prose, table
from spatext_lab.tour.plan import Budget, Photos, Tour

SPLITS = ("val", "train")  # val first: of the whole COCO, it is read in seconds


def read(root: Path, budget: Budget, **choice: Unpack[PhotoChoice]) -> Photos:
    """Photos that keep a region in their square, some to show and at least one to learn from.

    A split that is missing, damaged or without a photo to use is no error: where too few photos are
    left, `Photos.lack` says why, and the section on photos is about that.

    Raises:
        FileNotFoundError: where `root` is no COCO folder; names the file that it needs.
    """
    splits = [s for s in SPLITS if (root / "annotations" / f"instances_{s}2017.json").is_file()]
    if not splits:
        raise FileNotFoundError(
            f"coco is {root}, and there is no annotations/instances_val2017.json in it: "
            "expected a folder in COCO's 2017 layout"
        )
    items: list[CocoItem] = []
    reports, faults, wanted = [], [], budget.photos + budget.shown
    for split in splits:
        if len(items) < wanted:
            try:
                subset = read_coco(root, split, limit=wanted - len(items), **choice)
            except (ValueError, OSError) as error:
                faults.append(f"{split}2017 cannot be read: {error}")
                continue
            items += [item for item in subset.items if item.square(SIZE)[1].regions]
            reports.append(subset.report)
            print(subset.report.text())
    faults += [f"there is no {split}2017" for split in SPLITS if split not in splits]
    lack = ""
    if len(items) <= budget.shown:
        lack = f"{len(items)} photos of {root} can be used, and {budget.shown + 1} are needed"
        lack = "; ".join([lack, *faults])
        print(lack)
    return Photos(items, reports, lack)


def section(tour: Tour) -> list[Markup]:
    """Photos, their scenes, and what a minute of learning from them does; or what is missing."""
    if tour.photos.lack:
        tour.page.facts["photos"] = {"lack": tour.photos.lack}
        return [prose(f"Nothing to show here: {tour.photos.lack}."), _credits(tour)]
    items = tour.photos.items
    shown, learned = items[: tour.budget.shown], items[tour.budget.shown :]
    squares = [item.square(SIZE) for item in shown]
    rebuilt, quality = _through(tour, [image for image, _ in squares])
    pool = cached(tour, CocoSubset(tuple(learned), tour.photos.reports[0]))
    sampled = {}
    for reading in learn(tour, pool, tour.budget.photo_steps, 2):
        sampled[reading.step] = reading.pipeline(
            [scene for _, scene in squares], **tour.settings
        ).images
    before, after = sampled.values()
    tour.page.facts["photos"] = {
        "learned_from": len(pool), "shown": len(shown), "steps": tour.budget.photo_steps,
        "psnr": quality, "files": [item.file_name for item in shown],
    }  # fmt: skip
    return [*_scenes(tour, shown), *_sampled(tour, squares, rebuilt, before, after), _credits(tour)]


@torch.no_grad()
def _through(tour: Tour, images: Sequence[np.ndarray]) -> tuple[np.ndarray, float]:
    """The photos encoded and decoded, uint8 (b, h, w, 3), and how near they come, in dB."""
    photos = np.stack(images)
    rebuilt = np.stack(
        [np.asarray(i) for i in tour.base.decode(encode(tour.base.vae, to_tensor(photos)))]
    )
    return rebuilt, round(psnr(rebuilt / 255, photos / 255), 1)


def _scenes(tour: Tour, shown: Sequence[CocoItem]) -> list[Markup]:
    """The first photos at full size, their regions over them."""
    rows = []
    for k, item in enumerate(shown[:3]):
        scene = item.scene
        alt = f"Photo: {scene.caption}, with its regions in colours"
        image = tour.page.image(f"photo-{k}", draw_scene(scene, 384, item.image()), alt)
        rows.append(Markup("<div>{}{}</div>").format(image, legend(scene)))
    return [
        prose(
            "A COCO folder holds photos, captions and segments: all that a scene is made of. Each "
            "segment of at least 5 % of the photo becomes a region with the name of its category."
        ),
        figure(
            Markup('<div class="photos">{}</div>').format(Markup("").join(rows)),
            "Scenes read from annotations, drawn over their photos.",
            "Category names are poor texts (no colour, no kind of chair), and what was annotated "
            "is all that there is: most of a photo belongs to no region.",
        ),
    ]


def _sampled(
    tour: Tour,
    squares: Sequence[tuple[np.ndarray, Scene]],
    rebuilt: np.ndarray,
    before: Sequence,
    after: Sequence,
) -> list[Markup]:
    facts, page = tour.page.facts["photos"], tour.page
    rows = []
    for k, (image, scene) in enumerate(squares):
        cells = {
            "the photo": image,
            "through the autoencoder": rebuilt[k],
            "the map": map_image(tour.spatext.st_map(scene), 128),
            "sampled before": outline(before[k], scene, 256, numbers=False),
            "sampled after": outline(after[k], scene, 256, numbers=False),
        }
        row: list[str | Markup] = [scene.caption]
        for name, image in cells.items():
            alt = f"{scene.caption}: {name}"
            row.append(page.image(f"photo-{k}-{name.replace(' ', '-')}", image, alt, 192))
        rows.append(row)
    size = sum(p.numel() for p in tour.base.unet.parameters()) / 1e6
    label = (
        f"a {size:.1f} M-parameter model that has seen {facts['learned_from']} photos; not a "
        "photo generator"
    )
    return [
        prose(
            f"The photos below are set apart. From the {facts['learned_from']} others the "
            f"text-to-image model learns for {facts['steps']} steps, as above. The images come "
            f"from {label}."
        ),
        figure(
            table(["", *cells], rows, "images"),
            "From left to right: the middle of the photo at 64 × 64; the same encoded and decoded; "
            "the map; the scene sampled before and after the fine-tune, the same seed, its regions "
            "outlined. Look for tones of photos, and for edges along the outlines.",
            f"Nearly everything: this is {label}. The autoencoder was trained on drawings and "
            f"gives these photos back at {facts['psnr']:.1f} dB, and the pocket CLIP has never "
            "read most of these words. The code is the same for a model that knows photos.",
        ),
    ]


def _credits(tour: Tour) -> Markup:
    texts = [f"{report.text()}\n\n{report.credits_text()}" for report in tour.photos.reports]
    return folded(
        "What was read, what was left out, and whose photos these are", "\n\n".join(texts)
    )
