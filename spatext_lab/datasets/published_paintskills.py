# SPDX-License-Identifier: Apache-2.0
"""The published PaintSkills: scene and box files of both versions, as they are unpacked.

Cho, Zala and Bansal, arXiv 2202.04053; format after the repositories j-min/DallEval (readers) and
aszala/PaintSkills-Simulator (writers). A scene has `id`, `text` and `objects`; an object `shape`,
`color` ("plain" for none) and `relation` ("left_0": left of object 0). The second version (2022-11)
has no colour skill, words its prompts otherwise, and gives each object a `coconame`. Boxes are in a
file like COCO's: [x, y, width, height] in pixels of an image whose size is given too (720 x 720).
"""

import json
import re
from pathlib import Path
from typing import Any

from spatext_lab.datasets.pocket.paintskills import RELATIONS, SKILLS, SPLITS, SkillPrompt, Thing
from spatext_lab.datasets.pocket.texts import article
from spatext_lab.scene.places import Box

LAYOUT = (
    "the published layout is ROOT/{0}/scenes/{0}_{1}.json and ROOT/{0}/{0}_{1}_bounding_boxes.json "
    "(colour is in version 1 alone)"
)
FOLDERS = {"colour": "color"}
OBJECTS = {"object": (1,), "count": (1, 2, 3, 4), "colour": (1,), "spatial": (2,)}
_NAMES = {str: "a text", int: "a whole number", list: "a list"}
_FURTHEST = 10**9  # pixels: far beyond any image, even beyond a hidden object's box


def read_prompts(file: str | Path) -> list[SkillPrompt]:
    """The prompts of one scene file in the published layout.

        read_prompts("paintskills/count/scenes/count_val.json")

    Args:
        file: ROOT/SKILL/scenes/SKILL_SPLIT.json; the box file is looked up beside it.

    Raises:
        FileNotFoundError: one of both files is missing.
        ValueError: a path of another form, or a damaged file.
    """
    file = Path(file)
    name, _, split = file.stem.rpartition("_")
    skill = {folder: skill for skill, folder in FOLDERS.items()}.get(name, name)
    if file.parts[-3:] != (name, "scenes", f"{name}_{split}.json") or skill not in SKILLS:
        raise ValueError(f"prompts is {file}: pass ROOT/count/scenes/count_val.json, or its likes")
    return read_paintskills(file.parents[2], skill, split)


def read_paintskills(root: str | Path, skill: str, split: str) -> list[SkillPrompt]:
    """The scenes of a skill's split, in the file's order; each file is read once.

    A prompt is the file's own; its `index` is the number in the scene's id, which names the image
    (`image_count_val_00937.png`). The kind is the word that the prompt has for the object. An
    object that the simulator hid has no box, as in DallEval's loader; a box that leaves the image
    is clipped.

    Args:
        root:  where the published archive is unpacked.
        skill: one of SKILLS.
        split: "train" or "val".

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: an unknown skill or split, or a damaged file, with its name, the entry and the
            field.
    """
    if skill not in SKILLS:
        raise ValueError(f"skill is {skill!r}; there are {', '.join(SKILLS)}")
    if split not in SPLITS[skill]:
        raise ValueError(f"split is {split!r}; {skill} has {', '.join(SPLITS[skill])}")
    name = FOLDERS.get(skill, skill)
    layout = LAYOUT.format(name, split)
    scenes = Path(root, name, "scenes", f"{name}_{split}.json")
    boxes = Path(root, name, f"{name}_{split}_bounding_boxes.json")
    rows = _list(_read(scenes, layout), f"{scenes}: file", "data")
    shown = _read_boxes(boxes, layout)
    found = []
    for number, row in enumerate(rows):
        where = f"{scenes}: data[{number}]"
        index = _index(row, where)
        if index not in shown:
            raise ValueError(f"{where}.id ends in {index}, but {boxes} has no such image")
        found.append(_prompt(skill, split, index, row, shown[index], where))
    return found


def _prompt(
    skill: str, split: str, index: int, row: dict, shown: list[Box | None], where: str
) -> SkillPrompt:
    prompt, objects = _text(row, where, "text"), _list(row, where, "objects")
    if len(objects) not in OBJECTS[skill]:
        numbers = " or ".join(map(str, OBJECTS[skill]))
        raise ValueError(f"{where}.objects has {len(objects)} entries; {skill} has {numbers}")
    if len(shown) != len(objects):
        raise ValueError(
            f"{where}.objects has {len(objects)} entries, but {len(shown)} boxes are annotated"
        )
    places = [f"{where}.objects[{number}]" for number in range(len(objects))]
    # the simulator writes the boxes of an image in the order of the scene's objects
    things = tuple(_thing(skill, *each) for each in zip(objects, shown, places, strict=True))
    relation = _relation(objects[1], places[1]) if skill == "spatial" else None
    return SkillPrompt(skill, split, index, prompt, things, tuple(map(_phrase, things)), relation)


