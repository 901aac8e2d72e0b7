# SPDX-License-Identifier: Apache-2.0
"""Damaged COCO folders: each fault is named in the report, the rest is read, nothing crashes."""

import copy
import json
import random

import msgspec
import numpy as np
import pytest
from PIL import Image

from spatext_lab.datasets.coco import read_coco
from spatext_lab.datasets.coco.records import CaptionRecord, decoded

ALL = {"regions": (1, 20), "min_area": 0.0, "licences": None}
OUTSIDE = "file_name leads out of its folder"
SQUARE = [[2, 2, 12, 2, 12, 12, 2, 12]]
FIRST = "000000000001.png"


def edit(root, kind, change):
    path = root / "annotations" / f"{kind}_val2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def resize(path):
    Image.open(path).resize((32, 64), Image.Resampling.NEAREST).save(path)


def on_file(work, *folders):
    return lambda root: work(root.joinpath(*folders, FIRST))


def on_json(kind, change):
    return lambda root: edit(root, kind, change)


PNGS = ("annotations", "panoptic_val2017")
IMAGE_FAULTS = {
    "image file is corrupt": on_file(truncate, "val2017"),
    "image file is missing": on_file(lambda path: path.unlink(), "val2017"),
    "image has another size than its annotation says": on_file(resize, "val2017"),
    "panoptic PNG is corrupt": on_file(truncate, *PNGS),
    "panoptic PNG is missing": on_file(lambda path: path.unlink(), *PNGS),
    "panoptic PNG has another size than its annotation says": on_file(resize, *PNGS),
    "no caption": on_json("captions", lambda c: c.update(annotations=c["annotations"][5:])),
    "broken panoptic record: object missing required field file_name": on_json(
        "panoptic", lambda c: c["annotations"][0].pop("file_name")
    ),
    "too few regions, fewer than 1": on_json(
        "panoptic", lambda c: c["annotations"][0].update(segments_info=[])
    ),
    "licence 3 was not asked for": on_json("instances", lambda c: c["images"][0].update(license=3)),
}


@pytest.mark.parametrize("reason", IMAGE_FAULTS)
def test_an_image_that_cannot_be_used_is_named(pocket_coco, pocket_items, reason):
    IMAGE_FAULTS[reason](pocket_coco)
    subset = read_coco(pocket_coco, "val", regions=(1, 20), min_area=0.0)
    assert subset.report.images == {reason: [FIRST]}
    assert [item.image_id for item in subset.items] == list(range(2, len(pocket_items) + 1))
    assert f"1  {reason}: {FIRST}" in subset.report.text()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"height": "64"}, "broken image record: height: expected int, got str"),
        ({"height": 64.5}, "broken image record: height: expected int, got float"),
        ({"width": 10**9}, "broken image record: width: expected int <= 16384"),
        ({"width": 0}, "broken image record: width: expected int >= 1"),
        ({"width": 10**400}, "broken image record: width: expected int <= 16384"),
        ({"file_name": "../secret.png"}, f"broken image record: {OUTSIDE}"),
        ({"file_name": "/secret.png"}, f"broken image record: {OUTSIDE}"),
        ({"file_name": "a\\..\\..\\secret.png"}, f"broken image record: {OUTSIDE}"),
        ({"file_name": "C:/secret.png"}, f"broken image record: {OUTSIDE}"),
        ({"file_name": 7}, "broken image record: file_name: expected str, got int"),
        ({"license": "4"}, "broken image record: license: expected int | null, got str"),
        ({"id": None}, "broken image record: id: expected int, got null"),
        ({"id": 2}, "image id used twice"),
    ],
)
def test_a_broken_image_record_costs_one_image(pocket_coco, pocket_items, change, reason):
    edit(pocket_coco, "instances", lambda c: c["images"][0].update(change))
    subset = read_coco(pocket_coco, "val", **ALL)
    assert len(subset.report.images[reason]) == 1
    assert len(subset.items) == len(pocket_items) - 1


BLANK = "expected a text, got a blank one or broken Unicode"
ANNOTATION_FAULTS = [
    ("crowd", {"iscrowd": 1, "segmentation": {"size": [20, 30], "counts": [600]}}),
    ("broken polygon or RLE", {"segmentation": [[1, 2, 3, 4]]}),
    ("broken polygon or RLE", {"segmentation": {"size": [30, 20], "counts": [600]}}),
    ("mask has no pixel", {"segmentation": {"size": [20, 30], "counts": [600]}}),
    ("broken annotation: category_id: expected int, got array", {"category_id": []}),
    ("broken annotation: category_id: expected int, got str", {"category_id": "1"}),
    ("broken annotation: id: expected int, got str", {"id": "4"}),
    (f"broken annotation: text: {BLANK}", {"text": " "}),
    (f"broken annotation: text: {BLANK}", {"text": "\ud800"}),
    ("broken annotation: iscrowd: expected bool | int | null, got str", {"iscrowd": "0"}),
    ("unknown category", {"category_id": 9}),
    ("annotation of an unknown image", {"image_id": 8}),
    ("broken annotation: image_id: expected int, got null", {"image_id": None}),
    ("broken annotation: image_id: expected int, got str", {"image_id": "7"}),
    ("smaller than the minimum area", {"segmentation": [[0, 0, 3, 0, 3, 2, 0, 2]]}),
    ("covered by smaller regions", {"segmentation": [[2, 2, 12.4, 2, 12.4, 13, 2, 13]]}),
]


