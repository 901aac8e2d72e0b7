# SPDX-License-Identifier: Apache-2.0
"""Masks as run lengths: what is refused before it asks for memory."""

import json
import tracemalloc

import pytest
from pycocotools import mask as coco_mask

from spatext_lab.scene import Scene, rle

SIDE = rle.LONGEST_SIDE


def full(side):
    """An RLE of a few bytes: all of side x side pixels."""
    runs = {"size": [side, side], "counts": [0, side * side]}
    encoded = coco_mask.frPyObjects(runs, side, side)
    return {"size": [side, side], "counts": encoded["counts"].decode()}


def scene_of(masks):
    regions = [{"text": "a ball", "mask": mask} for mask in masks]
    scene = {"format": "spatext-scene", "version": 1, "caption": "balls", "regions": regions}
    return json.dumps(scene)


def test_many_large_masks_in_a_tiny_file_are_refused_before_they_are_decoded():
    text = scene_of([full(SIDE)] * 40)
    assert len(text) < 4000
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"{40 * SIDE**2} pixels together, and at most"):
        Scene.from_json(text)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_the_limit_is_on_the_total():
    half = {"size": [SIDE, SIDE // 2]}
    rle.check_total([half] * 4)
    with pytest.raises(ValueError, match="pass fewer or smaller masks"):
        rle.check_total([*[half] * 4, full(1)])


@pytest.mark.parametrize("mask", [None, "mask", {}, {"size": 7}, {"size": [10**400, 1]}])
def test_malformed_masks_are_left_to_the_message_that_names_them(mask):
    rle.check_total([mask])
    with pytest.raises(ValueError, match=r"regions\[0\]\.mask"):
        Scene.from_json(scene_of([mask]))


def test_checked_hands_a_sound_one_back_and_refuses_what_decode_refuses():
    sound = full(9)
    assert rle.checked(sound) is sound
    with pytest.raises(ValueError, match="breaks off"):
        rle.checked(sound | {"counts": sound["counts"][:-1]})
