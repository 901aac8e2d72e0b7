# SPDX-License-Identifier: Apache-2.0
"""Diffusion on a page: the noise schedule, the training loss, and the sampling loop.

The letters are the papers': `x_0` a clean picture (or latent), `noise` or `eps` Gaussian noise,
`x_t` the mixture of both at time `t`, and `alphas_cumprod[t]` (the papers' alpha_bar_t) the part
of the mixture's variance that is still picture.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from spatext_lab.diffusion.condition import Condition

PREDICTION_TYPES = ("epsilon", "v_prediction")


# (x_t (b, c, h, w), t int64 (b,), condition) -> the prediction (b, c, h, w), in the scheduler's
# prediction type
Denoiser = Callable[[Tensor, Tensor, Condition], Tensor]


def noise_schedule(prediction_type: str = "v_prediction") -> DDIMScheduler:
    """The pocket models' schedule: 1000 times, from all picture (t = 0) to all noise (t = 999).

    Raises ValueError for a prediction type other than "epsilon" and "v_prediction".
    """
    _check_prediction_type(prediction_type)
    return DDIMScheduler(
        num_train_timesteps=1000,
        # Cosine: almost no picture is left at the end (alphas_cumprod[999] is about 2e-9), so pure
        # noise is a fair start and very dark and very bright pictures (night, snow) can be reached.
        beta_schedule="squaredcos_cap_v2",
        # Where no picture is left, x_t is the noise: there epsilon is nothing to learn, v still is.
        prediction_type=prediction_type,
        # The default, True, clamps the predicted x_0 to [-1, 1]; unit-variance latents go beyond.
        clip_sample=False,
        # Start at t = 999, where x_t is the pure noise that sampling is given; "leading" starts
        # lower, which shows when the steps are few.
        timestep_spacing="trailing",
        # Without effect on trailing steps; pipelines of diffusers warn where it is 0.
        steps_offset=1,
        # The last step ends at alphas_cumprod = 1: no noise left.
        set_alpha_to_one=True,
    )


# DDPM, arXiv 2006.11239, equation 4: x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps
def add_noise(
    x_0: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    t: Int[Tensor, "b"],
    alphas_cumprod: Float[Tensor, "steps"],
) -> Float[Tensor, "b c h w"]:
    """The noisy picture x_t at time t (0 ... steps - 1) of each batch item."""
    signal, sigma = _signal_and_sigma(t, alphas_cumprod, x_0.dtype)
    return signal * x_0 + sigma * noise


# The target. DDPM, arXiv 2006.11239, equation 14: eps.
# Salimans and Ho, arXiv 2202.00512, section 4: v = alpha_t eps - sigma_t x_0,
# with alpha_t = sqrt(alpha_bar_t) (here `signal`) and sigma_t = sqrt(1 - alpha_bar_t)
def target(
    x_0: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    t: Int[Tensor, "b"],
    alphas_cumprod: Float[Tensor, "steps"],
    prediction_type: str,
) -> Float[Tensor, "b c h w"]:
    """What the network is to predict from x_t. Raises ValueError for an unknown prediction type."""
    _check_prediction_type(prediction_type)
    if prediction_type == "epsilon":
        return noise
    signal, sigma = _signal_and_sigma(t, alphas_cumprod, x_0.dtype)
    return signal * noise - sigma * x_0


# The way back from `add_noise` and `target`.
# From eps: DDIM, arXiv 2010.02502, equation 9: x_0 = (x_t - sigma_t eps) / alpha_t
# From v: Salimans and Ho, arXiv 2202.00512, appendix D: x_0 = alpha_t x_t - sigma_t v
def to_x0_eps(
    pred: Float[Tensor, "b c h w"],
    x_t: Float[Tensor, "b c h w"],
    t: Int[Tensor, "b"],
    alphas_cumprod: Float[Tensor, "steps"],
    prediction_type: str,
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
    """The clean picture and the noise (x_0, eps) that a prediction stands for.

    From v nothing is divided, so it also holds where alphas_cumprod is 0; from epsilon there is no
    x_0 to be had there. Raises ValueError for an unknown prediction type.
    """
    _check_prediction_type(prediction_type)
    signal, sigma = _signal_and_sigma(t, alphas_cumprod, x_t.dtype)
    if prediction_type == "epsilon":
        return (x_t - sigma * pred) / signal, pred
    return signal * x_t - sigma * pred, sigma * x_t + signal * pred


# DDPM, arXiv 2006.11239, equation 14: E || target - prediction(x_t, t, c) ||^2, all t weighed alike
def training_loss(
    denoiser: Denoiser,
    x_0: Float[Tensor, "b c h w"],
    condition: Condition,
    t: Int[Tensor, "b"],
    noise: Float[Tensor, "b c h w"],
    scheduler: DDIMScheduler,
    weight: Float[Tensor, "b 1 h w"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error of the prediction over batch, channels and pixels, to call backward on.

    weight: how much each pixel counts; None for all alike, as in the paper. Where it depends on the
        condition alone, the best prediction stays the same one.

    The caller draws t uniformly from 0 ... num_train_timesteps - 1 and noise from N(0, 1), so that
    a run can be repeated to the last bit. Raises ValueError where the condition is not for
    len(x_0) pictures.
    """
    _check_batch(condition, x_0)
    alphas_cumprod = scheduler.alphas_cumprod.to(x_0.device)
    prediction = denoiser(add_noise(x_0, noise, t, alphas_cumprod), t, condition)
    wanted = target(x_0, noise, t, alphas_cumprod, scheduler.config.prediction_type)
    errors = F.mse_loss(prediction.to(wanted.dtype), wanted, reduction="none")
    return errors.mean() if weight is None else (weight * errors).mean()


