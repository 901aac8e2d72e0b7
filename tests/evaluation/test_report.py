# SPDX-License-Identifier: Apache-2.0
"""Reports: against judges whose answers are known, and all methods once through the code."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from spatext_lab import zoo
from spatext_lab.datasets.pocket import COLOURS, LABELS, pocket_item
from spatext_lab.evaluation.judge import Judge
from spatext_lab.evaluation.metrics import local_iou, psnr, region_correct
from spatext_lab.evaluation.report import COUNT, METHODS, MIN_AREA, evaluate, scores, tasks
from spatext_lab.spatext.pipeline import TextToImagePipeline
from tests.tiny import tiny_model

KEYS = {
    *("method", "scenes", "seed", "local_iou", "region_accuracy", "region_accuracy_seen"),
    *("region_accuracy_heldout", "seconds_per_picture"),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    place = tiny_model(tmp_path_factory.mktemp("model"))
    zoo.seal(place)
    return place


class Oracle(Judge):
    """Knows the truth of the pictures that it will be shown, after `spoil` has had its way."""

    def __init__(self, todo, spoil=lambda kinds, colours: (kinds, colours)) -> None:
        self.truth = {}
        for task in todo:
            maps = spoil(task.item.kind_map.astype(int), task.item.colour_map.astype(int))
            self.truth[task.item.image.tobytes()] = maps

    def __call__(self, images):
        pixels = ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        maps = [self.truth[np.ascontiguousarray(picture).tobytes()] for picture in pixels]
        return tuple(torch.from_numpy(np.stack(m)) for m in zip(*maps, strict=True))


def true_pictures(todo):
    return [Image.fromarray(task.item.image) for task in todo]


# --- tasks ----------------------------------------------------------------------------------------


def test_tasks_are_what_the_paper_asks_for():
    todo, numbers = list(tasks(120)), set()
    assert len(todo) == 120
    for task in todo:
        numbers.add(len(task.segments))
        assert task.item.split == "test"
        assert len({id(s) for s in task.segments}) == len(task.segments)
        assert all(s.mask.sum() >= MIN_AREA * 64 * 64 for s in task.segments)
        assert task.scene.caption == task.item.captions[0]
        for region, segment in zip(task.scene.regions, task.segments, strict=True):
            assert region.text == segment.text
            assert np.array_equal(region.mask, segment.mask)
    assert numbers == set(range(COUNT[0], COUNT[1] + 1))
    assert any(s.held_out for t in todo for s in t.segments)
    assert len({task.item.index for task in todo}) == 120


def test_more_tasks_begin_with_the_same_ones_and_seeds_differ():
    def names(count, seed, split="test"):
        return [(t.item.index, [s.text for s in t.segments]) for t in tasks(count, seed, split)]

    assert names(20, 0)[:10] == names(10, 0)
    assert names(20, 0) != names(20, 1)
    (task,) = tasks(1, 0, "val")
    assert np.array_equal(task.item.image, pocket_item("val", task.item.index).image)


# --- scores ---------------------------------------------------------------------------------------


def test_a_judge_that_knows_the_truth_gives_full_marks():
    """Without the scenes in which another thing of the same kind may touch the one asked for."""

    def alone(task) -> bool:
        others = [s for s in task.item.segments if all(s is not t for t in task.segments)]
        return not {s.label for s in task.segments} & {s.label for s in others}

    todo = [task for task in tasks(60) if alone(task)]
    report = scores(todo, true_pictures(todo), Oracle(todo))
    assert report["regions"] == sum(len(task.segments) for task in todo)
    for name in ("local_iou", "region_accuracy", "region_accuracy_seen", "region_accuracy_heldout"):
        assert report[name] == 1
        assert report[f"{name}_95"] == [1, 1]


def test_a_judge_that_sees_no_colours_leaves_the_stuff_right():
    todo = list(tasks(40))
    blind = Oracle(todo, lambda kinds, colours: (kinds, colours * 0))
    report = scores(todo, true_pictures(todo), blind)
    stuff = [not s.is_thing for task in todo for s in task.segments]
    assert report["local_iou"] > 0.95
    assert report["region_accuracy"] == pytest.approx(np.mean(stuff), abs=1e-4)
    assert report["region_accuracy_seen"] == report["region_accuracy_heldout"] == 0


def test_scores_against_a_loop_over_the_regions():
    """The judge mistakes every kind for the next from row 30 on; colours too, from column 40 on."""

    def spoil(kinds, colours):
        kinds[30:] = (kinds[30:] + 1) % len(LABELS)
        colours[:, 40:] = (colours[:, 40:] + 1) % (len(COLOURS) + 1)
        return kinds, colours

    todo = list(tasks(40))
    judge = Oracle(todo, spoil)
    report = scores(todo, true_pictures(todo), judge)
    ious, groups = [], {"": [], "_seen": [], "_heldout": []}
    for task in todo:
        kinds, colours = judge.truth[task.item.image.tobytes()]
        masks = np.stack([s.mask for s in task.segments])
        ious += local_iou(kinds, masks, [LABELS.index(s.label) for s in task.segments]).tolist()
        for s in task.segments:
            colour = 1 + COLOURS.index(s.colour) if s.is_thing else None
            good = region_correct(kinds, colours, s.mask, LABELS.index(s.label), colour)
            groups[""].append(good)
            if s.is_thing:
                groups["_heldout" if s.held_out else "_seen"].append(good)
    assert report["local_iou"] == pytest.approx(np.mean(ious), abs=1e-4)
    for name, good in groups.items():
        assert 0 < np.mean(good) < 1
        assert report[f"region_accuracy{name}"] == pytest.approx(np.mean(good), abs=1e-4)
        low, high = report[f"region_accuracy{name}_95"]
        assert low < np.mean(good) < high


# --- evaluate -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_whole_report(root, method):
    settings = {"steps": 1} if method in ("spatext", "text") else None
    report = evaluate(method, scenes=3, seed=2, model=str(root), settings=settings)
    assert report.keys() >= KEYS
    assert (report["method"], report["scenes"], report["seed"]) == (method, 3, 2)
    assert 0 <= report["local_iou"] <= 1
    assert 0 <= report["region_accuracy"] <= 1
    assert report["seconds_per_picture"] >= 0
    assert json.loads(json.dumps(report)) == report


def test_the_autoencoders_psnr_against_the_autoencoder(root):
    report = evaluate("autoencoder", scenes=3, model=str(root))
    vae = TextToImagePipeline.from_pretrained(root / "text-to-image").vae
    true = np.stack([task.item.image for task in tasks(3)])
    with torch.no_grad():
        images = torch.from_numpy(true).permute(0, 3, 1, 2) / 127.5 - 1
        decoded = vae.decoder(vae.encoder(images)).permute(0, 2, 3, 1).clamp(-1, 1).numpy()
    drawn = decoded / 2 + 0.5
    assert report["psnr_pooled"] == pytest.approx(psnr(drawn, true / 255), abs=0.006)
    each = [psnr(drawn[i], true[i] / 255) for i in range(3)]
    assert report["psnr"] == pytest.approx(sum(each) / 3, abs=0.006)


def test_a_damaged_model_is_refused_by_name(root, tmp_path):
    import shutil

    place = tmp_path / "model"
    shutil.copytree(root, place)
    name = "judge/diffusion_pytorch_model.safetensors"
    (place / name).write_bytes((place / name).read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        evaluate("true", scenes=1, model=str(place))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "magic"}, "method is 'magic'; there are spatext, text"),
        ({"method": "true", "scenes": 0}, "scenes is 0; give at least 1"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate(**arguments)
