# SPDX-License-Identifier: Apache-2.0
"""Boxes, masks and texts, checked, with messages that show the right form.

A box is (x0, y0, x1, y1): left, top, right, bottom as fractions of the image. Pixels,
(x, y, width, height) and corners in another order are the mistakes everybody makes, so each is
answered with the box that was probably intended.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

Box = tuple[float, float, float, float]

BOX_FORM = (
    "write box=(x0, y0, x1, y1) as fractions of the image in [0, 1], with x0 < x1 and y0 < y1"
)
MASK_FORM = "write mask=<numpy array of bool, shape (height, width), at least one pixel True>"
# A corner computed as x + width may miss 1.0 by a rounding error; that much is clamped.
ROUNDING = 1e-6


def checked_text(text: Any, field: str) -> str:
    """The text; raises ValueError for anything else, and for one that UTF-8 cannot hold."""
    if not isinstance(text, str):
        raise ValueError(f'{field} is {text!r:.80}, not a text: write one, such as "a red ball"')
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{field} is {text!r:.80}: it has an unpaired surrogate; use UTF-8")
    return text


def checked_mask(mask: Any) -> NDArray[np.bool_]:
    """A read-only copy, bool (height, width); raises ValueError for anything but a mask."""
    if not isinstance(mask, np.ndarray):
        raise ValueError(f"mask is a {type(mask).__name__}, not a numpy array: {MASK_FORM}")
    if mask.ndim != 2:
        raise ValueError(f"mask has shape {mask.shape}, not (height, width): {MASK_FORM}")
    if mask.dtype != np.bool_:
        raise ValueError(
            f"mask has dtype {mask.dtype}, not bool: {MASK_FORM}, for instance mask=mask > 0"
        )
    if not mask.any():
        raise ValueError(f"mask of shape {mask.shape} is empty, all of it is False: {MASK_FORM}")
    # An array over a bytes object is a copy that nobody can make writeable again.
    return np.frombuffer(mask.tobytes(), np.bool_).reshape(mask.shape)


def checked_box(box: Any) -> Box:
    """The box as four floats; raises ValueError for any other, with the box that was intended."""
    listed = isinstance(box, (Sequence, np.ndarray)) and len(box) == 4
    if not listed or not all(isinstance(value, Real) for value in box):
        raise ValueError(f"box is {box!r:.80}, not four numbers: {BOX_FORM}")
    values = tuple(float(value) for value in box)
    if fault := _fault(values):
        raise ValueError(f"box is {_written(values)}, {fault[0]}: {BOX_FORM}{fault[1]}")
    return tuple(min(max(value, 0.0), 1.0) for value in values)


def _fault(box: Box) -> tuple[str, str] | None:
    """What is wrong with four numbers, and what may have been intended; None for a good box."""
    if not all(math.isfinite(value) for value in box):
        return "with a value that is not a finite number", ""
    if max(box) > 2:
        return "which looks like pixels", _from_pixels(box)
    if min(box) < -ROUNDING or max(box) > 1 + ROUNDING:
        return "which extends beyond the image", _cut_off(box)
    x0, y0, x1, y1 = (min(max(value, 0.0), 1.0) for value in box)
    if x0 >= x1 or y0 >= y1:
        return "where x0 < x1 and y0 < y1 do not both hold", _reordered(box)
    return None


def _written(box: Iterable[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in box) + ")"


def _proper(box: Box) -> bool:
    x0, y0, x1, y1 = box
    return 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1


def _from_pixels(box: Box) -> str:
    """The box as fractions, with a guess at what is unknown here: the size of the image."""
    x, y, a, b = corners = box
    order = "x0, y0, x1, y1"
    if a <= x or b <= y:
        corners, order = (x, y, x + a, y + b), "x, y, width, height"
    side = next((side for side in (64, 128, 256, 512, 1024, 4096) if max(corners) <= side), 1)
    scaled = tuple(value / side for value in corners)
    if not _proper(scaled):
        return "; divide x by the image's width and y by its height"
    return (
        f"; in an image of {side} x {side} pixels, ({order}) = {_written(box)} "
        f"is box={_written(scaled)}"
    )


def _cut_off(box: Box) -> str:
    inside = tuple(min(max(value, 0.0), 1.0) for value in box)
    return f"; clamped to the image it is box={_written(inside)}" if _proper(inside) else ""


def _reordered(box: Box) -> str:
    x, y, a, b = box
    guesses = ""
    if _proper(corners := (x, y, x + a, y + b)):
        guesses += f"; if you meant (x, y, width, height), it is box={_written(corners)}"
    if _proper(corners := (min(x, a), min(y, b), max(x, a), max(y, b))):
        guesses += f"; if the corners changed places, it is box={_written(corners)}"
    return guesses


def tight_box(mask: NDArray[np.bool_]) -> Box:
    """The smallest box around the True pixels of a mask (height, width)."""
    h, w = mask.shape
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    corners = columns[0] / w, rows[0] / h, (columns[-1] + 1) / w, (rows[-1] + 1) / h
    return tuple(float(value) for value in corners)
