# SPDX-License-Identifier: Apache-2.0
"""The painter without a browser: its code path, and what it makes of what a browser may send."""

import base64
import io

import numpy as np
import pytest
import traitlets
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from spatext_lab import Region, Scene
from spatext_lab.figures import PALETTE, draw_scene
from spatext_lab.widgets.painter import Painter, presets


@st.composite
def scenes(draw) -> Scene:
    """Masks on 6 x 8 pixels and boxes, overlapping as they like."""
    regions = []
    for k in range(draw(st.integers(0, 5))):
        if draw(st.booleans()):
            mask = np.array(draw(st.lists(st.booleans(), min_size=48, max_size=48))).reshape(6, 8)
            mask[k, k] = True
            regions.append(Region(f"mask {k}", mask=mask))
        else:
            x0, y0 = draw(st.integers(0, 7)), draw(st.integers(0, 5))
            x1, y1 = draw(st.integers(x0 + 1, 8)), draw(st.integers(y0 + 1, 6))
            regions.append(Region(f"box {k}", box=(x0 / 8, y0 / 6, x1 / 8, y1 / 6)))
    return Scene(draw(st.text(st.characters(codec="utf-8"), max_size=5)), regions)


@settings(max_examples=80, deadline=None)
@given(scenes())
def test_an_opened_scene_looks_as_it_did(scene):
    opened = Painter(scene, size=(6, 8)).scene
    assert opened.caption == scene.caption
    seen = {r.text: m for r, m in zip(scene.regions, scene.visible_masks(6, 8), strict=True)}
    for region, mask in zip(opened.regions, opened.visible_masks(6, 8), strict=True):
        assert np.array_equal(mask, seen.pop(region.text))
    assert not any(mask.any() for mask in seen.values())  # left out: what nobody saw


@settings(max_examples=40, deadline=None)
@given(scenes())
def test_what_was_opened_once_stays_as_it_is(scene):
    once = Painter(scene, size=(6, 8)).scene
    assert Painter(once, size=(6, 8)).scene == once
    assert Scene.from_json(once.to_json()) == once


def test_the_sheet_is_empty_at_first():
    assert Painter().scene == Scene()
    assert Painter(size=(3, 5)).label_map.shape == (3, 5)


def test_painting_by_hand_on_a_small_sheet():
    painter = Painter(size=(3, 4))
    painter.caption = "two things"
    a, b = painter.add("left"), painter.add("right")
    painter.paint(a, [(0, 0), (0, 2)], size=1)
    painter.paint(b, [(1, 0), (3, 0)], size=1)
    painter.paint(0, [(0, 2)], size=1)
    assert painter.label_map.tolist() == [[1, 2, 2, 2], [1, 0, 0, 0], [0, 0, 0, 0]]
    left, right = painter.scene.regions
    assert left == Region("left", mask=painter.label_map == 1)
    assert right == Region("right", mask=painter.label_map == 2)
    painter.fill(b, (3, 2))
    assert painter.label_map.tolist() == [[1, 2, 2, 2], [1, 2, 2, 2], [2, 2, 2, 2]]


def test_a_region_is_a_mask_or_a_box_whichever_came_last():
    painter = Painter(size=8)
    k = painter.add("a ball")
    painter.paint(k, [(2, 2)], size=3)
    painter.box(k, (0.25, 0.5, 0.75, 1.0))
    assert painter.scene.regions == (Region("a ball", box=(0.25, 0.5, 0.75, 1.0)),)
    assert not painter.label_map.any()
    painter.paint(k, [(2, 2)], size=1)
    assert painter.scene.regions[0].is_mask


def test_removing_moves_the_numbers_up():
    painter = Painter(size=(1, 3))
    for k in range(3):
        painter.paint(painter.add(f"region {k}"), [(k, 0)], size=1)
    painter.remove(2)
    assert painter.label_map.tolist() == [[1, 0, 2]]
    assert [region.text for region in painter.scene.regions] == ["region 0", "region 2"]


def test_texts_and_places_that_are_missing():
    painter = Painter(size=4)
    painter.fill(painter.add(), (0, 0))
    painter.add("nowhere yet")
    assert [region.text for region in painter.scene.regions] == ["A random object"]
    painter.rename(1, "a ball")
    assert [region.text for region in painter.scene.regions] == ["a ball"]
    painter.clear()
    assert painter.scene.regions == ()


