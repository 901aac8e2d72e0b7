# SPDX-License-Identifier: Apache-2.0
"""The figure of `why`: loss against t, under the own condition and under exchanged ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from spatext_lab.evaluation.why.verdict import Effect
from spatext_lab.figures import colour, curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = (720, 440)


def losses_figure(
    edges: Sequence[int], own: Sequence[float], effects: Mapping[str, Effect], noun: str
) -> Figure:
    """A line for each condition; the nearer two lines, the less their difference matters.

    The bands are the paired intervals of the differences from the own condition: where one includes
    the own line, the difference may be chance.

    Args:
        edges: the first timestep of each bin, and the number of timesteps.
        own: the mean loss under the own condition in each bin.
        effects: increase of the loss by variant, in units of `own`.
        noun: what a layout consists of, "boxes" or "masks".
    """
    from matplotlib.ticker import LogLocator

    names = {
        "other layout": f"another image's {noun}",
        "other texts": "another image's region texts",
        "no regions": f"no {noun}, no region texts",
        "other caption": "another image's caption",
    }
    middles = [(a + b - 1) / 2 for a, b in pairwise(edges)]
    lines = {f"own {noun}, texts and caption": (middles, list(own))}
    for key, name in names.items():
        means = [mean for mean, _, _ in effects[key].by_t]
        lines[name] = (middles, [x * (1 + mean) for x, mean in zip(own, means, strict=True)])
    figure = curve(lines, "timestep t, from the image (0) to noise", "loss", size=SIZE)
    axes = figure.axes[0]
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    for k, key in enumerate(names, start=2):
        pairs = list(zip(own, effects[key].by_t, strict=True))
        bounds = [[x * (1 + interval[i]) for x, interval in pairs] for i in (1, 2)]
        shade = [value / 255 for value in colour(k)]
        axes.fill_between(middles, *bounds, color=shade, alpha=0.12, lw=0)
    return figure
