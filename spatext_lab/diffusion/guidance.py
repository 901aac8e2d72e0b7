# SPDX-License-Identifier: Apache-2.0
"""Classifier-free guidance: a denoiser goes in, a denoiser comes out.

One convention everywhere: a scale of 1.0 means off, the plain conditional model, and 0.0 is the
unconditional model. The paper of classifier-free guidance starts its w one lower: s = 1 + w.

The formulas are written for eps and hold for v-predictions as they stand: at one x_t and t, v is
a straight-line function of eps, and the weights of the predictions in each formula add up to 1.
"""

import math
from collections.abc import Sequence

from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from spatext_lab.diffusion.condition import Condition
from spatext_lab.diffusion.process import Denoiser


# Classifier-free guidance, arXiv 2207.12598, equation 6; SpaText, arXiv 2211.14305, section 3.3:
# eps_null + s delta_joint,   delta_joint = eps(x_t | all c_i) - eps(x_t | null)
def guided(denoiser: Denoiser, scale: float) -> Denoiser:
    """Guidance with one scale for the whole condition: caption and map pull together.

    One call of `denoiser` with batch 2 b; at scale 1.0 the denoiser itself, one call with batch b.
    Raises ValueError for a scale that is not a finite number >= 0.
    """
    _check_scale("scale", scale)
    if scale == 1:
        return denoiser

    def denoise(
        x_t: Float[Tensor, "b c h w"], t: Int[Tensor, "b"], condition: Condition
    ) -> Float[Tensor, "b c h w"]:
        eps_null, eps_joint = _predict_all(denoiser, x_t, t, [condition.null(), condition])
        return eps_null + scale * (eps_joint - eps_null)

    return denoise


# SpaText, arXiv 2211.14305, section 3.3 (multi-scale):
# eps_null + sum_i s_i delta_i,   delta_i = eps(x_t | c_i alone) - eps(x_t | null)
def multi_guided(denoiser: Denoiser, scales: Sequence[float]) -> Denoiser:
    """Guidance with a scale for each condition, as `Condition.singles()` orders them: the caption,
    then the map, or each region's own map where the condition has them apart.

    The directions are added side by side, each taken with only its own condition on. One call of
    `denoiser` with batch (N + 1) b. Raises ValueError for a scale that is not a finite number >= 0
    and, when called, where the condition does not have len(scales) parts.
    """
    for i, scale in enumerate(scales):
        _check_scale(f"scales[{i}]", scale)

    def denoise(
        x_t: Float[Tensor, "b c h w"], t: Int[Tensor, "b"], condition: Condition
    ) -> Float[Tensor, "b c h w"]:
        singles = condition.singles()
        if len(singles) != len(scales):
            raise ValueError(
                f"scales holds {len(scales)} numbers and the condition has {len(singles)} parts; "
                "give one scale for each: the caption, then the map, or each region's"
            )
        eps_null, *eps = _predict_all(denoiser, x_t, t, [condition.null(), *singles])
        return eps_null + sum(s * (eps_i - eps_null) for s, eps_i in zip(scales, eps, strict=True))

    return denoise


def _predict_all(denoiser: Denoiser, x_t: Tensor, t: Tensor, conditions: list[Condition]) -> Tensor:
    """The predictions (n, b, c, h, w) for one x_t under each of n conditions, by one call."""
    n = len(conditions)
    eps = denoiser(
        repeat(x_t, "b c h w -> (n b) c h w", n=n),
        repeat(t, "b -> (n b)", n=n),
        Condition.batch(conditions),
    )
    return rearrange(eps, "(n b) c h w -> n b c h w", n=n)


def _check_scale(name: str, scale: float) -> None:
    if not (math.isfinite(scale) and scale >= 0):
        raise ValueError(f"{name} is {scale}; give a finite number >= 0 (1.0 means no guidance)")
