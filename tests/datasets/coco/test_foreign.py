# SPDX-License-Identifier: Apache-2.0
"""Other people's COCO folders: what exports, phones and slips put into them, one kind at a time."""

import json

import numpy as np
import pytest
from PIL import Image

from spatext_lab.datasets.coco import read_coco
from spatext_lab.datasets.coco.licences import coco_number
from spatext_lab.scene import rle

H, W = 40, 60
SQUARE = [10, 8, 40, 8, 40, 32, 10, 32]  # 30 x 24 of 60 x 40 pixels: 30 %
SMALL = [52, 2, 58, 2, 58, 38, 52, 38]  # 9 %, to the right of it
IMAGE = {"id": 1, "file_name": "1.png", "height": H, "width": W, "license": 4}
DOG = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": [SQUARE]}
CATEGORIES = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
BY = "https://creativecommons.org/licenses/by/4.0/"
PIXELS = np.full((H, W, 3), (0, 0, 120), np.uint8)
PIXELS[8:32, 10:40] = (220, 60, 40)

AT = "http://creativecommons.org/licenses/"
COCO_LICENCES = {  # as they stand in COCO's own files: number: (name, address)
    1: ("Attribution-NonCommercial-ShareAlike License", f"{AT}by-nc-sa/2.0/"),
    2: ("Attribution-NonCommercial License", f"{AT}by-nc/2.0/"),
    3: ("Attribution-NonCommercial-NoDerivs License", f"{AT}by-nc-nd/2.0/"),
    4: ("Attribution License", f"{AT}by/2.0/"),
    5: ("Attribution-ShareAlike License", f"{AT}by-sa/2.0/"),
    6: ("Attribution-NoDerivs License", f"{AT}by-nd/2.0/"),
    7: ("No known copyright restrictions", "http://flickr.com/commons/usage/"),
    8: ("United States Government Work", "http://www.usa.gov/copyright.shtml"),
}


@pytest.fixture
def folder(tmp_path):
    """folder(...): a COCO folder of one image with one dog; every argument changes one thing."""

    def make(
        image=None, dogs=({},), pixels=PIXELS, captions=None, panoptic=None, raw=None, **content
    ):
        (tmp_path / "annotations").mkdir(exist_ok=True)
        record = IMAGE | (image or {})
        path = tmp_path / "val2017" / record["file_name"].replace("\\", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if pixels is not None:
            (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path)
        if captions is None:
            captions = {"annotations": [{"id": 1, "image_id": 1, "caption": "a dog"}]}
        instances = {
            "images": [record],
            "annotations": [DOG | dog for dog in dogs],
            "categories": CATEGORIES,
        }
        for kind, file in (
            ("instances", instances | content),
            ("captions", captions),
            ("panoptic", panoptic),
        ):
            if file is not None:
                text = json.dumps(file) if raw is None else raw(json.dumps(file))
                text = text if isinstance(text, bytes) else text.encode()
                (tmp_path / "annotations" / f"{kind}_val2017.json").write_bytes(text)
        return tmp_path

    return make


def left_out(root, **choice):
    """Why no image passes: the reasons against the image, and against its annotations."""
    subset = read_coco(root, "val", **choice)
    assert subset.items == ()
    return [*subset.report.images, *subset.report.annotations]


def only(root, **choice):
    (item,) = read_coco(root, "val", **choice).items
    return item


# --- nothing passes -------------------------------------------------------------------------------


def test_an_empty_selection_is_one_line_with_the_counts(folder):
    subset = read_coco(folder({"license": None}), "val")
    with pytest.raises(
        ValueError, match=r"no image of val2017 in .* passes, of 1: 1 x no lic"
    ) as e:
        subset.not_empty()
    assert "\n" not in str(e.value)
    found = read_coco(folder(), "val")
    assert found.not_empty() is found


def test_squares_that_lose_every_region_are_one_line_with_the_counts(folder):
    subset = read_coco(folder(dogs=[{"segmentation": [SMALL]}]), "val")
    with pytest.raises(ValueError, match=r"1 x no region in the 20 x 20 square"):
        list(subset.squares(20))


# --- licences -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "name", "url"),
    [
        *((number, *names) for number, names in COCO_LICENCES.items()),
        (4, "CC BY 4.0", BY),
        (4, "CC BY", "u"),
        (4, "", BY),
        (4, "cc_by_4", ""),
        (4, "Creative Commons Attribution 4.0", ""),
        (1, "CC BY-NC-SA 4.0", "https://creativecommons.org/licenses/by-nc-sa/4.0/"),
        (2, "Attribution-NonCommercial 2.0 Generic", ""),
        (3, "by-nc-nd", ""),
        (5, "Attribution-Share Alike", ""),
        (6, "CC-BY-ND", ""),
        (7, "CC0 1.0", "https://creativecommons.org/publicdomain/zero/1.0/"),
        (7, "Public Domain", ""),
        (0, "All rights reserved", ""),
        (0, "All rights reserved", BY),
        (0, "CC BY-NC 4.0", BY),  # which of both?
        (0, "MIT", "https://opensource.org/license/mit"),
        (0, "photo by Ann", ""),
        (0, "Unknown", ""),
        (0, "", ""),
    ],
)
def test_a_licence_is_known_by_its_name_and_address(number, name, url):
    assert coco_number(name, url) == number


