# SPDX-License-Identifier: Apache-2.0
"""Inexact masks, as people paint them: for the robustness table, and for training against it."""

from collections.abc import Callable
from random import Random

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

Mask = Bool[np.ndarray, "h w"]


def eroded(mask: Mask, pixels: float) -> Mask:
    """The mask without its rim; where nothing would remain, its deepest pixel.

    Args:
        mask: bool (h, w), not empty.
        pixels: width of the rim.
    """
    depth = ndimage.distance_transform_edt(mask)
    return depth > min(pixels, depth.max() - 1e-6)


def dilated(mask: Mask, pixels: float) -> Mask:
    """The mask with a rim around it.

    Args:
        mask: bool (h, w).
        pixels: width of the rim.
    """
    return ndimage.distance_transform_edt(~mask) <= pixels


def boxed(mask: Mask) -> Mask:
    """The smallest upright box around a mask, filled."""
    box = np.zeros_like(mask)
    box[ndimage.find_objects(mask.astype(int))[0]] = True
    return box


def blob(mask: Mask) -> Mask:
    """An ellipse with a mask's centre, extent, direction and area, as a hasty hand paints it."""
    points = np.argwhere(mask).astype(float)
    centre = points.mean(0)
    spread = np.cov(points.T) + np.eye(2) / 12  # a pixel is a square, not a point
    offsets = np.moveaxis(np.indices(mask.shape), 0, -1) - centre
    distance = np.einsum("hwi,ij,hwj->hw", offsets, np.linalg.inv(spread), offsets)
    radius = np.sort(distance, axis=None)[mask.sum() - 1]
    return distance <= radius


CORRUPTIONS: dict[str, Callable[[Mask], Mask]] = {
    "exact": lambda mask: mask,
    "eroded by 1 pixel": lambda mask: eroded(mask, 1),
    "eroded by 2 pixels": lambda mask: eroded(mask, 2),
    "dilated by 1 pixel": lambda mask: dilated(mask, 1),
    "dilated by 2 pixels": lambda mask: dilated(mask, 2),
    "dilated by 4 pixels": lambda mask: dilated(mask, 4),
    "a blob": blob,
    "a box": boxed,
}


# Not in the paper, whose training masks are a segmenter's (SpaText, arXiv 2211.14305), while its
# users paint.
def painted(mask: Mask, rng: Random) -> Mask:
    """A mask as somebody might paint it: a box, an ellipse, a blob, a thinner or thicker outline.

    Args:
        mask: bool (h, w), not empty.
        rng: decides which, and how far off.
    """
    pixel = max(mask.shape) / 64  # sizes below are in 64ths of the image
    how = rng.choice(("box", "ellipse", "blob", "eroded", "dilated"))
    if how == "eroded":
        return eroded(mask, rng.uniform(0.5, 2) * pixel)
    if how == "dilated":
        return dilated(mask, rng.uniform(1, 4) * pixel)
    if how == "blob":
        return dilated(blob(mask), rng.uniform(0, 1.5) * pixel)
    rows, columns = ndimage.find_objects(mask.astype(int))[0]
    spans = [_moved(span, pixel, rng) for span in (rows, columns)]
    y, x = (
        2 * (np.arange(side) + 0.5 - low) / (high - low) - 1
        for side, (low, high) in zip(mask.shape, spans, strict=True)
    )
    if how == "box":
        return np.maximum(abs(y)[:, None], abs(x)[None]) <= 1
    return (y**2)[:, None] + (x**2)[None] <= 1.2  # somewhat beyond the ellipse inside the box


def _moved(span: slice, pixel: float, rng: Random) -> tuple[float, float]:
    """The ends of a span, each moved by at most 1.5 pixels; at least one pixel stays between."""
    low, high = (end + rng.uniform(-1.5, 1.5) * pixel for end in (span.start, span.stop))
    middle = (span.start + span.stop) / 2
    return min(low, middle - pixel / 2), max(high, middle + pixel / 2)
