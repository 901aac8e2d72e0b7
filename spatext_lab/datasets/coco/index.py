# SPDX-License-Identifier: Apache-2.0
"""Which pictures and segments of a COCO 2017 folder may be selected, from its annotation files.

The official instances_train2017.json is 470 MB of text; read at once it becomes gigabytes of Python
objects. Here each record is looked at as it passes, and what stays is small: a picture's name and
size, its captions, and for each annotation an id or the outline as text.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from spatext_lab.datasets.coco.records import (
    is_text,
    number,
    plain_name,
    read_categories,
    read_licences,
    rows,
    whole,
)
from spatext_lab.datasets.coco.report import CocoReport
from spatext_lab.scene.rle import LONGEST_SIDE

TOO_SMALL = "smaller than the minimum area"


@dataclass(frozen=True)
class Wanted:
    """Which pictures and annotations may be selected; None: any."""

    licences: Collection[int] | None
    categories: Collection[str] | None
    min_area: float  # share of the picture


@dataclass(slots=True)
class Segment:
    """One annotation that may become a region."""

    id: int
    text: str
    # `segmentation` as JSON again, a tenth of the lists in size; None: it is in the panoptic PNG
    shape: bytes | None


@dataclass(slots=True)
class Picture:
    """One picture that may be selected, with all that is known of it."""

    id: int
    file_name: str
    height: int
    width: int
    licence: int
    url: str  # where it was published
    captions: list[str] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    left_out: list[tuple[str, int]] = field(default_factory=list)  # (reason, annotation id)
    panoptic: str | None = None  # name of its panoptic PNG
    problem: str | None = None  # why it cannot be used, whatever its segments


class Index:
    """The pictures that may be selected, by id, and the licences: id to (name, address).

    Raises FileNotFoundError or ValueError for an annotation file that is missing or broken, and
    ValueError for a category that neither instances nor panoptic know.
    """

    def __init__(self, folder: Path, split: str, wanted: Wanted, report: CocoReport):
        self.pictures: dict[int, Picture] = {}
        self._others: set[int] = set()  # ids of the pictures that were left out
        self._wanted, self._report = wanted, report
        instances, captions, panoptic = (
            folder / f"{kind}_{split}2017.json" for kind in ("instances", "captions", "panoptic")
        )
        self._things = read_categories(instances)
        self._stuff = read_categories(panoptic) if panoptic.exists() else {}
        _check_categories(wanted.categories, {*self._things.values(), *self._stuff.values()})
        self.licences = read_licences(instances)
        self._read_pictures(instances)
        self._read_captions(captions)
        if panoptic.exists():
            self._read_panoptic(panoptic)
        if not all(picture.panoptic or picture.problem for picture in self.pictures.values()):
            self._read_instances(instances)

    def _read_pictures(self, path: Path) -> None:
        for row in rows(path, "images"):
            self._report.found += 1
            reason, name = self._reason_against_picture(row)
            if reason is None:
                self.pictures[row["id"]] = _picture(row)
            else:
                self._report.leave_picture(reason, name)
                self._others.add(number(row, "id"))
        self._others.discard(-1)
        if not self._report.found:
            raise ValueError(f"{path} has no entries in 'images': it is not a COCO annotation file")

    def _reason_against_picture(self, row: Any) -> tuple[str | None, str]:
        try:
            picture = _picture(row)
        except (AttributeError, KeyError, TypeError, ValueError):
            return "broken image record", f"{row!r:.80}"
        if picture.id in self.pictures or picture.id in self._others:
            return "image id used twice", picture.file_name
        if self._wanted.licences is not None and picture.licence not in self._wanted.licences:
            return f"licence {picture.licence} was not asked for", picture.file_name
        return None, picture.file_name

    def _read_captions(self, path: Path) -> None:
        for row in rows(path, "annotations"):
            picture = self._picture_of(row, "caption")
            if picture is None:
                continue
            if is_text(row.get("caption")):
                picture.captions.append(" ".join(row["caption"].split()))
            else:
                picture.left_out.append(("broken caption", number(row, "id")))

    def _read_panoptic(self, path: Path) -> None:
        for row in rows(path, "annotations"):
            picture = self._picture_of(row, "panoptic annotation")
            if picture is None:
                continue
            try:
                picture.panoptic = plain_name(row["file_name"])
                segments = list(row["segments_info"])
            except (KeyError, TypeError, ValueError):
                picture.problem = "broken panoptic record"
                continue
            for segment in segments:
                self._add(picture, segment, self._stuff)

    def _read_instances(self, path: Path) -> None:
        for row in rows(path, "annotations"):
            picture = self._picture_of(row, "annotation")
            if picture is not None and not (picture.panoptic or picture.problem):
                self._add(picture, row, self._things)

    def _picture_of(self, row: Any, kind: str) -> Picture | None:
        owner = number(row, "image_id")
        if owner not in self.pictures and owner not in self._others:
            reason = f"{kind} of an unknown picture"
            self._report.leave_annotation(reason, f"picture {owner}", number(row, "id"))
        return self.pictures.get(owner)

    def _add(self, picture: Picture, row: Any, names: dict[int, str]) -> None:
        """The annotation becomes a segment of the picture, or is left out for the reason found."""
        try:
            name, text = names.get(row["category_id"]), row.get("text")
            area = row["area"] / (picture.height * picture.width)
            found = whole(row["id"])
            if not (text is None or is_text(text)):
                raise ValueError("text is not a text")
        except (AttributeError, KeyError, TypeError, ValueError):
            picture.left_out.append(("broken annotation", number(row, "id")))
            return
        reason = self._reason_against_segment(name, row.get("iscrowd"), area)
        if reason is None:
            shape = None if picture.panoptic else json.dumps(row.get("segmentation")).encode()
            picture.segments.append(Segment(found, text or region_text(name), shape))
        else:
            picture.left_out.append((reason, found))

    def _reason_against_segment(self, name: str | None, crowd: Any, area: float) -> str | None:
        if crowd:
            return "crowd"
        if name is None:
            return "unknown category"
        if self._wanted.categories is not None and name not in self._wanted.categories:
            return "category was not asked for"
        return TOO_SMALL if area < self._wanted.min_area else None


def _check_categories(asked: Collection[str] | None, known: set[str]) -> None:
    for name in asked or ():
        if name not in known:
            near = get_close_matches(name, known) or sorted(known)[:5]
            raise ValueError(
                f"categories has {name!r}, which these annotation files lack; "
                f"they have {', '.join(near)}, ..."
            )


def _picture(row: dict) -> Picture:
    picture = Picture(
        id=whole(row["id"]),
        file_name=plain_name(row["file_name"]),
        height=whole(row["height"]),
        width=whole(row["width"]),
        licence=whole(row.get("license", 0)),
        url=str(row.get("flickr_url") or row.get("coco_url") or ""),
    )
    if min(picture.id, picture.height - 1, picture.width - 1) < 0:
        raise ValueError("id, height and width count from 0, 1 and 1")
    if max(picture.height, picture.width) > LONGEST_SIDE:
        raise ValueError("the sides are in pixels")
    return picture


def region_text(category: str) -> str:
    """The text of a region of this category: "a dog".

    Panoptic names are made for machines ("wall-other-merged", "floor-wood"); they are turned into
    what a caption would say ("a wall", "a wood floor").
    """
    words = [word for word in category.split("-") if word not in ("other", "merged", "stuff")]
    if words and words[0] in ("wall", "floor"):
        words = words[1:] + words[:1]
    return "a " + (" ".join(words) or category)
