# SPDX-License-Identifier: Apache-2.0
"""A U-Net of diffusers as a `Denoiser`."""

import math

import torch
from diffusers import UNet2DConditionModel
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor

from spatext_lab.diffusion.condition import Condition


class UNetDenoiser:
    """A U-Net as a `Denoiser`, with or without a map.

    A U-Net gives back as many channels as x_t has; those that it takes beyond them are the map's.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.unet = unet

    def __call__(
        self, x_t: Float[Tensor, "b c h w"], t: Int[Tensor, "b"], condition: Condition
    ) -> Float[Tensor, "b c h w"]:
        """The prediction for x_t; a U-Net that takes a map and is given None is given the zero map.

        Raises ValueError for a map of another shape than this U-Net takes beside this x_t, and for
        any map if it takes none: left out without a word, it would just have no effect.
        """
        st_map = self._checked_map(x_t, condition)
        # CLIP's vectors have length 1, so their d numbers are small; brought to the variance of the
        # latents, the map is learned as fast as everything else (DALL-E 2's prior does the same).
        x_in = x_t if st_map is None else torch.cat([x_t, st_map * st_map.shape[1] ** 0.5], dim=1)
        text = {"encoder_hidden_states": condition.text}
        return self.unet(x_in, t, **text, encoder_attention_mask=condition.text_mask).sample

    def _checked_map(self, x_t: Tensor, condition: Condition) -> Tensor | None:
        channels = self.unet.config.in_channels - self.unet.config.out_channels
        st_map, shape = condition.st_map, (len(x_t), channels, *x_t.shape[2:])
        if st_map is None:
            return x_t.new_zeros(shape) if channels else None
        if st_map.shape != shape:
            wanted = f"one of shape {shape}" if channels else "none (st_map=None)"
            raise ValueError(f"st_map has shape {tuple(st_map.shape)}; this U-Net takes {wanted}")
        return st_map.to(x_t)


class PlacedDenoiser(UNetDenoiser):
    """A U-Net as a `Denoiser` that is also told where each of its cells is.

    A convolution knows its place only by the zeros beyond the picture's edge, and that faintly in
    the middle. Here the input channels beyond those of x_t hold coordinates, always the same ones
    (CoordConv: Liu et al., arXiv 1807.03247).
    """

    def __call__(
        self, x_t: Float[Tensor, "b c h w"], t: Int[Tensor, "b"], condition: Condition
    ) -> Float[Tensor, "b c h w"]:
        """The prediction for x_t."""
        places = coordinates(*x_t.shape[2:]).to(x_t)
        x_in = torch.cat([x_t, repeat(places, "c h w -> b c h w", b=len(x_t))], dim=1)
        text = {"encoder_hidden_states": condition.text}
        return self.unet(x_in, t, **text, encoder_attention_mask=condition.text_mask).sample


COORDINATES = 8  # channels


def coordinates(h: int, w: int) -> Float[Tensor, "8 h w"]:
    """Half and whole waves along x, then along y, over a grid of h x w cells; mean 0.

    cos(pi v), sin(pi v) less its mean, cos(2 pi v), sin(2 pi v), v in (0, 1) at the cells' centres,
    times sqrt(2): variance 1, but 0.19 of the second.
    """

    def waves(count: int) -> Tensor:
        v = math.pi * (torch.arange(count) + 0.5) / count
        rows = [v.cos(), v.sin() - 2 / math.pi, (2 * v).cos(), (2 * v).sin()]
        return 2**0.5 * torch.stack(rows)

    across, down = repeat(waves(w), "c w -> c h w", h=h), repeat(waves(h), "c h -> c h w", w=w)
    return torch.cat([across, down])
