# SPDX-License-Identifier: Apache-2.0
"""The shift of timesteps towards noise, against its equation solved the other way round."""

import pytest
import torch

from spatext_lab.training.recipes.reco.aids import SHIFT, noisy_timesteps


@pytest.mark.parametrize("steps", [1000, 100])
def test_uniform_timesteps_are_shifted_as_equation_23_says(steps):
    """The fraction of timesteps below t is u(t / steps), equation 23 solved for u."""
    uniform = torch.arange(steps)
    shifted = noisy_timesteps(uniform, steps)
    assert 0 <= shifted.min() < shifted.max() == steps - 1
    for k in range(1, steps, steps // 10):
        x = k / steps
        below = x / (SHIFT - (SHIFT - 1) * x)
        assert (shifted < k).double().mean().item() == pytest.approx(below, abs=1 / steps)
