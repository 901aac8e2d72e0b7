# SPDX-License-Identifier: Apache-2.0
"""Masks in COCO's four forms (polygons, two run-length encodings, panoptic PNG) as bool arrays."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32
from PIL import Image

from spatext_lab.scene import rle

Mask = Bool[np.ndarray, "h w"]


def to_mask(segmentation: Any, h: int, w: int) -> Mask:
    """An annotation's `segmentation`, whichever form it has, as a bool array (h, w).

    pycocotools trusts its input (damaged counts make it read foreign memory, four numbers become a
    box, a coordinate of 1e9 asks for as much memory), so all is checked before it sees it.

    Raises:
        ValueError: broken polygon or RLE, or an RLE of another size.
    """
    from pycocotools import mask as coco_mask

    if isinstance(segmentation, list):
        if not segmentation or not all(_is_polygon(polygon, h, w) for polygon in segmentation):
            raise ValueError("polygons are lists of at least six coordinates x0, y0, x1, y1, ...")
        parts = coco_mask.decode(coco_mask.frPyObjects(segmentation, h, w))
        return parts.any(axis=2)
    if not isinstance(segmentation, dict) or segmentation.get("size") != [h, w]:
        raise ValueError(f"an RLE has the picture's size [{h}, {w}]")
    counts = segmentation.get("counts")
    if isinstance(counts, list):
        return _from_runs(counts, h, w)
    return rle.decode({"size": [h, w], "counts": counts})


def _is_polygon(polygon: Any, h: int, w: int) -> bool:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        return False
    if not all(isinstance(v, int | float) and math.isfinite(v) for v in polygon):
        return False
    # Annotators slip over the border by a few pixels; a point a whole picture away is damage.
    return all(-w <= x <= 2 * w for x in polygon[::2]) and all(
        -h <= y <= 2 * h for y in polygon[1::2]
    )


def _from_runs(counts: list, h: int, w: int) -> Mask:
    """Uncompressed RLE: lengths of runs off, on, off, ... down the columns."""
    if not all(type(v) is int and v >= 0 for v in counts) or sum(counts) != h * w:
        raise ValueError(f"the runs of an RLE are whole numbers that sum to {h} x {w}")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(w, h).T


def panoptic_ids(path: Path) -> Int32[np.ndarray, "h w"]:
    """The segment id of every pixel, R + 256 G + 65536 B; 0 is no segment."""
    with Image.open(path) as picture:
        rgb = np.asarray(picture.convert("RGB"))
    return rgb @ np.array([1, 256, 65536], np.int32)  # int32 throughout: uint8 would overflow


def on_top_of_each_other(masks: Sequence[Mask]) -> list[Mask]:
    """Disjoint masks: of each one what the later ones leave to be seen."""
    visible, covered = [], np.False_
    for mask in reversed(masks):
        visible.append(mask & ~covered)
        covered = covered | mask
    return visible[::-1]


def centre_square(h: int, w: int) -> tuple[float, float, float, float]:
    """Left, top, right, bottom in pixels of the largest centred square."""
    side = min(h, w)
    left, top = (w - side) // 2, (h - side) // 2
    return left, top, left + side, top + side


def square_masks(masks: Sequence[Mask], size: int) -> list[Bool[np.ndarray, "size size"]]:
    """Disjoint masks (h, w) cut to the centre square and resized to size x size, still disjoint.

    A pixel belongs to the mask that covers more than half of it, else to none: the same box
    filter that a picture is shrunk with, so mask and picture stay in line.
    """
    if not masks:
        return []
    box = centre_square(*masks[0].shape)
    shares = [np.full((size, size), 0.5, np.float32)]
    for mask in masks:
        layer = Image.fromarray(mask.astype(np.float32))
        shares.append(np.asarray(layer.resize((size, size), Image.Resampling.BOX, box=box)))
    owner = np.argmax(shares, axis=0)
    return [owner == k for k in range(1, len(shares))]
