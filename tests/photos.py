# SPDX-License-Identifier: Apache-2.0
"""A COCO folder of a few made-up photos: noise as photos have it, and two objects in front."""

import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

# 77 real ones, where they are
BESIDE = Path(__file__).parents[1].parent / "shared" / "coco-mini"
MINI = Path(os.environ.get("SPATEXT_COCO_MINI", BESIDE))
WIDTH, HEIGHT = 120, 96
OBJECTS = {"dog": (20, 30, 50, 75), "car": (70, 50, 110, 80)}  # x0, y0, x1, y1 in pixels


def photo(seed: int) -> np.ndarray:
    """Noise whose spectrum falls as 1 / f, as photos' does; one object is dark, one light."""
    rng = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(HEIGHT)[:, None], np.fft.fftfreq(WIDTH)
    falling = 1 / np.maximum(np.hypot(fy, fx), 1 / WIDTH)
    white = rng.normal(size=(3, HEIGHT, WIDTH)) + rng.normal(size=(HEIGHT, WIDTH))
    pixels = np.moveaxis(np.fft.ifft2(np.fft.fft2(white) * falling).real, 0, -1)
    pixels = 128 + 50 * (pixels - pixels.mean()) / pixels.std()
    for sign, (x0, y0, x1, y1) in zip((-1, 1), OBJECTS.values(), strict=True):
        pixels[y0:y1, x0:x1] += sign * 60
    return pixels.clip(0, 255).astype(np.uint8)


def photo_folder(root: Path, train: int = 4, val: int = 3) -> Path:
    """Writes both splits; photo k of train2017 has no caption where k is 3, and no region at 2."""
    (root / "annotations").mkdir(parents=True)
    for split, first, count in (("train", 0, train), ("val", 100, val)):
        (root / f"{split}2017").mkdir()
        ids = range(first, first + count)
        for k in ids:
            Image.fromarray(photo(k)).save(root / f"{split}2017" / f"{k}.jpg", quality=95)
        _write(root / "annotations", split, ids)
    return root


def _write(folder: Path, split: str, ids: range) -> None:
    size = {"height": HEIGHT, "width": WIDTH, "license": 4}
    images = [{"id": k, "file_name": f"{k}.jpg"} | size for k in ids]
    names = [{"id": n, "name": name} for n, name in enumerate(OBJECTS, start=1)]
    found = [
        {"id": 10 * k + n, "image_id": k, "category_id": n, "iscrowd": 0} | _outline(*box)
        for k in ids
        if k != 2
        for n, box in enumerate(OBJECTS.values(), start=1)
    ]
    said = [
        {"id": 10 * k + n, "image_id": k, "caption": text}
        for k in ids
        if k != 3
        for n, text in enumerate(("A dog left of a car.", "a dog and a car"))
    ]
    content = {"images": images, "annotations": found, "categories": names}
    (folder / f"instances_{split}2017.json").write_text(json.dumps(content))
    captions = {"images": images, "annotations": said}
    (folder / f"captions_{split}2017.json").write_text(json.dumps(captions))


def _outline(x0: int, y0: int, x1: int, y1: int) -> dict:
    corners = [x0, y0, x1, y0, x1, y1, x0, y1]
    return {
        "segmentation": [corners],
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": (x1 - x0) * (y1 - y0),
    }
