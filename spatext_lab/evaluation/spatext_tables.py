# SPDX-License-Identifier: Apache-2.0
"""SpaText's tables: what each part of the method contributes, and what corrupted masks cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spatext_lab import zoo
from spatext_lab.datasets.corrupted_masks import CORRUPTIONS
from spatext_lab.evaluation.methods import METHODS
from spatext_lab.evaluation.report import evaluate
from spatext_lab.evaluation.tables import write
from spatext_lab.evaluation.tasks import tasks
from spatext_lab.figures.charts import curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VARIANTS = ("vectors", "binary", "caption", "similarity")  # trained alike, and not shipped
ABLATION = (
    *("spatext", "multi-scale", "no-prior", "linear-prior", "true-vectors", "pixel", "text"),
    *("update-mask", "coarse-to-fine", "energy"),
    *VARIANTS,
)
PARTS = ("update-mask", "energy")  # networks of their own, which a model may lack
COLUMNS = {
    "global distance": "global_distance",
    "local distance": "local_distance",
    "local IoU": "local_iou",
    "accuracy": "region_accuracy",
    "seen": "region_accuracy_seen",
    "held out": "region_accuracy_heldout",
    "Fréchet": "frechet_distance",
    "passes": "passes",
    "seconds": "seconds_per_image",
}


def ablation(
    scenes: int = 512, model: str = "pocket", variants: Path | None = None, seed: int = 0
) -> list[dict]:
    """A report for each row of the ablation table.

    Args:
        scenes: number of scenes of each.
        model: "pocket", or a folder with its layout.
        variants: a folder with `spatext-binary` and others, which `train other-maps
            --representation` makes; rows whose model is not there are left out, as are those of an
            update mask or an energy that `model` does not have.
        seed: of the first image, and of the choice of segments.
    """
    rows = []
    for method in ABLATION:
        folder = model
        if method in PARTS and not (zoo.folder(model) / method).is_dir():
            continue
        if method in VARIANTS:
            if not variants or not (variants / f"spatext-{method}").is_dir():
                continue
            folder = str(variants / f"spatext-{method}")
        rows.append(evaluate(method, scenes=scenes, seed=seed, model=folder))
    return rows


def tolerance(scenes: int = 512, model: str = "pocket", seed: int = 0) -> list[dict]:
    """A report of SpaText for each kind of corrupted mask.

    Args:
        scenes: number of scenes of each.
        model: as in `report.evaluate`.
        seed: of the first image, and of the choice of segments.

    Returns:
        Reports with two more entries: masks, the name of the corruption, and mask_quality, the mean
        IoU of the masks that were passed with the true ones.
    """
    true = [mask for task in tasks(scenes, seed) for mask in task.masks]
    rows = []
    for name, corruption in CORRUPTIONS.items():
        passed = [corruption(mask) for mask in true]
        ious = [(a & b).sum() / (a | b).sum() for a, b in zip(true, passed, strict=True)]
        row = evaluate("spatext", scenes=scenes, seed=seed, model=model, masks=corruption)
        rows.append(row | {"masks": name, "mask_quality": round(float(np.mean(ious)), 4)})
    return rows


def run(out: Path, scenes: int = 512, model: str = "pocket", variants: Path | None = None) -> None:
    """Writes both tables as Markdown and JSON, and the second one's figure.

    Args:
        out: a folder, for Markdown, JSON and a figure.
        scenes: of the first table.
        model: "pocket", or a folder with its layout.
        variants: a folder that holds spatext-binary, reco-words and their likes; without it their
            rows are left out.
    """
    command = f"spatext-lab ablation --scenes {scenes} --variants DIR --out DIR"
    rows = ablation(scenes, model, variants)
    write(out, "ablation", rows, [METHODS[row["method"]].what for row in rows], COLUMNS, command)
    rows = tolerance(scenes, model)
    write(out, "masks", rows, [row["masks"] for row in rows], COLUMNS, command)
    masks_figure(rows).savefig(out / "masks.png")


def masks_figure(rows: Sequence[dict]) -> Figure:
    """Local IoU and region accuracy against the quality of the masks.

    Args:
        rows: what `tolerance` returns.
    """
    lines = {}
    for size, others in (("too small", "eroded"), ("too large or coarse", ("dilated", "a "))):
        some = [row for row in rows if row["masks"].startswith(others) or row["masks"] == "exact"]
        some = sorted(some, key=lambda row: row["mask_quality"])
        for name, key in (("IoU", "local_iou"), ("accuracy", "region_accuracy")):
            values = [row[key] for row in some]
            lines[f"{name}, masks {size}"] = ([row["mask_quality"] for row in some], values)
    return curve(lines, "IoU of the masks passed with the exact ones", "score")
