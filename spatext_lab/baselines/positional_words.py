# SPDX-License-Identifier: Apache-2.0
"""Positional words: a layout told in plain English, the baseline that ReCo is compared with."""

from spatext_lab.reco.pipeline import ReCoPipeline
from spatext_lab.scene import Scene
from spatext_lab.scene.places import Box

SMALL, LARGE = 1 / 300, 0.03  # area, as a part of the picture
LONG, TALL = 2.0, 0.5  # width by height
_ACROSS, _DOWN = ("left", "center", "right"), ("top", "center", "bottom")


# The template and its limits are those of ReCo's released code (function process_spatial_word).
def place_words(box: Box) -> str:
    """A box in words: "large tall in the top left"."""
    x0, y0, x1, y1 = box
    area, aspect = (x1 - x0) * (y1 - y0), (x1 - x0) / (y1 - y0)
    size = "small" if area < SMALL else "medium" if area < LARGE else "large"
    shape = "long" if aspect > LONG else "tall" if aspect < TALL else "square"
    across, down = (
        names[min(int(3 * (low + high) / 2), 2)]
        for names, low, high in ((_ACROSS, x0, x1), (_DOWN, y0, y1))
    )
    place = across if across == down else " ".join(w for w in (down, across) if w != "center")
    return f"{size} {shape} in the {place}"


def positional_caption(scene: Scene) -> str:
    """The caption, if there is one, and after it each region with its place and its text."""
    said = [f"{place_words(region.box)}, {region.text}" for region in scene.regions]
    return "; ".join([scene.caption, *said] if scene.caption else said)


class PositionalWordsPipeline(ReCoPipeline):
    """Draws a scene whose layout is said in its caption: no new words, only room for more."""

    def spoken(self, scene: Scene) -> Scene:
        """The scene as one long caption without regions."""
        return Scene(positional_caption(scene))
