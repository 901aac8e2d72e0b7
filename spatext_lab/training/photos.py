# SPDX-License-Identifier: Apache-2.0
"""Photos of a COCO folder as training data, and those of val2017 as images to measure on."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from jaxtyping import UInt8

from spatext_lab.datasets.coco import CocoItem, PhotoChoice, read_coco
from spatext_lab.datasets.photo_views import PhotoView, close_view, wide_view
from spatext_lab.datasets.pocket import SIZE
from spatext_lab.datasets.pocket.pretraining import CROP, View
from spatext_lab.training.ahead import Ahead, renderers

SEGMENTS = 20  # of a photo at most, the largest
BLOCK = 32  # micro-batches whose views are cut out at a time


def training_photos(
    data: Path, *, pixels_alone: bool = False, **choice: Unpack[PhotoChoice]
) -> tuple[tuple[CocoItem, ...], str]:
    """The chosen photos of train2017, and a phrase for the card; prints what was left out.

    Args:
        data: a folder in COCO layout.
        pixels_alone: also those without a caption or a region; where `categories` are chosen, a
            region is needed all the same.
        choice: of its photos.

    Raises:
        FileNotFoundError: no such folder, or its annotations are missing.
        ValueError: no photo passes.
    """
    least = 0 if pixels_alone and not choice.get("categories") else 1
    subset = read_coco(
        data, "train", regions=(least, SEGMENTS), captions=not pixels_alone, **choice
    )
    print(subset.report.text())
    subset.not_empty()
    return subset.items, f"{len(subset.items)} photos of {data.name}, train2017"


def held_out_squares(
    data: Path, size: int, most: int, **choice: Unpack[PhotoChoice]
) -> UInt8[np.ndarray, "n size size 3"]:
    """The centre squares of up to `most` photos of val2017; none where there is no such split."""
    try:
        subset = read_coco(data, "val", regions=(0, 1), captions=False, limit=most, **choice)
    except FileNotFoundError:
        return np.empty((0, size, size, 3), np.uint8)
    squares = [photo.square(size)[0] for photo in subset.items]
    return np.array(squares, np.uint8).reshape(-1, size, size, 3)


def batches(view: Callable[[int], Any], batch: int, device: str) -> Callable[[int], list]:
    """A function from a micro-batch's number to its views.

    Args:
        view: from a number to the view; a partial of a function of a module.
        batch: views a micro-batch.
        device: on a GPU ("cuda") other processes cut the next views out.
    """
    source = Ahead(view, BLOCK * batch, renderers(device))
    block = lru_cache(maxsize=1)(source.block)
    return lambda number: block(number // BLOCK)[number % BLOCK * batch :][:batch]


def small_photo(number: int, seed: int, photos: Sequence[CocoItem]) -> View:
    """View `number` of half the pocket's size: a close-up of a segment, or most of a photo."""
    kind = close_view if number % 2 else wide_view
    return _as_pocket(kind(number, seed, photos, CROP))


def large_photo(number: int, seed: int, photos: Sequence[CocoItem]) -> View:
    """View `number` of the pocket's size: most of a photo."""
    return _as_pocket(wide_view(number, seed, photos, SIZE))


def _as_pocket(view: PhotoView) -> View:
    return View(view.image, view.captions, view.labels > 0, view.window)
