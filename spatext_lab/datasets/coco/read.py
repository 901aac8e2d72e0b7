# SPDX-License-Identifier: Apache-2.0
"""Scenes from photos: a subset of a COCO 2017 folder, chosen by licence, area, category and seed.

COCO: Lin et al., "Microsoft COCO: Common Objects in Context" (2014); captions: Chen et al. (2015);
panoptic segments: Kirillov et al., "Panoptic Segmentation" (2019). Nothing that is broken stops the
reading and nothing is lost silently: `CocoSubset.report` names it all.
"""

from collections.abc import Callable, Collection
from os import PathLike
from pathlib import Path
from random import Random
from typing import Any, TypedDict

import numpy as np

from spatext_lab.datasets.coco import masks
from spatext_lab.datasets.coco.index import Choice, Entry, Segment, read_index
from spatext_lab.datasets.coco.item import CocoItem, CocoRegion, CocoSubset
from spatext_lab.datasets.coco.licences import FREE_LICENCES
from spatext_lab.datasets.coco.photos import NotWhole, Unusable, check_photo
from spatext_lab.datasets.coco.records import (
    LAYOUT,
    Broken,
    CategoryRecord,
    decoded,
    parsed,
    read_file,
)
from spatext_lab.datasets.coco.report import CocoReport, Credit
from spatext_lab.figures.progress import Progress
from spatext_lab.scene import rle

BOX_ALONE = "a box and no mask: of use to ReCo alone (boxes=True)"


class _LeftOut(Exception):
    """Why an image, or an annotation, cannot be used; caught and reported."""


class PhotoChoice(TypedDict, total=False):
    """Which photos and regions of a COCO folder to use, for commands that read one.

    Args:
        licences: licences to keep, by COCO's numbers (4 5 7 8, which allow change and sale); all,
            and photos without one, are kept with None ("all").
        min_area: a region's least visible fraction of the photo, in [0, 1).
        categories: names of the categories that may become regions; all if not given.
    """

    licences: Collection[int] | None
    min_area: float
    categories: Collection[str]


class SubsetChoice(PhotoChoice, total=False):
    """Which photos of a COCO folder, and how many: what `read_coco` is asked for.

    Args:
        regions: (least, most) regions of a photo.
        limit: number of photos at most, chosen at random.
        seed: of the limit's choice.
    """

    regions: tuple[int, int]
    limit: int | None
    seed: int


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
    boxes: bool = False,
    captions: bool = True,
    check_images: bool = True,
    supply: Callable[[Path], bool] | None = None,
) -> CocoSubset:
    """Read a subset of ROOT, a folder in the official 2017 layout.

    An image's segments come from its panoptic annotation if it has one, else from its instances.
    Smaller segments lie over larger ones, so that all masks of a scene are disjoint.

    Args:
        root:         the folder that holds annotations/, train2017/, val2017/.
        split:        "train" or "val".
        licences:     licences to keep, by COCO's numbers (1 BY-NC-SA, 2 BY-NC, 3 BY-NC-ND, 4 BY,
                      5 BY-SA, 6 BY-ND, 7 no known restrictions, 8 US Government); None: all, and
                      any other. An image's licence is judged by the name and address in its file.
        min_area:     a region's least visible fraction of the image, in [0, 1).
        regions:      (least, most) regions of an image; of more the largest are kept. With 0 as
                      the least, images without one are kept too.
        categories:   names of the categories that may become regions; None: all.
        limit:        number of images at most, chosen at random; None: all.
        seed:         of the limit's choice.
        boxes:        read an annotation that has a box and no mask as a rectangle (for ReCo).
        captions:     leave out images without a caption; else they have none.
        check_images: decode every selected image once, so that a damaged one is found now.
        supply:       is called with the path of a photo that is missing or damaged, and says
                      whether to count on it; and with that of a missing panoptic PNG, which it may
                      put there.

    Returns:
        The items in order of their image id, and a report on all that was left out.

    Raises:
        FileNotFoundError: no such folder, or instances or captions are missing.
        ValueError: an argument, or an annotation file that is not whole JSON.
    """
    root = Path(root)
    check_choice(split, min_area=min_area, regions=regions, limit=limit)
    if not root.is_dir():
        raise FileNotFoundError(f"root {root} is not a folder: {LAYOUT.format(split)}")
    report = CocoReport(f"{split}2017 in {root}")
    choice = Choice(
        root,
        split,
        licences,
        categories,
        float(min_area),
        regions,
        boxes,
        captions,
        check_images,
        supply,
    )
    entries = read_index(choice, report)
    order = sorted(entries)
    if limit is not None:
        Random(seed).shuffle(order)
    items: list[CocoItem] = []
    total = len(order) if limit is None else limit
    with Progress(total=total, desc=f"reading {split}2017", unit="photo") as bar:
        for number in order:
            entry = entries.pop(number)  # its records are not needed again
            if len(items) == limit:
                report.leave_image("not needed, the limit was reached", entry.record.file_name)
                continue
            try:
                items.append(_item(entry, choice, report))
            except _LeftOut as reason:
                report.leave_image(str(reason), entry.record.file_name)
            bar.update(limit is None or len(items) - bar.n)
    items.sort(key=lambda item: item.image_id)
    report.credits = [item.credit for item in items]
    report.regions = sum(len(item.regions) for item in items)
    return CocoSubset(tuple(items), report)


def thing_names(root: str | PathLike, split: str) -> set[str]:
    """The names of the categories that have instances: things, as COCO calls them, not stuff."""
    file = read_file(Path(root) / "annotations" / f"instances_{split}2017.json")
    rows = decoded(file["categories"], CategoryRecord)
    return {record.name for record, _ in rows if not isinstance(record, Broken)}


