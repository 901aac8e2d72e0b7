# SPDX-License-Identifier: Apache-2.0
"""Pieces of HTML. Texts go in as plain text and are escaped here, and only here.

In prose, `...` between backticks becomes code; nothing else is markup.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from spatext_lab.figures.png import colour
from spatext_lab.scene import Scene


class Html(str):
    """What needs no escaping any more."""

    __slots__ = ()


def prose(*paragraphs: str) -> Html:
    """Paragraphs of running text."""
    return Html("".join(f"<p>{inline(text)}</p>\n" for text in paragraphs))


def inline(text: str) -> Html:
    """A text, escaped, with `code` in backticks."""
    return Html(re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text)))


def figure(content: Html, see: str, bad: str) -> Html:
    """A figure whose caption says what to see and what is bad about it."""
    said = (("see", "See", see), ("bad", "Not good", bad))
    caption = "".join(f'<p><b class="{kind}">{name}</b> {inline(t)}</p>' for kind, name, t in said)
    return Html(f"<figure>\n{content}\n<figcaption>{caption}</figcaption>\n</figure>\n")


def tiles(cells: Sequence[tuple[Html, str]], width: int = 192) -> Html:
    """Pictures side by side, each with a label below; as many in a row as fit.

    width: of one picture in CSS pixels, at most.
    """
    shown = "\n".join(
        f'<div class="tile">{image}<span>{inline(label)}</span></div>' for image, label in cells
    )
    return Html(f'<div class="tiles" style="--tile: {width}px">\n{shown}\n</div>')


def table(head: Sequence[str], rows: Sequence[Sequence[str | Html]], kind: str = "numbers") -> Html:
    """A table; the first cell of each row is its heading. Cells that are HTML stay as they are.

    kind: the CSS class: "numbers" or "pictures".
    """
    top = "".join(f'<th scope="col">{inline(text)}</th>' for text in head)
    lines = [
        f'<tr><th scope="row">{inline(first)}</th>{"".join(map(_cell, rest))}</tr>'
        for first, *rest in rows
    ]
    body = "\n".join(lines)
    return Html(
        f'<div class="wide"><table class="{escape(kind)}"><thead><tr>{top}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>\n"
    )


def _cell(content: str | Html) -> str:
    return f"<td>{content if isinstance(content, Html) else inline(content)}</td>"


def legend(scene: Scene) -> Html:
    """The caption, and each region's number in its colour with its text."""
    items = "".join(
        f'<li><i style="{_paint(k)}">{k}</i>{inline(region.text)}</li>'
        for k, region in enumerate(scene.regions, start=1)
    )
    return Html(
        f'<div class="legend"><p class="caption">{inline(scene.caption)}</p><ol>{items}</ol></div>'
    )


def _paint(k: int) -> str:
    """Region k's colour, and black or white on it, whichever stands out more."""
    red, green, blue = colour(k)
    ink = "#262626" if 0.299 * red + 0.587 * green + 0.114 * blue > 130 else "#ffffff"
    return f"background: rgb({red} {green} {blue}); color: {ink}"


def folded(summary: str, text: str) -> Html:
    """A text as it is, hidden until it is asked for."""
    return Html(
        f"<details><summary>{inline(summary)}</summary><pre>{escape(text)}</pre></details>\n"
    )


def command(*lines: str) -> Html:
    """Command lines to copy."""
    return Html("<pre>" + escape("\n".join(lines)) + "</pre>\n")


def cards(facts: Sequence[tuple[str, str]]) -> Html:
    """A few figures in large type: (figure, what it is)."""
    items = "".join(
        f"<div><b>{inline(n)}</b><span>{inline(what)}</span></div>" for n, what in facts
    )
    return Html(f'<div class="cards">{items}</div>\n')
