# SPDX-License-Identifier: Apache-2.0
"""How long, how fast and where to train."""

import math
import os
from dataclasses import dataclass, field
from typing import Literal, get_args

Device = Literal["auto", "cpu", "cuda"]
Average = Literal["device", "cpu", "off"]
Bits = Literal["32bit", "8bit"]
LAST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Plan:
    """How long and how fast to learn.

    Raises:
        ValueError: steps, a rate, a seed or micro-batches out of range.
    """

    steps: int  # optimiser steps
    lr: float  # the highest learning rate
    warmup: int = 100  # steps of linear warm-up
    # Last steps, at most half of all, in which a constant rate falls to zero; None for half a
    # cosine over all. Under a constant rate a run can be made shorter or longer while it runs.
    cooldown: int | None = None
    weight_decay: float = 0.01
    clip_norm: float = 1.0  # maximum norm of the gradient
    ema_decay: float = 0.999  # of the moving average, at most; it warms up as (1 + i) / (10 + i)
    seed: int = 0
    # other rates, as fractions of `lr`, by a part of the weights' names
    rates: dict[str, float] = field(default_factory=dict)
    accumulate: int = 1  # micro-batches whose mean gradient is a step's, over all processes
    checkpointing: bool = False  # activations are computed again in the backward pass, not kept
    average: Average = "device"  # where the moving average lies, if there is one
    adamw: Bits = "32bit"  # of AdamW's moments; 8 bits need bitsandbytes and a GPU

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr is {self.lr!r:.40}; pass a number above 0, such as 1e-5")
        ranges = (("steps", 1, 10**9), ("seed", 0, LAST_SEED), ("accumulate", 1, 10**6))
        for name, least, most in ranges:
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise ValueError(f"{name} is {value!r:.40}; pass a whole number, {least} to {most}")

    @property
    def batches(self) -> int:
        """The micro-batches of the whole run; they are numbered from 0."""
        return self.steps * self.accumulate

    def step_of(self, number: int) -> int:
        """The step that a micro-batch belongs to."""
        return number // self.accumulate

    def rate(self, step: int) -> float:
        """The learning rate of a step, a pure function of its number."""
        warm = min(1.0, (step + 1) / max(self.warmup, 1))
        if self.cooldown is None:
            return self.lr * warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        last = max(min(self.cooldown, self.steps // 2), 1)
        return self.lr * warm * min(1.0, (self.steps - step) / last)


def cores() -> int:
    """How many CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def device_of(name: str) -> str:
    """The device of that name, "cuda" or "cpu"; "auto" is a GPU if there is one.

    Raises:
        ValueError: an unknown name, or "cuda" where torch finds no GPU.
    """
    import torch

    if name not in get_args(Device):
        raise ValueError(f"device is {name!r:.40}; there are {', '.join(get_args(Device))}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but torch finds no GPU here; pass --device auto")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"
