# SPDX-License-Identifier: Apache-2.0
"""ReCo's examples: views of scenes, of every skill, and of a COCO folder's objects."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from spatext_lab.datasets.pocket import pocket_item
from spatext_lab.datasets.pocket.paintskills import SKILLS, skill_item
from spatext_lab.training.recipes.reco import views

COCO = Path(__file__).resolve().parents[3] / "data" / "pocket-coco"


def test_pocket_views_are_of_scenes_and_of_every_skill():
    """One each; its texts are the scene's, and it is the same every time it is made."""
    found = list(views.pocket_views(5, 2, 64, 0))
    scenes = [pocket_item("train", i).layout for i in range(5)]
    scenes += [skill_item(skill, "train", i).scene for i in range(2) for skill in SKILLS]
    assert len(found) == len(scenes)
    for view, scene in zip(found, scenes, strict=True):
        assert view.image.shape == (64, 64, 3)
        assert Counter(r.text for r in view.scene.regions) <= Counter(r.text for r in scene.regions)
        captions = {caption.replace("left", "right") for caption in view.captions}
        assert scene.caption.replace("left", "right") in captions
    again, other = (list(views.pocket_views(5, 2, 64, seed)) for seed in (0, 1))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(found, again, strict=True))
    assert any(not np.array_equal(a.image, b.image) for a, b in zip(found, other, strict=True))


def test_coco_views_have_boxes_of_objects_alone(capsys):
    """Against the annotation file: its instances, none of the panoptic segments of stuff."""
    examples, total = views.coco_views(COCO, 64, 0)
    found = list(examples)
    rows = json.loads((COCO / "annotations" / "instances_train2017.json").read_text())
    things: dict[int, list[dict]] = {}
    for row in rows["annotations"]:
        things.setdefault(row["image_id"], []).append(row)
    assert "train2017" in capsys.readouterr().out
    assert len(found) == total == views.VIEWS * len(things)
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
