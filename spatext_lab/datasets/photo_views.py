# SPDX-License-Identifier: Apache-2.0
"""Views of photos at every scale: what a model of small images learns from large ones.

A photo of 640 pixels, resized to 64, is one small image. Cut out at all scales it holds hundreds
that look different. View *k* of a list of photos is a pure function of *k* and a seed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from spatext_lab.datasets.augment import mirrored, swap_sides
from spatext_lab.datasets.coco import CocoItem
from spatext_lab.datasets.coco.masks import decode
from spatext_lab.figures import to_image
from spatext_lab.scene.places import Box

# Half of the views are nearly as large as the photo allows, as are the images that a model will be
# asked for. The others have any scale, down to so many pixels of the photo for one of the view.
WIDE, WIDE_LEAST, FINEST = 0.5, 0.75, 1.5
FLIP = 0.5
CLOSE = 1.1, 1.6  # the side of a close-up, in longer sides of its segment's box
_KEPT = 128  # photos in memory, about 1 MB each; no more than these are decoded only once


@dataclass(frozen=True)
class PhotoView:
    """A square part of a photo, with its texts.

    Args:
        captions: of the whole photo, or, of a close-up, of its segment.
        texts: of the photo's segments, whether or not they are in the view.
        labels: 0 where there is no segment, k where the k-th of `texts` is.
        window: (x0, y0, x1, y1), which part the view is of a square as high (or wide) as the photo,
            in fractions of that.
        photo: the photo's id.
    """

    image: UInt8[np.ndarray, "size size 3"]
    captions: tuple[str, ...]
    texts: tuple[str, ...]
    labels: UInt8[np.ndarray, "size size"]
    window: Box
    photo: int


def image_view(
    number: int, seed: int, photos: Sequence[CocoItem], size: int
) -> UInt8[np.ndarray, "size size 3"]:
    """View `number`: a random square of a random photo as `size` x `size` pixels, half flipped."""
    rng = Random(f"{seed}/photo/{number}")
    photo = _opened(rng.choice(photos).path)
    view = cut(photo, square(photo.size, side(min(photo.size), size, rng), rng), size)
    return np.ascontiguousarray(view[:, ::-1]) if rng.random() < FLIP else view


def wide_view(number: int, seed: int, photos: Sequence[CocoItem], size: int) -> PhotoView:
    """View `number`: most of a random photo, with its captions; half of the views are flipped."""
    rng = Random(f"{seed}/wide/{number}")
    item = rng.choice(photos)
    wide = min(item.size) * rng.uniform(WIDE_LEAST, 1)
    return _view(item, square(item.size[::-1], wide, rng), item.captions, size, rng)


def close_view(number: int, seed: int, photos: Sequence[CocoItem], size: int) -> PhotoView:
    """View `number`: a random segment and its surroundings; its text is the caption.

    Where the photo has no segment, the view is a wide one.
    """
    rng = Random(f"{seed}/close/{number}")
    item = rng.choice(photos)
    if not item.regions:
        return wide_view(number, seed, [item], size)
    k = rng.randrange(len(item.regions))
    rows, columns = np.nonzero(labels(item) == k + 1)
    ends = [(int(v.min()), int(v.max()) + 1) for v in (columns, rows)]
    longest = max(end - start for start, end in ends) * rng.uniform(*CLOSE)
    middle = [(start + end) / 2 for start, end in ends]
    box = square_at(middle, min(max(longest, size), *item.size), item.size[::-1])
    text = item.regions[k].text
    return _view(item, box, (text, f"a photo of {text}"), size, rng)


def _view(item: CocoItem, box: Box, captions: tuple[str, ...], size: int, rng: Random) -> PhotoView:
    """What is in a square box of pixels, flipped with probability FLIP."""
    image, window = cut(_opened(item.path), box, size), window_of(box, item.size[::-1])
    found = Image.fromarray(labels(item)).resize((size, size), Image.Resampling.NEAREST, box)
    seen = np.array(found)
    if rng.random() < FLIP:
        image, seen = (np.ascontiguousarray(each[:, ::-1]) for each in (image, seen))
        captions, window = tuple(map(swap_sides, captions)), mirrored(window)
    texts = tuple(region.text for region in item.regions)
    return PhotoView(image, captions, texts, seen, window, item.image_id)


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


def square_at(middle: Sequence[float], side: float, size: tuple[int, int]) -> Box:
    """The square of that side, inside an image of (width, height), nearest to a point (x, y)."""
    left, top = (
        min(max(at - side / 2, 0), edge - side) for at, edge in zip(middle, size, strict=True)
    )
    return left, top, min(left + side, size[0]), min(top + side, size[1])


def window_of(box: Box, size: tuple[int, int]) -> Box:
    """Which part a square box of pixels is of the largest square around it, in fractions of that.

    Args:
        size: (width, height) of the image that both lie in.
    """
    x0, y0, x1, y1 = box
    left, top, *_ = square_at(((x0 + x1) / 2, (y0 + y1) / 2), length := min(size), size)
    return (x0 - left) / length, (y0 - top) / length, (x1 - left) / length, (y1 - top) / length


def cut(photo: Image.Image, box: Box, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """What a photo has in a box of pixels, resized as `CocoItem.square` resizes."""
    return np.array(photo.resize((size, size), Image.Resampling.LANCZOS, box))


def labels(item: CocoItem) -> UInt8[np.ndarray, "h w"]:
    """The photo's segments as one map: 0 for none, k for the k-th region."""
    return _labels(*item.size, tuple(region.rle["counts"] for region in item.regions))


@lru_cache(_KEPT)
def _labels(h: int, w: int, counts: tuple[str, ...]) -> np.ndarray:
    found = np.zeros((h, w), np.uint8)
    for k, each in enumerate(counts, start=1):
        found[decode({"size": [h, w], "counts": each})] = k
    return found


@lru_cache(_KEPT)
def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return to_image(image)
