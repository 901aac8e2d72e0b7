# SPDX-License-Identifier: Apache-2.0
"""The pixel variant's two doors: pixels instead of latents, a CLIP image vector as the caption.

SpaText's pixel variant is built on a decoder like DALL-E 2's: there is no autoencoder, and the
caption enters as one CLIP image vector, which the prior gives.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


class PixelFold(ConfigMixin):
    """Stands where other models have their autoencoder, and loses nothing.

    Squares of pixels are folded into channels (3 x 64 x 64 becomes 48 x 16 x 16), so that a U-Net
    over pixels costs what one over latents costs. Gaussian noise stays Gaussian noise under it.

    block_out_channels: the channels after each folding by two; each has four times as many as the
    one before. scaling_factor: what the pixels, in [-1, 1], are multiplied by.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self, block_out_channels: Sequence[int] = (3, 12, 48), scaling_factor: float = 1.0
    ) -> None:
        wanted = tuple(3 * 4**i for i in range(len(block_out_channels)))
        if tuple(block_out_channels) != wanted:
            raise ValueError(f"block_out_channels is {block_out_channels}; folding gives {wanted}")
        self.fold = 2 ** (len(block_out_channels) - 1)

    def to(self, device: torch.device | str) -> "PixelFold":
        """Itself: there is nothing to move."""
        return self

    @property
    def device(self) -> torch.device:
        """It has no weights; it works wherever its input is."""
        return torch.device("cpu")

    def encode(self, images: Float[Tensor, "b 3 H W"]) -> AutoencoderTinyOutput:
        """Pictures, folded."""
        return AutoencoderTinyOutput(latents=F.pixel_unshuffle(images, self.fold))

    def decode(self, latents: Float[Tensor, "b c h w"]) -> DecoderOutput:
        """Pictures, unfolded."""
        return DecoderOutput(sample=F.pixel_shuffle(latents, self.fold))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "PixelFold":
        """Reads a folder with its config."""
        return cls.from_config(cls.load_config(folder))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes a folder with its config."""
        self.save_config(folder)


# DALL-E 2, arXiv 2204.06125, section 2.1, adds projections of the CLIP vector to the time embedding
# and to the context; with one token, cross-attention adds a projection of it to every place.
def caption_state(vectors: Float[Tensor, "b d"]) -> Float[Tensor, "b 1 d"]:
    """A CLIP vector as text states of one token, at the scale of the U-Net's other inputs."""
    return rearrange(vectors * vectors.shape[1] ** 0.5, "b d -> b 1 d")
