# SPDX-License-Identifier: Apache-2.0
"""COCO's annotation files: each record decoded by itself, over a memory map of the file.

The official instances_train2017.json is 470 MB of text; read at once it becomes gigabytes of Python
objects. Here a file becomes the positions of its records in the map, and of a record only the
fields below are decoded; outlines are looked at again when their image has been chosen.
"""

import json
import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct

from spatext_lab.scene.rle import LONGEST_SIDE

LAYOUT = (
    "the official layout is ROOT/annotations/instances_{0}2017.json, captions_{0}2017.json, "
    "panoptic_{0}2017.json with panoptic_{0}2017/*.png (optional), and ROOT/{0}2017/*.jpg"
)
CAPTIONS = (
    "; a scene needs its image's caption: write at least "
    '{"annotations": [{"image_id": 1, "id": 1, "caption": "a dog on the grass"}, ...]}'
)

# Not blank, and no half of a surrogate pair, which no tokenizer can take.
Text = Annotated[str, Meta(pattern=r"\A\s*[^\s\ud800-\udfff][^\ud800-\udfff]*\Z")]
Side = Annotated[int, Meta(ge=1, le=LONGEST_SIDE)]


class _FileRecord(Struct, kw_only=True):
    """A record that names a file; one outside its folder makes it broken."""

    file_name: Text

    def __post_init__(self):
        path = PureWindowsPath(self.file_name)  # reads both kinds of slashes
        if not path.parts or path.anchor or ".." in path.parts or "\0" in self.file_name:
            raise ValueError("file_name leads out of its folder")
        self.file_name = path.as_posix()


class ImageRecord(_FileRecord, kw_only=True):
    """An entry of `images`; id, file_name, height and width are in every file."""

    id: Annotated[int, Meta(ge=0)]
    height: Side
    width: Side
    license: int | None = None
    flickr_url: Any = None
    coco_url: Any = None


class CaptionRecord(Struct):
    """An annotation of the captions file."""

    image_id: int
    caption: Text
    id: Any = -1


class SegmentRecord(Struct, kw_only=True):
    """A segment of a panoptic annotation."""

    id: int
    category_id: int
    iscrowd: bool | int | None = None
    text: Text | None = None  # written by `write_coco` alone


class InstanceRecord(SegmentRecord, kw_only=True):
    """An annotation of the instances file, without its outline."""

    image_id: int


class PanopticRecord(_FileRecord, kw_only=True):
    """The panoptic annotation of one image."""

    image_id: int
    segments_info: list[Any]  # each to be `converted` to a SegmentRecord
    id: Any = -1


class CategoryRecord(Struct):
    """An entry of `categories`."""

    id: int
    name: Text


class LicenceRecord(Struct):
    """An entry of `licenses`."""

    id: int
    name: Any = None
    url: Any = None


class Broken(Struct):
    """A record that cannot be decoded, and as much of it as can be named."""

    fault: str  # with the field's name
    shown: str  # the beginning of the record
    id: int = -1
    image_id: int = -1


def read_file(path: Path) -> dict[str, list[Raw]]:
    """The records of each array in an annotation file, by the array's name, not yet decoded.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, truncated, or not an object of arrays.
    """
    try:
        with path.open("rb") as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError:
        split = "train" if "train2017" in path.name else "val"
        needs = CAPTIONS if path.name.startswith("captions") else ""
        raise FileNotFoundError(f"{path} is missing: {LAYOUT.format(split)}{needs}") from None
    except ValueError:  # what mmap says of an empty file
        raise ValueError(f"{path} is not whole JSON (it is empty): download it again") from None
    try:
        return _arrays(content[3:] if content[:3] == b"\xef\xbb\xbf" else content)
    except msgspec.ValidationError as error:
        raise ValueError(f"{path} is not a COCO annotation file: {fault_of(error)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:  # Python's own parser takes what JSON forbids (NaN, "\\ud800", UTF-16), at its price
        whole = json.loads(bytes(content), parse_constant=lambda _: None)
        text = json.dumps(whole, ensure_ascii=False).encode(errors="surrogatepass")
        return _arrays(text)
    except (ValueError, RecursionError) as error:
        reason = fault_of(error)
        raise ValueError(
            f"{path} is not whole JSON ({reason}): unpack or download it again"
        ) from None


def _arrays(content: Any) -> dict[str, list[Raw]]:
    top, kind = msgspec.json.decode(content, type=dict[str, Raw]), list[Raw] | None
    wanted = ("images", "annotations", "categories", "licenses")
    return {key: msgspec.json.decode(top.get(key, b"[]"), type=kind) or [] for key in wanted}


def decoded(rows: Iterable[Raw], kind: type[Struct]) -> Iterator[tuple[Any, Raw]]:
    """Each row as a record of this kind, or as `Broken`, and the row itself."""
    decode = msgspec.json.Decoder(kind).decode
    for row in rows:
        try:
            yield decode(row), row
        except (ValueError, RecursionError):
            yield _decoded_leniently(row, kind), row


def _decoded_leniently(row: Raw, kind: type[Struct]) -> Any:
    try:
        return converted(parsed(row), kind)
    except (ValueError, RecursionError) as error:
        return Broken(fault_of(error), repr(bytes(row)[:80]))


def parsed(row: Raw) -> Any:
    """A row with all its fields; bytes that are not UTF-8 become surrogates, which no `Text` holds.

    Raises:
        ValueError: numbers without end.
        RecursionError: nesting without end.
    """
    return json.loads(bytes(row).decode(errors="surrogateescape"))


def converted(value: Any, kind: type[Struct]) -> Any:
    """A parsed record as one of this kind, or as `Broken`; whole numbers may be written as 1.0."""
    fields = value if isinstance(value, dict) else {}
    fields = {
        key: int(each) if isinstance(each, float) and each.is_integer() else each
        for key, each in fields.items()
    }
    try:
        return msgspec.convert(fields if isinstance(value, dict) else value, kind)
    except ValueError as error:
        ids = {key: fields.get(key, -1) for key in ("id", "image_id")}
        ids = {key: each if type(each) is int else -1 for key, each in ids.items()}
        return Broken(fault_of(error), f"{value!r:.80}", **ids)


def fault_of(error: Exception) -> str:
    """What is wrong, with the field's name first: "height: expected int, got str"."""
    what, _, field = str(error).replace("`", "").partition(" - at $.")
    if "matching regex" in what:
        what = "expected a text, got a blank one or broken Unicode"
    what = " ".join(what.split())[:120]
    what = what[:1].lower() + what[1:]
    return f"{field}: {what}" if field else what
