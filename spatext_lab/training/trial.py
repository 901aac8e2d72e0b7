# SPDX-License-Identifier: Apache-2.0
"""What a run is going to take: estimated before its first step, and measured in its first steps."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from spatext_lab.diffusion import SMALL
from spatext_lab.training import memory
from spatext_lab.training.loop import Step, Trainer
from spatext_lab.training.optimiser import INSTALL, has_8bit, save_activations

STEPS = 3  # of the trial; the first one is slower and not counted
ORDER = (
    "a smaller --batch with a larger --accumulate, then --checkpointing on, --average cpu and "
    "--adamw 8bit"
)
APART = 0.1  # of what was expected, from which a warning is due


class Trial:
    """Says what a large model's training takes in memory and time. The trial's steps are the run's.

    Args:
        trainer: before its first step.
        others: networks on the same device that are not trained.
        batch: images of a micro-batch, for advice; None where that is not known.
    """

    def __init__(
        self, trainer: Trainer, others: Sequence[nn.Module] = (), batch: int | None = None
    ) -> None:
        self.trainer, self.batch = trainer, batch
        inside = {id(weight) for weight in trainer.module.parameters()}
        self.others = [o for o in others if not any(id(w) in inside for w in o.parameters())]
        self.first, self.expected, self.began = trainer.done, None, 0.0
        self.cuda = trainer.accelerator.device.type == "cuda"
        self.large = sum(weight.numel() for weight in trainer.module.parameters()) >= SMALL
        if self.large:
            self.expected = self._count()
            where = "on the GPU" if self.cuda else "in main memory"
            print(f"trained: {_parts(trainer.module)}")
            if self.expected:
                print(f"expected {where}: {self.expected.text()}")
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()

    def _count(self) -> memory.Memory | None:
        """What a step takes; None where it cannot be counted, which is no reason not to train."""
        trainer = self.trainer
        how = {"bf16": trainer.accelerator.mixed_precision == "bf16", "others": self.others}
        try:
            return memory.expected(trainer.module, trainer.loss_at, trainer.plan, **how)
        except RuntimeError as error:  # an operation that fake tensors do not have
            print(f"the memory of a step cannot be counted ({error!s:.200})")
            return None

    def __call__(self, step: Step) -> None:
        """Called after each step; speaks after the trial's last one."""
        done = step.index + 1 - self.first
        if done == 1:
            self.began = step.seconds
        elif done == STEPS and self.large:
            print("\n".join(self._found((step.seconds - self.began) / (STEPS - 1))))

    def _found(self, seconds: float) -> list[str]:
        plan = self.trainer.plan
        left = plan.steps - self.trainer.done
        lines = [f"trial: {seconds:.2f} s a step; {left} more take {seconds * left / 3600:.1f} h"]
        if not self.cuda:
            return lines
        found = torch.cuda.max_memory_allocated()
        lines[0] += f"; {found / memory.GIB:.1f} GiB at most"
        apart = found / self.expected.total - 1 if self.expected else 0.0
        if abs(apart) > APART:
            lines.append(
                f"warning: that is {apart:+.0%} beside the {self.expected.total / memory.GIB:.1f} "
                "GiB that were expected"
            )
        return lines

    def advice(self) -> str:
        """What to change where the memory is not enough, in this order, and what each saves."""
        self.trainer.optimizer.zero_grad()
        self.expected = self.expected or self._count()
        if self.expected is None:
            return f"the GPU's memory is not enough, in step {self.trainer.done}; pass {ORDER}"
        needs = f" for about {self.expected.total / memory.GIB:.1f} GiB"
        ways = "; ".join(
            f"{way.flag} ({way.saves / memory.GIB:.1f} GiB less{way.note})" for way in self._ways()
        )
        step = self.trainer.done
        return f"the GPU's memory is not enough{needs}, in step {step}; pass " + (
            ways or "a smaller base: there is nothing left to save"
        )

    def _ways(self) -> list["_Way"]:
        plan, ways, now = self.trainer.plan, [], self.expected
        if self.batch and self.batch > 1:
            half = self.batch // 2
            flag = f"--batch {half} --accumulate {-(-plan.accumulate * self.batch // half)}"
            ways.append(_Way(flag, now.passes * (1 - half / self.batch), ", about as slow"))
        if not plan.checkpointing:
            held = now.passes - self._checkpointed()
            ways.append(_Way("--checkpointing on", held, ", a third slower"))
        if plan.average == "device":
            ways.append(_Way("--average cpu", now.average, ""))
        if plan.adamw == "32bit":
            saved = now.moments - _moments(self.trainer)
            ways.append(_Way("--adamw 8bit", saved, "" if has_8bit() else f", after {INSTALL}"))
        return ways

    def _checkpointed(self) -> int:
        """What passes hold with checkpointing; the run is over, so it may stay on."""
        try:
            save_activations(self.trainer.module)
            return (self._count() or self.expected).passes
        except ValueError:
            return self.expected.passes


class _Way(NamedTuple):
    """A setting that saves memory."""

    flag: str
    saves: float  # bytes
    note: str


def _moments(trainer: Trainer) -> int:
    return memory.moment_bytes(trainer.weights, replace(trainer.plan, adamw="8bit"))


def _parts(module: nn.Module) -> str:
    """Which parts are trained, in millions of weights."""
    whole = module.items() if isinstance(module, nn.ModuleDict) else [("the network", module)]
    rows = []
    for name, part in whole:
        counts = [(w.numel(), w.requires_grad) for w in part.parameters()]
        trained, every = sum(n for n, on in counts if on), sum(n for n, _ in counts)
        of = "" if trained == every else f" of {every / 1e6:.1f}"
        rows.append(f"{name}, {trained / 1e6:.1f}{of} million weights")
    return "; ".join(rows)