def initial_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> Float[Tensor, "b c h w"]:
    """N(0, 1) noise of shape (c, h, w) for each seed, float32 on the CPU.

    Every picture has a generator of its own, so picture k is the same whatever batch it stands in
    and whatever the device. Raises ValueError for no seeds.
    """
    if not len(seeds):
        raise ValueError("seeds is empty; give one whole number per picture, such as [0, 1, 2]")
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


@dataclass(frozen=True, eq=False)
class SampleStep:
    """One denoising step, as `sample` yields it.

    index: 0 ... steps - 1
    t:     the timestep that the denoiser was asked at, falling from step to step
    x_t:   (b, c, h, w) the picture after the step, less noisy than at t; at last, the sample
    x_0:   (b, c, h, w) the clean picture that the denoiser sees in the mixture at t
    """

    index: int
    t: int
    x_t: Float[Tensor, "b c h w"]
    x_0: Float[Tensor, "b c h w"]


def sample(
    denoiser: Denoiser,
    scheduler: DDIMScheduler,
    x_T: Float[Tensor, "b c h w"],
    condition: Condition,
    steps: int,
) -> Iterator[SampleStep]:
    """Deterministic sampling from the noise x_T: `for step in sample(...)`, one call a step.

    The sample is the last step's x_t. The scheduler given is left as it was. With a number of steps
    that does not divide num_train_timesteps, diffusers takes steps of a rounded length and may
    leave noise in x_t (1 % of its deviation at 15 steps, 6 % at 600); the last x_0 has none.
    Raises ValueError, before the first step, for steps outside 1 ... num_train_timesteps and where
    the condition is not for len(x_T) pictures.
    """
    longest = scheduler.config.num_train_timesteps
    if not 1 <= steps <= longest:
        raise ValueError(f"steps is {steps}; give a whole number from 1 to {longest}")
    _check_batch(condition, x_T)
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)

    def run() -> Iterator[SampleStep]:
        x_t = x_T
        for index, t in enumerate(scheduler.timesteps.tolist()):
            x_t, x_0 = _ddim_step(denoiser, scheduler, x_t, t, condition)
            yield SampleStep(index, t, x_t, x_0)

    return run()


# DDIM, arXiv 2010.02502, equation 12 with sigma_t = 0 (eta = 0):
# x_prev = sqrt(alpha_bar_prev) x_0 + sqrt(1 - alpha_bar_prev) eps, both as predicted from x_t
@torch.no_grad()  # here and not around a `yield`, where it would reach the caller's code
def _ddim_step(
    denoiser: Denoiser, scheduler: DDIMScheduler, x_t: Tensor, t: int, condition: Condition
) -> tuple[Tensor, Tensor]:
    """(x_prev, x_0): the picture one step less noisy, and the predicted clean one."""
    prediction = denoiser(x_t, torch.full((len(x_t),), t, device=x_t.device), condition)
    step = scheduler.step(prediction, t, x_t, eta=0.0)
    return step.prev_sample, step.pred_original_sample


def _signal_and_sigma(
    t: Tensor, alphas_cumprod: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), shaped (b, 1, 1, 1)."""
    alpha_bar = rearrange(alphas_cumprod[t], "b -> b 1 1 1")
    return alpha_bar.sqrt().to(dtype), (1 - alpha_bar).sqrt().to(dtype)


def _check_batch(condition: Condition, x: Tensor) -> None:
    if len(condition) != len(x):
        raise ValueError(
            f"condition is for {len(condition)} pictures and there are {len(x)}; give one for each"
        )


def _check_prediction_type(prediction_type: str) -> None:
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type is {prediction_type!r}; give one of {PREDICTION_TYPES}")
