# SPDX-License-Identifier: Apache-2.0
"""Learned energy guidance, as a summary of SpaText describes it; SpaText itself has no energy.

A network scores how well a noisy image fits a spatio-textual map. While a model samples, its image
moves down the gradient of that energy, so a model that has never seen a map is steered by one.
"""

import math
from numbers import Real as Number

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from einops import rearrange, reduce
from jaxtyping import Float, Real
from torch import Tensor, nn

from spatext_lab.baselines.summaries.inputs import FOLD, GROUPS, folded
from spatext_lab.diffusion import Condition, Denoiser, noise_schedule


class EnergyNetwork(ModelMixin, ConfigMixin):
    """E(x_t, t, ST): how badly a noisy image fits a map, one number per image.

    The summary's form (residual blocks with skips over image and map, a value per cell, averaged),
    and the timestep, without which a network cannot know how much of x_t is noise.

    Args:
        channels: of x_t.
        map_channels: of the map.
        width: channels of the blocks.
        blocks: number of residual blocks.

    Example:
        >>> energy = EnergyNetwork.from_pretrained(zoo.folder("pocket", "energy"))
        >>> energy(x_t, t, st_map)  # lower where x_t fits its map
    """

    @register_to_config
    def __init__(
        self, channels: int = 4, map_channels: int = 64, width: int = 64, blocks: int = 3
    ) -> None:
        super().__init__()
        self.times = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(width, 2 * width)
        read = FOLD**2 * (channels + map_channels)
        self.conv_in = nn.Conv2d(read, width, 3, padding=1)
        shape = {"temb_channels": 2 * width, "groups": GROUPS, "groups_out": GROUPS}
        self.resnets = nn.ModuleList(
            ResnetBlock2D(in_channels=2 * width, out_channels=width, **shape) for _ in range(blocks)
        )
        self.conv_out = nn.Conv2d(width, FOLD**2, 1)
        alphas_cumprod = noise_schedule().alphas_cumprod
        self.register_buffer("signal", alphas_cumprod.sqrt(), persistent=False)

    def forward(
        self,
        x_t: Float[Tensor, "b c h w"],
        t: Real[Tensor, "b"],
        st_map: Float[Tensor, "_ d _ _"],
    ) -> Float[Tensor, "b"]:
        """The energy of each image beside its map: the mean over all cells of -log P(right).

        P(right) is the probability that a cell's entry of the map is what the image has there; a
        cell whose entry is empty counts 0.

        Raises:
            ValueError: for a map of another shape than this network reads beside this x_t.
        """
        wrong = F.softplus(-self.log_odds(x_t, t, st_map))  # -log sigmoid
        return reduce(wrong * (st_map != 0).any(1), "b h w -> b", "mean")

    def log_odds(
        self,
        x_t: Float[Tensor, "b c h w"],
        t: Real[Tensor, "b"],
        st_map: Float[Tensor, "_ d _ _"],
    ) -> Float[Tensor, "b h w"]:
        """The log odds of each cell that its entry of the map is what the image has there.

        Raises:
            ValueError: for a map of another shape than this network reads beside this x_t.
        """
        shape = (len(x_t), self.config.map_channels, *x_t.shape[2:])
        if st_map.shape != shape or any(side % FOLD for side in shape[2:]):
            raise ValueError(
                f"st_map has shape {tuple(st_map.shape)}; for this x_t the energy reads {shape}, "
                "with an even height and width"
            )
        time = self.time_embedding(self.times(t).to(x_t))
        h = skip = self.conv_in(folded(x_t, st_map))
        for block in self.resnets:
            h = block(torch.cat([h, skip], dim=1), time)
        # Pure noise tells nothing, and x_t tells of x_0 in proportion to sqrt(alpha_bar_t). So do
        # the log odds then, and so does their gradient, which sampling divides by this factor.
        signal = self.signal[t.round().long()].to(x_t)
        odds = F.pixel_shuffle(self.conv_out(h), FOLD)[:, 0]
        return rearrange(signal, "b -> b 1 1") * odds

    def gradient(
        self,
        x_t: Float[Tensor, "b c h w"],
        t: Real[Tensor, "b"],
        st_map: Float[Tensor, "_ d _ _"],
    ) -> Float[Tensor, "b c h w"]:
        """The gradient of each image's energy with respect to x_t."""
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            energy = self(x.to(self.dtype), t, st_map).sum()
        return torch.autograd.grad(energy, x)[0]


# Classifier guidance, Dhariwal and Nichol, arXiv 2105.05233, algorithm 2:
# eps_hat = eps - s sqrt(1 - alpha_bar_t) grad log p(y | x_t), with -E in place of log p(y | x_t)
def energy_guided(
    denoiser: Denoiser, energy: EnergyNetwork, energy_scale: float, scheduler: SchedulerMixin
) -> Denoiser:
    """A denoiser whose images also move down the gradient of an energy of their maps.

    Args:
        denoiser: guided or not; it may ignore the condition's map, which the energy reads.
        energy: one backward pass through it for each prediction.
        energy_scale: s, for an energy that is a mean over cells: near their number, so 200 of 256,
            for a model that ignores maps; at most 100 for one that reads them. 0 is off, and gives
            the denoiser itself.
        scheduler: says what the denoiser predicts.

    Raises:
        ValueError: for a scale that is not a finite number >= 0 and, when called, for one with
            which the prediction overflows, and for a map that the energy does not read.
    """
    if not (isinstance(energy_scale, Number) and 0 <= energy_scale < math.inf):
        raise ValueError(
            f"energy_scale is {energy_scale!r:.80}; pass a finite number >= 0 (0 is no guidance)"
        )
    if energy_scale == 0:
        return denoiser

    def denoise(
        x_t: Float[Tensor, "b c h w"], t: Real[Tensor, "b"], condition: Condition
    ) -> Float[Tensor, "b c h w"]:
        alpha_bar = scheduler.alphas_cumprod.to(x_t)[t.round().long()].view(-1, 1, 1, 1)
        signal, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        moved = energy_scale * sigma * energy.gradient(x_t, t, condition.st_map)  # eps_hat - eps
        # At one x_t, v = (eps - sigma x_t) / signal and x_0 = (x_t - sigma eps) / signal.
        slope = {"epsilon": 1.0, "v_prediction": 1 / signal, "sample": -sigma / signal}
        prediction = denoiser(x_t, t, condition)
        prediction = prediction + slope[scheduler.config.prediction_type] * moved
        if not prediction.isfinite().all():
            raise ValueError(
                f"energy_scale is {energy_scale!r:.80} and the prediction at timestep "
                f"{t[0].item():.0f} is infinite or NaN; pass a smaller scale"
            )
        return prediction

    return denoise
