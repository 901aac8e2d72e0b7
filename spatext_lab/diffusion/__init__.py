# SPDX-License-Identifier: Apache-2.0
"""The equations: the noise process, guidance, and what a denoiser is conditioned on."""

from spatext_lab.diffusion.condition import Condition, drop_conditions
from spatext_lab.diffusion.denoiser import COORDINATES, PlacedDenoiser, UNetDenoiser, coordinates
from spatext_lab.diffusion.guidance import guided, multi_guided
from spatext_lab.diffusion.process import (
    PREDICTION_TYPES,
    Denoiser,
    SampleStep,
    add_noise,
    initial_noise,
    noise_schedule,
    sample,
    target,
    to_x0_eps,
    training_loss,
)

__all__ = [
    "COORDINATES",
    "PREDICTION_TYPES",
    "Condition",
    "Denoiser",
    "PlacedDenoiser",
    "SampleStep",
    "UNetDenoiser",
    "add_noise",
    "coordinates",
    "drop_conditions",
    "guided",
    "initial_noise",
    "multi_guided",
    "noise_schedule",
    "sample",
    "target",
    "to_x0_eps",
    "training_loss",
]
