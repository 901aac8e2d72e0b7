# SPDX-License-Identifier: Apache-2.0
"""Metrics of region control, as functions of the judge's label maps and of what was asked for."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

Labels = Int[np.ndarray, "h w"]
Mask = Bool[np.ndarray, "h w"]


# SpaText, arXiv 2211.14305, section 4 ("local IOU"): a segmenter's segment against the input mask
def local_iou(
    seen: Labels, masks: Bool[np.ndarray, "k h w"], labels: Sequence[int]
) -> Float[np.ndarray, "k"]:
    """Intersection over union of each region's mask with the segment found for it, in [0, 1].

    The segment is the union of all connected patches of the region's label that touch the mask: a
    second star elsewhere does not count against this one, a star that spills over its mask does.
    Regions with equal labels share one segment, because patches that touch cannot be separated.

    Args:
        seen: the judge's label map.
        masks: one bool mask per region.
        labels: the label of each region.
    """
    labels = np.asarray(labels)
    scores = np.zeros(len(labels))
    for label in np.unique(labels):
        asked = masks[labels == label].any(0)
        found = touching(seen == label, asked)
        scores[labels == label] = (asked & found).sum() / (asked | found).sum()
    return scores


def touching(patches: Mask, mask: Mask) -> Mask:
    """The 4-connected patches that share a pixel with the mask."""
    numbered, _ = ndimage.label(patches)
    return patches & np.isin(numbered, np.unique(numbered[mask & patches]))


def region_correct(
    kinds: Labels, colours: Labels, mask: Mask, label: int, colour: int | None
) -> bool:
    """Whether most of a region has the kind asked for, and most of its coloured pixels the colour.

    Pixels without a colour (a tree's trunk, a boat's sail) count for the kind only.

    Args:
        kinds: the judge's label map.
        colours: the judge's colour map, 0 for no colour.
        mask: the region's pixels.
        label: the kind asked for.
        colour: number of the colour (1 ...); None for stuff, whose colour is not asked for.
    """
    if np.bincount(kinds[mask]).argmax() != label:
        return False
    if colour is None:
        return True
    coloured = colours[mask & (colours > 0)]
    return len(coloured) > 0 and bool(np.bincount(coloured).argmax() == colour)


def psnr(a: Float[np.ndarray, "*any"], b: Float[np.ndarray, "*any"]) -> float:
    """Peak signal-to-noise ratio in dB of images in [0, 1]: 10 log10(1 / mean squared error)."""
    return float(10 * np.log10(1 / np.mean(np.square(a - b))))


# Heusel et al., arXiv 1706.08500, equation 6: |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))
def frechet_distance(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """Distance between two sets of vectors, each modelled as a Gaussian; 0 for equal sets."""
    apart = a.mean(0) - b.mean(0)
    c_a, c_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # the trace of the root is the sum of the roots of the eigenvalues, all real and >= 0
    roots = np.sqrt(np.linalg.eigvals(c_a @ c_b).real.clip(min=0)).sum()
    return float(apart @ apart + np.trace(c_a) + np.trace(c_b) - 2 * roots)


def bootstrap(
    values: Sequence[float] | np.ndarray,
    groups: Sequence[int] | np.ndarray,
    seed: int = 0,
    draws: int = 1000,
) -> tuple[float, float]:
    """95 % interval of the mean, by resampling whole groups (scenes) with replacement.

    Regions of one image fail together, so resampling single regions would give an interval that is
    too narrow.

    Args:
        values: one per region.
        groups: the scene that each region belongs to.
        seed: of the resampling.
        draws: number of resampled means.
    """
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    totals, counts = np.bincount(group, np.asarray(values, float)), np.bincount(group)
    pick = np.random.default_rng(seed).integers(len(counts), size=(draws, len(counts)))
    return middle(totals[pick].sum(1) / counts[pick].sum(1))


def middle(resampled: Float[np.ndarray, "draws"]) -> tuple[float, float]:
    """The middle 95 % of a number in resamples."""
    low, high = np.percentile(resampled, (2.5, 97.5))
    return float(low), float(high)


def mean_and_interval(
    name: str, values: Sequence[float] | np.ndarray, groups: Sequence[int] | np.ndarray
) -> dict:
    """The mean of some values and its `bootstrap` interval, as entries of a report.

    Args:
        name: of the mean; the interval's is the same with `_95`.
        values: one per region; where there are none, the mean is None and has no interval.
        groups: the scene that each region belongs to.
    """
    if not len(values):
        return {name: None}
    interval = [round(x, 4) for x in bootstrap(values, groups)]
    return {name: round(float(np.mean(values)), 4), f"{name}_95": interval}
