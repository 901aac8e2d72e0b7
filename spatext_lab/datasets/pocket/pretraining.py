# SPDX-License-Identifier: Apache-2.0
"""What a text-to-image model is trained on: objects large and close, then whole scenes.

In a whole scene an object covers few cells of the latents, so its words hardly matter in the
loss. Here objects also fill the frame: as crops of a scene, at the scene's own scale, and as
whole images of large objects at half the resolution. Captions go from poor ("a fish") to rich
(every object with its colour, its pattern and where it is). No boxes and no masks: a model that is
trained on these captions alone. Item *k* is the same on every machine, and there is no last one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from jaxtyping import Bool, UInt8

from spatext_lab.datasets.pocket.paintskills import (
    GAP,
    RELATIONS,
    SPLITS,
    gap,
    relation_of,
    skill_item,
)
from spatext_lab.datasets.pocket.texts import (
    NUMBERS,
    PLACE_WORDS,
    Look,
    article,
    captions,
    noun,
    thing_text,
)
from spatext_lab.datasets.pocket.world import (
    BACKDROPS,
    SIZE,
    Placed,
    draw,
    pocket_item,
    random_look,
)
from spatext_lab.scene.places import Box

CROP = SIZE // 2  # pixels, of a crop and of an image at half the resolution
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
# Counts and relations are the hardest to learn: they have to be right for several objects at once.
SKILL_WEIGHTS = {"object": 2, "colour": 1, "count": 2, "spatial": 4}


@dataclass(frozen=True)
class View:
    """An image, captions that are all true of it, and which part of the whole image it shows."""

    image: UInt8[np.ndarray, "size size 3"]  # 64 pixels, or 32
    captions: tuple[str, ...]
    objects: Bool[np.ndarray, "size size"]  # where objects are, for the weights of the loss
    window: Box = WHOLE


def small_view(index: int, seed: int = 0) -> View:
    """View `index` of 32 x 32 pixels: a crop around an object, or large objects, by turns."""
    rng = Random(f"{seed}/small/{index}")
    return _crop(rng) if index % 2 else _half(_rendered(rng, large_objects(rng)))


def large_view(index: int, seed: int = 0) -> View:
    """View `index` of 64 x 64 pixels.

    Half of them are PaintSkills' training items, a third scenes of the pocket world, a sixth large
    objects.
    """
    rng, turn = Random(f"{seed}/large/{index}"), index % 6
    if turn < 3:
        return _skill(rng)
    return _scene(rng, seed) if turn < 5 else _rendered(rng, large_objects(rng))


def _crop(rng: Random) -> View:
    """A window of half the image's width and height with one object in it."""
    side = round(rng.triangular(10, 29, 24))
    x, y = (rng.randint(1, SIZE - 1 - side) for _ in range(2))
    thing = Placed(random_look(rng, "train"), x, y, side, rng.random() < 0.5)
    # any window that has all of the object
    left, top = (
        rng.randint(max(0, at + side - CROP), min(at, SIZE - CROP)) for at in (thing.x, thing.y)
    )
    whole = _rendered(rng, [thing], located=False)
    window = np.s_[top : top + CROP, left : left + CROP]
    box = (left / SIZE, top / SIZE, (left + CROP) / SIZE, (top + CROP) / SIZE)
    return View(whole.image[window], whole.captions, whole.objects[window], box)


def _half(view: View) -> View:
    """The view at half the resolution: the mean of four pixels."""
    pixels = view.image.reshape(CROP, 2, CROP, 2, 3).mean((1, 3))
    objects = view.objects.reshape(CROP, 2, CROP, 2).mean((1, 3)) >= 0.5
    return View((pixels + 0.5).astype(np.uint8), view.captions, objects)


def large_objects(rng: Random) -> list[Placed]:
    """One object of up to seven eighths of the image's width, or two to four smaller ones."""
    n = rng.choices((1, 2, 3, 4), (4, 3, 2, 2))[0]
    smallest, largest = ((26, 56), (20, 30), (20, 27), (20, 27))[n - 1]
    equal = rng.random() < 0.5
    looks = [random_look(rng, "train") for _ in range(n)]
    while True:
        sides = [rng.randint(smallest, largest) for _ in looks]
        if equal:
            looks, sides = looks[:1] * n, sides[:1] * n
        placed = [_anywhere(rng, *each) for each in zip(looks, sides, strict=True)]
        if all(gap(a, b) >= GAP / 2 for i, a in enumerate(placed) for b in placed[:i]):
            return placed


