# SPDX-License-Identifier: Apache-2.0
"""A scene as ReCo's tokens, and beside them the boxes that the tokens encode.

    Inspector(reco.position_tokens, scene)  # point at a token, or reach it by Tab: its box shows

Style sheet and no script, so it works wherever a notebook is shown. The boxes are decoded from
the tokens: what is shown is what the network gets, rounded to the bins.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from itertools import cycle

from spatext_lab.figures.png import colour, ink_on
from spatext_lab.figures.scenes import chip
from spatext_lab.reco.position_tokens import PositionTokens, TokenSequence
from spatext_lab.scene import Scene
from spatext_lab.scene.places import Box
from spatext_lab.widgets.sources import style

EDGES = ("x0", "y0", "x1", "y1")  # the order of a region's four position tokens
SIDE = 320  # pixels of the drawing


@dataclass(frozen=True, repr=False)
class Inspector:
    """A scene's prompt that a notebook shows as tokens with their boxes.

    Args:
        tokens: the encoder of scenes, a ReCo pipeline's `position_tokens`.
        scene:  what to encode.

    Raises:
        ValueError: when shown, where `PositionTokens.show_work` cannot encode the scene.
    """

    tokens: PositionTokens
    scene: Scene

    @property
    def sentence(self) -> TokenSequence:
        """The encoded scene, token by token."""
        return self.tokens.show_work(self.scene)

    @property
    def decoded(self) -> Scene:
        """The scene that the tokens encode: boxes on their bins, texts in lower case."""
        return self.tokens.decode(self.sentence.ids)

    def __repr__(self) -> str:
        return f"<Inspector: {self.sentence}>"

    def _repr_html_(self) -> str:
        sentence, boxes = self.sentence, [region.box for region in self.decoded.regions]
        drawing = "".join(_box(k, box) for k, box in enumerate(boxes, start=1))
        alt = f"{len(boxes)} boxes, decoded from the tokens"
        return (
            f"<style>{style('tokens')}{_rules(len(boxes))}</style>"
            '<div class="sx sx-tokens">'
            f'<svg viewBox="0 0 {SIDE} {SIDE}" role="img" aria-label="{alt}">'
            f'<rect class="sx-sheet" width="{SIDE}" height="{SIDE}"/>{drawing}</svg>'
            f'<div class="sx-text-side"><p>{_chips(sentence)}</p>'
            f'<p class="sx-note">{html.escape(_note(sentence, self.scene))}</p></div></div>'
        )


def _note(sentence: TokenSequence, scene: Scene) -> str:
    used = sum(token.region >= 0 for token in sentence.tokens)
    note = f"{used} of {len(sentence.tokens)} tokens used, the rest is padding."
    names = ", ".join(f"{k + 1} ({scene.regions[k].text})" for k in sentence.dropped)
    return note + (f" No room was left for region {names}." if names else "")


def _chips(sentence: TokenSequence) -> str:
    chips, edges = [], cycle(EDGES)
    for token in sentence.tokens:
        if token.region < 0:  # padding, to the end
            break
        edge = next(edges) if token.is_position else ""
        attributes = f' class="sx-token" tabindex="0" data-k="{token.region}"'
        attributes += f' data-e="{edge}"' if edge else ""
        chips.append(chip(token.text, token.region, token.is_position, edge, attributes))
    return " ".join(chips)


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
    """CSS that highlights in one half what is pointed at in the other."""
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
    return f"--back: rgb{colour(k)}; --on-back: rgb{ink_on(colour(k))}"
