# SPDX-License-Identifier: Apache-2.0
"""Every bin's scenes have what the bin says, counted in their masks and boxes."""

import re

import numpy as np
import pytest

from spatext_lab.datasets.pocket import COLOURS, KINDS, PATTERNS
from spatext_lab.evaluation.comparison import curves
from spatext_lab.evaluation.comparison.curves import curve_sets
from spatext_lab.evaluation.comparison.scenes import SceneSet

NAMES = [f"{each.curve}, {each.label}" for each in curves.bins()]


@pytest.fixture(scope="module")
def sets() -> dict[str, SceneSet]:
    return dict(zip(NAMES, (one for _, one in curve_sets(8, 0)), strict=True))


def named(curve: str) -> list[str]:
    return [name for name in NAMES if name.startswith(f"{curve}, ")]


def numbers(name: str) -> list[int]:
    return [int(found) for found in re.findall(r"\d+", name)]


def is_new(segment) -> bool:
    """The Latin square's rule, written out: kinds, colours and patterns by their numbers."""
    number = KINDS.index(segment.label) + 2 * COLOURS.index(segment.colour)
    return (number + PATTERNS.index(segment.pattern)) % 5 == 0


def extent(mask: np.ndarray) -> int:
    """The longer side of what can be seen of an object, in pixels."""
    rows, columns = np.where(mask)
    return max(np.ptp(rows), np.ptp(columns)) + 1


def common(a, b) -> float:
    """Fraction of the smaller box that two share, counted on a grid of eighths of pixels."""
    centres = (np.arange(512) + 0.5) / 512
    inside = [
        np.outer((centres > y0) & (centres < y1), (centres > x0) & (centres < x1))
        for x0, y0, x1, y1 in (a, b)
    ]
    return (inside[0] & inside[1]).sum() / min(each.sum() for each in inside)


def test_there_are_the_bins_that_were_asked_for(sets, monkeypatch):
    assert [numbers(name) for name in named("number of regions")] == [[n] for n in range(1, 9)]
    sizes = [numbers(name) for name in named("size")]
    assert sizes[0][0] == 5
    assert sizes[-1][1] == 60
    assert [a[1] for a in sizes[:-1]] == [b[0] for b in sizes[1:]]
    assert numbers(named("overlap")[-1])[1] == 60
    assert len(named("LayoutBench")) == 5
    assert all(len(one.todo) == 8 for one in sets.values())
    assert len({one.name for one in sets.values()}) == len(sets)
    monkeypatch.setattr(curves, "PER_BIN", 2)
    assert all(len(one.todo) == 2 for _, one in curve_sets(500, 0))


@pytest.mark.parametrize("name", NAMES)
def test_regions_are_the_objects_that_can_be_seen(sets, name):
    one = sets[name]
    for task, boxes in zip(one.todo, one.boxes, strict=True):
        assert len(task.scene.regions) == len(task.segments) == len(boxes) > 0
        assert np.array_equal(task.masks, [segment.mask for segment in task.segments])
        assert task.masks.sum(0).max() == 1  # no pixel is two objects'
        for mask, (x0, y0, x1, y1) in zip(task.masks, boxes, strict=True):
            rows, columns = np.where(mask)  # of pixels, whose centres lie in the box
            assert 64 * x0 <= columns.min() < columns.max() + 1 <= 64 * x1
            assert 64 * y0 <= rows.min() < rows.max() + 1 <= 64 * y1


@pytest.mark.parametrize("name", named("number of regions"))
def test_numbers(sets, name):
    for task, boxes in zip(sets[name].todo, sets[name].boxes, strict=True):
        assert len(task.scene.regions) == numbers(name)[0]
        assert all(common(a, b) == 0 for k, a in enumerate(boxes) for b in boxes[:k])
        assert not any(map(is_new, task.segments))


@pytest.mark.parametrize("name", named("overlap"))
def test_overlaps(sets, name):
    low, high = numbers(name) if len(numbers(name)) == 2 else (0, 0)
    shares = [common(*boxes) for boxes in sets[name].boxes]
    assert all(low / 100 <= share <= high / 100 + 1e-9 for share in shares)
    if high:
        assert min(shares) > 0


@pytest.mark.parametrize("name", named("size"))
def test_sizes(sets, name):
    """A shape fills its square's longer side up to a pixel and a half."""
    low, high = (64 * n / 100 for n in numbers(name))
    for task in sets[name].todo:
        assert len(task.masks) == 1
        assert low - 3 <= extent(task.masks[0]) < high
    assert not any(is_new(task.segments[0]) for task in sets[name].todo)


@pytest.mark.parametrize("name", named("held-out combinations"))
def test_new_combinations(sets, name):
    for task in sets[name].todo:
        assert (sum(map(is_new, task.segments)), len(task.segments)) == (numbers(name)[0], 3)


def test_layoutbenchs_splits(sets):
    trained, number, position, size, combination = (sets[name] for name in named("LayoutBench"))
    assert {len(task.segments) for task in number.todo} <= {6, 7, 8}
    assert {len(task.segments) for task in trained.todo} <= {1, 2, 3}
    assert all(is_new(s) for task in combination.todo for s in task.segments)
    assert not any(is_new(s) for one in (trained, size) for t in one.todo for s in t.segments)
    # no training object has such a size: 10 to 29 pixels
    assert {len(task.masks) for task in size.todo} == {1}
    assert not any(7 <= extent(task.masks[0]) <= 29 for task in size.todo)
    for task, boxes in zip(position.todo, position.boxes, strict=True):
        if (share := common(*boxes)) == 0:  # at the edge: within a shape's margin of a pixel or two
            assert all(min(x0, y0, 1 - x1, 1 - y1) <= 5 / 64 for x0, y0, x1, y1 in boxes)
        else:  # training has overlaps of a fifth of the squares at most
            assert 0.3 < share <= 0.6
            assert all(abs(x0 + x1 - 1) < 0.4 for x0, _, x1, _ in boxes)
        assert len(task.segments) == 2


def test_scenes_repeat_and_another_seed_gives_others(sets):
    again, other = ([one for _, one in curve_sets(1, seed)] for seed in (0, 1))
    first = [one.todo[0].scene.to_json() for one in sets.values()]
    assert [one.todo[0].scene.to_json() for one in again] == first
    assert all(a != one.todo[0].scene.to_json() for a, one in zip(first, other, strict=True))
