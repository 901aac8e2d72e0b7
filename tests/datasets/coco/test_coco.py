# SPDX-License-Identifier: Apache-2.0
"""Reading COCO, against json.load, pycocotools, the rendered truth and slow loops."""

import csv
import json
import tracemalloc
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest
from PIL import Image

from spatext_lab.datasets.coco import masks as coco_masks
from spatext_lab.datasets.coco import read_coco
from spatext_lab.datasets.coco.names import region_text
from spatext_lab.datasets.coco.records import InstanceRecord, decoded, read_file
from tests.photos import MINI, photo_folder

needs_mini = pytest.mark.skipif(
    not (MINI / "annotations").is_dir(),
    reason="no real COCO photos here: set SPATEXT_COCO_MINI to a COCO 2017 folder",
)
ALL = {"regions": (1, 20), "min_area": 0.0}


def rectangle(x0, y0, x1, y1):
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def official(path):
    """pycocotools' own reader, which prints."""
    from pycocotools.coco import COCO

    with redirect_stdout(StringIO()):
        return COCO(str(path))


def content_of(scene):
    return sorted((region.text, region.mask.tobytes()) for region in scene.regions)


def test_pocket_scenes_come_back_as_they_were_rendered(pocket_coco, pocket_items, capsys):
    subset = read_coco(pocket_coco, "val", **ALL)
    assert len(subset.items) == len(pocket_items)
    for item, rendered in zip(subset.items, pocket_items, strict=True):
        assert item.captions == rendered.captions
        assert item.scene.caption == rendered.scene.caption
        assert content_of(item.scene) == content_of(rendered.scene)
        assert item.scene == item.scene
        np.testing.assert_array_equal(np.asarray(item.image()), rendered.image)
        pixels, scene = item.square(64)  # already that size: nothing may change
        np.testing.assert_array_equal(pixels, rendered.image)
        assert scene == item.scene
    assert capsys.readouterr().out == ""


def test_without_panoptic_annotations_the_instances_are_read(pocket_coco, pocket_items):
    (pocket_coco / "annotations" / "panoptic_val2017.json").unlink()
    for item, rendered in zip(
        read_coco(pocket_coco, "val", **ALL).items, pocket_items, strict=True
    ):
        things = sorted((s.text, s.mask.tobytes()) for s in rendered.segments if s.is_thing)
        assert content_of(item.scene) == things


def test_smaller_regions_lie_over_larger_ones(hand_made):
    shapes = [rectangle(2, 2, 8, 8), rectangle(0, 0, 20, 10), rectangle(4, 0, 18, 9)]
    root = hand_made(12, 24, [{"segmentation": s} for s in shapes])
    (item,) = read_coco(root, "val").items
    owner = np.zeros((12, 24), int)  # a slow loop over pixels, small over large
    for y in range(12):
        for x in range(24):
            inside = [k for k in (1, 2, 0) if _holds(shapes[k][0], x, y)]
            owner[y, x] = inside[-1] + 1 if inside else 0
    assert [region.annotation for region in item.regions] == [2, 3, 1]
    for region, mask in zip(item.regions, item.scene.visible_masks(12, 24), strict=True):
        np.testing.assert_array_equal(mask, owner == region.annotation)
    assert item.scene.caption == "a dog and a cat"


def _holds(polygon, x, y):
    xs, ys = polygon[::2], polygon[1::2]
    return min(xs) <= x < max(xs) and min(ys) <= y < max(ys)


