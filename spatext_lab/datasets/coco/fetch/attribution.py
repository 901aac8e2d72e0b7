# SPDX-License-Identifier: Apache-2.0
"""ATTRIBUTION.csv: whose photo each one is, and under which licence, as licences ask."""

import csv
import io
from collections.abc import Collection, Iterable
from pathlib import Path

from spatext_lab.datasets.coco.item import CocoItem

NAME = "ATTRIBUTION.csv"
COLUMNS = ("file_name", "flickr_url", "licence", "licence_url", "coco_url")


def attribution(root: Path, items: Iterable[CocoItem], coming: Collection[Path] = ()) -> bytes:
    """The content of ROOT/ATTRIBUTION.csv with these photos, and those of earlier fetches.

    A row's `file_name` is the photo's path below ROOT. A photo that is not there has no row, unless
    it is coming.

    Args:
        root: the folder of the photos.
        items: whose photos to name.
        coming: paths of photos that will soon be there.

    Raises:
        ValueError: the file has other columns, so that it is not ours to write.
    """
    rows = {row["file_name"]: row for row in _rows(root / NAME)}
    rows |= {row["file_name"]: row for row in map(_row, items)}
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for name, row in sorted(rows.items()):
        if root / name in coming or (root / name).is_file():
            writer.writerow(row)
    return text.getvalue().encode(errors="backslashreplace")


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    text = path.read_bytes().decode("utf-8-sig", errors="replace")
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ValueError(
            f"{path} has other columns than {', '.join(COLUMNS)}: move it away, "
            "so that the photos' licences can be written there"
        )
    return list(reader)


def _row(item: CocoItem) -> dict[str, str]:
    credit = item.credit
    name = f"{item.split}2017/{credit.file_name}"
    values = (name, credit.flickr_url, credit.licence, credit.licence_url, credit.coco_url)
    return dict(zip(COLUMNS, values, strict=True))