def check_choice(
    split: str,
    *,
    min_area: float | int = 0.0,
    regions: tuple[int, int] = (1, 1),
    limit: int | None = None,
    **others: Any,
) -> None:
    """Refuse what no folder can fulfil.

    Raises:
        ValueError: which argument of `read_coco`, and its right form.
    """
    if split not in ("train", "val"):
        raise ValueError(f'split is {split!r}: write "train" or "val" (COCO 2017 has no other)')
    if not 0 <= min_area < 1:
        raise ValueError(f"min_area is {min_area}: write a fraction of the image, such as 0.05")
    if not 0 <= regions[0] <= regions[1] >= 1:
        raise ValueError(f"regions is {regions}: write (least, most), such as (1, 3)")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}: write a number of images, or None for all")


def _item(entry: Entry, choice: Choice, report: CocoReport) -> CocoItem:
    """The image as an item; what is wrong with single annotations goes to the report.

    Raises _LeftOut if the image cannot be used.
    """
    record, licence = entry.record, entry.licence
    for reason, annotation in entry.left_out:
        report.leave_annotation(reason, record.file_name, annotation)
    if entry.problem or (choice.captions and not entry.captions):
        raise _LeftOut(entry.problem or "no caption")
    path = choice.root / f"{choice.split}2017" / record.file_name
    size = (record.height, record.width)
    _check_photo(path, size, choice)
    regions = _regions(entry, choice, report)
    if len(regions) < choice.regions[0]:
        raise _LeftOut(f"too few regions, fewer than {choice.regions[0]}")
    urls = [str(url or "") for url in (record.flickr_url, record.coco_url)]
    return CocoItem(
        path=path,
        split=choice.split,
        image_id=record.id,
        size=size,
        licence=licence.number,
        credit=Credit(record.file_name, licence.name, licence.url, *urls),
        captions=tuple(entry.captions),
        regions=tuple(regions),
        min_area=choice.min_area,
    )


def _check_photo(path: Path, size: tuple[int, int], choice: Choice) -> None:
    try:
        check_photo(path, size, decode=choice.check_images)
    except NotWhole as fault:
        if not (choice.supply and choice.supply(path)):
            raise _LeftOut(str(fault)) from None
    except Unusable as fault:
        raise _LeftOut(str(fault)) from None


def _regions(entry: Entry, choice: Choice, report: CocoReport) -> list[CocoRegion]:
    """The regions to keep, largest first; the report gets the others."""
    pixels = entry.record.height * entry.record.width
    least = max(1, choice.min_area * pixels)

    def leave(reason: str) -> None:
        report.leave_annotation(reason, entry.record.file_name, segment.id)

    big: list[tuple[Segment, dict]] = []
    for area, segment, outline in _outlines(entry, choice, report):
        if area == 0:
            leave("panoptic id absent from the PNG" if entry.panoptic else "mask has no pixel")
        elif area < least:
            leave("smaller than the minimum area")
        elif len(big) == choice.regions[1]:
            leave("more regions than asked for")
        elif (len(big) + 1) * pixels > rle.LARGEST_TOTAL:
            leave(f"more than {rle.LARGEST_TOTAL} pixels in all masks of the image")
        else:
            big.append((segment, outline))
    covered, regions = np.False_, []
    for segment, outline in reversed(big):  # smaller ones lie on top
        whole = masks.decode(outline)
        visible, covered = whole & ~covered, covered | whole
        if visible.sum() < least:
            leave("covered by smaller regions")
        else:
            regions.append(CocoRegion(segment.id, segment.text, rle.encode(visible)))
    return regions[::-1]


def _outlines(entry: Entry, choice: Choice, report: CocoReport) -> list[tuple[int, Segment, dict]]:
    """Each segment with its number of pixels and its RLE, largest first."""
    ids = _panoptic_ids(entry, choice) if entry.panoptic else None
    found = []
    for segment in entry.segments:
        try:
            if ids is not None:
                outline, broken = rle.encode(ids == segment.id), 0
            else:
                outline, broken = _outline(segment, entry, choice.boxes)
        except _LeftOut as reason:
            report.leave_annotation(str(reason), entry.record.file_name, segment.id)
            continue
        if broken:
            report.leave_annotation(masks.BROKEN_PART, entry.record.file_name, segment.id)
        found.append((masks.area(outline), segment, outline))
    return sorted(found, key=lambda each: (-each[0], each[1].id))


def _outline(segment: Segment, entry: Entry, boxes: bool) -> tuple[dict, int]:
    """The segment's RLE, and the number of broken parts that it goes without."""
    try:
        row = parsed(segment.record)
        outline, box = row.get("segmentation"), row.get("bbox")
        if not outline or outline == [[]]:
            if box and not boxes:
                raise _LeftOut(BOX_ALONE)
            outline = masks.rectangle(box)
        return masks.to_rle(outline, entry.record.height, entry.record.width)
    except (ValueError, RecursionError):
        raise _LeftOut("broken polygon or RLE") from None


def _panoptic_ids(entry: Entry, choice: Choice) -> np.ndarray:
    path = choice.root / "annotations" / f"panoptic_{choice.split}2017" / entry.panoptic
    if choice.supply and not path.exists():
        choice.supply(path)
    try:
        ids = masks.panoptic_ids(path)
    except FileNotFoundError:
        raise _LeftOut("panoptic PNG is missing") from None
    except Exception:  # as for images
        raise _LeftOut("panoptic PNG is corrupt") from None
    if ids.shape != (entry.record.height, entry.record.width):
        raise _LeftOut("panoptic PNG has another size than its annotation says")
    return ids
