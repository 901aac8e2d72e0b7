# SPDX-License-Identifier: Apache-2.0
"""The equations: the noise process, guidance, and what a denoiser is conditioned on."""

from spatext_lab.diffusion.guidance import (
    Condition,
    Denoiser,
    UNetDenoiser,
    drop_conditions,
    guided,
    multi_guided,
)
from spatext_lab.diffusion.loss import training_loss
from spatext_lab.diffusion.process import (
    PREDICTION_TYPES,
    SMALL,
    SampleStep,
    add_noise,
    checked_latents,
    few_threads,
    generators,
    initial_noise,
    noise_schedule,
    sample,
    target,
    to_x0_eps,
)
