# SPDX-License-Identifier: Apache-2.0
"""The written COCO folder, read by pycocotools and by hand."""

import json
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from spatext_lab.datasets.coco import write_coco
from spatext_lab.datasets.coco.masks import panoptic_ids
from spatext_lab.datasets.pocket import KINDS, LABELS, pocket_item

SHIPPED = Path(__file__).parents[3] / "data" / "pocket-coco"


def load(root, kind):
    return json.loads((root / "annotations" / f"{kind}_val2017.json").read_text())


def test_pycocotools_reads_the_instances(pocket_coco, pocket_items):
    with redirect_stdout(StringIO()):
        coco = COCO(str(pocket_coco / "annotations" / "instances_val2017.json"))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(KINDS)
    assert sorted(coco.imgs) == list(range(1, len(pocket_items) + 1))
    for number, item in enumerate(pocket_items, start=1):
        found = coco.loadAnns(coco.getAnnIds(imgIds=[number], iscrowd=False))
        things = [segment for segment in item.segments if segment.is_thing]
        assert [a["text"] for a in found] == [segment.text for segment in things]
        for annotation, segment in zip(found, things, strict=True):
            np.testing.assert_array_equal(coco.annToMask(annotation), segment.mask)
            assert annotation["area"] == coco_mask.area(coco.annToRLE(annotation))
            assert annotation["bbox"] == coco_mask.toBbox(coco.annToRLE(annotation)).tolist()
            assert coco.cats[annotation["category_id"]]["name"] == segment.label


def test_pycocotools_reads_the_captions(pocket_coco, pocket_items):
    with redirect_stdout(StringIO()):
        coco = COCO(str(pocket_coco / "annotations" / "captions_val2017.json"))
    for number, item in enumerate(pocket_items, start=1):
        found = coco.loadAnns(coco.getAnnIds(imgIds=[number]))
        assert tuple(a["caption"] for a in found) == item.captions
    assert len(coco.anns) == 5 * len(pocket_items)


def test_the_panoptic_png_holds_every_segment_under_its_id(pocket_coco, pocket_items):
    content = load(pocket_coco, "panoptic")
    categories = {c["id"]: c for c in content["categories"]}
    assert [categories[i + 1]["name"] for i in range(len(LABELS))] == list(LABELS)
    for annotation, item in zip(content["annotations"], pocket_items, strict=True):
        path = pocket_coco / "annotations" / "panoptic_val2017" / annotation["file_name"]
        red, green, blue = (np.asarray(c, np.int64) for c in Image.open(path).split())
        ids = red + 256 * green + 65536 * blue
        infos = annotation["segments_info"]
        assert sorted(info["id"] for info in infos) == np.unique(ids).tolist()
        for info, segment in zip(infos, item.segments, strict=True):
            np.testing.assert_array_equal(ids == info["id"], segment.mask)
            assert info["area"] == segment.mask.sum()
            assert info["text"] == segment.text
            assert categories[info["category_id"]]["name"] == segment.label
            assert categories[info["category_id"]]["isthing"] == segment.is_thing


def test_any_mix_of_segments_gets_ids_of_its_own(tmp_path, pocket_items):
    first = pocket_items[0]
    rows = np.eye(64, dtype=bool)  # 64 segments of a row each: all labels, most of them three times
    segments = tuple(
        replace(first.segments[0], label=LABELS[i % len(LABELS)], mask=np.tile(row[:, None], 64))
        for i, row in enumerate(rows)
    )
    write_coco(tmp_path, "val", [replace(first, segments=segments)])
    infos = load(tmp_path, "panoptic")["annotations"][0]["segments_info"]
    assert len({info["id"] for info in infos} - {0}) == 64
    ids = panoptic_ids(tmp_path / "annotations" / "panoptic_val2017" / "000000000001.png")
    assert ids[:, 0].tolist() == [info["id"] for info in infos]


def test_writing_twice_gives_the_same_bytes(tmp_path, pocket_items):
    for name in ("one", "two", "two"):  # the second time over what is there
        write_coco(tmp_path / name, "train", iter(pocket_items[:3]))
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 3 + 2 * 3
    for path in files:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()


def test_the_shipped_folder_is_what_is_written_today(tmp_path):
    write_coco(tmp_path, "val", (pocket_item("val", index) for index in range(64)))
    written = [path.relative_to(tmp_path) for path in tmp_path.rglob("*.*")]
    assert len(written) == 3 + 2 * 64
    for path in written:
        assert (tmp_path / path).read_bytes() == (SHIPPED / path).read_bytes(), path


def test_a_downloaded_coco_is_not_overwritten(tmp_path, pocket_items):
    path = tmp_path / "annotations" / "captions_val2017.json"
    path.parent.mkdir()
    path.write_text('{"info": {"description": "COCO 2017 Dataset"}}')
    with pytest.raises(FileExistsError, match=r"captions_val2017\.json was not written by this"):
        write_coco(tmp_path, "val", pocket_items)
    assert not (tmp_path / "val2017").exists()
    write_coco(tmp_path, "train", pocket_items[:1])  # the other split is free


def test_wrong_input_is_refused(tmp_path, pocket_items):
    with pytest.raises(ValueError, match='split is \'test\': write "train" or "val"'):
        write_coco(tmp_path, "test", pocket_items)
    first = pocket_items[0]
    gone = replace(first.segments[0], mask=np.zeros((64, 64), bool))
    with pytest.raises(ValueError, match="is empty"):
        write_coco(tmp_path, "val", [replace(first, segments=(gone, *first.segments[1:]))])
