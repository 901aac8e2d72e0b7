# SPDX-License-Identifier: Apache-2.0
"""ReCo's tables: layouts, skills, the number of bins, and the initial values of position tokens.

The rows of VARIANTS, BINS and INITS are trained for the tables, all alike, from the shipped model
without its position tokens:

    spatext-lab train reco --base data/pocket/reco --relearn --aided --steps 1200 \\
        --out DIR/reco-NAME, with --variant, --bins or --init as in NAME
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from spatext_lab import zoo
from spatext_lab.datasets.pocket.paintskills import SKILLS, SPLITS
from spatext_lab.evaluation.boxes import layout_tasks
from spatext_lab.evaluation.report import evaluate
from spatext_lab.evaluation.skills import evaluate_skills
from spatext_lab.evaluation.tables import write
from spatext_lab.reco.position_tokens import snapped

# method -> what the row says; none of them needs a model of its own
ROWS = {
    "reco": "ReCo, as shipped",
    "reco-caption": "ReCo, told the caption alone",
    "text": "text-to-image",
    "autoencoder": "true images, decoded",
    "true": "true images",
}
# (name of the folder, what the row says, method that draws with it)
VARIANTS = (
    ("reco-words", "positional words", "words"),
    ("reco-short", "ReCo, relearned", "reco"),
    ("reco-after", "position vectors after the text encoder", "reco"),
    ("reco-contrastive", "ReCo with a contrastive loss", "reco"),
)
# where the card is that says how long a method's model has learned
PARTS = {"reco": "reco", "reco-caption": "reco", "words": "reco-words", "text": "text-to-image"}
BINS = (8, 16, 32, 64, 128, 256, 1000)
INITS = ("smooth", "mean", "normal")

LAYOUT_COLUMNS = {
    "AP": "ap",
    "AP50": "ap50",
    "AP50 of places": "ap50_place",
    "accuracy": "region_accuracy",
    "seen": "region_accuracy_seen",
    "held out": "region_accuracy_heldout",
    "Fréchet": "frechet_distance",
    "Fréchet of things": "scene_distance",
    "steps": "steps",
    "seconds": "seconds_per_picture",
}
SKILL_COLUMNS = {skill: skill for skill in ("object", "count", "colour", "spatial")}
BIN_COLUMNS = {
    "largest error, pixels": "largest_error",
    "mean error, pixels": "mean_error",
    "IoU of a box with its bins": "box_iou",
    "AP": "ap",
    "AP50": "ap50",
    "steps": "steps",
}
INIT_COLUMNS = {"loss of 200 steps": "loss_200", "AP": "ap", "AP50": "ap50", "steps": "steps"}


def run(out: Path, scenes: int = 512, model: str = "pocket", variants: Path | None = None) -> None:
    """Writes all tables as Markdown and JSON into `out`; rows without a model are left out.

    Args:
        out: a folder, for Markdown, JSON and a figure.
        scenes: of the first table.
        model: "pocket", or a folder with its layout.
        variants: a folder that holds spatext-binary, reco-words and their likes; without it their
            rows are left out.
    """
    names, rows = zip(*layouts(scenes, model, variants), strict=True)
    write(out, "layouts", rows, names, LAYOUT_COLUMNS)
    prompts = min(scenes, *(SPLITS[skill]["val"] for skill in SKILLS))
    rows = [evaluate_skills(method, prompts=prompts, model=model) for method in ROWS]
    write(out, "skills", rows, list(ROWS.values()), SKILL_COLUMNS)
    rows = [bins_row(bins, scenes, variants) for bins in BINS]
    write(out, "bins", rows, [f"{bins} bins" for bins in BINS], BIN_COLUMNS)
    rows = [init_row(init, scenes, variants) for init in INITS]
    write(out, "init", rows, INITS, INIT_COLUMNS)


def layouts(scenes: int, model: str, variants: Path | None) -> Iterator[tuple[str, dict]]:
    """(label, report) of every row of the first table."""
    for method, what in ROWS.items():
        yield what, _layout_row(method, scenes, model)
    for folder, what, method in VARIANTS:
        if (place := _trained(variants, folder)) is not None:
            yield what, _layout_row(method, scenes, str(place))


def bins_row(bins: int, scenes: int, variants: Path | None) -> dict:
    """Rounding error of the scenes' boxes with so many bins, and the AP of a model with them.

    Errors are those of the edges in pixels of a 64 x 64 image; they are exact and need no model.
    """
    boxes = [r.box for task in layout_tasks(scenes) for r in task.scene.regions]
    rounded = [snapped(box, bins) for box in boxes]
    errors = 64 * np.abs(np.array(boxes) - np.array(rounded))
    overlap = [_iou(a, b) for a, b in zip(boxes, rounded, strict=True)]
    row = {"bins": bins, "largest_error": 64 / 2 / (bins - 1), "box_iou": float(np.mean(overlap))}
    row |= {"mean_error": float(errors.mean())}
    if (place := _trained(variants, f"reco-bins-{bins}")) is not None:
        row |= _layout_row("reco", scenes, str(place))
    return row


def init_row(init: str, scenes: int, variants: Path | None) -> dict:
    """Loss of a run of 200 steps with these initial values, and AP after the full run."""
    row = {"init": init}
    if (place := _trained(variants, f"reco-init-{init}-200")) is not None:
        row["loss_200"] = json.loads((place / "card.json").read_text())["final_loss"]
    if (place := _trained(variants, f"reco-init-{init}")) is not None:
        row |= _layout_row("reco", scenes, str(place))
    return row


def _layout_row(method: str, scenes: int, model: str) -> dict:
    row = evaluate(method, scenes=scenes, model=model, protocol="boxes")
    shipped = PARTS.get(method, "")
    if shipped and (card := zoo.folder(model, shipped) / "card.json").is_file():
        row["steps"] = json.loads(card.read_text())["plan"]["steps"]
    return row


def _trained(variants: Path | None, name: str) -> Path | None:
    """The folder of a model that was trained for a row; None where it is not there."""
    place = variants and variants / name
    return place if place and place.is_dir() else None


def _iou(a: tuple, b: tuple) -> float:
    """Intersection over union of two boxes."""
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    both = max(width, 0) * max(height, 0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return both / (areas - both)
