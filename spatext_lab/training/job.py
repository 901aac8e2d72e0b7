# SPDX-License-Identifier: Apache-2.0
"""What a recipe hands to the loop."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from spatext_lab.training.loop import LossAt, Plan


@dataclass(frozen=True)
class Job:
    """A module to train, the loss of a step, how to save the result, and what it learned from."""

    module: torch.nn.Module
    loss_at: LossAt
    save: Callable[[Path], None]
    plan: Plan
    data: str  # one phrase for the card
