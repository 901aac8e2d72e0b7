# SPDX-License-Identifier: Apache-2.0
"""The captions of one photo, by its place in a COCO folder."""

from pathlib import Path

from spatext_lab.datasets.coco.records import CaptionRecord, ImageRecord, decoded, read_file


def captions_of(photo: str | Path) -> list[str]:
    """A photo's captions, on one line each; none for a photo that is of no COCO folder.

    Args:
        photo: ROOT/val2017/NAME, whose captions are in ROOT/annotations/captions_val2017.json.

    Raises:
        ValueError: the captions file is damaged.
    """
    folder = Path(photo).absolute().parent
    path = folder.parent / "annotations" / f"captions_{folder.name}.json"
    if not path.is_file():
        return []
    file, name = read_file(path), Path(photo).name
    images = (record for record, _ in decoded(file["images"], ImageRecord))
    number = next(
        (i.id for i in images if isinstance(i, ImageRecord) and i.file_name == name), None
    )
    found = (record for record, _ in decoded(file["annotations"], CaptionRecord))
    return [
        " ".join(record.caption.split())
        for record in found
        if isinstance(record, CaptionRecord) and record.image_id == number
    ]