@pytest.mark.parametrize(("own", "wanted", "kept"), [(1, (4,), True), (1, (1,), False)])
def test_a_files_own_numbers_are_not_cocos(folder, own, wanted, kept):
    table = [{"id": own, "name": "CC BY 4.0", "url": BY}]
    subset = read_coco(folder({"license": own}, licenses=table), "val", licences=wanted)
    assert [item.licence for item in subset.items] == [4] * kept
    assert "licence 1 of this file is 'CC BY 4.0', COCO's 4" in subset.report.text()


def test_all_rights_reserved_is_left_out_whatever_its_number(folder):
    root = folder(licenses=[{"id": 4, "name": "All rights reserved", "url": ""}])
    assert left_out(root) == ["licence 'All rights reserved' was not asked for"]
    assert only(root, licences=None).credit.licence == "All rights reserved"


def test_a_file_that_numbers_as_coco_does_has_no_note(folder):
    table = [{"id": 4, "name": "Attribution License", "url": None}]
    assert read_coco(folder(licenses=table), "val").report.notes == []


@pytest.mark.parametrize("table", [None, [], [{"id": 4}]])
def test_without_names_of_licences(folder, table):
    root = folder(licenses=table)
    if table:
        assert left_out(root) == ["licence 4 was not asked for"]  # an entry that names nothing
    else:
        assert only(root).licence == 4  # COCO's numbers are meant


@pytest.mark.parametrize("number", [0, 9])
def test_a_licence_that_its_file_does_not_have(folder, number):
    root = folder({"license": number}, licenses=[{"id": 4, "name": "CC BY"}])
    assert left_out(root) == [f"licence {number} was not asked for"]


# --- null -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["license", "flickr_url", "coco_url", "date_captured"])
def test_null_in_an_image_is_as_if_missing(folder, field):
    assert only(folder({field: None}), licences=None).credit.source_url == ""


@pytest.mark.parametrize("field", ["area", "bbox", "iscrowd", "text", "attributes"])
def test_null_in_an_annotation_is_as_if_missing(folder, field):
    assert len(only(folder(dogs=[{field: None}])).regions) == 1


@pytest.mark.parametrize("key", ["licenses", "info", "annotations", "categories"])
def test_null_for_a_whole_array_is_as_if_empty(folder, key):
    report = read_coco(folder(**{key: None}), "val").report
    assert report.found == 1


# --- photos ---------------------------------------------------------------------------------------


