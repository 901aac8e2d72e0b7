# SPDX-License-Identifier: Apache-2.0
"""What a rater's page gets: the images, no names; the key says which is which."""

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from spatext_lab.evaluation.study.pairs import Key, Pair, blind, outlines
from spatext_lab.figures.png import png
from spatext_lab.figures.scenes import outline
from spatext_lab.scene import Region, Scene

SCENE = Scene("a meadow", [Region("a red ball", box=(0.2, 0.3, 0.7, 0.8))])
RED, BLUE = (200, 30, 20), (20, 30, 200)


def image(colour, size=(16, 16), **how) -> Image.Image:
    """An image whose file names its method, as those of the live widget do."""
    made = png(Image.new("RGB", size, colour), "an image", {"method": "method-one", **how})
    return Image.open(io.BytesIO(made))


def some_pairs(count: int) -> list[Pair]:
    shades = [
        {"method-one": image((255, k, 0)), "method-two": image((0, k, 255))} for k in range(count)
    ]
    return [Pair(SCENE, each) for each in shades]


def decoded(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


@pytest.mark.parametrize("count", [1, 4, 11, 30])
def test_the_key_says_which_is_which_and_sides_are_balanced(count):
    sheet, key = blind(some_pairs(count), seed=3)
    firsts = 0
    for k, pair in enumerate(sheet["pairs"]):
        for name, shown in zip("xy", pair["images"], strict=True):
            reddest = {"method-one": (255, k, 0), "method-two": (0, k, 255)}
            assert (
                decoded(shown).convert("RGB").getpixel((5, 5))
                == reddest[key.chosen(pair["id"], name)]
            )
        firsts += key.chosen(pair["id"], "x") == "method-one"
    assert abs(2 * firsts - count) <= 1


def test_which_is_which_is_random_and_the_seeds():
    plain = [Pair(Scene(""), pair.images) for pair in some_pairs(12)]

    def sides(seed: int) -> str:
        key = blind(plain, seed)[1]
        return "".join(key.chosen(name, "x")[-1] for name in key.pairs)

    assert len({sides(seed) for seed in range(6)}) == 6
    assert sides(2) == sides(2)
    assert blind(plain, 0)[1].study != blind(plain, 1)[1].study
    assert blind(plain, 0)[1].study == blind(plain, 0)[1].study


def test_no_name_reaches_the_sheet():
    """Not in its texts, and not in the bytes of its images."""
    sheet, _ = blind(some_pairs(3))
    assert "method" not in json.dumps(sheet)
    for pair in sheet["pairs"]:
        assert not any(b"method" in base64.b64decode(text) for text in pair["images"])


def test_small_images_keep_every_pixel_and_large_ones_are_shrunk():
    noise = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)
    pair = Pair(SCENE, {"a": noise, "b": image(RED, (1024, 512))})
    sheet, key = blind([pair])
    shown = {
        key.chosen("p1", name): decoded(t)
        for name, t in zip("xy", sheet["pairs"][0]["images"], strict=True)
    }
    assert np.array_equal(shown["a"].convert("RGB"), noise)
    assert shown["b"].size == (512, 256)


def test_the_outlines_over_an_image_are_those_of_the_figures():
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8))
    mask = np.zeros((64, 96), bool)
    mask[20:40, 5:50] = True
    scene = Scene("", [Region("a hill", mask=mask), Region("a lake", mask=~mask)])
    over = outlines(scene, photo.size, size=192)
    large = photo.resize((192, 128), Image.Resampling.NEAREST).convert("RGBA")
    found = Image.alpha_composite(large, over).convert("RGB")
    want = np.asarray(outline(photo, scene, 192), int)
    assert np.abs(np.asarray(found, int) - want).max() <= 3


def test_questions_that_a_scene_cannot_answer_are_left_out():
    images = {"a": image(RED), "b": image(BLUE)}
    scenes = [SCENE, Scene("a meadow"), Scene(" ", SCENE.regions), Scene("")]
    sheet, key = blind([Pair(scene, images) for scene in scenes])
    want = [
        ("better", "caption", "regions"),
        ("better", "caption"),
        ("better", "regions"),
        ("better",),
    ]
    assert [pair["questions"] for pair in sheet["pairs"]] == want
    assert list(key.questions.values()) == want


def test_pairs_that_are_none_are_named():
    one = {"a": image(RED)}
    with pytest.raises(ValueError, match=r"images has \['a'\]; pass two"):
        Pair(SCENE, one)
    with pytest.raises(ValueError, match="pairs is empty"):
        blind([])
    others = [Pair(SCENE, one | {"b": image(BLUE)}), Pair(SCENE, one | {"c": image(BLUE)})]
    with pytest.raises(
        ValueError, match=r"pairs\[1\].images has \['a', 'c'\], but .* \['a', 'b'\]"
    ):
        blind(others)


# --- the key's file -------------------------------------------------------------------------------


def test_the_key_is_read_back(tmp_path):
    _, key = blind(some_pairs(3))
    key.save(tmp_path / "deep" / "key.json")
    key.save(tmp_path / "deep" / "key.json")  # the same study
    assert Key.load(tmp_path / "deep" / "key.json") == key


def test_the_key_of_another_study_is_not_replaced(tmp_path):
    _, key = blind(some_pairs(3))
    key.save(tmp_path / "key.json")
    with pytest.raises(ValueError, match=f"key of another study, {key.study}: move it away"):
        replace(key, study="another").save(tmp_path / "key.json")
    assert Key.load(tmp_path / "key.json") == key


@pytest.mark.parametrize(
    "harm",
    [
        lambda file: "",
        lambda file: "[]",
        lambda file: json.dumps(file | {"version": 2}),
        lambda file: json.dumps(file | {"pairs": {}}),
        lambda file: json.dumps(file | {"methods": ["a"]}),
        lambda file: json.dumps(file | {"methods": ["a", "b"]}),
    ],
)
def test_a_file_that_is_no_key_is_named(tmp_path, harm):
    blind(some_pairs(2))[1].save(path := tmp_path / "key.json")
    path.write_text(harm(json.loads(path.read_text())))
    with pytest.raises(ValueError, match=r"key.json is not the key of a study .*study make"):
        Key.load(path)
