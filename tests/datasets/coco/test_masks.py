# SPDX-License-Identifier: Apache-2.0
"""COCO's mask forms against pycocotools; broken ones are refused before it sees them."""

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from spatext_lab.datasets.coco.masks import on_top_of_each_other, panoptic_ids, to_mask
from spatext_lab.scene import rle

H, W = 30, 41
TRIANGLE = [3.5, 2.25, 30.0, 8.0, 12.75, 27.5]


def blob(seed):
    return np.random.default_rng(seed).random((H, W)) > 0.6


def test_polygons_agree_with_pycocotools():
    parts = [TRIANGLE, [20.0, 15.0, 40.5, 16.0, 38.0, 29.5, 21.0, 28.0], [-2.0, 1, 8, -3, 9, 9]]
    official = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, H, W)))
    np.testing.assert_array_equal(to_mask(parts, H, W), official.astype(bool))


def test_both_run_length_forms_give_the_mask_back():
    for seed in range(5):
        mask = blob(seed)
        down_the_columns = mask.T.ravel()
        edges = np.flatnonzero(np.diff(down_the_columns, prepend=False)).tolist()
        runs = np.diff([0, *edges, H * W]).tolist()  # a first run of 0 if it begins with True
        np.testing.assert_array_equal(to_mask({"size": [H, W], "counts": runs}, H, W), mask)
        np.testing.assert_array_equal(to_mask(rle.encode(mask), H, W), mask)


@pytest.mark.parametrize(
    "broken",
    [
        None,
        "mask",
        [],
        [[]],
        [[1, 2, 3, 4]],  # pycocotools would read a box
        [TRIANGLE, [1, 2, 3, 4, 5]],
        [[*TRIANGLE[:-1], float("nan")]],
        [[*TRIANGLE[:-1], 1e9]],
        [[*TRIANGLE[:-1], "9"]],
        [TRIANGLE, None],
        {"size": [H, W]},
        {"size": [W, H], "counts": [H * W]},
        {"size": [H, W], "counts": [H * W + 1]},
        {"size": [H, W], "counts": [-1, H * W + 1]},
        {"size": [H, W], "counts": [0.5, H * W - 0.5]},
        {"size": [H, W], "counts": []},
        {"size": [H, W], "counts": "0"},
        {"size": [H, W], "counts": 7},
        {"size": [H, W], "counts": "\u00e9"},
    ],
)
def test_broken_masks_are_refused(broken):
    with pytest.raises(ValueError, match=r".+"):
        to_mask(broken, H, W)


def test_panoptic_ids_do_not_overflow(tmp_path):
    ids = np.array([[0, 255, 256], [65535, 65536, 16777215]])
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    Image.fromarray(rgb).save(tmp_path / "ids.png")
    np.testing.assert_array_equal(panoptic_ids(tmp_path / "ids.png"), ids)


def test_later_masks_hide_earlier_ones():
    masks = [blob(1), blob(2), blob(3)]
    owner = np.select(masks[::-1], [3, 2, 1], 0)
    for number, mask in enumerate(on_top_of_each_other(masks), start=1):
        np.testing.assert_array_equal(mask, owner == number)
    assert on_top_of_each_other([]) == []
