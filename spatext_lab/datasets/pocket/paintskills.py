# SPDX-License-Identifier: Apache-2.0
"""PaintSkills in the pocket world: prompts with layouts that ask for one skill at a time.

Cho, Zala and Bansal, "DALL-Eval", arXiv 2202.04053: does a model generate the object that the
prompt names (object), so many of them (count), in that colour (colour), on that side of another
(spatial)?
Item *k* of a skill's split is the same on every machine; the splits are as long as the paper's.
"""

from dataclasses import dataclass
from functools import cached_property
from random import Random

import numpy as np

from spatext_lab.datasets.pocket.texts import NUMBERS, Look, article, noun
from spatext_lab.datasets.pocket.world import BACKDROPS, KINDS, SIZE, Placed, draw, random_look
from spatext_lab.scene import Region, Scene
from spatext_lab.scene.places import Box, tight_box

SKILLS = ("object", "count", "colour", "spatial")
# first version (2022), from the sizes that its generator is run with
SPLITS = {
    "object": {"train": 21_000, "val": 1_050},
    "count": {"train": 25_200, "val": 2_520},
    "colour": {"train": 25_200, "val": 2_520},
    "spatial": {"train": 28_224, "val": 3_528},
}
# Pixels between objects. Closer ones can be one segment to the judge: without a gap, of 149 true
# images with equal objects up to four pixels apart 32 were counted wrong, of 251 others one.
GAP = 4
# the relation of the second object to the first one, and its words
RELATIONS = {"left": "left of", "right": "right of", "above": "above", "below": "below"}


@dataclass(frozen=True)
class Thing:
    """One object that a prompt asks for; its colour is None where any will do."""

    kind: str
    colour: str | None
    box: Box | None  # None where all of it is hidden, which happens in published scenes alone


@dataclass(frozen=True)
class SkillPrompt:
    """A prompt and the layout that shows what it asks for."""

    skill: str
    split: str
    index: int
    prompt: str
    things: tuple[Thing, ...]
    texts: tuple[str, ...]  # of the objects
    relation: str | None  # of the second object to the first, where the skill is spatial

    @cached_property
    def scene(self) -> Scene:
        """The prompt as caption, the layout as regions."""
        pairs = zip(self.texts, self.things, strict=True)
        return Scene(self.prompt, [Region(text, box=one.box) for text, one in pairs if one.box])


@dataclass(frozen=True)
class SkillItem(SkillPrompt):
    """A prompt, its layout, and an image that shows what is asked for."""

    image: np.ndarray  # uint8 (64, 64, 3)


def skill_item(skill: str, split: str, index: int, seed: int = 0) -> SkillItem:
    """Item `index` of a skill's split.

    Raises:
        ValueError: an unknown skill or split, or an index beyond the split's length.
    """
    if skill not in SKILLS:
        raise ValueError(f"skill is {skill!r}; there are {', '.join(SKILLS)}")
    if split not in SPLITS[skill]:
        raise ValueError(f"split is {split!r}; {skill} has {', '.join(SPLITS[skill])}")
    if not 0 <= index < SPLITS[skill][split]:
        raise ValueError(f"index is {index}; {skill} {split} has 0 to {SPLITS[skill][split] - 1}")
    rng = Random(f"{seed}/paintskills/{skill}/{split}/{index}")
    looks, relation = _looks(rng, skill), None
    if skill == "spatial":
        relation = rng.choice(tuple(RELATIONS))
    backdrop = rng.choice(tuple(BACKDROPS))
    image, owner, placed = draw(rng, backdrop, lambda: _places(rng, looks, relation))
    boxes = [tight_box(owner == number) for number in range(2, 2 + len(placed))]
    things = tuple(
        Thing(thing.look[0], thing.look[1] if skill == "colour" else None, box)
        for thing, box in zip(placed, boxes, strict=True)
    )
    prompt, texts = _said(rng, skill, looks, relation)
    return SkillItem(skill, split, index, prompt, things, texts, relation, image)


def _looks(rng: Random, skill: str) -> list[Look]:
    """Looks that are never a held-out combination: these prompts test one skill at a time."""

    def plain(kinds: tuple[str, ...] = KINDS) -> Look:
        while True:
            look = random_look(rng, "train")
            if look[0] in kinds and look[2] == "plain":
                return look

    first = plain()
    if skill == "count":
        return [first] * rng.randint(1, 4)
    if skill == "spatial":
        return [first, plain(tuple(kind for kind in KINDS if kind != first[0]))]
    return [first]


def _places(rng: Random, looks: list[Look], relation: str | None) -> list[Placed]:
    """The objects GAP or more apart, the second in its relation to the first."""
    while True:
        sides = [rng.randint(13, 26 if len(looks) < 3 else 21) for _ in looks]
        if len(set(looks)) == 1:
            sides = [sides[0]] * len(looks)
        placed = [_anywhere(rng, *each) for each in zip(looks, sides, strict=True)]
        apart = all(gap(a, b) >= GAP for i, a in enumerate(placed) for b in placed[:i])
        if apart and (relation is None or relation_of(*placed) == relation):
            return placed


def _anywhere(rng: Random, look: Look, side: int) -> Placed:
    x, y = (rng.randint(1, SIZE - 1 - side) for _ in range(2))
    return Placed(look, x, y, side, rng.random() < 0.5)


def gap(a: Placed, b: Placed) -> int:
    """Pixels between two objects' squares on their axis of larger distance; negative on overlap."""
    return max(a.x - b.x - b.side, b.x - a.x - a.side, a.y - b.y - b.side, b.y - a.y - a.side)


def relation_of(a: Placed, b: Placed) -> str | None:
    """Where b lies relative to a, on their axis of larger distance; None if unclear."""
    dx, dy = (getattr(b, axis) + b.side / 2 - getattr(a, axis) - a.side / 2 for axis in ("x", "y"))
    if max(abs(dx), abs(dy)) < 1.5 * min(abs(dx), abs(dy)):
        return None
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def _said(
    rng: Random, skill: str, looks: list[Look], relation: str | None
) -> tuple[str, tuple[str, ...]]:
    """The prompt, and a text for each object."""
    first = noun(rng, looks[0][0])
    if skill == "object":
        return f"a photo of {article(first)}", (article(first),)
    if skill == "colour":
        phrase = article(f"{looks[0][1]} {first}")
        return f"a photo of {phrase}", (phrase,)
    if skill == "count":
        n = len(looks)
        many = article(first) if n == 1 else f"{NUMBERS[n]} {noun(rng, looks[0][0], True)}"
        return f"a photo of {many}", (article(first),) * n
    second = noun(rng, looks[1][0])
    prompt = f"a photo of {article(first)} and {article(second)}; the {second} is "
    return f"{prompt}{RELATIONS[relation]} the {first}", (article(first), article(second))
