# SPDX-License-Identifier: Apache-2.0
"""A comparison's numbers against the reports, scipy, closed forms and slow loops."""

from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image

from spatext_lab import zoo
from spatext_lab.clip import Clip
from spatext_lab.datasets.pocket import KINDS, pocket_item
from spatext_lab.evaluation import report
from spatext_lab.evaluation.average_precision import resamples
from spatext_lab.evaluation.boxes import Detection, box_ap, layout_scores, resampled_ap
from spatext_lab.evaluation.comparison import scores
from spatext_lab.evaluation.comparison.scenes import scene_sets
from spatext_lab.evaluation.judge import Judge
from spatext_lab.evaluation.tasks import layout_tasks, tasks
from spatext_lab.images import to_tensor, to_unit

SCENES, WRONG = 6, (0.6, 0.6, 0.9, 0.9)


@pytest.fixture(scope="module")
def judge():
    return Judge.from_pretrained(zoo.folder("pocket", "judge"))


@pytest.fixture(scope="module")
def clip():
    return Clip.from_pretrained(zoo.folder("pocket", "spatext/clip"))


@pytest.fixture(scope="module")
def images():
    """Half of them the true ones, half of other scenes, so that something is right and wrong."""
    shown = [pocket_item("test", k if k % 2 else k + 40).image for k in range(SCENES)]
    return {k: Image.fromarray(image) for k, image in enumerate(shown)}


def means(values: scores.Values) -> dict[str, float]:
    return {name: np.mean(list(each.values())) for name, each in values.items() if each}


def test_boxes_against_recos_report(judge, clip, images):
    main = scene_sets(SCENES, 0, "boxes")[0]
    want = layout_scores(list(layout_tasks(SCENES)), list(images.values()), judge, clip)
    found = scores.judged(main.todo, main.boxes, images, judge, "boxes")
    for name in ("region_accuracy", "region_accuracy_seen", "region_accuracy_heldout"):
        assert round(means(found)[name], 4) == want[name]
        assert scores.summary(found)[f"{name}_95"] == want[f"{name}_95"]
    ap50 = scores.ap50(scores.objects(main.todo, main.boxes, images, judge))
    assert ap50 == {name: want[name] for name in ("ap50", "ap50_95")}
    _, whole = scores.embedded(main.todo, images, clip)
    assert whole["frechet_distance"] == pytest.approx(want["frechet_distance"], abs=2e-4)


def test_segments_against_spatexts_report(judge, clip, images):
    main = scene_sets(SCENES, 3, "segments")[0]
    todo, shown = list(tasks(SCENES, 3)), list(images.values())
    want = report.scores(todo, shown, judge) | report.distances(todo, shown, clip)
    found = scores.judged(main.todo, main.boxes, images, judge, "segments")
    values, whole = scores.embedded(main.todo, images, clip)
    summary = scores.summary(found | values) | whole
    assert summary == {name: want[name] for name in summary}


def test_a_scene_without_an_image_is_not_counted(judge, images):
    main = scene_sets(SCENES, 0, "boxes")[0]
    whole = scores.judged(main.todo, main.boxes, images, judge, "boxes")
    some = {k: image for k, image in images.items() if k != 2}
    found = scores.judged(main.todo, main.boxes, some, judge, "boxes")
    for name, each in whole.items():
        assert found[name] == {key: value for key, value in each.items() if key[0] != 2}


# --- differences ----------------------------------------------------------------------------------