def saved_with(orientation, stored, path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(path, exif=exif, quality=100, subsampling=0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shape", [(H, W), (W, W)])
@pytest.mark.parametrize("name", ["1.jpg", "1.png"])
def test_an_image_is_upright_under_its_masks(folder, orientation, shape, name):
    upright = np.zeros((*shape, 3), np.uint8)
    upright[:H, :W] = PIXELS
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    root = folder({"file_name": name, "height": shape[0], "width": shape[1]}, pixels=None)
    saved_with(orientation, np.ascontiguousarray(stored), root / "val2017" / name)
    item = only(root)
    red = np.asarray(item.image())[..., 0] > 110
    np.testing.assert_array_equal(red, item.scene.regions[0].mask)
    assert item.square(H)[0].shape == (H, H, 3)


def test_an_annotation_of_the_unturned_image_is_left_out(folder):
    root = folder({"file_name": "1.jpg"}, pixels=None)
    saved_with(6, PIXELS, root / "val2017" / "1.jpg")
    reason = "its EXIF orientation turns the image, and its annotation does not"
    assert left_out(root) == left_out(root, check_images=False) == [reason]


@pytest.mark.parametrize("name", ["1.png", "1.tif", "1.pgm"])
def test_16_bit_grey_is_scaled(folder, name):
    grey = np.arange(H * W, dtype=np.uint16).reshape(H, W) * 27
    item = only(folder({"file_name": name}, pixels=grey))
    np.testing.assert_allclose(np.asarray(item.image())[..., 1], grey / 257, atol=1)


def test_what_lies_under_transparency_is_not_shown(folder):
    clear = np.dstack([PIXELS, np.zeros((H, W), np.uint8)])
    assert (np.asarray(only(folder(pixels=clear)).image()) == 255).all()


def test_floating_point_pixels_are_left_out_with_the_reason(folder):
    root = folder(
        {"file_name": "1.tif"}, pixels=np.linspace(0, 1, H * W, dtype=np.float32).reshape(H, W)
    )
    assert left_out(root) == ["image has mode F: expected 8 or 16 bits a channel"]


# --- derived fields -------------------------------------------------------------------------------


@pytest.mark.parametrize("area", [0, 1, -3, None, "720", 10**400, 1e300, []])
def test_the_mask_is_measured_whatever_its_area_says(folder, area):
    assert rle.decode(only(folder(dogs=[{"area": area}])).regions[0].rle).sum() == 720


def test_without_an_area(folder):
    text = folder(dogs=[{}]) / "annotations" / "instances_val2017.json"
    assert "area" not in text.read_text()
    assert len(only(text.parents[1]).regions) == 1


def test_a_large_area_does_not_help_a_small_mask(folder):
    root = folder(dogs=[{"area": 2400, "segmentation": [[0, 0, 3, 0, 3, 3, 0, 3]]}])
    assert "smaller than the minimum area" in left_out(root)


@pytest.mark.parametrize("box", [None, [], [0, 0, 1, 1], "x", [1e300] * 4])
def test_the_box_of_an_outline_is_not_read(folder, box):
    assert len(only(folder(dogs=[{"bbox": box}])).regions) == 1


# --- numbers --------------------------------------------------------------------------------------


def test_whole_numbers_may_be_written_as_floats(folder):
    whole = {"id": 1.0, "height": 40.0, "width": 60.0, "license": 4.0}
    dog = {"id": 1.0, "image_id": 1.0, "category_id": 1.0, "iscrowd": 0.0}
    captions = {"annotations": [{"id": 1.0, "image_id": 1.0, "caption": "a dog"}]}
    table = [{"id": 4.0, "name": "CC BY"}]
    kinds = [{"id": 1.0, "name": "dog"}]
    item = only(folder(whole, [dog], captions=captions, licenses=table, categories=kinds))
    assert (item.image_id, item.size, item.licence) == (1, (H, W), 4)
    assert [(r.annotation, r.text) for r in item.regions] == [(1, "a dog")]


def test_panoptic_numbers_may_be_written_as_floats(folder):
    root = folder(
        panoptic=panoptic([{"id": 7.0, "category_id": 1.0, "iscrowd": 0.0}], image_id=1.0)
    )
    paint(root, 7)
    assert [region.annotation for region in only(root).regions] == [7]


@pytest.mark.parametrize("table", [[{"id": "1", "name": "dog"}], [{"id": 1, "name": None}]])
def test_a_broken_category_is_noted(folder, table):
    report = read_coco(folder(categories=table), "val").report
    assert "broken entry of categories: " in report.text()
    assert list(report.annotations) == ["unknown category"]


def test_not_a_number_costs_its_record_alone(folder):
    nan, inf = float("nan"), float("inf")
    dogs = [{}, {"id": 2, "area": nan}, {"id": 3, "segmentation": [[nan, *SMALL[1:]]]}]
    root = folder(dogs=[*dogs, {"id": inf}, {"id": 4, "segmentation": [SMALL], "area": inf}])
    report = read_coco(root, "val", regions=(1, 9), min_area=0.0).report
    assert report.regions == 2  # the second dog lies over the first
    assert report.annotations == {
        "broken annotation: id: expected int, got null": [("1.png", -1)],
        "broken polygon or RLE": [("1.png", 3)],
        "covered by smaller regions": [("1.png", 1)],
    }


# --- paths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["images/1.png", "a/b/1.png", "images\\1.png", "./1.png", "猫.png"]
)
def test_paths_below_the_folder_are_read(folder, name):
    item = only(folder({"file_name": name}))
    np.testing.assert_array_equal(np.asarray(item.image()), PIXELS)
    assert item.file_name == name.replace("\\", "/").removeprefix("./")


@pytest.mark.parametrize(
    "name", ["../1.png", "/1.png", "a/../../1.png", "C:\\1.png", "\\\\x\\y\\1.png"]
)
def test_paths_out_of_the_folder_are_refused_by_the_fields_name(folder, name):
    root = folder()
    file = root / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content["images"][0]["file_name"] = name
    file.write_text(json.dumps(content))
    assert left_out(root) == ["broken image record: file_name leads out of its folder"]


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "."])
def test_names_that_no_file_can_have(folder, name):
    root = folder()
    file = root / "annotations" / "instances_val2017.json"
    file.write_text(file.read_text().replace("1.png", name))
    assert len(left_out(root)) == 1


