# SPDX-License-Identifier: Apache-2.0
"""A training step against a plain loop in the manner of diffusers' `train_text_to_image`."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.plain_loop import PLAN, Data, plain_loop
from benchmarks.timer import Case, Setup
from spatext_lab import zoo
from spatext_lab.clip import Clip
from spatext_lab.diffusion import UNetDenoiser, drop_conditions, training_loss
from spatext_lab.text_to_image.base import ScenePipeline
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from spatext_lab.training import cache
from spatext_lab.training.loop import Trainer
from spatext_lab.training.recipes.spatext import BATCH, DROP, fine_tune, widened


def cases(setup: Setup) -> Iterator[Case]:
    """Captions alone; captions and maps; the recipe, which has one step of four at half size."""
    base = TextToImagePipeline.from_pretrained(zoo.folder(setup.models, "text-to-image"))
    clip = Clip.from_pretrained(zoo.folder(setup.models, "spatext/clip"))
    examples = list(cache.pocket_examples(16 if setup.quick else 128))
    pool = cache.build(examples, len(examples), base.vae, clip, halves=True)
    whole, data = replace(pool, half_latents=None), Data.of(examples)
    loop = "/ a plain loop in the manner of diffusers"
    model = TextToImagePipeline.from_pipe(base, unet=copy.deepcopy(base.unet))
    model.unet.to(memory_format=torch.channels_last)
    ours = training(model.unet, partial(caption_loss, model, whole))
    peer = plain_loop(base, copy.deepcopy(base.unet), data)
    yield Case(f"training step, captions {loop}", partial(next, ours), partial(next, peer), 1 / 1.5)
    model = widened(base, clip)
    peer = plain_loop(base, plain_copy(model), data, clip)
    job = fine_tune(model, whole, PLAN, "")
    ours = training(job.module, job.loss_at)
    what = f"training step, captions and maps {loop}"
    yield Case(what, partial(next, ours), partial(next, peer), 1 / 1.5)
    model = widened(base, clip)
    peer = plain_loop(base, plain_copy(model), data, clip)
    job = fine_tune(model, pool, PLAN, "")
    ours = training(job.module, job.loss_at)
    what = f"four steps of SpaText's recipe, one of them at half size {loop}, four whole ones"
    yield Case(what, partial(four, ours), partial(four, peer), same=False)


def training(module: torch.nn.Module, loss_at: Callable) -> Iterator[float]:
    """The losses of the library's own loop."""
    for step in Trainer(module, loss_at, PLAN, "cpu").run():
        yield step.loss


def four(steps: Iterator[float]) -> list[float]:
    """The next four losses."""
    return [next(steps) for _ in range(4)]


def plain_copy(model: ScenePipeline) -> torch.nn.Module:
    """A copy of the U-Net, its weights in the order in memory that torch has by itself."""
    return copy.deepcopy(model.unet).to(memory_format=torch.contiguous_format)


def caption_loss(
    model: TextToImagePipeline, pool: cache.Cache, step: int, generator: torch.Generator
) -> Tensor:
    """The library's loss on cached latents, of captions alone."""
    index = torch.randint(len(pool), (BATCH,), generator=generator)
    condition = model.encode_captions(pool.draw_captions(index, generator))
    drop = torch.rand(2, BATCH, generator=generator) < DROP
    condition = drop_conditions(condition, *drop)
    x_0 = pool.latents[index]
    noise, t = cache.draw_noise(x_0, model.scheduler, generator)
    return training_loss(UNetDenoiser(model.unet), x_0, condition, t, noise, model.scheduler)
