# SPDX-License-Identifier: Apache-2.0
"""The pocket judge: a segmenter of kind and colour, trained on true renders."""

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from jaxtyping import Float
from torch import Tensor

from spatext_lab.datasets.pocket import pocket_item
from spatext_lab.evaluation.judge import COLOUR_CLASSES, FOLD, KIND_CLASSES, Judge
from spatext_lab.images import to_tensor
from spatext_lab.training.job import Job
from spatext_lab.training.plan import Plan

BATCH = 8


def new_judge() -> Judge:
    """A U-Net on images folded 2 x 2 into channels: full resolution in and out, at less cost."""
    channels = (32, 48, 64)
    return Judge(
        UNet2DModel(
            in_channels=3 * FOLD**2,
            out_channels=(KIND_CLASSES + COLOUR_CLASSES) * FOLD**2,
            block_out_channels=channels,
            down_block_types=("DownBlock2D",) * 3,
            up_block_types=("UpBlock2D",) * 3,
            layers_per_block=1,
            norm_num_groups=8,
            add_attention=False,
        )
    )


def soften(images: Float[Tensor, "b 3 h w"], generator: torch.Generator) -> Tensor:
    """True renders, some a little blurred and noisy, as decoded images are."""
    b = len(images)
    blur = 0.8 * torch.rand(b, 1, 1, 1, generator=generator)
    noise = 0.08 * torch.rand(b, 1, 1, 1, generator=generator)
    smooth = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return torch.lerp(images, smooth, blur) + noise * torch.randn(images.shape, generator=generator)


def make(plan: Plan, device: str) -> Job:
    """Cross-entropy of kind and of colour at every pixel."""
    torch.manual_seed(plan.seed)
    judge = new_judge()
    judge.unet.to(memory_format=torch.channels_last)

    def loss_at(number: int, generator: torch.Generator) -> Tensor:
        items = [pocket_item("train", i) for i in range(number * BATCH, (number + 1) * BATCH)]
        images = soften(to_tensor(item.image for item in items), generator)
        kinds, colours = (
            torch.from_numpy(np.stack([getattr(item, name) for item in items])).long()
            for name in ("kind_map", "colour_map")
        )
        device = judge.unet.device
        kind_logits, colour_logits = judge.logits(images.to(device))
        return F.cross_entropy(kind_logits, kinds.to(device)) + F.cross_entropy(
            colour_logits, colours.to(device)
        )

    return Job(
        judge.unet,
        loss_at,
        judge.save_pretrained,
        plan,
        f"pocket scenes train 0-{plan.batches * BATCH - 1}",
    )