def test_a_panoptic_png_may_lie_deeper_too(folder):
    root = folder(panoptic=panoptic([{"id": 7, "category_id": 1}], file_name="png\\1.png"))
    paint(root, 7, "png/1.png")
    assert len(only(root).regions) == 1
    folder(panoptic=panoptic([{"id": 7, "category_id": 1}], file_name="../1.png"))
    assert left_out(root) == ["broken panoptic record: file_name leads out of its folder"]


# --- bytes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_unicode_in_any_form_is_read(folder, code):
    captions = {"annotations": [{"id": 1, "image_id": 1, "caption": "ein Hund, müde"}]}
    item = only(folder(captions=captions, raw=lambda text: text.encode(code)))
    assert item.captions == ("ein Hund, müde",)


def test_a_terminal_does_not_obey_a_name(folder):
    name = "\x1b[31mred\n.png"
    report = read_coco(folder({"file_name": name}), "val").report
    assert report.credits_text().startswith("\\x1b[31mred\\n.png  licence 4")
    lost = read_coco(folder({"file_name": name, "license": None}), "val").report
    assert lost.text().splitlines()[-1].endswith("\\x1b[31mred\\n.png")


def test_a_broken_key_refuses_the_file_by_name(folder):
    root = folder(raw=lambda text: text.replace('"images"', '"ima\xe9"').encode("latin-1"))
    with pytest.raises(ValueError, match=r"instances_val2017\.json is not whole JSON"):
        read_coco(root, "val")


