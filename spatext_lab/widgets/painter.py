# SPDX-License-Identifier: Apache-2.0
"""A scene painted by hand: a label map, a text for each region, and boxes if you like.

    painter = Painter()      # shows itself in a notebook; or Painter(scene) to go on with one
    painter.scene            # what has been painted so far, at every moment

The same without a pointer, pixel for pixel:

    k = painter.add("a red ball")
    painter.paint(k, [(20, 30), (40, 30)], size=9)
    painter.box(painter.add("a blue house"), (0.5, 0.25, 0.9, 0.75))
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import anywidget
import numpy as np
import traitlets
from ipywidgets.widgets.trait_types import CByteMemoryView
from jaxtyping import Bool, UInt8

from spatext_lab import figures, zoo
from spatext_lab.figures.png import EMPTY, PALETTE, png
from spatext_lab.scene import Region, Scene, places
from spatext_lab.scene.scene import DEFAULT_CAPTION, DEFAULT_TEXT
from spatext_lab.widgets import strokes
from spatext_lab.widgets.sources import script, style

MOST_REGIONS = 255  # a label is one byte, and 0 is nobody
THUMBNAIL = 72  # pixels


@cache
def presets() -> dict[str, Scene]:
    """Every shipped scene (the files of data/scenes) by the name of its file, alphabetically."""
    return {path.stem: Scene.load(path) for path in sorted(zoo.shipped("scenes").glob("*.json"))}


class Painter(anywidget.AnyWidget):
    """A widget to paint a scene with; `painter.scene` is what has been painted so far.

    Args:
        scene: to start from. What a later region hides of a painted one is lost, because a label
            map holds one region per pixel; what is visible stays.
        size: (height, width) of the label map, or one number for both; a scene with masks has its
            own.
        background: an image to paint over, as `figures.to_image` takes it.

    Raises:
        ValueError: a size below 1, or more than 255 regions.
    """

    _esm = script("painter")
    _css = style("painter")

    height = traitlets.Int().tag(sync=True)
    width = traitlets.Int().tag(sync=True)
    # Row by row, a byte a pixel. Plain `Bytes` would never hear from the browser.
    labels = CByteMemoryView().tag(sync=True)
    # [{"text": "a red ball", "box": None or [x0, y0, x1, y1]}, ...]
    regions = traitlets.List(traitlets.Dict()).tag(sync=True)
    caption = traitlets.Unicode(DEFAULT_CAPTION).tag(sync=True)
    background = CByteMemoryView().tag(sync=True)  # a PNG, or nothing
    palette = traitlets.List(traitlets.List()).tag(sync=True)
    gallery = traitlets.List(traitlets.Dict()).tag(sync=True)
    empty_text = traitlets.Unicode(DEFAULT_TEXT).tag(sync=True)  # the default text of a region

    def __init__(
        self,
        scene: Scene | None = None,
        *,
        size: int | tuple[int, int] = 64,
        background: Any = None,
    ) -> None:
        h, w = (size, size) if isinstance(size, int) else size
        if min(h, w) < 1:
            raise ValueError(f"size is {size}: pass (height, width) in pixels, both at least 1")
        below = b"" if background is None else png(background, "the image below")
        super().__init__(
            height=h,
            width=w,
            labels=bytes(h * w),
            background=below,
            palette=[list(EMPTY), *map(list, PALETTE)],
            gallery=[_thumbnail(name, scene) for name, scene in presets().items()],
        )
        self.on_msg(self._asked)
        if scene is not None:
            self.scene = scene

    @property
    def label_map(self) -> UInt8[np.ndarray, "h w"]:
        """The region at each pixel: 0 none, k the k-th painted one. Boxes are not in it."""
        return np.frombuffer(self.labels, np.uint8).reshape(self.height, self.width)

    @property
    def scene(self) -> Scene:
        """What has been painted so far; a region without a mask or box is left out."""
        found = []
        for k, entry in enumerate(self.regions, start=1):
            text = entry["text"] if entry["text"].strip() else DEFAULT_TEXT
            if entry["box"]:
                found.append(Region(text, box=entry["box"]))
            elif (mask := self.label_map == k).any():
                found.append(Region(text, mask=mask))
        return Scene(self.caption, found)

    @scene.setter
    def scene(self, scene: Scene) -> None:
        if len(scene.regions) > MOST_REGIONS:
            raise ValueError(
                f"the scene has {len(scene.regions)} regions; a label map has room for "
                f"{MOST_REGIONS}"
            )
        masks = [region.mask for region in scene.regions if region.is_mask]
        h, w = masks[0].shape if masks else (self.height, self.width)
        labels = np.zeros((h, w), np.uint8)
        for k, region in enumerate(scene.regions, start=1):
            if region.is_mask:
                labels[region.mask] = k
        regions = [_entry(r.text, None if r.is_mask else r.box) for r in scene.regions]
        self._set(height=h, width=w, labels=labels, regions=regions, caption=scene.caption)

    def add(self, text: str = "") -> int:
        """Adds a region without a mask or box; returns its number, counted from 1."""
        if len(self.regions) == MOST_REGIONS:
            raise ValueError(f"there are {MOST_REGIONS} regions; a label map has no room for more")
        self._set(regions=[*self.regions, _entry(text, None)])
        return len(self.regions)

    def rename(self, k: int, text: str) -> None:
        """Changes the text of region k."""
        self._set(regions=self._with(k, text=text))

    def remove(self, k: int) -> None:
        """Removes region k; the numbers of later regions fall by one."""
        regions, labels = self._with(k), self.label_map.copy()
        labels[labels == k] = 0
        labels[labels > k] -= 1
        self._set(labels=labels, regions=[*regions[: k - 1], *regions[k:]])

    def paint(self, k: int, points: Sequence[Any], size: int = 5) -> None:
        """Paints one brush stroke for region k; 0 erases. A box region becomes a painted one.

        Args:
            k: number of the region.
            points: pixels (x, y) that the stroke passes through.
            size: the brush's diameter in pixels.
        """
        self._cover(k, strokes.stroke(points, size, self.height, self.width))

    def fill(self, k: int, at: Any) -> None:
        """Fills the connected area around the pixel (x, y) with region k; 0 erases it."""
        self._cover(k, strokes.flood(self.label_map, at))

    def box(self, k: int, box: Any) -> None:
        """Makes region k the box (x0, y0, x1, y1), fractions of the image.

        Boxes drawn with the pointer end between pixels, for instance at 8/64.
        """
        regions = self._with(k, box=list(places.checked_box(box)))
        labels = self.label_map.copy()
        labels[labels == k] = 0
        self._set(labels=labels, regions=regions)

    def clear(self) -> None:
        """Removes all regions; the caption stays."""
        self._set(labels=np.zeros_like(self.label_map), regions=[])

    def __repr__(self) -> str:
        return f"<Painter: {len(self.regions)} regions on {self.height} x {self.width} pixels>"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict]:
        """The widget, and for pages without a kernel an image of the scene as it is now."""
        data, metadata = super()._repr_mimebundle_(**kwargs)
        image = png(figures.draw_scene(self.scene), "the scene in the painter")
        return data | {"image/png": b64encode(image).decode("ascii")}, metadata

    def _cover(self, k: int, mask: Bool[np.ndarray, "h w"]) -> None:
        labels = self.label_map.copy()
        labels[mask] = k
        self._set(labels=labels, regions=self._with(k, box=None) if k else self.regions)

    def _with(self, k: int, **change: Any) -> list[dict]:
        """The regions, with a change in the k-th."""
        if not 1 <= k <= len(self.regions):
            raise ValueError(f"region is {k}; there are regions 1 to {len(self.regions)}")
        regions = [dict(entry) for entry in self.regions]
        regions[k - 1] |= change
        return regions

    def _set(self, **state: Any) -> None:
        """All at once, so that no observer ever sees a map and regions that do not fit."""
        if "labels" in state:
            state["labels"] = state["labels"].tobytes()
        with self.hold_sync(), self.hold_trait_notifications():
            for name, value in state.items():
                setattr(self, name, value)

    @traitlets.validate("labels")
    def _checked_labels(self, proposal: Mapping) -> memoryview:
        if len(proposal["value"]) != self.height * self.width:
            raise traitlets.TraitError(
                f"labels has {len(proposal['value'])} bytes for {self.height} x {self.width} pixels"
            )
        return proposal["value"]

    @traitlets.validate("regions")
    def _checked_regions(self, proposal: Mapping) -> list[dict]:
        try:
            return [_entry(entry["text"], entry["box"]) for entry in proposal["value"]]
        except (KeyError, ValueError) as error:
            raise traitlets.TraitError(f"regions: {error}") from None

    def _asked(self, _: Any, message: dict, __: Any) -> None:
        """The page's questions, each answered: a preset, a scene from a file, this scene's file."""
        answer = {}
        try:
            if "preset" in message:
                self.scene = presets()[message["preset"]]
            elif "json" in message:
                self.scene = Scene.from_json(message["json"])
            elif "save" in message:
                answer = {"json": self.scene.to_json()}
        except Exception as error:  # the page has to hear of each
            answer = {"problem": str(error) or type(error).__name__}
        self.send(answer)


def _entry(text: Any, box: Any) -> dict:
    if not isinstance(text, str):
        raise ValueError(f"text is {text!r:.80}, not a text")
    return {"text": text, "box": box and list(places.checked_box(box))}


def _thumbnail(name: str, scene: Scene) -> dict:
    image = figures.draw_scene(scene, THUMBNAIL, numbers=False)
    title = name.replace("-", " ")
    return {"name": name, "title": title, "png": png(image, scene.caption)}
