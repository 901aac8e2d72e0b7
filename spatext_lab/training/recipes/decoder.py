# SPDX-License-Identifier: Apache-2.0
"""A better decoder for the autoencoder: sharper images from the same latents.

The encoder is frozen, so a U-Net that was trained on its latents remains valid, and can be trained
at the same time. Stable Diffusion's autoencoder was refined in the same way.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from jaxtyping import Float
from torch import Tensor

from spatext_lab.datasets.pocket.paintskills import SKILLS, SPLITS, skill_item
from spatext_lab.images import to_tensor
from spatext_lab.training.cache import pocket_images
from spatext_lab.training.job import Job, part, save_half
from spatext_lab.training.plan import Plan

WIDTH = 64  # channels; the autoencoder's first decoder has half of them, and blurs small objects
SCENES = 4  # of a batch; and an image of each of PaintSkills' skills, which has small objects
FIRST = 200_000  # scenes that the autoencoder was not trained on
LATENT_NOISE = 0.05  # makes the decoder robust to the small errors of a sampler


def make(plan: Plan, device: str, *, vae: Path | None = None) -> Job:
    """The squared error of decoded latents; the encoder is frozen.

    Args:
        vae: the folder of the autoencoder whose decoder is widened; the shipped one if not given.
    """
    torch.manual_seed(plan.seed)
    old = AutoencoderTiny.from_pretrained(part(vae, "text-to-image/vae"), torch_dtype=torch.float32)
    model = widened(old, WIDTH).to(memory_format=torch.channels_last)
    model.encoder.requires_grad_(False)

    def loss_at(number: int, generator: torch.Generator) -> Tensor:
        images = batch(number).to(model.device).contiguous(memory_format=torch.channels_last)
        z = model.encoder(images)
        noise = torch.randn(z.shape, generator=generator).to(z.device)
        return (model.decoder(z + LATENT_NOISE * noise) - images).square().mean()

    def save(folder: Path) -> None:
        save_half(model, folder)

    last = FIRST + plan.batches * SCENES - 1
    data = f"pocket scenes train {FIRST}-{last} and {plan.batches} of each skill; encoder unchanged"
    return Job(model, loss_at, save, plan, data)


def batch(number: int) -> Float[Tensor, "b 3 h w"]:
    """The images of a micro-batch, in [-1, 1]: new scenes, and one image of every skill."""
    first = FIRST + number * SCENES
    skills = [skill_item(skill, "train", number % SPLITS[skill]["train"]) for skill in SKILLS]
    small = to_tensor(item.image for item in skills)
    return torch.cat([pocket_images("train", range(first, first + SCENES)), small])


# Net2Net (Chen et al., arXiv 1511.05641) widens a trained network without changing its function.
@torch.no_grad()
def widened(vae: AutoencoderTiny, width: int) -> AutoencoderTiny:
    """The autoencoder with a decoder of more channels that decodes to the same images.

    The old channels keep their weights and ignore the new ones at first, whose own weights are
    random.

    Args:
        vae: the autoencoder, whose encoder is kept.
        width: channels of the new decoder; with the old one's width, `vae` itself is returned.

    Raises:
        ValueError: a width below the decoder's.
    """
    now = vae.config.decoder_block_out_channels
    if width == now[0]:
        return vae
    if width < now[0]:
        raise ValueError(f"width is {width}; the decoder has {now[0]} channels already")
    config = dict(vae.config) | {"decoder_block_out_channels": (width,) * len(now)}
    del config["block_out_channels"]  # diffusers derives it, and warns about it
    wide = AutoencoderTiny.from_config(config)
    wide.encoder.load_state_dict(vae.encoder.state_dict())
    old = dict(vae.decoder.named_parameters())
    for name, weight in wide.decoder.named_parameters():
        part = old[name]
        if weight.ndim == 4:  # a convolution's weights: to, from, height, width
            to, fro = part.shape[:2]
            weight[:to] = 0
            weight[:to, :fro] = part
        else:
            weight[: len(part)] = part
    return wide
