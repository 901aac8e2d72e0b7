# SPDX-License-Identifier: Apache-2.0
"""Views of photos at every scale: what a model of small images learns from large ones.

A photo of 640 pixels, resized to 64, is one small image. Cut out at all scales it holds hundreds
that look different. View *k* of a list of photos is a pure function of *k* and a seed.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from spatext_lab.datasets.coco import CocoItem
from spatext_lab.figures import to_image
from spatext_lab.scene.places import Box

# Half of the views are nearly as large as the photo allows, as are the images that a model will be
# asked for. The others have any scale, down to so many pixels of the photo for one of the view.
WIDE, WIDE_LEAST, FINEST = 0.5, 0.75, 1.5
FLIP = 0.5
_KEPT = 128  # photos in memory, about 1 MB each; no more than these are decoded only once


def image_view(
    number: int, photos: Sequence[CocoItem], size: int, seed: int = 0
) -> UInt8[np.ndarray, "size size 3"]:
    """View `number`: a random square of a random photo as `size` x `size` pixels, half flipped."""
    rng = Random(f"{seed}/photo/{number}")
    photo = _opened(rng.choice(photos).path)
    view = cut(photo, square(photo.size, side(min(photo.size), size, rng), rng), size)
    return np.ascontiguousarray(view[:, ::-1]) if rng.random() < FLIP else view


def side(longest: int, size: int, rng: Random) -> float:
    """The side of a random square, in pixels of the photo: half of them wide, half of any scale.

    Args:
        longest: the photo's shorter side.
        size: of the view.
    """
    if rng.random() < WIDE:
        return longest * rng.uniform(WIDE_LEAST, 1)
    least = min(FINEST * size, longest)
    return math.exp(rng.uniform(math.log(least), math.log(longest)))


def square(size: tuple[int, int], side: float, rng: Random) -> Box:
    """A square of that side anywhere in an image of (width, height); (x0, y0, x1, y1) in pixels."""
    left, top = (rng.uniform(0, length - side) for length in size)
    return left, top, min(left + side, size[0]), min(top + side, size[1])


def cut(photo: Image.Image, box: Box, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """What a photo has in a box of pixels, resized as `CocoItem.square` resizes."""
    return np.array(photo.resize((size, size), Image.Resampling.LANCZOS, box))


@lru_cache(_KEPT)
def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return to_image(image)