def test_one_caption_that_is_not_utf_8_costs_one_caption(folder):
    texts = ("a caf\xe9", "a dog")
    captions = {
        "annotations": [{"id": i, "image_id": 1, "caption": t} for i, t in enumerate(texts)]
    }
    root = folder(captions=captions)
    file = root / "annotations" / "captions_val2017.json"
    file.write_bytes(json.dumps(captions, ensure_ascii=False).encode("latin-1"))
    subset = read_coco(root, "val")
    assert subset.items[0].captions == ("a dog",)
    fault = "broken caption: caption: expected a text, got a blank one or broken Unicode"
    assert subset.report.annotations == {fault: [("1.png", 0)]}


def test_bytes_that_are_not_utf_8_in_a_field_that_is_not_read(folder):
    root = folder(dogs=[{"author": "Jose\xe9"}])
    file = root / "annotations" / "instances_val2017.json"
    file.write_bytes(json.dumps(json.loads(file.read_text()), ensure_ascii=False).encode("latin-1"))
    assert len(only(root).regions) == 1


# --- ids ------------------------------------------------------------------------------------------


def panoptic(segments, file_name="1.png", image_id=1):
    row = {"image_id": image_id, "file_name": file_name, "segments_info": segments}
    return {"annotations": [row], "categories": CATEGORIES}


def paint(root, number, name="1.png"):
    """A panoptic PNG: `number` on the dog's square, 0 elsewhere."""
    ids = np.zeros((H, W, 3), np.uint8)
    ids[8:32, 10:40, 0] = number
    path = root / "annotations" / "panoptic_val2017" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids).save(path)


def test_the_void_of_a_panoptic_png_is_no_region(folder):
    root = folder(panoptic=panoptic([{"id": i, "category_id": 1} for i in (0, 7)]))
    paint(root, 7)
    subset = read_coco(root, "val")
    assert [region.annotation for region in subset.items[0].regions] == [7]
    assert subset.report.annotations == {"panoptic id 0 is no segment": [("1.png", 0)]}


def test_a_segment_id_that_is_used_twice_is_counted(folder):
    root = folder(panoptic=panoptic([{"id": 7, "category_id": i} for i in (1, 2)]))
    paint(root, 7)
    subset = read_coco(root, "val")
    assert [region.text for region in subset.items[0].regions] == ["a dog"]
    assert subset.report.annotations == {"segment id used twice": [("1.png", 7)]}


def test_a_second_panoptic_annotation_is_counted(folder):
    file = panoptic([{"id": 7, "category_id": 1}])
    file["annotations"] *= 2
    root = folder(panoptic=file)
    paint(root, 7)
    subset = read_coco(root, "val")
    assert len(subset.items[0].regions) == 1
    assert subset.report.annotations == {"second panoptic annotation": [("1.png", -1)]}


def test_annotations_of_one_id_are_counted_each_when_the_square_loses_one(folder):
    subset = read_coco(folder(dogs=[{}, {"segmentation": [SMALL]}]), "val")
    assert [region.annotation for region in subset.items[0].regions] == [1, 1]
    ((_, _, scene),) = subset.squares(20)
    assert len(scene.regions) == 1
    assert subset.report.annotations == {"too small in the 20 x 20 square": [("1.png", 1)]}


@pytest.mark.parametrize("key", ["categories", "licenses"])
def test_an_entry_whose_id_is_used_twice_is_noted_and_the_first_counts(folder, key):
    tables = {"categories": CATEGORIES, "licenses": [{"id": 4, "name": "CC BY"}]}
    root = folder(**{key: [*tables[key], tables[key][0] | {"name": "other"}]})
    subset = read_coco(root, "val")
    assert subset.items[0].regions[0].text == "a dog"
    assert f"{key} has id {tables[key][0]['id']} twice" in subset.report.text()


