# SPDX-License-Identifier: Apache-2.0
"""A recipe that takes no time: a line through noisy points. `install()` adds it to the recipes."""

import sys
import types
from pathlib import Path

import torch
from safetensors.torch import save_file

from spatext_lab.training import recipes
from spatext_lab.training.job import Job
from spatext_lab.training.loop import Plan


class Line(torch.nn.Module):
    """Two layers, a fixed weight and a buffer, as the real networks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(3, 5), torch.nn.Linear(5, 1)
        self.fixed = torch.nn.Parameter(torch.tensor(2.0), requires_grad=False)
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        return self.second(torch.tanh(self.first(x))) * self.fixed


def make(plan: Plan, device: str = "cpu") -> Job:
    torch.manual_seed(plan.seed)
    line = Line()

    def loss_at(step: int, generator: torch.Generator) -> torch.Tensor:
        x = torch.randn(8, 3, generator=generator)
        y = x.sum(1, keepdim=True) + 0.1 * torch.randn(8, 1, generator=generator)
        return (line(x.to(line.fixed.device)) - y.to(line.fixed.device)).square().mean()

    def save(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {k: v.contiguous() for k, v in line.state_dict().items()}, folder / "line.safetensors"
        )

    return Job(line, loss_at, save, plan, "points of a line")


def install() -> None:
    """Makes "toy" a recipe, found as the others are."""
    module = types.ModuleType(f"{recipes.__name__}.toy")
    module.make = make
    sys.modules[module.__name__] = module
    plan = Plan(steps=40, lr=0.01, warmup=5)
    recipes.RECIPES["toy"] = recipes.Recipe("toy", "toy", "toy", plan, 0.001, "a test")
