# SPDX-License-Identifier: Apache-2.0
"""Scenes from photos: a subset of a COCO 2017 folder, chosen by licence, area, category and seed.

COCO: Lin et al., "Microsoft COCO: Common Objects in Context" (2014); captions: Chen et al. (2015);
panoptic segments: Kirillov et al., "Panoptic Segmentation" (2019). Nothing that is broken stops the
reading and nothing is lost in silence: `CocoSubset.report` names it all.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from spatext_lab.datasets.coco import masks as coco_masks
from spatext_lab.datasets.coco.index import TOO_SMALL, Index, Picture, Segment, Wanted
from spatext_lab.datasets.coco.item import CocoItem, CocoRegion, CocoSubset
from spatext_lab.datasets.coco.records import LAYOUT
from spatext_lab.datasets.coco.report import CocoReport, Credit
from spatext_lab.datasets.coco.write import write_coco
from spatext_lab.scene import rle

__all__ = ["CocoItem", "CocoRegion", "CocoReport", "CocoSubset", "read_coco", "write_coco"]

# By, By-SA, no known restrictions, US Government: the picture may be shown, changed and sold.
FREE_LICENCES = (4, 5, 7, 8)


class _LeftOut(Exception):
    """Why a picture cannot be an item; caught and reported."""


@dataclass(frozen=True)
class _Choice:
    """What the caller asked for, for `_item`."""

    root: Path
    split: str
    min_area: float
    regions: tuple[int, int]
    check_pictures: bool


def read_coco(
    root: str | PathLike,
    split: str,
    *,
    licences: Collection[int] | None = FREE_LICENCES,
    min_area: float | int = 0.05,
    regions: tuple[int, int] = (1, 3),
    categories: Collection[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    check_pictures: bool = True,
) -> CocoSubset:
    """Read a subset of ROOT, a folder in the official 2017 layout.

    A picture's segments come from its panoptic annotation if it has one, else from its instances.
    Smaller segments lie over larger ones, so that all masks of a scene are disjoint.

    Args:
        root:           the folder that holds annotations/, train2017/, val2017/.
        split:          "train" or "val".
        licences:       licence ids to keep (1 BY-NC-SA, 2 BY-NC, 3 BY-NC-ND, 4 BY, 5 BY-SA,
                        6 BY-ND, 7 no known restrictions, 8 US Government); None: all.
        min_area:       a region's least visible share of the picture, in [0, 1).
        regions:        (least, most) regions of a picture; of more the largest are kept.
        categories:     names of the categories that may become regions; None: all.
        limit:          number of pictures at most, drawn at random; None: all.
        seed:           which ones the limit draws.
        check_pictures: decode every selected picture once, so that a damaged one is found now.

    Raises:
        FileNotFoundError: no such folder, or instances or captions are missing.
        ValueError: an argument, or an annotation file that is not whole JSON.
    """
    root = Path(root)
    _check_arguments(split, min_area, regions, limit)
    if not root.is_dir():
        raise FileNotFoundError(f"root {root} is not a folder: {LAYOUT.format(split)}")
    report = CocoReport(f"{split}2017 in {root}")
    min_area = float(min_area)
    wanted = Wanted(licences, categories, min_area)
    index = Index(root / "annotations", split, wanted, report)
    order = sorted(index.pictures)
    if limit is not None:
        Random(seed).shuffle(order)
    choice = _Choice(root, split, min_area, regions, check_pictures)
    items: list[CocoItem] = []
    for number in order:
        picture = index.pictures.pop(number)  # frees its outlines when the item is made
        if len(items) == limit:
            report.leave_picture("not needed, the limit was reached", picture.file_name)
            continue
        try:
            items.append(_item(picture, choice, index.licences, report))
        except _LeftOut as reason:
            report.leave_picture(str(reason), picture.file_name)
    items.sort(key=lambda item: item.image_id)
    report.credits = [item.credit for item in items]
    report.regions = sum(len(item.regions) for item in items)
    return CocoSubset(tuple(items), report)


def _check_arguments(
    split: str, min_area: float | int, regions: tuple[int, int], limit: int | None
) -> None:
    if split not in ("train", "val"):
        raise ValueError(f'split is {split!r}: write "train" or "val" (COCO 2017 has no other)')
    if not 0 <= min_area < 1:
        raise ValueError(f"min_area is {min_area}: write a share of the picture, such as 0.05")
    if not 1 <= regions[0] <= regions[1]:
        raise ValueError(f"regions is {regions}: write (least, most), such as (1, 3)")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}: write a number of pictures, or None for all")


def _item(
    picture: Picture, choice: _Choice, licence_names: dict[int, tuple[str, str]], report: CocoReport
) -> CocoItem:
    """The picture as an item; what is wrong with single annotations goes to the report.

    Raises _LeftOut if the picture cannot be used.
    """
    for reason, annotation in picture.left_out:
        report.leave_annotation(reason, picture.file_name, annotation)
    if picture.problem or not picture.captions:
        raise _LeftOut(picture.problem or "no caption")
    size = (picture.height, picture.width)
    path = choice.root / f"{choice.split}2017" / picture.file_name
    _check_picture(path, size, choice.check_pictures)
    regions = _regions(picture, choice, report)
    if len(regions) < choice.regions[0]:
        raise _LeftOut(f"too few regions, fewer than {choice.regions[0]}")
    licence, url = licence_names.get(picture.licence, (f"licence {picture.licence}", ""))
    return CocoItem(
        path=path,
        split=choice.split,
        image_id=picture.id,
        size=size,
        licence=picture.licence,
        credit=Credit(picture.file_name, licence, url, picture.url),
        captions=tuple(picture.captions),
        regions=tuple(regions),
        min_area=choice.min_area,
    )


def _check_picture(path: Path, size: tuple[int, int], decode: bool) -> None:
    if not path.is_file():
        raise _LeftOut("picture file is missing")
    try:
        with Image.open(path) as picture:
            found = (picture.height, picture.width)
            if decode and found == size:  # a damaged header could ask for any amount of memory
                picture.load()
    except Exception:  # Pillow's decoders raise many types for a damaged file
        raise _LeftOut("picture file is corrupt") from None
    if found != size:
        raise _LeftOut("picture has another size than its annotation says")


def _masks(
    picture: Picture, choice: _Choice, report: CocoReport
) -> list[tuple[Segment, np.ndarray]]:
    """Each segment's whole mask, bool (height, width), largest first; may be all False."""
    ids = None if picture.panoptic is None else _panoptic(picture, choice)
    pairs = []
    for segment in picture.segments:
        try:
            mask = ids == segment.id if segment.shape is None else _decode(segment.shape, picture)
            pairs.append((segment, mask))
        except ValueError:
            report.leave_annotation("broken polygon or RLE", picture.file_name, segment.id)
    return sorted(pairs, key=lambda pair: (-int(pair[1].sum()), pair[0].id))


