# SPDX-License-Identifier: Apache-2.0
"""COCO's mask forms against pycocotools; broken ones are refused before it sees them."""

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from spatext_lab.datasets.coco.masks import LONGEST_OUTLINE, decode, panoptic_ids, to_rle
from spatext_lab.scene import rle

H, W = 30, 41
TRIANGLE = [3.5, 2.25, 30.0, 8.0, 12.75, 27.5]


def to_mask(segmentation):
    return decode(to_rle(segmentation, H, W)[0])


def blob(seed):
    return np.random.default_rng(seed).random((H, W)) > 0.6


def test_polygons_agree_with_pycocotools():
    parts = [TRIANGLE, [20.0, 15.0, 40.5, 16.0, 38.0, 29.5, 21.0, 28.0], [-2.0, 1, 8, -3, 9, 9]]
    official = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, H, W)))
    np.testing.assert_array_equal(to_mask(parts), official.astype(bool))


def test_both_run_length_forms_give_the_mask_back():
    for seed in range(5):
        mask = blob(seed)
        down_the_columns = mask.T.ravel()
        edges = np.flatnonzero(np.diff(down_the_columns, prepend=False)).tolist()
        runs = np.diff([0, *edges, H * W]).tolist()  # a first run of 0 if it begins with True
        np.testing.assert_array_equal(to_mask({"size": [H, W], "counts": runs}), mask)
        floats = {"size": [float(H), float(W)], "counts": list(map(float, runs))}
        np.testing.assert_array_equal(to_mask(floats), mask)
        np.testing.assert_array_equal(to_mask(rle.encode(mask)), mask)


BAD_PARTS = (
    [5, 5, 6, 6],
    [1, 2, 3, 4, 5],
    [],
    None,
    {},
    [[1, 2], [3, 4], [5, 6]],
    [*TRIANGLE[:-1], float("nan")],
    [*TRIANGLE[:-1], 1e9],
    [*TRIANGLE[:-1], None],
)


@pytest.mark.parametrize("bad", BAD_PARTS)
def test_a_broken_part_of_a_polygon_leaves_the_others(bad):
    whole, _ = to_rle([TRIANGLE], H, W)
    assert to_rle([bad, TRIANGLE, bad], H, W) == (whole, 2)


@pytest.mark.parametrize(
    "broken",
    [
        None,
        "mask",
        [],
        [[]],
        [[1, 2, 3, 4]],  # pycocotools would read a box
        [[*TRIANGLE[:-1], float("nan")]],
        [[*TRIANGLE[:-1], 1e9]],
        [[*TRIANGLE[:-1], "9"]],
        [[*TRIANGLE[:-1], 10**400]],
        [[0, 0, W, H] * (LONGEST_OUTLINE // W)],  # gigabytes to draw
        TRIANGLE,
        {"size": [H, W]},
        {"size": [W, H], "counts": [H * W]},
        {"size": [H, W], "counts": [H * W + 1]},
        {"size": [H, W], "counts": [-1, H * W + 1]},
        {"size": [H, W], "counts": [0.5, H * W - 0.5]},
        {"size": [H, W], "counts": [10**400]},
        {"size": [H, W], "counts": [True, H * W - 1]},
        {"size": [10**9, 10**9], "counts": [10**18]},
        {"size": [H, W], "counts": []},
        {"size": [H, W], "counts": "0"},
        {"size": [H, W], "counts": 7},
        {"size": [H, W], "counts": "\u00e9"},
    ],
)
def test_broken_masks_are_refused(broken):
    with pytest.raises(ValueError, match=r".+"):
        to_rle(broken, H, W)


def test_panoptic_ids_do_not_overflow(tmp_path):
    ids = np.array([[0, 255, 256], [65535, 65536, 16777215]])
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    Image.fromarray(rgb).save(tmp_path / "ids.png")
    np.testing.assert_array_equal(panoptic_ids(tmp_path / "ids.png"), ids)
