# SPDX-License-Identifier: Apache-2.0
"""Other views of a picture and its scene: mirrored, and cut out at random, boxes moved along.

As ReCo's released code has it (its transforms come from MDETR): where a picture is mirrored, *left*
and *right* change places in the caption, and only there; boxes that leave the picture are dropped.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from spatext_lab.scene import Region
from spatext_lab.scene.places import Box

# What is left of a box must be this wide and high, as a part of the picture: a sliver of a thing
# shows nothing of it. (The released code drops a box only where nothing at all is left.)
SLIVER = 1 / 32
FLIP, CUT = 0.5, 0.5  # how many views are mirrored; how many are cut out of a larger picture
ZOOM = 1.2  # at most so much larger, before it is cut

_SIDES = {"left": "right", "right": "left"}


@dataclass(frozen=True)
class View:
    """A square picture, its captions, and a box and a text for each thing that is in it."""

    image: UInt8[np.ndarray, "size size 3"]
    captions: tuple[str, ...]
    regions: tuple[Region, ...]


def swap_sides(caption: str) -> str:
    """The caption with the words *left* and *right* exchanged, whatever their case."""

    def other(found: re.Match) -> str:
        word = found[0]
        swapped = _SIDES[word.lower()]
        if word.isupper():
            return swapped.upper()
        return swapped.capitalize() if word[0].isupper() else swapped

    # Letters of ASCII alone: elsewhere the case of an i is another matter, as in Turkish.
    return re.sub(r"\b(?ai:left|right)\b", other, caption)


def mirrored(box: Box) -> Box:
    """The box in the mirrored picture."""
    x0, y0, x1, y1 = box
    return 1 - x1, y0, 1 - x0, y1


def cut(box: Box, window: Box) -> Box | None:
    """The box as a part of the window, clipped at its edges; None where too little is left."""
    left, top, right, bottom = window
    w, h = right - left, bottom - top
    x0, y0, x1, y1 = box
    x0, x1 = (min(max((x - left) / w, 0.0), 1.0) for x in (x0, x1))
    y0, y1 = (min(max((y - top) / h, 0.0), 1.0) for y in (y0, y1))
    return (x0, y0, x1, y1) if min(x1 - x0, y1 - y0) >= SLIVER else None


def random_view(
    image: Image.Image,
    captions: Sequence[str],
    regions: Sequence[Region],
    size: int,
    rng: Random,
) -> View:
    """A random square of the picture as `size` x `size` pixels, mirrored in FLIP of all cases.

    The shorter side is brought to `size` pixels, or, in CUT of all cases, to up to ZOOM times as
    many, and a random square of `size` pixels is cut out. Everything random comes from `rng`.
    """
    window = _random_window(image.size, rng)
    w, h = image.size
    pixels = (window[0] * w, window[1] * h, window[2] * w, window[3] * h)
    view = np.array(image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS, pixels))
    kept = [(r.text, box) for r in regions if (box := cut(r.box, window))]
    if rng.random() < FLIP:
        view = np.ascontiguousarray(view[:, ::-1])
        captions = [swap_sides(caption) for caption in captions]
        kept = [(text, mirrored(box)) for text, box in kept]
    return View(view, tuple(captions), tuple(Region(text, box=box) for text, box in kept))


def _random_window(size: tuple[int, int], rng: Random) -> Box:
    """A random square of a picture of (width, height) pixels, as fractions of its sides."""
    w, h = size
    zoom = rng.uniform(1, ZOOM) if rng.random() < CUT else 1.0
    side = min(w, h) / zoom
    left, top = rng.uniform(0, w - side), rng.uniform(0, h - side)
    return left / w, top / h, min((left + side) / w, 1.0), min((top + side) / h, 1.0)
