# SPDX-License-Identifier: Apache-2.0
"""Writes docs/hero.png, the image at the top of the README: `python docs/make_hero.py`."""

from pathlib import Path

from spatext_lab import Scene, SpaTextPipeline, TextToImagePipeline, zoo
from spatext_lab.evaluation.methods import JOINT
from spatext_lab.figures import draw_scene, grid, save

HERE = Path(__file__).resolve().parent
NAMES = ("meadow", "beach", "snow")
SEEDS = {"meadow": 1, "beach": 1, "snow": 1}


def main() -> None:
    """One column per scene: as painted, from the caption alone, from caption and map."""
    scenes = [Scene.load(HERE.parent / "data" / "scenes" / f"{name}.json") for name in NAMES]
    text = TextToImagePipeline.from_pretrained(zoo.folder("pocket", "text-to-image"))
    spatext = SpaTextPipeline.from_pretrained(zoo.folder("pocket", "spatext"))
    pairs = list(zip(scenes, NAMES, strict=True))
    images = [draw_scene(scene, 220) for scene in scenes]
    for pipeline in (text, spatext):
        images += [pipeline(scene, seed=SEEDS[name], **JOINT).images[0] for scene, name in pairs]
    rows = ["the scene, painted", "its caption alone", "SpaText reads the map"]
    captions = [f"“{scene.caption}”" for scene in scenes]
    alt = "Three painted scenes, what a text-to-image model makes of their captions, and SpaText"
    save(grid(images, 3, titles=captions, row_titles=rows, size=220), HERE / "hero.png", alt)


if __name__ == "__main__":
    main()
