# SPDX-License-Identifier: Apache-2.0
"""A few layouts' score against the protocols themselves, and against slow loops."""

import numpy as np
import pytest
from PIL import Image

from spatext_lab.evaluation.layouts import (
    found_boxes,
    photo_layouts,
    pocket_layouts,
    segment_ious,
)
from spatext_lab.evaluation.report import evaluate
from spatext_lab.scene import Region, Scene
from spatext_lab.zoo import shipped

SIZE = 64


@pytest.mark.parametrize(
    ("protocol", "key", "name"),
    [("segments", "local_iou", "local IoU"), ("boxes", "ap50", "box AP50")],
)
def test_true_images_have_the_score_that_evaluate_gives_them(protocol, key, name):
    layouts = pocket_layouts(protocol, count=6)
    report = evaluate("true", scenes=6, split="val", protocol=protocol)
    assert layouts.score(layouts.true) == report[key] > 0.8
    assert layouts.name == name
    assert layouts.score(layouts.true[1:] + layouts.true[:1]) < 0.5


@pytest.mark.parametrize("protocol", ["segments", "boxes"])
def test_photos_are_held_out_and_judged_by_the_segmenter(protocol):
    known: dict[bytes, list] = {}
    segmenter = lambda image: iter(known[image.tobytes()])  # noqa: E731
    layouts = photo_layouts(protocol, shipped("pocket-coco"), SIZE, segmenter, count=5)
    assert 1 <= len(layouts.scenes) <= 5
    assert all(image.size == (SIZE, SIZE) for image in layouts.true)
    regions = [region for scene in layouts.scenes for region in scene.regions]
    assert all((region.mask is None) == (protocol == "boxes") for region in regions)
    if protocol == "boxes":
        assert not {"a meadow", "a beach", "a starry night sky"} & {r.text for r in regions}
    for image, scene in zip(layouts.true, layouts.scenes, strict=True):
        known[image.tobytes()] = [(r.text, r.mask_at(SIZE, SIZE)) for r in scene.regions]
    assert layouts.score(layouts.true) == 1
    known |= {key: [] for key in known}
    assert layouts.score(layouts.true) == 0


def test_segment_ious_by_a_slow_loop():
    rng = np.random.default_rng(0)
    masks = np.zeros((3, 8, 8), bool)
    masks[0, :4, :4], masks[1, :3, 5:], masks[2, 5:, :] = True, True, True
    texts = ("a dog", "a cat", "a dog")
    scene = Scene("", [Region(t, mask=m) for t, m in zip(texts, masks, strict=True)])
    found = rng.random((8, 8)) < 0.6
    segmenter = lambda image: iter([("a dog", found[:] & (np.arange(8) < 5)), ("a dog", masks[2])])  # noqa: E731
    dog = (found & (np.arange(8) < 5)) | masks[2]
    asked = masks[0] | masks[2]
    todo = [tuple(p) for p in np.argwhere(dog & asked)]
    seen = set(todo)
    while todo:  # flood from the mask through the dog's pixels
        y, x = todo.pop()
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= v < 8 and 0 <= u < 8 and dog[v, u] and (v, u) not in seen:
                seen.add((v, u))
                todo.append((v, u))
    wanted = {tuple(p) for p in np.argwhere(asked)}
    iou = len(wanted & seen) / len(wanted | seen)
    ious = segment_ious(Image.new("RGB", (8, 8)), scene, segmenter)
    assert ious == pytest.approx([iou, 0, iou])
    assert 0.5 < iou < 1


def test_boxes_are_tight_and_the_largest_comes_first():
    small, large = np.zeros((2, 10, 20), bool)
    small[2:4, 5:10], large[0:8, 0:10] = True, True
    first, second = found_boxes(
        Image.new("RGB", (20, 10)), lambda image: iter([("a cup", small), ("a bed", large)])
    )
    assert (first.label, first.box, first.score) == ("a bed", (0, 0, 0.5, 0.8), 0.4)
    assert (second.label, second.box) == ("a cup", (0.25, 0.2, 0.5, 0.4))
