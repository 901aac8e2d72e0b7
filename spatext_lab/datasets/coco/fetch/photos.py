# SPDX-License-Identifier: Apache-2.0
"""The photos of a subset: which are wanted, from where, and whether what came is one of them."""

from collections.abc import Collection
from functools import partial
from pathlib import Path
from time import monotonic
from urllib.parse import SplitResult, quote, urlsplit

from spatext_lab.datasets.coco.fetch import archives
from spatext_lab.datasets.coco.fetch.annotations import Annotations
from spatext_lab.datasets.coco.fetch.answers import SCHEMES
from spatext_lab.datasets.coco.fetch.attribution import NAME, attribution
from spatext_lab.datasets.coco.fetch.download import Downloader
from spatext_lab.datasets.coco.fetch.many import Order, fetch_all
from spatext_lab.datasets.coco.fetch.report import FetchReport
from spatext_lab.datasets.coco.fetch.room import Room
from spatext_lab.datasets.coco.item import CocoItem, CocoSubset
from spatext_lab.datasets.coco.photos import NotWhole, Unusable, check_photo
from spatext_lab.datasets.coco.read import SubsetChoice, read_coco
from spatext_lab.figures.progress import Progress

BYTES_PER_PIXEL = 0.55  # of COCO's photos: 160 kB at 640 x 480
NO_ADDRESS = "its coco_url is no http or https address: a --mirror may have it"


class Photos:
    """The photos of one split in a folder.

    Args:
        room: the folder.
        downloader: for photos that are not there.
        annotations: of the same folder.
        mirror: address of a copy; None for each photo's `coco_url`.
    """

    def __init__(
        self, room: Room, downloader: Downloader, annotations: Annotations, mirror: str | None
    ):
        self.failed: set[Path] = set()
        self._room, self._downloader = room, downloader
        self._annotations, self._mirror = annotations, mirror
        self._absent: set[Path] = set()
        self._useless = False  # a photo came that is whole, and that no scene can be made of

    def fetch(self, split: str, choice: SubsetChoice) -> FetchReport:
        """Fetches what a subset lacks; a photo that turns out useless is replaced by the next.

        Raises:
            OSError: a photo cannot be written.
            ValueError: what `read_coco` raises.
        """
        report = None
        while report is None or self._useless:
            self._absent, self._useless = set(), False
            subset = read_coco(self._room.root, split, supply=self._supply, **choice)
            report = report or FetchReport(subset)
            report.subset = subset
            self._fetch([i for i in subset.items if i.path in self._absent - self.failed], report)
        return report

    def _supply(self, path: Path) -> bool:
        if path.is_relative_to(self._annotations.folder):
            self._annotations.png(path)
        else:
            self._absent.add(path)
        return True

    def _fetch(self, wanted: list[CocoItem], report: FetchReport) -> None:
        self._attribute(report.subset, coming={item.path for item in wanted})
        if not wanted:
            return
        self._room.lock()
        space = sum(BYTES_PER_PIXEL * item.size[0] * item.size[1] for item in wanted)
        archives.check_space(wanted[0].path.parent, space, f"{len(wanted)} photos")
        orders = {}  # by place: two records may name one file
        for item in wanted:
            url = address(item, self._mirror)
            if _parts(url).scheme in SCHEMES:
                orders[item.path] = Order(url, item.path, partial(self._check, item.size))
            else:
                self._fail(item.path, url or item.file_name, NO_ADDRESS, report)
        try:
            self._work(list(orders.values()), f"{wanted[0].split}2017", report)
        finally:
            self._attribute(report.subset)

    def _work(self, orders: list[Order], desc: str, report: FetchReport) -> None:
        began = monotonic()
        with Progress(total=len(orders), desc=desc, unit="photo") as bar:
            for order, size, error in fetch_all(self._downloader, orders):
                if error:
                    self._fail(order.path, order.url, str(error), report)
                else:
                    report.fetched += 1
                    report.bytes += size
                speed = archives.size(report.bytes / (monotonic() - began))
                bar.set_postfix_str(f"{speed}/s", refresh=False)
                bar.update()

    def _fail(self, path: Path, name: str, reason: str, report: FetchReport) -> None:
        self.failed.add(path)
        report.failed[name] = reason

    def _check(self, size: tuple[int, int], path: Path) -> None:
        """Refuses a file that is not a photo of this (height, width), whole to its last byte."""
        try:
            check_photo(path, size)
        except NotWhole as fault:
            raise ValueError(str(fault)) from None
        except Unusable:
            self._useless = True

    def _attribute(self, subset: CocoSubset, coming: Collection[Path] = ()) -> None:
        content = attribution(self._room.root, subset.items, coming)
        self._room.write(self._room.root / NAME, content)


def address(item: CocoItem, mirror: str | None) -> str:
    """Where a photo is to be had: its `coco_url`, or the same path of a mirror; "" for nowhere."""
    if mirror is None:
        return item.credit.coco_url
    path = _parts(item.credit.coco_url).path
    usual = f"/{item.split}2017/{quote(item.file_name)}"
    return mirror + (path if path.startswith("/") else usual)


def _parts(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # such as half a bracket
        return urlsplit("")
