# SPDX-License-Identifier: Apache-2.0
"""ReCo's tables: layouts to images, skills, number of bins, initial embeddings of new tokens.

The rows of VARIANTS, BINS and INITS are trained for the tables as the shipped ReCo was, by the
recipe's own plan from the text-to-image model, with --variant, --bins or --init as NAME says:

    spatext-lab train reco --out DIR/reco-NAME

reco-bins-128 and reco-init-smooth are the shipped ReCo. Of each init there is another one of 200
steps, reco-init-INIT-200.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torchvision.ops import box_iou

from spatext_lab import zoo
from spatext_lab.datasets.pocket import SIZE
from spatext_lab.datasets.pocket.paintskills import SKILLS, SPLITS
from spatext_lab.evaluation.report import evaluate
from spatext_lab.evaluation.skills import evaluate_skills
from spatext_lab.evaluation.tables import write
from spatext_lab.evaluation.tasks import layout_tasks
from spatext_lab.reco.position_tokens import snapped

# method -> name of the row; none of them needs a model of its own
ROWS = {
    "reco": "ReCo, as shipped",
    "reco-caption": "ReCo, caption alone",
    "text": "text-to-image",
    "autoencoder": "true images, decoded",
    "true": "true images",
}
# (name of the folder, name of the row, method that samples with it)
VARIANTS = (
    ("reco-contrastive", "ReCo with a contrastive loss", "reco"),
    ("reco-after", "position embeddings after the text encoder", "reco"),
    ("reco-words", "positional words", "words"),
    ("reco-digits", "coordinates as digits", "digits"),
)
# the folder of the card with a method's number of training steps
PARTS = {"reco": "reco", "reco-caption": "reco", "text": "text-to-image"}
PARTS |= {"words": "reco-words", "digits": "reco-digits"}
BINS = (8, 16, 32, 64, 128, 256, 1000)
INITS = ("smooth", "mean", "normal")

LAYOUT_COLUMNS = {
    "AP": "ap",
    "AP50": "ap50",
    "AP50 of locations": "ap50_place",
    "accuracy": "region_accuracy",
    "seen": "region_accuracy_seen",
    "held out": "region_accuracy_heldout",
    "Fréchet": "frechet_distance",
    "Fréchet of objects": "scene_distance",
    "steps": "steps",
    "seconds": "seconds_per_image",
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
INIT_COLUMNS = {"loss after 200 steps": "loss_200", "AP": "ap", "AP50": "ap50", "steps": "steps"}


def run(out: Path, scenes: int = 512, model: str = "pocket", variants: Path | None = None) -> None:
    """Writes all tables as Markdown and JSON; rows without a model are left out.

    Args:
        out: a folder, for Markdown and JSON.
        scenes: of the first table.
        model: "pocket", or a folder with its layout.
        variants: a folder that holds reco-words and its likes; without it their rows are left out.
    """
    command = f"spatext-lab ablation --method reco --scenes {scenes} --variants DIR --out DIR"
    names, rows = zip(*layouts(scenes, model, variants), strict=True)
    write(out, "layouts", rows, names, LAYOUT_COLUMNS, command)
    prompts = min(scenes, *(SPLITS[skill]["val"] for skill in SKILLS))
    rows = [evaluate_skills(method, prompts=prompts, model=model) for method in ROWS]
    write(out, "skills", rows, list(ROWS.values()), SKILL_COLUMNS, command)
    rows = [bins_row(bins, scenes, variants) for bins in BINS]
    write(out, "bins", rows, [f"{bins} bins" for bins in BINS], BIN_COLUMNS, command)
    rows = [init_row(init, scenes, variants) for init in INITS]
    write(out, "init", rows, INITS, INIT_COLUMNS, command)


def layouts(scenes: int, model: str, variants: Path | None) -> Iterator[tuple[str, dict]]:
    """(name, report) of every row of the first table; arguments as in `run`."""
    for method, name in ROWS.items():
        yield name, _layout_row(method, scenes, model)
    for folder, name, method in VARIANTS:
        if (place := _trained(variants, folder)) is not None:
            yield name, _layout_row(method, scenes, str(place))


def bins_row(bins: int, scenes: int, variants: Path | None) -> dict:
    """What rounding to bins does to the boxes of the scenes, and the AP of a model trained so.

    Args:
        bins: number of position tokens.
        scenes: number of scenes.
        variants: the folder with `reco-bins-BINS`; without it the errors alone.

    Returns:
        bins; largest_error (that there can be) and mean_error of the edges, in pixels of a 64-pixel
        image; box_iou, the mean IoU of a box with its rounded one; and the model's report.
    """
    boxes = [region.box for task in layout_tasks(scenes) for region in task.scene.regions]
    true = torch.tensor(boxes, dtype=torch.float64)
    rounded = torch.tensor([snapped(box, bins) for box in boxes], dtype=torch.float64)
    row = {
        "bins": bins,
        "largest_error": SIZE / 2 / (bins - 1),
        "box_iou": box_iou(true, rounded).diagonal().mean().item(),
        "mean_error": SIZE * (true - rounded).abs().mean().item(),
    }
    if (place := _trained(variants, f"reco-bins-{bins}")) is not None:
        row |= _layout_row("reco", scenes, str(place))
    return row


def init_row(init: str, scenes: int, variants: Path | None) -> dict:
    """The loss of 200 steps after an initialization, and the AP of a model trained on from it.

    Args:
        init: of the position tokens' embeddings.
        scenes: number of scenes.
        variants: the folder with `reco-init-INIT-200` and `reco-init-INIT`; what is not there is
            left out.

    Returns:
        init, loss_200, and the model's report.
    """
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
