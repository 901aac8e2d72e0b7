# SPDX-License-Identifier: Apache-2.0
"""The published PaintSkills format: files written down by hand, read, and damaged."""

import json
import re

import pytest

from spatext_lab.datasets.pocket.paintskills import Thing
from spatext_lab.datasets.published_paintskills import read_paintskills, read_prompts
from spatext_lab.evaluation.boxes import Detection
from spatext_lab.evaluation.skills import RULES


def an_object(number, shape, **others):
    """As the simulator writes it."""
    fields = {"color": "plain", "relation": None, "scale": 8.9, "texture": "plain"}
    return {"id": number, "shape": shape, **fields, "rotation": None, "state": None} | others


def a_scene(name, text, *objects):
    skill, split, _ = name.split("_")
    fields = {"scene": "empty", "text": text, "skill": skill, "split": split}
    return {"id": name, **fields, "objects": list(objects)}


def boxes(*images_, width=720, height=720):
    """The box file of images (number, [bbox, ...])."""
    images, annotations = [], []
    for number, each in images_:
        name = f"image_any_val_{number}.png"
        images.append({"file_name": name, "height": height, "width": width, "id": number})
        for bbox in each:
            one = {"id": len(annotations), "image_id": number, "category_id": 3, "iscrowd": 0}
            annotations.append(one | {"bbox": bbox, "area": bbox[2] * bbox[3]})
    return {"annotations": annotations, "images": images, "categories": [{"id": 3, "name": "bus"}]}


@pytest.fixture
def published(tmp_path):
    """published(folder, scenes, box file): writes both files as the archive has them."""

    def write(name, scenes, box_file):
        (tmp_path / name / "scenes").mkdir(parents=True)
        (tmp_path / name / "scenes" / f"{name}_val.json").write_text(json.dumps({"data": scenes}))
        (tmp_path / name / f"{name}_val_bounding_boxes.json").write_text(json.dumps(box_file))
        return tmp_path

    return write


# --- both versions --------------------------------------------------------------------------------


def test_the_first_version_counts(published):
    people = [an_object(k, "humanSophie", state="sitting") for k in range(2)]
    signs = [an_object(k, "stopSign") for k in range(3)]
    scenes = [
        a_scene("count_val_00000", "a photo of 2 human", *people),
        a_scene("count_val_00937", "a photo of 3 stop sign", *signs),
    ]
    places = [[72, 144, 360, 180], [0, 0, 36, 72], [540, 540, 180, 180]]
    # the box file has the images in any order, as a folder lists them
    root = published("count", scenes, boxes((937, places), (0, places[:2])))
    one, two = read_paintskills(root, "count", "val")
    assert (one.skill, one.split, one.index) == ("count", "val", 0)
    assert (one.prompt, one.relation) == ("a photo of 2 human", None)
    assert one.things == (
        Thing("human", None, (0.1, 0.2, 0.6, 0.45)),
        Thing("human", None, (0.0, 0.0, 0.05, 0.1)),
    )
    assert one.texts == ("a human", "a human")
    assert (two.index, two.prompt) == (937, "a photo of 3 stop sign")
    assert [thing.kind for thing in two.things] == ["stop sign"] * 3
    assert two.things[2].box == (0.75, 0.75, 1.0, 1.0)
    assert two.scene.caption == two.prompt
    assert [(r.text, r.box) for r in two.scene.regions] == [
        ("a stop sign", thing.box) for thing in two.things
    ]


def test_the_second_version_has_names_of_coco(published):
    person = an_object(0, "humanJosh", coconame="person", scale=14.1, state="sitting")
    scenes = [a_scene("count_val_00000", "1 person", person) | {"scene": "HDR-KirbyCove"}]
    (one,) = read_paintskills(
        published("count", scenes, boxes((0, [[9, 9, 9, 9]]))), "count", "val"
    )
    assert (one.prompt, one.things[0].kind, one.texts) == ("1 person", "person", ("a person",))


def test_colour_is_called_color_there(published):
    bench = an_object(0, "diningTable", color="purple", texture="pure")
    scenes = [a_scene("color_val_00004", "a photo of purple dining table", bench)]
    root = published("color", scenes, boxes((4, [[0, 360, 720, 360]])))
    (one,) = read_paintskills(root, "colour", "val")
    assert one.things == (Thing("dining table", "purple", (0.0, 0.5, 1.0, 1.0)),)
    assert one.texts == ("a purple dining table",)


SPATIAL = [
    an_object(0, "airplane"),
    an_object(1, "fireHydrant", relation="left_0"),
]
SAID = "a photo of airplane and fire hydrant; fire hydrant is left to airplane"


def test_a_relation_is_that_of_the_second_to_the_first(published):
    scenes = [a_scene("spatial_val_00001", SAID, *SPATIAL)]
    root = published("spatial", scenes, boxes((1, [[500, 300, 90, 90], [90, 300, 90, 90]])))
    (one,) = read_paintskills(root, "spatial", "val")
    assert one.relation == "left"
    assert one.texts == ("an airplane", "a fire hydrant")
    seen = [Detection(thing.kind, None, 0.9, thing.box) for thing in one.things]
    assert RULES["spatial"](seen, one)  # the first object's box is the first one


