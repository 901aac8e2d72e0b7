# SPDX-License-Identifier: Apache-2.0
"""The pixel variant's adapters: pixels instead of latents, a CLIP image embedding as the caption.

SpaText's pixel variant is built on a decoder like DALL-E 2's: there is no autoencoder, and the
caption enters as one CLIP image embedding, which the prior samples.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from spatext_lab import zoo


class PixelFold(ModelMixin, ConfigMixin):
    """Drop-in for an autoencoder that loses nothing: pixel_unshuffle and back.

    Squares of pixels are folded into channels (3 x 64 x 64 becomes 48 x 16 x 16), so that a U-Net
    over pixels costs what one over latents costs. Gaussian noise stays Gaussian noise under it.

    Args:
        block_out_channels: the channels after each folding by two; each has four times as many as
            the one before.
        scaling_factor: what the pixels, in [-1, 1], are multiplied by.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self, block_out_channels: Sequence[int] = (3, 12, 48), scaling_factor: float = 1.0
    ) -> None:
        super().__init__()
        wanted = tuple(3 * 4**i for i in range(len(block_out_channels)))
        if tuple(block_out_channels) != wanted:
            raise ValueError(f"block_out_channels is {block_out_channels}; folding gives {wanted}")
        self.fold = 2 ** (len(block_out_channels) - 1)
        # No weights; diffusers asks its models for a device and a precision.
        self.register_buffer("anchor", torch.zeros(1), persistent=False)

    def encode(self, images: Float[Tensor, "b 3 H W"]) -> AutoencoderTinyOutput:
        """Images, folded."""
        return AutoencoderTinyOutput(latents=F.pixel_unshuffle(images, self.fold))

    def decode(self, latents: Float[Tensor, "b c h w"]) -> DecoderOutput:
        """Images, unfolded."""
        return DecoderOutput(sample=F.pixel_shuffle(latents, self.fold))

    @classmethod
    def from_pretrained(cls, folder, **_) -> "PixelFold":
        """Reads a folder with its config; there are no weights."""
        zoo.check_files(Path(folder), cls.config_name)
        with zoo.named(Path(folder)):
            return cls.from_config(cls.load_config(folder))

    def save_pretrained(self, folder, **_) -> None:
        """Writes a folder with its config."""
        self.save_config(folder)


# DALL-E 2, arXiv 2204.06125, section 2.1, adds projections of the CLIP embedding to the timestep's
# embedding and to the context; with one token, cross-attention adds one of it to each cell.
def caption_state(embeddings: Float[Tensor, "b d"]) -> Float[Tensor, "b 1 d"]:
    """CLIP embeddings as hidden states of one token, scaled to variance 1."""
    return rearrange(embeddings * embeddings.shape[1] ** 0.5, "b d -> b 1 d")
