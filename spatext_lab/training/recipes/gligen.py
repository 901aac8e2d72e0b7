# SPDX-License-Identifier: Apache-2.0
"""GLIGEN's fine-tune: the gated layers alone learn what boxes mean; the base is frozen."""

from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from spatext_lab import zoo
from spatext_lab.baselines.gated import GroundedDenoiser, is_gated
from spatext_lab.baselines.gligen import GligenPipeline
from spatext_lab.datasets.coco import PhotoChoice
from spatext_lab.diffusion import training_loss
from spatext_lab.scene import Scene
from spatext_lab.training.cache import Cache, draw_noise
from spatext_lab.training.job import Job, device_of, save_model
from spatext_lab.training.loop import Plan
from spatext_lab.training.recipes.reco.views import Stages, training_pool

BATCH = 64
# As ReCo's, but longer: the gates have to open, and the texts to be read, before a box counts.
STAGES = 1500, 3500
# Without the caption, boxes and their texts must be read; our choice. Grounding is dropped as in
# the released code, so that guidance has a null.
DROP_CAPTION, DROP_GROUNDING = 0.5, 0.1
LEAST_OBJECTS = 8  # that the model takes, although pocket scenes have fewer


def make(
    plan: Plan,
    device: str,
    *,
    data: Path | None = None,
    base: str = "pocket",
    batch: int = BATCH,
    cache: Path | None = None,
    **choice: Unpack[PhotoChoice],
) -> Job:
    """The diffusion loss on captions and grounding tokens, over the gated layers alone.

    Args:
        data: a folder in COCO layout; pocket scenes and PaintSkills' skills in them if not given.
        base: the text-to-image model that is frozen: "pocket", "sd15" or a folder.
        batch: images a step.
        cache: as in recipe reco.
        choice: of the folder's photos, see `PhotoChoice`.
    """
    torch.manual_seed(plan.seed)
    model = GligenPipeline.from_base(zoo.folder(base, "text-to-image")).to(device_of(device))
    pool, phrase = training_pool(model, data, plan.seed, cache, **choice)
    most = max(len(scene.regions) for scene in pool.scenes)
    model.register_to_config(max_objects=max(most, LEAST_OBJECTS))
    return fine_tune(model, pool, plan, phrase, batch)


def fine_tune(
    model: GligenPipeline, pool: Cache, plan: Plan, phrase: str, batch: int = BATCH
) -> Job:
    """The job of training gated layers, from a cache of images and their scenes."""
    denoiser, scheduler = GroundedDenoiser(model.unet), model.scheduler
    stages = Stages(pool, STAGES)
    for name, weight in model.unet.named_parameters():
        weight.requires_grad_(is_gated(name))

    def loss_at(number: int, generator: torch.Generator) -> Tensor:
        index, x_0 = stages.draw(plan.step_of(number), batch, generator)
        condition = model.condition(draw_scenes(pool, index, generator))
        noise, t = draw_noise(x_0, scheduler, generator)
        x_0, noise, t = (each.to(model.device) for each in (x_0, noise, t))
        return training_loss(denoiser, x_0, condition, t, noise, scheduler)

    model.unet.to(memory_format=torch.channels_last)
    save = lambda folder: save_model(model, folder)  # noqa: E731
    return Job(model.unet, loss_at, save, plan, phrase, model=model, protocol="boxes")


def draw_scenes(pool: Cache, index: Tensor, generator: torch.Generator) -> list[Scene]:
    """The scenes of a training step; captions and regions are dropped independently."""
    captions = pool.draw_captions(index, generator)
    u = torch.rand(2, len(index), generator=generator)
    drops = u[0] < DROP_CAPTION, u[1] < DROP_GROUNDING
    rows = zip(index.tolist(), captions, *(drop.tolist() for drop in drops), strict=True)
    return [
        Scene("" if no_caption else caption, () if no_regions else pool.scenes[i].regions)
        for i, caption, no_caption, no_regions in rows
    ]
