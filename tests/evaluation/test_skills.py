# SPDX-License-Identifier: Apache-2.0
"""PaintSkills' rules: on detections written by hand, and on images that are known."""

import json

import numpy as np
import pytest
from PIL import Image

from spatext_lab.datasets.pocket.paintskills import (
    RELATIONS,
    SKILLS,
    SkillPrompt,
    Thing,
    skill_item,
)
from spatext_lab.evaluation import skills
from spatext_lab.evaluation.boxes import Detection
from spatext_lab.evaluation.methods import METHODS, Method
from spatext_lab.evaluation.skills import RULES, evaluate_skills, side

SQUARE = (0.2, 0.2, 0.4, 0.4)


def asked(skill, *kinds, colour=None, relation=None):
    """What a prompt asks for; the rules look at nothing else."""
    things = tuple(Thing(kind, colour, SQUARE) for kind in kinds)
    return SkillPrompt(skill, "val", 0, "", things, kinds, relation)


def one(label, score=0.9, colour="red", at=(0.3, 0.3)):
    x, y = at
    return Detection(label, colour, score, (x - 0.1, y - 0.1, x + 0.1, y + 0.1))


# --- object, colour ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "right"),
    [
        ([], False),
        ([one("fish")], True),
        ([one("cup")], False),
        ([one("fish", 0.3)], True),  # the surest counts, however sure
        ([one("fish", 0.8), one("cup", 0.9)], False),
        ([one("cup", 0.8), one("fish", 0.9)], True),
    ],
)
def test_object_is_the_surest_thing(found, right):
    assert RULES["object"](found, asked("object", "fish")) is right


@pytest.mark.parametrize(
    ("found", "right"),
    [
        ([], False),
        ([one("fish", colour="blue")], True),
        ([one("fish", colour="red")], False),
        ([one("fish", colour=None)], False),
        ([one("cup", colour="blue")], False),
        # the colour of the surest thing, not of another one
        ([one("fish", 0.8, "red"), one("fish", 0.9, "blue")], True),
        ([one("fish", 0.8, "blue"), one("fish", 0.9, "red")], False),
        ([one("fish", 0.8, "blue"), one("cup", 0.9, "blue")], False),
    ],
)
def test_colour_is_that_of_the_surest_thing(found, right):
    assert RULES["colour"](found, asked("colour", "fish", colour="blue")) is right


# --- count -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_count_is_the_number_of_sure_things_of_the_kind(number):
    item = asked("count", *["fish"] * number)
    for seen in range(6):
        assert RULES["count"]([one("fish")] * seen, item) is (seen == number)
        assert RULES["count"]([one("fish", 0.69)] * seen, item) is False
        others = [one("fish")] * seen + [one("cup"), one("fish", 0.5)]
        assert RULES["count"](others, item) is (seen == number)


def released_count(found, kind, number, first_version=False):
    """The released evaluator's rule, on detections in place of DETR's queries."""
    answers = sum(each.score > 0.7 for each in found)
    if first_version:
        answers = max(answers, 1)
    # ranked by the probability of the kind: those that are most probably something else come last
    ranked = sorted(found, key=lambda each: each.score if each.label == kind else 0, reverse=True)
    return sum(each.label == kind for each in ranked[:answers]) == number


def test_a_sure_cup_does_not_let_an_unsure_fish_count():
    """Seen surely: one fish, one cup. Asked for: two fish."""
    found = [one("fish", 0.95), one("cup", 0.95), one("fish", 0.2)]
    assert released_count(found, "fish", 2)
    assert not RULES["count"](found, asked("count", "fish", "fish"))


def test_nothing_sure_is_none():
    found = [one("fish", 0.2)]
    assert released_count(found, "fish", 1, first_version=True)
    assert not RULES["count"](found, asked("count", "fish"))


# --- spatial -----------------------------------------------------------------------------------

PLACES = {"left": (0.1, 0.4), "right": (0.9, 0.6), "above": (0.6, 0.1), "below": (0.4, 0.9)}


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("stands", RELATIONS)
def test_the_second_thing_must_be_where_it_was_asked_for(relation, stands):
    item = asked("spatial", "fish", "cup", relation=relation)
    fish, cup = one("fish", at=(0.5, 0.5)), one("cup", at=PLACES[stands])
    # in any order, the surer one first or last
    assert RULES["spatial"]([fish, cup], item) is (relation == stands)
    assert RULES["spatial"]([cup, fish], item) is (relation == stands)
    # the other thing in that place
    swapped = [one("cup", at=(0.5, 0.5)), one("fish", at=PLACES[stands])]
    opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}
    assert RULES["spatial"](swapped, item) is (relation == opposite[stands])


