# SPDX-License-Identifier: Apache-2.0
"""Strokes and fillings against slow truths: fractions, pixel by pixel, and a walk."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatext_lab.widgets.strokes import flood, stroke

H, W = 11, 14
POINTS = st.lists(st.tuples(st.integers(-4, W + 3), st.integers(-4, H + 3)), min_size=1, max_size=4)


def distance_squared(p, a, b) -> Fraction:
    """From p to the nearest point of the line from a to b."""
    d = [Fraction(b[i] - a[i]) for i in (0, 1)]
    length = d[0] ** 2 + d[1] ** 2
    along = sum((p[i] - a[i]) * d[i] for i in (0, 1)) / length if length else Fraction(0)
    along = min(max(along, Fraction(0)), Fraction(1))
    return sum((p[i] - a[i] - along * d[i]) ** 2 for i in (0, 1))


@settings(max_examples=60, deadline=None)
@given(POINTS, st.integers(1, 7))
def test_a_stroke_is_every_centre_within_half_a_brush(points, size):
    lines = list(pairwise(points)) or [(points[0], points[0])]
    slow = [
        [
            min(distance_squared((x, y), *ab) for ab in lines) <= Fraction(size, 2) ** 2
            for x in range(W)
        ]
        for y in range(H)
    ]
    assert np.array_equal(stroke(points, size, H, W), slow)


def test_a_point_is_a_disc():
    assert stroke([(2, 2)], 1, 5, 5).sum() == 1
    assert stroke([(2, 2)], 3, 5, 5).tolist() == [
        [False, False, False, False, False],
        [False, True, True, True, False],
        [False, True, True, True, False],
        [False, True, True, True, False],
        [False, False, False, False, False],
    ]


@given(
    st.tuples(st.integers(0, 40), st.integers(0, 40)),
    st.tuples(st.integers(0, 40), st.integers(0, 40)),
)
def test_the_thinnest_stroke_has_no_gap(a, b):
    """From end to end by steps to one of the eight neighbours."""
    left = {(int(x), int(y)) for y, x in np.argwhere(stroke([a, b], 1, 41, 41))}
    todo = [a]
    left.discard(a)
    while todo:
        x, y = todo.pop()
        near = {(x + i, y + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
        left -= near
        todo += near
    assert left == set()


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=6, max_size=6), min_size=5, max_size=5), st.data()
)
def test_a_filling_is_what_a_walk_reaches(rows, data):
    labels = np.array(rows, np.uint8)
    x, y = data.draw(st.integers(0, 5)), data.draw(st.integers(0, 4))
    reached, todo = set(), [(x, y)]
    while todo:
        i, j = todo.pop()
        if (i, j) in reached or not (0 <= i < 6 and 0 <= j < 5) or labels[j, i] != labels[y, x]:
            continue
        reached.add((i, j))
        todo += [(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)]
    assert {(int(i), int(j)) for j, i in np.argwhere(flood(labels, (x, y)))} == reached


@pytest.mark.parametrize(
    ("points", "size", "says"),
    [([], 3, "points is"), ([(1, 1)], 0, "size 0"), ([(1.5, 2)], 3, "1.5"), ([(1, 2, 3)], 3, "3")],
)
def test_a_bad_stroke_is_refused(points, size, says):
    with pytest.raises(ValueError, match=says):
        stroke(points, size, 8, 8)


def test_a_filling_off_the_picture_is_refused():
    with pytest.raises(ValueError, match="outside the image"):
        flood(np.zeros((4, 4), np.uint8), (4, 0))
