# SPDX-License-Identifier: Apache-2.0
"""PaintSkills in the pocket world: a reader of the prompts, and the pixels that were rendered."""

import colorsys
import hashlib
import re
from collections import Counter
from itertools import product
from random import Random

import numpy as np
import pytest

from spatext_lab import zoo
from spatext_lab.datasets.pocket import COLOURS, KINDS, LABELS, SIZE, Placed, held_out, paintskills
from spatext_lab.datasets.pocket.paintskills import (
    SKILLS,
    SPLITS,
    SkillPrompt,
    Thing,
    relation_of,
    skill_item,
)
from spatext_lab.datasets.pocket.texts import KIND_WORDS
from spatext_lab.evaluation.judge import Judge
from spatext_lab.images import to_tensor

EACH = 60  # prompts of each skill and split


@pytest.fixture(scope="module")
def rendered():
    """(item, where the image is not its bare backdrop bool (64, 64), what was placed)."""
    real, seen = paintskills.draw, {}

    def spied(rng, backdrop, place):
        twin = Random()
        twin.setstate(rng.getstate())
        bare, _, _ = real(twin, backdrop, tuple)  # the same backdrop with nothing before it
        image, owner, placed = real(rng, backdrop, place)
        seen.update(changed=(image != bare).any(-1), placed=placed)
        return image, owner, placed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paintskills, "draw", spied)
        return [
            (skill_item(skill, split, index), seen["changed"], seen["placed"])
            for skill, split in product(SKILLS, ("train", "val"))
            for index in range(EACH)
        ]


def pixels(box) -> tuple[slice, slice]:
    """A box as rows and columns; it lies on whole pixels."""
    corners = [side * SIZE for side in box]
    assert corners == [round(corner) for corner in corners]
    x0, y0, x1, y1 = map(round, corners)
    return slice(y0, y1), slice(x0, x1)


def around(side: slice, more: int) -> slice:
    """So many pixels more on both ends."""
    return slice(max(side.start - more, 0), side.stop + more)


def grown(side: slice) -> slice:
    """Three pixels more: so far a thin tip, too pale for the mask, may reach."""
    return around(side, 3)


# --- prompts, read by hand ------------------------------------------------------------------------

SINGULAR = {word: kind for kind, words in KIND_WORDS.items() for word in words}
PLURAL = {
    word if word == "fish" else word + ("es" if word == "box" else "s"): kind
    for word, kind in SINGULAR.items()
}
SPATIAL = re.compile(
    r"a photo of an? (.+) and an? (.+); the (.+) is (left of|right of|above|below) the (.+)"
)


def read(skill: str, prompt: str) -> tuple[list[str], str | None, str | None]:
    """The kinds, the colour and the relation that a prompt asks for."""
    if skill == "spatial":
        first, second, again, relation, last = SPATIAL.fullmatch(prompt).groups()
        assert (again, last) == (second, first)
        return [SINGULAR[first], SINGULAR[second]], None, relation.removesuffix(" of")
    number, rest = re.fullmatch(r"a photo of (an?|two|three|four) (.+)", prompt).groups()
    if skill == "count" and number not in ("a", "an"):
        return (
            [PLURAL[rest]] * ("two", "three", "four").index(number) + [PLURAL[rest]] * 2,
            None,
            None,
        )
    if skill == "colour":
        colour, _, rest = rest.partition(" ")
        return [SINGULAR[rest]], colour, None
    return [SINGULAR[rest]], None, None


def test_objects_and_texts_are_those_of_the_prompt(rendered):
    for item, _, _ in rendered:
        kinds, colour, relation = read(item.skill, item.prompt)
        assert [thing.kind for thing in item.things] == kinds, item.prompt
        assert {thing.colour for thing in item.things} == {colour}
        assert item.relation == relation
        for text, kind in zip(item.texts, kinds, strict=True):
            words = re.fullmatch(rf"an? (?:{colour} )?(.+)", text)[1]
            assert SINGULAR[words] == kind
            assert (colour or "") in text


def test_articles(rendered):
    for item, _, _ in rendered:
        for text in (item.prompt, *item.texts):
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text


# --- layouts, against the pixels ------------------------------------------------------------------


def test_the_image_is_changed_in_the_boxes_and_nowhere_else(rendered):
    """So there are as many things as boxes, and a box is no larger than what is in it."""
    for item, changed, _ in rendered:
        outside, nearby = changed.copy(), np.zeros((SIZE, SIZE), bool)
        for thing in item.things:
            rows, columns = pixels(thing.box)
            inside = changed[rows, columns]
            for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
                assert side.any(), "the box is wider than the thing"
            outside[rows, columns] = False
            nearby[grown(rows), grown(columns)] = True
        assert not (outside & ~nearby).any(), item.prompt
        assert outside.sum() < 0.3 * changed.sum()  # soft edges


