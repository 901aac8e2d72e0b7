# SPDX-License-Identifier: Apache-2.0
"""Reading annotations in COCO's format, beside pycocotools: time and memory.

The annotations are made up and kept for the next run: outlines of rendered scenes, and licences
spread about as in COCO. Each reader runs in a process of its own. Memory is the highest RssAnon,
what the process owns; pages of a mapped file are not counted (Linux only). There are no image
files: our reader reads all annotations and then reports each image as missing.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from random import Random

import numpy as np

from benchmarks.timer import Case, Setup
from spatext_lab.datasets.pocket import pocket_item

IMAGES, OBJECTS, CAPTIONS = 20_000, 7.27, 5  # a sixth of train2017, with its objects an image
WIDTH, HEIGHT, CORNERS = 640, 480, 22
LICENCE_WEIGHTS = (27, 13, 28, 16, 6, 10)
KINDS = ("instances", "captions")
OURS = (
    "from spatext_lab.datasets.coco import read_coco\n"
    "found = read_coco({root!r}, 'train', {how}).report\n"
    "print(found.found)"
)
THEIRS = (
    "from contextlib import redirect_stdout\n"
    "from pycocotools.coco import COCO\n"
    "with redirect_stdout(None):\n"
    "    a = COCO({root!r} + '/annotations/instances_train2017.json')\n"
    "    b = COCO({root!r} + '/annotations/captions_train2017.json')\n"
    "print(len(a.imgs))"
)
HOW = {
    "free licences": "check_images=False",
    "all licences": "check_images=False, licences=None",
}


def cases(setup: Setup) -> Iterator[Case]:
    """Time for free licences (our default) and for all, then memory."""
    if find_spec("pycocotools") is None:
        print("coco: skipped, for pycocotools is not installed")
        return
    images = 100 if setup.quick else IMAGES
    root = setup.folder / f"coco-{images}"
    files = [root / f"annotations/{kind}_train2017.json" for kind in KINDS]
    if not all(file.exists() for file in files):
        write(root, images)
    for file in files:
        file.read_bytes()  # all readers find them in the page cache
    theirs = Reader(THEIRS.format(root=str(root)))
    for name, how in HOW.items():
        ours = Reader(OURS.format(root=str(root), how=how))
        yield Case(f"{images:,} images in COCO format, {name} / pycocotools", ours, theirs)
    if Path("/proc/self/status").exists():
        what = f"{images:,} images, all licences, memory / pycocotools"
        yield Case(what, ours, theirs, clock="memory")


class Reader:
    """A process that runs some code; a call returns the number that it prints.

    Attributes:
        peak: GB that the last process owned at most.
    """

    def __init__(self, code: str) -> None:
        self.code, self.peak = code, 0.0

    def __call__(self) -> int:
        command = [sys.executable, "-c", self.code]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        status, peak = Path(f"/proc/{process.pid}/status"), 0
        while process.poll() is None:
            lines = status.read_text().splitlines() if status.exists() else ()
            peak = max([peak, *(int(each.split()[1]) for each in lines if "RssAnon" in each)])
            time.sleep(0.01)
        if process.returncode:
            raise SystemExit(f"the reader failed with exit code {process.returncode}")
        self.peak = peak / 1e6
        return int(process.stdout.read())


def outlines(count: int = 200) -> list[np.ndarray]:
    """Corners, (n, 2) in pixels, of the segments of rendered scenes: left edges down, right up."""
    found = []
    for item in (pocket_item("train", i) for i in range(count)):
        h, w = item.image.shape[:2]
        for segment in item.segments:
            rows = np.flatnonzero(segment.mask.any(axis=1))
            rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), CORNERS // 2)).astype(int)]
            left = [int(np.flatnonzero(segment.mask[row])[0]) for row in rows]
            right = [int(np.flatnonzero(segment.mask[row])[-1]) + 1 for row in rows]
            xs, ys = np.array(left + right[::-1]), np.concatenate([rows, rows[::-1]])
            found.append(np.stack([xs * WIDTH / w, ys * HEIGHT / h], axis=1))
    return found


def instance(number: int, image: int, corners: np.ndarray, rng: np.random.Generator) -> dict:
    """An annotation with that outline, moved by up to a pixel a corner."""
    moved = (corners + rng.uniform(-1, 1, corners.shape)).clip(0, (WIDTH, HEIGHT)).round(2)
    (x0, y0), (x1, y1) = moved.min(axis=0).tolist(), moved.max(axis=0).tolist()
    box = [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)]
    return {
        "segmentation": [moved.ravel().tolist()], "area": box[2] * box[3] / 2, "iscrowd": 0,
        "image_id": image, "bbox": box, "category_id": number % 80 + 1, "id": number,
    }  # fmt: skip


def write(root: Path, images: int) -> None:
    """Both annotation files, record by record."""
    folder = root / "annotations"
    folder.mkdir(parents=True, exist_ok=True)
    rng, draw, shapes = np.random.default_rng(0), Random(0), outlines()
    ids = sorted(draw.sample(range(1, 600_000), images))
    licences = [
        {"id": i, "name": f"CC {name}", "url": f"http://creativecommons.org/licenses/{name}/2.0/"}
        for i, name in enumerate(("by-nc-sa", "by-nc", "by-nc-nd", "by", "by-sa", "by-nd"), start=1)
    ]
    records = [
        {
            "license": draw.choices(range(1, 7), LICENCE_WEIGHTS)[0], "file_name": f"{i:012d}.jpg",
            "coco_url": f"http://images.example/train2017/{i:012d}.jpg", "height": HEIGHT,
            "width": WIDTH, "date_captured": "2013-11-14 11:18:45",
            "flickr_url": f"http://farm9.example/8186/{i}_5b8a8d5b2d_z.jpg", "id": i,
        }
        for i in ids
    ]  # fmt: skip
    head = {"info": {}, "licenses": licences, "images": records}
    kinds = [{"supercategory": "thing", "id": i, "name": f"kind {i}"} for i in range(1, 81)]
    owners = np.sort(rng.integers(images, size=round(images * OBJECTS))).tolist()
    chosen = rng.integers(len(shapes), size=len(owners)).tolist()
    instances = (
        instance(n, ids[owner], shapes[shape], rng)
        for n, (owner, shape) in enumerate(zip(owners, chosen, strict=True))
    )
    _stream(folder / "instances_train2017.json", {**head, "categories": kinds}, instances)
    texts = [text for i in range(200) for text in pocket_item("train", i).captions]
    captions = (
        {"image_id": image, "id": CAPTIONS * n + k, "caption": draw.choice(texts)}
        for n, image in enumerate(ids)
        for k in range(CAPTIONS)
    )
    _stream(folder / "captions_train2017.json", head, captions)


def _stream(path: Path, head: dict, annotations) -> None:
    part = path.with_suffix(".part")
    with part.open("w") as file:
        file.write(json.dumps(head)[:-1] + ', "annotations": [')
        for number, annotation in enumerate(annotations):
            file.write(", " * (number > 0) + json.dumps(annotation))
        file.write("]}")
    part.replace(path)
