# SPDX-License-Identifier: Apache-2.0
"""SpaText's pixel variant: a U-Net over folded pixels, conditioned on CLIP embeddings alone.

The paper fine-tunes a decoder that was trained without maps. This one is trained with maps from its
first step: one run instead of two.
"""

from pathlib import Path

import torch
from torch import Tensor

from spatext_lab.clip import Clip
from spatext_lab.diffusion import (
    Condition,
    UNetDenoiser,
    drop_conditions,
    noise_schedule,
    training_loss,
)
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.spatext.pixel import PixelFold, caption_state
from spatext_lab.spatext.prior import DiffusionPrior
from spatext_lab.spatext.representation import training_map
from spatext_lab.training import cache
from spatext_lab.training.job import Job, device_of, part, save_model
from spatext_lab.training.loop import Plan
from spatext_lab.training.recipes.spatext import BATCH, COUNT, DROP, EXACT, MASKS, MIN_AREA, SCENES
from spatext_lab.training.recipes.text_to_image import new_unet


def make(
    plan: Plan,
    device: str,
    *,
    clip: Path | None = None,
    prior: Path | None = None,
    batch: int = BATCH,
) -> Job:
    """The diffusion loss in pixel space; caption embedding and map dropped, 10 % each.

    Args:
        clip: the folder of the CLIP that embeds segments and texts; the shipped one if not given.
        prior: the folder of the prior; the shipped one if not given.
        batch: images a step.
    """
    torch.manual_seed(plan.seed)
    where = device_of(device)
    reader = Clip.from_pretrained(part(clip, "spatext/clip")).to(where)
    learned = DiffusionPrior.from_pretrained(part(prior, "spatext/prior")).to(where)
    fold = PixelFold()
    channels, d = fold.config.block_out_channels[-1], reader.embedding_dim
    unet = new_unet(channels + d, channels, d).to(memory_format=torch.channels_last)
    limits = {"most_regions": COUNT[1], "min_area": MIN_AREA}
    # The network predicts x_0: v is mostly noise, and 48 channels of it a cell have to pass through
    # layers of 64. Whether this is where the speckle comes from is not measured.
    model = SpaTextPipeline(unet, fold, noise_schedule("sample"), reader, prior=learned, **limits)
    pool = cache.build(cache.pocket_examples(SCENES), SCENES, fold, reader)
    denoiser, scheduler = UNetDenoiser(model.unet), model.scheduler

    def loss_at(number: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(pool.latents), (batch,), generator=generator)
        state = caption_state(pool.image_embeddings[index])
        exact = torch.rand(batch, 1, 1, 1, generator=generator) < EXACT
        covered = torch.where(exact, pool.coverage[index], pool.painted[index])
        st_map = training_map(pool.embeddings[index], covered, COUNT, MIN_AREA, generator)
        condition = Condition(state, torch.zeros_like(state), st_map)
        drop = torch.rand(2, batch, generator=generator) < DROP
        condition = drop_conditions(condition, *drop).to(model.device)
        x_0 = pool.latents[index]
        noise, t = cache.draw_noise(x_0, scheduler, generator)
        x_0, t, noise = (each.to(model.device) for each in (x_0, t, noise))
        return training_loss(denoiser, x_0, condition, t, noise, scheduler)

    phrase = f"pocket scenes train 0-{SCENES - 1}; {MASKS}"
    save = lambda folder: save_model(model, folder)  # noqa: E731
    return Job(model.unet, loss_at, save, plan, phrase, [model.unet])
