# SPDX-License-Identifier: Apache-2.0
"""The page of a whole training: how each model learned, and what the methods can do with it."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from spatext_lab.evaluation.comparison.listing import COLUMNS
from spatext_lab.evaluation.comparison.run import run as compare
from spatext_lab.evaluation.tables import cell
from spatext_lab.figures import charts
from spatext_lab.figures.png import png
from spatext_lab.scene import files
from spatext_lab.training import checkpoint
from spatext_lab.training.result import CARD

INDEX, COMPARED = "index.html", "compare"
SCENES = 32
POINTS = 100  # of a curve; each is the mean of its steps
# model's folder -> the method that it is measured by
METHODS = {
    "text-to-image": "text",
    "spatext": "spatext",
    "spatext-pixel": "pixel",
    "reco": "reco",
    "gligen": "gligen",
}
TEMPLATES = Environment(
    loader=PackageLoader("spatext_lab.training"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write(out: Path, models: Sequence[str], scenes: int = SCENES) -> Path:
    """Writes OUT/index.html, and OUT/compare where there are models that sample scenes.

    A model's scores are those of its card; where that has none, the comparison's.

    Args:
        out: the folder of a whole training.
        models: names of the folders in it.
        scenes: number of test scenes that each method is measured on; with 0 none is, and the page
            has curves alone.

    Returns:
        The page's path.
    """
    rows, measured = [], {}
    methods = [METHODS[name] for name in models if name in METHODS] if scenes else []
    if methods:
        report = compare(methods, out / COMPARED, scenes, model=str(out))
        measured = {row["method"]: row for row in report["rows"]}
    for name in models:
        facts = json.loads((out / name / CARD).read_text(encoding="utf-8"))
        record = checkpoint.record(out / f"{name}.checkpoint")
        figure = loss_curve(record["losses"]) if record else None
        alt = f"Loss of {name} against the step of its training."
        source = base64.b64encode(png(figure, alt)).decode() if figure else ""
        scores = facts.get("scores") or _scores(measured.get(METHODS.get(name), {}))
        rows.append({"name": name, "facts": facts, "alt": alt, "curve": source, "scores": scores})
    page = TEMPLATES.get_template("overview.html").render(rows=rows, compared=bool(methods))
    files.write(out / INDEX, page)
    return out / INDEX


def _scores(row: dict[str, Any]) -> dict[str, str]:
    """The values of a comparison's row, by the table's headings."""
    return {heading: cell(row, key) for heading, key in COLUMNS.items() if key in row}


def loss_curve(losses: Sequence[float]) -> Figure:
    """The loss against the step, as means of at most POINTS equal stretches."""
    parts = np.array_split(np.asarray(losses), min(POINTS, len(losses)))
    ends = np.cumsum([len(part) for part in parts])
    means = np.array([part.mean() for part in parts])
    return charts.curve({"loss": (ends, means)}, "step", "loss", size=(420, 240))
