# SPDX-License-Identifier: Apache-2.0
"""A small COCO 2017, whole in a folder, and offered by a server in COCO's archives."""

import io
import json
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.datasets.coco.fetch.server import Server

COUNT = 24
HEIGHT, WIDTH = 48, 64
OFFICIAL = "http://images.cocodataset.org"
LICENCES = [  # as in COCO's files
    (1, "Attribution-NonCommercial-ShareAlike License", "by-nc-sa/2.0/"),
    (4, "Attribution License", "by/2.0/"),
    (5, "Attribution-ShareAlike License", "by-sa/2.0/"),
]


def photo(number: int, height: int = HEIGHT, width: int = WIDTH) -> bytes:
    """A JPEG of noise, which does not shrink much."""
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=80)
    return file.getvalue()


def name_of(number: int) -> str:
    return f"{number:012d}.jpg"


def _record(number: int) -> dict:
    return {
        "id": number,
        "file_name": name_of(number),
        "height": HEIGHT,
        "width": WIDTH,
        "license": LICENCES[number % 3][0],
        "coco_url": f"{OFFICIAL}/val2017/{name_of(number)}",
        "flickr_url": f"http://farm1.staticflickr.com/{number}_z.jpg",
    }


def _instance(number: int) -> dict:
    """Every fourth photo has a region that is too small for the usual choice."""
    side = 4 if number % 4 == 3 else 16 + number
    shape = [[0, 0, side, 0, side, side, 0, side]]
    own = {"id": number, "image_id": number, "category_id": 1 + number % 2, "iscrowd": 0}
    return own | {"segmentation": shape, "area": side * side, "bbox": [0, 0, side, side]}


def _panoptic_png(number: int) -> bytes:
    """Segment 1 above, segment 2 below."""
    ids = np.ones((HEIGHT, WIDTH, 3), np.uint8) * np.array([1, 0, 0], np.uint8)
    ids[HEIGHT * (1 + number % 9) // 10 :, :, 0] = 2
    file = io.BytesIO()
    Image.fromarray(ids).save(file, "PNG")
    return file.getvalue()


def zipped(members: dict[str, bytes], **how) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how.pop("compression", zipfile.ZIP_DEFLATED)) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def annotation_files() -> dict[str, bytes]:
    """By name, as they are in COCO's annotations/."""
    url = "http://creativecommons.org/licenses/"
    licences = [{"id": i, "name": name, "url": url + end} for i, name, end in LICENCES]
    numbers = range(1, COUNT + 1)
    images = [_record(number) for number in numbers]
    kinds = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    captions = [{"id": n, "image_id": n, "caption": f"caption {n}"} for n in numbers]
    segments = [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 3}]
    panoptic = [
        {"image_id": n, "file_name": f"{n:012d}.png", "segments_info": segments} for n in numbers
    ]
    head = {"licenses": licences, "images": images}
    things = {"annotations": [_instance(n) for n in numbers], "categories": kinds}
    stuff = {"annotations": panoptic, "categories": [*kinds, {"id": 3, "name": "grass"}]}
    contents = {
        "instances": head | things,
        "captions": head | {"annotations": captions},
        "panoptic": head | stuff,
    }
    return {f"{kind}_val2017.json": json.dumps(c).encode() for kind, c in contents.items()}


@pytest.fixture(scope="session")
def published() -> dict[str, bytes]:
    """What COCO offers, by path: the two archives and all photos."""
    files = {f"annotations/{name}": content for name, content in annotation_files().items()}
    panoptic = {"annotations/panoptic_val2017.json": files.pop("annotations/panoptic_val2017.json")}
    files |= {"annotations/instances_train2017.json": b"{}", "../evil.txt": b"evil"}
    pngs = {f"panoptic_val2017/{n:012d}.png": _panoptic_png(n) for n in range(1, COUNT + 1)}
    panoptic["annotations/panoptic_val2017.zip"] = zipped(pngs)
    photos = {f"/val2017/{name_of(n)}": photo(n) for n in range(1, COUNT + 1)}
    return photos | {
        "/annotations/annotations_trainval2017.zip": zipped(files),
        "/annotations/panoptic_annotations_trainval2017.zip": zipped(panoptic),
    }


@pytest.fixture(scope="session")
def complete(tmp_path_factory, published) -> Path:
    """The whole of COCO in a folder, unpacked by hand; without panoptic segments."""
    root = tmp_path_factory.mktemp("complete")
    for folder in ("annotations", "val2017"):
        (root / folder).mkdir()
    for name, content in annotation_files().items():
        if not name.startswith("panoptic"):
            (root / "annotations" / name).write_bytes(content)
    for path, content in published.items():
        if path.startswith("/val2017"):
            (root / path[1:]).write_bytes(content)
    return root


@pytest.fixture
def server(published):
    with Server(published) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()
