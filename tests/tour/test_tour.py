# SPDX-License-Identifier: Apache-2.0
"""The tour, taken with a tiny model of random weights: is the page whole, and is it true?"""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlparse

import numpy as np
import pytest
from markupsafe import Markup
from PIL import Image

from spatext_lab import tour, zoo
from spatext_lab.datasets.coco import write_coco
from spatext_lab.datasets.pocket import pocket_item
from spatext_lab.datasets.pocket.texts import COLOUR_WORDS, KIND_WORDS, STUFF_WORDS
from spatext_lab.evaluation.report import evaluate
from spatext_lab.figures import outline
from spatext_lab.reco.pipeline import ReCoPipeline
from spatext_lab.scene import Region, Scene
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from spatext_lab.tour import markup, measure, page, plan, sampling
from tests.tiny import tiny_model

SCENES = Path(__file__).parents[2] / "data" / "scenes"
SMALL = tour.Budget(
    denoising_steps=2,
    seeds=2,
    scales=(0.0, 2.0),
    swept=1,
    judged=2,
    points=3,
    tune_scenes=8,
    tune_steps=2,
    photos=3,
    shown=2,
    photo_steps=1,
    scenes=3,
)
NASTY = '<script>alert("1 & 2")</script>'
ASKED = Scene(f"a moon {NASTY}", [Region("a <b>red</b> ball", box=(0.1, 0.2, 0.6, 0.7))])


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("coco")
    write_coco(root, "val", (pocket_item("val", i) for i in range(6)))
    return root


@pytest.fixture(scope="module")
def taken(tmp_path_factory, model, coco) -> tuple[Path, str]:
    """The page of a whole tour, and what was printed."""
    folder = tmp_path_factory.mktemp("tour of the lab")
    ASKED.save(folder / "mine.json")
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda *text, **_: printed.append(" ".join(map(str, text))))
        index = tour.run(
            folder / "out", coco, scene=folder / "mine.json", model=str(model), budget=SMALL
        )
    return index, "\n".join(printed)


@pytest.fixture(scope="module")
def facts(taken) -> dict:
    return json.loads((taken[0].parent / "tour.json").read_text())


class Seen(HTMLParser):
    """Every tag in its place, and what the page says."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, html: str):
        super().__init__()
        self.open, self.tags, self.said = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs), tuple(self.open)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.said.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs, _ in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.said).split())


@pytest.fixture(scope="module")
def seen(taken) -> Seen:
    return Seen(taken[0].read_text(encoding="utf-8"))


# --- the page -------------------------------------------------------------------------------------


def test_its_address_is_the_last_line(taken):
    index, printed = taken
    address = urlparse(printed.splitlines()[-1])
    assert address.scheme == "file"
    assert Path(unquote(address.path)).samefile(index)


def test_every_picture_is_there_has_an_alt_text_and_its_true_size(taken, seen):
    images = seen.all("img")
    assert len(images) > 20
    names = [image["src"] for image in images]
    assert len(set(names)) == len(names)
    for image in images:
        assert image["alt"].strip()
        with Image.open(taken[0].parent / image["src"]) as picture:
            assert picture.size == (int(image["width"]), int(image["height"]))
            assert picture.text["Description"] == image["alt"]
    files = {f"images/{path.name}" for path in (taken[0].parent / "images").iterdir()}
    assert files == set(names)


def test_it_works_offline_and_without_scripts(taken, seen):
    assert not seen.all("script")
    assert not seen.all("link")
    assert "url(" not in taken[0].read_text()
    targets = [a["href"] for a in seen.all("a")]
    assert all(target.startswith("#") for target in targets)
    assert {target[1:] for target in targets} == {s["id"] for s in seen.all("section")}


def test_a_text_is_never_markup(seen, taken):
    assert ASKED.caption in seen.text
    assert "a <b>red</b> ball" in seen.text
    assert NASTY not in taken[0].read_text()


def test_it_is_readable_by_any_reader(seen):
    assert seen.all("html") == [{"lang": "en"}]
    assert {"charset": "utf-8"} in seen.all("meta")
    assert len(seen.all("h1")) == 1
    assert len(seen.all("h2")) == len(tour.SECTIONS)
    assert all(th["scope"] in ("row", "col") for th in seen.all("th"))


def test_every_figure_says_what_to_see_and_what_is_bad(seen):
    figures, words = len(seen.all("figure")), seen.text
    assert figures == len(seen.all("figcaption"))
    assert len(seen.all("figcaption")) >= len(tour.SECTIONS)
    assert [words.count(word) for word in (" See ", " Not good ")] == [figures, figures]


def test_ink_on_paper_is_dark_on_light(taken):
    colours = dict(re.findall(r"--(\w+): (#\w{6})", taken[0].read_text()))

    def luminance(name: str) -> float:
        raw = np.array([int(colours[name][i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(raw <= 0.04045, raw / 12.92, ((raw + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    for ink in ("ink", "soft", "accent", "warm"):  # WCAG 2.1, contrast at least 4.5
        assert (luminance("paper") + 0.05) / (luminance(ink) + 0.05) > 4.5


# --- is it true? ----------------------------------------------------------------------------------


def test_the_scene_beside_the_page_is_the_one_that_was_drawn(taken):
    assert Scene.load(taken[0].parent / "scene.json") == ASKED


def picture(taken, name: str) -> np.ndarray:
    return np.asarray(Image.open(taken[0].parent / "images" / f"{name}.png").convert("RGB"))


def close(image: np.ndarray, other: np.ndarray) -> None:
    """Equal but for rounding: the page's images are sampled in other batches."""
    assert np.abs(image.astype(int) - other).max() <= 1


