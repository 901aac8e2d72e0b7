# SPDX-License-Identifier: Apache-2.0
"""The statistics of a blind study: an exact interval, how many answers it takes, agreement."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from jaxtyping import Integer

LEVEL = 0.95  # of every interval


# Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the
# binomial" (1934), by quantiles of the beta distribution
def binomial_interval(k: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """The exact interval of a share, from k of n answers.

    It is never narrower than its level says, and holds for answers that are independent.

    Args:
        k: answers for it, from 0 to n; between two whole numbers it is interpolated.
        n: all answers.
        level: at least this fraction of such intervals contain the true share.

    Returns:
        (lower end, upper end), fractions; (0, 1) without an answer.
    """
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    low = betaincinv(k, n - k + 1, tail) if k > 0 else 0.0
    high = betaincinv(k + 1, n - k, 1 - tail) if k < n else 1.0
    return float(low), float(high)


def answers_needed(width: float, share: float = 0.5) -> int:
    """The smallest number of independent answers whose interval is no wider than wanted.

    Args:
        width: upper minus lower end, from 0.001 to below 1; 0.1 is a share within 5 points.
        share: the share that is expected; 0.5 needs the most answers.

    Raises:
        ValueError: a width out of range.
    """
    if not 0.001 <= width < 1:
        raise ValueError(f"width is {width}; pass one from 0.001 to below 1, such as 0.1")

    def narrow(n: int) -> bool:
        low, high = binomial_interval(share * n, n)
        return high - low <= width

    most = 1
    while not narrow(most):
        most *= 2
    return bisect_left(range(most), True, key=narrow)


# Fleiss, "Measuring nominal scale agreement among many raters" (1971), with the mean over subjects
# of the observed agreement, so that they may have different numbers of raters
def fleiss_kappa(counts: Integer[np.ndarray, "subjects categories"]) -> float | None:
    """Agreement between raters: 1 is full, 0 is that of chance, below 0 less than that.

    Args:
        counts: how many raters put each subject into each category; a subject with fewer than two
            is left out.

    Returns:
        Kappa; None where no subject has two raters, or all chose one category.
    """
    counts = counts[counts.sum(axis=1) >= 2]
    n = counts.sum(axis=1)
    observed = np.mean((counts * (counts - 1)).sum(axis=1) / (n * (n - 1))) if len(n) else 0.0
    chance = float(((counts.sum(axis=0) / max(n.sum(), 1)) ** 2).sum())
    return None if not len(n) or chance == 1 else float((observed - chance) / (1 - chance))
