# SPDX-License-Identifier: Apache-2.0
"""The file format: what is written, and the answer to each way in which a file can be damaged."""

import json
import math
from textwrap import dedent

import numpy as np
import pytest

from spatext_lab.scene import Region, Scene, json_format

BOX_ORDER = "box=(x0, y0, x1, y1)"


def test_file_format_is_the_documented_one():
    mask = np.array([[True, True, False], [False, False, False]])
    scene = Scene("zwei Bälle", [Region("a", box=(0, 0.25, 0.5, 1)), Region("b", mask=mask)])
    assert json.loads(scene.to_json()) == {
        "format": "spatext-scene",
        "version": 1,
        "caption": "zwei Bälle",
        "regions": [
            {"text": "a", "box": [0.0, 0.25, 0.5, 1.0]},
            # column by column: off 0, on 1, off 1, on 1, off 3; the last two less those two before
            {"text": "b", "mask": {"size": [2, 3], "counts": "01102"}},
        ],
    }


def test_the_docstring_shows_a_file_as_it_is_written():
    _, shown = json_format.__doc__.split("edit.\n\n")
    text = dedent(shown[: shown.index("\n\n")] + "\n")
    scene = Scene("a meadow at noon", [Region("a red ball", box=(0.1, 0.2, 0.4, 0.5))])
    assert scene.to_json() == text
    assert Scene.from_json(text) == scene


def damaged(**changes):
    """A good file with one thing changed; a value of ... removes the field."""
    file = json.loads(
        Scene("c", [Region("a", box=(0, 0, 1, 1)), Region("b", mask=np.eye(4) > 0)]).to_json()
    )
    for place, value in changes.items():
        *way, last = [int(step) if step.isdigit() else step for step in place.split("__")]
        target = file
        for step in way:
            target = target[step]
        if value is ...:
            del target[last]
        else:
            target[last] = value
    return json.dumps(file)


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("", ["not JSON", '"format": "spatext-scene"']),
        ("{'caption': 1}", ["not JSON", "{'caption': 1}"]),
        pytest.param("[" * 100_000, ["not JSON"], id="deep"),
        ("[]", ["the scene is []", "not a JSON object"]),
        (damaged(caption=...), ["the scene has no field 'caption'"]),
        (damaged(captions="x"), ["unknown field 'captions' = 'x'"]),
        (damaged(format="coco"), ["format is 'coco'", '"spatext-scene"']),
        (damaged(version=2), ["version is 2, not 1", '"version": 1']),
        (damaged(caption=7), ["caption is 7", "not a text: write one"]),
        (damaged(regions={}), ["regions is {}", "not a list: write ["]),
        (damaged(regions__1=5), ["regions[1] is 5", "not a JSON object"]),
        (damaged(regions__0__text=...), ["regions[0] has no field 'text'"]),
        (damaged(regions__0__text=None), ["regions[0].text is None", "not a text: write one"]),
        (damaged(regions__0__text=" "), ["regions[0].text is empty"]),
        (damaged(regions__0__text="\ud800"), ["regions[0].text is '\\ud800'", "UTF-8"]),
        (damaged(regions__0__box=...), ["regions[0] has no field 'box'", "one of box and mask"]),
        (
            damaged(regions__0__mask={}),
            ["regions[0] has an unknown field 'mask'", "one of box and mask"],
        ),
        (damaged(regions__0__box=None), ["regions[0].box is ()", BOX_ORDER]),
        (
            damaged(regions__0__box=[0, 0, 64, 64]),
            ["regions[0].box is (0, 0, 64, 64)", "pixels", BOX_ORDER],
        ),
        (damaged(regions__0__box=[0, 0, math.nan, 1]), ["regions[0].box is (0, 0, nan, 1)"]),
        (damaged(regions__1__mask=None), ["regions[1].mask is None"]),
        (damaged(regions__1__mask="x"), ["regions[1].mask is 'x'", '"counts"']),
        (
            damaged(regions__1__mask__counts=...),
            ["regions[1].mask is {'size': [4, 4]}", '"counts"'],
        ),
        (damaged(regions__1__mask__counts=[0, 16]), ["regions[1].mask.counts is [0, 16]", "RLE"]),
        (damaged(regions__1__mask__counts="0"), ["regions[1].mask.counts '0' is damaged", "4 x 4"]),
        (
            damaged(regions__1__mask__counts="0o"),
            ["regions[1].mask.counts '0o' is damaged: it breaks off"],
        ),
        (damaged(regions__1__mask__counts="0 @"), ["it has ' ' at position 1"]),
        # a number without end would take for ever to add up
        pytest.param(
            damaged(regions__1__mask__counts="o" * 100_000), ["it has 'o' at position 7"], id="long"
        ),
        (damaged(regions__1__mask__counts="@01"), ["regions[1].mask.counts '@01' is damaged"]),
        (damaged(regions__1__mask__counts="`0"), ["regions[1].mask of shape (4, 4) is empty"]),
        (damaged(regions__1__mask__size=[4]), ["regions[1].mask.size is [4]"]),
        (damaged(regions__1__mask__size=[4, 5]), ["regions[1].mask.counts", "4 x 5"]),
        (damaged(regions__1__mask__size=[10**9, 10**9]), ["regions[1].mask.size is [1000000000, "]),
        (damaged(regions__1__mask__size=[True, 16]), ["regions[1].mask.size is [True, 16]"]),
    ],
)
def test_a_damaged_file_is_told_what_and_where(text, phrases):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the phrases are looked for one by one
        Scene.from_json(text)
    for phrase in phrases:
        assert phrase in str(caught.value)
