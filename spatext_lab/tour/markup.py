# SPDX-License-Identifier: Apache-2.0
"""Pieces of HTML from the templates, which escape every text.

In texts, `...` between backticks becomes code; nothing else is markup.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape

from spatext_lab.figures.png import colour, ink_on
from spatext_lab.scene import Scene


def inline(text: str | Markup) -> Markup:
    """A text, escaped, with `code` in backticks; markup stays as it is."""
    if isinstance(text, Markup):
        return text
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


TEMPLATES = Environment(
    loader=PackageLoader("spatext_lab.tour"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
TEMPLATES.filters["inline"] = inline
_BLOCKS = TEMPLATES.get_template("blocks.html").module


def prose(*paragraphs: str) -> Markup:
    """Paragraphs of running text."""
    return _BLOCKS.prose(paragraphs)


def figure(content: Markup, see: str, bad: str) -> Markup:
    """A figure whose caption says what to see and what is bad about it."""
    return _BLOCKS.figure(content, see, bad)


def tiles(cells: Sequence[tuple[Markup, str]], width: int = 192) -> Markup:
    """Images side by side, each with a label below; as many in a row as fit.

    Args:
        cells: (image, label) each.
        width: of one image in CSS pixels, at most.
    """
    return _BLOCKS.tiles(cells, width)


def table(
    head: Sequence[str], rows: Sequence[Sequence[str | Markup]], kind: str = "numbers"
) -> Markup:
    """A table; the first cell of each row is its heading.

    Args:
        head: headings of the columns.
        rows: cells, texts or markup.
        kind: the CSS class, "numbers" or "images".
    """
    return _BLOCKS.table(head, rows, kind)


def legend(scene: Scene) -> Markup:
    """The caption, and each region's number in its colour with its text."""
    return _BLOCKS.legend(scene, _paint)


def _paint(k: int) -> str:
    return f"background: rgb{colour(k)}; color: rgb{ink_on(colour(k))}"


def folded(summary: str, text: str) -> Markup:
    """A preformatted text that a click unfolds."""
    return _BLOCKS.folded(summary, text)


def command(*lines: str) -> Markup:
    """Command lines to copy."""
    return _BLOCKS.command(lines)


def image(src: str, size: tuple[int, int], alt: str) -> Markup:
    """An image of a file beside the page; size is (width, height) in pixels."""
    return _BLOCKS.image(src, *size, alt)
