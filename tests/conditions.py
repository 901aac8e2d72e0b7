# SPDX-License-Identifier: Apache-2.0
"""Conditions and noisy images for tests that need some, whatever is in them."""

import torch
from torch import Tensor

from spatext_lab.diffusion import Condition


def some_condition(b: int, with_map: bool = True) -> Condition:
    """For b images of 3 x 3, all numbers random."""
    st_map = torch.randn(b, 5, 3, 3) if with_map else None
    return Condition(torch.randn(b, 4, 6), torch.randn(b, 4, 6), st_map)


def noisy_images(b: int) -> tuple[Tensor, Tensor, Tensor]:
    """b images of 2 x 3 x 3, noise and timesteps, the first and the last timestep among them."""
    t = torch.randint(0, 1000, (b,))
    t[:2] = torch.tensor([0, 999])
    return 3 * torch.randn(b, 2, 3, 3), torch.randn(b, 2, 3, 3), t
