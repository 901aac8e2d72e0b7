# SPDX-License-Identifier: Apache-2.0
"""The file format of a scene: JSON with a line for each region, which a person can read and edit.

    {"format": "spatext-scene", "version": 1,
     "caption": "a meadow at noon",
     "regions": [
      {"text": "a red ball", "box": [0.1, 0.2, 0.4, 0.5]}]}

A region has a box or a mask; a mask is stored as COCO's compressed run lengths (`rle`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from spatext_lab.scene import rle
from spatext_lab.scene.places import checked_text

ENTRY_FORM = '{"text": "a red ball", "box": [0.1, 0.2, 0.4, 0.5]}'
FILE_FORM = (
    'write {"format": "spatext-scene", "version": 1, "caption": "...", '
    f'"regions": [{ENTRY_FORM}]}}'
)


def write(caption: str, regions: Iterable[Any]) -> str:
    """The text of a file; `read` returns the same caption and regions.

    Args:
        caption: of the scene.
        regions: of class `Region`.
    """
    entries = [json.dumps(_entry(region), ensure_ascii=False) for region in regions]
    lines = [
        '{"format": "spatext-scene", "version": 1,',
        f' "caption": {json.dumps(caption, ensure_ascii=False)},',
        ' "regions": [' + ",".join("\n  " + entry for entry in entries) + "]}\n",
    ]
    return "\n".join(lines)


def _entry(region: Any) -> dict[str, Any]:
    place = {"mask": rle.encode(region.mask)} if region.is_mask else {"box": region.box}
    return {"text": region.text} | place


def read(text: str, region: Callable[..., Any]) -> tuple[str, list[Any]]:
    """The caption and the regions in the text of a file.

    Args:
        text: of the file.
        region: makes a region, called as region(text, box=...) or region(text, mask=...).

    Raises:
        ValueError: naming the field (such as `regions[1].box`), its value and the right form.
    """
    try:
        file = json.loads(text)
    except (ValueError, RecursionError) as error:
        begin = f"{text[:40]!r}"
        raise ValueError(f"not JSON ({error}), it begins {begin}: {FILE_FORM}") from None
    _check_fields(file, "the scene", ("format", "version", "caption", "regions"), FILE_FORM)
    for field, right in (("format", "spatext-scene"), ("version", 1)):
        if file[field] != right:
            raise ValueError(f"{field} is {file[field]!r}, not {right!r}: {FILE_FORM}")
    caption, entries = checked_text(file["caption"], "caption"), file["regions"]
    if not isinstance(entries, list):
        raise ValueError(f"regions is {entries!r}, not a list: write [{ENTRY_FORM}]")
    rle.check_total(entry.get("mask") for entry in entries if isinstance(entry, dict))
    return caption, [_read_region(e, f"regions[{i}]", region) for i, e in enumerate(entries)]


def _read_region(entry: Any, where: str, region: Callable[..., Any]) -> Any:
    kind = "mask" if isinstance(entry, dict) and "mask" in entry and "box" not in entry else "box"
    _check_fields(entry, where, ("text", kind), f"write {ENTRY_FORM}, with one of box and mask")
    text, place = checked_text(entry["text"], f"{where}.text"), entry[kind]
    try:
        if kind == "mask":
            return region(text, mask=rle.decode(place))
        # A null is a wrong box, not one that was left out.
        return region(text, box=() if place is None else place)
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from None


def _check_fields(value: Any, where: str, names: tuple[str, ...], form: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {value!r:.80}, not a JSON object: {form}")
    for name in names:
        if name not in value:
            raise ValueError(f"{where} has no field {name!r}, only {sorted(value)}: {form}")
    for name in value:
        if name not in names:
            raise ValueError(f"{where} has an unknown field {name!r} = {value[name]!r:.80}: {form}")
