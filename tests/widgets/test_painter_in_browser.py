# SPDX-License-Identifier: Apache-2.0
"""The painter in JupyterLab: pointer, touch and keys give the scene that the code path gives."""

import json
import random

import numpy as np
import pytest

from spatext_lab import Region, Scene
from spatext_lab.widgets.painter import Painter, presets
from spatext_lab.widgets.sources import script
from spatext_lab.widgets.strokes import flood, stroke

EVIL = "<img src=x onerror='window.broken = 1'><b>bold</b>"
START = "from PIL import Image\nfrom spatext_lab.widgets.painter import Painter\n"
JSON = "painter.scene.to_json()"


class Hand:
    """A painter on the page, and what a hand does to it."""

    def __init__(self, notebook, code: str = "Painter()") -> None:
        notebook.show(f"{START}painter = {code}\npainter")
        self.notebook, self.page, self.keys = notebook, notebook.page, notebook.page.keyboard
        self.root = self.page.locator(".sx-painter")
        self.sheet = self.root.get_by_role("application", name="The sheet to paint on")

    def spot(self, x: int, y: int) -> tuple[float, float]:
        """Where on the page the middle of a pixel is."""
        box, side = self.sheet.bounding_box(), self.notebook.python("painter.width")
        high = self.notebook.python("painter.height")
        return (
            box["x"] + box["width"] * (x + 0.5) / side,
            box["y"] + box["height"] * (y + 0.5) / high,
        )

    def drag(self, *points: tuple[int, int]) -> None:
        self.page.mouse.move(*self.spot(*points[0]))
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*self.spot(*point))
        self.page.mouse.up()

    def click(self, name: str) -> None:
        self.root.get_by_role("button", name=name, exact=True).click()

    def add(self, text: str) -> None:
        self.click("Add a region (N)")
        self.keys.insert_text(text)

    def agrees(self, scene: Scene) -> None:
        self.notebook.becomes(JSON, scene.to_json())


@pytest.fixture
def hand(notebook) -> Hand:
    return Hand(notebook)


def brush(hand) -> int:
    return int(hand.root.get_by_role("slider", name="Brush size in pixels").input_value())


def test_painting_gives_the_scene_of_the_code_path(hand):
    line = [(5, 40), (30, 12), (55, 50)]
    hand.add("a red ball")
    hand.drag(*line)
    hand.add("a blue house")
    hand.drag((50, 10))
    expected = Painter()
    expected.paint(expected.add("a red ball"), line, size=brush(hand))
    expected.paint(expected.add("a blue house"), [(50, 10)], size=brush(hand))
    hand.agrees(expected.scene)


def test_a_stroke_is_one_message(hand):
    hand.add("a ball")
    hand.agrees(Scene())
    hand.notebook.becomes("[region['text'] for region in painter.regions]", ["a ball"])
    count = (
        "[globals().update(seen=[]), painter.comm.on_msg(lambda m: (seen.append(m), "
        "painter._handle_msg(m)))] and 0"
    )
    assert hand.notebook.python(count) == 0
    hand.drag((10, 10), (20, 30), (40, 40), (60, 10))
    hand.notebook.becomes("len(painter.scene.regions)", 1)
    hand.page.wait_for_timeout(500)
    assert hand.notebook.python("[m['content']['data']['method'] for m in seen]") == ["update"]


def test_boxes_give_boxes(hand):
    hand.click("Box (R)")
    hand.add("a house")
    hand.drag((8, 16), (31, 47))
    hand.add("a star")
    hand.drag((60, 20), (40, 3))  # from any corner
    house, star = (8 / 64, 16 / 64, 32 / 64, 48 / 64), (40 / 64, 3 / 64, 61 / 64, 21 / 64)
    hand.agrees(Scene(regions=[Region("a house", box=house), Region("a star", box=star)]))


