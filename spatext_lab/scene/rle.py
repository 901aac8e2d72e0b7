# SPDX-License-Identifier: Apache-2.0
"""Masks as COCO's compressed run-length encoding: {"size": [height, width], "counts": text}.

`counts` holds how many pixels, column by column, are off, on, off, ...; from the fourth run on each
number is the difference to the run two before it. A number is written in groups of five bits,
lowest first, one printable character (from "0" on) for each group.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

RLE_FORM = 'write {"size": [height, width], "counts": "<COCO compressed RLE>"}'
LONGEST_SIDE = 1 << 14  # a damaged size must not ask for all the memory there is
LARGEST_TOTAL = 1 << 29  # pixels in all masks of one scene: as many bytes when decoded


def encode(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """The RLE of a bool mask (height, width), as pycocotools writes it."""
    from pycocotools import mask as coco_mask

    counts = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    return {"size": list(mask.shape), "counts": counts.decode("ascii")}


def decode(rle: Any) -> NDArray[np.bool_]:
    """The mask, bool (height, width).

    pycocotools reads beyond the end of counts that break off; here they are refused.

    Raises:
        ValueError: naming the part (mask.size, mask.counts), its value and the right form.
    """
    h, w, lengths = _runs(rle)
    on = np.arange(len(lengths)) % 2 == 1
    return np.repeat(on, lengths).reshape(w, h).T


def checked(rle: Any) -> dict[str, Any]:
    """The RLE itself, once it is known to be sound.

    Raises:
        ValueError: as `decode` does.
    """
    _runs(rle)
    return rle


def check_total(rles: Iterable[Any]) -> None:
    """Refuse masks that would not fit in memory together: an RLE of a few bytes can be 256 MB.

    Args:
        rles: the masks of one scene, not yet decoded; a malformed one is left to `decode`.

    Raises:
        ValueError: more than LARGEST_TOTAL pixels in all.
    """
    sizes = (rle["size"] for rle in rles if isinstance(rle, dict) and "size" in rle)
    sides = (size for size in sizes if isinstance(size, list) and all(map(_is_side, size)))
    total = sum(math.prod(size) for size in sides)
    if total > LARGEST_TOTAL:
        raise ValueError(
            f"the masks of the scene have {total} pixels together, and at most {LARGEST_TOTAL} "
            "are read: pass fewer or smaller masks"
        )


def _runs(rle: Any) -> tuple[int, int, list[int]]:
    if not isinstance(rle, dict) or set(rle) != {"size", "counts"}:
        raise ValueError(f"mask is {rle!r:.80}: {RLE_FORM}")
    size, counts = rle["size"], rle["counts"]
    if not (isinstance(size, list) and len(size) == 2 and all(map(_is_side, size))):
        raise ValueError(
            f"mask.size is {size!r:.80}, not two numbers from 1 to {LONGEST_SIDE}: {RLE_FORM}"
        )
    if not isinstance(counts, str):
        raise ValueError(f"mask.counts is {counts!r:.80}, not a text: {RLE_FORM}")
    h, w = size
    lengths = _run_lengths(counts)
    if min(lengths, default=0) < 0 or sum(lengths) != h * w:
        raise ValueError(
            f"mask.counts {counts!r:.80} is damaged: its runs {lengths!s:.80} do not make "
            f"{h} x {w} pixels; {RLE_FORM}"
        )
    return h, w, lengths


def _is_side(value: Any) -> bool:
    return type(value) is int and 1 <= value <= LONGEST_SIDE


def _run_lengths(counts: str) -> list[int]:
    lengths: list[int] = []
    value = bits = 0
    for position, letter in enumerate(counts):
        group = ord(letter) - ord("0")
        if not 0 <= group < 64 or bits > 30:
            raise ValueError(
                f"mask.counts is damaged: it has {letter!r} at position {position}; {RLE_FORM}"
            )
        value |= (group & 31) << bits
        bits += 5
        if group & 32:  # more groups of this number follow
            continue
        if group & 16:  # the sign
            value -= 1 << bits
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
        value = bits = 0
    if bits:
        raise ValueError(f"mask.counts {counts!r:.80} is damaged: it breaks off; {RLE_FORM}")
    return lengths