# --- boxes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(720, 720), (640, 480), (97, 31)])
def test_boxes_come_back_to_the_pixel(published, size):
    width, height = size
    given = [[0, 0, width, height], [3, 5, 17, 11], [width - 1, height - 1, 1, 1]]
    scenes = [
        a_scene(f"object_val_{k:05}", "a photo of bus", an_object(0, "bus")) for k in range(3)
    ]
    file = boxes(*((k, [bbox]) for k, bbox in enumerate(given)), width=width, height=height)
    for bbox, one in zip(
        given, read_paintskills(published("object", scenes, file), "object", "val"), strict=True
    ):
        x0, y0, x1, y1 = one.things[0].box
        pixels = x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height
        assert pixels == pytest.approx(bbox, abs=1e-9)


def test_a_hidden_object_has_no_box_and_one_that_sticks_out_is_clipped(published):
    """The simulator gives an object of which no pixel was seen a box turned inside out."""
    scenes = [a_scene("spatial_val_00001", SAID, *SPATIAL)]
    hidden, out = [1000000, 100000, -1000000, -100000], [-36, 684, 72, 72]
    root = published("spatial", scenes, boxes((1, [hidden, out])))
    (one,) = read_paintskills(root, "spatial", "val")
    assert [thing.box for thing in one.things] == [None, (0.0, 0.95, 0.05, 1.0)]
    assert [region.text for region in one.scene.regions] == ["a fire hydrant"]


# --- damage ---------------------------------------------------------------------------------------


def scene(change):
    """The scene file's one entry, changed."""
    return lambda scenes, file: change(scenes[0])


def box_file(change):
    return lambda scenes, file: change(file)