def _index(row: Any, where: str) -> int:
    name = _text(row, where, "id")
    number = re.fullmatch(r".*_(\d{1,9})", name)
    if number is None:
        raise ValueError(f"{where}.id is {name!r:.80}, not one such as 'count_val_00937'")
    return int(number[1])


def _thing(skill: str, row: Any, box: Box | None, where: str) -> Thing:
    colour = _text(row, where, "color")
    if skill == "colour" and colour == "plain":
        raise ValueError(f"{where}.color is 'plain'; the skill colour asks for one")
    named = row.get("coconame") is not None
    kind = _text(row, where, "coconame") if named else _word(_text(row, where, "shape"))
    return Thing(kind, None if colour == "plain" else colour, box)


def _word(shape: str) -> str:
    """The first version's prompts spell the simulator's names out: "stopSign", "humanSophie"."""
    return "human" if shape.startswith("human") else re.sub(r"(?=[A-Z])", " ", shape).lower()


def _phrase(thing: Thing) -> str:
    return article(f"{thing.colour} {thing.kind}" if thing.colour else thing.kind)


def _relation(row: dict, where: str) -> str:
    value = _text(row, where, "relation")
    side, _, other = value.partition("_")
    if side not in RELATIONS or other != "0":
        forms = ", ".join(f"{name}_0" for name in RELATIONS)
        raise ValueError(f"{where}.relation is {value!r:.80}; there are {forms}")
    return side


def _read_boxes(path: Path, layout: str) -> dict[int, list[Box | None]]:
    """By the image's number, its objects' boxes in fractions, in order; None for a hidden one."""
    file, sizes = _read(path, layout), {}
    for number, row in enumerate(_list(file, f"{path}: file", "images")):
        where = f"{path}: images[{number}]"
        size = _field(row, where, "width", int), _field(row, where, "height", int)
        if not 1 <= min(size) <= max(size) <= _FURTHEST:
            raise ValueError(f"{where} has (width, height) {size!s:.80}; both are at least 1")
        sizes[_field(row, where, "id", int)] = size
    shown: dict[int, list[Box | None]] = {number: [] for number in sizes}
    for number, row in enumerate(_list(file, f"{path}: file", "annotations")):
        where = f"{path}: annotations[{number}]"
        image = _field(row, where, "image_id", int)
        if image not in sizes:
            raise ValueError(f"{where}.image_id is {image}; images has no such id")
        shown[image].append(_box(_list(row, where, "bbox"), sizes[image], f"{where}.bbox"))
    return shown


def _box(values: list, size: tuple[int, int], where: str) -> Box | None:
    """Pixels [x, y, w, h] as fractions (x0, y0, x1, y1), clipped at the border."""
    good = len(values) == 4 and all(type(v) in (int, float) for v in values)
    if not good or not all(abs(v) < _FURTHEST for v in values):
        raise ValueError(f"{where} is {values!r:.80}, not [x, y, width, height] in pixels")
    x, y, w, h = values
    if w <= 0 or h <= 0:  # no pixel was seen: the box is inside out; or a bare line of them
        return None
    corners = x / size[0], y / size[1], (x + w) / size[0], (y + h) / size[1]
    x0, y0, x1, y1 = (min(max(value, 0.0), 1.0) for value in corners)
    if x0 >= x1 or y0 >= y1:
        raise ValueError(f"{where} is {values}, off the image of {size[0]} x {size[1]} pixels")
    return x0, y0, x1, y1


def _read(path: Path, layout: str) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: {layout}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not whole JSON ({error}): unpack or download it again"
        ) from None


def _field(row: Any, where: str, key: str, kind: type) -> Any:
    """A field of the right type, or a ValueError that says where it should be."""
    if not isinstance(row, dict) or key not in row:
        raise ValueError(f"{where} has no field {key!r}")
    value = row[key]
    if kind is int and type(value) is float and value.is_integer():
        value = int(value)  # some writers have no other numbers
    if type(value) is not kind:
        raise ValueError(f"{where}.{key} is {value!r:.80}, not {_NAMES[kind]}")
    return value


def _list(row: Any, where: str, key: str) -> list:
    return _field(row, where, key, list)


def _text(row: Any, where: str, key: str) -> str:
    value = _field(row, where, key, str)
    if not value.strip() or re.search("[\ud800-\udfff]", value):
        raise ValueError(f"{where}.{key} is {value!r:.80}: it is empty or holds half a character")
    return value
