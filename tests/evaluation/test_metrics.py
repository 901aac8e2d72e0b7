# SPDX-License-Identifier: Apache-2.0
"""The metrics against loops over the pixels, closed forms and torchmetrics."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import linalg, stats
from torchmetrics.functional.image import peak_signal_noise_ratio
from torchmetrics.image.fid import FrechetInceptionDistance

from spatext_lab import zoo
from spatext_lab.clip import Clip
from spatext_lab.datasets.pocket import pocket_item
from spatext_lab.evaluation.metrics import (
    bootstrap,
    frechet_distance,
    local_iou,
    psnr,
    region_correct,
    touching,
)
from spatext_lab.images import to_tensor, to_unit


def slow_touching(patches: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A flood from every pixel of the mask, over neighbours left, right, above and below."""
    height, width = mask.shape
    wet = np.zeros_like(mask)
    edge = [p for p in product(range(height), range(width)) if mask[p] and patches[p]]
    while edge:
        y, x = edge.pop()
        if 0 <= y < height and 0 <= x < width and patches[y, x] and not wet[y, x]:
            wet[y, x] = True
            edge += [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
    return wet


def slow_iou(seen: np.ndarray, masks: np.ndarray, labels: list[int]) -> list[float]:
    scores = []
    for label in labels:
        asked = np.zeros(seen.shape, bool)
        for mask, other in zip(masks, labels, strict=True):
            if other == label:
                asked |= mask
        drawn = slow_touching(seen == label, asked)
        both = either = 0
        for pixel in product(*map(range, seen.shape)):
            both += asked[pixel] and drawn[pixel]
            either += asked[pixel] or drawn[pixel]
        scores.append(both / either)
    return scores


def square(top: int, left: int, side: int = 8, size: int = 32) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[top : top + side, left : left + side] = True
    return mask


@pytest.mark.parametrize("seed", range(6))
def test_local_iou_against_a_flood_fill(seed):
    """Three labels in blots, four masks of which two have one label."""
    rng = np.random.default_rng(seed)
    seen = rng.integers(0, 3, (8, 8)).repeat(3, 0).repeat(3, 1)
    seen[rng.random((24, 24)) < 0.1] = 0
    owner = rng.integers(0, 5, (6, 6)).repeat(4, 0).repeat(4, 1)
    masks, labels = owner == np.arange(4)[:, None, None], [2, 1, 2, 0]
    np.testing.assert_allclose(local_iou(seen, masks, labels), slow_iou(seen, masks, labels))
    assert np.array_equal(touching(seen == 1, masks[0]), slow_touching(seen == 1, masks[0]))


@pytest.mark.parametrize("shift", range(9))
def test_a_shifted_square_in_closed_form(shift):
    """(8 - d) 8 pixels are common to both and (8 + d) 8 in one of them; beside it, nothing is."""
    seen = np.where(square(4, 4 + shift), 3, 0)
    (score,) = local_iou(seen, square(4, 4)[None], [3])
    assert score == pytest.approx((8 - shift) / (8 + shift))


def test_a_patch_far_away_does_not_count_and_one_that_spills_over_does():
    mask = square(4, 4)
    alone = np.where(mask, 3, 0)
    two = np.where(square(20, 20), 3, alone)
    spilt = np.where(square(4, 12), 3, alone)
    assert local_iou(two, mask[None], [3]) == [1]
    assert local_iou(spilt, mask[None], [3]) == [0.5]


def test_patches_that_touch_at_a_corner_are_two():
    mask = square(4, 4)
    assert local_iou(np.where(mask | square(12, 12), 3, 0), mask[None], [3]) == [1]


def test_equal_labels_are_taken_together():
    """Two stars side by side, drawn as one patch, are both right."""
    masks = np.stack([square(4, 4), square(4, 12)])
    seen = np.where(masks.any(0), 3, 0)
    assert local_iou(seen, masks, [3, 3]).tolist() == [1, 1]
    seen[masks[1]] = 0
    assert local_iou(seen, masks, [3, 3]).tolist() == [0.5, 0.5]
    assert local_iou(seen, masks, [3, 0])[0] == 1


def test_another_label_scores_nothing():
    assert local_iou(np.full((32, 32), 5), square(4, 4)[None], [3]) == [0]


# --- region_correct -------------------------------------------------------------------------------

MASK = square(4, 4)
KINDS, COLOURS = np.where(MASK, 3, 0), np.where(MASK, 2, 0)


def test_a_region_is_correct_where_kind_and_colour_are():
    assert region_correct(KINDS, COLOURS, MASK, 3, 2)
    assert not region_correct(KINDS, COLOURS, MASK, 4, 2)
    assert not region_correct(KINDS, COLOURS, MASK, 3, 1)
    assert region_correct(KINDS, COLOURS, ~MASK, 0, None)


def test_stuff_has_no_colour_to_get_wrong():
    assert region_correct(KINDS, COLOURS, MASK, 3, None)


def test_most_of_the_pixels_decide():
    kinds, colours = KINDS.copy(), COLOURS.copy()
    kinds[4:7], colours[4:7] = 7, 5  # 24 of 64 pixels
    assert region_correct(kinds, colours, MASK, 3, 2)
    kinds[7:9] = 7  # 40 of 64
    assert not region_correct(kinds, colours, MASK, 3, 2)
    assert region_correct(kinds, colours, MASK, 7, 2)
    colours[7:9] = 5
    assert not region_correct(kinds, colours, MASK, 7, 2)


def test_pixels_without_a_colour_do_not_vote():
    """A tree: 48 pixels of trunk, which has none, and 16 of crown."""
    colours = COLOURS.copy()
    colours[4:10] = 0
    assert region_correct(KINDS, colours, MASK, 3, 2)
    assert not region_correct(KINDS, np.zeros_like(colours), MASK, 3, 2)


def test_what_is_seen_outside_of_the_mask_does_not_matter():
    outside = np.where(MASK, KINDS, 9), np.where(MASK, COLOURS, 7)
    assert region_correct(*outside, MASK, 3, 2)


# --- psnr and bootstrap ---------------------------------------------------------------------------


def test_psnr_against_torchmetrics_and_in_closed_form():
    a, b = np.random.default_rng(0).random((2, 5, 8, 8, 3))
    theirs = peak_signal_noise_ratio(torch.from_numpy(a), torch.from_numpy(b), data_range=1.0)
    assert psnr(a, b) == pytest.approx(theirs.item(), rel=1e-6)
    assert psnr(a, a + 0.1) == pytest.approx(20)
    assert psnr(a, a + 1 / 255) == pytest.approx(20 * math.log10(255))


def test_the_interval_against_the_normal_approximation():
    """One region a scene: mean plus or minus 1.96 standard errors."""
    values = (np.random.default_rng(0).random(400) < 0.8).astype(float)
    low, high = bootstrap(values, np.arange(400), draws=4000)
    error = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + error, abs=0.15 * error)


