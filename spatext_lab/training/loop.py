# SPDX-License-Identifier: Apache-2.0
"""One training loop for every model: a generator, so that the caller's `for` decides the rest.

What happens in step i depends only on the seed, on i and on the state after step i - 1: data and
noise come from a generator that is seeded anew for each step. So a run that was stopped goes on
as if nothing had happened, to the last bit, and nothing of a data loader has to be saved.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel

LossAt = Callable[[int, torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class Plan:
    """How long and how fast to learn."""

    steps: int  # optimiser steps
    lr: float  # the highest learning rate
    warmup: int = 100  # steps of linear warm-up, then half a cosine down to zero
    weight_decay: float = 0.01
    clip_norm: float = 1.0  # the gradient is cut to this length
    ema_decay: float = 0.999  # at most; young averages forget faster: (1 + i) / (10 + i)
    seed: int = 0

    def rate(self, step: int) -> float:
        """The learning rate of a step, a pure function of its number."""
        warm = min(1.0, (step + 1) / max(self.warmup, 1))
        return self.lr * warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))


@dataclass(frozen=True)
class Step:
    """What one optimiser step did."""

    index: int  # counted from 0
    loss: float
    seconds: float  # that training has taken so far, before a stop too


@dataclass
class Trainer:
    """A module, its optimiser and its moving average; `run` trains, `checkpoint.py` saves.

    loss_at(step, generator) gives the loss of a step; all that is random in it must come from
    `generator`, a CPU generator.
    """

    module: torch.nn.Module
    loss_at: LossAt
    plan: Plan
    device: str = "auto"
    done: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        cpu = self.device == "cpu" or not torch.cuda.is_available()
        # bfloat16 pays on a GPU; without special instructions a CPU is far slower with it.
        self.accelerator = Accelerator(cpu=cpu, mixed_precision="no" if cpu else "bf16")
        self.module.to(self.accelerator.device)
        weights = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            weights, lr=self.plan.lr, betas=(0.9, 0.99), weight_decay=self.plan.weight_decay
        )
        self.ema = EMAModel(weights, decay=self.plan.ema_decay, foreach=True)
        self.weights = weights

    def run(self) -> Iterator[Step]:
        """Trains to the plan's last step, yielding after each one."""
        start = time.perf_counter() - self.seconds
        while self.done < self.plan.steps:
            index = self.done
            loss = self._step(index)
            self.done += 1
            self.losses.append(loss)
            self.seconds = time.perf_counter() - start
            yield Step(index, loss, self.seconds)

    def _step(self, index: int) -> float:
        self.module.train()
        generator = torch.Generator().manual_seed(self.plan.seed * 1_000_003 + index)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate(index)
        with self.accelerator.autocast():
            loss = self.loss_at(index, generator)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss of step {index} is {loss.item()}; lower the rate")
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.weights, self.plan.clip_norm)
        self.optimizer.step()
        self.ema.step(self.weights)
        return loss.item()

    def use_average(self) -> None:
        """Puts the moving average in place of the last weights: what is shipped and measured."""
        self.ema.copy_to(self.weights)
        self.module.eval()
