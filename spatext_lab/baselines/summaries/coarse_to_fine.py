# SPDX-License-Identifier: Apache-2.0
"""Coarse-to-fine sampling, as a summary of SpaText describes it; SpaText itself has one size.

The first steps have latents of half the height and width, which cost a fraction of whole ones, the
others whole ones. The network must have been trained at both sizes.

x_t itself cannot be enlarged: it is sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, and enlarged
noise is no longer the noise of the schedule. Copied into 2 x 2 cells it has variance 1, but four
cells share one value; interpolated, its variance falls as well (to 0.39 for bilinear weights). The
network was trained on white noise alone and takes everything else for a part of the image. So only
the predicted x_0 is enlarged, and the noise is replaced by white noise of the same timestep.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, islice

import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin
from jaxtyping import Float, Real
from torch import Tensor

from spatext_lab.diffusion import Condition, Denoiser, SampleStep, sample, target


def enlarged(x_0: Float[Tensor, "b c h w"], fold: int = 1) -> Float[Tensor, "b c 2*h 2*w"]:
    """A clean image, or its latents, at twice the height and width: bilinear interpolation.

    Args:
        fold: pixels that are folded into channels, per side, see `PixelFold`; 1 for latents.
    """
    pixels = F.pixel_shuffle(x_0, fold)
    return F.pixel_unshuffle(F.interpolate(pixels, scale_factor=2, mode="bilinear"), fold)


# The mean of four independent N(0, 1) has variance 1/4; means of disjoint cells are independent.
def halved_noise(noise: Float[Tensor, "b c h w"], fold: int = 1) -> Float[Tensor, "b c h//2 w//2"]:
    """White noise N(0, 1) at half the height and width: twice the mean of 2 x 2 cells.

    Args:
        noise: white, N(0, 1).
        fold: pixels that are folded into channels, per side, see `PixelFold`; 1 for latents.
    """
    return F.pixel_unshuffle(2 * F.avg_pool2d(F.pixel_shuffle(noise, fold), 2), fold)


def halved(condition: Condition) -> Condition:
    """A condition for latents of half the height and width: the means of the map's 2 x 2 cells.

    A map holds embeddings times coverage, so this is the map of the halved coverages.
    """
    pooled = [F.avg_pool2d(each, 2) for each in (condition.st_map, *condition.region_maps)]
    return replace(condition, st_map=pooled[0], region_maps=tuple(pooled[1:]))


# From x_0 and x_t back to a prediction: eps = (x_t - sqrt(alpha_bar_t) x_0) / sqrt(1 - alpha_bar_t)
def implied(
    x_0: Float[Tensor, "b c h w"],
    x_t: Float[Tensor, "b c h w"],
    t: Real[Tensor, "b"],
    scheduler: SchedulerMixin,
) -> Float[Tensor, "b c h w"]:
    """The prediction at x_t, in the scheduler's terms, of a denoiser that takes x_0 for the image.

    While x_0 is held, eps stays as it is too, so x_t goes on along the schedule's straight line.
    """
    alphas_cumprod, t = scheduler.alphas_cumprod.to(x_t.device), t.round().long()
    alpha_bar = alphas_cumprod[t].to(x_t.dtype).view(-1, 1, 1, 1)
    eps = (x_t - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()
    return target(x_0, eps, t, alphas_cumprod, scheduler.config.prediction_type)


def resumed(
    denoiser: Denoiser, x_0: Float[Tensor, "b c h w"], first: int, scheduler: SchedulerMixin
) -> Denoiser:
    """A denoiser that predicts x_0 in its first calls, without a network.

    With it the loop passes through the steps that were taken at another size.

    Args:
        denoiser: predicts in all later calls.
        x_0: what is predicted until then.
        first: number of those calls.
        scheduler: says in which terms.
    """
    calls = count()

    def denoise(
        x_t: Float[Tensor, "b c h w"], t: Real[Tensor, "b"], condition: Condition
    ) -> Float[Tensor, "b c h w"]:
        if next(calls) < first:
            return implied(x_0, x_t, t, scheduler)
        return denoiser(x_t, t, condition)

    return denoise


def coarse_to_fine(
    coarse: Denoiser,
    fine: Denoiser,
    scheduler: SchedulerMixin,
    x_T: Float[Tensor, "b c h w"],
    condition: Condition,
    num_inference_steps: int,
    sources: Sequence[torch.Generator] | None = None,
    *,
    coarse_steps: int,
    fold: int = 1,
) -> Iterator[SampleStep]:
    """The sampling loop over two sizes; steps as `sample` yields them, the first ones halved.

    The first x_0 of whole size is the enlarged one of the last halved step, under the noise x_T,
    which no step has seen at this size; the halved steps start from the same noise's 2 x 2 means.

    Args:
        coarse: predicts for halved latents.
        fine: predicts for whole ones.
        scheduler: as for `sample`.
        x_T: N(0, 1) noise of the whole size.
        condition: its map has the whole size.
        num_inference_steps: of both sizes together.
        sources: as for `sample`.
        coarse_steps: how many of them are halved; 0 for none.
        fold: as for `enlarged`.

    Raises:
        ValueError: before the first step, for coarse_steps outside 0 ... num_inference_steps - 1
            and for an odd height or width; and what `sample` raises.
    """
    n, rest = coarse_steps, (num_inference_steps, sources)
    whole = sample(fine, scheduler, x_T, condition, *rest)  # raises where `rest` is wrong
    if type(n) is not int or not 0 <= n < num_inference_steps:
        raise ValueError(
            f"coarse_steps is {n!r:.40} of {num_inference_steps} steps; pass a whole number from 0 "
            f"to {num_inference_steps - 1}: the last step has the whole size"
        )
    if n == 0:
        return whole
    if any(side % 2 for side in x_T.shape[2:]):
        raise ValueError(
            f"coarse_steps is {n} and latents of {x_T.shape[2]} x {x_T.shape[3]} cannot be halved; "
            "pass 0, or use a model whose latents have an even height and width"
        )
    small = halved_noise(x_T, fold), halved(condition)
    first = sample(coarse, scheduler, *small, *rest)
    scheduler_at = copy.deepcopy(scheduler)
    scheduler_at.set_timesteps(num_inference_steps)

    def run() -> Iterator[SampleStep]:
        for step in islice(first, n):
            yield step
        x_0 = enlarged(step.x_0, fold)
        again = sample(resumed(fine, x_0, n, scheduler), scheduler, x_T, condition, *rest)
        for step in again:
            if step.index == n - 1:  # in the scheduler's own terms, which add_noise has
                t = scheduler_at.timesteps[n : n + 1]
                step.x_t = scheduler_at.add_noise(x_0, x_T, t)
            elif step.index >= n:
                yield step

    return run()
