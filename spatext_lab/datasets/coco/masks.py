# SPDX-License-Identifier: Apache-2.0
"""Masks in COCO's four forms: polygons, two run-length encodings, and a panoptic PNG."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32
from PIL import Image
from pycocotools import mask as coco_mask

from spatext_lab.scene import rle

LONGEST_OUTLINE = 1 << 22  # pixels; pycocotools takes about 80 bytes for each
BROKEN_PART = "broken part of a polygon (its sound parts are kept)"


def to_rle(segmentation: Any, h: int, w: int) -> tuple[dict[str, Any], int]:
    """An annotation's `segmentation` as compressed RLE.

    pycocotools trusts its input (damaged counts make it read foreign memory, four numbers become a
    box, a coordinate of 1e9 asks for as much memory), so all is checked before it sees it.

    Returns:
        The RLE, and how many broken parts of a polygon were left out.

    Raises:
        ValueError: a polygon without a sound part, or a broken RLE or one of another size.
    """
    if isinstance(segmentation, list):
        parts = [part for part in segmentation if _is_polygon(part, h, w)]
        if not parts:
            raise ValueError("polygons are lists of at least six coordinates x0, y0, x1, y1, ...")
        merged = coco_mask.merge(coco_mask.frPyObjects(parts, h, w))
        return merged, len(segmentation) - len(parts)
    if not isinstance(segmentation, dict) or segmentation.get("size") != [h, w]:
        raise ValueError(f"an RLE has the image's size [{h}, {w}]")
    counts = segmentation.get("counts")
    if isinstance(counts, list):
        runs = _checked_runs(counts, h, w)
        return coco_mask.frPyObjects({"size": [h, w], "counts": runs}, h, w), 0
    return rle.checked({"size": [h, w], "counts": counts}), 0


def rectangle(bbox: Any) -> list[list[float]]:
    """COCO's box (left, top, width, height) as a polygon; a broken one as a broken polygon."""
    sound = isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_number, bbox))
    x, y, w, h = bbox if sound else [math.nan] * 4
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def area(encoded: dict[str, Any]) -> int:
    """The number of pixels of a sound RLE's mask."""
    return int(coco_mask.area(encoded))


def decode(encoded: dict[str, Any]) -> Bool[np.ndarray, "h w"]:
    """The mask of a sound RLE; one that is not known to be sound is for `rle.decode`."""
    return coco_mask.decode(encoded).astype(bool)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e9  # False for NaN too


def _is_polygon(part: Any, h: int, w: int) -> bool:
    if not isinstance(part, list) or len(part) < 6 or len(part) % 2:
        return False
    if not all(map(_is_number, part)):
        return False
    xs, ys = part[::2], part[1::2]
    # Annotators slip over the border by a few pixels; a point a whole image away is damage.
    if not (all(-w <= x <= 2 * w for x in xs) and all(-h <= y <= 2 * h for y in ys)):
        return False
    edges = (np.abs(np.diff(values, append=values[0])) for values in (xs, ys))
    return bool(np.maximum(*edges).sum() <= LONGEST_OUTLINE)


def _checked_runs(counts: list, h: int, w: int) -> list[int]:
    """Uncompressed RLE: lengths of runs off, on, off, ... down the columns."""
    whole = all(_is_number(v) and v >= 0 and v == int(v) for v in counts)
    if not whole or sum(counts) != h * w:
        raise ValueError(f"the runs of an RLE are whole numbers that sum to {h} x {w}")
    return list(map(int, counts))


def panoptic_ids(path: Path) -> Int32[np.ndarray, "h w"]:
    """The segment id of every pixel, R + 256 G + 65536 B; 0 is no segment."""
    with Image.open(path) as image:
        rgb = np.asarray(image.convert("RGB"))
    return rgb @ np.array([1, 256, 65536], np.int32)  # int32 throughout: uint8 would overflow


def centre_square(h: int, w: int) -> tuple[float, float, float, float]:
    """Left, top, right, bottom in pixels of the largest centred square."""
    side = min(h, w)
    left, top = (w - side) // 2, (h - side) // 2
    return left, top, left + side, top + side


def square_masks(
    masks: Sequence[Bool[np.ndarray, "h w"]], size: int
) -> list[Bool[np.ndarray, "size size"]]:
    """Disjoint masks, cropped to the centre square and resized; they stay disjoint.

    A pixel belongs to the mask that covers more than half of it, else to none.
    """
    if not masks:
        return []
    box = centre_square(*masks[0].shape)
    fractions = [np.full((size, size), 0.5, np.float32)]
    for mask in masks:
        layer = Image.fromarray(mask.astype(np.float32))
        fractions.append(np.asarray(layer.resize((size, size), Image.Resampling.BOX, box=box)))
    owner = np.argmax(fractions, axis=0)
    return [owner == k for k in range(1, len(fractions))]
