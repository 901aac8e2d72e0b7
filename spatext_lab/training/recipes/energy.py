# SPDX-License-Identifier: Apache-2.0
"""The learned energy: it tells an image's own map from other maps, at all noise levels.

Noise-contrastive estimation (Gutmann and Hyvarinen, 2010): a classifier that tells pairs (x_t, ST)
that belong together from pairs whose map comes from elsewhere has, at its best, the log odds

    log p(x_t, ST) / (p(x_t) p(ST)) = log p(ST | x_t) - log p(ST).

The second term does not depend on x_t, so the gradient of the log odds is that of log p(ST | x_t):
classifier guidance, with the map as the class. A softmax over several maps of one image in place
of the sigmoid would leave any function of x_t free in them, and its gradient would guide too.

The odds are learned for each cell, so that the gradient says where the image is wrong. The energy
is the mean of -log P(right) over the cells: the same direction, times 1 - P(right), so that a cell
that fits is left alone. (The log odds themselves as the energy blow objects up; docs/log.md.)
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spatext_lab.baselines.summaries.energy import EnergyNetwork
from spatext_lab.clip import Clip
from spatext_lab.diffusion import add_noise, noise_schedule
from spatext_lab.spatext.representation import choose_segments, paint
from spatext_lab.training import cache
from spatext_lab.training.job import Job, device_of, part, save_half
from spatext_lab.training.loop import Plan
from spatext_lab.training.recipes.spatext import COUNT, EXACT, MIN_AREA

BATCH, SCENES = 32, 4000
MOVED, REPLACED = 0.25, 0.5  # of the maps, and of their segments


def make(plan: Plan, device: str, *, vae: Path | None = None, clip: Path | None = None) -> Job:
    """Cross-entropy of every covered cell: is this the segment that the image has here?

    Args:
        vae: the autoencoder's folder; the shipped one if not given.
        clip: the folder of the CLIP that embeds the segments; the shipped one if not given.
    """
    torch.manual_seed(plan.seed)
    encoder = AutoencoderTiny.from_pretrained(
        part(vae, "text-to-image/vae"), torch_dtype=torch.float32
    ).to(device_of(device))
    reader = Clip.from_pretrained(part(clip, "spatext/clip")).to(device_of(device))
    pool = cache.build(cache.pocket_examples(SCENES), SCENES, encoder, reader)
    return contrast(pool, plan)


def contrast(pool: cache.Cache, plan: Plan) -> Job:
    """The job of training an energy, from a cache of images and their segments."""
    energy = EnergyNetwork(pool.latents.shape[1], pool.embeddings.shape[2])
    energy.to(memory_format=torch.channels_last)
    scheduler = noise_schedule()

    def loss_at(number: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(pool), (BATCH,), generator=generator)
        st_map, covered, right = draw_maps(pool, index, generator)
        noise, t = cache.draw_noise(pool.latents[index], scheduler, generator)
        x_t = add_noise(pool.latents[index], noise, t, scheduler.alphas_cumprod)
        x_t, t, st_map, covered, right = (
            each.to(energy.device) for each in (x_t, t, st_map, covered, right)
        )
        odds = energy.log_odds(x_t, t, st_map)
        each = F.binary_cross_entropy_with_logits(odds, right, reduction="none")
        return (each * covered).sum() / covered.sum()

    save = lambda folder: save_half(energy, folder)  # noqa: E731
    return Job(energy, loss_at, save, plan, f"pocket scenes train 0-{len(pool) - 1}")


def draw_maps(
    pool: cache.Cache, index: Int[Tensor, "b"], generator: torch.Generator
) -> tuple[Float[Tensor, "b d h w"], Float[Tensor, "b h w"], Float[Tensor, "b h w"]]:
    """Maps that fit their images in some places and not in others.

    One map in four has the places of another image's segments (objects moved), and half of all
    segments have the embedding of another image's (objects replaced); both, and the map is another
    scene's. A map without some of its segments is not a wrong one: each has a random choice of
    them, as in SpaText's training. Half are exact, half as people paint them.

    Args:
        pool: images and their segments.
        index: of the images.
        generator: source of the random choices.

    Returns:
        The maps; how much of each cell they cover; and how much of that the image has there too,
        in [0, 1].
    """
    b, k = len(index), pool.embeddings.shape[1]
    other = index.roll(1)
    draw = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
    exact, moved, replaced = draw(b) < EXACT, draw(b) < MOVED, draw(b, k) < REPLACED
    here, there = (_where(exact, pool.coverage[i], pool.painted[i]) for i in (index, other))
    embeddings = _where(replaced, pool.embeddings[other], pool.embeddings[index])
    covered = _where(moved, there, here)
    chosen = choose_segments(covered, COUNT, MIN_AREA, generator) & embeddings.any(2)
    covered = covered * chosen[..., None, None]
    right = torch.minimum(covered, here) * ~replaced[..., None, None]
    total = covered.sum(1)
    return paint(embeddings, covered), total, (right.sum(1) / total.clamp(min=1e-6)).clamp(max=1)


def _where(choice: Bool[Tensor, "*b"], yes: Tensor, no: Tensor) -> Tensor:
    """`torch.where` with the choice's axes first."""
    return torch.where(choice.view(*choice.shape, *[1] * (yes.dim() - choice.dim())), yes, no)
