# SPDX-License-Identifier: Apache-2.0
"""A scene as ReCo reads it: the tokens of its sentence, and beside them the boxes that they say.

    Inspector(reco.sentences, scene)     # point at a token, or reach it by Tab, and see its box

Style sheet and no script, so it works wherever a notebook is shown. The boxes are read back from
the tokens: what is drawn is what the network is told, rounded to the bins.
"""

from __future__ import annotations

import html
from dataclasses import dataclass

from spatext_lab.figures.png import Colour, colour
from spatext_lab.reco.position_tokens import PositionTokens, Sentence, Token
from spatext_lab.scene import Scene
from spatext_lab.scene.places import Box
from spatext_lab.widgets.sources import style

EDGES = ("x0", "y0", "x1", "y1")  # the order of a region's four position tokens
SIDE = 320  # of the drawing, in pixels


@dataclass(frozen=True, repr=False)
class Inspector:
    """The sentence of a scene that shows itself as tokens with their boxes.

    Raises what `PositionTokens.show_work` raises, when it is shown.
    """

    tokens: PositionTokens
    scene: Scene

    @property
    def sentence(self) -> Sentence:
        """The tokens."""
        return self.tokens.show_work(self.scene)

    @property
    def said(self) -> Scene:
        """The scene that the tokens say: boxes on their bins, texts in lower case."""
        return self.tokens.decode(self.sentence.ids)

    def __repr__(self) -> str:
        return f"<Inspector: {self.sentence}>"

    def _repr_html_(self) -> str:
        sentence, boxes = self.sentence, [region.box for region in self.said.regions]
        drawing = "".join(_box(k, box) for k, box in enumerate(boxes, start=1))
        alt = f"{len(boxes)} boxes, as the tokens say them"
        return (
            f"<style>{style('tokens')}{_rules(len(boxes))}</style>"
            '<div class="sx sx-tokens">'
            f'<svg viewBox="0 0 {SIDE} {SIDE}" role="img" aria-label="{alt}">'
            f'<rect class="sx-sheet" width="{SIDE}" height="{SIDE}"/>{drawing}</svg>'
            f'<div class="sx-said"><p>{_chips(sentence)}</p>'
            f'<p class="sx-note">{html.escape(_note(sentence, self.scene))}</p></div></div>'
        )


def _note(sentence: Sentence, scene: Scene) -> str:
    used = sum(token.region >= 0 for token in sentence.tokens)
    note = f"{used} of {len(sentence.tokens)} tokens used, the rest is padding."
    names = ", ".join(f"{k + 1} ({scene.regions[k].text})" for k in sentence.dropped)
    return note + (f" No room was left for region {names}." if names else "")


def _chips(sentence: Sentence) -> str:
    chips, places = [], 0
    for token in sentence.tokens:
        if token.region < 0:
            break
        edge = EDGES[places % 4] if token.is_position else None
        places += token.is_position
        chips.append(_chip(token, edge))
    return " ".join(chips)


def _chip(token: Token, edge: str | None) -> str:
    about = f"region {token.region}" if token.region else "caption"
    about += f", {edge}" if edge else ""
    kind = "sx-place" if edge else "sx-word"
    at = f' data-e="{edge}"' if edge else ""
    return (
        f'<span class="sx-token {kind}" tabindex="0" data-k="{token.region}"{at} '
        f'title="{about}" style="{_colours(token.region)}">{html.escape(token.text)}</span>'
    )


def _box(k: int, box: Box) -> str:
    x0, y0, x1, y1 = (round(value * SIDE, 2) for value in box)
    ends = {
        "x0": (x0, y0, x0, y1),
        "y0": (x0, y0, x1, y0),
        "x1": (x1, y0, x1, y1),
        "y1": (x0, y1, x1, y1),
    }
    lines = "".join(
        f'<line data-e="{edge}" x1="{a}" y1="{b}" x2="{c}" y2="{d}"/>'
        for edge, (a, b, c, d) in ends.items()
    )
    x, y = min(x0 + 15, SIDE - 12), min(y0 + 15, SIDE - 12)
    return (
        f'<g data-k="{k}" style="{_colours(k)}"><title>region {k}</title>'
        f'<rect x="{x0}" y="{y0}" width="{round(x1 - x0, 2)}" height="{round(y1 - y0, 2)}"/>{lines}'
        f'<circle cx="{x}" cy="{y}" r="10.5"/><text x="{x}" y="{y + 4.5}">{k}</text></g>'
    )


def _rules(regions: int) -> str:
    """What is pointed at in one half is shown in the other, each region and each edge by itself."""
    rules = []
    for k in range(1, regions + 1):
        it = f'[data-k="{k}"]:is(:hover, :focus)'
        rules.append(f'.sx-tokens:has({it}) [data-k="{k}"] {{ --on: 1; }}')
        rules += [
            f'.sx-tokens:has({it}[data-e="{edge}"]) '
            f'g[data-k="{k}"] [data-e="{edge}"] {{ --edge: 1; }}'
            for edge in EDGES
        ]
    return "\n".join(rules)


def _colours(k: int) -> str:
    back: Colour = colour(k)
    dark = sum(w * c for w, c in zip((0.299, 0.587, 0.114), back, strict=True)) <= 130
    return f"--back: rgb{back}; --on-back: {'#ffffff' if dark else '#262626'}"
