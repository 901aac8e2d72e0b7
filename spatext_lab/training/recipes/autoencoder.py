# SPDX-License-Identifier: Apache-2.0
"""The pocket autoencoder: 64 x 64 x 3 images to 16 x 16 x 4 latents of unit variance and back."""

from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from jaxtyping import Float
from torch import Tensor

from spatext_lab.training.cache import pocket_images
from spatext_lab.training.job import Job, save_half
from spatext_lab.training.plan import Plan

BATCH = 8
LATENT_CHANNELS = 4
LATENT_NOISE = 0.05  # makes the decoder robust to the small errors of a sampler


def new_autoencoder() -> AutoencoderTiny:
    """An autoencoder with random weights, most of its layers at 16 x 16, where they cost least."""
    width = 32  # AutoencoderTiny needs the same width everywhere
    return AutoencoderTiny(
        encoder_block_out_channels=(width,) * 3,
        decoder_block_out_channels=(width,) * 3,
        num_encoder_blocks=(0, 1, 3),
        num_decoder_blocks=(4, 2, 0),
        latent_channels=LATENT_CHANNELS,
    )


def moment_penalty(z: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """Squared distance of each latent channel's mean and variance from those of N(0, 1)."""
    return z.mean((0, 2, 3)).square().mean() + (z.var((0, 2, 3)) - 1).square().mean()


def make(plan: Plan, device: str) -> Job:
    """The squared error of reconstructions (the aim is PSNR) from latents with a little noise."""
    torch.manual_seed(plan.seed)
    vae = new_autoencoder().to(memory_format=torch.channels_last)

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        images = pocket_images("train", range(step * BATCH, (step + 1) * BATCH)).to(vae.device)
        images = images.contiguous(memory_format=torch.channels_last)
        z = vae.encoder(images)
        noise = torch.randn(z.shape, generator=generator).to(z.device)
        error = (vae.decoder(z + LATENT_NOISE * noise) - images).square().mean()
        return error + 1e-3 * moment_penalty(z)

    def save(folder: Path) -> None:
        with torch.no_grad():
            latents = vae.encode(pocket_images("val", range(256)).to(vae.device)).latents
        vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
        save_half(vae, folder)

    return Job(vae, loss_at, save, plan, f"pocket scenes train 0-{plan.steps * BATCH - 1}")
