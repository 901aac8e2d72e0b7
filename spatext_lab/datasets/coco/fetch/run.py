# SPDX-License-Identifier: Apache-2.0
"""`spatext-lab data fetch`: the annotations of COCO 2017, and then only the photos of a subset.

What is there already is not asked for again: a second run, and one in a folder that was unpacked by
hand, makes no request.
"""

import re
import sys
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Unpack

from spatext_lab.datasets.coco.fetch.annotations import Annotations
from spatext_lab.datasets.coco.fetch.download import Downloader
from spatext_lab.datasets.coco.fetch.photos import Photos
from spatext_lab.datasets.coco.fetch.report import FetchReport
from spatext_lab.datasets.coco.fetch.room import Room
from spatext_lab.datasets.coco.fetch.waiting import Patience
from spatext_lab.datasets.coco.read import SubsetChoice, check_choice
from spatext_lab.figures.progress import Progress


def fetch_coco(
    root: str | PathLike,
    split: str,
    *,
    panoptic: bool = False,
    mirror: str | None = None,
    patience: Patience | None = None,
    **choice: Unpack[SubsetChoice],
) -> FetchReport:
    """Fetch a subset of COCO 2017: its annotations, and then only the photos that are wanted.

    The subset is the one that `read_coco` would choose from all photos with the same arguments, and
    afterwards chooses from ROOT. ROOT/ATTRIBUTION.csv names the photos' licences. If the work is
    interrupted, wherever that is, the same call goes on.

    Args:
        root: the folder that gets annotations/ and the photos; made if need be.
        split: "train" or "val".
        panoptic: regions from the panoptic annotations, which know stuff (sky, grass) as well as
            things; another 861 MB.
        mirror: address of a copy, such as https://mirror.example.org/coco, where annotations/,
            train2017/ and val2017/ are; COCO's own if not given.
        patience: how often failures are tried again, and how long that waits.
        choice: which photos, as `read_coco` takes it; with its defaults.

    Returns:
        The subset, and which of its photos could not be had.

    Raises:
        TransferError: the annotations cannot be had.
        ValueError: a wrong argument, a damaged archive, or what `read_coco` raises.
        OSError: ROOT cannot be written to, has no space left, or another fetch is at work in it.
    """
    root = Path(root)
    check_choice(split, **choice)
    mirror = None if mirror is None else _checked(mirror)
    tell = partial(Progress.write, file=sys.stderr)  # above the bar
    with Room(root) as room, Downloader(patience or Patience(), tell) as downloader:
        with Annotations(room, downloader, split, mirror, panoptic) as annotations:
            annotations.provide()
            photos = Photos(room, downloader, annotations, mirror)
            report = photos.fetch(split, choice)
        report.notes += annotations.notes
        folders = (root, root / f"{split}2017", *annotations.folders)
        room.sweep(folders, keep=photos.failed)
    return report


def _checked(mirror: str) -> str:
    """The address without a slash at its end."""
    whole = re.fullmatch(r"https?://[^/?#\s]+(/[^?#\s]*)?", mirror, re.IGNORECASE)
    if not whole:
        raise ValueError(
            f"mirror is {mirror!r}: write the http or https address of a folder, "
            "such as https://mirror.example.org/coco"
        )
    return mirror.rstrip("/")
