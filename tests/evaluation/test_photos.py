# SPDX-License-Identifier: Apache-2.0
"""A photo becomes a scene: where its caption and its regions' texts come from."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spatext_lab.cli.parser import main
from spatext_lab.datasets.coco import read_coco
from spatext_lab.datasets.coco.captions import captions_of
from spatext_lab.evaluation import photos
from spatext_lab.evaluation.captioners import MARGIN, Captioner, cropped
from spatext_lab.evaluation.photos import photo_scene
from spatext_lab.figures.png import colour
from spatext_lab.scene import Scene
from tests.evaluation.folders import tiny_git

POCKET = Path(__file__).parents[2] / "data" / "pocket-coco"
BESIDE = Path(__file__).parents[2].parent / "shared" / "coco-mini"


@pytest.fixture(scope="module")
def git(tmp_path_factory):
    return tiny_git(tmp_path_factory.mktemp("captioners") / "git")


@pytest.fixture
def photo(tmp_path):
    """Of no COCO folder."""
    item = read_coco(POCKET, "val", limit=1).items[0]
    item.image().save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def halves(image):
    """Finds two segments, of which it can name one."""
    mask = np.zeros(image.size[::-1], bool)
    mask[: len(mask) // 2] = True
    return [("the sky", mask), (None, ~mask)]


# --- captions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("root", [POCKET, BESIDE], ids=["pocket", "real"])
def test_a_photo_of_a_coco_folder_has_the_captions_that_pycocotools_finds(root, capsys):
    if not root.is_dir():
        pytest.skip(f"there are no photos at {root}")
    from pycocotools.coco import COCO

    truth = COCO(root / "annotations" / "captions_val2017.json")
    for number in truth.getImgIds()[:10]:
        (image,) = truth.loadImgs(number)
        found = captions_of(root / "val2017" / image["file_name"])
        wanted = [" ".join(one["caption"].split()) for one in truth.imgToAnns[number]]
        assert found == wanted
        assert found


def test_any_other_photo_has_none(photo):
    assert captions_of(photo) == []
    assert captions_of(POCKET / "val2017" / "nowhere.png") == []


def test_whose_caption_is_taken(photo, git, monkeypatch):
    monkeypatch.setattr(photos, "segmenter_named", lambda name: halves)
    of_coco = sorted((POCKET / "val2017").iterdir())[0]
    said = Captioner(git)([Image.open(photo)])[0]
    captions = [
        photo_scene(of_coco, segmenter="halves", captioner=str(git))[1].caption,
        photo_scene(photo, segmenter="halves", captioner=str(git))[1].caption,
        photo_scene(photo, segmenter="halves")[1].caption,
        photo_scene(of_coco, segmenter="halves", caption="mine")[1].caption,
    ]
    assert captions == [captions_of(of_coco)[0], said, "A realistic image", "mine"]


# --- texts of regions -----------------------------------------------------------------------------


def test_whose_texts_the_regions_get(photo, git, monkeypatch):
    monkeypatch.setattr(photos, "segmenter_named", lambda name: halves)
    image, plain = photo_scene(photo, segmenter="halves")
    assert [region.text for region in plain.regions] == ["the sky", "A random object"]
    _, named = photo_scene(photo, segmenter="halves", names=["meadow", "beach"], clip="pocket")
    assert named.regions[0].text == "the sky"
    assert named.regions[1].text in ("a meadow", "a beach")
    _, told = photo_scene(photo, segmenter="halves", captioner=str(git))
    say = Captioner(git)
    for region, before in zip(told.regions, plain.regions, strict=True):
        wider = (cropped(image, before.box, margin) for margin in (0, MARGIN))
        assert region.text == next(filter(None, (say([crop])[0] for crop in wider)), before.text)
    assert [r.mask.tolist() for r in told.regions] == [r.mask.tolist() for r in plain.regions]


# --- the command ----------------------------------------------------------------------------------


def test_the_command_draws_what_it_writes(tmp_path, capsys):
    source = sorted((POCKET / "val2017").iterdir())[0]
    out, drawn = tmp_path / "scene.json", tmp_path / "new" / "scene.png"
    line = ["scene", str(source), "--segmenter", "judge", "--out", str(out), "--draw", str(drawn)]
    assert main(line) == 0
    made, photo = Scene.load(out), Image.open(source)
    assert made.caption == captions_of(source)[0]
    assert f"caption  {made.caption}" in capsys.readouterr().out
    with Image.open(drawn) as image:
        assert made.caption in image.info["Description"]
        assert image.width == 768
        top = np.asarray(image.crop((0, 0, 768, 768)), float)  # below it is the legend
    large = np.asarray(photo.convert("RGB").resize((768, 768), Image.Resampling.NEAREST), float)
    labels = made.label_map(768, 768)
    for k in range(1, len(made.regions) + 1):  # a veil of the region's colour, 150 of 255 opaque
        veiled = large + (np.array(colour(k)) - large) * 150 / 255
        assert np.median(np.abs(top - veiled)[labels == k]) < 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--draw", "scene.jpg"], "--draw is scene.jpg; it must end in .png"),
        (["--captioner", "git"], "captioner is 'git'; pass a captioner's folder"),
        (["--names", "dog", "--clip", "sd99"], "model is 'sd99'"),
    ],
)
def test_what_is_asked_wrongly_is_named_and_nothing_is_written(
    tmp_path, monkeypatch, capsys, photo, words, says
):
    monkeypatch.chdir(tmp_path)
    assert main(["scene", str(photo), "--segmenter", "judge", "--out", "scene.json", *words]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "scene.json").exists()


def test_a_photo_without_a_segment_is_an_empty_scene_and_exit_code_one(photo, monkeypatch, capsys):
    monkeypatch.setattr(photos, "segmenter_named", lambda name: lambda image: [])
    out = photo.parent / "scene.json"
    assert main(["scene", str(photo), "--segmenter", "none", "--out", str(out)]) == 1
    assert "no segment was found" in capsys.readouterr().err
    assert json.loads(out.read_text())["regions"] == []
