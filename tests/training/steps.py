# SPDX-License-Identifier: Apache-2.0
"""A few steps of a recipe's job."""

import torch

from spatext_lab.training.job import Job
from spatext_lab.training.loop import Plan, Trainer

PLAN = Plan(steps=12, lr=2e-3, warmup=2)


def losses(job: Job, *, same_data: bool = True) -> list[float]:
    """A run's losses; with the first step's data and noise in every step, they must fall."""

    def loss_at(step: int, generator: torch.Generator) -> torch.Tensor:
        first = torch.Generator().manual_seed(0)
        return job.loss_at(0, first) if same_data else job.loss_at(step, generator)

    return [step.loss for step in Trainer(job.module, loss_at, job.plan, "cpu").run()]


def loss_of(job: Job, seed: int = 0) -> torch.Tensor:
    """The loss of the first step, with the random numbers of a seed."""
    return job.loss_at(0, torch.Generator().manual_seed(seed))
