# SPDX-License-Identifier: Apache-2.0
"""The token inspector: what it draws is what the tokens say, and a pointer joins the two."""

import re
from html.parser import HTMLParser

import pytest

from spatext_lab import Region, Scene
from spatext_lab.reco.position_tokens import PositionTokens
from spatext_lab.reco.prompts import bin_token
from spatext_lab.text_to_image.tokenizer import new_tokenizer
from spatext_lab.widgets.tokens import EDGES, SIDE, Inspector

BINS = 11
SCENE = Scene(
    "a <b>meadow</b>",
    [Region("a red <i>ball</i>", box=(0.12, 0.2, 0.5, 0.61)), Region("a star", box=(0, 0, 1, 1))],
)


def tokens(length: int = 77) -> PositionTokens:
    tokenizer = new_tokenizer(merges=200)
    tokenizer.add_tokens([bin_token(number) for number in range(BINS)], special_tokens=True)
    return PositionTokens(tokenizer, length)


class Page(HTMLParser):
    """Elements as (tag, attributes), and the text of each token."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.all, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.all.append((tag, dict(attrs)))
        if tag == "span":
            self.texts.append("")

    def handle_data(self, data):
        if self.all[-1][0] == "span":
            self.texts[-1] += data.rstrip(" ")

    def of(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.all if name == tag]


def test_every_token_is_there_with_its_region_and_edge():
    inspector = Inspector(tokens(), SCENE)
    page = Page(inspector._repr_html_())
    said = [token for token in inspector.sentence.tokens if token.region >= 0]
    assert page.texts == [token.text for token in said]
    assert [span["data-k"] for span in page.of("span")] == [str(token.region) for token in said]
    edges = [span.get("data-e") for span in page.of("span")]
    assert [e for e in edges if e] == [*EDGES, *EDGES]
    assert [e is not None for e in edges] == [token.is_position for token in said]
    assert all(span["tabindex"] == "0" for span in page.of("span"))


def test_boxes_are_those_that_the_bins_say():
    page = Page(Inspector(tokens(), SCENE)._repr_html_())
    _, *boxes = page.of("rect")
    want = [(0.1, 0.2, 0.4, 0.4), (0.0, 0.0, 1.0, 1.0)]  # tenths, by hand: x, y, width, height
    for box, expected in zip(boxes, want, strict=True):
        found = [float(box[name]) / SIDE for name in ("x", "y", "width", "height")]
        assert found == pytest.approx(expected)


def test_an_edge_is_where_its_coordinate_is():
    lines = Page(Inspector(tokens(), SCENE)._repr_html_()).of("line")[:4]
    x0, y0, x1, y1 = (value * SIDE for value in (0.1, 0.2, 0.5, 0.6))
    for edge, expected in {
        "x0": (x0, y0, x0, y1),
        "y0": (x0, y0, x1, y0),
        "x1": (x1, y0, x1, y1),
        "y1": (x0, y1, x1, y1),
    }.items():
        (line,) = (line for line in lines if line["data-e"] == edge)
        assert [float(line[name]) for name in ("x1", "y1", "x2", "y2")] == pytest.approx(expected)


def test_texts_stay_texts():
    text = Inspector(tokens(), SCENE)._repr_html_()
    assert not {"b", "i", "script"} & {tag for tag, _ in Page(text).all}
    assert "<" in Page(text).texts


def test_a_region_without_room_is_named():
    inspector = Inspector(tokens(length=30), SCENE)
    assert inspector.sentence.dropped
    text = inspector._repr_html_()
    assert len(Page(text).of("g")) == 2 - len(inspector.sentence.dropped)
    assert "No room was left for region" in text
    assert re.search(r"\d+ of 30 tokens used", text)
    assert "No room" not in Inspector(tokens(), SCENE)._repr_html_()


def test_as_text_it_is_the_sentence():
    inspector = Inspector(tokens(), Scene("", [Region("a", box=(0, 0, 1, 1))]))
    bins = "<bin000> <bin000> <bin010> <bin010>"
    text = f"<|startoftext|> <|endoftext|> {bins} <|startoftext|> a <|endoftext|>"
    assert repr(inspector) == f"<Inspector: {text}>"


def test_a_thin_box_is_refused_by_name():
    with pytest.raises(ValueError, match=r"regions\[0\].box"):
        Inspector(tokens(), Scene("", [Region("x", box=(0.5, 0, 0.51, 1))]))._repr_html_()