def test_images_are_what_their_captions_say(taken, facts, model):
    pipeline = SpaTextPipeline.from_pretrained(model / "spatext")
    drawn = pipeline(ASKED, seed=1, **facts["settings"]).images[0]
    close(picture(taken, "with-1"), np.asarray(outline(drawn, ASKED)))
    alone = pipeline(Scene(ASKED.caption), seed=1, **facts["settings"]).images[0]
    close(picture(taken, "without-1"), np.asarray(outline(alone, ASKED)))
    loud = pipeline(
        ASKED, seed=0, num_inference_steps=2, guidance_scale=0.0, region_guidance_scale=2.0
    ).images[0]
    close(picture(taken, "sweep-0-2"), np.asarray(loud.resize((192,) * 2, 0)))


def test_the_sentence_is_the_scenes_and_is_drawn(taken, facts, seen, model):
    pipeline = ReCoPipeline.from_pretrained(model / "reco")
    words = [t.text for t in pipeline.tokens(ASKED).tokens if t.region >= 0]
    assert facts["sentence"] == {"tokens": len(words), "room": 154, "dropped": []}
    assert " ".join(words) in seen.text
    drawn = pipeline(ASKED, seed=1, num_inference_steps=2, guidance_scale=2.0).images[0]
    close(picture(taken, "reco-1"), np.asarray(outline(drawn, ASKED)))


def test_the_fine_tune_starts_from_the_text_to_image_model(taken, facts, model):
    base = TextToImagePipeline.from_pretrained(model / "text-to-image")
    made = {k: v for k, v in facts["settings"].items() if k != "region_guidance_scale"}
    drawn = base(ASKED, seed=0, **made).images[0]
    difference = picture(taken, "tune-0") - np.asarray(outline(drawn, ASKED)).astype(int)
    assert np.abs(difference).max() <= 1  # rounding: the map's pass is one more in the batch
    assert (picture(taken, "tune-2") != picture(taken, "tune-0")).any()


def test_numbers_on_the_page_are_those_measured(seen, facts, model):
    found = evaluate(
        "text", scenes=3, model=str(model), settings=facts["measured"]["text"]["settings"]
    )
    for name in ("local_iou", "local_iou_95", "region_accuracy", "regions"):
        assert facts["measured"]["text"][name] == found[name]
    (row,) = re.findall(r"text-to-image \(caption alone\) (\S+) \((\S+)–(\S+)\)", seen.text)
    assert [float(number) for number in row] == pytest.approx(
        [found["local_iou"], *found["local_iou_95"]], abs=0.006
    )
    points = facts["fine_tune"]["points"]
    assert [point["step"] for point in points] == [0, 1, 2]
    assert f"{points[0]['local_iou']:.2f} at step 0" in seen.text


