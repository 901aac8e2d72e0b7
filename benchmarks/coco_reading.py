# SPDX-License-Identifier: Apache-2.0
"""Time and memory of reading annotations of COCO train2017's size, beside pycocotools.

    python benchmarks/coco_reading.py FOLDER [--images 118287]

Makes up instances and captions in FOLDER (kept for the next run), with outlines of rendered scenes
and licences spread about as in COCO. Then each reader runs in a process of its own. Memory is the
highest RssAnon, what the process owns; pages of a mapped file are not counted (Linux only). There
are no image files: our reader reads all annotations and then reports each image as missing.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import numpy as np

from spatext_lab.datasets.pocket import pocket_item

IMAGES, OBJECTS, CAPTIONS = 118_287, 7.27, 5  # train2017: 860,001 objects
WIDTH, HEIGHT, CORNERS = 640, 480, 22
LICENCE_WEIGHTS = (27, 13, 28, 16, 6, 10)
OURS = "from spatext_lab.datasets.coco import read_coco as read\nread({root!r}, 'train', {how})"
THEIRS = (
    "from pycocotools.coco import COCO\n"
    "a = COCO('{root}/annotations/instances_train2017.json')\n"
    "b = COCO('{root}/annotations/captions_train2017.json')"
)
READERS = {
    "pycocotools, two COCO()": THEIRS,
    "read_coco, free licences": OURS.replace("{how}", "check_images=False"),
    "read_coco, all licences": OURS.replace("{how}", "check_images=False, licences=None"),
}


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


def measure(code: str) -> tuple[float, float, float]:
    """Seconds, CPU seconds and peak GB (RssAnon) of a process that runs the code."""
    started, before, peak = time.perf_counter(), os.times(), 0
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        lines = status.read_text().splitlines()
        own = [int(line.split()[1]) for line in lines if line.startswith("RssAnon")]
        peak = max(peak, *own, 0)
        time.sleep(0.01)
    if process.returncode:
        raise SystemExit(f"the reader failed with exit code {process.returncode}")
    after = os.times()
    busy = after.children_user + after.children_system
    busy -= before.children_user + before.children_system
    return time.perf_counter() - started, busy, peak / 1e6


def main() -> None:
    """Write the files if they are not there, then read them with each reader."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the made-up files are, about 0.6 GB")
    parser.add_argument("--images", type=int, default=IMAGES, help="default: %(default)s")
    args = parser.parse_args()
    root = args.folder / f"coco-{args.images}"
    files = [root / f"annotations/{kind}_train2017.json" for kind in ("instances", "captions")]
    if not all(file.exists() for file in files):
        write(root, args.images)
    sizes = " + ".join(f"{file.stat().st_size / 1e6:.0f}" for file in files)
    print(f"{args.images} images, instances + captions: {sizes} MB")
    for file in files:
        file.read_bytes()  # all readers find them in the page cache
    print(f"{'':26} {'seconds':>13} {'CPU seconds':>13} {'GB':>13}")
    base = None
    for name, code in READERS.items():
        found = measure(code.format(root=str(root)))
        base = base or found
        shown = (f"{a:7.2f} {a / b:.2f}x" for a, b in zip(found, base, strict=True))
        print(f"{name:26}", " ".join(shown), flush=True)


if __name__ == "__main__":
    main()
