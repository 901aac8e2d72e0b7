# SPDX-License-Identifier: Apache-2.0
"""What a large model needs to be trained on one GPU: fewer bytes for each weight, and activations
that are computed twice instead of kept."""

from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec

import torch
from diffusers.training_utils import EMAModel
from torch import nn

from spatext_lab.training.plan import Plan

INSTALL = "python -m pip install bitsandbytes"
BETAS = (0.9, 0.99)


def adamw(groups: list[dict], plan: Plan, device: str) -> torch.optim.Optimizer:
    """AdamW as the plan asks for it.

    Args:
        groups: of weights, see `torch.optim.AdamW`.
        plan: its rate, weight decay and number of bits.
        device: "cuda" or "cpu".

    Raises:
        ValueError: 8 bits where bitsandbytes is missing, or without a GPU.
    """
    usual = {"lr": plan.lr, "betas": BETAS, "weight_decay": plan.weight_decay}
    if plan.adamw == "32bit":
        return torch.optim.AdamW(groups, **usual)
    check_8bit(device)
    return import_module("bitsandbytes.optim").AdamW8bit(groups, **usual)


def check_8bit(device: str) -> None:
    """Checks that AdamW with 8 bits can run.

    Raises:
        ValueError: there is no GPU, or bitsandbytes is not installed.
    """
    if device != "cuda":
        raise ValueError("adamw is '8bit', which needs a GPU; pass --adamw 32bit")
    if not has_8bit():
        raise ValueError(
            f"adamw is '8bit', which needs bitsandbytes ({INSTALL}); or pass --adamw 32bit"
        )


def has_8bit() -> bool:
    """Whether bitsandbytes is installed."""
    return find_spec("bitsandbytes") is not None


class Average(EMAModel):
    """The moving average of the weights: diffusers' own, where the plan wants it.

    On the CPU it costs the GPU no memory, and each step a copy of all weights. "off" keeps none,
    and `copy_to` leaves the weights as they are.
    """

    def __init__(self, weights: Sequence[nn.Parameter], plan: Plan) -> None:
        self.place = plan.average
        on_device = self.place == "device"
        super().__init__(list(self._own(weights)), decay=plan.ema_decay, foreach=on_device)

    def _own(self, weights: Iterable[nn.Parameter]) -> Iterator[nn.Parameter]:
        """The weights where the average is; none where there is no average."""
        if self.place == "device":
            yield from weights
        elif self.place == "cpu":
            for weight in weights:
                yield weight.detach().to("cpu").requires_grad_(weight.requires_grad)

    def step(self, parameters: Iterable[nn.Parameter]) -> None:
        """Moves the average towards the weights."""
        super().step(list(self._own(parameters)))

    def copy_to(self, parameters: Iterable[nn.Parameter]) -> None:
        """Puts the average into the weights; without one they stay."""
        if self.place != "off":
            super().copy_to(list(parameters))


def save_activations(module: nn.Module) -> None:
    """Has networks compute their activations again in the backward pass instead of keeping them.

    Gradient checkpointing (Chen et al., arXiv 1604.06174): the same gradients, a fraction of the
    memory, and one more forward pass.

    Raises:
        ValueError: no part of the module can do it.
    """
    able = False
    for part in module.modules():
        if getattr(part, "_supports_gradient_checkpointing", False):  # diffusers' name for it
            part.enable_gradient_checkpointing()
            able = True
        elif getattr(part, "supports_gradient_checkpointing", False):  # and transformers'
            part.activation_checkpointing_enable()
            able = True
    if not able:
        raise ValueError("checkpointing is 'on', which no part of this model can")
