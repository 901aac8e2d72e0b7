# SPDX-License-Identifier: Apache-2.0
"""Which images and segments of a COCO 2017 folder may be selected, from its annotation files."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from msgspec import Raw, Struct

from spatext_lab.datasets.coco import records
from spatext_lab.datasets.coco.licences import Licence, coco_number
from spatext_lab.datasets.coco.names import region_text
from spatext_lab.datasets.coco.records import Broken, converted, decoded, read_file
from spatext_lab.datasets.coco.report import CocoReport

NO_LICENCE = Licence(0, "", "")
Records = dict[str, list[Raw]]


@dataclass(frozen=True)
class Choice:
    """What the caller of `read_coco` asked for; None: any."""

    root: Path
    split: str
    licences: Collection[int] | None
    categories: Collection[str] | None
    min_area: float
    regions: tuple[int, int]
    boxes: bool
    captions: bool
    check_images: bool
    supply: Callable[[Path], bool] | None = None


class Segment(Struct, gc=False):
    """An annotation that may become a region."""

    id: int
    text: str
    record: Raw | None  # with its outline; None: its pixels are in the panoptic PNG


@dataclass(slots=True)
class Entry:
    """An image that may be selected, with all that the files say about it."""

    record: records.ImageRecord
    licence: Licence
    captions: list[str] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    left_out: list[tuple[str, int]] = field(default_factory=list)  # (reason, annotation id)
    panoptic: str | None = None  # path of its panoptic PNG
    problem: str | None = None  # why it cannot be used, whatever its segments


def read_index(choice: Choice, report: CocoReport) -> dict[int, Entry]:
    """The images that may be selected, by id; the report gets the others.

    Raises:
        FileNotFoundError: instances or captions are missing.
        ValueError: a broken annotation file, or a wanted category that no file has.
    """
    instances, captions, panoptic = (
        choice.root / "annotations" / f"{kind}_{choice.split}2017.json"
        for kind in ("instances", "captions", "panoptic")
    )
    index = _Index(choice, report)
    file = read_file(instances)
    stuff = read_file(panoptic) if panoptic.exists() else {}
    names, stuff_names = index.category_names(file), index.category_names(stuff)
    _check_categories(choice.categories, {*names.values(), *stuff_names.values()})
    index.read_images(file)
    if not report.found:
        raise ValueError(
            f"{instances} has no entries in 'images': it is not a COCO annotation file"
        )
    index.read_captions(read_file(captions))
    index.read_panoptic(stuff, stuff_names)
    index.read_instances(file, names)
    return index.entries


class _Index:
    def __init__(self, choice: Choice, report: CocoReport):
        self.entries: dict[int, Entry] = {}
        self._others = {-1}  # ids of the images that were left out
        self._choice, self._report = choice, report

    def category_names(self, file: Records) -> dict[int, str]:
        """Category names by id."""
        return {
            key: row.name for key, row in self._table(file, "categories", records.CategoryRecord)
        }

    def _table(self, file: Records, key: str, kind: type) -> Iterator[tuple[int, Any]]:
        seen = set()
        for row, _ in decoded(file.get(key, ()), kind):
            if isinstance(row, Broken):
                self._report.notes.append(f"broken entry of {key}: {row.fault}")
            elif row.id in seen:
                self._report.notes.append(f"{key} has id {row.id} twice; the first is used")
            else:
                seen.add(row.id)
                yield row.id, row

    def _licences(self, file: Records) -> dict[int, Licence]:
        """The file's licences by its own ids; a file without any is taken to use COCO's."""
        found = {}
        for key, row in self._table(file, "licenses", records.LicenceRecord):
            name, url = str(row.name or ""), str(row.url or "")
            found[key] = Licence(coco_number(name, url), name, url)
            if found[key].number != key:
                known = f"COCO's {found[key].number}" if found[key].number else "none of COCO's"
                self._report.notes.append(f"licence {key} of this file is {name!r:.60}, {known}")
        return found or {n: Licence(n, f"licence {n}", "") for n in range(1, 9)}

    def read_images(self, file: Records) -> None:
        """Make an entry of each image that may be selected."""
        known = self._licences(file)
        for record, _ in decoded(file.get("images", ()), records.ImageRecord):
            self._report.found += 1
            if isinstance(record, Broken):
                reason, name = f"broken image record: {record.fault}", record.shown
            else:
                licence = known.get(record.license) or NO_LICENCE
                reason, name = self._reason_against(record, licence), record.file_name
            if reason is None:
                self.entries[record.id] = Entry(record, licence)
            else:
                self._report.leave_image(reason, name)
                self._others.add(record.id)

    def _reason_against(self, record: records.ImageRecord, licence: Licence) -> str | None:
        if record.id in self.entries or record.id in self._others:
            return "image id used twice"
        if self._choice.licences is not None and licence.number not in self._choice.licences:
            if record.license is None:
                return "no licence in its record"
            shown = repr(licence.name[:40]) if licence.name else record.license
            return f"licence {licence.number or shown} was not asked for"
        return None

    def read_captions(self, file: Records) -> None:
        """Add its captions to each image, on one line each."""
        for entry, record, _ in self._of_known_images(file, records.CaptionRecord, "caption"):
            if isinstance(record, Broken):
                entry.left_out.append((f"broken caption: {record.fault}", record.id))
            else:
                entry.captions.append(" ".join(record.caption.split()))

    def read_panoptic(self, file: Records, names: dict[int, str]) -> None:
        """Add the panoptic segments, for the images that have any."""
        for entry, record, _ in self._of_known_images(
            file, records.PanopticRecord, "panoptic annotation"
        ):
            if isinstance(record, Broken):
                entry.problem = f"broken panoptic record: {record.fault}"
            elif entry.panoptic:
                entry.left_out.append(("second panoptic annotation", -1))
            else:
                entry.panoptic = record.file_name
                seen = {0: "panoptic id 0 is no segment"}
                for info in record.segments_info:
                    segment = converted(info, records.SegmentRecord)
                    if segment.id in seen:
                        entry.left_out.append((seen[segment.id], segment.id))
                    else:
                        self._add(entry, segment, names, None)
                        seen[segment.id] = "segment id used twice"

    def read_instances(self, file: Records, names: dict[int, str]) -> None:
        """Add the instances, for the images without panoptic segments."""
        for entry, record, row in self._of_known_images(file, records.InstanceRecord, "annotation"):
            if not (entry.panoptic or entry.problem):
                self._add(entry, record, names, row)

    def _of_known_images(
        self, file: Records, kind: type, name: str
    ) -> Iterator[tuple[Entry, Any, Raw]]:
        """Annotations with their image's entry; the report gets those of unknown images."""
        for record, row in decoded(file.get("annotations", ()), kind):
            entry = self.entries.get(record.image_id)
            if entry is not None:
                yield entry, record, row
            elif isinstance(record, Broken) and record.image_id < 0:
                self._report.leave_annotation(f"broken {name}: {record.fault}", "?", record.id)
            elif record.image_id not in self._others:
                reason, where = f"{name} of an unknown image", f"image {record.image_id}"
                number = record.id if type(record.id) is int else -1
                self._report.leave_annotation(reason, where, number)

    def _add(self, entry: Entry, record: Any, names: dict[int, str], row: Raw | None) -> None:
        """The annotation becomes a segment of the image, or is left out with the reason."""
        wanted = self._choice.categories
        if isinstance(record, Broken):
            reason = f"broken annotation: {record.fault}"
        elif record.iscrowd:
            reason = "crowd"
        elif (name := names.get(record.category_id)) is None:
            reason = "unknown category"
        elif wanted is not None and name not in wanted:
            reason = "category was not asked for"
        else:
            entry.segments.append(Segment(record.id, record.text or region_text(name), row))
            return
        entry.left_out.append((reason, record.id))


def _check_categories(asked: Collection[str] | None, known: set[str]) -> None:
    for name in asked or ():
        if name not in known:
            near = get_close_matches(name, known) or sorted(known)[:5]
            raise ValueError(
                f"categories has {name!r}, which these annotation files lack; "
                f"they have {', '.join(near)}, ..."
            )
