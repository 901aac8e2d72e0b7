# SPDX-License-Identifier: Apache-2.0
"""Training examples: an image, its captions, and the scene that it shows."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from spatext_lab.datasets import coco
from spatext_lab.datasets.coco import CocoItem, CocoSubset
from spatext_lab.datasets.photo_views import wide_view
from spatext_lab.datasets.pocket import pocket_item
from spatext_lab.images import to_tensor
from spatext_lab.scene import Region, Scene


@dataclass(frozen=True)
class Example:
    """A training example: an image, its captions, and the scene that it shows."""

    image: np.ndarray  # uint8 (H, W, 3)
    captions: tuple[str, ...]
    scene: Scene  # its regions as masks for SpaText, as boxes for ReCo


def pocket_images(split: str, indices: Iterable[int]) -> Float[Tensor, "b 3 64 64"]:
    """Pocket images in [-1, 1]; rendered anew each time, which costs a millisecond each."""
    return to_tensor(pocket_item(split, i).image for i in indices)


def pocket_examples(count: int) -> Iterator[Example]:
    """The first `count` training scenes of the pocket world, their segments as masks."""
    for i in range(count):
        item = pocket_item("train", i)
        yield Example(item.image, item.captions, item.scene)


def coco_examples(subset: CocoSubset, size: int) -> Iterator[Example]:
    """The centre squares of a COCO subset's photos, `size` pixels wide, with all their captions."""
    for item, image, scene in subset.squares(size):
        yield Example(image, item.captions, scene)


@dataclass(frozen=True)
class Photos:
    """The training photos of a COCO folder as examples, read when they are first needed.

    Args:
        root: a folder in COCO layout.
        choice: of its photos and regions: arguments of `coco.read_coco`.
        made: what the examples depend on beside the photos and their choice, JSON values; the
            first value, a word, says what they are.
        read: the examples of a photo: none where it has nothing to learn from.
    """

    root: Path
    choice: dict[str, Any]
    made: dict[str, Any]
    read: Callable[[CocoItem], Sequence[Example]]

    @property
    def identity(self) -> dict[str, Any]:
        """All that the examples depend on, JSON values; no photo is opened for it."""
        plain = {key: _plain(value) for key, value in self.choice.items()}
        return {"photos": coco.fingerprint(self.root, "train")} | plain | self.made

    @cached_property
    def items(self) -> tuple[CocoItem, ...]:
        """The chosen photos; prints what was left out.

        Raises:
            FileNotFoundError, ValueError: as `coco.read_coco`, and where no photo is chosen.
        """
        subset = coco.read_coco(self.root, "train", check_images=False, **self.choice)
        print(subset.report.text())
        return subset.not_empty().items

    def examples(self, index: int) -> Sequence[Example]:
        """The examples of a photo by its number; one that is damaged has none, and is named.

        Raises:
            OSError: the operating system cannot read it.
        """
        item = self.items[index]
        try:
            return self.read(item)
        except Exception as error:  # Pillow's decoders raise many types for a damaged file
            if getattr(error, "errno", None):
                raise
            print(f"{item.file_name} is damaged and left out: {error}")
            return ()


def squares(root: Path, size: int, choice: dict[str, Any]) -> Photos:
    """The centre squares of photos, as `coco_examples` has them."""
    return Photos(root, choice, {"kind": "squares", "size": size}, partial(_square, size))


def _square(size: int, item: CocoItem) -> list[Example]:
    image, scene = item.square(size)
    return [Example(image, item.captions, scene)] if scene.regions else []


def views(root: Path, size: int, count: int, choice: dict[str, Any]) -> Photos:
    """The centre squares of photos and, of each, `count` - 1 random squares, half of them flipped.

    For few photos, which are learned by heart otherwise.
    """
    if count == 1:
        return squares(root, size, choice)
    made = {"kind": "wide views", "size": size, "views": count}
    return Photos(root, choice, made, partial(_views, size, count))


def _views(size: int, count: int, item: CocoItem) -> list[Example]:
    found = _square(size, item)
    for k in range(1, count):
        view = wide_view(item.image_id * count + k, 0, [item], size)
        seen = [(text, view.labels == number) for number, text in enumerate(view.texts, start=1)]
        least = max(item.min_area, 1 / size**2)
        kept = [Region(text, mask=mask) for text, mask in seen if mask.mean() >= least]
        if kept:
            found.append(Example(view.image, view.captions, Scene(view.captions[0], kept)))
    return found


def _plain(value: Any) -> Any:
    """A collection, whose order means nothing, as a sorted list."""
    return value if value is None or np.isscalar(value) else sorted(value)
