# SPDX-License-Identifier: Apache-2.0
"""More training for the autoencoder's decoder alone: sharper pictures from the same latents.

So a U-Net that was trained on the latents need not learn again, and can be trained meanwhile.
Stable Diffusion's autoencoder was refined in the same way.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from spatext_lab import zoo
from spatext_lab.training.data import pictures
from spatext_lab.training.job import Job, save_half
from spatext_lab.training.loop import Plan

BATCH = 8
FIRST = 100_000  # scenes that the autoencoder has not seen yet
LATENT_NOISE = 0.02  # less than at first: what is left to learn is fine detail


def make(plan: Plan, device: str) -> Job:
    """Squared error of decoded latents; the encoder is frozen."""
    torch.manual_seed(plan.seed)
    vae = AutoencoderTiny.from_pretrained(
        zoo.folder("pocket", "text-to-image/vae"), torch_dtype=torch.float32
    ).to(memory_format=torch.channels_last)
    vae.encoder.requires_grad_(False)

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        first = FIRST + step * BATCH
        images = pictures("train", range(first, first + BATCH)).to(vae.device)
        images = images.contiguous(memory_format=torch.channels_last)
        z = vae.encoder(images)
        noise = torch.randn(z.shape, generator=generator).to(z.device)
        return (vae.decoder(z + LATENT_NOISE * noise) - images).square().mean()

    def save(folder: Path) -> None:
        save_half(vae, folder)

    last = FIRST + plan.steps * BATCH - 1
    return Job(vae, loss_at, save, plan, f"pocket scenes train {FIRST}-{last}; encoder unchanged")
