# SPDX-License-Identifier: Apache-2.0
"""What a COCO folder holds, as one number that changes when any of it does."""

import hashlib
import os
from collections.abc import Iterator
from os import PathLike
from pathlib import Path


def fingerprint(root: str | PathLike, split: str) -> str:
    """SHA-256 of all that reading a split depends on, in a second or two for the whole of COCO.

    Annotation files are known by their content; photos and panoptic PNGs by their path, size and
    time of change, as make and rsync know files: a copy that keeps no times is another folder.

    Args:
        root:  a folder in COCO layout.
        split: "train" or "val".

    Raises:
        FileNotFoundError: there is no such folder.
    """
    root, whole = Path(root), hashlib.sha256()
    if not root.is_dir():
        raise FileNotFoundError(f"root {root} is not a folder; pass one in COCO layout")
    for path in sorted((root / "annotations").glob(f"*_{split}2017.json")):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{path.name} {content}\n".encode())
    for place in (root / f"{split}2017", root / "annotations" / f"panoptic_{split}2017"):
        for line in sorted(_files(place, root)):
            whole.update(f"{line}\n".encode())
    return whole.hexdigest()


def _files(place: Path, root: Path) -> Iterator[str]:
    """Path, size and time of change of every file below a folder."""
    for folder, _, names in os.walk(place):
        where = Path(folder).relative_to(root).as_posix()
        for name in names:
            try:
                facts = os.stat(os.path.join(folder, name))
            except FileNotFoundError:  # a link that leads nowhere; the photo counts as missing
                continue
            yield f"{where}/{name!r} {facts.st_size} {facts.st_mtime_ns}"
