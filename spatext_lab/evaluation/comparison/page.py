# SPDX-License-Identifier: Apache-2.0
"""A comparison as one HTML file that needs nothing else: its images are inside."""

import base64
from collections.abc import Iterator, Mapping
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from PIL import Image

from spatext_lab.evaluation.comparison import listing
from spatext_lab.evaluation.comparison.scenes import SceneSet
from spatext_lab.evaluation.methods import METHODS
from spatext_lab.evaluation.tables import cell
from spatext_lab.figures import charts, draw_scene
from spatext_lab.figures.png import png
from spatext_lab.scene import files

SHOWN = 12  # scenes
AXES = {
    "number of regions": "number of regions",
    "overlap": "overlap: % of the smaller box that both boxes share",
    "size": "size: side of the object, % of the image's",
    "held-out combinations": "held-out combinations among three objects",
}
_HERE = "spatext_lab.evaluation.comparison"
TEMPLATES = Environment(
    loader=PackageLoader(_HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
# heading -> what it means
TERMS = {
    "local IoU": "how well the object that is found in a region fills it, 1 for exactly; "
    "methods that read boxes do not know the outline that they are measured by",
    "AP50": "average precision of the objects found, by boxes that overlap by half or more",
    "seen, held out": "fraction of objects that are of the kind and colour asked for: "
    "combinations that training had, and combinations that it never had",
    "global, local distance": "CLIP's distance of the image to its caption, of each region to its "
    "text; lower is better",
    "Fréchet": "distance between the sets of generated and of true images in CLIP's embeddings; "
    "lower is better. It has no interval: resampled images would only make it larger",
    "diversity, in regions": "CLIP's mean distance of two of four images of a scene, each with "
    "another seed: of whole images, and of the pixels inside each region",
    "passes": "of the network in each step; one with smaller latents, or that an update mask skips "
    "in some steps, counts in full",
    "seconds, memory": "of one image alone on one thread, and of the process that makes it",
}


def write(
    path: Path, report: dict[str, Any], scenes: SceneSet, images: Mapping[str, Mapping[int, Path]]
) -> None:
    """Writes the page.

    Args:
        path: of the file.
        report: what `run` returns.
        scenes: those of the table.
        images: the files of their images, by method and number.
    """
    names = {row["method"]: row["name"] for row in report["rows"]}
    style = resources(_HERE).joinpath("templates/compare.css").read_text(encoding="utf-8")
    html = TEMPLATES.get_template("compare.html").render(
        report=report,
        style=style,
        tables=list(_tables(report)),
        terms=TERMS,
        scenes=list(_scenes(scenes, images, names)),
        left_out=listing.left_out(report),
    )
    files.write(path, html)


def _tables(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each table with its heading, and with the figure of a curve."""
    rows, apart = report["rows"], report["differences"]
    yield _table("The scores", rows, [row["name"] for row in rows], listing.COLUMNS)
    if apart:
        title = f"Differences from “{rows[0]['name']}”"
        yield _table(title, apart, [row["name"] for row in apart], listing.PAIRED)
    for curve, (points, labels, columns) in listing.curve_tables(report).items():
        table = _table(f"Region accuracy: {curve}", points, labels, columns)
        yield table | {"figure": _figure(report, curve)}


def _table(
    title: str, rows: list[dict], names: list[str], columns: Mapping[str, str]
) -> dict[str, Any]:
    """A table's texts; each cell is a value and its interval."""
    cells = [[cell(row, key).partition(" ")[::2] for key in columns.values()] for row in rows]
    body = list(zip(names, cells, strict=True))
    return {"title": title, "head": list(columns), "rows": body, "figure": None}


def _figure(report: dict[str, Any], curve: str) -> dict[str, str] | None:
    """The lines of a curve; none for splits, which have no axis."""
    points = [point for point in report["curves"] if point["curve"] == curve]
    if curve == "LayoutBench":
        return None
    lines = {
        METHODS[method].what if method in METHODS else method: (
            [point["x"] for point in points],
            [point["methods"][method]["region_accuracy"] for point in points],
        )
        for method in points[0]["methods"]
    }
    drawn = charts.curve(lines, AXES[curve], "region accuracy", size=(720, 420))
    alt = f"Region accuracy against {curve}; the table below has the same numbers"
    return {"src": _data(png(drawn, alt)), "alt": alt}


def _scenes(
    scenes: SceneSet, images: Mapping[str, Mapping[int, Path]], names: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """The first scenes, each with its regions, its true image and an image by each method."""
    for k, task in enumerate(scenes.todo[:SHOWN]):
        caption = task.scene.caption
        layout = draw_scene(task.scene, 128)
        true = Image.fromarray(task.item.image)
        tiles = [_tile(png(layout, "-"), "regions", f"The regions of: {caption}")]
        tiles += [_tile(png(true, "-"), "true image", f"The true image of: {caption}")]
        for method, some in images.items():
            if k in some:
                alt = f"{names[method]}: {caption}"
                tiles.append(_tile(some[k].read_bytes(), names[method], alt))
        texts = [region.text for region in task.scene.regions]
        yield {"caption": caption, "texts": texts, "tiles": tiles}


def _tile(content: bytes, label: str, alt: str) -> dict[str, str]:
    return {"src": _data(content), "label": label, "alt": alt}


def _data(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")
