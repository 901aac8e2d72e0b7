# SPDX-License-Identifier: Apache-2.0
"""A U-Net that reads the coordinates of its cells as further input channels.

A convolution infers its position from the zeros beyond the image's edge, and that faintly in the
middle (CoordConv: Liu et al., arXiv 1807.03247). Not in the paper: the shipped ReCo has it.
"""

import math

import torch
from einops import repeat
from jaxtyping import Float, Real
from torch import Tensor

from spatext_lab.diffusion import Condition, UNetDenoiser

COORDINATES = 8  # channels


class PlacedDenoiser(UNetDenoiser):
    """A U-Net as a `Denoiser` whose input channels beyond those of x_t hold `coordinates`."""

    def __call__(
        self, x_t: Float[Tensor, "b c h w"], t: Real[Tensor, "b"], condition: Condition
    ) -> Float[Tensor, "b c h w"]:
        """The prediction for x_t."""
        channels = coordinates(*x_t.shape[2:]).to(x_t)
        x_in = torch.cat([x_t, repeat(channels, "c h w -> b c h w", b=len(x_t))], dim=1)
        unet, text, mask = self.unet, condition.text, condition.text_mask
        text = {"encoder_hidden_states": text.to(unet.dtype), "encoder_attention_mask": mask}
        return unet(x_in.to(unet.dtype), t, **text).sample.to(x_t.dtype)


def coordinates(h: int, w: int) -> Float[Tensor, "8 h w"]:
    """Half and whole waves along x, then along y, over a grid of h x w cells; mean 0.

    cos(pi v), sin(pi v) less its mean, cos(2 pi v), sin(2 pi v), v in (0, 1) at the cells' centres,
    times sqrt(2): variance 1, but 0.19 of the second.
    """
    waves = []
    for count in (w, h):
        v = math.pi * (torch.arange(count) + 0.5) / count
        four = [v.cos(), v.sin() - 2 / math.pi, (2 * v).cos(), (2 * v).sin()]
        waves.append(2**0.5 * torch.stack(four))
    across, down = repeat(waves[0], "c w -> c h w", h=h), repeat(waves[1], "c h -> c h w", w=w)
    return torch.cat([across, down])
