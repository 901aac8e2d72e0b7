# SPDX-License-Identifier: Apache-2.0
"""Corrupted and painted masks against loops over their pixels."""

from collections import Counter
from itertools import product
from random import Random

import numpy as np
import pytest

from spatext_lab.datasets.corrupted_masks import blob, boxed, dilated, eroded, painted
from spatext_lab.datasets.pocket import pocket_item

MASKS = [s.mask for s in pocket_item("val", 3).segments] + [np.eye(9, dtype=bool)]


def near(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Every pixel that has one of the mask within a distance."""
    found = np.zeros_like(mask)
    reach = range(-pixels, pixels + 1)
    for y, x in np.argwhere(mask):
        for dy, dx in product(reach, reach):
            inside = 0 <= y + dy < mask.shape[0] and 0 <= x + dx < mask.shape[1]
            if inside and dy * dy + dx * dx <= pixels * pixels:
                found[y + dy, x + dx] = True
    return found


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("pixels", [1, 2])
def test_rims_against_a_loop(mask, pixels):
    assert np.array_equal(dilated(mask, pixels), near(mask, pixels))
    inner = mask & ~near(~mask, pixels)
    if inner.any():
        assert np.array_equal(eroded(mask, pixels), inner)
    else:
        assert (eroded(mask, pixels) & ~mask).sum() == 0 < eroded(mask, pixels).sum()


def test_a_box_against_its_corners():
    for mask in MASKS:
        rows, columns = np.where(mask)
        box = boxed(mask)
        assert box.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert (box | mask).sum() == box.sum()


def test_a_blob_has_the_masks_place_and_size():
    for mask in MASKS[:-1]:
        round_one = blob(mask)
        assert round_one.sum() == pytest.approx(mask.sum(), rel=0.2)  # less where it is cropped
        if round_one[[0, -1]].any() or round_one[:, [0, -1]].any():
            continue
        centres = (np.argwhere(m).mean(0) for m in (mask, round_one))
        assert np.abs(next(centres) - next(centres)).max() < 0.5


def test_a_blob_of_an_ellipse_is_the_ellipse():
    y, x = np.indices((64, 64)) - 31.5
    ellipse = (x + 0.5 * y) ** 2 / 300 + (y - 0.2 * x) ** 2 / 90 <= 1
    assert (blob(ellipse) ^ ellipse).sum() <= 0.02 * ellipse.sum()


@pytest.mark.parametrize("mask", MASKS)
def test_a_painted_mask_stays_near_its_segment(mask):
    """Never empty, and within the dilated blob and the box with a rim of five 64ths."""
    rim = 6 * max(1, max(mask.shape) // 64)
    reach = near(boxed(mask) | blob(mask), rim)
    for seed in range(40):
        found = painted(mask, Random(seed))
        assert found.shape == mask.shape
        assert found.any()
        assert not (found & ~reach).any()
    assert np.array_equal(painted(mask, Random(3)), painted(mask, Random(3)))


def test_painted_boxes_and_ellipses_against_their_equations():
    """A segment of known extent: each painted shape is one of the five, each about as often."""
    mask = np.zeros((64, 64), bool)
    mask[20:40, 10:50] = True
    mask[20:24, 10:20] = mask[36:40, 40:50] = False
    seen = Counter()
    for seed in range(300):
        found = painted(mask, Random(seed))
        rows, columns = np.where(found)
        low, high = (rows.min(), columns.min()), (rows.max() + 1, columns.max() + 1)
        if not (found & ~mask).any():
            seen["eroded"] += 1
        elif found.sum() == (high[0] - low[0]) * (high[1] - low[1]):
            seen["box"] += 1
            assert np.abs(np.subtract((*low, *high), (20, 10, 40, 50))).max() <= 2
        elif (found & mask).sum() == mask.sum():
            seen["dilated"] += 1
            assert not (found & ~near(mask, 4)).any()
        else:  # an ellipse or a blob: point symmetric, but for the rounding to pixels
            seen["round"] += 1
            part = found[low[0] : high[0], low[1] : high[1]]
            assert (part ^ part[::-1, ::-1]).mean() < 0.1
    assert all(30 < n < 90 for name, n in seen.items() if name != "round")
    assert 80 < seen["round"] < 160


def test_painted_sizes_grow_with_the_image():
    """The same draw at four times the size: a rim four times as wide."""
    mask = np.zeros((64, 64), bool)
    mask[20:40, 10:50] = True
    large = mask.repeat(4, 0).repeat(4, 1)
    for seed in range(30):
        small, big = painted(mask, Random(seed)), painted(large, Random(seed))
        assert abs(big.mean() - small.mean()) < 0.03
