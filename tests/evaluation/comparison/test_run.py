# SPDX-License-Identifier: Apache-2.0
"""The command from methods to JSON, Markdown and a page; its rows against `evaluate`."""

import base64
import json
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageOps

from spatext_lab.evaluation.comparison import images, listing
from spatext_lab.evaluation.comparison.page import SHOWN
from spatext_lab.evaluation.comparison.run import run
from spatext_lab.evaluation.methods import METHODS, Method
from spatext_lab.evaluation.report import evaluate
from spatext_lab.scene.notes import warn

SCENES = 5


def mirrored(model, settings):
    """The true image, its colours inverted from the third scene on; refuses the last scene."""

    def sampler(todo, seed):
        if any(task.item.index == SCENES - 1 for task in todo):
            raise ValueError("too many <regions>")
        warn("regions dropped: <one>")
        true = [Image.fromarray(task.item.image) for task in todo]
        return [
            ImageOps.invert(image) if task.item.index > 1 else image
            for task, image in zip(todo, true, strict=True)
        ]

    return sampler


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A run in this process: (its report, its folder)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "fake", Method('a "fake" <b>', mirrored, {"steps": 1}))
        patch.setattr(images, "sample_all", in_this_process)
        out = tmp_path_factory.mktemp("out")
        report = run(["true", "fake", "words", "true"], out, scenes=SCENES, curves=True)
    return report, out


def in_this_process(order, methods):
    return {method: images.sample_method(order, method) for method in methods}


def test_a_row_is_what_evaluate_finds(done):
    """ReCo's protocol, on the true images."""
    row = done[0]["rows"][0]
    want = evaluate("true", scenes=SCENES, protocol="boxes")
    for key in ("ap50", "passes", *(k for k in want if k.startswith("region_accuracy"))):
        assert row[key] == want[key], key
    assert row["frechet_distance"] == pytest.approx(want["frechet_distance"], abs=1e-3)


def test_the_file_holds_the_report(done):
    report, out = done
    kept = json.loads((out / "compare.json").read_text(encoding="utf-8"))
    assert kept == json.loads(json.dumps(report))
    assert [row["method"] for row in kept["rows"]] == ["true", "fake"]
    assert kept["command"].startswith("spatext-lab compare --methods true fake --scenes 5 --curves")
    assert str(out) not in (out / "compare.json").read_text()


def test_differences_are_from_the_first_method_on_common_scenes(done):
    first, second = done[0]["rows"]
    (apart,) = done[0]["differences"]
    assert (second["scenes"], second["unread"], second["why"]) == (4, 1, "too many <regions>")
    assert first["region_accuracy"] == 1.0
    assert apart["region_accuracy"] == pytest.approx(second["region_accuracy"] - 1)
    low, high = apart["region_accuracy_95"]
    assert low <= apart["region_accuracy"] <= high
    assert apart["region_accuracy"] < 0


def test_what_was_left_out_is_named_and_counted(done):
    lines = listing.left_out(done[0])
    assert lines[0] == "words is left out: pocket has no folder 'reco-words'"
    assert 'a "fake" <b>: 1 scenes of the table are left out (too many <regions>)' in lines
    text = (done[1] / "compare.md").read_text(encoding="utf-8")
    assert all(f"* {line}" in text for line in lines)


def test_dropped_regions_are_counted_in_text_report_and_page(done, page):
    first, second = done[0]["rows"]
    cost = json.loads((done[1] / "images" / "fake" / "cost.json").read_text(encoding="utf-8"))
    assert [second["warned"], second["warning"]] == cost["warnings"]
    assert (first["warned"], second["warning"]) == (0, "regions dropped: <one>")
    line = f'a "fake" <b>: {second["warned"]} batches have warnings (regions dropped: <one>)'
    assert f"* {line}\n" in (done[1] / "compare.md").read_text(encoding="utf-8")
    assert line in page.text


def test_diversity_needs_a_network(done):
    first, second = done[0]["rows"]
    assert "diversity" not in first
    assert second["diversity"] == pytest.approx(0, abs=1e-6)  # it does not use its seed


def test_curves_have_the_true_images_and_every_method(done):
    points = done[0]["curves"]
    assert {tuple(point["methods"]) for point in points} == {("true images", "true", "fake")}
    for point in points:
        assert point["methods"]["true"] == point["methods"]["true images"]
    tables = listing.curve_tables(done[0])
    assert [len(rows) for rows, _, _ in tables.values()] == [8, 4, 6, 4, 5]


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page(done):
    parser = Page()
    parser.feed((done[1] / "compare.html").read_text(encoding="utf-8"))
    return parser


def test_the_page_needs_nothing_else(page):
    sources = [each for _, tag in page.tags for each in (tag.get("src"), tag.get("href")) if each]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert {"script", "link", "iframe"}.isdisjoint(tag for tag, _ in page.tags)
    assert dict(page.tags)["html"] == {"lang": "en"}


def test_every_image_is_there_and_described(page, done):
    shown = [tag for name, tag in page.tags if name == "img"]
    assert all(tag["alt"].strip() for tag in shown)
    curves = 4
    tiles = min(SHOWN, SCENES) * 4 - 1  # regions, true image, two methods; one was refused
    assert len(shown) == curves + tiles
    pixels = [np.asarray(Image.open(BytesIO(base64.b64decode(t["src"][22:])))) for t in shown]
    kept = np.asarray(Image.open(done[1] / "images" / "fake" / "scenes" / "0002.png"))
    assert sum(p.shape == kept.shape and np.array_equal(p, kept) for p in pixels) == 1


def test_names_and_reasons_are_text_and_no_markup(page):
    assert 'a "fake" <b>' in page.text
    assert "too many <regions>" in page.text
    assert "b" not in {tag for tag, _ in page.tags}


def test_the_pages_numbers_are_the_reports(page, done):
    for row in done[0]["rows"]:
        assert f"{row['local_iou']:.3f}" in page.text
        assert re.search(re.escape(f"[{row['local_iou_95'][0]:.3f}, "), page.text)


@pytest.mark.parametrize(
    ("methods", "scenes", "message"),
    [
        (["nonsense"], 2, "method is 'nonsense'; there are spatext, "),
        (["true"], 0, "scenes is 0; pass at least 1"),
        (["words"], 2, "no method is left: pocket has no folder 'reco-words'"),
    ],
)
def test_wrong_input_is_named(methods, scenes, message, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "sample_all", in_this_process)
    with pytest.raises(ValueError, match=message):
        run(methods, tmp_path, scenes=scenes)
