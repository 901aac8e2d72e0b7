# SPDX-License-Identifier: Apache-2.0
"""Files that are never half-written: written under another name, then renamed."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a path to write a file or a folder at, which takes the place of `path` afterwards.

    Whoever reads finds the old one or the new one, whole. If the block raises, the old one stays
    and what was written goes; what a killed process left behind goes with the next call. The new
    files have the rights that the umask gives.

        with replacing("scores.json") as beside:
            beside.write_text("{}")

    Raises:
        ValueError: `path` is neither a file nor a folder (a device, a socket).
        OSError: it cannot be written there.
    """
    path = Path(os.path.realpath(path))  # a link stays a link
    if path.is_symlink():  # only one of a circle of links is left as it is
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(f"{path} is neither a file nor a folder; pass another path")
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    prefix = f".{path.name}.{os.getpid()}-"
    room = Path(tempfile.mkdtemp(suffix=".part", prefix=prefix, dir=path.parent))
    try:
        yield (beside := room / path.name)
        _grant(beside)
        if path.is_dir():
            path.rename(room / "old")
        beside.replace(path)
    finally:
        if (room / "old").exists() and not path.exists():
            (room / "old").rename(path)
        shutil.rmtree(room, ignore_errors=True)


def write(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file (text as UTF-8, lines ended by \\n) as `replacing` does.

    Raises:
        ValueError: `path` is a folder; and what `replacing` raises.
    """
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder; pass the path of a file")
    with replacing(path) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)


def _sweep(path: Path) -> None:
    """Removes what killed processes left beside `path`, and puts an old folder back."""
    for room in path.parent.glob(f".{glob.escape(path.name)}.*-*.part"):
        if _is_left(room):
            if (room / "old").exists() and not path.exists():
                (room / "old").rename(path)
            shutil.rmtree(room, ignore_errors=True)


def _is_left(room: Path) -> bool:
    """Whether the process that made this folder has ended; a number may have been given anew."""
    import psutil

    number = room.name.rpartition(".part")[0].rpartition(".")[2].partition("-")[0]
    try:
        return psutil.Process(int(number)).create_time() > room.stat().st_mtime + 1
    except (psutil.NoSuchProcess, FileNotFoundError):
        return True
    except ValueError:  # not one of ours
        return False


def _grant(place: Path) -> None:
    """Gives new files the usual rights; safetensors, for one, keeps its files to their owner."""
    probe = place.with_name("probe")
    probe.touch()
    rights = probe.stat().st_mode
    for file in (place, *place.rglob("*")):
        if file.is_file():
            file.chmod(rights)
