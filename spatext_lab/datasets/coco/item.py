# SPDX-License-Identifier: Apache-2.0
"""What reading a COCO folder gives: images with their scenes, both made when asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from spatext_lab.datasets.coco.masks import centre_square, decode, square_masks
from spatext_lab.datasets.coco.report import CocoReport, Credit
from spatext_lab.figures import to_image
from spatext_lab.scene import Region, Scene


@dataclass(frozen=True)
class CocoRegion:
    """One segment of an image: its text and the part of it that is visible."""

    annotation: int  # id of the annotation, or of the panoptic segment
    text: str
    rle: dict  # compressed RLE of the visible mask; a bool mask would be a hundred times larger


@dataclass(frozen=True)
class CocoItem:
    """An image and its scene. Both are read when asked for, equal every time."""

    path: Path
    split: str  # "train" or "val"
    image_id: int
    size: tuple[int, int]  # height, width
    licence: int  # COCO's number, 1 to 8; 0 for any other licence, or none
    credit: Credit  # the image's name and address, and its licence's
    captions: tuple[str, ...]
    regions: tuple[CocoRegion, ...]  # largest first, disjoint
    min_area: float  # each region's least fraction of the image

    @property
    def file_name(self) -> str:
        """The image's path below the split's folder."""
        return self.credit.file_name

    @property
    def scene(self) -> Scene:
        """First caption, and one mask region of the image's size per segment, largest first.

        Without a caption it is the empty one.
        """
        return self._scene([decode(region.rle) for region in self.regions])

    def image(self) -> Image.Image:
        """The image, upright, RGB.

        Raises:
            OSError: it has been damaged since it was checked.
        """
        with Image.open(self.path) as image:
            return to_image(image)

    def square(self, size: int) -> tuple[UInt8[np.ndarray, "size size 3"], Scene]:
        """The centre square as `size` x `size` pixels, and the scene cropped and resized with it.

        Regions that cover less than `min_area` of the square are dropped (possibly all of them);
        `CocoSubset.squares` counts them.
        """
        box = centre_square(*self.size)
        pixels = self.image().resize((size, size), Image.Resampling.LANCZOS, box=box)
        return np.array(pixels), self._scene(self._masks_in_square(size))

    def _masks_in_square(self, size: int) -> list[Bool[np.ndarray, "size size"] | None]:
        """One mask for each region, None where too little of it is in the square."""
        masks = square_masks([decode(region.rle) for region in self.regions], size)
        least = max(1, self.min_area * size * size)
        return [mask if mask.sum() >= least else None for mask in masks]

    def _scene(self, masks: list[np.ndarray | None]) -> Scene:
        pairs = zip(self.regions, masks, strict=True)
        kept = [Region(region.text, mask=mask) for region, mask in pairs if mask is not None]
        return Scene(self.captions[0] if self.captions else "", kept)


@dataclass(frozen=True)
class CocoSubset:
    """The selected items, in order of their image id, and the report on all others."""

    items: tuple[CocoItem, ...]
    report: CocoReport

    def not_empty(self) -> CocoSubset:
        """The subset itself.

        Raises:
            ValueError: it has no item, with the reasons and their counts on one line.
        """
        if not self.items:
            raise self._nothing_passes()
        return self

    def _nothing_passes(self) -> ValueError:
        counts = self.report.counts().most_common(5)
        reasons = ", ".join(f"{count} x {reason}" for reason, count in counts)
        return ValueError(
            f"no image of {self.report.where} passes, of {self.report.found}: {reasons}; "
            "choose other licences (None: all), min_area, regions or categories"
        )

    def squares(
        self, size: int
    ) -> Iterator[tuple[CocoItem, UInt8[np.ndarray, "size size 3"], Scene]]:
        """Every item with its `square`, without the items that keep no region there.

        What the crop loses is written to the report as it happens, anew for each pass.

        Raises:
            ValueError: no item keeps one, with the reasons and their counts on one line.
        """
        lost: list[tuple[str, int]] = []
        empty: list[str] = []
        for item in self.items:
            masks = item._masks_in_square(size)
            pairs = zip(item.regions, masks, strict=True)
            gone = [(item.file_name, region.annotation) for region, mask in pairs if mask is None]
            if gone:
                lost += gone
                self.report.annotations[f"too small in the {size} x {size} square"] = lost
            if len(gone) < len(masks):
                yield item, *item.square(size)
            else:
                empty.append(item.file_name)
                self.report.images[f"no region in the {size} x {size} square"] = empty
        if len(empty) == len(self.items):
            raise self._nothing_passes()
