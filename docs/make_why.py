# SPDX-License-Identifier: Apache-2.0
"""Writes docs/why.png, the figure of docs/why.md: `python docs/make_why.py`."""

from pathlib import Path

import numpy as np
import torch

from spatext_lab import zoo
from spatext_lab.evaluation.why import diagnose, held_out, load
from spatext_lab.evaluation.why.figure import losses_figure
from spatext_lab.figures import save, to_image
from spatext_lab.reco.pipeline import ReCoPipeline
from spatext_lab.reco.text_encoder import smooth_rows


@torch.no_grad()
def forget(model: ReCoPipeline) -> None:
    """Gives the position tokens embeddings that were never trained.

    Those that the model began with, seed 0, keep much of their meaning: training moves them little,
    and the text encoder has learned to read them.
    """
    table, ids = model.text_encoder.get_input_embeddings().weight, model.position_tokens.bin_ids
    table[ids] = smooth_rows(table[: ids[0]], len(ids), torch.Generator().manual_seed(1))


def main() -> None:
    """Two panels: the shipped ReCo, and the same model without what its position tokens learned."""
    model = load(zoo.folder("pocket", "reco"))
    shown = held_out(model, 64, None)
    panels = []
    for name in ("the shipped ReCo", "position tokens never trained"):
        report = diagnose(model, shown, name)
        print(f"{name}\n{report.verdict}")
        figure = losses_figure(report.edges, report.own, report.effects, report.noun)
        figure.axes[0].set_title(name)
        panels.append(to_image(figure))
        forget(model)
    alt = "Loss against timestep for the shipped ReCo, whose lines are far apart, and for the same "
    alt += "model with untrained position tokens: own boxes and another image's are one line"
    save(np.hstack(panels), Path(__file__).with_name("why.png"), alt)


if __name__ == "__main__":
    main()
