# SPDX-License-Identifier: Apache-2.0
"""A recipe that takes no time: a line through noisy points. `install()` adds it to the recipes."""

from collections.abc import Collection
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file

from spatext_lab.training import recipes
from spatext_lab.training.job import Job
from spatext_lab.training.plan import Plan


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


def make(
    plan: Plan,
    device: str = "cpu",
    *,
    data: Path | None = None,
    slope: float = 1.0,
    shape: Literal["line", "bend"] = "line",
    axes: Collection[str] | None = None,
    steep: bool = False,
) -> Job:
    """A line through noisy points.

    Args:
        data: a folder whose number of files is the line's offset;
            made up if not given.
        slope: of the line.
        shape: what is learned.
        axes: names of the axes.
        steep: twice the slope.
    """
    torch.manual_seed(plan.seed)
    line = Line()
    offset = len(list(data.iterdir())) if data else 0

    def loss_at(step: int, generator: torch.Generator) -> torch.Tensor:
        x = torch.randn(8, 3, generator=generator)
        y = x.sum(1, keepdim=True) * slope + offset + 0.1 * torch.randn(8, 1, generator=generator)
        return (line(x.to(line.fixed.device)) - y.to(line.fixed.device)).square().mean()

    def save(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        weights = {k: v.contiguous() for k, v in line.state_dict().items()}
        save_file(weights, folder / "line.safetensors")

    return Job(line, loss_at, save, plan, "points of a line")


def install() -> None:
    """Makes "toy" a recipe, found as the others are."""
    plan = Plan(steps=40, lr=0.01, warmup=5)
    recipes.RECIPES["toy"] = recipes.Recipe("toy", plan, 0.001, "a test", "tests.training.toy")
