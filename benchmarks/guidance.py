# SPDX-License-Identifier: Apache-2.0
"""An image with N conditions: one call of the network a step, against one call a condition."""

import copy
from collections.abc import Iterator
from functools import partial

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor

from benchmarks.timer import Case, Setup
from spatext_lab import zoo
from spatext_lab.scene import Region, Scene
from spatext_lab.spatext.pipeline import SpaTextPipeline

SCENE = Scene(
    "a house by the sea",
    [
        Region("a red house", box=(0.05, 0.4, 0.45, 0.85)),
        Region("a yellow moon", box=(0.6, 0.05, 0.9, 0.35)),
        Region("a green tree", box=(0.55, 0.45, 0.9, 0.95)),
    ],
)
BATCHES = (1, 8)
# settings of the image, by the number of conditions N that a step has beside the null
SETTINGS = {
    "one scale for caption and map": {},
    "a scale each for caption and map (N = 2)": {"region_guidance_scale": 2.0},
    "a scale each for caption and 3 regions (N = 4)": {"region_guidance_scale": [2.0, 1.5, 1.0]},
}


def cases(setup: Setup) -> Iterator[Case]:
    """Each setting in one call and in sequence; and one scale against a scale each."""
    pipe = SpaTextPipeline.from_pretrained(zoo.folder(setup.models, "spatext"))
    pipe.set_progress_bar_config(disable=True)
    for batch in BATCHES:
        passes = one_by_one(pipe, batch)
        shared = {"num_inference_steps": setup.steps, "output_type": "pt"}
        make = partial(images, scenes=[SCENE] * batch, **shared)
        for name, scales in SETTINGS.items():
            what = f"{name}, batch {batch}: one call a step / a call a condition"
            yield Case(what, partial(make, pipe, **scales), partial(make, passes, **scales))
        one, each = (partial(make, pipe, **scales) for scales in list(SETTINGS.values())[:2])
        what = f"one scale / a scale each for caption and map, batch {batch}"
        yield Case(what, one, each, 0.7 if batch == 8 else None, same=False)


def images(pipe: SpaTextPipeline, scenes: list[Scene], **settings) -> Tensor:
    """Images (b, 3, h, w) in [0, 1]."""
    return pipe(scenes, seed=0, **settings).images


def one_by_one(pipe: SpaTextPipeline, batch: int) -> SpaTextPipeline:
    """The pipeline with a network that reads one condition at a call, for `batch` images."""
    unet = copy.deepcopy(pipe.unet)
    whole = unet.forward

    def forward(x_in: Tensor, t: Tensor, encoder_hidden_states: Tensor, **rest):
        inputs = (each.split(batch) for each in (x_in, t, encoder_hidden_states))
        parts = [
            whole(x, at, encoder_hidden_states=text, **rest).sample
            for x, at, text in zip(*inputs, strict=True)
        ]
        return UNet2DConditionOutput(torch.cat(parts))

    unet.forward = forward
    return SpaTextPipeline.from_pipe(pipe, unet=unet)
