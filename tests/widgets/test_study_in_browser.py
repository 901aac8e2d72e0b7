# SPDX-License-Identifier: Apache-2.0
"""The blind study from the first pair to the result: as a widget, and as a page of its own.

Method "warm" makes images with much red and "cold" ones with much blue, so that a test can see
which one is shown where, and choose, without asking the code that is tested.
"""

import json
import re

import pytest

from spatext_lab.cli import parser as cli
from spatext_lab.evaluation.study.pairs import QUESTIONS, Key
from spatext_lab.evaluation.study.report import collect
from spatext_lab.scene import Region, Scene
from spatext_lab.widgets.sources import script
from tests.evaluation.study.test_pairs import image

CODE = """
import sys
sys.path.insert(0, {root!r})
from tests.widgets.test_study_in_browser import warm_and_cold
from spatext_lab.evaluation.study.pairs import Pair
from spatext_lab.widgets.study import Study
study = Study([Pair(scene, images) for scene, images in warm_and_cold(2)], "answers.jsonl")
study
"""
# The red and the blue in the middle of the two images that are shown.
LOOK = """() => [...document.querySelectorAll(".sx-choice")].map((choice) => {
    const image = choice.querySelector("img"), canvas = new OffscreenCanvas(8, 8);
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0, 8, 8);
    const [red, , blue] = context.getImageData(4, 4, 1, 1).data;
    return red > blue ? "warm" : "cold";
})"""
ANSWERED = "() => document.querySelector('.sx-study progress').value"


def warm_and_cold(count: int) -> list[tuple[Scene, dict]]:
    regions = [Region("a <b>ball</b>", box=(0.2, 0.3, 0.7, 0.8))]
    return [
        (Scene(f"meadow {k}", regions), {"warm": image((250, k, 0)), "cold": image((0, k, 250))})
        for k in range(count)
    ]


class Rater:
    """Answers what a page asks: as a person does, by looking at it and pressing keys."""

    def __init__(self, page) -> None:
        self.page, self.seen = page, []

    def begin(self, name: str) -> None:
        self.page.get_by_label("Your name in this study").fill(name)
        self.page.keyboard.press("Enter")
        self.page.locator(".sx-turn").wait_for()

    def answer(self, prefers: str, how: str = "digit") -> str:
        """Chooses the image of a method; returns the question that was asked."""
        asked = self.page.locator(".sx-turn h2").inner_text()
        before = self.page.evaluate(ANSWERED)
        self.page.wait_for_timeout(200)  # a look
        sides = self.page.evaluate(LOOK)
        side = sides.index(prefers)
        if how == "click":
            self.page.locator(".sx-choice").nth(side).click()
        else:
            keys = ("1", "2") if how == "digit" else ("ArrowLeft", "ArrowRight")
            self.page.keyboard.press(keys[side])
        self.page.wait_for_function(f"before => ({ANSWERED})() > before", arg=before)
        self.seen.append((self.caption if asked == QUESTIONS["caption"] else None, sides[0]))
        return asked

    @property
    def caption(self) -> str | None:
        found = self.page.locator(".sx-turn blockquote")
        return found.inner_text() if found.count() else None


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """study.html and key.json of six pairs in two folders, by the command."""
    folder = tmp_path_factory.mktemp("study")
    for k, (scene, images) in enumerate(warm_and_cold(6)):
        for name, each in images.items():
            (folder / name).mkdir(exist_ok=True)
            each.save(folder / name / f"{k}.png")
        scene.save(folder / "warm" / f"{k}.json")
    line = f"study make --images {folder}/warm {folder}/cold --out {folder}/out"
    assert cli.main(line.split()) == 0
    return folder / "out"


