# SPDX-License-Identifier: Apache-2.0
"""Mask corruptions for the robustness table: what inexact masks cost."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

Mask = Bool[np.ndarray, "h w"]


def eroded(mask: Mask, pixels: int) -> Mask:
    """The mask without its rim; where nothing would remain, its deepest pixel.

    Args:
        mask: bool (h, w), not empty.
        pixels: width of the rim.
    """
    depth = ndimage.distance_transform_edt(mask)
    return depth > min(pixels, depth.max() - 1e-6)


def dilated(mask: Mask, pixels: int) -> Mask:
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
