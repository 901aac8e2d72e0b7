# SPDX-License-Identifier: Apache-2.0
"""Grids of images and plain curves, as matplotlib figures.

matplotlib is loaded when one is drawn, and its global state is left as it is.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from spatext_lab.figures.png import DPI, INK, Colour, colour, enlarged, to_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINES = 8  # of a title, at most


def grid(
    images: Sequence[Any],
    columns: int,
    titles: Sequence[str] | None = None,
    row_titles: Sequence[str] | None = None,
    size: int = 192,
) -> Figure:
    """Lay images out in rows; each is scaled to its cell, pixels staying sharp squares.

    Args:
        images:     PIL images or uint8 arrays (h, w, 3); None leaves a cell empty.
        columns:    images in a row.
        titles:     one per image or one per column, written above.
        row_titles: one per row, written at its left.
        size:       side of a cell in pixels.

    Raises:
        ValueError: for no images, and for a wrong number of titles.

    Example:
        figures.show(figures.grid([before, after], 2, ["before", "after"]), alt="...")
    """
    from matplotlib.figure import Figure

    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    if not rows:
        raise ValueError("images is empty: pass at least one")
    _check_count("titles", titles, {columns, len(images)})
    _check_count("row_titles", row_titles, {len(rows)})
    above = [_titles_above(titles, row, columns, size) for row in range(len(rows))]
    spaces = [8 + _depth(line) for line in above]
    cells = [[None if i is None else enlarged(to_image(i), size) for i in row] for row in rows]
    heights = [max((cell.height for cell in row if cell), default=size) for row in cells]
    pairs = zip(row_titles or (), heights, strict=False)
    beside = [_wrapped(text, height) for text, height in pairs]
    gap, left = 8, 12 + _depth(beside) if beside else 8
    width, height = left + columns * (size + gap), sum(heights) + sum(spaces) + gap
    figure = Figure((width / DPI, height / DPI), dpi=DPI, facecolor="white")
    top = 0
    for row, line in enumerate(cells):
        top += spaces[row]
        if beside:
            middle = top + heights[row] // 2
            _write(figure, beside[row], left // 2, middle, va="center", rotation=90)
        for column, cell in enumerate(line):
            x = left + column * (size + gap)
            if column < len(above[row]):
                _write(figure, above[row][column], x + size // 2, top - 6, va="bottom")
            if cell:
                across, down = (size - cell.width) // 2, (heights[row] - cell.height) // 2
                _place(figure, cell, x + across, top + down)
        top += heights[row]
    return figure


def _depth(texts: Sequence[str]) -> int:
    """The pixels that the tallest of some texts needs across its lines."""
    return 17 * max((text.count("\n") + 1 for text in texts), default=0)


# Both take pixels from the upper left; matplotlib counts in fractions from the lower left.
def _write(figure: Figure, text: str, x: int, y: int, **how: Any) -> None:
    width, height = figure.get_size_inches() * DPI
    figure.text(x / width, 1 - y / height, text, _font(10), ha="center", **how)


def _place(figure: Figure, image: Image.Image, x: int, y: int) -> None:
    """In whole pixels, so that each pixel of an enlarged image stays a sharp square."""
    width, height = figure.get_size_inches() * DPI
    corner = x / width, 1 - (y + image.height) / height
    axes = figure.add_axes((*corner, image.width / width, image.height / height))
    axes.imshow(np.asarray(image), interpolation="nearest", aspect="auto")
    axes.set_axis_off()


def curve(
    lines: Mapping[str, tuple[Any, Any]],
    x_label: str,
    y_label: str,
    references: Mapping[str, float | int] | None = None,
    size: tuple[int, int] = (560, 340),
) -> Figure:
    """Plot lines over one axis, each with its own colour and marker.

    Args:
        lines:      (x, y) by name, two sequences of equal length: {"SpaText": (steps, values)}.
        references: levels to compare with, drawn dashed: {"aim 0.80": 0.8}.
        size:       (width, height) in pixels.
    """
    from matplotlib.figure import Figure

    inches = (size[0] / DPI, size[1] / DPI)
    figure = Figure(inches, dpi=DPI, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    for k, (name, (x, y)) in enumerate(lines.items(), start=1):
        marks = {"marker": "os^Dv<>"[(k - 1) % 7], "ms": 5, "markevery": max(1, len(x) // 12)}
        marks["ls"] = "-" if k <= 7 else "--"  # colours repeat after seven
        axes.plot(x, y, color=_shade(colour(k)), lw=2, label=name, **marks)
    for name, level in (references or {}).items():
        axes.axhline(level, color="#8a8a8a", lw=1.2, ls=(0, (4, 3)), zorder=1)
        where = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        axes.annotate(name, (0, level), (4, 3), **_font(9) | {"color": "#6a6a6a"}, **where)
    axes.set_xlabel(x_label, _font(10))
    axes.set_ylabel(y_label, _font(10))
    axes.grid(axis="y", color="#e6e6e6", lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors="#555555", labelsize=9, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#bbbbbb")
    if len(lines) > 1:
        legend = axes.legend(frameon=False, fontsize=9, labelcolor=_shade(INK))
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def _check_count(name: str, texts: Sequence[str] | None, right: set[int]) -> None:
    if texts is not None and len(texts) not in right:
        wanted = " or ".join(map(str, sorted(right)))
        raise ValueError(f"{name} has {len(texts)} texts: expected {wanted}")


def _titles_above(titles: Sequence[str] | None, row: int, columns: int, size: int) -> list[str]:
    """The titles above this row, wrapped to the width of a cell."""
    if titles is None or (row > 0 and len(titles) == columns):
        return []
    line = titles[row * columns : (row + 1) * columns]
    return [_wrapped(text, size) for text in line]


def _wrapped(text: str, pixels: int) -> str:
    """A text in lines of this length, at most LINES; the rest is left out, with an ellipsis."""
    letters = max(8, pixels // 7)
    text = " ".join(text.split())[: (LINES + 1) * letters]
    return textwrap.fill(text, letters, max_lines=LINES, placeholder=" …")


def _font(size: int) -> dict[str, Any]:
    """A text with dollar signs is a text, no formula."""
    return {"fontsize": size, "color": _shade(INK), "parse_math": False}


def _shade(rgb: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb)