def test_photos_that_are_shown_were_not_learned_from(facts, seen):
    photos = facts["photos"]
    assert (photos["shown"], photos["learned_from"]) == (2, 3)
    assert "M-parameter model that has seen 3 photos; not a photo generator" in seen.text


def test_times_and_threads_are_told(facts, seen):
    assert set(facts["seconds"]) == set(tour.SECTIONS)
    assert sum(facts["seconds"].values()) <= facts["total_seconds"] + 1
    assert f"on {facts['threads']} thread" in seen.text


# --- the folder -----------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch, model):
    """A tour of its first section only."""
    monkeypatch.setattr(tour, "SECTIONS", {"A scene": sampling.scene})
    monkeypatch.setattr(tour, "_write", lambda tour, seconds: tour.page.write("t", "", [], []))
    return {"model": str(model), "budget": SMALL}


def test_a_scene_that_no_sentence_can_say(tmp_path, quick, monkeypatch):
    """The page says what is wrong with it, and the tour goes on."""
    monkeypatch.setattr(tour, "SECTIONS", {"As a sentence": tour.sentence.section})
    Scene("a moon", [Region("a <bin003> ball", box=(0, 0, 0.5, 1))]).save(tmp_path / "mine.json")
    index = tour.run(tmp_path / "out", scene=tmp_path / "mine.json", **quick)
    said = Seen(index.read_text(encoding="utf-8")).text
    assert "This scene cannot be tokenized: regions[0].text is 'a <bin003> ball'" in said


def test_a_backdrop_is_left_to_the_caption(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(tour, "SECTIONS", {"As a sentence": tour.sentence.section})
    wide = [Region("a sky", box=(0, 0, 1, 0.5)), Region("a ball", box=(0, 0.5, 0.4, 0.9))]
    Scene("a moon", wide).save(tmp_path / "mine.json")
    index = tour.run(tmp_path / "out", scene=tmp_path / "mine.json", **quick)
    assert Seen(index.read_text(encoding="utf-8")).text.count("<bin") == 4  # one box


def test_an_earlier_tour_is_replaced(tmp_path, quick):
    first = tour.run(tmp_path / "out", **quick)
    (first.parent / "old.txt").write_text("")
    assert tour.run(tmp_path / "out", **quick) == first
    assert not (first.parent / "old.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["out", "out.partial", "out.earlier"])
def test_a_folder_of_yours_is_not(tmp_path, quick, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("ten years of work")
    with pytest.raises(ValueError, match=f"out is .*{name}.* not a tour: name a new folder"):
        tour.run(tmp_path / "out", **quick)
    assert (tmp_path / name / "thesis.txt").read_text() == "ten years of work"


def test_nor_is_a_file(tmp_path, quick):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="not a tour"):
        tour.run(tmp_path / "out", **quick)


def test_a_tour_that_fails_leaves_the_last_whole_one(tmp_path, quick, monkeypatch):
    index = tour.run(tmp_path / "out", **quick)
    before = index.read_bytes()

    def broken(_):
        raise KeyboardInterrupt

    monkeypatch.setitem(tour.SECTIONS, "Broken", broken)
    with pytest.raises(KeyboardInterrupt):
        tour.run(tmp_path / "out", **quick)
    assert index.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_tour_that_was_killed_is_cleared_away(tmp_path, quick):
    page.start(tmp_path / "out")
    (tmp_path / "out.partial" / "half.png").write_text("")
    index = tour.run(tmp_path / "out", **quick)
    assert not (index.parent / "half.png").exists()


def test_without_a_coco_folder_the_section_on_photos_is_left_out(tmp_path, quick, monkeypatch):
    def never(_):
        raise AssertionError("the section on photos was taken")

    monkeypatch.setattr("spatext_lab.tour.photos.section", never)
    monkeypatch.setitem(tour.SECTIONS, "Photos", never)
    tour.run(tmp_path / "out", **quick)


def test_what_is_missing_is_said_before_the_work_begins(tmp_path, quick):
    (tmp_path / "annotations").mkdir()
    with pytest.raises(FileNotFoundError, match=r"instances_val2017\.json"):
        tour.run(tmp_path / "out", tmp_path, **quick)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        tour.run(tmp_path / "out", **(quick | {"model": str(tmp_path / "nowhere")}))
    assert [path.name for path in tmp_path.iterdir()] == ["annotations"]


def one_photo(root: Path) -> str:
    write_coco(root, "val", [pocket_item("val", 0)])
    return r"1 photos of .* 3 are needed; there is no train2017"


def no_images(root: Path) -> str:
    """A train file that lists nothing, and no val."""
    write_coco(root, "train", [pocket_item("train", 0)])
    (file,) = (root / "annotations").glob("instances_*")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"images": [], "annotations": []}))
    return r"0 photos of .* 3 are needed;.* no val2017"


