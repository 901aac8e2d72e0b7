# SPDX-License-Identifier: Apache-2.0
"""Images, tensors in [-1, 1] and latents, and every conversion between them."""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor


def to_tensor(images: Iterable[Image.Image | np.ndarray]) -> Float[Tensor, "b 3 h w"]:
    """Images as float tensors in [-1, 1], what the autoencoder and the judge read.

    Args:
        images: b RGB images of one size, as PIL images or as arrays, uint8 (h, w, 3).
    """
    array = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_unit(pixels: Float[Tensor, "*b 3 h w"]) -> Float[Tensor, "*b 3 h w"]:
    """Values in [-1, 1] as values in [0, 1], what CLIP reads."""
    return pixels / 2 + 0.5


def to_images(pixels: Float[Tensor, "b 3 H W"]) -> list[Image.Image]:
    """Tensors in [-1, 1] as PIL images; values outside are clamped."""
    array = (
        ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    )
    return [Image.fromarray(image) for image in array]


def encode(vae, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
    """Latents of unit variance of images in [-1, 1].

    Args:
        vae: an `AutoencoderTiny`, an `AutoencoderKL` (the mode is taken), or a `PixelFold`.
    """
    out = vae.encode(images)
    latents = out.latents if "latents" in out else out.latent_dist.mode()
    return latents * vae.config.scaling_factor


def decode(vae, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
    """Images as tensors, about [-1, 1], of latents of unit variance; the inverse of `encode`."""
    latents = latents.contiguous(memory_format=torch.channels_last)  # faster on a CPU
    return vae.decode((latents / vae.config.scaling_factor).to(vae.dtype)).sample
