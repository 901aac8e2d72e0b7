# SPDX-License-Identifier: Apache-2.0
"""Photos of a COCO folder as training data, and those of val2017 as images to measure on."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Unpack

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from spatext_lab.datasets.coco import CocoItem, PhotoChoice, read_coco
from spatext_lab.datasets.photo_views import image_view
from spatext_lab.images import to_tensor
from spatext_lab.training.ahead import Ahead, renderers

SEGMENTS = 20  # of a photo at most, the largest
BLOCK = 32  # steps whose views are cut out at a time


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


def image_batches(
    photos: Sequence[CocoItem], size: int, batch: int, seed: int, device: str
) -> Callable[[int], Float[Tensor, "batch 3 size size"]]:
    """A function from the step to its random views of photos, in [-1, 1].

    On a GPU ("cuda") other processes cut the next views out.
    """
    view = partial(image_view, photos=photos, size=size, seed=seed)
    source = Ahead(view, BLOCK * batch, renderers(device))
    block = lru_cache(maxsize=1)(source.block)

    def images(step: int) -> Float[Tensor, "batch 3 size size"]:
        first = step % BLOCK * batch
        return to_tensor(block(step // BLOCK)[first : first + batch])

    return images
