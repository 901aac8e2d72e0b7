# SPDX-License-Identifier: Apache-2.0
"""Intervals against scipy's exact test and by simulation; kappa against the paper's example."""

from itertools import permutations

import numpy as np
import pytest
from scipy.stats import binomtest

from spatext_lab.evaluation.study.statistics import answers_needed, binomial_interval, fleiss_kappa


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 20), (1, 3), (7, 12), (50, 100), (20, 20)])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_the_interval_is_scipys(k, n, level):
    want = binomtest(k, n).proportion_ci(level, method="exact")
    np.testing.assert_allclose(binomial_interval(k, n, level), want, atol=1e-9)


def test_no_answer_says_nothing():
    assert binomial_interval(0, 0) == (0, 1)


@pytest.mark.parametrize("share", [0.03, 0.5, 0.8])
@pytest.mark.parametrize("n", [10, 60])
def test_the_interval_covers(share, n):
    """Of many simulated studies, at least 93 % have the true share in the 95 % interval."""
    found = np.random.default_rng(0).binomial(n, share, size=4000)
    intervals = {k: binomial_interval(k, n) for k in set(found.tolist())}
    covered = [intervals[k][0] <= share <= intervals[k][1] for k in found.tolist()]
    assert np.mean(covered) >= 0.93


@pytest.mark.parametrize("width", [0.4, 0.2, 0.1])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_the_number_needed_is_the_first_that_is_enough(width, share):
    n = 1
    while np.ptp(binomial_interval(share * n, n)) > width:
        n += 1
    assert answers_needed(width, share) == n


def test_a_half_needs_most_and_a_known_number():
    assert answers_needed(0.1) == max(answers_needed(0.1, share) for share in (0.2, 0.5, 0.9))
    assert 384 < answers_needed(0.1) < 430  # the normal approximation gives 384


@pytest.mark.parametrize("width", [0, 1, -0.1, 1e-9])
def test_a_width_that_is_none_is_named(width):
    with pytest.raises(ValueError, match=f"width is {width}; pass one from 0.001"):
        answers_needed(width)


def test_kappa_of_a_known_table():
    """The example that is printed everywhere: 10 subjects, 14 raters, 5 categories, 0.210."""
    rows = "0 0 0 0 14,0 2 6 4 2,0 0 3 5 6,0 3 9 2 0,2 2 8 1 1,7 7 0 0 0,3 2 6 3 0,2 5 3 2 2"
    rows += ",6 5 2 1 0,0 2 2 3 7"
    counts = np.array([row.split() for row in rows.split(",")], int)
    assert fleiss_kappa(counts) == pytest.approx(0.210, abs=5e-4)


def test_kappa_is_agreement_of_pairs_of_raters_beyond_chance():
    """With different numbers of raters, against a count over all pairs of raters by hand."""
    votes = ["aab", "bb", "a", "abab", "aaaa"]
    counts = np.array([[v.count("a"), v.count("b")] for v in votes])
    many = [v for v in votes if len(v) > 1]
    agreed = [np.mean([x == y for x, y in permutations(v, 2)]) for v in many]
    a = "".join(many).count("a") / len("".join(many))
    chance = a**2 + (1 - a) ** 2
    assert fleiss_kappa(counts) == pytest.approx((np.mean(agreed) - chance) / (1 - chance))


@pytest.mark.parametrize("counts", [[[0, 0]], [[1, 0], [0, 1]], [[3, 0], [2, 0]]])
def test_kappa_that_cannot_be_told(counts):
    assert fleiss_kappa(np.array(counts)) is None


def test_kappa_of_full_agreement_is_one():
    assert fleiss_kappa(np.array([[3, 0], [0, 2]])) == 1
