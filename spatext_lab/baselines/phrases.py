# SPDX-License-Identifier: Apache-2.0
"""Which tokens of a caption name which regions."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import CLIPTokenizer

from spatext_lab.scene import Region, Scene


def phrased(scene: Scene) -> str:
    """The caption, followed by the texts of regions that are not in it."""
    texts = dict.fromkeys(region.text for region in scene.regions)
    missing = [text for text in texts if not _found(text, scene.caption)]
    return ", ".join(filter(None, [scene.caption, *missing]))


def _found(text: str, caption: str) -> re.Match | None:
    return re.search(rf"(?<!\w){re.escape(text)}(?!\w)", caption, re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Phrases:
    """n texts of b scenes: regions with the same text are one. See `Phrases.of`.

    Args:
        image: the scene of each text.
        tokens: True for the tokens of the text in its scene's `phrased` caption.
        regions: of each text.
    """

    image: Int[Tensor, "n"]
    tokens: Bool[Tensor, "n l"]
    regions: Sequence[Sequence[Region]]

    @classmethod
    def of(cls, scenes: Sequence[Scene], tokenizer: CLIPTokenizer) -> "Phrases":
        """The texts of scenes in their `phrased` captions; what is truncated is left out."""
        image, tokens, regions = [], [], []
        settings = {"padding": "max_length", "truncation": True, "return_offsets_mapping": True}
        for k, scene in enumerate(scenes):
            caption = phrased(scene)
            spans = tokenizer(caption, **settings).offset_mapping
            for text in dict.fromkeys(region.text for region in scene.regions):
                start, end = _found(text, caption).span()
                own = [start < stop and begin < end for begin, stop in spans]
                if any(own):
                    image.append(k)
                    tokens.append(own)
                    regions.append([region for region in scene.regions if region.text == text])
        flags = torch.tensor(tokens).bool().view(len(image), tokenizer.model_max_length)
        return cls(torch.tensor(image).long(), flags, regions)

    def inside(self, side: int) -> Bool[Tensor, "n cells"]:
        """The cells of each text's regions at one resolution."""
        masks = [[region.mask_at(side, side) for region in own] for own in self.regions]
        return torch.from_numpy(np.stack([np.any(own, axis=0).ravel() for own in masks]))
