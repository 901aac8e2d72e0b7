# SPDX-License-Identifier: Apache-2.0
"""COCO's annotation files as a stream of records, and what makes a record's fields sound."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

LAYOUT = (
    "the official layout is ROOT/annotations/instances_{0}2017.json, captions_{0}2017.json, "
    "panoptic_{0}2017.json with panoptic_{0}2017/*.png (optional), and ROOT/{0}2017/*.jpg"
)


def rows(path: Path, key: str) -> Iterator[Any]:
    """The entries of the array `key` of a JSON object, one by one, in memory of one entry.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or cut off in the middle.
    """
    import ijson

    try:
        with path.open("rb") as file:
            yield from ijson.items(file, f"{key}.item", use_float=True)
    except FileNotFoundError:
        split = "train" if "train2017" in path.name else "val"
        raise FileNotFoundError(f"{path} is missing: {LAYOUT.format(split)}") from None
    except (ijson.JSONError, OverflowError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(
            f"{path} is not whole JSON ({reason}): unpack or download it again"
        ) from None


def read_licences(path: Path) -> dict[int, tuple[str, str]]:
    """Licence id: (name, address)."""
    found = (row for row in rows(path, "licenses") if number(row, "id") >= 0)
    return {row["id"]: (str(row.get("name", "")), str(row.get("url", ""))) for row in found}


def read_categories(path: Path) -> dict[int, str]:
    """Category id: name. An annotation whose category is broken will find none."""
    found = (row for row in rows(path, "categories") if number(row, "id") >= 0)
    return {row["id"]: row["name"] for row in found if is_text(row.get("name"))}


def thing_names(root: Path, split: str) -> set[str]:
    """The categories that have instances: things, not stuff."""
    return set(read_categories(root / "annotations" / f"instances_{split}2017.json").values())


def is_text(value: Any) -> bool:
    """A string that says something and holds no half characters (which no tokenizer can take)."""
    if not isinstance(value, str) or not value.strip():
        return False
    return value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)


def whole(value: Any) -> int:
    """The value if it is a whole number, else TypeError."""
    if type(value) is not int:
        raise TypeError(f"{value!r} is not a whole number")
    return value


def plain_name(value: Any) -> str:
    """The value if it is a bare file name (a record must not lead elsewhere), else ValueError."""
    if not is_text(value) or "/" in value or "\\" in value or value == ".." or "\0" in value:
        raise ValueError(f"{value!r} is not a file name")
    return value


def number(row: Any, key: str) -> int:
    """A whole number of a record that may be broken, -1 if there is none."""
    value = row.get(key) if isinstance(row, dict) else None
    return value if type(value) is int else -1
