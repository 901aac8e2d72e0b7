# SPDX-License-Identifier: Apache-2.0
"""COCO's annotation archives: which there are, and single members taken out of them.

Nothing is unpacked by the names in an archive: each place is one of ours, and a member is looked up
for it.
"""

import hashlib
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spatext_lab.datasets.coco.fetch.part import Note, Part

MARGIN = 64 * 2**20  # bytes that a fetch leaves free


@dataclass(frozen=True)
class Archive:
    """An annotation archive of COCO 2017.

    Args:
        name: of the file.
        sha256: of the official one.
        members: annotation files in it, with {} for the split.
    """

    name: str
    sha256: str
    members: tuple[str, ...]


INSTANCES_AND_CAPTIONS = Archive(
    "annotations_trainval2017.zip",
    "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    ("instances_{}2017.json", "captions_{}2017.json"),
)
PANOPTIC = Archive(
    "panoptic_annotations_trainval2017.zip",
    "c05f76d2129b6b561eb70efe16e7006df62f73fb92889132d373b9d90e31a370",
    ("panoptic_{}2017.json",),
)
PNGS = "panoptic_{}2017.zip"  # a zip in the zip


def check_zip(path: Path) -> None:
    """Looks for an archive's table of contents, which stands at its end.

    Raises:
        ValueError: there is none.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError("no zip archive, or one that was cut off")


def digest(path: Path) -> str:
    """A file's SHA-256, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Opened:
    """An archive, to take members out of; their checksums are compared on the way.

    Args:
        path: the zip file.

    Raises:
        ValueError: it is damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        with self._named_faults():
            self._zip = zipfile.ZipFile(path)
        files = [info for info in self._zip.infolist() if not info.is_dir()]
        self._members = {info.filename.rpartition("/")[2]: info for info in files}

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *_: Any) -> None:
        self._zip.close()

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def extract(self, name: str, place: Path) -> None:
        """Writes a member, found by the last part of its name, to a place of ours.

        Raises:
            ValueError: it is damaged or encrypted, or there is none of that name.
            OSError: it cannot be written, or there is no space for it.
        """
        if name not in self:
            raise ValueError(f"{self.path} lacks {name}: is it another archive?")
        member, part = self._members[name], Part(place)
        check_space(place.parent, member.file_size, f"{name}, unpacked")
        part.begin(Note(""))
        with (
            self._named_faults(),
            self._zip.open(member) as inside,
            part.bytes.open("wb") as outside,
        ):
            shutil.copyfileobj(inside, outside, 2**20)
        part.finish()

    @contextmanager
    def _named_faults(self) -> Iterator[None]:
        try:
            yield
        except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError) as bad:
            raise ValueError(f"{self.path} is damaged ({bad}): delete it, and run again") from None


def check_space(folder: Path, needed: float, what: str) -> None:
    """Refuses what the disk has no room for, before it is begun.

    Raises:
        OSError: there is too little free space.
    """
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed + MARGIN > free:
        raise OSError(
            f"{folder} has {size(free)} free, and {size(needed + MARGIN)} are needed "
            f"({what}): make room, or choose another root or a smaller limit"
        )


def size(number: float) -> str:
    """Bytes for people: "253 MB"."""
    for unit in ("bytes", "kB", "MB"):
        if number < 999.5:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"