DAMAGES = {
    "an entry that is a text": (
        lambda scenes, file: scenes.append("spatial_val_00002"),
        r"spatial_val.json: data[1] has no field 'id'",
    ),
    "no prompt": (scene(lambda s: s.pop("text")), "spatial_val.json: data[0] has no field 'text'"),
    "an empty prompt": (
        scene(lambda s: s.update(text=" ")),
        "data[0].text is ' ': it is empty or holds half a character",
    ),
    "half a character": (
        scene(lambda s: s.update(text="a bus \ud83d")),
        "data[0].text is 'a bus \\ud83d': it is empty or holds half a character",
    ),
    "a number for a name": (scene(lambda s: s.update(id=1)), "data[0].id is 1, not a text"),
    "a name without number": (
        scene(lambda s: s.update(id="spatial_val")),
        "data[0].id is 'spatial_val', not one such as 'count_val_00937'",
    ),
    "an image without boxes": (
        scene(lambda s: s.update(id="spatial_val_00008")),
        "data[0].id ends in 8, but ",
    ),
    "objects that are none": (
        scene(lambda s: s.update(objects="two")),
        "data[0].objects is 'two', not a list",
    ),
    "a third object": (
        scene(lambda s: s["objects"].append(an_object(2, "bus"))),
        "data[0].objects has 3 entries; spatial has 2",
    ),
    "an object that is none": (
        scene(lambda s: s.update(objects=[SPATIAL[0], None])),
        "data[0].objects[1] has no field 'color'",
    ),
    "no shape": (
        scene(lambda s: s["objects"][0].pop("shape")),
        "data[0].objects[0] has no field 'shape'",
    ),
    "no colour": (
        scene(lambda s: s["objects"][0].update(color=None)),
        "data[0].objects[0].color is None, not a text",
    ),
    "no relation": (
        scene(lambda s: s["objects"][1].update(relation=None)),
        "data[0].objects[1].relation is None, not a text",
    ),
    "another relation": (
        scene(lambda s: s["objects"][1].update(relation="behind_0")),
        "data[0].objects[1].relation is 'behind_0'; there are left_0, right_0, above_0, below_0",
    ),
    "a relation to itself": (
        scene(lambda s: s["objects"][1].update(relation="left_1")),
        "data[0].objects[1].relation is 'left_1'; there are",
    ),
    "a box too few": (
        box_file(lambda f: f["annotations"].pop()),
        "data[0].objects has 2 entries, but 1 boxes are annotated",
    ),
    "a box of no image": (
        box_file(lambda f: f["annotations"][1].update(image_id=5)),
        "spatial_val_bounding_boxes.json: annotations[1].image_id is 5; images has no such id",
    ),
    "no box": (
        box_file(lambda f: f["annotations"][1].pop("bbox")),
        "spatial_val_bounding_boxes.json: annotations[1] has no field 'bbox'",
    ),
    "three numbers": (
        box_file(lambda f: f["annotations"][0].update(bbox=[1, 2, 3])),
        "annotations[0].bbox is [1, 2, 3], not [x, y, width, height] in pixels",
    ),
    "no number": (
        box_file(lambda f: f["annotations"][0].update(bbox=[1, 2, 3, float("nan")])),
        "annotations[0].bbox is [1, 2, 3, nan], not [x, y, width, height] in pixels",
    ),
    "an endless number": (
        box_file(lambda f: f["annotations"][0].update(bbox=[10**400, 2, 3, 4])),
        "annotations[0].bbox is [1000",
    ),
    "a box off the image": (
        box_file(lambda f: f["annotations"][0].update(bbox=[720, 2, 3, 4])),
        "annotations[0].bbox is [720, 2, 3, 4], off the image of 720 x 720 pixels",
    ),
    "an image of no width": (
        box_file(lambda f: f["images"][0].update(width=0)),
        "images[0] has (width, height) (0, 720); both are at least 1",
    ),
    "an image beyond any": (
        box_file(lambda f: f["images"][0].update(width=10**400)),
        "images[0] has (width, height) (1000",
    ),
    "a number without end": (
        scene(lambda s: s.update(id="spatial_val_" + "1" * 5000)),
        "not one such as 'count_val_00937'",
    ),
    "half a pixel": (
        box_file(lambda f: f["images"][0].update(width=720.5)),
        "images[0].width is 720.5, not a whole number",
    ),
    "a width in words": (
        box_file(lambda f: f["images"][0].update(width="720")),
        "images[0].width is '720', not a whole number",
    ),
    "no images": (
        box_file(lambda f: f.pop("images")),
        "spatial_val_bounding_boxes.json: file has no field 'images'",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_with_its_file_entry_and_field(published, damage):
    change, message = DAMAGES[damage]
    scenes = json.loads(json.dumps([a_scene("spatial_val_00001", SAID, *SPATIAL)]))
    file = boxes((1, [[500, 300, 90, 90], [90, 300, 90, 90]]))
    change(scenes, file)
    root = published("spatial", scenes, file)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_paintskills(root, "spatial", "val")
    assert str(root) in str(error.value)


def test_whole_numbers_as_floats_a_null_and_a_byte_order_mark_are_read(published):
    scenes = [a_scene("object_val_00003", "a photo of bus", an_object(0, "bus", coconame=None))]
    file = boxes((3.0, [[72.0, 0.0, 72.0, 720.0]]), width=720.0)
    root = published("object", scenes, file)
    path = root / "object" / "scenes" / "object_val.json"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    (one,) = read_paintskills(root, "object", "val")
    assert one.things == (Thing("bus", None, (0.1, 0.0, 0.2, 1.0)),)


def test_a_scene_file_is_read_by_its_path(published):
    scenes = [a_scene("color_val_00004", "a photo of red bus", an_object(0, "bus", color="red"))]
    root = published("color", scenes, boxes((4, [[0, 360, 720, 360]])))
    file = root / "color" / "scenes" / "color_val.json"
    assert read_prompts(file) == read_prompts(str(file)) == read_paintskills(root, "colour", "val")


@pytest.mark.parametrize(
    "path",
    ["color_val.json", "color/color_val.json", "color/scenes/count_val.json", "a/scenes/a_b.json"],
)
def test_a_path_of_another_form_is_refused(tmp_path, path):
    with pytest.raises(ValueError, match=r"pass ROOT/count/scenes/count_val\.json"):
        read_prompts(tmp_path / path)


def test_a_colour_must_be_asked_for(published):
    scenes = [a_scene("color_val_00000", "a photo of bus", an_object(0, "bus"))]
    root = published("color", scenes, boxes((0, [[9, 9, 9, 9]])))
    with pytest.raises(ValueError, match=r"data\[0\].objects\[0\].color is 'plain'; the skill"):
        read_paintskills(root, "colour", "val")


@pytest.mark.parametrize("content", [b"", b'{"data": [', b"\xff{}", b"[" * 100_000])
def test_a_file_that_is_not_whole_is_named(published, content):
    root = published("object", [], boxes())
    (root / "object" / "scenes" / "object_val.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"object_val.json is not whole JSON"):
        read_paintskills(root, "object", "val")


def test_a_missing_file_is_named_with_the_layout(published):
    root = published("object", [], boxes())
    with pytest.raises(FileNotFoundError, match=r"count_val.json is missing: .*ROOT/count/scenes"):
        read_paintskills(root, "count", "val")
    (root / "object" / "object_val_bounding_boxes.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"object_val_bounding_boxes.json is missing: the"):
        read_paintskills(root, "object", "val")


@pytest.mark.parametrize(
    ("skill", "split", "message"),
    [("color", "val", "skill is 'color'; there are"), ("count", "test", "split is 'test'; count")],
)
def test_an_unknown_skill_or_split_is_refused(tmp_path, skill, split, message):
    with pytest.raises(ValueError, match=message):
        read_paintskills(tmp_path, skill, split)
