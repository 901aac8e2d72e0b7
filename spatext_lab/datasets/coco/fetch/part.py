# SPDX-License-Identifier: Apache-2.0
"""A file that is not whole yet, beside the place where it will stand.

NAME.part holds the bytes so far, NAME.part.json what they are the beginning of. The bytes go before
a new note is written and come after it, so a process may be killed anywhere: bytes with a note are
always that note's.
"""

from pathlib import Path

import msgspec
from msgspec import Struct


class Note(Struct, frozen=True):
    """What a part is the beginning of."""

    url: str
    etag: str = ""
    modified: str = ""  # the Last-Modified header
    length: int | None = None  # of the whole file in bytes, None where the server did not say

    @property
    def validator(self) -> str:
        """What If-Range can ask for, "" where the server named no version of the file."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


class Part:
    """The part of one file.

    Args:
        path: where the whole file will stand; folders are made with the first byte.
    """

    def __init__(self, path: Path):
        self.path = path
        self.bytes = path.with_name(f"{path.name}.part")
        self._note = path.with_name(f"{path.name}.part.json")

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self.bytes.stat().st_size if self.bytes.exists() else 0

    def note(self, url: str) -> Note | None:
        """What the bytes are the beginning of; None if there are none, or not of this address."""
        try:
            note = msgspec.json.decode(self._note.read_bytes(), type=Note)
        except (FileNotFoundError, ValueError):
            return None
        return note if note.url == url and self.size else None

    def begin(self, note: Note) -> None:
        """Starts anew, without a byte."""
        self.bytes.unlink(missing_ok=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._note.write_bytes(msgspec.json.encode(note))

    def finish(self) -> None:
        """Gives the file its name, at once and whole."""
        self.bytes.replace(self.path)
        self._note.unlink(missing_ok=True)

    def discard(self) -> None:
        """Removes the bytes and the note."""
        self.bytes.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that is never seen half-written."""
    part = Part(path)
    part.begin(Note(""))
    part.bytes.write_bytes(content)
    part.finish()


def left_behind(folder: Path) -> list[Part]:
    """The parts in a folder."""
    notes = sorted(folder.glob("*.part.json")) if folder.is_dir() else []
    return [Part(note.with_name(note.name.removesuffix(".part.json"))) for note in notes]