# --- parts and boxes ------------------------------------------------------------------------------


def test_one_broken_part_of_an_outline_is_reported_and_the_rest_kept(folder):
    subset = read_coco(folder(dogs=[{"segmentation": [SQUARE, [5, 5, 6, 6]]}]), "val")
    assert rle.decode(subset.items[0].regions[0].rle).sum() == 720
    reason = "broken part of a polygon (its sound parts are kept)"
    assert subset.report.annotations == {reason: [("1.png", 1)]}


@pytest.mark.parametrize("empty", [[], None, [[]], {}, ""])
def test_boxes_alone_are_named_and_can_be_read(folder, empty):
    root = folder(dogs=[{"segmentation": empty, "bbox": [10, 8, 30, 24]}])
    assert "a box and no mask: of use to ReCo alone (boxes=True)" in left_out(root)
    (region,) = only(root, boxes=True).scene.regions
    assert region.box == (10 / W, 8 / H, 40 / W, 32 / H)


@pytest.mark.parametrize(
    "box", [None, [], [1, 2, 3], ["1", 2, 3, 4], [0, 0, 1e9, 4], [0.5, 0, 10**400, 4]]
)
def test_neither_mask_nor_box(folder, box):
    root = folder(dogs=[{"segmentation": [], "bbox": box}])
    assert "broken polygon or RLE" in left_out(root, boxes=True)


def test_a_missing_captions_file_is_refused_with_what_to_write(folder):
    root = folder()
    (root / "annotations" / "captions_val2017.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"captions_val2017.*write at least \{\"annotations"
    ):
        read_coco(root, "val")


def test_a_format_that_is_not_read_is_not_called_corrupt(folder):
    root = folder({"file_name": "1.heic"}, pixels=None)
    (root / "val2017" / "1.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    assert left_out(root) == ["image format is not supported, or the file's header is damaged"]


def test_a_folder_in_place_of_an_image(folder):
    root = folder(pixels=None)
    (root / "val2017" / "1.png").mkdir()
    assert left_out(root) == ["image file cannot be read: Is a directory"]


# --- costs ----------------------------------------------------------------------------------------


def test_masks_of_an_image_together_have_a_limit(folder, monkeypatch):
    monkeypatch.setattr(rle, "LARGEST_TOTAL", 2 * H * W)
    dogs = [
        {"id": i, "segmentation": [[x, 0, x + 9, 0, x + 9, 40, x, 40]]}
        for i, x in enumerate((0, 10, 20))
    ]
    subset = read_coco(folder(dogs=dogs), "val")
    assert [region.annotation for region in subset.items[0].regions] == [0, 1]
    assert subset.report.annotations == {
        "more than 4800 pixels in all masks of the image": [("1.png", 2)]
    }


def test_numbers_and_nesting_without_end_cost_one_record(folder):
    deep = "[" * 900 + "]" * 900
    dogs = [{}, {"id": 2, "segmentation": "DEEP"}, {"id": 3, "category_id": 10**400}]
    dogs.append({"id": 4, "segmentation": [["LONG", *SQUARE[1:]]]})
    root = folder(
        dogs=dogs, raw=lambda text: text.replace('"DEEP"', deep).replace('"LONG"', "9" * 5000)
    )
    subset = read_coco(root, "val")
    assert [region.annotation for region in subset.items[0].regions] == [1]
    assert subset.report.counts() == {"broken polygon or RLE": 2, "unknown category": 1}


def test_nesting_beyond_any_reader_is_refused_by_the_files_name(folder):
    deep = "[" * 100_000 + "]" * 100_000
    root = folder(dogs=[{"segmentation": "DEEP"}], raw=lambda text: text.replace('"DEEP"', deep))
    with pytest.raises(ValueError, match=r"instances_val2017\.json is not whole JSON"):
        read_coco(root, "val")