def values(numbers, regions: int = 1) -> scores.Values:
    return {"iou": {(k // regions, k % regions): float(v) for k, v in enumerate(numbers)}}


def test_a_constant_difference_is_known_exactly():
    a = np.random.default_rng(0).random(60)
    found = scores.difference(values(a + 0.25), values(a))
    assert found == {"iou": 0.25, "iou_95": [0.25, 0.25]}


def test_a_paired_difference_in_closed_form():
    """Mean plus or minus 1.96 standard errors of the differences, and not of the two methods."""
    rng = np.random.default_rng(1)
    a = rng.normal(size=500)
    b = a + 0.3 + 0.1 * rng.normal(size=500)
    found = scores.difference(values(b), values(a))
    error = 1.96 * (b - a).std() / 500**0.5
    assert found["iou"] == pytest.approx((b - a).mean(), abs=1e-4)
    assert found["iou_95"] == pytest.approx([found["iou"] - error, found["iou"] + error], abs=2e-3)
    assert np.ptp(found["iou_95"]) < 0.2 * np.ptp(scores.summary(values(b))["iou_95"])


def test_differences_are_of_the_scenes_that_both_could_read():
    a, b = values([0, 1, 0, 1]), values([1, 1, 1, 1])
    del a["iou"][0, 0], b["iou"][3, 0]
    assert scores.difference(b, a)["iou"] == 0.5  # scene 1: 0, scene 2: 1
    assert scores.difference(b, {}) == {"iou": None}


def test_a_difference_of_ap50_against_a_loop():
    """One kind; the images that a resample has several times are written out."""
    rng, box, kind = np.random.default_rng(3), (0.1, 0.1, 0.5, 0.5), KINDS[0]
    some, reference = (
        {
            k: ([Detection(kind, None, rng.random(), b) for b in (box, WRONG)], [(kind, box)])
            if rng.random() < hit
            else ([], [(kind, box)])
            for k in range(start, 30)
        }
        for hit, start in ((0.8, 4), (0.5, 0))
    )

    def ap50(each, keys) -> float:
        return box_ap(*zip(*(each[k] for k in keys), strict=True))["ap50"]

    found, common = scores.ap50_difference(some, reference), np.arange(4, 30)
    assert found["ap50"] == pytest.approx(ap50(some, common) - ap50(reference, common), abs=2e-4)
    apart = []
    for times in resamples(26, draws=60):
        keys = np.repeat(common, times)
        apart.append(ap50(some, keys) - ap50(reference, keys))
    both = (list(zip(*(each[k] for k in common), strict=True)) for each in (some, reference))
    ours = np.subtract(*(resampled_ap(*each, resamples(26))[0] for each in both))
    assert ours[:60] == pytest.approx(apart, abs=2e-4)
    assert found["ap50_95"] == pytest.approx(np.percentile(ours, (2.5, 97.5)), abs=1e-4)
    assert scores.ap50_difference(some, some) == {"ap50": 0, "ap50_95": [0, 0]}
    assert scores.ap50_difference(some, {}) == {}


# --- diversity ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 4, 7])
def test_the_mean_of_all_pairs_against_a_loop(n):
    vectors = np.random.default_rng(n).normal(size=(n, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [1 - a @ b for a, b in combinations(vectors, 2)]
    assert scores.pairwise_distance(vectors) == pytest.approx(sum(pairs) / len(pairs))


def test_diversity_against_a_loop(clip):
    """Each pair of a scene's images, embedded one by one; a scene without all four is left out."""
    todo = scene_sets(2, 0, "boxes")[0].todo
    several = [
        {k: Image.fromarray(pocket_item("val", 10 * k + j).image) for k in range(2)}
        for j in range(4)
    ]
    del several[2][1]
    found = scores.diversity(todo, several, clip)
    assert list(found["diversity"]) == [(0, 0)]
    four = [to_unit(to_tensor([some[0]])) for some in several]
    whole = [clip.encode_images(each)[0].detach() for each in four]
    pairs = [1 - float(a @ b) for a, b in combinations(whole, 2)]
    assert found["diversity"][0, 0] == pytest.approx(np.mean(pairs), abs=1e-5)
    for r, mask in enumerate(todo[0].masks):
        inside = [clip.encode_segments(e, torch.from_numpy(mask)[None])[0].detach() for e in four]
        pairs = [1 - float(a @ b) for a, b in combinations(inside, 2)]
        assert found["diversity_in_regions"][0, r] == pytest.approx(np.mean(pairs), abs=1e-5)


def test_equal_images_have_no_diversity(clip, images):
    todo = scene_sets(SCENES, 0, "boxes")[0].todo
    found = scores.diversity(todo, [images] * 4, clip)
    assert max(map(abs, means(found).values())) < 1e-6
