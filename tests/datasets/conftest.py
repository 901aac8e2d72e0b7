# SPDX-License-Identifier: Apache-2.0
"""Small COCO folders: one of pocket scenes, and any that a test writes down by hand."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spatext_lab.datasets.coco import write_coco
from spatext_lab.datasets.pocket import pocket_item


@pytest.fixture(scope="session")
def pocket_items():
    return [pocket_item("val", index) for index in range(6)]


@pytest.fixture(scope="session")
def _written(tmp_path_factory, pocket_items):
    root = tmp_path_factory.mktemp("pocket-coco")
    write_coco(root, "val", pocket_items)
    return root


@pytest.fixture
def pocket_coco(_written, tmp_path):
    """A folder of six pocket scenes, the test's own to damage."""
    return Path(shutil.copytree(_written, tmp_path / "pocket-coco"))


@pytest.fixture
def hand_made(tmp_path):
    """hand_made(height, width, annotations): a folder of one grey ramp, file 7.png, id 7."""

    def make(height, width, annotations):
        root = tmp_path / "hand-made"
        (root / "annotations").mkdir(parents=True)
        (root / "val2017").mkdir()
        ramp = np.linspace(0, 255, width).astype(np.uint8)  # from black at the left to white
        Image.fromarray(np.tile(ramp, (height, 1))).save(root / "val2017" / "7.png")
        image = {"id": 7, "file_name": "7.png", "height": height, "width": width, "license": 4}
        defaults = {"image_id": 7, "category_id": 1, "iscrowd": 0, "area": height * width}
        content = {
            "images": [image],
            "annotations": [defaults | {"id": i} | a for i, a in enumerate(annotations, start=1)],
            "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
        }
        captions = [{"id": 1, "image_id": 7, "caption": " a dog \n and a cat"}]
        folder = root / "annotations"
        (folder / "instances_val2017.json").write_text(json.dumps(content))
        (folder / "captions_val2017.json").write_text(json.dumps({"annotations": captions}))
        return root

    return make
