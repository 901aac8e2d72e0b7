# SPDX-License-Identifier: Apache-2.0
"""Writes docs/hero.png, the image at the top of the README: `python docs/make_hero.py`."""

from pathlib import Path

from spatext_lab import ReCoPipeline, Scene, SpaTextPipeline, TextToImagePipeline, zoo
from spatext_lab.figures import draw_scene, grid, save

HERE = Path(__file__).resolve().parent
NAMES, SEED = ("meadow", "beach", "snow"), 1


def main() -> None:
    """A column for each scene: painted, from the caption alone, from the map, from the boxes."""
    scenes = [Scene.load(HERE.parent / "data" / "scenes" / f"{name}.json") for name in NAMES]
    objects = [Scene(scene.caption, scene.regions[2:]) for scene in scenes]  # no backdrop
    images = [draw_scene(scene, 220) for scene in scenes]
    for kind, part, read in (
        (TextToImagePipeline, "text-to-image", scenes),
        (SpaTextPipeline, "spatext", scenes),
        (ReCoPipeline, "reco", objects),
    ):
        pipe = kind.from_pretrained(zoo.folder("pocket", part))
        images += [pipe(scene, seed=SEED).images[0] for scene in read]
    rows = ["painted", "caption alone", "SpaText reads the map", "ReCo reads the boxes"]
    captions = [f"“{scene.caption}”" for scene in scenes]
    alt = (
        "Three painted scenes, and what three models generate of each: the text-to-image model "
        "from its caption, SpaText from caption and map, ReCo from caption and boxes"
    )
    save(grid(images, 3, titles=captions, row_titles=rows, size=220), HERE / "hero.png", alt)


if __name__ == "__main__":
    main()