def no_files(root: Path) -> str:
    write_coco(root, "val", (pocket_item("val", i) for i in range(6)))
    for image in (root / "val2017").iterdir():
        image.unlink()
    return r"0 photos of .* 3 are needed"


def damaged(root: Path) -> str:
    write_coco(root, "val", [pocket_item("val", 0)])
    (file,) = (root / "annotations").glob("instances_*")
    file.write_bytes(file.read_bytes()[:100])
    return r"0 photos of .*val2017"


@pytest.mark.parametrize("spoil", [one_photo, no_images, no_files, damaged])
def test_too_few_photos_are_told_in_their_section_alone(tmp_path, quick, monkeypatch, spoil):
    told = spoil(tmp_path / "coco")
    monkeypatch.setitem(tour.SECTIONS, "Photos", tour.photos.section)
    index = tour.run(tmp_path / "out", tmp_path / "coco", **quick)
    seen = Seen(index.read_text(encoding="utf-8"))
    assert len(seen.all("section")) == 2
    assert re.search("Nothing to show here: " + told, seen.text)


def test_a_busy_moment_is_no_time_of_an_image(monkeypatch):
    """Two rounds of nine take ten seconds; the others 0.5 s and 0.25 s, by a clock made up here."""
    clock, calls = [0.0], []

    def pipeline(seconds: float):
        def draw(scene, **settings):
            calls.append(seconds)
            clock[0] += 10 if len(calls) in (3, 4, 5, 9) else seconds

        return draw

    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    pipelines = {"spatext": pipeline(0.5), "text": pipeline(0.25)}
    assert measure._seconds(pipelines, ASKED, 10) == {"spatext": 0.5, "text": 0.25}
    assert calls == [0.5, 0.25] * 9  # in turns


# --- pieces ---------------------------------------------------------------------------------------


def test_prose_is_escaped_and_backticks_are_code():
    assert markup.prose("a < b & `c < d`") == "<p>a &lt; b &amp; <code>c &lt; d</code></p>\n"


def test_a_cell_is_escaped_unless_it_is_html():
    made = markup.table(["", "x"], [["<i>", "<img src=x>"], ["two", Markup("<b>bold</b>")]])
    assert "&lt;i&gt;" in made
    assert "&lt;img src=x&gt;" in made
    assert "<td><b>bold</b></td>" in made


def test_a_wheel_without_the_subset_draws_it(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "_DATA", (tmp_path / "nowhere",))
    monkeypatch.setattr(plan, "COCO_SCENES", 3)
    root = plan.coco_subset(tmp_path / "scratch")
    assert len(list((root / "train2017").glob("*.png"))) == 3


@pytest.mark.parametrize("path", sorted(SCENES.glob("*.json")), ids=lambda path: path.stem)
def test_a_shipped_scene_speaks_the_pocket_worlds_words(path):
    scene = Scene.load(path)
    words = {
        word for group in (KIND_WORDS, COLOUR_WORDS) for names in group.values() for word in names
    }
    stuff = {text for texts in STUFF_WORDS.values() for text in texts}
    assert path.read_text() == scene.to_json()
    assert len(scene.regions) >= 3
    for region in scene.regions:
        said = {word for word in words if re.search(rf"\b{word}\b", region.text)}
        assert region.text in stuff or len(said) >= 2, region.text
    assert scene.visible_masks(64, 64).any((1, 2)).all()