def test_things_stand_apart(rendered):
    """A box that is grown by the gap, less the pixel that is beyond it, meets no other."""
    nearest = SIZE
    for item, _, _ in rendered:
        for thing in item.things:
            others = np.zeros((SIZE, SIZE), bool)
            for other in item.things:
                others[pixels(other.box)] |= other is not thing
            rows, columns = pixels(thing.box)
            distance = 0
            while (
                others.any() and not others[around(rows, distance), around(columns, distance)].any()
            ):
                distance += 1
            nearest = min(nearest, distance - 1) if others.any() else nearest
    assert nearest >= paintskills.GAP


def test_kinds_are_what_a_network_sees_that_never_met_these_images(rendered):
    judge = Judge.from_pretrained(zoo.folder("pocket", "judge"))
    right = []
    for start in range(0, len(rendered), 40):
        items = [item for item, _, _ in rendered[start : start + 40]]
        kinds, _ = judge(to_tensor(np.stack([item.image for item in items])))
        for item, seen in zip(items, kinds.numpy(), strict=True):
            for thing in item.things:
                inside = seen[pixels(thing.box)]
                most = np.bincount(inside[inside < len(KINDS)], minlength=1).argmax()
                right.append(LABELS[most] == thing.kind)
    assert len(right) > 700
    assert np.mean(right) > 0.99


HUES = {
    "red": 356,
    "orange": 28,
    "yellow": 49,
    "green": 138,
    "blue": 223,
    "purple": 276,
    "pink": 333,
}


def hue_name(pixel) -> str:
    """A colour's name by its angle on the colour wheel; what has none is white."""
    hue, saturation, _ = colorsys.rgb_to_hsv(*(pixel / 255))
    if saturation < 0.15:
        return "white"
    return min(HUES, key=lambda name: abs((HUES[name] - 360 * hue + 180) % 360 - 180))


def test_colours_are_those_of_the_pixels(rendered):
    right = []
    for item, changed, placed in rendered:
        for thing, stands in zip(item.things, placed, strict=True):
            place = pixels(thing.box)
            names = Counter(map(hue_name, item.image[place][changed[place]]))
            right.append(names.most_common(1)[0][0] == stands.look[1])
            assert thing.colour in (None, stands.look[1])
    assert np.mean(right) > 0.98  # a boat's sail may be larger than the boat, and yellowish


def test_relations_are_true_of_the_pixels(rendered):
    """By the middles of the pixels rendered, the axis on which they are farther apart."""
    words = Counter()
    for item, changed, _ in rendered:
        if item.skill != "spatial":
            assert item.relation is None
            continue
        words[item.relation] += 1
        middles = []
        for thing in item.things:
            rows, columns = pixels(thing.box)
            y, x = np.argwhere(changed[rows, columns]).mean(0)
            middles.append(np.array((rows.start + y, columns.start + x)))
        down, right = middles[1] - middles[0]
        if abs(right) > abs(down):
            assert item.relation == ("right" if right > 0 else "left")
        else:
            assert item.relation == ("below" if down > 0 else "above")
    assert set(words) == {"left", "right", "above", "below"}


@pytest.mark.parametrize(
    ("x", "y", "relation"),
    [
        (45, 22, "right"),
        (0, 22, "left"),
        (22, 0, "above"),
        (22, 45, "below"),
        (30, 30, None),  # as far to the right as down
        (31, 26, "right"),  # 12 and 8 pixels between the centres: just clear enough
        (33, 28, None),  # 14 and 10: a trifle too little
    ],
)
def test_a_relation_is_that_of_the_second_thing_to_the_first(x, y, relation):
    look = ("ball", "red", "plain")
    first, second = Placed(look, 20, 19, 20, False), Placed(look, x, y, 22, True)
    assert relation_of(first, second) == relation


def test_nothing_is_of_a_held_out_combination(rendered):
    looks = {thing.look for _, _, placed in rendered for thing in placed}
    assert len(looks) > 60
    assert {pattern for _, _, pattern in looks} == {"plain"}
    assert not any(held_out(*look) for look in looks)


def test_the_scene_is_the_prompt_and_the_boxes(rendered):
    for item, _, _ in rendered[::7]:
        assert item.scene.caption == item.prompt
        regions = [(region.text, region.box) for region in item.scene.regions]
        assert regions == [
            (text, thing.box) for text, thing in zip(item.texts, item.things, strict=True)
        ]


