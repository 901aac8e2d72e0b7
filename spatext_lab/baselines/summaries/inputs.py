# SPDX-License-Identifier: Apache-2.0
"""What the summary's networks read: a noisy image beside its map, a few cells in each channel."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

GROUPS = 8  # of the normalizations
FOLD = 2  # cells folded into channels, per side: four times as fast as at the latents' resolution


def folded(
    x_t: Float[Tensor, "b c h w"], st_map: Float[Tensor, "b d h w"]
) -> Float[Tensor, "b n h/2 w/2"]:
    """x_t and the map as channels of FOLD x FOLD times fewer cells.

    As for a U-Net that reads a map: its embeddings have length 1, and the variance of the latents
    after the factor sqrt(d).
    """
    both = torch.cat([x_t, st_map.to(x_t) * st_map.shape[1] ** 0.5], dim=1)
    return F.pixel_unshuffle(both, FOLD)
