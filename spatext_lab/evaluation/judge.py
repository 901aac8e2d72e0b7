# SPDX-License-Identifier: Apache-2.0
"""The pocket judge: a segmenter that labels every pixel of a pocket image.

It plays the part of the off-the-shelf segmenter in the papers' metrics. It has an error rate of its
own, which the scores of the true images show, and it is used for nothing but measuring.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DModel
from einops import rearrange
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from spatext_lab.datasets.pocket import COLOURS, LABELS
from spatext_lab.images import to_tensor

KIND_CLASSES, COLOUR_CLASSES = len(LABELS), len(COLOURS) + 1
FOLD = 2  # pixels folded into channels, per side: a U-Net at half resolution sees every pixel
BATCH = 16  # images that are sampled, or judged, at a time


class Judge:
    """A small U-Net as a segmenter with two outputs per pixel: the label and the colour."""

    def __init__(self, unet: UNet2DModel) -> None:
        self.unet = unet

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Judge":
        """Reads a diffusers folder of a `UNet2DModel`."""
        plain = {"torch_dtype": torch.float32, "use_safetensors": True}  # never a pickle
        return cls(UNet2DModel.from_pretrained(folder, **plain).eval())

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes a diffusers folder in half precision."""
        self.unet.half().save_pretrained(folder)
        self.unet.float()

    def logits(
        self, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b kinds h w"], Float[Tensor, "b colours h w"]]:
        """Logits of every label and of every colour at every pixel.

        Args:
            images: values in [-1, 1].
        """
        folded = rearrange(images, "b c (h p) (w q) -> b (c p q) h w", p=FOLD, q=FOLD)
        time = torch.zeros(len(images), device=images.device)  # the U-Net's timestep is not used
        out = self.unet(folded, time).sample
        both = rearrange(out, "b (c p q) h w -> b c (h p) (w q)", p=FOLD, q=FOLD)
        return both[:, :KIND_CLASSES], both[:, KIND_CLASSES:]

    @torch.no_grad()
    def __call__(
        self, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[Int[Tensor, "b h w"], Int[Tensor, "b h w"]]:
        """The label and the colour with the highest logit at every pixel.

        Args:
            images: values in [-1, 1].

        Returns:
            Label map (index into LABELS) and colour map (0 none, i = COLOURS[i - 1]).
        """
        kinds, colours = self.logits(images)
        return kinds.argmax(1), colours.argmax(1)

    def maps(
        self, images: Sequence[Image.Image]
    ) -> Iterator[tuple[Int[np.ndarray, "h w"], Int[np.ndarray, "h w"]]]:
        """Label map and colour map of each RGB image, computed in batches."""
        for start in range(0, len(images), BATCH):
            kinds, colours = self(to_tensor(images[start : start + BATCH]))
            yield from zip(kinds.numpy(), colours.numpy(), strict=True)
