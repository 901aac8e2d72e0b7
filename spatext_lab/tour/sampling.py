# SPDX-License-Identifier: Apache-2.0
"""The first half of the tour: a scene, its map, its images, and the two guidance scales."""

from __future__ import annotations

from collections.abc import Sequence
from shlex import quote

from markupsafe import Markup
from PIL import Image

from spatext_lab.evaluation.report import scores
from spatext_lab.evaluation.tasks import tasks
from spatext_lab.figures import draw_scene, map_image, outline
from spatext_lab.figures.progress import Progress
from spatext_lab.scene import Scene
from spatext_lab.tour.markup import command, figure, folded, legend, prose, table, tiles
from spatext_lab.tour.plan import Tour

SCENE_FILE = "scene.json"


def scene(tour: Tour) -> list[Markup]:
    """1: the scene to be sampled."""
    tour.scene.save(tour.page.folder / SCENE_FILE)
    drawn = tour.page.image(
        "scene", draw_scene(tour.scene, 384), f"The scene's regions: {_listed(tour.scene)}", 384
    )
    file = quote(str(tour.home / SCENE_FILE))
    return [
        prose(
            "A scene is a caption for the whole image and a text for each region. A region is a "
            "mask (any shape) or a box. Later regions lie over earlier ones."
        ),
        figure(
            Markup('<div class="beside">{}{}</div>').format(drawn, legend(tour.scene)),
            "The regions by number, with their texts. Nothing here is generated: this is all that "
            "the model is conditioned on.",
            "A mask says where, not how: which way a boat sails is left to chance. Cells that no "
            "region covers would be light grey here, and are left to the caption.",
        ),
        prose(
            f"It is the file `{SCENE_FILE}` beside this page. Change a text in it, then sample one "
            "image of it, or take this tour with it:"
        ),
        command(
            f"spatext-lab sample --method spatext --seed 0 --scene {file} --out mine.png",
            f"spatext-lab tour --scene {file} --out outputs/mine",
        ),
        folded("The file", tour.scene.to_json()),
    ]


def st_map(tour: Tour) -> list[Markup]:
    """2: what the network reads."""
    page, values = tour.page, tour.spatext.st_map(tour.scene)
    d, h, w = values.shape
    drawn = page.image("map-scene", draw_scene(tour.scene), "The scene's regions, as above")
    seen = page.image(
        "map",
        map_image(values),
        f"The spatio-textual map, {h} by {w} cells; regions with similar texts have similar "
        "colours, cells of no region are grey",
    )
    covered = values.any(0).float().mean().item()
    page.facts["map"] = {"shape": [d, h, w], "covered": round(covered, 4)}
    return [
        prose(
            "CLIP turns each region's text into an embedding, the prior turns that into one that "
            "an image of it could have, and this is painted into the region's cells. The result is "
            f"the spatio-textual map: {d} numbers in each of {h} × {w} cells."
        ),
        figure(
            tiles(
                [
                    (drawn, "the scene"),
                    (seen, f"its map; the {d} numbers as 3 principal components"),
                ],
                256,
            ),
            "Similar colours are similar embeddings, so texts with much the same meaning look much "
            "the same; grey cells hold zeros.",
            f"The map is as coarse as the latents: {h} × {w} cells. A region thinner than a cell "
            "loses its shape, and a cell half covered holds half an embedding.",
        ),
    ]


def with_and_without(tour: Tour) -> list[Markup]:
    """3: the same noise, with the map and without it."""
    seeds = range(tour.budget.seeds)
    plain = Scene(tour.scene.caption)
    images = {
        name: tour.spatext([asked] * len(seeds), **tour.settings).images
        for name, asked in (("without", plain), ("with", tour.scene))
    }
    return [
        prose(
            "Each column starts from the same noise (the same seed). Above, the model is "
            "conditioned on the caption alone; below, on the caption and the map."
        ),
        figure(
            Markup(
                "".join(
                    _row(tour, name, images[name.split()[0]], traced)
                    for name, traced in (("without", True), ("with", True), ("with plain", False))
                )
            ),
            "Without the map (first row) objects appear wherever the noise happens to put them, "
            "and nothing ties them to the outlines; with it (second row) they should fill their "
            "outlines in every column. The third row is the second without outlines.",
            "Edges are soft and small objects lose their details: the latents are coarse and the "
            "model is tiny. Look for colours that leak from one object to its neighbour.",
        ),
    ]


def _row(tour: Tour, name: str, images: Sequence[Image.Image], traced: bool) -> Markup:
    cells = []
    for seed, image in enumerate(images):
        label = f"{name.split()[0]} the map, seed {seed}"
        shown = outline(image, tour.scene) if traced else image
        alt = f"{tour.scene.caption}: sampled {label}" + ", regions outlined" * traced
        file = f"{name.replace(' ', '-')}-{seed}"
        cells.append((tour.page.image(file, shown, alt, seed=seed, **tour.settings), label))
    return tiles(cells, 200)


def sweep(tour: Tour) -> list[Markup]:
    """4: the guidance scales of the caption and of the map; one batch per cell."""
    scales, todo = tour.budget.scales, list(tasks(tour.budget.swept, split="val"))
    asked = [tour.scene, *(task.scene for task in todo)]
    rows, found = [], {}
    bar = Progress(total=len(scales) ** 2, desc="sampling", unit="cell")
    for caption in scales:
        row: list[str | Markup] = [f"caption {caption:g}"]
        for region in scales:
            made = {"guidance_scale": caption, "region_guidance_scale": region}
            made["num_inference_steps"] = tour.budget.denoising_steps
            images = tour.spatext(asked, **made).images
            iou = scores(todo, images[1:], tour.judge)["local_iou"]
            found[f"{caption:g}/{region:g}"] = iou
            alt = f"Sampled with caption scale {caption:g} and map scale {region:g}"
            name = f"sweep-{caption:g}-{region:g}"
            shown = tour.page.image(name, images[0], alt, 192, seed=0, **made)
            row.append(Markup("{}<small>IoU {:.2f}</small>").format(shown, iou))
            bar.update()
        rows.append(row)
    bar.close()
    tour.page.facts["sweep"] = {"local_iou": found, "scenes": len(todo)}
    head = ["", *(f"map {scale:g}" for scale in scales)]
    return [
        prose(
            "Guidance sets the weight of each condition. The caption and the map have a scale "
            "each: 0 leaves a condition out, 1 is the plain model, more exaggerates. All three "
            "predictions of a step (none, caption, map) are one call of the network."
        ),
        figure(
            table(head, rows, "images"),
            "Down a column the caption's scale grows, along a row the map's. One seed everywhere. "
            "The number is the local IoU over "
            f"{len(todo)} validation scenes: how well generated objects fill their regions (1 is "
            "perfect).",
            "A larger scale is not always better: colours burn out and objects grow beyond their "
            "outlines. "
            f"{len(todo)} scenes are few, so read differences of less than 0.05 as noise.",
        ),
    ]


def _listed(scene: Scene) -> str:
    return ", ".join(f"{k} {region.text}" for k, region in enumerate(scene.regions, 1)) or "none"
