# SPDX-License-Identifier: Apache-2.0
"""What was read from a COCO folder and what was left out, by reason and by name."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

NAMES_SHOWN = 3


@dataclass(frozen=True)
class Credit:
    """Whose image it is, as its licence asks us to say."""

    file_name: str
    licence: str  # the licence's name, from the annotation file
    licence_url: str
    flickr_url: str  # where the image was published, "" if the file does not say
    coco_url: str  # where COCO offers a copy, likewise

    @property
    def source_url(self) -> str:
        """Where the image comes from, "" if the file does not say."""
        return self.flickr_url or self.coco_url


@dataclass
class CocoReport:
    """Counts and names, filled while reading.

    Every image of the annotation file is kept or is listed in `images`. Every annotation of an
    image that was looked at is kept or is listed in `annotations`; one that lost a part is both.
    Those of an image that was left out as a whole go with their image.
    """

    where: str  # such as "val2017 in /data/coco"
    found: int = 0  # images in the annotation file
    regions: int = 0  # regions kept, all images together
    images: dict[str, list[str]] = field(default_factory=dict)  # reason: file names
    # reason: (file name, annotation id); the id is -1 where the annotation has none
    annotations: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    credits: list[Credit] = field(default_factory=list)  # of the images kept
    notes: list[str] = field(default_factory=list)  # what is unusual about the files

    def leave_image(self, reason: str, name: str) -> None:
        """Note an image that was left out."""
        self.images.setdefault(reason, []).append(name)

    def leave_annotation(self, reason: str, name: str, annotation: int) -> None:
        """Note an annotation that was left out; `name` is its image's file name."""
        self.annotations.setdefault(reason, []).append((name, annotation))

    @property
    def kept(self) -> int:
        """Number of images kept."""
        return len(self.credits)

    def counts(self) -> Counter[str]:
        """How many images, or how many annotations, were left out for each reason."""
        groups = {**self.images, **self.annotations}
        return Counter({reason: len(names) for reason, names in groups.items()})

    def text(self) -> str:
        """The report as text: all counts, and the first names for each reason."""
        named = {
            reason: [f"{i} in {name}" for name, i in found[:NAMES_SHOWN]]
            for reason, found in self.annotations.items()
        }
        first = f"{self.where}: {self.found} images, kept {self.kept} with {self.regions} regions"
        return printable(
            [
                first,
                *self.notes,
                *_group("images left out", self.counts(), self.images),
                *_group("annotations left out", self.counts(), named),
            ]
        )

    def credits_text(self) -> str:
        """One line for each image kept: name, licence and its address, where it comes from."""
        return printable(
            "  ".join(filter(None, (c.file_name, c.licence, c.licence_url, c.source_url)))
            for c in self.credits
        )


def printable(lines: Iterable[str]) -> str:
    """The lines, with the control characters of foreign names escaped: a terminal obeys them."""
    return "\n".join(
        "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
        for line in lines
    )


def _group(title: str, counts: Counter[str], named: dict[str, list[str]]) -> list[str]:
    lines = [f"{title}:"] if named else []
    for reason in sorted(named, key=lambda reason: -counts[reason]):
        shown = ", ".join(named[reason][:NAMES_SHOWN])
        more = ", ..." if counts[reason] > NAMES_SHOWN else ""
        lines.append(f"  {counts[reason]:>7}  {reason}: {shown}{more}")
    return lines
