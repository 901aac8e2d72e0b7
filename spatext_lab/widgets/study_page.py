# SPDX-License-Identifier: Apache-2.0
"""A blind study as one HTML file for a class: no kernel, no network, answers as a file.

`spatext-lab study make` writes study.html, which everybody gets, and key.json, which nobody gets.
The page has the images as x and y, in random order, encoded anew without their names and
settings; no name of a method is in it. Not hidden is what can be seen: whoever knows how a
method's images look will know them, and who has the seed and the methods can make them anew. The
answers stay in the browser until they are saved as a file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from spatext_lab.evaluation.study.pairs import Pair, blind
from spatext_lab.scene import Scene, files
from spatext_lab.widgets.sources import script, style

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def page(sheet: dict[str, Any]) -> str:
    """A study's HTML.

    Args:
        sheet: what `blind` returns.
    """
    # No text can end the script: there is no "<" in it but as an escape.
    data = json.dumps(sheet).replace("<", "\\u003c")
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Which image?</title>\n<style>\n{style('study')}</style>\n"
        '<body class="sx-alone">\n<main class="sx sx-study">This page needs scripts.</main>\n'
        f'<script type="module">\n{script("study")}\n'
        f'begin(document.querySelector("main"), {data});\n</script>\n</body>\n</html>\n'
    )


def make(
    out: Path,
    *,
    methods: Sequence[str] | None = None,
    images: Sequence[Path] | None = None,
    scenes: int = 32,
    seed: int = 0,
    model: str = "pocket",
) -> list[Pair]:
    """Write study.html and key.json.

    Args:
        out: folder to write them in.
        methods: two names of `evaluate`'s methods, whose images are sampled.
        images: in place of methods, two folders with images of the same names, such as those of
            two methods that `compare` writes. The scene of an image is in its PNG file, as
            `compare` and `sample` write it, or beside it: that of a.png in a.json, by `Scene.save`.
        scenes: number of scenes, of those that `evaluate` uses.
        seed: of the first image, and of sides.
        model: pocket, or a folder with its layout.

    Returns:
        The pairs.

    Raises:
        ValueError: not two methods or two folders, folders without a name in common, images of
            different scenes under one name, the key of another study in `out`.
        FileNotFoundError: a scene is missing; names its file.
    """
    if sorted((len(methods or ()), len(images or ()))) != [0, 2]:
        found = f"methods is {methods}, images is {images}"
        raise ValueError(f"{found}: pass two names of methods, or two folders of images")
    pairs = _sampled(methods, scenes, seed, model) if methods else _found(*images)
    sheet, key = blind(pairs, seed)
    key.save(out / "key.json")
    files.write(out / "study.html", page(sheet))
    return pairs


def _sampled(methods: Sequence[str], scenes: int, seed: int, model: str) -> list[Pair]:
    """Images of two methods for the same scenes from the same seeds."""
    from spatext_lab.evaluation.methods import METHODS
    from spatext_lab.evaluation.report import sampled
    from spatext_lab.evaluation.tasks import layout_tasks, tasks

    unknown = [name for name in methods if name not in METHODS]
    if unknown or len(set(methods)) < 2:
        raise ValueError(f"methods is {list(methods)}; pass two of {', '.join(METHODS)}")
    boxes = any(METHODS[name].protocol == "boxes" for name in methods)
    todo = list(layout_tasks(scenes) if boxes else tasks(scenes, seed))
    columns = {}
    for name in methods:
        sampler = METHODS[name].load(model, METHODS[name].settings)
        columns[name] = sampled(sampler, todo, seed, name)
    return [
        Pair(task.scene, {name: columns[name][k] for name in methods})
        for k, task in enumerate(todo)
    ]


def _found(first: Path, second: Path) -> list[Pair]:
    """The images of two folders that have the same name, with their scenes."""
    keys = (first.name, second.name) if first.name != second.name else (str(first), str(second))
    places = [_place(folder) for folder in (first, second)]
    shared = sorted(set.intersection(*map(_names, places)))
    if not shared:
        raise ValueError(f"{first} and {second} have no images ({' '.join(SUFFIXES)}) of one name")
    return [_pair(keys, [place / name for place in places]) for name in shared]


def _place(folder: Path) -> Path:
    """The folder of the images; for a method's folder of a comparison, that of its table."""
    from spatext_lab.evaluation.comparison.scenes import MAIN

    return folder / MAIN if not _names(folder) and (folder / MAIN).is_dir() else folder


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES}


def _pair(keys: Sequence[str], paths: Sequence[Path]) -> Pair:
    images = [Image.open(path) for path in paths]
    scenes = [s for s in map(_scene, paths, images) if s is not None]
    if not scenes:
        missing = f"{paths[0].with_suffix('.json')} is missing"
        raise FileNotFoundError(f"{missing}: write the image's scene there, with `Scene.save`")
    if len({scene.to_json() for scene in scenes}) > 1:
        raise ValueError(f"{paths[0]} and {paths[1]} are of different scenes; rename one of them")
    return Pair(scenes[0], dict(zip(keys, images, strict=True)))


def _scene(path: Path, image: Image.Image) -> Scene | None:
    """The scene of an image: beside it, or in its file, where `figures.png` has put it."""
    if (note := path.with_suffix(".json")).exists():
        return Scene.load(note)
    try:
        return Scene.from_json(json.loads(image.info["Parameters"])["scene"])
    except (KeyError, TypeError, ValueError):
        return None
