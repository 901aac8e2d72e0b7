# SPDX-License-Identifier: Apache-2.0
"""Two tiny text-to-image models of random weights: the pocket U-Net, and Stable Diffusion's own."""

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler

from spatext_lab.course import stand_in
from spatext_lab.diffusion import noise_schedule
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from spatext_lab.text_to_image.unet import PocketUNet
from tests.tiny import WIDTH

POCKET_SHAPE = {
    "sample_size": 16,
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (8, 8, 8),
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}


@pytest.fixture(scope="session")
def stable_diffusion(tmp_path_factory) -> Path:
    return stand_in.stable_diffusion(tmp_path_factory.mktemp("sd"), levels=3, side=16)


@pytest.fixture(scope="session", params=["pocket", "stable-diffusion"])
def base(request, stable_diffusion) -> TextToImagePipeline:
    """Deterministic schedules whose step is linear, so that a slow loop can take it by hand."""
    pipeline = TextToImagePipeline.from_pretrained(stable_diffusion)
    if request.param == "pocket":
        torch.manual_seed(0)
        parts = {"unet": PocketUNet(**POCKET_SHAPE), "scheduler": noise_schedule()}
    else:
        config = pipeline.scheduler.config
        exact = {"clip_sample": False, "set_alpha_to_one": True}
        parts = {"scheduler": DDIMScheduler.from_config(config, **exact)}
    return TextToImagePipeline.from_pipe(pipeline, **parts)