def test_the_square_is_cropped_from_the_centre_and_loses_what_lies_outside(hand_made):
    shapes = [rectangle(0, 0, 18, 40), rectangle(33, 5, 52, 30), rectangle(56, 24, 66, 40)]
    root = hand_made(40, 80, [{"segmentation": s} for s in shapes])
    subset = read_coco(root, "val")
    (item,) = subset.items
    pixels, scene = item.square(10)
    whole = item.scene.visible_masks(40, 80)[1:, :, 20:60]  # regions by size: the first is outside
    blocks = whole.reshape(2, 10, 4, 10, 4).sum(axis=(2, 4))
    np.testing.assert_array_equal(scene.visible_masks(10, 10), (blocks > 8)[[0]])
    assert blocks[1].max() > 8  # the third is there, yet below 5 % of the square
    assert pixels.shape == (10, 10, 3)
    means = np.linspace(0, 255, 80)[20:60].reshape(10, 4).mean(axis=1)
    np.testing.assert_allclose(pixels[:, 2:-2, 1], np.tile(means[2:-2], (10, 1)), atol=3)
    for _ in range(2):  # a second pass must not count twice
        assert [s for _, _, s in subset.squares(10)] == [scene]
        assert subset.report.annotations["too small in the 10 x 10 square"] == [
            ("7.png", 1),
            ("7.png", 3),
        ]


def test_an_item_without_a_region_in_its_square_is_counted(hand_made):
    root = hand_made(40, 80, [{"segmentation": rectangle(0, 0, 18, 40)}])
    subset = read_coco(root, "val")
    with pytest.raises(ValueError, match="1 x no region in the 16 x 16 square"):
        list(subset.squares(16))
    assert subset.report.images == {"no region in the 16 x 16 square": ["7.png"]}
    assert subset.items[0].square(16)[1].regions == ()


@pytest.mark.parametrize("size", [1, 7, 16, 90])
def test_square_masks_are_disjoint_at_every_size(size):
    left = np.arange(60)[None, :].repeat(41, axis=0) % 2 == 0  # fractions of exactly one half
    masks = coco_masks.square_masks([left, ~left], size)
    assert not (masks[0] & masks[1]).any()


def test_limit_and_seed_choose_the_same_images_each_time(pocket_coco):
    def names(**choice):
        return [i.file_name for i in read_coco(pocket_coco, "val", **choice).items]

    everything = names()
    chosen = [names(limit=3, seed=seed) for seed in range(8)]
    assert chosen == [names(limit=3, seed=seed) for seed in range(8)]
    assert all(len(c) == 3 and sorted(c) == c and set(c) <= set(everything) for c in chosen)
    assert len({tuple(c) for c in chosen}) > 3
    report = read_coco(pocket_coco, "val", limit=3).report
    assert report.counts()["not needed, the limit was reached"] == len(everything) - 3


def test_the_limit_is_filled_with_sound_images(pocket_coco):
    for path in sorted((pocket_coco / "val2017").iterdir())[:3]:
        path.write_bytes(path.read_bytes()[:300])
    subset = read_coco(pocket_coco, "val", limit=3)
    assert [item.image_id for item in subset.items] == [4, 5, 6]


def test_area_number_category_and_licence_choose_regions(pocket_coco, pocket_items):
    subset = read_coco(pocket_coco, "val", min_area=0.2, regions=(2, 2), categories=["sea", "sand"])
    beaches = [i for i in pocket_items if i.segments[0].label == "sea"]
    assert len(subset.items) == len(beaches) > 0
    for item, rendered in zip(subset.items, beaches, strict=True):
        assert {r.text for r in item.scene.regions} == {s.text for s in rendered.segments[:2]}
        assert all(region.mask.mean() >= 0.2 for region in item.scene.regions)
    report = read_coco(pocket_coco, "val", licences=(1, 7)).report
    assert report.counts() == {"licence 4 was not asked for": len(pocket_items)}
    largest = read_coco(pocket_coco, "val", regions=(1, 1)).items
    for item, rendered in zip(largest, pocket_items, strict=True):
        assert item.scene.regions[0].mask.sum() == max(s.mask.sum() for s in rendered.segments)


