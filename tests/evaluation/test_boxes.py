# SPDX-License-Identifier: Apache-2.0
"""Layouts: detections against patches made by hand, scores against pycocotools and loops."""

import contextlib
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from spatext_lab import zoo
from spatext_lab.clip import Clip
from spatext_lab.datasets.pocket import COLOURS, KINDS, LABELS, STUFF, pocket_item
from spatext_lab.evaluation.average_precision import resamples
from spatext_lab.evaluation.boxes import (
    LEAST_FRACTION,
    Detection,
    ap_intervals,
    box_ap,
    box_correct,
    class_agnostic,
    detections,
    found_in,
    layout_scores,
    resampled_ap,
    scene_distance,
)
from spatext_lab.evaluation.judge import Judge
from spatext_lab.evaluation.metrics import bootstrap, middle
from spatext_lab.evaluation.tasks import layout_tasks
from spatext_lab.scene.places import tight_box

BACK = LABELS.index(STUFF[0])
STAR, BOAT, MOON = (LABELS.index(kind) for kind in ("star", "boat", "moon"))
RED, BLUE = (COLOURS.index(colour) + 1 for colour in ("red", "blue"))


def maps(*patches: tuple[tuple[int, int, int, int], int, int]):
    """Kind map, colour map and certainty of rectangles (x0, y0, x1, y1) in pixels on a backdrop."""
    kinds, colours = np.full((64, 64), BACK), np.zeros((64, 64), int)
    for (x0, y0, x1, y1), kind, colour in patches:
        kinds[y0:y1, x0:x1], colours[y0:y1, x0:x1] = kind, colour
    sure = np.full((len(LABELS), 64, 64), 0.25, np.float32)
    return kinds, colours, sure


def test_a_patch_is_found_where_it_is():
    kinds, colours, sure = maps(((8, 16, 24, 32), STAR, RED), ((40, 40, 60, 48), BOAT, BLUE))
    sure[STAR, 16:32, 8:24] = 0.9
    star, boat = found_in(kinds, colours, sure)
    assert (star.label, star.colour, star.box) == ("star", "red", (0.125, 0.25, 0.375, 0.5))
    assert star.score == pytest.approx(0.9, abs=1e-4)
    assert boat == Detection("boat", "blue", 0.25, (0.625, 0.625, 0.9375, 0.75))


def test_a_mast_between_hull_and_sail_does_not_make_two_boats():
    apart = maps(((10, 10, 20, 18), BOAT, 0), ((10, 20, 20, 26), BOAT, RED))
    (boat,) = found_in(*apart)
    assert boat.box == (10 / 64, 10 / 64, 20 / 64, 26 / 64)
    assert boat.colour == "red"
    far = maps(((10, 10, 20, 18), BOAT, RED), ((10, 21, 20, 26), BOAT, RED))
    assert len(found_in(*far)) == 2


def test_specks_and_backdrop_are_not_found():
    assert found_in(*maps(((5, 5, 8, 8), STAR, RED))) == []
    assert found_in(*maps()) == []