@pytest.fixture
def alone(opened, made):
    """The page in a tab of its own, without a network; no error on its console."""
    page, errors = opened.page.context.new_page(), []
    page.on("console", lambda message: message.type == "error" and errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.route(lambda url: not url.startswith("file:"), lambda route: route.abort())
    page.goto((made / "study.html").as_uri())
    yield page
    page.close()
    assert errors == []


def save(page, to):
    with page.expect_download() as started:
        page.get_by_role("button", name="Save the answers").click()
    assert re.fullmatch(r"answers-[0-9a-f]{12}-anna_b_\.json", started.value.suggested_filename)
    started.value.save_as(to)
    return to


def test_a_page_of_its_own_from_the_first_pair_to_the_result(alone, made, tmp_path, capsys):
    """Warm is better, cold fits the caption, the regions are even; stopped, closed, gone on."""
    rater = Rater(alone)
    rater.begin("anna b.")
    hows = ("digit", "arrow", "click")
    asked = [rater.answer("warm"), rater.answer("cold", "arrow"), rater.answer("warm", "click")]
    assert asked == list(QUESTIONS.values())
    assert rater.answer("warm") == QUESTIONS["better"]
    alone.get_by_role("button", name="Stop").click()
    alone.get_by_text("Stopped").wait_for()
    assert "4 of 18 questions answered" in alone.locator(".sx-page").inner_text()
    early = save(alone, tmp_path / "early.json")
    alone.reload()
    rater.begin(alone.get_by_label("Your name in this study").input_value())
    assert alone.locator(".sx-turn .sx-status").inner_text() == "Pair 2 of 6, question 2 of 3"
    for turn in range(4, 18):
        prefers = ("warm", "cold", "warm" if turn < 9 else "cold")[turn % 3]
        assert rater.answer(prefers, hows[turn % 3]) == list(QUESTIONS.values())[turn % 3]
    alone.get_by_text("Thank you").wait_for()
    late = save(alone, tmp_path / "late.json")
    assert len(json.loads(late.read_text())) == 18

    line = f"study collect {early} {late} --key {made / 'key.json'} --out {tmp_path / 'result'}"
    assert cli.main(line.split()) == 0
    assert "Not counted: 4 answered before." in capsys.readouterr().out
    facts = json.loads((tmp_path / "result" / "study.json").read_text())
    assert facts["methods"] == ["warm", "cold"]
    assert [row["share"] for row in facts["questions"]] == [1, 0, 0.5]
    assert [row["answers"] for row in facts["questions"]] == [6, 6, 6]
    assert [side for _, side in rater.seen].count("warm") == 9  # each at the left half of the time


def test_what_is_shown_fits_the_question(alone):
    rater = Rater(alone)
    rater.begin("what")
    outlines = alone.locator(".sx-outlines")
    button = alone.get_by_role("button", name="Outlines of the regions")
    assert (rater.caption, outlines.first.is_visible(), button.is_visible()) == (None, False, False)
    rater.answer("warm")
    assert re.fullmatch(r"meadow \d", rater.caption)
    assert not outlines.first.is_visible()
    rater.answer("warm")
    assert rater.caption is None
    assert alone.locator(".sx-given li").all_inner_texts() == ["1a <b>ball</b>"]
    assert [outlines.nth(k).is_visible() for k in range(2)] == [True, True]
    alone.keyboard.press("o")
    assert not outlines.first.is_visible()
    button.click()
    assert outlines.first.is_visible()


def test_no_method_can_be_read_on_the_page(alone, made):
    """Neither in its source nor in what it shows; the pairs' files had the names in them."""
    source = (made / "study.html").read_text()
    begin = source.index("begin(document.querySelector")
    assert not re.search("warm|cold|method", source[begin:])
    rater = Rater(alone)
    rater.begin("reader")
    shown = alone.locator("main").evaluate("e => e.outerHTML")
    assert not re.search("warm|cold|method", re.sub(r"base64,[\w+/=]+", "", shown))


def test_by_keys_and_for_a_screen_reader(alone):
    rater = Rater(alone)
    rater.begin("keys")
    names = []
    for _ in range(3):
        alone.keyboard.press("Tab")
        focused = alone.evaluate("""() => {
            const at = document.activeElement, ring = getComputedStyle(at);
            return [at.getAttribute("aria-label"), ring.outlineStyle, ring.outlineWidth];
        }""")
        assert focused[1:] == ["solid", "2px"]
        names.append(focused[0])
    assert names == ["The left image", "The right image", "Stop here; the answers are kept"]
    live = alone.locator("[aria-live]")
    assert live.inner_text().split("\n")[:2] == [
        "Pair 1 of 6, question 1 of 3",
        QUESTIONS["better"],
    ]
    alone.get_by_role("button", name="The right image").focus()
    alone.wait_for_timeout(200)
    alone.keyboard.press("Enter")
    alone.get_by_text("question 2 of 3").wait_for()
    alone.wait_for_timeout(200)
    alone.keyboard.press("2")
    alone.keyboard.press("2")  # at once: pressed twice by mistake
    alone.get_by_text("question 3 of 3").wait_for()
    alone.wait_for_timeout(300)
    assert "question 3 of 3" in live.inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_small_screen_by_day_and_by_night(alone, scheme):
    alone.set_viewport_size({"width": 400, "height": 800})
    alone.emulate_media(color_scheme=scheme)
    Rater(alone).begin(f"small {scheme}")
    assert alone.evaluate("document.documentElement.scrollWidth") <= 400
    boxes = [choice.bounding_box() for choice in alone.locator(".sx-choice").all()]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert all(box["width"] > 150 for box in boxes)
    back, ink = alone.locator("main").evaluate("""e => [getComputedStyle(e).backgroundColor,
        getComputedStyle(e).color].map(c => Number(c.match(/\\d+/)[0]))""")
    assert (back < 60 and ink > 200) if scheme == "dark" else (back > 200 and ink < 60)


def test_order_and_sides_are_random_and_balanced_over_raters(alone):
    """Asked of the script itself, for 300 raters: each pair is first for some of them, x is at the
    left for half of them, and the same rater is asked the same."""
    source = script("study") + "\nexport { turns };"
    found = alone.evaluate(
        """async (source) => {
            const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
            const { turns } = await import(url);
            const pairs = ["p1", "p2", "p3", "p4"].map((id) => ({ id, questions: ["better"] }));
            const of = (k) => turns({ study: "5f0c", pairs }, `rater-${k}`).map(
                ({ pair, places }) => pair.id + "xy"[places[0]]);
            return [...Array(300).keys(), 7].map(of);
        }""",
        source,
    )
    assert found[7] == found[-1] != found[8]
    left = sum(turns[0].endswith("x") for turns in found[:-1])
    assert 120 < left < 180  # 150 ± 3.5 standard deviations
    for place in range(4):
        there = [turns[place][:2] for turns in found[:-1]]
        assert all(45 < there.count(name) < 105 for name in ("p1", "p2", "p3", "p4"))
    assert len({"".join(name[:2] for name in turns) for turns in found}) == 24


def test_the_widget_from_the_first_pair_to_the_result(notebook, lab, pytestconfig):
    code = CODE.format(root=str(pytestconfig.rootpath))
    notebook.show(code)
    rater = Rater(notebook.page)
    rater.begin("ben")
    for prefers, how in (
        ("warm", "digit"),
        ("cold", "arrow"),
        ("warm", "click"),
        ("warm", "arrow"),
    ):
        rater.answer(prefers, how)
    notebook.page.get_by_role("button", name="Stop").click()
    notebook.page.get_by_text(
        "4 of 6 questions answered. The answers are in answers.jsonl"
    ).wait_for()
    assert notebook.python("[row['answers'] for row in study.collect().rows]") == [2, 1, 1]
    notebook.show(code)  # the notebook is opened anew: the name is known, and what is answered
    assert notebook.page.get_by_label("Your name in this study").input_value() == "ben"
    rater.begin("ben")
    notebook.python("study.__setattr__('answers', 'none/../.')")
    notebook.page.wait_for_timeout(200)
    notebook.page.keyboard.press("1")
    notebook.page.get_by_text("Not saved, choose once more: IsADirectoryError").wait_for()
    notebook.python("study.__setattr__('answers', 'answers.jsonl')")
    rater.answer("cold")
    rater.answer("cold")
    notebook.page.get_by_text("Thank you").wait_for()
    assert notebook.python("[row['share'] for row in study.collect().rows]") == [1, 0, 0.5]
    notebook.python("study.key.save('key.json')")
    files = lab[1] / "files"
    report = collect([files / "answers.jsonl"], files / "key.json")
    assert [row["share"] for row in report.rows] == [1, 0, 0.5]
    assert [row["raters"] for row in report.rows] == [1, 1, 1]
    assert Key.load(files / "key.json").methods == ("warm", "cold")
