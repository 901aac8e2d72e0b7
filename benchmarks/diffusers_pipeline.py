# SPDX-License-Identifier: Apache-2.0
"""Text-to-image against diffusers' own `StableDiffusionPipeline`: the same parts, equal steps."""

from collections.abc import Iterator

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from benchmarks.timer import Case, Setup
from spatext_lab import zoo
from spatext_lab.scene import Scene
from spatext_lab.text_to_image.pipeline import TextToImagePipeline

CAPTION = "a red house by the sea"


def cases(setup: Setup) -> Iterator[Case]:
    """One image, and eight."""
    ours = TextToImagePipeline.from_pretrained(zoo.folder(setup.models, "text-to-image"))
    parts = {name: part for name, part in ours.components.items() if name != "image_processor"}
    peer = StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    for pipe in (ours, peer):
        pipe.set_progress_bar_config(disable=True)
    for batch in (1, 8):
        size = ours.unet.config.sample_size
        shape = (batch, ours.unet.config.out_channels, size, size)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        same = {
            "num_inference_steps": setup.steps,
            "guidance_scale": 2.0,
            "latents": noise,
            "output_type": "pt",
        }

        def our_images(batch: int = batch, same: dict = same) -> Tensor:
            return ours([Scene(CAPTION)] * batch, **same).images

        def their_images(batch: int = batch, same: dict = same) -> Tensor:
            return peer([CAPTION] * batch, **same).images

        what = f"text-to-image, batch {batch} / diffusers' StableDiffusionPipeline"
        yield Case(what, our_images, their_images, 1.0)
