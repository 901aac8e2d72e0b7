# SPDX-License-Identifier: Apache-2.0
"""The U-Net of the text-to-image model: diffusers' own, which also knows where its cells are."""

import math
from functools import wraps

import torch
from diffusers import ModelMixin, UNet2DConditionModel  # noqa: F401, diffusers looks for it here
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

WAVES = 4  # per axis; the finest has a period of a fourth of the image
POSITION_CHANNELS = 4 * WAVES


class PocketUNet(UNet2DConditionModel):
    """`UNet2DConditionModel` with two additions, both made from what every pipeline passes to it.

    * Positions: the first convolution also reads where each cell is (CoordConv: Liu et al., arXiv
      1807.03247). A convolution alone knows that only from the zeros beyond the image's border.
      For a crop, `window` says which part of the whole image it shows.
    * The caption as one vector beside the time: the hidden state of the last token, which has read
      the whole text, is projected and added to the time embedding (as GLIDE does, Nichol et al.,
      arXiv 2112.10741), so that every block of the network sees it.

    From outside it takes the channels of x_t alone, so diffusers' own pipelines can run it.
    """

    # Its arguments are those of its parent, which is what diffusers asks when it reads a folder.
    @wraps(UNet2DConditionModel.__init__, assigned=())
    def __init__(self, *, in_channels: int = 4, **shape) -> None:
        super().__init__(in_channels=POSITION_CHANNELS + in_channels, **shape)
        self.register_to_config(in_channels=in_channels)  # what it takes from outside
        time_channels = self.time_embedding.linear_2.out_features
        self.caption_embedding = nn.Linear(self.config.cross_attention_dim, time_channels)

    def forward(
        self,
        sample: Float[Tensor, "b c h w"],
        timestep: Tensor | float | int,
        encoder_hidden_states: Float[Tensor, "b l d"],
        *args,
        window: Float[Tensor, "b 4"] | None = None,
        **kwargs,
    ):
        """The prediction for `sample`; other arguments are those of `UNet2DConditionModel`.

        Args:
            window: (x0, y0, x1, y1) in [0, 1], which part of the whole image each sample shows;
                None for all of it, at whatever resolution `sample` has.
        """
        if window is None:  # all of the image, (0, 0, 1, 1)
            corner = sample.new_zeros(len(sample), 2, dtype=torch.float32)
            window = torch.cat([corner, corner + 1], dim=1)
        where = positions(window, *sample.shape[2:]).to(sample)
        # positions first: SpaText's wider convolution appends its channels at the end
        return super().forward(
            torch.cat([where, sample], dim=1), timestep, encoder_hidden_states, *args, **kwargs
        )

    def get_aug_embed(self, emb, encoder_hidden_states, added_cond_kwargs):
        """What is added to the time embedding: here the projected state of the last token."""
        return self.caption_embedding(encoder_hidden_states[:, -1])


def positions(window: Float[Tensor, "b 4"], h: int, w: int) -> Float[Tensor, "b 16 h w"]:
    """Sines and cosines of each cell's centre in the whole image, variance about 1/2.

    Per axis cos(pi k v) and sin(pi k v) for k = 1, 2, 4, 8, with v in [0, 1] the centre's
    coordinate; first along x, then along y.
    """
    x0, y0, x1, y1 = window.unbind(1)

    def waves(start: Tensor, end: Tensor, count: int) -> Tensor:
        centre = (torch.arange(count, device=window.device) + 0.5) / count
        v = start[:, None] + (end - start)[:, None] * centre
        angle = math.pi * v[:, None] * 2 ** torch.arange(WAVES, device=window.device)[:, None]
        return torch.cat([angle.cos(), angle.sin()], dim=1)

    across = repeat(waves(x0, x1, w), "b k w -> b k h w", h=h)
    down = repeat(rearrange(waves(y0, y1, h), "b k h -> b k h 1"), "b k h 1 -> b k h w", w=w)
    return torch.cat([across, down], dim=1)
