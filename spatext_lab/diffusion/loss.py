# SPDX-License-Identifier: Apache-2.0
"""The training loss of every diffusion model here: the squared error of the prediction."""

import torch.nn.functional as F
from diffusers import SchedulerMixin
from jaxtyping import Float, Int
from torch import Tensor

from spatext_lab.diffusion.guidance import Condition, Denoiser
from spatext_lab.diffusion.process import WRONG_BATCH, add_noise, target


# DDPM, arXiv 2006.11239, equation 14: E || target - prediction(x_t, t, c) ||^2, equal weights
def training_loss(
    denoiser: Denoiser,
    x_0: Float[Tensor, "b c h w"],
    condition: Condition,
    t: Int[Tensor, "b"],
    noise: Float[Tensor, "b c h w"],
    scheduler: SchedulerMixin,
    weight: Float[Tensor, "b 1 h w"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error of the prediction over batch, channels and pixels.

    Args:
        x_0: clean images or latents.
        condition: of the same batch.
        t: timesteps, sampled uniformly by the caller from 0 ... num_train_timesteps - 1.
        noise: sampled by the caller from N(0, 1), so that a run is reproducible bit for bit.
        scheduler: source of `alphas_cumprod` and of the prediction type.
        weight: of each pixel; None for equal weights, as in the paper. A weight that depends on the
            condition alone does not change which prediction is optimal.

    Raises:
        ValueError: where the condition is not for len(x_0) images.
    """
    if len(condition.text) != len(x_0):
        raise ValueError(WRONG_BATCH.format(len(condition.text), len(x_0)))
    alphas_cumprod = scheduler.alphas_cumprod.to(x_0.device)
    prediction = denoiser(add_noise(x_0, noise, t, alphas_cumprod), t, condition)
    wanted = target(x_0, noise, t, alphas_cumprod, scheduler.config.prediction_type)
    errors = F.mse_loss(prediction.to(wanted.dtype), wanted, reduction="none")
    return errors.mean() if weight is None else (weight * errors).mean()
