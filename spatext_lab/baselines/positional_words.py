# SPDX-License-Identifier: Apache-2.0
"""Positional words: a layout in plain English, the baseline that ReCo is compared with."""

from collections.abc import Sequence

from spatext_lab.diffusion import Condition
from spatext_lab.reco.pipeline import ReCoPipeline
from spatext_lab.reco.position_tokens import TokenSequence
from spatext_lab.scene import Scene
from spatext_lab.scene.places import Box

SMALL, LARGE = 1 / 300, 0.03  # area, as a fraction of the image
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
    """The caption, if there is one, followed by each region's position and text."""
    parts = [f"{place_words(region.box)}, {region.text}" for region in scene.regions]
    return "; ".join([scene.caption, *parts] if scene.caption else parts)


def positional_scene(scene: Scene) -> Scene:
    """The scene as one long caption without regions."""
    return Scene(positional_caption(scene))


class PositionalWordsPipeline(ReCoPipeline):
    """Samples images of scenes whose layout stands in the caption, without position tokens."""

    def condition(
        self, scenes: Sequence[Scene], negative_prompt: str | Sequence[str] | None = None
    ) -> Condition:
        """The condition of scenes, each as one long caption."""
        return super().condition([positional_scene(scene) for scene in scenes], negative_prompt)

    def tokens(self, scene: Scene) -> TokenSequence:
        """The tokens of the long caption."""
        return super().tokens(positional_scene(scene))
