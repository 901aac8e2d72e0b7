# SPDX-License-Identifier: Apache-2.0
"""Conditions for tests that need some, whatever is in them."""

import torch

from spatext_lab.diffusion import Condition


def some_condition(b: int, with_map: bool = True) -> Condition:
    """For b images of 3 x 3, all numbers random."""
    st_map = torch.randn(b, 5, 3, 3) if with_map else None
    return Condition(torch.randn(b, 4, 6), torch.randn(b, 4, 6), st_map)