def test_regions_of_one_scene_are_drawn_together():
    """Four equal regions a scene say no more than one: twice as wide as if they were free."""
    once = (np.random.default_rng(1).random(300) < 0.7).astype(float)
    four, scenes = once.repeat(4), np.arange(300).repeat(4)
    together, apart = (
        np.ptp(bootstrap(four, groups, draws=4000)) for groups in (scenes, np.arange(1200))
    )
    assert together / apart == pytest.approx(2, rel=0.1)
    assert together == pytest.approx(np.ptp(bootstrap(once, np.arange(300), draws=4000)), rel=0.1)


def test_the_interval_against_scipys_bootstrap():
    """Scenes of one to four regions: scipy resamples pairs (sum, number) and takes their ratio."""
    rng = np.random.default_rng(3)
    counts = rng.integers(1, 5, 200)
    groups = np.arange(200).repeat(counts)
    values = rng.normal(np.repeat(rng.random(200) + counts, counts), 0.2)  # larger where many are
    sums = np.bincount(groups, values)
    theirs = stats.bootstrap(
        (sums, counts),
        lambda s, n, axis=-1: s.sum(axis) / n.sum(axis),
        paired=True,
        n_resamples=8000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    ours = bootstrap(values, groups, draws=8000)
    np.testing.assert_allclose(ours, theirs, atol=0.05 * (theirs.high - theirs.low))


def test_groups_of_many_sizes_against_a_loop():
    """The very draws, taken one by one: a mean over regions, not a mean of the scenes' means."""
    values, groups = [1.0, 0, 0, 1, 1, 0.5, 0, 1], [7, 7, 7, 3, 3, 9, 2, 2]
    rng = np.random.default_rng(5)
    picks, means = rng.integers(4, size=(200, 4)), []
    for pick in picks:
        drawn = [
            v for g in pick for v, w in zip(values, groups, strict=True) if w == [2, 3, 7, 9][g]
        ]
        means.append(sum(drawn) / len(drawn))
    want = np.percentile(means, (2.5, 97.5))
    np.testing.assert_allclose(bootstrap(values, groups, seed=5, draws=200), want)


def test_intervals_repeat_and_equal_values_leave_no_doubt():
    values = np.random.default_rng(0).random(50)
    assert bootstrap(values, np.arange(50)) == bootstrap(values, np.arange(50))
    assert bootstrap(values, np.arange(50)) != bootstrap(values, np.arange(50), seed=1)
    assert bootstrap(np.ones(9), np.arange(9) // 2) == (1, 1)


# --- Frechet distance -----------------------------------------------------------------------------


def test_frechet_distance_against_scipys_matrix_root():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(40, 5)), rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5)) + 1
    c_a, c_b = np.cov(a.T), np.cov(b.T)
    apart = a.mean(0) - b.mean(0)
    want = apart @ apart + np.trace(c_a + c_b - 2 * linalg.sqrtm(c_a @ c_b).real)
    assert frechet_distance(a, b) == pytest.approx(want, rel=1e-6)


def test_frechet_distance_of_numbers_is_known():
    """Two Gaussians on a line: (m - n)^2 + (s - t)^2."""
    a = np.array([[-1.0, 0.0], [1.0, 0.0]])  # variance 2 and 0
    b = np.array([[2.0, 3.0], [6.0, 3.0]])  # mean 4 and 3, variance 8 and 0
    assert frechet_distance(a, b) == pytest.approx(16 + 9 + (2**0.5 - 8**0.5) ** 2)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


class Embedding(torch.nn.Module):
    """The pocket CLIP as torchmetrics wants a feature extractor: uint8 images to vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = Clip.from_pretrained(zoo.folder("pocket", "spatext/clip"))
        self.num_features = self.clip.embedding_dim

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.clip.encode_images(images / 255)


@torch.no_grad()
def test_frechet_distance_against_torchmetrics_on_images():
    """True scenes of two splits, embedded by the pocket CLIP; their class has no better digits."""
    sets = [[pocket_item(split, k).image for k in range(100)] for split in ("val", "test")]
    batches = [torch.from_numpy(np.stack(some)).permute(0, 3, 1, 2) for some in sets]
    network = Embedding()
    theirs = FrechetInceptionDistance(network)
    for batch, real in zip(batches, (True, False), strict=True):
        theirs.update(batch, real=real)
    clouds = [
        network.clip.encode_images(to_unit(to_tensor(map(Image.fromarray, some)))).numpy()
        for some in sets
    ]
    assert frechet_distance(*clouds) == pytest.approx(theirs.compute().item(), rel=2e-3)