def test_a_hidden_object_has_no_region():
    things = Thing("dog", None, None), Thing("bus", None, (0.1, 0.2, 0.3, 0.4))
    layout = SkillPrompt("spatial", "val", 0, "a dog, a bus", things, ("a dog", "a bus"), "left")
    assert [(r.text, r.box) for r in layout.scene.regions] == [("a bus", (0.1, 0.2, 0.3, 0.4))]


# --- splits ---------------------------------------------------------------------------------------


def test_splits_are_as_long_as_the_papers():
    """21 shapes, counts 1-4, 6 colours, 4 relations of 21 x 21 pairs; each so many times."""
    combinations_of = {"object": 21, "count": 21 * 4, "colour": 21 * 6, "spatial": 21 * 21 * 4}
    times = {"object": (1000, 50), "count": (300, 30), "colour": (200, 20), "spatial": (16, 2)}
    for skill in SKILLS:
        lengths = tuple(combinations_of[skill] * n for n in times[skill])
        assert (SPLITS[skill]["train"], SPLITS[skill]["val"]) == lengths


def test_what_is_asked_for_is_spread_evenly():
    things = [skill_item("count", "train", i).things for i in range(1200)]
    numbers = Counter(map(len, things))
    assert set(numbers) == {1, 2, 3, 4}
    assert min(numbers.values()) > 240
    kinds = Counter(each[0].kind for each in things)
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) > 60
    colours = Counter(skill_item("colour", "train", i).things[0].colour for i in range(800))
    assert set(colours) == set(COLOURS)
    assert min(colours.values()) > 60
    sides = Counter(skill_item("spatial", "train", i).relation for i in range(400))
    assert min(sides.values()) > 60


def test_no_two_splits_skills_or_seeds_share_an_image(rendered):
    images = [item.image.tobytes() for item, _, _ in rendered]
    images += [
        skill_item(skill, "val", i, seed=1).image.tobytes() for skill in SKILLS for i in range(20)
    ]
    assert len(set(images)) == len(images)


def test_the_last_index_of_every_split_can_be_rendered():
    for skill, split in product(SKILLS, ("train", "val")):
        assert skill_item(skill, split, SPLITS[skill][split] - 1).image.shape == (SIZE, SIZE, 3)


# The weights were trained on these very bytes: whoever changes them must train again.
GOLDEN = {
    ("object", "train"): "e946cff3f348ae3c98ce15a8b4aa1ad97a06a04ac7c9fb35b8a3f5abc8e6e9c8",
    ("object", "val"): "a055bc4ee716f649f5c01eed69451a4f4b33047a20ad662dcbd23c19ad414be1",
    ("count", "train"): "5e8902f0dcdefff5b792391aa0f35c86f721e3e5a7e229700877371cc8d69bfb",
    ("count", "val"): "0c5f9d1a05998b8a00dd12aeacfd1be6159698a4513c8b069e6c1b29c7a1f7a9",
    ("colour", "train"): "a03ed0933b3ebfd6c52a7c86ebe33640bd21c581816ffa2dbfe3bb33e7bb747d",
    ("colour", "val"): "fe6d912d847497aeb8f7d48b928c43cf63b4fc621205d45c2cd4a08a8306afad",
    ("spatial", "train"): "9c9d982f2374e6292a45a3280ce841a61a18fc9abd30cdafe8457d72a148e786",
    ("spatial", "val"): "8dea063f909805c00f23171f50ef42bd2da78a3e8e9487120d51e3a06294adb9",
}


@pytest.mark.parametrize(("skill", "split"), GOLDEN)
def test_an_index_is_the_same_image_on_every_machine(skill, split):
    total = hashlib.sha256()
    for index in range(8):
        item = skill_item(skill, split, index)
        total.update(item.image.tobytes())
        total.update(repr((item.prompt, item.things, item.texts, item.relation)).encode())
    assert total.hexdigest() == GOLDEN[skill, split]


def test_reading_an_item_twice_and_others_between_changes_nothing():
    one = skill_item("spatial", "val", 7)
    before = one.image.copy()
    for index in range(20):
        skill_item("count", "val", index)
    again = skill_item("spatial", "val", 7)
    assert np.array_equal(one.image, before)
    assert np.array_equal(again.image, before)
    assert (again.prompt, again.things, again.texts) == (one.prompt, one.things, one.texts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("color", "val", 0), "skill is 'color'; there are object, count, colour, spatial"),
        (("object", "test", 0), "split is 'test'; object has train, val"),
        (("object", "val", 1050), "index is 1050; object val has 0 to 1049"),
        (("spatial", "train", -1), "index is -1; spatial train has 0 to 28223"),
    ],
)
def test_what_there_is_not_is_refused(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        skill_item(*arguments)
