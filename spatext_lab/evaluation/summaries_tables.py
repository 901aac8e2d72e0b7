# SPDX-License-Identifier: Apache-2.0
"""What the summary's accelerations cost and lose, beside simply taking fewer steps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from spatext_lab import zoo
from spatext_lab.baselines.summaries.pipeline import AcceleratedSpaTextPipeline
from spatext_lab.baselines.summaries.update_mask import UpdateMaskNetwork
from spatext_lab.evaluation.judge import Judge
from spatext_lab.evaluation.methods import JOINT
from spatext_lab.evaluation.report import sampled, scores
from spatext_lab.evaluation.tables import write
from spatext_lab.evaluation.tasks import Task, tasks
from spatext_lab.figures.charts import curve
from spatext_lab.spatext.pipeline import SpaTextPipeline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS = JOINT["num_inference_steps"]
PART = "update-mask"
ALONE = 3  # images that are sampled one at a time
COLUMNS = {
    "local IoU": "local_iou",
    "accuracy": "region_accuracy",
    "cells": "cells",
    "time": "time",
    "time of one image": "time_alone",
}


@dataclass(frozen=True)
class Way:
    """A way of sampling.

    Args:
        line: of the figure that it is a point of.
        steps: denoising steps.
        settings: of `AcceleratedSpaTextPipeline`.
    """

    line: str
    steps: int = STEPS
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For a table's row."""
        words = f"{self.line}, {self.steps} step{'s' * (self.steps > 1)}"
        if fraction := self.settings.get("coarse_fraction"):
            return f"{words}, {fraction:.0%} of them halved"
        if least := self.settings.get("least_probability"):
            return f"{words}, cells from p = {least:g}"
        return words


def ways() -> Iterator[Way]:
    """Each line of the figure from its cheapest point to its dearest; the first is the whole."""
    for steps in (STEPS, 7, 5, 3, 2, 1):
        yield Way("fewer steps", steps)
    for steps, fraction in ((STEPS, 0.3), (STEPS, 0.5), (STEPS, 0.7), (2, 0.5)):
        yield Way("coarse to fine", steps, {"coarse_fraction": fraction})
    for updates in ("steps", "windows", "cells"):
        for least, spare in ((0.1, 0.05), (0.5, 0.05)):
            how = {"updates": updates, "least_probability": least, "spare": spare}
            yield Way(f"update mask, {updates}", STEPS, how)


def costs(
    spatext: SpaTextPipeline, mask: UpdateMaskNetwork | None, todo: Sequence[Task], seed: int = 0
) -> list[dict]:
    """A report for each way.

    Args:
        spatext: what is accelerated.
        mask: its update mask; without one the rows that need it are left out.
        todo: evaluation scenes.
        seed: of the first image.

    Returns:
        line and steps; what `report.scores` returns; cells, those that the U-Net has predicted;
        time, of sampling in batches, and time_alone, of a few images one by one. These three are
        fractions of the first report's. On a CPU time is that of the process.
    """
    judge, rows = Judge.from_pretrained(zoo.folder("pocket", "judge")), []
    for way in ways():
        own = {"update_mask": mask} if "updates" in way.settings else {}
        if own and mask is None:
            continue
        fast = AcceleratedSpaTextPipeline.from_pipe(spatext, **own, **way.settings)
        settings = JOINT | {"num_inference_steps": way.steps}

        def sampler(some: Sequence[Task], first: int, fast=fast, settings=settings) -> list:
            return fast([task.scene for task in some], seed=first, **settings).images

        sampler(todo[:1], seed)  # to warm up
        with counted_cells(fast.unet) as cells:
            start = _clock(fast)
            images = sampled(sampler, todo, seed, way.name)
            taken = _clock(fast) - start
        if way.settings.get("updates") == "cells":  # seen by the U-Net, and not all used
            cells = [cells[0] * fast.computed[0] / fast.computed[1]]
        start = _clock(fast)
        for k, task in enumerate(todo[:ALONE]):
            sampler([task], seed + k)
        cost = {"cells": cells[0], "time": taken, "time_alone": _clock(fast) - start}
        rows.append({"line": way.line, "steps": way.steps} | scores(todo, images, judge) | cost)
    whole = rows[0].copy()
    return [
        row | {key: round(row[key] / whole[key], 3) for key in ("cells", "time", "time_alone")}
        for row in rows
    ]


def _clock(pipeline: SpaTextPipeline) -> float:
    """Seconds; on a CPU those of this process, so that others do not count."""
    if pipeline.device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


@contextmanager
def counted_cells(unet: nn.Module) -> Iterator[list[int]]:
    """A list of one number: cells of latents that a U-Net is passed while the context lasts."""
    total = [0]

    def add(_, args: tuple) -> None:
        total[0] += args[0][:, 0].numel()

    hook = unet.register_forward_pre_hook(add)
    try:
        yield total
    finally:
        hook.remove()


def run(out: Path, scenes: int = 64, model: str = "pocket", variants: Path | None = None) -> None:
    """Writes the table as Markdown and JSON, and its figure.

    Args:
        out: a folder, for Markdown, JSON and a figure.
        scenes: of the validation split.
        model: "pocket", or a folder with its layout.
        variants: a folder that holds update-mask, as `train update-mask` makes it; if there is
            none, the model's own. Without either its rows are left out.
    """
    spatext = SpaTextPipeline.from_pretrained(zoo.folder(model, "spatext"))
    homes = [home for home in (variants, zoo.folder(model)) if home and (home / PART).is_dir()]
    mask = UpdateMaskNetwork.from_pretrained(zoo.folder(str(homes[0]), PART)) if homes else None
    rows = costs(spatext, mask, list(tasks(scenes, split="val")))
    named = [way.name for way in ways() if mask or "updates" not in way.settings]
    command = f"spatext-lab ablation --method summaries --scenes {scenes}"
    command += " --variants DIR --out DIR" if variants else " --out DIR"
    write(out, "summaries", rows, named, COLUMNS, command)
    figure(rows, "cells").savefig(out / "summaries-cells.png")
    figure(rows, "time").savefig(out / "summaries-time.png")


def figure(rows: Sequence[dict], cost: str) -> Figure:
    """Local IoU against what it costs, a line for each way of saving.

    Args:
        rows: what `costs` returns.
        cost: "cells", "time" or "time_alone".
    """

    lines: dict[str, tuple[list[float], list[float]]] = {}
    for row in sorted(rows, key=lambda row: row[cost]):
        x, y = lines.setdefault(row["line"], ([], []))
        x.append(row[cost])
        y.append(row["local_iou"])
    return curve(lines, f"{cost.replace('_', ' ')}, fraction of {STEPS} whole steps", "local IoU")