def test_nobody_ever_sees_a_map_and_regions_that_do_not_fit():
    painter, seen = Painter(), []
    painter.observe(lambda _: seen.append(painter.scene), ["labels", "regions", "caption"])
    for scene in presets().values():
        painter.scene = scene
        assert {(s.caption, len(s.regions)) for s in seen} == {(scene.caption, len(scene.regions))}
        seen.clear()


def test_regions_have_the_colours_of_all_figures():
    _, *colours = Painter().palette
    assert [tuple(c) for c in colours] == list(PALETTE)


def test_a_page_without_a_kernel_has_a_picture_of_it():
    scene = presets()["beach"]
    data, _ = Painter(scene)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert np.array_equal(picture, draw_scene(scene))
    assert data["text/plain"] == "<Painter: 5 regions on 64 x 64 pixels>"


def test_a_background_is_sent_as_png():
    below = Painter(background=np.zeros((4, 4, 3), np.uint8)).background
    assert bytes(below).startswith(b"\x89PNG")


# --- what comes from a browser --------------------------------------------------------------------


def test_a_stroke_from_the_browser_arrives():
    """As ipywidgets hands it over: a memoryview, with the regions in the same message."""
    painter = Painter(size=(1, 2))
    regions = [{"text": "x", "box": None}]
    painter.set_state({"labels": memoryview(b"\0\1"), "regions": regions})
    assert painter.scene == Scene(regions=[Region("x", mask=np.array([[False, True]]))])


@pytest.mark.parametrize(
    "state",
    [
        {"labels": memoryview(b"\1\1\1")},
        {"regions": [{"text": 7, "box": None}]},
        {"regions": [{"text": "x", "box": [0, 0, 64, 64]}]},
        {"regions": [{"text": "x"}]},
    ],
)
def test_nonsense_from_a_browser_is_refused(state):
    painter = Painter(size=(1, 2))
    with pytest.raises(traitlets.TraitError):
        painter.set_state(state)
    assert painter.scene == Scene()


def test_the_buttons(monkeypatch):
    painter, sent = Painter(), []
    monkeypatch.setattr(painter, "send", sent.append)
    painter._handle_custom_msg({"preset": "beach"}, [])
    assert painter.scene.caption == presets()["beach"].caption
    assert sent.pop() == {}  # each question has an answer, for the page waits for it
    painter._handle_custom_msg({"ping": True}, [])
    assert sent.pop() == {}
    painter._handle_custom_msg({"save": True}, [])
    assert Scene.from_json(sent.pop()["json"]) == painter.scene
    painter._handle_custom_msg({"json": presets()["snow-boxes"].to_json()}, [])
    assert painter.scene == presets()["snow-boxes"]
    for wrong in ({"preset": "nowhere"}, {"json": "[" * 100_000}, {"json": None}):
        painter._handle_custom_msg(wrong, [])
        assert sent.pop()["problem"]
    painter._handle_custom_msg({"json": "no scene"}, [])
    assert "no scene" in sent.pop()["problem"]
    assert painter.scene == presets()["snow-boxes"]


# --- bad input ------------------------------------------------------------------------------------


def test_bad_input_is_named():
    painter = Painter(size=4)
    painter.add()
    with pytest.raises(ValueError, match="region is 2; there are regions 1 to 1"):
        painter.fill(2, (0, 0))
    with pytest.raises(ValueError, match="pixels"):
        painter.box(1, (0, 0, 32, 32))
    with pytest.raises(ValueError, match="size is 0"):
        Painter(size=0)
    with pytest.raises(ValueError, match="256 regions"):
        Painter(Scene(regions=[Region(box=(0, 0, 1, 1))] * 256))
    assert painter.scene == Scene()


def test_there_are_at_least_eight_presets_and_each_has_a_thumbnail():
    painter = Painter()
    assert len(presets()) >= 8
    assert [item["name"] for item in painter.gallery] == list(presets())
    assert all(item["png"].startswith(b"\x89PNG") for item in painter.gallery)
