# SPDX-License-Identifier: Apache-2.0
"""ReCo's examples: views of scenes, of every skill, and of a COCO folder's objects."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from spatext_lab.datasets.pocket import pocket_item
from spatext_lab.datasets.pocket.paintskills import SKILLS, skill_item
from spatext_lab.scene import Region, Scene
from spatext_lab.training import cache
from spatext_lab.training.recipes.reco import views

COCO = Path(__file__).resolve().parents[3] / "data" / "pocket-coco"


def test_pocket_views_are_of_scenes_and_of_every_skill():
    """One each; its texts are the scene's, and it is the same every time it is made."""
    found = list(views.pocket_views(0, 5, 2, 64, 0))
    scenes = [pocket_item("train", i).layout for i in range(5)]
    scenes += [skill_item(skill, "train", i).scene for i in range(2) for skill in SKILLS]
    assert len(found) == len(scenes)
    for view, scene in zip(found, scenes, strict=True):
        assert view.image.shape == (64, 64, 3)
        assert Counter(r.text for r in view.scene.regions) <= Counter(r.text for r in scene.regions)
        captions = {caption.replace("left", "right") for caption in view.captions}
        assert scene.caption.replace("left", "right") in captions
    again, other = (list(views.pocket_views(0, 5, 2, 64, seed)) for seed in (0, 1))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(found, again, strict=True))
    assert any(not np.array_equal(a.image, b.image) for a, b in zip(found, other, strict=True))


def test_large_objects_come_first_with_their_own_boxes():
    """One to four of them; a box covers more of the image than one of a scene."""
    large, scenes = (list(views.pocket_views(*n, 0, 64, 0)) for n in ((30, 0), (0, 30)))
    assert {len(view.scene.regions) for view in large} == {1, 2, 3, 4}
    boxes, others = (
        [area(r) for view in some for r in view.scene.regions] for some in (large, scenes)
    )
    assert max(boxes) > 0.4
    assert np.mean(boxes) > 1.5 * np.mean(others)


def area(region: Region) -> float:
    x0, y0, x1, y1 = region.box
    return (x1 - x0) * (y1 - y0)


def test_stages_go_from_one_large_box_at_half_the_resolution_to_everything():
    left, right = Region("a ball", box=(0, 0, 0.5, 1)), Region("a star", box=(0.5, 0, 1, 1))
    tiny = Region("a cup", box=(0.5, 0.5, 0.7, 0.8))  # 0.06 of the image
    regions = [(), (left,), (tiny,), (left, right), (left, tiny), (right,)]
    scenes = [Scene("c", each) for each in regions]
    whole = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 2, 2)
    pool = cache.Cache(whole, [("c",)] * 6, scenes, half_latents=whole[:, :, :1, :1] + 100)
    generator = torch.Generator().manual_seed(0)
    stages = views.Stages(pool, (3, 6))
    for step in range(14):
        index, x_0 = stages.draw(step, 200, generator)
        want = {1, 5} if step < 3 else {1, 3, 5} if step < 6 else set(range(6))
        assert set(index.tolist()) == want
        small = step < 6 or step in (8, 12)
        assert torch.equal(x_0, (pool.half_latents if small else pool.latents)[index])
    # without half latents, and where no image has a large box, all views are shown from the start
    index, x_0 = views.Stages(replace(pool, half_latents=None), (3, 6)).draw(0, 200, generator)
    assert set(index.tolist()) == set(range(6))
    assert torch.equal(x_0, whole[index])
    none = views.Stages(replace(pool, scenes=[Scene("c", [tiny])] * 6), (3, 6))
    assert set(none.draw(0, 200, generator)[0].tolist()) == set(range(6))


def test_coco_views_have_boxes_of_objects_alone(capsys):
    """Against the annotation file: its instances, none of the panoptic segments of stuff."""
    photos = views.coco_views(COCO, 64, 0)
    found = [view for k in range(len(photos.items)) for view in photos.examples(k)]
    rows = json.loads((COCO / "annotations" / "instances_train2017.json").read_text())
    things: dict[int, list[dict]] = {}
    for row in rows["annotations"]:
        things.setdefault(row["image_id"], []).append(row)
    assert "train2017" in capsys.readouterr().out
    assert len(found) == views.VIEWS * len(things)
    whole = 0
    for k, view in enumerate(found):
        known = sorted(things)[k // views.VIEWS]
        texts = Counter(row["text"] for row in things[known])
        assert Counter(region.text for region in view.scene.regions) <= texts
        boxes = {row["text"]: row["bbox"] for row in things[known]}
        for region in view.scene.regions:
            x, y, w, h = (value / 64 for value in boxes[region.text])
            sides = (x, y, x + w, y + h), (1 - x - w, y, 1 - x, y + h)  # as it is, and mirrored
            whole += any(region.box == pytest.approx(side) for side in sides)
    assert 0.4 < whole / sum(len(view.scene.regions) for view in found) < 0.6
