# SPDX-License-Identifier: Apache-2.0
"""What the user wants, whatever the method: a caption, and regions with a text each.

A `Scene` is written down once and read twice: SpaText (Avrahami et al., 2023) reads it as a map,
ReCo (Yang et al., 2023) as a token sequence. Both read this class; it depends on neither.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatext_lab.scene import files, json_format, places
from spatext_lab.scene.places import BOX_FORM, MASK_FORM, Box

__all__ = ["Region", "Scene", "scene_list"]

# Default caption and region text, from the SpaText paper.
DEFAULT_CAPTION, DEFAULT_TEXT = "A realistic image", "A random object"
Segmenter = Callable[[Any], Iterable[tuple[str | None, NDArray[np.bool_]]]]
REGION_FORM = "write Region(text, box=...) or Region(text, mask=...)"


class Region:
    """A text and where it applies: a mask or a box. Immutable, equal and hashable by value.

    Args:
        text: what the region shows; not empty. "A random object" if it is not given.
        box:  (x0, y0, x1, y1): left, top, right, bottom as fractions of the image, in [0, 1].
        mask: bool array (height, width), True where the region is; copied.

    Raises:
        ValueError: naming the field, its value and the right form.
    """

    __slots__ = ("_box", "_mask", "_text")

    # Checked below, with messages that show the right form, hence `Any`.
    def __init__(self, text: str = DEFAULT_TEXT, *, box: Any = None, mask: Any = None):
        if (box is None) == (mask is None):
            given = "neither" if box is None else "both"
            raise ValueError(
                f"a region takes exactly one of box and mask, got {given}: {BOX_FORM}; "
                f"or {MASK_FORM}"
            )
        self._text = places.checked_text(text, "text")
        if not text.strip():
            raise ValueError(f'text is empty ({text!r}): name what it shows, such as "a red ball"')
        self._mask = None if mask is None else places.checked_mask(mask)
        self._box = None if box is None else places.checked_box(box)

    text = property(attrgetter("_text"), doc="What the region shows.")

    @property
    def is_mask(self) -> bool:
        """True for a region given by a mask, False for one given by a box."""
        return self._mask is not None

    @property
    def mask(self) -> NDArray[np.bool_] | None:
        """The mask as it was given, read-only, bool (height, width); None for a box."""
        return self._mask

    @property
    def box(self) -> Box:
        """(x0, y0, x1, y1) in [0, 1]; for a mask, the smallest box around it."""
        if self._box is None:  # computed when first asked for: scenes are made in bulk
            self._box = places.tight_box(self._mask)
        return self._box

    def mask_at(self, h: int, w: int) -> NDArray[np.bool_]:
        """The region on a grid of h x w pixels, bool (h, w), never empty.

        A box covers the pixels whose centre lies inside; a mask of another size is sampled at the
        nearest pixel. A region that no pixel centre hits keeps the one pixel that contains it, so
        that no region disappears.
        """
        if h < 1 or w < 1:
            raise _wrong_size(h, w)
        if self._mask is None:
            return box_at(self._box, h, w)
        return self._mask if self._mask.shape == (h, w) else mask_at(self._mask, h, w)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Region):
            return NotImplemented
        if self._text != other._text or self.is_mask != other.is_mask:
            return False
        return np.array_equal(self._mask, other._mask) if self.is_mask else self._box == other._box

    def __hash__(self) -> int:
        place = (self._mask.shape, self._mask.tobytes()) if self.is_mask else self._box
        return hash((self._text, place))

    def __repr__(self) -> str:
        if self.is_mask:
            h, w = self._mask.shape
            return f"Region({self._text!r}, mask=<{h} x {w}, {int(self._mask.sum())} pixels>)"
        return f"Region({self._text!r}, box={self._box})"

    def __reduce__(self) -> tuple:
        # Through the constructor, so that a copy in another process is as read-only as this one.
        place = {"mask": self._mask} if self.is_mask else {"box": self._box}
        return partial(Region, **place), (self._text,)


@dataclass(frozen=True, slots=True)
class Scene:
    """A caption and its regions; later regions lie over earlier ones. Immutable, equal by value.

    Args:
        caption: the text for the whole image; may be empty.
            "A realistic image" if it is not given.
        regions: any number of `Region`s, kept as a tuple; all masks of one scene have one size.

    Raises:
        ValueError: naming the field, its value and the right form.
    """

    caption: str = DEFAULT_CAPTION
    regions: Sequence[Region] = ()

    def __post_init__(self) -> None:
        places.checked_text(self.caption, "caption")
        if not isinstance(self.regions, Iterable):
            raise ValueError(f"regions is {self.regions!r}, not a list: {REGION_FORM} for each")
        object.__setattr__(self, "regions", tuple(self.regions))
        first = None  # (index, size) of the first mask, to which the others are compared
        for index, region in enumerate(self.regions):
            if not isinstance(region, Region):
                raise ValueError(f"regions[{index}] is {region!r}: {REGION_FORM}")
            if region._mask is None:
                continue
            first = first or (index, region._mask.shape)
            if region._mask.shape != first[1]:
                raise ValueError(
                    f"regions[{index}].mask has size (height, width) {region._mask.shape}, but "
                    f"regions[{first[0]}].mask has {first[1]}: give all masks of a scene the "
                    "same size, that of the image"
                )

    @classmethod
    def from_image(cls, image: Any, segmenter: Segmenter, caption: str = DEFAULT_CAPTION) -> Scene:
        """The scene of an image, by a function that finds its segments.

        Args:
            image: what the segmenter takes, such as a PIL image.
            segmenter: returns (text, mask) pairs, masks bool (height, width); a text of None
                becomes "A random object". `evaluation.segmenters` has two.
            caption: of the whole image.
        """
        pairs = segmenter(image)
        return cls(caption, [Region(text or DEFAULT_TEXT, mask=mask) for text, mask in pairs])

    def label_map(self, h: int, w: int) -> NDArray[np.int16]:
        """Index of the topmost region at each pixel, int16 (h, w): 0 = none, k = regions[k - 1]."""
        if h < 1 or w < 1:
            raise _wrong_size(h, w)
        labels = np.zeros((h, w), np.int16)
        for k, region in enumerate(self.regions, start=1):
            labels[region.mask_at(h, w)] = k
        return labels

    def visible_masks(self, h: int, w: int) -> NDArray[np.bool_]:
        """The visible part of each region, bool (n, h, w), disjoint: later regions lie on top."""
        if h < 1 or w < 1:
            raise _wrong_size(h, w)
        visible = np.zeros((len(self.regions), h, w), np.bool_)
        above = np.zeros((h, w), np.bool_)
        for k, region in reversed(list(enumerate(self.regions))):
            mask = region.mask_at(h, w)
            visible[k] = mask & ~above
            above |= mask
        return visible

    def to_json(self) -> str:
        """The scene as JSON that `from_json` reads back exactly; masks as COCO's compressed RLE."""
        return json_format.write(self.caption, self.regions)

    @classmethod
    def from_json(cls, text: str) -> Scene:
        """Read what `to_json` wrote.

        Raises:
            ValueError: naming the field (such as `regions[1].box`), its value and the right form.
        """
        return cls(*json_format.read(text, Region))

    def save(self, path: str | os.PathLike) -> None:
        """Write a JSON file; an existing one is replaced only when the new one is complete."""
        files.write(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike) -> Scene:
        """Read a file written by `save`; raises ValueError like `from_json`, the path in front."""
        # Bytes that are not UTF-8 become lone surrogates, which the checks refuse in their own way.
        text = Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape")
        try:
            return cls.from_json(text)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from None