@pytest.mark.parametrize("relation", RELATIONS)
def test_two_things_of_one_kind_may_stand_either_way_round(relation):
    """As in the released evaluator: which one is "the second" nobody can see."""
    item = asked("spatial", "dog", "dog", relation=relation)
    across, down = (
        [one("dog", at=(0.2, 0.5)), one("dog", at=(0.8, 0.5))],
        [one("dog", at=(0.5, 0.2)), one("dog", at=(0.5, 0.8))],
    )
    assert RULES["spatial"](across, item) is (relation in ("left", "right"))
    assert RULES["spatial"](down, item) is (relation in ("above", "below"))


def test_the_check_of_two_things_always_runs():
    """The released evaluator ran it only where pictures were saved, and took the top two else."""
    item = asked("spatial", "fish", "cup", relation="right")
    fish, cup = one("fish", at=(0.2, 0.5)), one("cup", at=(0.8, 0.5))
    right = RULES["spatial"]
    assert right([fish, cup], item)
    assert right([fish, cup, one("moon", 0.6)], item)  # an unsure thing is none
    assert not right([fish, cup, one("moon", 0.8)], item)
    assert not right([fish, one("cup", 0.6, at=(0.8, 0.5))], item)
    assert not right([fish], item)
    assert not right([], item)
    assert not right([fish, one("moon", at=(0.8, 0.5))], item)


def test_sides_against_the_angle_between_the_centres():
    rng = np.random.default_rng(0)
    names = ("right", "below", "left", "above")  # quarters of a turn, as y points down
    for centres, halves in zip(*rng.uniform(0.1, 0.4, (2, 500, 2, 2)), strict=True):
        a, b = (
            tuple(map(float, (*(c - h), *(c + h)))) for c, h in zip(centres, halves, strict=True)
        )
        right, down = centres[1] - centres[0]
        assert side(a, b) == names[round(np.degrees(np.arctan2(down, right)) / 90) % 4]


# --- images ------------------------------------------------------------------------------------


@pytest.mark.parametrize("skill", SKILLS)
def test_who_sees_all_finds_every_true_picture_right_and_others_wrong(skill):
    """And the same detections, given for the next prompt, are wrong mostly."""
    items = [skill_item(skill, "val", index) for index in range(100)]
    seen = [[Detection(t.kind, t.colour, 1.0, t.box) for t in item.things] for item in items]
    rule = RULES[skill]
    assert all(rule(found, item) for found, item in zip(seen, items, strict=True))
    assert sum(rule(found, item) for found, item in zip(seen, items[1:], strict=False)) < 30


def test_the_ceilings_are_high_and_what_a_report_holds():
    report = evaluate_skills("true", prompts=24)
    for skill in SKILLS:
        low, high = report[f"{skill}_95"]
        assert 0.85 <= low <= report[skill] <= high <= 1
    assert (report["method"], report["prompts"], report["seed"]) == ("true", 24, 0)
    assert report["settings"] == {}
    assert evaluate_skills("true", prompts=24) == report
    some = evaluate_skills("true", prompts=96, skills=("count", "spatial"))
    assert min(some["count"], some["spatial"]) > 0.97  # their things stand apart enough to be told
    assert "object" not in some


def method(sampler):
    return Method("for a test", lambda model, settings: sampler, {})


def test_grey_pictures_are_never_right(monkeypatch):
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    monkeypatch.setitem(METHODS, "grey", method(lambda todo, seed: [grey] * len(todo)))
    report = evaluate_skills("grey", prompts=8)
    assert [report[skill] for skill in SKILLS] == [0, 0, 0, 0]


def test_pictures_of_other_prompts_are_seldom_right(monkeypatch):
    """The released evaluator's shuffled baseline: a score that does not read would be high."""

    def next_ones(todo, seed):
        items = (skill_item(task.item.skill, "val", task.item.index + 1) for task in todo)
        return [Image.fromarray(item.image) for item in items]

    monkeypatch.setitem(METHODS, "next", method(next_ones))
    report = evaluate_skills("next", prompts=32)
    assert max(report[skill] for skill in SKILLS) < 0.35


def test_a_method_is_given_prompts_with_layouts_in_batches_each_with_its_seed(monkeypatch):
    calls = []

    def draw(todo, seed):
        calls.append((seed, [task.scene for task in todo]))
        return [Image.fromarray(task.item.image) for task in todo]

    monkeypatch.setitem(METHODS, "spy", method(draw))
    evaluate_skills("spy", prompts=20, seed=7, skills=("spatial",))
    assert [(seed, len(scenes)) for seed, scenes in calls] == [(7, 16), (23, 4)]
    for index, scene in enumerate(scene for _, scenes in calls for scene in scenes):
        assert scene == skill_item("spatial", "val", index).scene
        assert len(scene.regions) == 2


