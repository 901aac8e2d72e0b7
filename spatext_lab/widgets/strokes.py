# SPDX-License-Identifier: Apache-2.0
"""The pixels that a brush stroke covers, and those that a fill reaches, in exact integers.

`painter.js` holds the same two functions, and a test in a browser compares the two pixel by pixel.
A point is (x, y): column and row of a pixel, counted from the upper left corner.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer

Point = tuple[int, int]


# The points are checked, with answers that teach, hence `Any`.
def stroke(points: Sequence[Any], size: int, h: int, w: int) -> Bool[Any, "h w"]:
    """The pixels whose centre is at most `size` / 2 from the line through the points.

    A fast stroke has no gaps, and one point gives a disc. Points may lie outside the image.

    Raises:
        ValueError: no point, a point that is not two whole numbers, or a size below 1.
    """
    points = [_checked(point) for point in points]
    if not points or size < 1:
        raise ValueError(f"points is {points}, size {size}; pass [(x, y), ...] and a size from 1")
    y, x = np.mgrid[:h, :w]
    covered = np.zeros((h, w), bool)
    for start, end in pairwise(points if len(points) > 1 else points * 2):
        covered |= _segment(x - start[0], y - start[1], end[0] - start[0], end[1] - start[1], size)
    return covered


def _segment(px: Any, py: Any, dx: int, dy: int, size: int) -> Any:
    """Where (px, py) is at most size / 2 from the line from (0, 0) to (dx, dy)."""
    length, along, across = dx * dx + dy * dy, px * dx + py * dy, px * dy - py * dx
    near_line = 4 * across * across <= size * size * length
    near_end = 4 * ((px - dx) ** 2 + (py - dy) ** 2) <= size * size
    near_start = 4 * (px * px + py * py) <= size * size
    return np.where(along <= 0, near_start, np.where(along >= length, near_end, near_line))


def flood(labels: Integer[Any, "h w"], at: Any) -> Bool[Any, "h w"]:
    """The pixels that are 4-connected with the one at (x, y) and have its label.

    Raises:
        ValueError: a point outside the image.
    """
    from scipy.ndimage import label

    (h, w), (x, y) = labels.shape, _checked(at)
    if not (0 <= x < w and 0 <= y < h):
        raise ValueError(f"at is {at}, outside the image: x goes from 0 to {w - 1}, y to {h - 1}")
    pieces, _ = label(labels == labels[y, x])
    return pieces == pieces[y, x]


def _checked(point: Any) -> Point:
    if len(point) != 2 or not all(isinstance(value, (int, np.integer)) for value in point):
        raise ValueError(f"point is {point!r}; pass (x, y): column and row of a pixel")
    return int(point[0]), int(point[1])
