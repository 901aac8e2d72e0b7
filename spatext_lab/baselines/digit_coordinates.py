# SPDX-License-Identifier: Apache-2.0
"""Coordinates as digits: each region's box stands behind its text, as numbers in the prompt.

    two boats; a red boat [0.11, 0.30, 0.61, 0.87]; a buoy [0.90, 0.48, 0.95, 0.52]

The form of ConsistCompose (arXiv 2511.18333) and of BBQ (arXiv 2602.20672), which write boxes as
decimal numbers; here to the hundredth, which is less than a pixel of a pocket image. The
vocabulary is unchanged: CLIP's tokenizer, the pocket's too, has a token for each digit, dot, comma
and bracket, so a box takes 21 tokens where ReCo's position tokens take 4.
"""

from collections.abc import Sequence

from spatext_lab.diffusion import Condition
from spatext_lab.reco.pipeline import ReCoPipeline
from spatext_lab.reco.position_tokens import TokenSequence
from spatext_lab.scene import Region, Scene
from spatext_lab.scene.notes import warn


def digits(region: Region) -> str:
    """A region's text and box: "a red ball [0.11, 0.30, 0.61, 0.87]"."""
    return f"{region.text} [{', '.join(f'{value:.2f}' for value in region.box)}]"


def digit_caption(scene: Scene) -> str:
    """The caption, if there is one, followed by each region's text and box."""
    parts = [digits(region) for region in scene.regions]
    return "; ".join([scene.caption, *parts] if scene.caption else parts)


def digit_scene(scene: Scene, tokenizer) -> Scene:
    """The scene as one long caption without regions.

    Regions that do not fit into the tokenizer's length are dropped whole, last first, and named in
    a warning: a number that is truncated would be another number.
    """
    kept, limit = list(scene.regions), tokenizer.model_max_length
    while kept and _length(tokenizer, digit_caption(Scene(scene.caption, kept))) > limit:
        kept.pop()
    if rest := scene.regions[len(kept) :]:
        names = (f"regions[{k}] ({r.text!r:.60})" for k, r in enumerate(rest, start=len(kept)))
        warn(
            f"regions dropped: {', '.join(names)}; the scene has more than {limit} tokens: shorten "
            "the texts",
            stacklevel=4,
        )
    return Scene(digit_caption(Scene(scene.caption, kept)))


def _length(tokenizer, text: str) -> int:
    return len(tokenizer(text, verbose=False).input_ids)


class DigitCoordinatesPipeline(ReCoPipeline):
    """Samples images of scenes whose boxes stand in the caption as digits."""

    def condition(
        self, scenes: Sequence[Scene], negative_prompt: str | Sequence[str] | None = None
    ) -> Condition:
        """The condition of scenes, each as one long caption."""
        written = [digit_scene(scene, self.tokenizer) for scene in scenes]
        return super().condition(written, negative_prompt)

    def tokens(self, scene: Scene) -> TokenSequence:
        """The tokens of the long caption."""
        return super().tokens(digit_scene(scene, self.tokenizer))
