# SPDX-License-Identifier: Apache-2.0
"""The training loop of every model: a generator, so the caller's `for` decides when to stop.

What happens in step i depends only on the seed, on i and on the state after step i - 1: data and
noise come from a generator that is seeded anew for each step. A run that was interrupted therefore
continues bit for bit, and no state of a data loader has to be saved.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel

from spatext_lab.training.plan import Device, Plan, device_of

LossAt = Callable[[int, torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class Step:
    """The result of one optimiser step."""

    index: int  # counted from 0
    loss: float
    seconds: float  # of training so far, those before an interruption included


@dataclass
class Trainer:
    """A module, its optimiser and its moving average; `run` trains, `checkpoint.py` saves.

    loss_at(step, generator) returns the loss of a step, a scalar tensor; all randomness in it must
    come from `generator`, a CPU generator.

    Raises:
        ValueError: "cuda" as the device where there is no GPU; a rate for no weight.
    """

    module: torch.nn.Module
    loss_at: LossAt
    plan: Plan
    device: Device = "auto"
    done: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        cpu = device_of(self.device) == "cpu"
        # bfloat16 pays on a GPU; without special instructions a CPU is far slower with it.
        self.accelerator = Accelerator(cpu=cpu, mixed_precision="no" if cpu else "bf16")
        self.module.to(self.accelerator.device)
        groups = _groups(self.module, self.plan.rates)
        weights = [weight for group in groups for weight in group["params"]]
        self.optimizer = torch.optim.AdamW(
            groups, lr=self.plan.lr, betas=(0.9, 0.99), weight_decay=self.plan.weight_decay
        )
        self.ema = EMAModel(weights, decay=self.plan.ema_decay, foreach=True)
        self.weights = weights

    def run(self) -> Iterator[Step]:
        """Trains to the plan's last step and yields after each one.

        Raises:
            FloatingPointError: a loss that is not finite; the weights are still those before it.
        """
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
            group["lr"] = group["fraction"] * self.plan.rate(index)
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
        """Replaces the weights by their moving average, which is what is saved and measured."""
        self.ema.copy_to(self.weights)
        self.module.eval()


def _groups(module: torch.nn.Module, rates: dict[str, float]) -> list[dict]:
    """The trained weights by their fraction of the rate, the highest first."""
    for part in rates:
        if not any(part in name for name, _ in module.named_parameters()):
            raise ValueError(f"rates has {part!r}, which is in the name of no weight")
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for name, weight in module.named_parameters():
        if weight.requires_grad:
            fraction = next((rate for part, rate in rates.items() if part in name), 1.0)
            groups.setdefault(fraction, []).append(weight)
    return [{"params": groups[f], "fraction": f} for f in sorted(groups, reverse=True)]
