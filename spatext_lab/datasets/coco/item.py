# SPDX-License-Identifier: Apache-2.0
"""What reading a COCO folder gives: pictures with their scenes, both made when asked for."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from spatext_lab.datasets.coco import masks as coco_masks
from spatext_lab.datasets.coco.report import CocoReport, Credit
from spatext_lab.scene import Region, Scene, rle


@dataclass(frozen=True)
class CocoRegion:
    """One segment of a picture: its text and the part of it that is to be seen."""

    annotation: int  # id of the annotation, or of the panoptic segment
    text: str
    rle: dict  # compressed RLE of the visible mask; a bool mask would be a hundred times larger


@dataclass(frozen=True)
class CocoItem:
    """A picture and its scene. Both are read when asked for, equal every time."""

    path: Path
    split: str  # "train" or "val"
    image_id: int
    size: tuple[int, int]  # height, width
    licence: int  # id, 1 to 8
    credit: Credit  # the licence's name and address, and the picture's
    captions: tuple[str, ...]
    regions: tuple[CocoRegion, ...]  # largest first, disjoint
    min_area: float  # each region's least share of the picture

    @property
    def file_name(self) -> str:
        """The picture's name without its folder."""
        return self.path.name

    @property
    def scene(self) -> Scene:
        """First caption, and one mask region of the picture's size per segment, largest first."""
        masks = [rle.decode(region.rle) for region in self.regions]
        texts = [region.text for region in self.regions]
        return Scene(
            self.captions[0], [Region(t, mask=m) for t, m in zip(texts, masks, strict=True)]
        )

    def image(self) -> Image.Image:
        """The picture, RGB. Raises OSError if it has been damaged since it was checked."""
        with Image.open(self.path) as picture:
            return picture.convert("RGB")

    def square(self, size: int) -> tuple[UInt8[np.ndarray, "size size 3"], Scene]:
        """The centre square as `size` x `size` pixels, and the scene cut and resized along.

        Regions that have less than `min_area` of the square are dropped (possibly all of them);
        `CocoSubset.squares` counts them.
        """
        return self._square_picture(size), self._square_scene(self._in_square(size))

    def _in_square(self, size: int) -> list[tuple[CocoRegion, np.ndarray]]:
        masks = coco_masks.square_masks([rle.decode(r.rle) for r in self.regions], size)
        least = max(1, self.min_area * size * size)
        return [(r, m) for r, m in zip(self.regions, masks, strict=True) if m.sum() >= least]

    def _square_picture(self, size: int) -> np.ndarray:
        box = coco_masks.centre_square(*self.size)
        return np.array(self.image().resize((size, size), Image.Resampling.LANCZOS, box=box))

    def _square_scene(self, kept: list[tuple[CocoRegion, np.ndarray]]) -> Scene:
        return Scene(self.captions[0], [Region(region.text, mask=mask) for region, mask in kept])


@dataclass(frozen=True)
class CocoSubset:
    """The selected items, in order of their image id, and the report on all others."""

    items: tuple[CocoItem, ...]
    report: CocoReport

    def squares(self, size: int) -> Iterator[tuple[UInt8[np.ndarray, "size size 3"], Scene]]:
        """Every item's `square`, without the items that keep no region there.

        What the crop loses is written to the report as it happens, anew for each pass.
        """
        lost: list[tuple[str, int]] = []
        empty: list[str] = []
        for item in self.items:
            kept = item._in_square(size)
            found = {region.annotation for region, _ in kept}
            gone = [r.annotation for r in item.regions if r.annotation not in found]
            if gone:
                lost += [(item.file_name, annotation) for annotation in gone]
                self.report.annotations[f"too small in the {size} x {size} square"] = lost
            if kept:
                yield item._square_picture(size), item._square_scene(kept)
            else:
                empty.append(item.file_name)
                self.report.pictures[f"no region in the {size} x {size} square"] = empty