def test_eraser_filling_undo_and_redo(hand):
    steps = [Painter()]

    def step() -> Painter:
        steps.append(Painter(steps[-1].scene))
        return steps[-1]

    hand.drag((32, 20), (32, 40))  # the first region comes by itself
    step().paint(steps[-1].add(), [(32, 20), (32, 40)], size=brush(hand))
    hand.click("Eraser (E)")
    hand.drag((20, 30), (44, 30))
    step().paint(0, [(20, 30), (44, 30)], size=brush(hand))
    hand.click("Fill (F)")
    hand.drag((1, 1))
    step().fill(1, (1, 1))
    for back in (2, 1, 0):
        hand.agrees(steps[back + 1].scene)
        hand.click("Undo (Ctrl Z)")
        hand.agrees(steps[back].scene)
    assert hand.root.get_by_role("button", name="Undo (Ctrl Z)").is_disabled()
    for forth in (1, 2, 3):
        hand.click("Do again (Ctrl Y)")
        hand.agrees(steps[forth].scene)
    hand.click("Clear everything")
    hand.agrees(Scene())


def test_a_finger_paints(hand):
    hand.add("a ball")
    touch = hand.page.context.new_cdp_session(hand.page)
    where = [hand.spot(12, 12), hand.spot(50, 30)]
    for kind, points in (("touchStart", where[:1]), ("touchMove", where[1:]), ("touchEnd", [])):
        touch.send(
            "Input.dispatchTouchEvent",
            {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]},
        )
    expected = Painter()
    expected.paint(expected.add("a ball"), [(12, 12), (50, 30)], size=brush(hand))
    hand.agrees(expected.scene)


def test_a_keyboard_is_enough(hand):
    """From the cell by Tab alone: a region, its text, a line, a box; and the notebook stays."""
    focused = "document.activeElement.getAttribute('aria-label')"
    for _ in range(80):
        if hand.page.evaluate(focused) == "The sheet to paint on":
            break
        hand.keys.press("Tab")
    hand.keys.press("n")
    hand.keys.insert_text("a tree")
    hand.keys.press("Shift+Tab")  # over the badge and the caption, back to the sheet
    hand.keys.press("Shift+Tab")
    hand.keys.press("Shift+Tab")
    assert hand.page.evaluate(focused) == "The sheet to paint on"
    hand.keys.press("ArrowLeft")  # the cursor appears in the middle
    hand.keys.down(" ")
    for _ in range(2):
        hand.keys.press("Shift+ArrowRight")
    hand.keys.press("ArrowUp")
    hand.keys.up(" ")
    expected = Painter()
    expected.paint(expected.add("a tree"), [(32, 32), (48, 32), (48, 31)], size=brush(hand))
    hand.agrees(expected.scene)
    hand.keys.press("ArrowUp")
    assert hand.root.get_by_role("status").inner_text() == "Row 31, column 49: region 1, a tree"

    hand.keys.press("n")
    for _ in range(6):
        hand.keys.press("Shift+Tab")
        if hand.page.evaluate(focused) == "The sheet to paint on":
            break
    hand.keys.press("2")
    hand.keys.press("r")
    hand.keys.press("Enter")
    hand.keys.press("Shift+ArrowLeft")
    hand.keys.press("Shift+ArrowUp")
    hand.keys.press("Enter")
    expected.box(expected.add(), (40 / 64, 22 / 64, 49 / 64, 31 / 64))
    hand.agrees(expected.scene)
    hand.keys.press("Control+z")
    hand.keys.press("a")  # says nothing to the painter; to the notebook, it is a new cell
    hand.notebook.becomes("len(painter.scene.regions)", 1)
    assert hand.page.locator(".jp-CodeCell").count() == 1  # no shortcut of the notebook's was hit


def test_texts_stay_texts(hand):
    hand.add(EVIL)
    hand.drag((32, 32))
    hand.root.get_by_role("textbox", name="Caption of the whole image").fill(EVIL)
    said = "[painter.caption, [region.text for region in painter.scene.regions]]"
    hand.notebook.becomes(said, [EVIL, [EVIL]])  # no [0], which may not be there yet
    inside = Scene(EVIL, [Region(EVIL, box=(0, 0, 0.5, 0.5))]).to_json()
    again = Hand(hand.notebook, f"Painter(__import__('spatext_lab').Scene.from_json({inside!r}))")
    again.click(f"Choose region 1, {EVIL}")
    again.page.wait_for_timeout(300)
    assert again.root.get_by_role("status").inner_text() == f"region 1, {EVIL}"
    assert again.root.locator("img[src=x], b").count() == 0
    assert again.page.evaluate("window.broken") is None