@pytest.mark.parametrize(
    ("category", "text"),
    [
        ("dog", "a dog"),
        ("umbrella", "an umbrella"),
        ("apple", "an apple"),
        ("hour glass", "an hour glass"),
        ("unicycle", "a unicycle"),
        ("scissors", "scissors"),
        ("skis", "skis"),
        ("stairs", "stairs"),
        ("bus", "a bus"),
        ("wine glass", "a wine glass"),
        ("tennis racket", "a tennis racket"),
        ("traffic_light", "a traffic light"),
        ("wall-other-merged", "a wall"),
        ("floor-wood", "a wood floor"),
        ("ceiling-tile", "a tile ceiling"),
        ("door-stuff", "a door"),
        ("window-blind", "a window blind"),
        ("grass-merged", "grass"),
        ("floor-lamp", "a floor-lamp"),
        ("wall-clock", "a wall-clock"),
        ("stuff-sack", "a stuff-sack"),
        ("t-shirt", "a t-shirt"),
        ("other", "an other"),
    ],
)
def test_categories_become_texts_that_a_caption_would_have(category, text):
    assert region_text(category) == text


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"split": "train2017"}, 'split is \'train2017\': write "train" or "val"'),
        ({"min_area": 5}, "min_area is 5: write a fraction"),
        ({"regions": (3, 1)}, r"regions is \(3, 1\): write \(least, most\)"),
        ({"regions": (0, 0)}, "regions"),
        ({"limit": 0}, "limit is 0"),
        ({"categories": ["moom"]}, "categories has 'moom'.*moon"),
    ],
)
def test_wrong_arguments_are_refused_with_the_right_form(pocket_coco, wrong, message):
    with pytest.raises(ValueError, match=message):
        read_coco(pocket_coco, **({"split": "val"} | wrong))


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """2 MB of annotations, of which two images are under a free licence."""
    root = tmp_path_factory.mktemp("big")
    (root / "annotations").mkdir()
    (root / "val2017").mkdir()
    rng = np.random.default_rng(0)
    images = [
        {"id": i, "file_name": f"{i}.png", "height": 48, "width": 64, "license": 1 + 3 * (i < 2)}
        for i in range(300)
    ]
    for image in images[:2]:
        Image.new("RGB", (64, 48)).save(root / "val2017" / image["file_name"])
    annotations = []
    for i in range(3000):
        x, y, w, h = (round(float(v), 2) for v in rng.uniform((0, 0, 9, 9), (40, 30, 24, 18)))
        shape = rectangle(x, y, x + w, y + h) * 8  # as long as COCO's outlines
        area, owner = w * h, i % 300
        annotations.append(
            {"segmentation": shape, "area": area, "image_id": owner, "category_id": 1, "id": i}
        )
    captions = [{"id": i, "image_id": i, "caption": f"image {i}"} for i in range(300)]
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": 1, "name": "dog"}]
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    text = json.dumps({"annotations": captions})
    (root / "annotations" / "captions_val2017.json").write_text(text)
    return root


def peak_of(work):
    tracemalloc.start()
    try:
        found = work()
        return found, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_big_file_is_read_in_little_memory_and_completely(big):
    path = big / "annotations" / "instances_val2017.json"
    size = path.stat().st_size
    assert size > 1.9e6
    truth = json.loads(path.read_text())["annotations"]  # takes six times the file's size
    rows = read_file(path)["annotations"]
    assert [json.loads(bytes(row)) for row in rows] == truth
    ids = [(record.id, record.image_id) for record, _ in decoded(rows, InstanceRecord)]
    assert ids == [(row["id"], row["image_id"]) for row in truth]
    subset, reading = peak_of(lambda: read_coco(big, "val", min_area=0.0, regions=(1, 99)))
    assert reading < 0.4 * size
    kept = [r.annotation for item in subset.items for r in item.regions]
    covered = [a for _, a in subset.report.annotations.get("covered by smaller regions", [])]
    assert sorted(kept + covered) == sorted(i for i in range(3000) if i % 300 < 2)
    assert subset.report.counts()["licence 1 was not asked for"] == 298