def scene_list(scenes: Scene | Sequence[Scene], num_images_per_prompt: int = 1) -> list[Scene]:
    """The scenes of a pipeline's call as a list; also checks how many images of each it samples.

    Raises:
        ValueError: for anything but a `Scene` or a list of at least one, and for a number of images
            that is not a whole number >= 1.
    """
    listed = list(scenes) if isinstance(scenes, Iterable) else [scenes]
    if not listed:
        raise ValueError("scenes is empty; pass at least one")
    for k, scene in enumerate(listed):
        if not isinstance(scene, Scene):
            raise ValueError(f"scenes[{k}] is {scene!r:.80}; pass a Scene, or a list of them")
    n = num_images_per_prompt
    if not isinstance(n, Integral) or isinstance(n, bool) or n < 1:
        raise ValueError(f"num_images_per_prompt is {n!r:.40}; pass a whole number >= 1")
    return listed


def box_at(box: Box, h: int, w: int) -> NDArray[np.bool_]:
    """The pixels of an h x w grid with their centre in the box, bool (h, w); at least one.

    Half open, so that boxes that touch share no pixel. A box that slips between the centres keeps
    the pixels that its own middle lies in.
    """
    x0, y0, x1, y1 = box
    return _centres_between(y0, y1, h)[:, None] & _centres_between(x0, x1, w)[None, :]


def _centres_between(start: float, stop: float, count: int) -> NDArray[np.bool_]:
    centres = (np.arange(count) + 0.5) / count
    inside = (start <= centres) & (centres < stop)
    if not inside.any():
        inside[min(int((start + stop) / 2 * count), count - 1)] = True
    return inside


def mask_at(mask: NDArray[np.bool_], h: int, w: int) -> NDArray[np.bool_]:
    """A mask (H, W) at the centres of the pixels of an h x w grid, bool (h, w); at least one.

    Where no centre hits the mask, the grid's pixel that holds the middle one of its pixels stays.
    """
    height, width = mask.shape
    # The centre of pixel i lies in row (2 i + 1) H / (2 h) of the mask: whole numbers, no rounding.
    rows = (2 * np.arange(h) + 1) * height // (2 * h)
    columns = (2 * np.arange(w) + 1) * width // (2 * w)
    sampled = mask[rows[:, None], columns[None, :]]
    if not sampled.any():
        hits = np.flatnonzero(mask)
        row, column = divmod(int(hits[len(hits) // 2]), width)
        sampled[row * h // height, column * w // width] = True
    return sampled


def _wrong_size(h: int, w: int) -> ValueError:
    return ValueError(f"the size (h, w) is {(h, w)}: write numbers of pixels, both at least 1")