def test_gallery_files_and_the_code_path_meet(hand, tmp_path):
    hand.click("Begin with the scene beach")
    hand.notebook.becomes("painter.caption", presets()["beach"].caption)
    hand.drag((10, 60))
    with hand.page.expect_download() as download:
        hand.click("Save as a scene file")
    download.value.save_as(tmp_path / "scene.json")
    assert Scene.load(tmp_path / "scene.json").to_json() == hand.notebook.python(JSON)

    presets()["snow-boxes"].save(tmp_path / "other.json")
    hand.root.locator("input[type=file]").set_input_files(tmp_path / "other.json")
    hand.agrees(presets()["snow-boxes"])
    (tmp_path / "bad.json").write_text("{}")
    hand.root.locator("input[type=file]").set_input_files(tmp_path / "bad.json")
    hand.root.get_by_text("No scene: ").wait_for()

    assert hand.notebook.python("painter.add('by code')") == 6
    hand.root.get_by_role("textbox", name="Text of region 6").wait_for()
    assert hand.root.get_by_role("textbox", name="Text of region 6").input_value() == "by code"


def test_another_size_and_a_background(notebook):
    hand = Hand(
        notebook,
        "Painter(size=(48, 96), background=Image.new('RGB', (96, 48), 'red'))",
    )
    hand.root.get_by_role("slider", name="Opacity of the regions in percent").wait_for()
    hand.add("a ball")
    hand.drag((90, 40), (3, 3))
    expected = Painter(size=(48, 96))
    expected.paint(expected.add("a ball"), [(90, 40), (3, 3)], size=brush(hand))
    hand.agrees(expected.scene)


def become(hand, scene: Scene) -> None:
    """The kernel gives the painter another scene."""
    read = f"__import__('spatext_lab').Scene.from_json({scene.to_json()!r})"
    hand.notebook.python(f"setattr(painter, 'scene', {read})")


def held(hand, *points: tuple[int, int]) -> None:
    """A stroke under way: the button stays down."""
    hand.page.mouse.move(*hand.spot(*points[0]))
    hand.page.mouse.down()
    for point in points[1:]:
        hand.page.mouse.move(*hand.spot(*point))


@pytest.mark.parametrize("tool", ["Brush (B)", "Eraser (E)", "Box (R)"])
def test_what_is_under_way_survives_a_change_by_the_kernel(hand, tool):
    hand.add("a ball")
    hand.drag((40, 40))
    hand.click(tool)
    hand.notebook.becomes("len(painter.scene.regions)", 1)
    held(hand, (10, 10), (30, 30))
    hand.notebook.python("[painter.add('a sky'), painter.fill(2, (60, 60))] and 0")
    hand.root.get_by_role("textbox", name="Text of region 2").wait_for()
    hand.page.mouse.move(*hand.spot(50, 10))
    hand.page.mouse.up()
    expected = Painter()
    expected.paint(expected.add("a ball"), [(40, 40)], size=brush(hand))
    expected.fill(expected.add("a sky"), (60, 60))
    line = [(10, 10), (30, 30), (50, 10)]
    if tool == "Box (R)":
        expected.box(1, (10 / 64, 10 / 64, 51 / 64, 11 / 64))
    else:
        expected.paint(int(tool == "Brush (B)"), line, size=brush(hand))
    hand.agrees(expected.scene)
    hand.click("Undo (Ctrl Z)")  # the stroke alone
    hand.notebook.becomes("painter.label_map[60, 60].item()", 2)


def test_a_stroke_goes_on_over_another_scene_of_another_size(hand):
    for _ in range(3):
        hand.add("a ball")
    held(hand, (10, 10), (30, 30))
    other = Scene("c", [Region("a sky", mask=np.tri(128, dtype=bool))])
    become(hand, other)
    hand.page.wait_for_function("document.querySelector('.sx-painter li:nth-child(2)') === null")
    hand.page.mouse.move(*hand.spot(100, 20))
    hand.page.mouse.up()
    expected = Painter(other)  # centres of pixels stay where they are; there is a third region less
    line = [(21, 21), (61, 61), (100, 20)]
    expected.paint(expected.add("a ball"), line, size=14)
    hand.agrees(expected.scene)