@needs_mini
@pytest.mark.parametrize("split", ["train", "val"])
def test_real_photos_agree_with_pycocotools(split):
    coco = official(MINI / "annotations" / f"instances_{split}2017.json")
    subset = read_coco(MINI, split, licences=None)
    assert subset.report.found == len(coco.imgs)
    left = sum(len(names) for names in subset.report.images.values())
    assert len(subset.items) + left == len(coco.imgs)
    assert len(subset.items) > 10
    for item in subset.items:
        assert item.image().size == item.size[::-1]
        masks = [region.mask for region in item.scene.regions]
        assert (np.sum(masks, axis=0) <= 1).all()
        assert all(mask.mean() >= 0.05 for mask in masks)
        if item.image_id == 39769:
            continue  # panoptic, below
        for region, mask in zip(item.regions, masks, strict=True):
            whole = coco.annToMask(coco.anns[region.annotation]).astype(bool)
            assert not (mask & ~whole).any()
            if len(masks) == 1 and item.file_name not in _covered(subset):
                np.testing.assert_array_equal(mask, whole)


def _covered(subset):
    return {name for name, _ in subset.report.annotations.get("covered by smaller regions", [])}


@needs_mini
def test_a_real_panoptic_image_is_read_by_its_ids():
    subset = read_coco(MINI, "val", regions=(1, 20), min_area=0.0)
    (item,) = (item for item in subset.items if item.image_id == 39769)
    rgb = Image.open(MINI / "annotations" / "panoptic_val2017" / "000000039769.png").convert("RGB")
    pixels = list(rgb.get_flattened_data() if hasattr(rgb, "get_flattened_data") else rgb.getdata())
    ids = np.array([r + 256 * g + 65536 * b for r, g, b in pixels]).reshape(item.size)
    content = json.loads((MINI / "annotations" / "panoptic_val2017.json").read_text())
    areas = {s["id"]: s["area"] for s in content["annotations"][0]["segments_info"]}
    assert {region.annotation for region in item.regions} == set(areas)
    for region, in_scene in zip(item.regions, item.scene.regions, strict=True):
        np.testing.assert_array_equal(in_scene.mask, ids == region.annotation)
        assert in_scene.mask.sum() == areas[region.annotation]
    texts = [region.text for region in item.regions]
    assert texts.count("a cat") == 2
    assert "a couch" in texts


@needs_mini
def test_real_crowds_are_named_and_every_photo_is_credited():
    with (MINI / "ATTRIBUTION.csv").open() as file:
        truth = {int(row["image_id"]): row for row in csv.DictReader(file)}
    for split in ("train", "val"):
        coco = official(MINI / "annotations" / f"instances_{split}2017.json")
        report = (subset := read_coco(MINI, split)).report
        crowds = {a["id"] for a in coco.anns.values() if a["iscrowd"]}
        named = {annotation for _, annotation in report.annotations["crowd"]}
        gone = {name for names in report.images.values() for name in names}
        assert named <= crowds
        for annotation in crowds - named:  # its image has no caption, which was seen first
            assert coco.imgs[coco.anns[annotation]["image_id"]]["file_name"] in gone
        for item in subset.items:
            assert item.credit.licence == truth[item.image_id]["licence"]
            assert item.credit.source_url == truth[item.image_id]["flickr_url"]
            assert item.licence == int(truth[item.image_id]["licence_id"])
        assert len(report.credits_text().splitlines()) == len(subset.items)


def test_photos_without_captions_or_regions_are_kept_on_demand(tmp_path):
    """Of four photos one has no region, one no caption; a scene without a caption has "" for it."""
    root = photo_folder(tmp_path / "photos")
    kept = {
        asked: [item.image_id for item in read_coco(root, "train", **dict(asked)).items]
        for asked in (
            (),
            (("captions", False),),
            (("regions", (0, 3)),),
            (("captions", False), ("regions", (0, 3))),
        )
    }
    assert list(kept.values()) == [[0, 1], [0, 1, 3], [0, 1, 2], [0, 1, 2, 3]]
    bare = read_coco(root, "train", captions=False).items[-1]
    assert (bare.scene.caption, len(bare.scene.regions)) == ("", 2)
