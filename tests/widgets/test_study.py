# SPDX-License-Identifier: Apache-2.0
"""The blind study without a browser: what the kernel keeps, the page's file, its pairs."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spatext_lab.cli import parser as cli
from spatext_lab.datasets.pocket import pocket_item
from spatext_lab.evaluation.comparison import images as comparison
from spatext_lab.evaluation.comparison.images import sample_method
from spatext_lab.evaluation.comparison.run import run
from spatext_lab.evaluation.comparison.scenes import scene_sets
from spatext_lab.evaluation.study.pairs import Key, Pair, blind
from spatext_lab.evaluation.tasks import layout_tasks, tasks
from spatext_lab.scene import Scene
from spatext_lab.widgets.study import Study
from spatext_lab.widgets.study_page import make, page
from tests.evaluation.study.test_answers import answer
from tests.evaluation.study.test_pairs import SCENE, image, some_pairs

EVIL = "</script><img src=x onerror=alert(1)>&amp;\u2028"


@pytest.fixture
def study(tmp_path) -> Study:
    return Study(some_pairs(3), tmp_path / "answers.jsonl")


def asked(study: Study, **message) -> dict:
    """The kernel's answer to a message of the page."""
    heard = []
    study.send = heard.append
    study._asked(study, message, [])
    (one,) = heard
    return one


def chosen(study: Study, **change) -> dict:
    fields = answer(study=study.key.study, pair="p1")
    return {name: getattr(fields, name) for name in fields.__struct_fields__} | change


def test_an_answer_is_kept_once_and_known_when_the_rater_comes_again(study, tmp_path):
    assert asked(study, number=1, rater="anna") == {"number": 1, "answered": []}
    for number in (2, 3):  # the page asks again where it has heard nothing
        assert asked(study, number=number, answer=chosen(study)) == {
            "number": number,
            "answered": [],
        }
    assert (tmp_path / "answers.jsonl").read_text().count("\n") == 1
    again = Study(some_pairs(3), tmp_path / "answers.jsonl")
    assert again.rater == "anna"
    assert Study(some_pairs(3), tmp_path / "answers.jsonl", rater="ben").rater == "ben"
    assert asked(again, rater="anna")["answered"] == [("p1", "better")]
    assert asked(again, rater="ben")["answered"] == []
    assert asked(again, ping=True) == {"number": None, "answered": []}
    assert again.collect().rows[0]["answers"] == 1


@pytest.mark.parametrize("change", [{"answer": "z"}, {"seconds": "soon"}, {"rater": ""}])
def test_what_is_no_answer_is_refused_and_the_page_hears_of_it(study, tmp_path, change):
    assert asked(study, answer=chosen(study, **change))["problem"].startswith("ValidationError")
    assert not (tmp_path / "answers.jsonl").exists()


def test_a_file_that_cannot_be_written_is_a_problem_and_not_an_answer(study, tmp_path):
    (tmp_path / "answers.jsonl").mkdir()
    assert "IsADirectoryError" in asked(study, answer=chosen(study))["problem"]


def test_without_a_kernel_it_says_what_it_is(study):
    data = study._repr_mimebundle_()[0]
    assert data["text/plain"] == "<Study: 3 pairs; needs a running kernel, see study_page.make>"


def test_no_text_becomes_markup():
    """The captions are in the script as data, in which no tag can end it."""
    sheet, _ = blind(
        [Pair(Scene(EVIL, SCENE.regions), {"a": image((1, 2, 3)), "b": image((4, 5, 6))})]
    )
    html = page(sheet)
    assert re.findall(r"<(/?\w+)", html)[-3:] == ["/script", "/body", "/html"]
    assert html.count("</script>") == html.count("<script") == 1
    begin = html.index("{", html.rindex("begin(document"))
    assert json.JSONDecoder().raw_decode(html[begin:])[0] == json.loads(json.dumps(sheet))


# --- where the pairs are from ---------------------------------------------------------------------


