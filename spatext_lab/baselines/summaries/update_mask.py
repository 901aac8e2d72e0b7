# SPDX-License-Identifier: Apache-2.0
"""A learned update mask, as a summary of SpaText describes it; SpaText itself has none.

A small network says which cells of the latents still change; the others keep the image that the
denoiser predicted for them before. Where no cell of an image changes, or only those in a window
do, the U-Net computes that window alone, or nothing: this is where time is saved.
"""

import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from jaxtyping import Bool, Float, Real
from torch import Tensor, nn

from spatext_lab.baselines.summaries.inputs import FOLD, GROUPS, folded


class UpdateMaskNetwork(ModelMixin, ConfigMixin):
    """M(x_t, ST, t): for each cell, whether its predicted image still changes, as log odds.

    The summary samples a mask from a softmax of two; one number a cell and a threshold say as much
    and give the same image each time.

    Args:
        channels: of x_t.
        map_channels: of the map.
        width: channels of the blocks.
        depth: number of residual blocks.

    Example:
        >>> network = UpdateMaskNetwork.from_pretrained(zoo.folder("pocket", "update-mask"))
        >>> network(x_t, t, st_map) > 0  # cells that still change
    """

    @register_to_config
    def __init__(
        self, channels: int = 4, map_channels: int = 64, width: int = 48, depth: int = 2
    ) -> None:
        super().__init__()
        self.times = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(width, width)
        self.conv_in = nn.Conv2d(FOLD**2 * (channels + map_channels), width, 3, padding=1)
        shape = {"temb_channels": width, "groups": GROUPS, "groups_out": GROUPS}
        self.blocks = nn.ModuleList(
            ResnetBlock2D(in_channels=width, out_channels=width, **shape) for _ in range(depth)
        )
        self.conv_out = nn.Conv2d(width, FOLD**2, 1)

    def forward(
        self,
        x_t: Float[Tensor, "b c h w"],
        t: Real[Tensor, "b"],
        st_map: Float[Tensor, "b d h w"],
    ) -> Float[Tensor, "b h w"]:
        """The log odds of every cell.

        Raises:
            ValueError: for a map or an x_t of another shape than this network reads.
        """
        config, size = self.config, x_t.shape[2:]
        shapes = (len(x_t), config.channels, *size), (len(x_t), config.map_channels, *size)
        if (x_t.shape, st_map.shape) != shapes or any(side % FOLD for side in size):
            raise ValueError(
                f"x_t has shape {tuple(x_t.shape)} and st_map {tuple(st_map.shape)}; the update "
                f"mask reads {shapes[0]} and {shapes[1]}, with an even height and width"
            )
        read = folded(x_t, st_map).to(self.dtype)
        time = self.time_embedding(self.times(t).to(read))
        h = self.conv_in(read)
        for block in self.blocks:
            h = block(h, time)
        return F.pixel_shuffle(self.conv_out(h), FOLD)[:, 0]


def changed(
    one: Float[Tensor, "*b c h w"], other: Float[Tensor, "*b c h w"], least: float
) -> Bool[Tensor, "*b h w"]:
    """Cells whose images differ by more than `least`, root mean square over the channels."""
    return (one - other).square().mean(-3).sqrt() > least
