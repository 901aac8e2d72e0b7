# SPDX-License-Identifier: Apache-2.0
"""The folder that a fetch writes to: one process at a time, and nothing is left lying about."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from spatext_lab.datasets.coco.fetch.part import left_behind, write_whole


class Room:
    """A folder, locked with the first thing that is written; to be used with `with`.

    Args:
        root: the folder, made if need be.
    """

    def __init__(self, root: Path):
        self.root = root
        self._lock: FileLock | None = None

    def __enter__(self) -> "Room":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, OSError) and error.errno and not error.filename:
            error.filename = str(self.root)  # a full disk does not say which
        if self._lock:
            self._lock.release()

    def lock(self) -> None:
        """Makes the folder, if need be, and keeps others from writing to it.

        Raises:
            PermissionError: it may not be written to.
            OSError: another process writes to it.
        """
        if self._lock:
            return
        if self.root.exists() and not self.root.is_dir():
            raise NotADirectoryError(f"root {self.root} is a file: pass the path of a folder")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if not os.access(self.root, os.W_OK | os.X_OK):
                raise PermissionError
            lock = FileLock(self.root / ".fetch.lock")
            lock.acquire(timeout=0)
        except PermissionError:
            raise PermissionError(
                f"no permission to write to {self.root}: choose another root, or change its rights"
            ) from None
        except Timeout:
            raise OSError(
                f"another fetch is at work in {self.root}: wait for it, or choose another root"
            ) from None
        self._lock = lock

    def write(self, path: Path, content: bytes) -> None:
        """Writes a file, unless it has this content already."""
        if not path.exists() or path.read_bytes() != content:
            self.lock()
            write_whole(path, content)

    def sweep(self, folders: Collection[Path], keep: Collection[Path]) -> None:
        """Removes the parts of files that nobody is waiting for any more."""
        for part in (part for folder in folders for part in left_behind(folder)):
            if part.path not in keep:
                self.lock()
                part.discard()