def test_two_methods_draw_the_same_scenes(tmp_path):
    """The true images are there pixel by pixel, under the letter that the key gives them."""
    pairs = make(tmp_path / "out", methods=("autoencoder", "true"), scenes=3)
    want = list(tasks(3))
    assert [pair.scene for pair in pairs] == [task.scene for task in want]
    key = Key.load(tmp_path / "out" / "key.json")
    html = (tmp_path / "out" / "study.html").read_text()
    sheet = json.JSONDecoder().raw_decode(html[html.index("{", html.rindex("begin(document")) :])[0]
    assert sheet["study"] == key.study
    for task, shown in zip(want, sheet["pairs"], strict=True):
        data = shown["images"][key.pairs[shown["id"]].index("true")]
        found = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
        assert np.array_equal(found, task.item.image)


def test_a_method_of_boxes_gets_boxes(tmp_path):
    pairs = make(tmp_path, methods=("true", "reco"), scenes=1)
    assert [pair.scene for pair in pairs] == [task.scene for task in layout_tasks(1)]
    assert np.array_equal(pairs[0].images["true"], pocket_item("test", 0).image)


def test_folders_are_paired_by_name_and_their_scenes_read(tmp_path):
    for folder, names in (
        ("a", ("1.png", "2.png", "left.png")),
        ("b", ("1.png", "2.png", "x.txt")),
    ):
        (tmp_path / folder).mkdir()
        for name in names:
            image((1, 2, 3)).save(tmp_path / folder / name, format="PNG")
    Scene("").save(tmp_path / "a" / "1.json")
    folders = (tmp_path / "a", tmp_path / "b")
    with pytest.raises(FileNotFoundError, match=r"a.2.json is missing: write the image's scene"):
        make(tmp_path / "out", images=folders)
    SCENE.save(tmp_path / "b" / "2.json")
    pairs = make(tmp_path / "out", images=folders)
    assert [pair.scene for pair in pairs] == [Scene(""), SCENE]
    assert [tuple(pair.images) for pair in pairs] == [("a", "b")] * 2
    Scene("another").save(tmp_path / "a" / "2.json")
    with pytest.raises(ValueError, match=r"a.2.png and .*b.2.png are of different scenes; rename"):
        make(tmp_path / "out", images=folders)
    same = (tmp_path / "a", tmp_path / "out" / "a")
    same[1].mkdir()
    with pytest.raises(ValueError, match=r"have no images \(.png .jpg"):
        make(tmp_path / "out", images=same)
    image((1, 2, 3)).save(same[1] / "1.png")
    assert tuple(make(tmp_path / "other", images=same)[0].images) == tuple(map(str, same))


def test_images_of_a_comparison_have_their_scenes(tmp_path, monkeypatch):
    """With the folders of two methods, whose diversity has further images beside the table's."""
    monkeypatch.setattr(
        comparison,
        "sample_all",
        lambda order, methods: {m: sample_method(order, m) for m in methods},
    )
    run(["true", "autoencoder"], tmp_path, scenes=3)
    folders = (tmp_path / "images" / "true", tmp_path / "images" / "autoencoder")
    pairs = make(tmp_path / "out", images=folders)
    asked = scene_sets(3, 0, "boxes")[0].asked("true")
    assert [pair.scene for pair in pairs] == [task.scene for task in asked]
    for k, pair in enumerate(pairs):
        assert list(pair.images) == ["true", "autoencoder"]
        assert np.array_equal(pair.images["true"], pocket_item("test", k).image)


def test_sampled_images_have_their_scenes(tmp_path):
    SCENE.save(tmp_path / "scene.json")
    for method in ("text", "spatext"):
        line = f"sample --method {method} --scene {tmp_path}/scene.json --num-inference-steps 1"
        assert cli.main([*line.split(), "--out", str(tmp_path / method / "one.png")]) == 0
    (pair,) = make(tmp_path / "out", images=(tmp_path / "text", tmp_path / "spatext"))
    assert pair.scene == SCENE


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({}, "pass two names of methods, or two folders"),
        ({"methods": ["text"]}, "pass two names of methods"),
        (
            {"methods": ["text", "true"], "images": [Path("a"), Path("b")]},
            "pass two names of methods",
        ),
        ({"methods": ["text", "text"]}, r"methods is \['text', 'text'\]; pass two of spatext, "),
        ({"methods": ["text", "magic"]}, r"methods is \['text', 'magic'\]; pass two of spatext, "),
    ],
)
def test_what_is_no_pair_is_refused(tmp_path, wrong, words):
    with pytest.raises(ValueError, match=words):
        make(tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()