def _anywhere(rng: Random, look: Look, side: int) -> Placed:
    x, y = (rng.randint(1, SIZE - 1 - side) for _ in range(2))
    return Placed(look, x, y, side, rng.random() < 0.5)


def _rendered(rng: Random, placed: Sequence[Placed], located: bool = True) -> View:
    """The objects in front of a random backdrop, with captions of every kind."""
    backdrop = rng.choice(tuple(BACKDROPS))
    image, owner, _ = draw(rng, backdrop, lambda: placed)
    looks = [thing.look for thing in placed]
    centres = [(thing.x + thing.side / 2, thing.y + thing.side / 2) for thing in placed]
    prompt, where = prompt_of(rng, placed), rng.choice(PLACE_WORDS[backdrop])
    texts = captions(rng, backdrop, looks, centres)[:3]
    rich = rich_caption(rng, looks, centres) if located else texts[0]
    return View(image, (*texts, rich, prompt, f"{prompt} {where}"), owner >= 2)


def _scene(rng: Random, seed: int) -> View:
    """A training scene of the pocket world; every third caption is a rich one."""
    item = pocket_item("train", rng.randrange(1_000_000_000), seed)
    things = [s for s in item.segments if s.is_thing]
    seen = [s for s in things if s.mask.any()]
    looks = [(s.label, s.colour, s.pattern) for s in seen]
    centres = [tuple(float(v.mean()) for v in np.nonzero(s.mask)[::-1]) for s in seen]
    rich = tuple(rich_caption(rng, looks, centres) for _ in range(2))
    objects = np.any([s.mask for s in things], axis=0)
    return View(item.image, (*item.captions, *rich), objects)


def _skill(rng: Random) -> View:
    """A training item of PaintSkills with its prompt, of any of 2^32 sets of them."""
    skill = rng.choices(tuple(SKILL_WEIGHTS), tuple(SKILL_WEIGHTS.values()))[0]
    item = skill_item(skill, "train", rng.randrange(SPLITS[skill]["train"]), rng.getrandbits(32))
    objects = np.any([region.mask_at(SIZE, SIZE) for region in item.scene.regions], axis=0)
    return View(item.image, (item.prompt,), objects)


def prompt_of(rng: Random, placed: Sequence[Placed]) -> str:
    """A prompt in PaintSkills' words: kinds, sometimes colours, a number, or a relation of two."""
    looks = [thing.look for thing in placed]
    coloured = rng.random() < 0.5

    def named(look: Look, plural: bool = False) -> str:
        return f"{look[1]} {noun(rng, look[0], plural)}" if coloured else noun(rng, look[0], plural)

    if len({look[:2] for look in looks}) == 1:
        n = len(looks)
        many = article(named(looks[0])) if n == 1 else f"{NUMBERS[n]} {named(looks[0], True)}"
        return f"a photo of {many}"
    names = [named(look) for look in looks]
    prompt = f"a photo of {' and '.join(article(name) for name in names)}"
    if len(placed) == 2 and looks[0][0] != looks[1][0] and (relation := relation_of(*placed)):
        prompt += f"; the {names[1]} is {RELATIONS[relation]} the {names[0]}"
    return prompt


def rich_caption(rng: Random, looks: Sequence[Look], centres: Sequence[tuple[float, float]]) -> str:
    """Every object with its colour, its pattern and where it is."""
    pairs = zip(looks, centres, strict=True)
    return ", ".join(f"{thing_text(rng, look)} {where(*centre)}" for look, centre in pairs)


def where(x: float, y: float) -> str:
    """Where a point is, in thirds of the image; x and y in pixels of the whole image."""
    across, down = (
        ("left", "", "right")[int(3 * x / SIZE)],
        ("top", "", "bottom")[int(3 * y / SIZE)],
    )
    if across and down:
        return f"at the {down} {across}"
    if down:
        return f"at the {down}"
    return f"on the {across}" if across else "in the middle"
