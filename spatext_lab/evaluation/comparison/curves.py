# SPDX-License-Identifier: Apache-2.0
"""Scenes of rising difficulty: many objects, overlapping, tiny or large ones, new combinations.

Averages hide where a method fails. Each curve varies one thing and keeps the others at what the
models were trained on. LayoutBench's splits (Cho et al., arXiv 2304.06671) lie outside of it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from random import Random

import numpy as np

from spatext_lab.datasets.pocket import SIZE, Placed, held_out
from spatext_lab.datasets.pocket.shapes import sprite
from spatext_lab.datasets.pocket.world import composed, overlap, random_look
from spatext_lab.evaluation.comparison.scenes import SPLIT, SceneSet
from spatext_lab.evaluation.tasks import Task
from spatext_lab.scene import Region, Scene
from spatext_lab.scene.places import Box, tight_box

PER_BIN = 32  # scenes, at most
TRAINED = (10, 29)  # sides of the training objects in pixels
SMALL = (10, 14)  # sides at which eight objects find room
LEAST_VISIBLE = 8  # pixels of an object

Place = Callable[[Random], list[Placed]]


@dataclass(frozen=True)
class Bin:
    """A point of a curve, or a split.

    Args:
        curve: its name, a heading.
        label: of the point.
        x: where it stands on the axis.
        place: from a random number generator to the objects of a scene, the nearest last.
    """

    curve: str
    label: str
    x: float
    place: Place


def curve_sets(scenes: int, seed: int) -> list[tuple[Bin, SceneSet]]:
    """Every bin with its scenes.

    Args:
        scenes: of the comparison; a bin has as many, but PER_BIN at most.
        seed: of the first image, and of the scenes.
    """
    found = []
    for number, each in enumerate(bins()):
        made = [_scene(each, k, seed) for k in range(min(scenes, PER_BIN))]
        todo, boxes = zip(*made, strict=True)
        found.append((each, SceneSet(f"curve-{number:02}", todo, boxes, seed)))
    return found


def bins() -> Iterator[Bin]:
    """All bins, curve by curve, then LayoutBench's splits."""
    for n in range(1, 9):
        yield Bin("number of regions", str(n), n, _scattered(n, SMALL))
    for low, high in ((0, 0), (0, 20), (20, 40), (40, 60)):
        label, middle = f"{low}-{high} %" if high else "0 %", (low + high) / 2
        yield Bin("overlap", label, middle, _overlapping(low / 100, high / 100))
    edges = (5, 10, 15, 20, 30, 45, 60)
    for low, high in pairwise(edges):
        sides = _pixels(low, high)
        yield Bin("size", f"{low}-{high} %", (low + high) / 2, _scattered(1, sides))
    for held in range(4):
        place = _scattered(3, (14, 22), held)
        yield Bin("held-out combinations", f"{held} of 3", held, place)
    splits = {
        "as in training": _scattered((1, 3), (14, 22)),
        "number: 6 to 8": _scattered((6, 8), SMALL),
        "position: at the edge, or all in the middle": _misplaced,
        "size: tiny or large": _missized,
        "combination: all held out": _scattered((1, 3), (14, 22), 3),
    }
    for x, (label, place) in enumerate(splits.items()):
        yield Bin("LayoutBench", label, x, place)


def _pixels(low: int, high: int) -> tuple[int, int]:
    """The whole sides in pixels that lie in a range of percent; the upper end is excluded."""
    return -(-low * SIZE // 100), -(-high * SIZE // 100) - 1


# --- where objects are ----------------------------------------------------------------------------


def _scattered(count: int | tuple[int, int], sides: tuple[int, int], held: int = 0) -> Place:
    """Objects that do not overlap, the first `held` of them held-out combinations."""

    def place(rng: Random) -> list[Placed]:
        n = count if isinstance(count, int) else rng.randint(*count)
        while True:
            placed = [_anywhere(rng, k < held, rng.randint(*sides)) for k in range(n)]
            if all(overlap(a, b) == 0 for k, a in enumerate(placed) for b in placed[:k]):
                return placed

    return place


def _overlapping(low: float, high: float) -> Place:
    """Two objects whose boxes share more than `low` and at most `high` of the smaller one."""

    def place(rng: Random) -> list[Placed]:
        while True:
            placed = [_anywhere(rng, False, rng.randint(16, 26)) for _ in range(2)]
            common = shared(*map(box_of, placed))
            if placed[0].look[0] != placed[1].look[0] and (
                low < common <= high or common == high == 0
            ):
                return placed

    return place


def _misplaced(rng: Random) -> list[Placed]:
    """Objects that touch the image's edge, or two over each other in its middle."""
    while True:
        placed = [_anywhere(rng, False, rng.randint(14, 22)) for _ in range(2)]
        if rng.random() < 0.5:
            placed = [_to_the_edge(rng, thing) for thing in placed]
            if overlap(*placed) == 0:
                return placed
        else:
            placed = [_to_the_middle(rng, thing) for thing in placed]
            if 0.3 < shared(*map(box_of, placed)) <= 0.6:
                return placed


def _to_the_edge(rng: Random, thing: Placed) -> Placed:
    x, y = rng.choice(((0, thing.y), (SIZE - thing.side, thing.y), (thing.x, 0)))
    return Placed(thing.look, x, y, thing.side, thing.mirrored)


def _to_the_middle(rng: Random, thing: Placed) -> Placed:
    x, y = ((SIZE - thing.side) // 2 + rng.randint(-8, 8) for _ in range(2))
    return Placed(thing.look, x, y, thing.side, thing.mirrored)


def _missized(rng: Random) -> list[Placed]:
    """One object of 5 to 10 % of the side, or one of 50 to 60 %."""
    return _scattered(1, rng.choice((_pixels(5, 10), _pixels(50, 60))))(rng)


def _anywhere(rng: Random, held: bool, side: int) -> Placed:
    look = _held_out_look(rng) if held else random_look(rng, "train")
    x, y = (rng.randint(1, SIZE - 1 - side) for _ in range(2))
    return Placed(look, x, y, side, rng.random() < 0.5)


def _held_out_look(rng: Random) -> tuple[str, str, str]:
    while True:
        look = random_look(rng, "test")
        if held_out(*look):
            return look


# --- scenes ---------------------------------------------------------------------------------------


def box_of(thing: Placed) -> Box:
    """The box of all of an object, also of what another one hides."""
    mask = np.zeros((SIZE, SIZE), bool)
    kind, _, pattern = thing.look
    window = np.s_[thing.y : thing.y + thing.side, thing.x : thing.x + thing.side]
    mask[window] = sprite(kind, pattern, thing.side, thing.mirrored).mask
    return tight_box(mask)


def shared(a: Box, b: Box) -> float:
    """Fraction of the smaller box that two boxes have in common."""
    width, height = (min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1))
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(width, 0) * max(height, 0) / smaller


def _scene(each: Bin, index: int, seed: int) -> tuple[Task, tuple[Box, ...]]:
    """A scene of a bin: its regions as visible masks, and the boxes of the whole objects."""
    rng = Random(f"{seed}/{each.curve}/{each.label}/{index}")
    while True:
        placed = each.place(rng)
        item = composed(rng, SPLIT, index, partial(list, placed))
        things = tuple(s for s in item.segments if s.is_thing)
        if all(s.mask.sum() >= LEAST_VISIBLE for s in things):
            regions = [Region(s.text, mask=s.mask) for s in things]
            task = Task(item, Scene(item.captions[0], regions), things)
            return task, tuple(map(box_of, placed))