def test_the_score_is_the_share_of_right_answers(monkeypatch):
    """Every third picture is grey."""
    grey = Image.new("RGB", (64, 64), (128, 128, 128))

    def draw(todo, seed):
        return [Image.fromarray(task.item.image) if task.item.index % 3 else grey for task in todo]

    monkeypatch.setitem(METHODS, "two thirds", method(draw))
    true, some = (
        evaluate_skills(name, prompts=30, skills=("object",)) for name in ("true", "two thirds")
    )
    assert true["object"] == 1
    assert some["object"] == pytest.approx(2 / 3, abs=1e-4)
    low, high = some["object_95"]
    # the binomial's standard deviation is 0.086
    assert 0.44 < low < 0.56
    assert 0.78 < high < 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "magic"}, "method is 'magic'; there are"),
        ({"method": "true-vectors"}, "method is 'true-vectors', which needs true segments"),
        ({"prompts": 0}, "prompts is 0; object has 1 to 1050"),
        ({"prompts": 1051}, "prompts is 1051; object has 1 to 1050"),
        ({"skills": ("color",)}, "skill is 'color'; there are object, count, colour, spatial"),
    ],
)
def test_what_there_is_not_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate_skills(**({"method": "true"} | arguments))


def test_there_is_a_rule_for_every_skill():
    assert tuple(skills.RULES) == SKILLS


# --- published prompts -------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path):
    """The pocket world's count prompts as the published archive has them, and a prompt of a bus."""
    scenes, annotations, images = [], [], []
    for index in range(8):
        item = skill_item("count", "val", index)
        things = [(t.kind, [64 * t.box[0], 64 * t.box[1]], t.box) for t in item.things]
        if index == 5:
            things = [("bus", [0, 0], (0, 0, 1, 1))]
        objects = [{"shape": kind, "color": "plain", "relation": None} for kind, _, _ in things]
        name = f"count_val_{index:05}"
        scenes.append({"id": name, "text": item.prompt, "objects": objects})
        images.append({"id": index, "width": 64, "height": 64})
        for _, corner, (x0, y0, x1, y1) in things:
            bbox = [*corner, 64 * (x1 - x0), 64 * (y1 - y0)]
            annotations.append({"image_id": index, "bbox": bbox})
    (tmp_path / "count" / "scenes").mkdir(parents=True)
    file = tmp_path / "count" / "scenes" / "count_val.json"
    file.write_text(json.dumps({"data": scenes}))
    boxes = json.dumps({"images": images, "annotations": annotations})
    (tmp_path / "count" / "count_val_bounding_boxes.json").write_text(boxes)
    return file


def test_published_prompts_are_asked_and_judged(monkeypatch, published):
    def draw(todo, seed):
        items = [skill_item("count", "val", task.item.index) for task in todo]
        assert [t.item.prompt for t in todo] == [item.prompt for item in items]
        assert [len(t.scene.regions) for t in todo] == [len(item.things) for item in items]
        return [Image.fromarray(item.image) for item in items]

    monkeypatch.setitem(METHODS, "spy", method(draw))
    report = evaluate_skills("spy", published=published)
    assert report["count"] == evaluate_skills("true", prompts=8, skills=("count",))["count"] == 1
    assert (report["prompts"], report["left_out"]) == (7, 1)  # the judge knows no bus
    assert evaluate_skills("spy", prompts=2, published=published)["prompts"] == 2
    for name in ("true", "autoencoder"):
        with pytest.raises(ValueError, match="published prompts have no true images"):
            evaluate_skills(name, published=published)


def test_published_prompts_that_cannot_be_judged(published):
    scenes = json.loads(published.read_text())["data"]
    for scene in scenes:
        for thing in scene["objects"]:
            thing["shape"] = "bus"
    published.write_text(json.dumps({"data": scenes}))
    with pytest.raises(ValueError, match=r"none of the 8 prompts asks .* ball, .* in red,"):
        evaluate_skills("text", published=published)
    other = published.with_name("prompts.json")
    with pytest.raises(ValueError, match=r"pass ROOT/count/scenes/count_val.json"):
        evaluate_skills("text", published=other)
    with pytest.raises(FileNotFoundError, match=r"count_train.json is missing"):
        evaluate_skills("text", published=published.with_name("count_train.json"))
    with pytest.raises(ValueError, match="prompts is 0; pass at least 1"):
        evaluate_skills("text", prompts=0, published=published)