def _decode(shape: bytes, picture: Picture) -> np.ndarray:
    return coco_masks.to_mask(json.loads(shape), picture.height, picture.width)


def _panoptic(picture: Picture, choice: _Choice) -> np.ndarray:
    folder = choice.root / "annotations" / f"panoptic_{choice.split}2017"
    try:
        ids = coco_masks.panoptic_ids(folder / picture.panoptic)
    except FileNotFoundError:
        raise _LeftOut("panoptic PNG is missing") from None
    except Exception:  # as for pictures
        raise _LeftOut("panoptic PNG is corrupt") from None
    if ids.shape != (picture.height, picture.width):
        raise _LeftOut("panoptic PNG has another size than its annotation says")
    return ids


def _regions(picture: Picture, choice: _Choice, report: CocoReport) -> list[CocoRegion]:
    """The regions to keep, largest first; the report gets the others."""
    least = max(1, choice.min_area * picture.height * picture.width)
    big, regions = [], []

    def leave(reason: str) -> None:
        report.leave_annotation(reason, picture.file_name, segment.id)

    for segment, mask in _masks(picture, choice, report):
        if not mask.any():
            leave("panoptic id absent from the PNG" if picture.panoptic else "mask has no pixel")
        elif mask.sum() < least:
            leave(TOO_SMALL)
        elif len(big) == choice.regions[1]:
            leave("more regions than asked for")
        else:
            big.append((segment, mask))
    seen = coco_masks.on_top_of_each_other([mask for _, mask in big])
    for (segment, _), mask in zip(big, seen, strict=True):
        if mask.sum() < least:
            leave("covered by smaller regions")
        else:
            regions.append(CocoRegion(segment.id, segment.text, rle.encode(mask)))
    return regions
