# SPDX-License-Identifier: Apache-2.0
"""Pocket scenes as a COCO folder: images, instances, captions and panoptic segments.

Two fields go beyond COCO's format, which its readers ignore: `text` on an instance and on a
panoptic segment is the region's free-form text. Nothing depends on when or where it was written.
"""

import colorsys
import json
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from pycocotools import mask as coco_mask

from spatext_lab.datasets.pocket import BACKDROPS, KINDS, LABELS, STUFF, PocketItem
from spatext_lab.scene import rle

INFO = {"description": "pocket world, drawn scenes in COCO format", "version": "1.0", "year": 2026}
LICENCES = [
    {
        "id": 4,
        "name": "Attribution 4.0 International (CC BY 4.0)",
        "url": "https://creativecommons.org/licenses/by/4.0/",
    }
]


def write_coco(root: str | PathLike, split: str, items: Iterable[PocketItem]) -> None:
    """Write the items in the official 2017 layout, byte for byte the same each time.

    ROOT/annotations/{instances,captions,panoptic}_{split}2017.json with panoptic_{split}2017/*.png,
    and ROOT/{split}2017/*.png. Instances hold the things, panoptic segments things and stuff.

    Args:
        root:  folder, made if need be.
        split: "train" or "val".
        items: in order; their images become 000000000001.png, 000000000002.png, ...

    Raises:
        ValueError: another split, or an item with an empty mask.
        FileExistsError: ROOT holds annotations that were not written by this function.
    """
    if split not in ("train", "val"):
        raise ValueError(f'split is {split!r}: write "train" or "val" (COCO 2017 has no other)')
    annotations = Path(root) / "annotations"
    photos, segments = Path(root) / f"{split}2017", annotations / f"panoptic_{split}2017"
    _refuse_foreign(annotations, split)
    for folder in (photos, segments):
        folder.mkdir(parents=True, exist_ok=True)
    images, things, captions, panoptic = [], [], [], []
    for number, item in enumerate(items, start=1):
        name = f"{number:012d}.png"
        infos, ids = _segments(item)
        _save_png(item.image, photos / name)
        _save_png(ids, segments / name)
        size = dict(zip(("height", "width"), item.image.shape, strict=False))
        images.append({"license": 4, "file_name": name, **size, "id": number})
        panoptic.append({"image_id": number, "file_name": name, "segments_info": infos})
        things += _instances(item, infos, number, first_id=len(things) + 1)
        captions += [
            {"image_id": number, "id": len(captions) + i, "caption": text}
            for i, text in enumerate(item.captions, start=1)
        ]
    everything = _categories()
    kinds = [{key: c[key] for key in ("supercategory", "id", "name")} for c in everything]
    _save_json(annotations / f"captions_{split}2017.json", images, captions)
    _save_json(annotations / f"panoptic_{split}2017.json", images, panoptic, everything)
    _save_json(annotations / f"instances_{split}2017.json", images, things, kinds[: len(KINDS)])


def _refuse_foreign(annotations: Path, split: str) -> None:
    """A slip in ROOT must not overwrite a downloaded COCO."""
    for kind in ("instances", "captions", "panoptic"):
        path = annotations / f"{kind}_{split}2017.json"
        if path.exists():
            with path.open("rb") as file:
                if INFO["description"].encode() not in file.read(200):
                    raise FileExistsError(
                        f"{path} was not written by this function: choose another root, "
                        "or move that file away"
                    )


def _categories() -> list[dict[str, Any]]:
    """All of pocket.LABELS with ids from 1: things first, then stuff."""
    backdrop = {name: key for key, (*pair, _) in BACKDROPS.items() for name in pair}
    colours = [colorsys.hsv_to_rgb(0.618 * i % 1, 0.6, 0.9) for i in range(len(LABELS))]
    return [
        {
            "supercategory": backdrop.get(name, "thing"),
            "color": [round(255 * c) for c in colour],
            "isthing": int(name not in STUFF),
            "id": number,
            "name": name,
        }
        for number, (name, colour) in enumerate(zip(LABELS, colours, strict=True), start=1)
    ]


def _segments(item: PocketItem) -> tuple[list[dict[str, Any]], UInt8[np.ndarray, "h w 3"]]:
    """The segments' records, in order, and the image of their ids as R + 256 G + 65536 B."""
    categories = _categories()
    infos: list[dict[str, Any]] = []
    pixels = np.zeros_like(item.image)
    for segment in item.segments:
        if not segment.mask.any():
            raise ValueError(f"the mask of {segment.text!r} is empty: expected at least one pixel")
        category = categories[LABELS.index(segment.label)]
        # The category's colour, so that the PNG can be looked at, or the next one that is free.
        number = sum(c * 256**i for i, c in enumerate(category["color"]))
        while number in {info["id"] for info in infos}:
            number += 1
        pixels[segment.mask] = [number >> shift & 255 for shift in (0, 8, 16)]
        infos.append(
            {
                "id": number,
                "category_id": category["id"],
                "iscrowd": 0,
                "bbox": list(map(int, coco_mask.toBbox(rle.encode(segment.mask)))),
                "area": int(segment.mask.sum()),
                "text": segment.text,
            }
        )
    return infos, pixels


def _instances(item: PocketItem, infos: list, image: int, first_id: int) -> list[dict[str, Any]]:
    things = [(s, info) for s, info in zip(item.segments, infos, strict=True) if s.is_thing]
    return [
        {"segmentation": rle.encode(segment.mask), "area": info["area"], "iscrowd": 0}
        | {"image_id": image, "bbox": info["bbox"], "category_id": info["category_id"]}
        | {"id": number, "text": segment.text}
        for number, (segment, info) in enumerate(things, start=first_id)
    ]


def _save_png(pixels: UInt8[np.ndarray, "h w 3"], path: Path) -> None:
    Image.fromarray(pixels).save(path, format="PNG", compress_level=9)


def _save_json(path: Path, images: list, annotations: list, categories: list | None = None) -> None:
    content = {"info": INFO, "licenses": LICENCES, "images": images, "annotations": annotations}
    if categories is not None:
        content["categories"] = categories
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
