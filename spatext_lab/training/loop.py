# SPDX-License-Identifier: Apache-2.0
"""The training loop of every model: a generator, so the caller's `for` decides when to stop.

A step takes the mean gradient over `Plan.accumulate` micro-batches. What a micro-batch has depends
only on the seed and on its number, counted through the whole run: data and noise come from a
generator that is seeded anew for each. A run that was interrupted therefore continues bit for bit,
no state of a data loader has to be saved, and it does not matter which process computes a
micro-batch: they are dealt out to all there are, see `processes`.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from spatext_lab.diffusion import few_threads
from spatext_lab.training import processes
from spatext_lab.training.optimiser import Average, adamw, save_activations
from spatext_lab.training.plan import Device, Plan

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

    loss_at(number, generator) returns the loss of a micro-batch, a scalar tensor; all randomness
    in it must come from `generator`, a CPU generator. `number` is the micro-batch's: it belongs to
    step `number // plan.accumulate`.

    Where several processes share the run, each has a Trainer. All begin with the weights of process
    0 and stay equal to the last bit; a buffer that a forward pass changes is process 0's own.

    Raises:
        ValueError: "cuda" as the device where there is no GPU; a rate for no weight; micro-batches
            that cannot be dealt out evenly; and what `processes.join` raises.
    """

    module: torch.nn.Module
    loss_at: LossAt
    plan: Plan
    device: Device = "auto"
    done: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.accelerator = processes.join(self.device)
        self.share = processes.share(self.plan.accumulate)
        self.module.to(self.accelerator.device)
        processes.copy_from_first([*self.module.parameters(), *self.module.buffers()])
        groups = _groups(self.module, self.plan.rates)
        weights = [weight for group in groups for weight in group["params"]]
        self.optimizer = adamw(groups, self.plan, self.accelerator.device.type)
        self.ema = Average(weights, self.plan)
        if self.plan.checkpointing:
            save_activations(self.module)
        self.weights = weights
        self.gradient = _one_gradient(weights) if self.plan.accumulate > 1 else None

    def run(self) -> Iterator[Step]:
        """Trains to the plan's last step and yields after each one.

        Raises:
            FloatingPointError: a loss that is not finite; the weights are still those before it.
        """
        start = time.perf_counter() - self.seconds
        while self.done < self.plan.steps:
            index = self.done
            with few_threads(self.module):  # or the kernels of a class wait for each other
                loss = self._step(index)
            self.done += 1
            self.losses.append(loss)
            self.seconds = time.perf_counter() - start
            yield Step(index, loss, self.seconds)

    def _step(self, index: int) -> float:
        self.module.train()
        for group in self.optimizer.param_groups:
            group["lr"] = group["fraction"] * self.plan.rate(index)
        loss = self._compute_gradient(index)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss of step {index} is {loss}; lower the rate")
        torch.nn.utils.clip_grad_norm_(self.weights, self.plan.clip_norm)
        self.optimizer.step()
        self.ema.step(self.weights)
        return loss

    def _compute_gradient(self, index: int) -> float:
        """The mean gradient and the mean loss of a step's micro-batches, of which each process
        computes its share."""
        if self.gradient is None:
            self.optimizer.zero_grad()
        else:
            self.gradient.zero_()
        first = index * self.plan.accumulate
        losses = torch.stack([self._add_gradient(first + k) for k in self.share])
        loss = processes.total(losses.double().sum().item()) / self.plan.accumulate
        if self.gradient is not None and math.isfinite(loss):
            processes.add_up(self.gradient)
        return loss

    def _add_gradient(self, number: int) -> torch.Tensor:
        """Adds a micro-batch's part of the mean gradient; returns its loss."""
        generator = torch.Generator().manual_seed(self.plan.seed * 1_000_003 + number)
        with self.accelerator.autocast():
            loss = self.loss_at(number, generator)
        self.accelerator.backward(loss / self.plan.accumulate)
        return loss.detach()

    def use_average(self) -> None:
        """Replaces the weights by their moving average, which is what is saved and measured."""
        self.ema.copy_to(self.weights)
        self.module.eval()


def _one_gradient(weights: list[torch.nn.Parameter]) -> torch.Tensor:
    """One tensor for all gradients, which are views of it: what is summed over processes at once.

    A backward pass then adds to it. Left to itself, torch would take the first micro-batch's
    gradient without a copy, which a CUDA graph overwrites with the second's.
    """
    flat = weights[0].new_zeros(sum(weight.numel() for weight in weights))
    for weight, part in zip(weights, flat.split([w.numel() for w in weights]), strict=True):
        weight.grad = part.as_strided(weight.shape, weight.stride())
    return flat


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