@pytest.mark.parametrize(("reason", "fault"), ANNOTATION_FAULTS)
def test_an_annotation_that_cannot_be_used_is_named(hand_made, reason, fault):
    root = hand_made(20, 30, [{"segmentation": SQUARE}, {"segmentation": SQUARE} | fault])
    subset = read_coco(root, "val")
    name = {8: "image 8", 7: "7.png"}.get(fault.get("image_id", 7), "?")
    number = 2 if "id" not in fault else -1
    assert subset.report.annotations == {reason: [(name, number)]}
    assert [region.annotation for region in subset.items[0].regions] == [1]
    assert f"1  {reason}: {number} in {name}" in subset.report.text()


def test_of_too_many_regions_the_largest_are_kept(hand_made):
    shapes = [[[0, 0, 4, 0, 4, h, 0, h]] for h in (9, 12, 10, 11)]
    moved = [[[x + 6 * i * (k % 2 == 0) for k, x in enumerate(s[0])]] for i, s in enumerate(shapes)]
    subset = read_coco(hand_made(20, 30, [{"segmentation": s} for s in moved]), "val")
    assert [region.annotation for region in subset.items[0].regions] == [2, 4, 3]
    assert subset.report.annotations == {"more regions than asked for": [("7.png", 1)]}


def test_panoptic_ids_that_the_png_lacks_are_named(pocket_coco):
    number = 0x123456

    def change(content):
        content["annotations"][0]["segments_info"][0]["id"] = number

    edit(pocket_coco, "panoptic", change)
    subset = read_coco(pocket_coco, "val", **ALL)
    assert subset.report.annotations == {"panoptic id absent from the PNG": [(FIRST, number)]}
    assert len(subset.items) == 6


def test_a_broken_caption_is_named_and_the_next_one_speaks(pocket_coco, pocket_items):
    edit(pocket_coco, "captions", lambda c: c["annotations"][0].update(caption=None))
    subset = read_coco(pocket_coco, "val", **ALL)
    assert subset.report.annotations == {
        "broken caption: caption: expected str, got null": [(FIRST, 1)]
    }
    assert subset.items[0].captions == pocket_items[0].captions[1:]


def test_half_characters_and_blanks_are_no_captions():
    texts = ("a café \U0001f600", " a dog\n", "half \ud800", " \n", "", None, 3)
    rows = [msgspec.Raw(json.dumps({"image_id": 1, "caption": t}).encode()) for t in texts]
    found = [getattr(record, "caption", None) for record, _ in decoded(rows, CaptionRecord)]
    assert found == [*texts[:2], None, None, None, None, None]


def test_images_are_decoded_only_if_asked(pocket_coco):
    truncate(pocket_coco / "val2017" / FIRST)
    subset = read_coco(pocket_coco, "val", **ALL, check_images=False)
    assert len(subset.items) == 6
    with pytest.raises(OSError, match=r".+"):
        subset.items[0].image()


@pytest.mark.parametrize("kind", ["instances", "captions", "panoptic"])
def test_annotation_files_truncated_or_not_json_are_refused_by_name(pocket_coco, kind):
    path = pocket_coco / "annotations" / f"{kind}_val2017.json"
    text = path.read_bytes()
    for broken in (text[:-20], text[:200], b"", b"<html>", text + b"}", b"\xff" + text):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=rf"{kind}_val2017\.json is not whole JSON"):
            read_coco(pocket_coco, "val")


def test_missing_folders_and_files_are_refused_with_the_layout(pocket_coco, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a folder: the official layout"):
        read_coco(tmp_path / "nowhere", "val")
    with pytest.raises(
        FileNotFoundError, match=r"instances_train2017\.json is missing.*ROOT/train"
    ):
        read_coco(pocket_coco, "train")
    (pocket_coco / "annotations" / "captions_val2017.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"captions_val2017\.json is missing"):
        read_coco(pocket_coco, "val")
    (pocket_coco / "annotations" / "instances_val2017.json").write_text("[1, 2]")
    with pytest.raises(
        ValueError, match=r"val2017\.json is not a COCO annotation file: expected object"
    ):
        read_coco(pocket_coco, "val")


JUNK = (None, -1, 0, 2.5, 10**30, 1e300, "", "x", "../x", "\ud800", [], [[]], {}, [None], True)


def places(node, path=()):
    """The path of every value in a JSON document."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in pairs:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def read_or_none(root, name):
    """What is read, or None if the file of this name was refused by name."""
    try:
        return read_coco(root, "val", **ALL)
    except ValueError as error:
        if name in str(error):
            return None
        raise


@pytest.mark.parametrize("kind", ["instances", "captions", "panoptic"])
def test_junk_anywhere_never_crashes_and_every_image_is_accounted_for(pocket_coco, kind):
    path = pocket_coco / "annotations" / f"{kind}_val2017.json"
    truth = json.loads(path.read_text())
    everywhere = list(places(truth))
    rng = random.Random(0)
    if kind == "instances":  # which are read only where panoptic annotations are absent
        (pocket_coco / "annotations" / "panoptic_val2017.json").unlink()
    read = 0
    for _ in range(40):
        content = copy.deepcopy(truth)
        *parents, last = rng.choice(everywhere)
        node = content
        for key in parents:
            node = node[key]
        node[last] = rng.choice(JUNK)
        path.write_text(json.dumps(content))
        subset = read_or_none(pocket_coco, path.name)
        if subset is None:
            continue
        read += 1
        left = sum(len(names) for names in subset.report.images.values())
        assert subset.report.found == len(subset.items) + left
        for item in subset.items:
            masks = np.array([region.mask for region in item.scene.regions])
            assert (masks.sum(axis=0) <= 1).all()
        assert subset.report.text()
    assert read > 20
