# SPDX-License-Identifier: Apache-2.0
"""The words for a box against a table, and the caption that is made of them."""

from random import Random

import pytest
import torch

from spatext_lab.baselines.positional_words import (
    PositionalWordsPipeline,
    place_words,
    positional_caption,
)
from spatext_lab.reco.pipeline import ReCoPipeline
from spatext_lab.reco.text_encoder import grow
from spatext_lab.scene import Region, Scene
from spatext_lab.scene.places import Box
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from tests.tiny import tiny_model

SCENE = Scene(
    "two boats",
    [Region("a red boat", box=(0, 0, 0.25, 0.1)), Region("a buoy", box=(0.9, 0.48, 0.95, 0.52))],
)
SAID = "two boats; medium long in the top left, a red boat; small square in the right, a buoy"


def box_of(width: float, height: float, x: float = 0.5, y: float = 0.5) -> Box:
    """By its middle."""
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


# --- the template ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (0.05, 0.06, "small"),
        (0.0577, 0.0577, "small"),  # 1/300 = 0.003333; this is 0.003329
        (0.0578, 0.0578, "medium"),
        (0.1732, 0.1732, "medium"),  # 0.029998
        (0.1733, 0.1733, "large"),
        (1, 1, "large"),
    ],
)
def test_three_sizes(width, height, size):
    assert place_words(box_of(width, height)) == f"{size} square in the center"


@pytest.mark.parametrize(
    ("width", "height", "shape"),
    [
        (0.41, 0.2, "long"),
        (0.399, 0.2, "square"),
        (0.2, 0.2, "square"),
        (0.2, 0.399, "square"),
        (0.2, 0.41, "tall"),
    ],
)
def test_three_shapes(width, height, shape):
    assert place_words(box_of(width, height)) == f"large {shape} in the center"


GRID = [
    ["top left", "top", "top right"],
    ["left", "center", "right"],
    ["bottom left", "bottom", "bottom right"],
]


@pytest.mark.parametrize("row", range(3))
@pytest.mark.parametrize("column", range(3))
def test_nine_places(row, column):
    """By the middle of the box: in the middle of a cell, and just inside its corners."""
    for x in (column / 3 + 0.001, (column + 0.5) / 3, (column + 1) / 3 - 0.001):
        for y in (row / 3 + 0.001, (row + 0.5) / 3, (row + 1) / 3 - 0.001):
            side = 2 * min(x, y, 1 - x, 1 - y)
            said = place_words(box_of(side, side, x, y))
            assert said.partition(" in the ")[2] == GRID[row][column]


def test_the_edges_of_the_image_belong_to_it():
    assert place_words((0, 0, 1, 1)) == "large square in the center"
    assert place_words((1 - 1e-9, 1 - 1e-9, 1, 1)) == "small square in the bottom right"


def slow_words(box: Box) -> str:
    """The template as a list of cases."""
    width, height = box[2] - box[0], box[3] - box[1]
    size = "large"
    if width * height < 0.03:
        size = "medium"
    if width * height < 1 / 300:
        size = "small"
    shape = "square"
    if width > 2 * height:
        shape = "long"
    if height > 2 * width:
        shape = "tall"
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    column = [x < 1 / 3, 1 / 3 <= x < 2 / 3, x >= 2 / 3].index(True)
    row = [y < 1 / 3, 1 / 3 <= y < 2 / 3, y >= 2 / 3].index(True)
    return f"{size} {shape} in the {GRID[row][column]}"


def test_many_boxes_against_a_list_of_cases():
    rng, said = Random(0), set()
    for _ in range(4000):
        width, height = rng.random() ** 3, rng.random() ** 3
        x, y = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
        box = (x, y, x + width, y + height)
        assert place_words(box) == slow_words(box)
        said.add(place_words(box))
    assert len(said) > 60  # of 81


# --- the caption ----------------------------------------------------------------------------------


def test_a_layout_as_a_caption():
    assert positional_caption(SCENE) == SAID
    assert positional_caption(Scene("two boats")) == "two boats"


def test_regions_alone_are_written_without_a_caption():
    alone = Scene("", SCENE.regions)
    assert positional_caption(alone) == SAID.partition("; ")[2]
    assert positional_caption(Scene("")) == ""


def test_the_pipeline_samples_the_caption_and_nothing_else(tmp_path):
    """Without new tokens; and as the text-to-image model does, where that has room enough."""
    base = TextToImagePipeline.from_pretrained(tiny_model(tmp_path) / "text-to-image")
    longer = grow(base.text_encoder, base.tokenizer, 0, 154)
    words = PositionalWordsPipeline(base.unet, base.vae, *longer, base.scheduler)
    assert words.position_tokens.bins == 0
    assert words.position_tokens.decode(words.tokens(SCENE).ids) == Scene(
        SAID.replace(";", " ;").replace(",", " ,")
    )
    plain = ReCoPipeline(base.unet, base.vae, *longer, base.scheduler)
    for negative in ("a cup", ""):
        condition = words.condition([SCENE, Scene("two boats")], negative)
        want = plain.condition([Scene(SAID), Scene("two boats")], negative)
        assert torch.equal(condition.text, want.text)
        assert torch.equal(condition.null_text, want.null_text)
    short = base.condition([Scene("two boats")])
    torch.testing.assert_close(condition.text[1:, :77], short.text, atol=1e-5, rtol=1e-5)
    (image,) = words(SCENE, num_inference_steps=1).images
    assert image.size == (64, 64)
