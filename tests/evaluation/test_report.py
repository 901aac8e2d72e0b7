# SPDX-License-Identifier: Apache-2.0
"""Reports: against judges whose answers are known, and all methods once through the code."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import one_hot

from spatext_lab import zoo
from spatext_lab.clip import Clip, segment_crop
from spatext_lab.datasets.corrupted_masks import boxed
from spatext_lab.datasets.pocket import COLOURS, LABELS, pocket_item
from spatext_lab.diffusion import UNetDenoiser, guided, initial_noise, sample
from spatext_lab.evaluation import report as reports
from spatext_lab.evaluation.judge import Judge
from spatext_lab.evaluation.methods import METHODS
from spatext_lab.evaluation.metrics import local_iou, psnr, region_correct
from spatext_lab.evaluation.report import distances, evaluate, scores
from spatext_lab.evaluation.tasks import COUNT, MIN_AREA, layout_tasks, tasks
from spatext_lab.reco.pipeline import ReCoPipeline
from spatext_lab.reco.position_tokens import is_thin
from spatext_lab.reco.text_encoder import grow
from spatext_lab.scene import Region, Scene
from spatext_lab.scene.scene import box_at
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from tests.tiny import tiny_model

ONE_STEP = {"num_inference_steps": 1}
KEYS = {
    *("method", "protocol", "split", "scenes", "seed", "regions", "region_accuracy"),
    *("region_accuracy_seen", "region_accuracy_heldout", "frechet_distance"),
    *("passes", "seconds_per_image", "settings", "threads"),
}
SEGMENT_KEYS = {"local_iou", "global_distance", "local_distance"}
BOX_KEYS = {"ap_95", "ap50_95", "ap50_place_95", "scene_distance"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    place = tiny_model(tmp_path_factory.mktemp("model"))
    zoo.seal(place)
    return place


class Oracle(Judge):
    """Knows the truth of the images that it will be shown, changed by `spoil`."""

    def __init__(self, todo, spoil=lambda kinds, colours: (kinds, colours)) -> None:
        self.truth = {}
        for task in todo:
            maps = spoil(task.item.kind_map.astype(int), task.item.colour_map.astype(int))
            self.truth[task.item.image.tobytes()] = maps

    def __call__(self, images):
        pixels = ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        maps = [self.truth[np.ascontiguousarray(image).tobytes()] for image in pixels]
        return tuple(torch.from_numpy(np.stack(m)) for m in zip(*maps, strict=True))


def true_images(todo):
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
    """Without the scenes in which another object of the kind may touch the one asked for."""

    def alone(task) -> bool:
        others = [s for s in task.item.segments if all(s is not t for t in task.segments)]
        return not {s.label for s in task.segments} & {s.label for s in others}

    todo = [task for task in tasks(60) if alone(task)]
    report = scores(todo, true_images(todo), Oracle(todo))
    assert report["regions"] == sum(len(task.segments) for task in todo)
    for name in ("local_iou", "region_accuracy", "region_accuracy_seen", "region_accuracy_heldout"):
        assert report[name] == 1
        assert report[f"{name}_95"] == [1, 1]


def test_a_judge_that_sees_no_colours_leaves_the_stuff_right():
    todo = list(tasks(40))
    blind = Oracle(todo, lambda kinds, colours: (kinds, colours * 0))
    report = scores(todo, true_images(todo), blind)
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
    report = scores(todo, true_images(todo), judge)
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
    """A smoke test: that all entries are there and in their ranges."""
    settings = METHODS[method].settings and METHODS[method].settings | ONE_STEP
    report = evaluate(method, scenes=3, seed=2, model=str(root), settings=settings)
    by_boxes = METHODS[method].protocol == "boxes"
    assert report["protocol"] == ("boxes" if by_boxes else "segments")
    assert report.keys() >= KEYS | (BOX_KEYS if by_boxes else SEGMENT_KEYS)
    assert (report["method"], report["scenes"], report["seed"]) == (method, 3, 2)
    assert report["settings"] == settings
    for key in ("region_accuracy", *(("ap", "ap50") if by_boxes else ("local_iou",))):
        assert 0 <= report[key] <= 1
    for key in () if by_boxes else ("global_distance", "local_distance"):
        assert 0 <= report[key] <= 2
    assert report["frechet_distance"] > -1e-6
    regions = np.mean([len(task.scene.regions) for task in tasks(3, seed=2)])
    passes = {"multi-scale": 3, "true": None, "autoencoder": None}
    passes |= {"multidiffusion": 2 * (regions + 1), "layout-guidance": 5}
    assert report["passes"] == pytest.approx(passes.get(method, 2))
    assert report["seconds_per_image"] >= 0
    assert json.loads(json.dumps(report)) == report


def test_the_autoencoders_psnr_against_the_autoencoder(root):
    report = evaluate("autoencoder", scenes=3, model=str(root))
    vae = TextToImagePipeline.from_pretrained(root / "text-to-image").vae
    true = np.stack([task.item.image for task in tasks(3)])
    with torch.no_grad():
        images = torch.from_numpy(true).permute(0, 3, 1, 2) / 127.5 - 1
        decoded = vae.decoder(vae.encoder(images)).permute(0, 2, 3, 1).clamp(-1, 1).numpy()
    images = decoded / 2 + 0.5
    assert report["psnr_pooled"] == pytest.approx(psnr(images, true / 255), abs=0.006)
    each = [psnr(images[i], true[i] / 255) for i in range(3)]
    assert report["psnr"] == pytest.approx(sum(each) / 3, abs=0.006)


def test_a_damaged_model_is_refused_by_name(root, tmp_path):
    import shutil

    place = tmp_path / "model"
    shutil.copytree(root, place)
    name = "text-to-image/unet/diffusion_pytorch_model.safetensors"
    (place / name).write_bytes((place / name).read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        evaluate("text", scenes=1, model=str(place))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "magic"}, "method is 'magic'; there are spatext, multi-scale, "),
        ({"method": "true", "scenes": 0}, "scenes is 0; pass at least 1"),
        ({"method": "true", "protocol": "words"}, "protocol is 'words'; there are segments, boxes"),
        ({"method": "true", "protocol": "boxes", "masks": np.copy}, "masks are passed, .* 'boxes'"),
        ({"method": "reco", "masks": np.copy}, "masks are passed, but the protocol is 'boxes'"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate(**arguments)


# --- by boxes -------------------------------------------------------------------------------------


def test_a_judge_that_knows_the_truth_finds_true_images_in_their_boxes(monkeypatch):
    """Without the scenes in which an object may hide another, or touch one of its kind."""

    def apart(task) -> bool:
        masks = [segment.mask for segment in task.segments]
        boxes = [box_at(region.box, 64, 64) for region in task.scene.regions]
        others = [sum(b[mask].any() for b in boxes) for mask in masks]
        return others == [1] * len(masks)

    todo = [task for task in layout_tasks(60) if apart(task)]
    assert len(todo) > 10
    monkeypatch.setattr(reports, "layout_tasks", lambda count, split: todo[:count])
    monkeypatch.setattr(Judge, "from_pretrained", lambda folder: Certain(todo))
    report = evaluate("true", scenes=10, protocol="boxes")
    assert report["regions"] == sum(len(task.segments) for task in todo[:10])
    assert report["region_accuracy"] == report["ap50"] == report["ap"] == 1
    assert report["region_accuracy_95"] == [1, 1]
    assert abs(report["frechet_distance"]) < 1e-4
    assert abs(report["scene_distance"]) < 1e-4


class Certain(Oracle):
    """Knows the truth, and is sure of it."""

    def logits(self, images):
        kinds, colours = self(images)
        pairs = ((kinds, len(LABELS)), (colours, len(COLOURS) + 1))
        return tuple(50.0 * one_hot(seen, n).permute(0, 3, 1, 2) for seen, n in pairs)


def test_true_images_by_boxes_with_the_shipped_judge():
    """The ceiling that the judge sets."""
    report = evaluate("true", scenes=24, protocol="boxes")
    assert (report["protocol"], report["scenes"], report["passes"]) == ("boxes", 24, None)
    assert report["regions"] == sum(len(task.scene.regions) for task in layout_tasks(24))
    assert report["region_accuracy"] > 0.85
    assert report["ap50"] > 0.85
    assert report["ap"] <= report["ap50"]
    assert abs(report["scene_distance"]) < 1e-4


def test_a_protocol_can_be_chosen_for_any_method(root):
    boxes = evaluate("text", scenes=2, model=str(root), settings=ONE_STEP, protocol="boxes")
    segments = evaluate("reco", scenes=2, model=str(root), settings=ONE_STEP, protocol="segments")
    assert (boxes["protocol"], segments["protocol"]) == ("boxes", "segments")
    assert boxes.keys() >= BOX_KEYS
    assert not boxes.keys() & SEGMENT_KEYS
    assert segments.keys() >= SEGMENT_KEYS
    assert not segments.keys() & BOX_KEYS
    assert boxes["regions"] == sum(len(task.segments) for task in layout_tasks(2))


def test_boxes_thinner_than_a_bin_are_sampled_without_and_asked_for(root, tmp_path):
    """With 3 bins, edges at 0, 1/2 and 1: most boxes of the scenes are thinner than that."""
    base = TextToImagePipeline.from_pretrained(root / "text-to-image")
    grown = grow(base.text_encoder, base.tokenizer, 3, 154)
    ReCoPipeline(base.unet, base.vae, *grown, base.scheduler).save_pretrained(tmp_path)
    model, todo = ReCoPipeline.from_pretrained(tmp_path), list(layout_tasks(4))
    with pytest.raises(ValueError, match="thinner than one of 3 bins"):
        model([task.scene for task in todo], **ONE_STEP)
    kept = [[r for r in t.scene.regions if not is_thin(r.box, 3)] for t in todo]
    assert 0 < sum(map(len, kept)) < sum(len(task.scene.regions) for task in todo)
    scenes = [Scene(t.scene.caption, some) for t, some in zip(todo, kept, strict=True)]
    want = model(scenes, seed=5, **ONE_STEP).images
    got = METHODS["reco"].load(str(tmp_path), ONE_STEP)(todo, 5)
    assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))
    report = evaluate("reco", scenes=4, model=str(tmp_path), settings=ONE_STEP)
    assert report["regions"] == sum(len(task.scene.regions) for task in todo)


def test_reco_with_the_caption_alone_ignores_the_boxes(root):
    model, todo = ReCoPipeline.from_pretrained(root / "reco"), list(layout_tasks(3))
    bare = model([Scene(task.scene.caption) for task in todo], seed=5, **ONE_STEP).images
    whole = model([task.scene for task in todo], seed=5, **ONE_STEP).images
    got = METHODS["reco-caption"].load(str(root), ONE_STEP)(todo, 5)
    for mine, want, other in zip(got, bare, whole, strict=True):
        assert np.array_equal(mine, want)
        assert not np.array_equal(mine, other)


# --- distances ------------------------------------------------------------------------------------


@torch.no_grad()
def test_distances_against_a_loop():
    clip = Clip.from_pretrained(zoo.folder("pocket", "spatext/clip"))
    todo = list(tasks(5, split="val"))
    images = [Image.fromarray(task.item.image) for task in reversed(todo)]  # the wrong ones
    found = distances(todo, images, clip)
    whole, local, clouds, true = [], [], [], []
    for task, image in zip(todo, images, strict=True):
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
        real = torch.from_numpy(task.item.image.copy()).permute(2, 0, 1) / 255
        clouds.append(clip.encode_images(pixels[None])[0].numpy())
        true.append(clip.encode_images(real[None])[0].numpy())
        whole.append(1 - clip.encode_text([task.item.captions[0]])[0].numpy() @ clouds[-1])
        for segment in task.segments:
            crop = segment_crop(pixels, torch.from_numpy(segment.mask.copy()), 32)
            vector = clip.encode_images(crop[None])[0].numpy()
            local.append(1 - clip.encode_text([segment.text])[0].numpy() @ vector)
    assert found["global_distance"] == pytest.approx(np.mean(whole), abs=1e-4)
    assert found["local_distance"] == pytest.approx(np.mean(local), abs=1e-4)
    assert abs(found["frechet_distance"]) < 1e-4  # the same images in another order
    right = distances(todo, [Image.fromarray(task.item.image) for task in todo], clip)
    assert right["global_distance"] < found["global_distance"]
    assert right["local_distance"] < found["local_distance"]


def test_true_vectors_are_those_of_the_true_segments(root):
    """Against the sampling loop, by hand, on the training map of the same segments."""
    (task,) = tasks(1, split="val")
    pipeline = SpaTextPipeline.from_pretrained(root / "spatext")
    image = torch.from_numpy(task.item.image.copy()).permute(2, 0, 1)[None] / 255
    masks = torch.from_numpy(np.stack([s.mask for s in task.segments]))
    with torch.no_grad():
        vectors = torch.cat([pipeline.clip.encode_segments(image, mask[None]) for mask in masks])
    cover = masks.float().view(-1, 16, 4, 16, 4).mean((2, 4))
    st_map = torch.einsum("kd,khw->dhw", vectors, cover)[None]
    condition = replace(pipeline.condition([task.scene]), st_map=st_map)
    denoiser, noise = guided(UNetDenoiser(pipeline.unet), 2.0), initial_noise([3], (4, 16, 16))
    with torch.no_grad():
        *_, last = sample(denoiser, pipeline.scheduler, noise, condition, 2)
    (want,) = pipeline.decode(last.x_0)
    settings = {"num_inference_steps": 2, "guidance_scale": 2.0}
    (got,) = METHODS["true-vectors"].load(str(root), settings)([task], 3)
    assert np.abs(np.asarray(got).astype(int) - np.asarray(want)).max() <= 1


def test_of_corrupted_masks_the_smaller_are_on_top():
    """A backdrop's box covers its objects' boxes; none of these may vanish from the map."""
    hidden = 0
    for task in tasks(40):
        boxes = task.corrupted(boxed)
        for region, segment in zip(boxes.scene.regions, boxes.segments, strict=True):
            assert region.text == segment.text
            assert np.array_equal(region.mask, boxed(segment.mask))
        assert {id(each) for each in boxes.segments} == {id(each) for each in task.segments}
        sizes = [region.mask.sum() for region in boxes.scene.regions]
        assert sizes == sorted(sizes, reverse=True)
        seen = boxes.scene.visible_masks(64, 64)
        assert seen.any((1, 2)).all()
        as_asked = [Region(r.text, mask=boxed(r.mask)) for r in task.scene.regions]
        hidden += (~Scene("", as_asked).visible_masks(64, 64).any((1, 2))).sum()
    assert hidden > 3


def test_corrupted_masks_reach_the_scores():
    everything = evaluate("true", scenes=4, masks=lambda mask: np.ones_like(mask))
    exact = evaluate("true", scenes=4)
    assert everything["local_iou"] < 0.6 < exact["local_iou"]
