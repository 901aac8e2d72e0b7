# SPDX-License-Identifier: Apache-2.0
"""COCO's annotations in a folder: what is missing is unpacked, and fetched if need be."""

from functools import partial
from pathlib import Path
from typing import Any

from spatext_lab.datasets.coco.fetch import archives
from spatext_lab.datasets.coco.fetch.answers import TransferError
from spatext_lab.datasets.coco.fetch.archives import Archive, Opened
from spatext_lab.datasets.coco.fetch.download import Downloader
from spatext_lab.datasets.coco.fetch.room import Room
from spatext_lab.figures.progress import Progress

OFFICIAL = "http://images.cocodataset.org"  # by https it shows the certificate of another name


class Annotations:
    """The annotations of a split; to be used with `with` when panoptic PNGs may be asked for.

    Args:
        room: the folder.
        downloader: for archives that are not there.
        split: "train" or "val".
        mirror: address of a copy; None for COCO's own.
        panoptic: whether the panoptic archive may be fetched.
    """

    def __init__(
        self, room: Room, downloader: Downloader, split: str, mirror: str | None, panoptic: bool
    ):
        self.notes: list[str] = []
        self.folder = room.root / "annotations"
        self.folders = (self.folder, self.folder / f"panoptic_{split}2017")
        self._room, self._downloader = room, downloader
        self._split, self._mirror, self._panoptic = split, mirror, panoptic
        self._pngs: Opened | None = None

    def __enter__(self) -> "Annotations":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._pngs:
            self._pngs.__exit__()

    def provide(self) -> None:
        """Sees to it that the split's annotation files are there.

        Raises:
            TransferError: an archive cannot be had.
            ValueError: an archive is damaged.
            OSError: a file cannot be written.
        """
        wanted = (archives.INSTANCES_AND_CAPTIONS, *(archives.PANOPTIC,) * self._panoptic)
        for archive in wanted:
            names = [member.format(self._split) for member in archive.members]
            self._unpack(archive, [name for name in names if not (self.folder / name).is_file()])

    def png(self, path: Path) -> None:
        """Puts a panoptic PNG to its place, if an archive that is there, or may be fetched, has it.

        Raises:
            as `provide`.
        """
        if self._pngs is None:
            name = archives.PNGS.format(self._split)
            if not (self.folder / name).is_file():
                if not (self._panoptic or (self._room.root / archives.PANOPTIC.name).is_file()):
                    return
                self._unpack(archives.PANOPTIC, [name])
            self._pngs = Opened(self.folder / name)
        if path.name in self._pngs:
            self._room.lock()
            self._pngs.extract(path.name, path)

    def _unpack(self, archive: Archive, names: list[str]) -> None:
        if not names:
            return
        self._room.lock()
        path = self._room.root / archive.name
        if not path.is_file():
            self._fetch(archive, path)
        with Opened(path) as opened:
            for name in names:
                opened.extract(name, self.folder / name)
        self.notes.append(
            f"{path} ({archives.size(path.stat().st_size)}) is unpacked; it is used again for "
            "the other split, and may be deleted"
        )

    def _fetch(self, archive: Archive, path: Path) -> None:
        check = archives.check_zip if self._mirror else partial(_check_official, archive)
        with Progress(desc=archive.name, unit="B", unit_scale=True) as bar:

            def watch(size: int, length: int | None) -> None:
                if length and bar.total != length:
                    archives.check_space(path.parent, length - size, archive.name)
                    bar.total, bar.initial = length, size
                bar.update(size - bar.n)

            address = f"{self._mirror or OFFICIAL}/annotations/{archive.name}"
            try:
                self._downloader.fetch(address, path, check, watch)
            except TransferError as error:
                raise TransferError(f"{address}: {error}") from None
        if self._mirror and archives.digest(path) != archive.sha256:
            self.notes.append(f"{archive.name} of this mirror is not the one that COCO published")


def _check_official(archive: Archive, path: Path) -> None:
    archives.check_zip(path)
    if (found := archives.digest(path)) != archive.sha256:
        raise TransferError(f"not the archive that COCO published: its SHA-256 is {found}")
