# SPDX-License-Identifier: Apache-2.0
"""The manifest of a stored cache: what it was made from, and its shards' sizes and checksums.

Shards are written one by one, whole, and then noted, so that a build that was killed goes on after
the last one noted. A shard that is not as it was noted is made again.
"""

import hashlib
import json
import shutil
from math import ceil
from pathlib import Path
from typing import Any

from spatext_lab.figures.progress import Progress
from spatext_lab.scene import files
from spatext_lab.training.cache.encode import Encoded
from spatext_lab.training.cache.shards import write

NAME = "manifest.json"
PHOTOS = 256  # of a shard: all that a kill can lose; 11 MB where latents have 4 x 64 x 64 numbers
Manifest = dict[str, Any]


def new(made: dict[str, Any], names: list[str]) -> Manifest:
    """The manifest of a cache without a shard yet.

    Args:
        made: all that the cache depends on, JSON values.
        names: of its photos, in their order.
    """
    known = hashlib.sha256("\n".join(names).encode()).hexdigest()
    return {"made": made, "photos": len(names), "names": known, "shards": []}


def read(place: Path, made: dict[str, Any]) -> Manifest | None:
    """The manifest in a folder; None where it has none, or that of another cache."""
    try:
        found = json.loads((place / NAME).read_text(encoding="utf-8"))
        return found if found["made"] == made else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def count(manifest: Manifest) -> int:
    """The number of shards of a whole cache."""
    return ceil(manifest["photos"] / PHOTOS)


def is_whole(place: Path, manifest: Manifest | None) -> bool:
    """Whether all shards are in the folder as they were written; reads every file once."""
    if manifest is None or len(manifest["shards"]) != count(manifest):
        return False
    bar = Progress(manifest["shards"], desc="checking the cache", unit="shard")
    return not any(damage(place, shard) for shard in bar)


def damage(place: Path, shard: dict[str, Any]) -> str:
    """What is wrong with a shard, in words; "" for one that is as it was written."""
    path = place / shard["file"]
    if not path.is_file():
        return "is missing"
    if (size := path.stat().st_size) != shard["bytes"]:
        return f"has {size} bytes, not {shard['bytes']}"
    return "" if _sha256(path) == shard["sha256"] else "has another checksum than its manifest says"


def add(place: Path, manifest: Manifest, number: int, rows: Encoded) -> None:
    """Writes a shard, then notes it in the manifest.

    Raises:
        OSError: the shard cannot be written, or the disk is too small for those that follow.
    """
    path = place / f"shard-{number:05d}.safetensors"
    write(path, rows)
    facts = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    manifest["shards"][number : number + 1] = [
        {"file": path.name, "examples": len(rows.lists["captions"])} | facts
    ]
    files.write(place / NAME, json.dumps(manifest, indent=1) + "\n")
    _check_room(place, manifest)


def size(manifest: Manifest) -> int:
    """The bytes of all shards that are there."""
    return sum(shard["bytes"] for shard in manifest["shards"])


def shown(size: float) -> str:
    """A number of bytes for people."""
    unit, name = next(((u, n) for u, n in ((1e9, "GB"), (1e6, "MB")) if size >= u), (1e3, "kB"))
    return f"{size / unit:.1f} {name}"


def left(place: Path, manifest: Manifest) -> list[Path]:
    """What killed builds left in a folder: shards that were not noted, and half-written ones."""
    known = {shard["file"] for shard in manifest["shards"]}
    shards = (path for path in place.glob("shard-*.safetensors") if path.name not in known)
    return [*shards, *place.glob(".*.part")]


def tidy(place: Path, manifest: Manifest) -> None:
    """Removes what killed builds left in a folder that this process holds."""
    for path in left(place, manifest):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _check_room(place: Path, manifest: Manifest) -> None:
    """Raises OSError, now and not in an hour, if the shards to come will not fit on the disk."""
    known = len(manifest["shards"])
    need = size(manifest) / known * (count(manifest) - known)
    free = shutil.disk_usage(place).free
    if need > free:
        raise OSError(
            f"{place} needs {shown(need)} more and the disk has {shown(free)}: free some, or pass "
            "--cache DIR on another disk; the shards that are there are kept"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
