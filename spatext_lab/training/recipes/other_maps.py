# SPDX-License-Identifier: Apache-2.0
"""The rivals of SpaText's map: the same fine-tune with another representation of the regions."""

from dataclasses import replace
from pathlib import Path
from typing import Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from spatext_lab.baselines.other_maps import OtherMapsPipeline
from spatext_lab.clip import Clip
from spatext_lab.datasets import pocket
from spatext_lab.datasets.coco import PhotoChoice
from spatext_lab.diffusion import UNetDenoiser, drop_conditions, training_loss
from spatext_lab.spatext.prior import DiffusionPrior
from spatext_lab.spatext.representation import choose_segments
from spatext_lab.spatext.widen import widen_input
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from spatext_lab.training.cache import draw_noise
from spatext_lab.training.job import Job, device_of, save_model
from spatext_lab.training.loop import Plan
from spatext_lab.training.recipes.spatext import (
    BATCH,
    COUNT,
    DROP,
    EXACT,
    MIN_AREA,
    base_parts,
    training_pool,
)

# The channels of similarity maps: every word that a pocket text can mean.
WORDS = (*pocket.KINDS, *pocket.COLOURS, *pocket.PATTERNS, *pocket.STUFF)


def make(
    plan: Plan,
    device: str,
    *,
    data: Path | None = None,
    base: str = "pocket",
    representation: Literal["binary", "caption", "similarity"] = "binary",
    batch: int = BATCH,
    cache: Path | None = None,
    **choice: Unpack[PhotoChoice],
) -> Job:
    """SpaText's fine-tune with another kind of map.

    Args:
        data: a folder in COCO layout; pocket scenes if not given.
        base: the model to start from, as in recipe spatext.
        representation: the kind of map.
        batch: images a step.
        cache: as in recipe spatext.
        choice: of the folder's photos, see `PhotoChoice`.
    """
    torch.manual_seed(plan.seed)
    least = choice.get("min_area", MIN_AREA)
    model = widened(*base_parts(base, device_of(device)), representation, least)
    pool, phrase = training_pool(model, data, cache, **choice)
    denoiser, scheduler = UNetDenoiser(model.unet), model.scheduler

    def loss_at(number: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(pool.latents), (batch,), generator=generator)
        captions = pool.draw_captions(index, generator)
        exact = torch.rand(batch, 1, 1, 1, generator=generator) < EXACT
        covered = torch.where(exact, pool.coverage[index], pool.painted[index])
        x_0 = pool.latents[index]
        if pool.half_latents is not None and plan.step_of(number) % 4 == 0:  # as SpaText learns
            x_0, covered = pool.half_latents[index], F.avg_pool2d(covered, 2)
        chosen = choose_segments(covered, COUNT, least, generator)
        texts = [
            [text for text, on in zip(pool.texts[i], row, strict=False) if on]  # rows are padded
            for i, row in zip(index.tolist(), chosen.tolist(), strict=True)
        ]
        condition = model.encode_captions([*map(model.caption, captions, texts)])
        covered = (covered * chosen[..., None, None]).to(model.device)
        st_map = model.paint(pool.embeddings[index].to(model.device), covered, captions)
        drop = (torch.rand(2, batch, generator=generator) < DROP).to(model.device)
        condition = drop_conditions(replace(condition, st_map=st_map), *drop)
        noise, t = draw_noise(x_0, scheduler, generator)
        x_0, t, noise = (each.to(model.device) for each in (x_0, t, noise))
        return training_loss(denoiser, x_0, condition, t, noise, scheduler)

    save = lambda folder: save_model(model, folder)  # noqa: E731
    return Job(model.unet, loss_at, save, plan, phrase, [model.unet])


def widened(
    base: TextToImagePipeline,
    clip: Clip,
    prior: DiffusionPrior | None,
    representation: str,
    min_area: float = MIN_AREA,
) -> OtherMapsPipeline:
    """The model before its first step: `base`, widened by the channels of its kind of map.

    Args:
        base: the text-to-image pipeline; it stays as it is.
        clip: embeds segments and texts.
        prior: from text embeddings to image embeddings; without one the texts' own are used.
        representation: the kind of map.
        min_area: the smallest fraction of the image that a segment of a training map covers.
    """
    words = [*WORDS] if representation == "similarity" else []
    channels = OtherMapsPipeline.channels_of(representation, clip, words)
    unet = widen_input(base.unet, channels).to(memory_format=torch.channels_last)
    kind = {"representation": representation, "words": words}
    limits = {"most_regions": COUNT[1], "min_area": min_area}
    return OtherMapsPipeline.from_pipe(base, unet=unet, clip=clip, prior=prior, **kind, **limits)