def slow_ap(found, asked) -> tuple[float, float]:
    """COCO's own evaluation, from its own files' form."""
    images = [{"id": i} for i in range(len(asked))]
    kinds = sorted({kind for row in asked for kind, _ in row})
    numbers = {kind: i + 1 for i, kind in enumerate(kinds)}

    def pixels(box):
        x0, y0, x1, y1 = (64 * v for v in box)
        return [x0, y0, x1 - x0, y1 - y0]

    truth = [
        {
            "image_id": i,
            "category_id": numbers[kind],
            "bbox": pixels(box),
            "area": pixels(box)[2] * pixels(box)[3],
            "iscrowd": 0,
        }
        for i, row in enumerate(asked)
        for kind, box in row
    ]
    guesses = [
        {
            "image_id": i,
            "category_id": numbers[one.label],
            "bbox": pixels(one.box),
            "score": one.score,
        }
        for i, row in enumerate(found)
        for one in row
        if one.label in numbers
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": images,
            "annotations": [row | {"id": i + 1} for i, row in enumerate(truth)],
            "categories": [{"id": i, "name": kind} for kind, i in numbers.items()],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(guesses), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[0], evaluation.stats[1]


def shaken(tasks, seed: int):
    """Detections near the true boxes, some missing, some of the wrong kind, and what was asked."""
    rng = np.random.default_rng(seed)
    asked = [
        [(s.label, r.box) for s, r in zip(t.segments, t.scene.regions, strict=True)] for t in tasks
    ]
    found = []
    for row in asked:
        guesses = []
        for kind, box in row:
            x0, y0, x1, y1 = np.array(box) + rng.normal(0, 0.03, 4)
            if rng.random() < 0.8:
                label = kind if rng.random() < 0.8 else str(rng.choice(KINDS))
                guesses.append(Detection(label, None, float(rng.random()), (x0, y0, x1, y1)))
        found.append(guesses)
    return found, asked


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_against_cocos_own(seed):
    found, asked = shaken(list(layout_tasks(40)), seed)
    ap, ap50 = slow_ap(found, asked)
    ours = box_ap(found, asked)
    assert 0.1 < ap < ap50 < 1
    assert ours == {"ap": pytest.approx(ap, abs=2e-3), "ap50": pytest.approx(ap50, abs=2e-3)}


def test_exact_boxes_are_perfect_and_none_are_nothing():
    tasks = list(layout_tasks(10))
    asked = [
        [(s.label, r.box) for s, r in zip(t.segments, t.scene.regions, strict=True)] for t in tasks
    ]
    exact = [[Detection(kind, None, 1.0, box) for kind, box in row] for row in asked]
    assert box_ap(exact, asked) == {"ap": 1.0, "ap50": 1.0}
    assert ap_intervals(exact, asked) == {"ap_95": [1.0, 1.0], "ap50_95": [1.0, 1.0]}
    nothing = [[] for _ in asked]
    assert box_ap(nothing, asked) == {"ap": 0.0, "ap50": 0.0}
    assert ap_intervals(nothing, asked) == {"ap_95": [0.0, 0.0], "ap50_95": [0.0, 0.0]}


def test_without_classes_the_location_alone_counts():
    found, asked = shaken(list(layout_tasks(40)), 0)
    right = [[replace(one, label="cup") for one in row] for row in found]
    places = box_ap(*class_agnostic(found, asked))["ap50"]
    assert places == pytest.approx(
        slow_ap(right, [[("cup", box) for _, box in row] for row in asked])[1], abs=2e-3
    )
    assert places > box_ap(found, asked)["ap50"]  # a fifth has the wrong kind


@pytest.mark.parametrize("seed", range(3))
def test_resampled_precision_against_a_loop(seed):
    """By torchmetrics, for the images as they are and as each resample writes them out."""
    found, asked = shaken(list(layout_tasks(40)), seed)
    found[3] += [replace(one, score=one.score / 2) for one in found[3]]  # of objects found before
    times = np.vstack([np.ones((1, 40), int), resamples(40, seed, 12)])
    for row, aps in zip(times, resampled_ap(found, asked, times).T, strict=True):
        written = (
            [one for one, count in zip(some, row, strict=True) for _ in range(count)]
            for some in (found, asked)
        )
        want = box_ap(*written)
        assert aps.mean() == pytest.approx(want["ap"], abs=1e-4)
        assert aps[0] == pytest.approx(want["ap50"], abs=1e-4)


def test_an_interval_of_precision_in_closed_form():
    """What is found is right, so that precision is 1 up to the recall: AP is the recall's."""
    rng, box = np.random.default_rng(0), (0.1, 0.1, 0.5, 0.5)
    right = rng.random(400) < 0.7
    found = [[Detection("star", None, rng.random(), box)] if hit else [] for hit in right]
    low, high = ap_intervals(found, [[("star", box)]] * 400)["ap50_95"]
    error = 1.96 * (right.mean() * (1 - right.mean()) / 400) ** 0.5
    assert (low, high) == pytest.approx((right.mean() - error, right.mean() + error), abs=0.01)


def test_the_resamples_are_those_of_means():
    """So that AP's interval and a mean's are of the same scenes."""
    right = np.random.default_rng(1).random(50) < 0.5
    times = resamples(50)
    assert (times.sum(1) == 50).all()
    assert bootstrap(right, range(50)) == middle(times @ right / 50)


BOX = (0.25, 0.25, 0.75, 0.75)  # 32 x 32 pixels from (16, 16)


@pytest.mark.parametrize(
    ("patches", "right"),
    [
        ([((20, 20, 40, 40), STAR, RED)], True),
        ([((20, 20, 40, 40), STAR, BLUE)], False),  # the wrong colour
        ([((20, 20, 40, 40), BOAT, RED)], False),  # the wrong kind
        ([], False),  # nothing
        ([((20, 20, 28, 28), STAR, RED)], False),  # less than a tenth of the box
        ([((20, 20, 40, 40), STAR, RED), ((50, 50, 64, 64), BOAT, BLUE)], True),  # another outside
        ([((16, 16, 48, 30), STAR, RED), ((16, 30, 48, 48), BOAT, RED)], False),  # more boat inside
        ([((20, 20, 40, 40), STAR, 0)], False),  # no coloured pixel at all
        ([((20, 20, 40, 30), STAR, 0), ((20, 30, 40, 31), STAR, RED)], True),  # only coloured count
    ],
)
def test_what_is_in_a_box(patches, right):
    kinds, colours, _ = maps(*patches)
    assert box_correct(kinds, colours, BOX, STAR, RED) is right
    if right:
        assert box_correct(kinds, colours, BOX, STAR, None)


def test_the_colour_of_another_thing_in_the_box_does_not_count():
    kinds, colours, _ = maps(((16, 16, 48, 34), STAR, RED), ((16, 34, 48, 48), BOAT, BLUE))
    assert box_correct(kinds, colours, BOX, STAR, RED)
    assert not box_correct(kinds, colours, BOX, STAR, BLUE)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.from_pretrained(zoo.folder("pocket", "judge"))


@pytest.fixture(scope="module")
def clip() -> Clip:
    return Clip.from_pretrained(zoo.folder("pocket", "spatext/clip"))


def test_true_images_score_high_and_shuffled_ones_low(judge, clip):
    tasks = list(layout_tasks(24))
    true = [Image.fromarray(task.item.image) for task in tasks]
    good = layout_scores(tasks, true, judge, clip)
    assert good["region_accuracy"] > 0.95
    assert good["ap50"] > 0.75
    assert good["frechet_distance"] == pytest.approx(0, abs=1e-4)
    assert good["scene_distance"] == pytest.approx(0, abs=1e-4)
    assert good["regions"] == sum(len(task.scene.regions) for task in tasks)
    for name in ("region_accuracy", "ap", "ap50", "ap50_place"):
        low, high = good[f"{name}_95"]
        assert low <= good[name] <= high
    bad = layout_scores(tasks, true[1:] + true[:1], judge, clip)
    assert bad["region_accuracy"] < 0.3
    assert bad["ap50"] < 0.3
    # as a set, the images are the same; their boxes hold other objects
    assert bad["frechet_distance"] == pytest.approx(0, abs=1e-4)
    assert bad["scene_distance"] > 10 * max(good["scene_distance"], 1e-3)


def test_seen_and_held_out_make_up_all(judge, clip):
    tasks = list(layout_tasks(24))
    images = [Image.fromarray(task.item.image) for task in tasks]
    grey = [Image.new("RGB", (64, 64), (128, 128, 128))] * 3
    report = layout_scores(tasks, images[:-3] + grey, judge, clip)
    held = [s.held_out for task in tasks for s in task.segments]
    together = np.average(
        [report["region_accuracy_heldout"], report["region_accuracy_seen"]],
        weights=[sum(held), len(held) - sum(held)],
    )
    assert report["region_accuracy"] == pytest.approx(together, abs=1e-3)
    assert report["region_accuracy"] < 1


def test_detections_are_in_the_images_order(judge):
    items = [pocket_item("val", i) for i in range(3)]
    images = [Image.fromarray(item.image) for item in items]
    together = detections(images, judge)
    for image, found in zip(images, together, strict=True):
        (alone,) = detections([image], judge)
        assert [one.label for one in alone] == [one.label for one in found]
        assert [one.score for one in found] == sorted((x.score for x in found), reverse=True)


def test_the_scene_distance_looks_at_boxes_only(clip):
    tasks = list(layout_tasks(16))
    true = [Image.fromarray(task.item.image) for task in tasks]
    scenes = [task.scene for task in tasks]
    spoiled = []
    for image, scene in zip(true, scenes, strict=True):
        pixels = np.zeros((64, 64, 3), np.uint8)
        for region in scene.regions:
            inside = region.mask_at(64, 64)
            pixels[inside] = np.asarray(image)[inside]
        spoiled.append(Image.fromarray(pixels))
    assert scene_distance(spoiled, true, scenes, clip) == pytest.approx(0, abs=1e-3)
    grey = [Image.new("RGB", (64, 64), (128, 128, 128))] * len(true)
    assert scene_distance(grey, true, scenes, clip) > 0.1


def test_the_least_fraction_is_below_the_thinnest_object():
    """A true object always fills enough of its own box to be counted."""
    fractions = []
    for index in range(60):
        for segment in pocket_item("test", index).segments:
            if segment.is_thing:
                x0, y0, x1, y1 = (round(64 * v) for v in tight_box(segment.mask))
                fractions.append(segment.mask.sum() / ((x1 - x0) * (y1 - y0)))
    assert min(fractions) > LEAST_FRACTION
    assert torch.tensor(fractions).median() > 0.5