def test_the_brush_follows_the_size_of_the_scene(hand):
    slider = hand.root.get_by_role("slider", name="Brush size in pixels")
    assert (slider.get_attribute("max"), brush(hand)) == ("32", 7)
    for side, most, size in ((512, "256", 56), (16, "8", 2), (64, "32", 8)):
        become(hand, Scene("c", [Region("x", mask=np.ones((side, side), bool))]))
        hand.page.wait_for_function(
            f"document.querySelector('.sx-painter input[type=range]').max === '{most}'"
        )
        assert brush(hand) == size
    slider.fill("32")
    hand.drag((32, 32), (40, 32))
    expected = Painter(size=64)
    expected.fill(expected.add("x"), (0, 0))
    expected.paint(1, [(32, 32), (40, 32)], size=32)
    hand.agrees(Scene("c", expected.scene.regions))


def test_a_text_that_is_being_typed_survives_a_change_by_the_kernel(hand):
    hand.add("a ball")
    hand.drag((32, 32))
    hand.notebook.becomes("len(painter.scene.regions)", 1)
    field = hand.root.get_by_role("textbox", name="Text of region 1")
    caption = hand.root.get_by_role("textbox", name="Caption of the whole image")
    for box, was in ((field, "painter.regions[0]['text']"), (caption, "painter.caption")):
        box.focus()
        box.press("End")
        before = box.input_value()
        hand.page.evaluate(  # the next letters come faster than the pause that sends them
            """([label]) => {
                const field = document.querySelector(`.sx-painter [aria-label="${label}"]`);
                const type = () => {
                    field.value += "!";
                    field.dispatchEvent(new Event("input"));
                };
                type();
                window.typing = setInterval(type, 50);
            }""",
            [box.get_attribute("aria-label")],
        )
        count = hand.notebook.python("painter.add('by code')")
        hand.root.get_by_role("textbox", name=f"Text of region {count}").wait_for()
        hand.page.evaluate("clearInterval(window.typing)")
        hand.page.wait_for_timeout(600)
        typed = box.input_value()
        assert typed.startswith(before + "!")
        hand.notebook.becomes(was, typed)
        hand.notebook.becomes("painter.regions[-1]['text']", "by code")


def test_the_script_and_the_library_cover_the_same_pixels(opened):
    """Random strokes and fillings, pixel by pixel, by `painter.js` and by `strokes.py`."""
    draw, h, w = random.Random(0), 23, 31
    lines = [
        [[draw.randint(-9, 39), draw.randint(-9, 31)] for _ in range(2)] + [draw.randint(1, 12)]
        for _ in range(300)
    ]
    noise = np.array([[draw.randint(0, 1) for _ in range(w)] for _ in range(h)], np.uint8)
    spots = [[draw.randrange(w), draw.randrange(h)] for _ in range(60)]
    run = """async ([source, w, h, lines, noise, spots]) => {
        const at = URL.createObjectURL(new Blob([source], {type: "text/javascript"}));
        const {segment, flood} = await import(at);
        const strokes = lines.map(([a, b, size]) => {
            const labels = new Uint8Array(w * h);
            segment(labels, w, h, a, b, size, 1);
            return Array.from(labels);
        });
        const floods = spots.map(([x, y]) => {
            const labels = Uint8Array.from(noise);
            flood(labels, w, h, x, y, 2);
            return Array.from(labels);
        });
        return [strokes, floods];
    }"""
    data = json.loads(json.dumps([script("painter"), w, h, lines, noise.ravel().tolist(), spots]))
    strokes, floods = opened.page.evaluate(run, data)
    for (a, b, size), got in zip(lines, strokes, strict=True):
        want = stroke([tuple(a), tuple(b)], size, h, w)
        assert np.array_equal(np.reshape(got, (h, w)), want), (a, b, size)
    for spot, got in zip(spots, floods, strict=True):
        want = np.where(flood(noise, tuple(spot)), 2, noise)
        assert np.array_equal(np.reshape(got, (h, w)), want), spot
