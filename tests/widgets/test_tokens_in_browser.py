# SPDX-License-Identifier: Apache-2.0
"""The token inspector in JupyterLab: point at a token, see its box; painted boxes."""

import pytest

CODE = """
from spatext_lab.reco.position_tokens import PositionTokens
from spatext_lab.reco.prompts import bin_token
from spatext_lab.text_to_image.tokenizer import new_tokenizer
from spatext_lab.widgets.painter import Painter, presets
from spatext_lab.widgets.tokens import Inspector
tokenizer = new_tokenizer(merges=200)
tokenizer.add_tokens([bin_token(number) for number in range(65)], special_tokens=True)
tokens = PositionTokens(tokenizer, 154)
"""
FILL = "e => Number(getComputedStyle(e).fillOpacity)"
WIDTH = "e => parseFloat(getComputedStyle(e).strokeWidth)"


@pytest.fixture
def page(notebook):
    notebook.show(f"{CODE}\nInspector(tokens, presets()['snow-boxes'])")
    return notebook.page


def strength(page, k: int) -> float:
    page.wait_for_timeout(250)  # it fades in
    return page.locator(f'.sx-tokens g[data-k="{k}"] rect').evaluate(FILL)


def test_a_token_shows_its_box(page):
    token = page.locator('.sx-token[data-k="3"]:not([data-e])').nth(2)
    assert strength(page, 3) < 0.2
    token.hover()
    assert strength(page, 3) > 0.6
    assert strength(page, 4) < 0.2
    page.locator(".sx-sheet").hover(position={"x": 3, "y": 3}, force=True)


def test_a_position_token_shows_its_edge_and_keys_reach_it(page):
    place = page.locator('.sx-token[data-k="4"][data-e="y1"]')
    line = page.locator('g[data-k="4"] line[data-e="y1"]')
    other = page.locator('g[data-k="4"] line[data-e="x0"]')
    page.locator('.sx-token[data-k="4"][data-e="x1"]').focus()
    page.keyboard.press("Tab")
    assert place.evaluate("e => e === document.activeElement")
    assert line.evaluate(WIDTH) > 2 * other.evaluate(WIDTH)


def test_painted_boxes_become_tokens(notebook):
    """By mouse in the painter, then the sentence: 64 pixels and 65 bins, so none is rounded."""
    notebook.show(f"{CODE}\npainter = Painter()\npainter")
    page = notebook.page
    page.get_by_role("button", name="Box (R)").click()
    page.get_by_role("button", name="Add a region (N)").click()
    page.keyboard.insert_text("a red ball")
    sheet = page.get_by_role("application", name="The sheet to paint on").bounding_box()
    for x, y, act in ((8, 16, page.mouse.down), (31, 47, page.mouse.up)):
        at = [
            sheet["x"] + sheet["width"] * (x + 0.5) / 64,
            sheet["y"] + sheet["height"] * (y + 0.5) / 64,
        ]
        page.mouse.move(*at)
        act()
    notebook.becomes("len(painter.scene.regions)", 1)
    places = "[t.text for t in Inspector(tokens, painter.scene).sentence.tokens if t.is_position]"
    assert notebook.python(places) == ["<bin008>", "<bin016>", "<bin032>", "<bin048>"]
