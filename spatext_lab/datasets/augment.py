# SPDX-License-Identifier: Apache-2.0
"""Random views of an image and its scene: flipped and cropped, its boxes moved with it.

As in ReCo's released code (its transforms come from MDETR): where an image is flipped, *left* and
*right* are swapped in the caption, and only there; boxes that leave the image are dropped.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from spatext_lab.figures import to_image
from spatext_lab.scene import Region
from spatext_lab.scene.places import Box

# A box that is cropped must stay this wide and high, as a fraction of the image: a sliver of an
# object shows nothing of it. (The released code drops a box only where nothing at all is left.)
SLIVER = 1 / 32
FLIP, ENLARGE = 0.5, 0.5  # the fractions of views that are flipped; that are enlarged first
ZOOM = 1.2  # at most so much larger, before it is cropped

_SIDES = {"left": "right", "right": "left"}


@dataclass(frozen=True)
class View:
    """A square image, its captions, and a box and a text for each object in it."""

    image: UInt8[np.ndarray, "size size 3"]
    captions: tuple[str, ...]
    regions: tuple[Region, ...]


def swap_sides(caption: str) -> str:
    """The caption with the words *left* and *right* exchanged, whatever their case.

    swap_sides("Left of a bright tree") == "Right of a bright tree"
    """

    def other(found: re.Match) -> str:
        word = found[0]
        swapped = _SIDES[word.lower()]
        if word.isupper():
            return swapped.upper()
        return swapped.capitalize() if word[0].isupper() else swapped

    # Letters of ASCII alone: elsewhere the case of an i is another matter, as in Turkish.
    return re.sub(r"\b(?ai:left|right)\b", other, caption)


def mirrored(box: Box) -> Box:
    """The box (x0, y0, x1, y1), in fractions, in the flipped image."""
    x0, y0, x1, y1 = box
    return 1 - x1, y0, 1 - x0, y1


def crop(box: Box, window: Box) -> Box | None:
    """The part of a box that is in the window, in fractions of the window.

    Returns:
        The box, clipped at the window's edges; None where it is narrower or lower than SLIVER.
    """
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
    """A random square of the image as `size` x `size` pixels, flipped with probability FLIP.

    The shorter side is resized to `size` pixels, or, with probability ENLARGE, to up to ZOOM times
    as many, and a random square of `size` pixels is cropped.

    Args:
        image:    of any size and mode.
        captions: of the whole image.
        regions:  masks become their boxes.
        size:     of the view, in pixels.
        rng:      all that is random comes from it, so equal states give equal views.
    """
    image = to_image(image)
    window = _random_window(image.size, rng)
    w, h = image.size
    pixels = (window[0] * w, window[1] * h, window[2] * w, window[3] * h)
    view = np.array(image.resize((size, size), Image.Resampling.LANCZOS, pixels))
    kept = [(r.text, box) for r in regions if (box := crop(r.box, window))]
    if rng.random() < FLIP:
        view = np.ascontiguousarray(view[:, ::-1])
        captions = [swap_sides(caption) for caption in captions]
        kept = [(text, mirrored(box)) for text, box in kept]
    return View(view, tuple(captions), tuple(Region(text, box=box) for text, box in kept))


def _random_window(size: tuple[int, int], rng: Random) -> Box:
    """A random square of an image of (width, height) pixels, as fractions of its sides."""
    w, h = size
    zoom = rng.uniform(1, ZOOM) if rng.random() < ENLARGE else 1.0
    side = min(w, h) / zoom
    left, top = rng.uniform(0, w - side), rng.uniform(0, h - side)
    return left / w, top / h, min((left + side) / w, 1.0), min((top + side) / h, 1.0)
