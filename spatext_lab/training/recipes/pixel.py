# SPDX-License-Identifier: Apache-2.0
"""SpaText's pixel variant: a U-Net over folded pixels, told CLIP image vectors only.

The paper fine-tunes a decoder that had been trained without maps. This one learns with maps from
its first step: one run instead of two.
"""

import torch
from torch import Tensor

from spatext_lab import zoo
from spatext_lab.clip import Clip
from spatext_lab.diffusion import Condition, noise_schedule
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.spatext.pixel import PixelFold, caption_state
from spatext_lab.spatext.prior import DiffusionPrior
from spatext_lab.spatext.representation import training_map
from spatext_lab.training import cache
from spatext_lab.training.job import Job, device_of
from spatext_lab.training.loop import Plan
from spatext_lab.training.recipes.spatext import COUNT, MIN_AREA, SCENES, map_job
from spatext_lab.training.recipes.text_to_image import new_unet


def make(plan: Plan, device: str) -> Job:
    """The diffusion loss in pixel space; the caption's vector and the map dropped, 10 % each."""
    torch.manual_seed(plan.seed)
    where = device_of(device)
    clip = Clip.from_pretrained(zoo.folder("pocket", "spatext/clip")).to(where)
    prior = DiffusionPrior.from_pretrained(zoo.folder("pocket", "spatext/prior")).to(where)
    fold = PixelFold()
    channels = fold.config.block_out_channels[-1]
    unet = new_unet(channels + clip.width, channels, clip.width)
    unet = unet.to(memory_format=torch.channels_last)
    limits = {"most_regions": COUNT[1], "min_area": MIN_AREA}
    model = SpaTextPipeline(unet, fold, noise_schedule(), clip, prior=prior, **limits)
    pool = cache.build(cache.pocket_examples(SCENES), SCENES, fold, clip)

    def condition_of(index: Tensor, generator: torch.Generator) -> Condition:
        state = caption_state(pool.pictures[index])
        vectors, cover = pool.vectors[index], pool.cover[index]
        st_map = training_map(vectors, cover, COUNT, MIN_AREA, generator)
        return Condition(state, torch.zeros_like(state), st_map)

    return map_job(model, pool, condition_of, plan, f"pocket scenes train 0-{SCENES - 1}")
