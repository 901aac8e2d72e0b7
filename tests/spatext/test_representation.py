# SPDX-License-Identifier: Apache-2.0
"""The spatio-textual map against loops over its cells."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from spatext_lab.scene import Region, Scene
from spatext_lab.spatext.representation import (
    OVERSAMPLE,
    choose_segments,
    coverage,
    inference_map,
    paint,
    region_maps,
    training_map,
)

D = 5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def patches(b: int, k: int, side: int = 16) -> Tensor:
    """Random disjoint masks (b, k, side, side); a part of the image belongs to none."""
    owner = torch.randint(0, k + 1, (b, side // 4, side // 4), generator=generator(b))
    owner = owner.repeat_interleave(4, 1).repeat_interleave(4, 2)
    return owner[:, None] == torch.arange(k)[None, :, None, None]


# --- coverage and paint ---------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "size"), [(16, (4, 4)), (12, (6, 3)), (8, (8, 8)), (9, (3, 1))])
def test_coverage_against_a_mean_over_each_cell(side, size):
    masks = torch.rand(2, 3, side, side) < 0.4
    got, (h, w) = coverage(masks, size), size
    assert got.shape == (2, 3, h, w)
    for b, k, y, x in product(range(2), range(3), range(h), range(w)):
        cell = masks[b, k, y * side // h : (y + 1) * side // h, x * side // w : (x + 1) * side // w]
        fraction = sum(bool(pixel) for row in cell for pixel in row) / cell.numel()
        assert got[b, k, y, x].item() == pytest.approx(fraction, abs=1e-6)


def test_coverage_keeps_the_area_however_the_masks_are_stacked():
    masks = torch.rand(6, 64, 64) < torch.rand(6, 1, 1)
    cover = coverage(masks, (16, 16))
    assert_close(cover.mean((1, 2)), masks.float().mean((1, 2)))
    assert torch.equal(coverage(masks.view(3, 2, 64, 64), (16, 16)), cover.view(3, 2, 16, 16))
    assert torch.equal(coverage(masks[4], (16, 16)), cover[4])


def test_paint_against_a_loop_over_the_cells():
    embeddings, cover = torch.randn(2, 3, D), torch.rand(2, 3, 4, 6)
    painted = paint(embeddings, cover)
    for b, y, x in product(range(2), range(4), range(6)):
        cell = torch.zeros(D)
        for k in range(3):
            cell += cover[b, k, y, x] * embeddings[b, k]
        assert_close(painted[b, :, y, x], cell)


def test_a_whole_cell_holds_the_very_embedding_and_an_empty_one_zeros():
    embeddings, masks = torch.randn(1, 2, D), torch.zeros(1, 2, 8, 8, dtype=torch.bool)
    masks[0, 0, :4], masks[0, 1, 4:, :4] = True, True
    painted = paint(embeddings, coverage(masks, (4, 4)))[0]
    assert torch.equal(painted[:, :2], embeddings[0, 0][:, None, None].expand(-1, 2, 4))
    assert torch.equal(painted[:, 2:, :2], embeddings[0, 1][:, None, None].expand(-1, 2, 2))
    assert not painted[:, 2:, 2:].any()


# --- the training map -----------------------------------------------------------------------------


def chosen(st_map: Tensor, embeddings: Tensor, cover: Tensor) -> list[set[int]]:
    """Which segments each image's map was painted from: the weights, each 0 or 1, that solve
    map = sum of weight x embedding x coverage."""
    parts = (embeddings[..., None, None] * cover[:, :, None]).flatten(2).mT
    weights = torch.linalg.lstsq(parts, st_map.flatten(1)[..., None]).solution[..., 0]
    assert_close(parts @ weights[..., None], st_map.flatten(1)[..., None], atol=1e-4, rtol=0)
    assert_close(weights, weights.round(), atol=1e-3, rtol=0)
    return [{i for i, weight in enumerate(row) if weight > 0.5} for row in weights]


@pytest.mark.parametrize("count", [(1, 3), (2, 2), (1, 1), (0, 4)])
def test_the_number_of_chosen_segments_is_in_the_range_and_varies(count):
    b, k = 200, 4
    cover = coverage(torch.eye(4, dtype=torch.bool).view(1, 4, 2, 2).expand(b, -1, -1, -1), (2, 2))
    embeddings = torch.randn(b, k, D)
    sets = chosen(training_map(embeddings, cover, count, 0.05, generator()), embeddings, cover)
    assert {len(s) for s in sets} == set(range(count[0], count[1] + 1))
    numbers = np.bincount([len(s) for s in sets], minlength=5)[count[0] : count[1] + 1]
    assert numbers.min() > 0.7 * numbers.mean(), "not sampled evenly"
    assert {i for s in sets for i in s} == set(range(k))


def test_every_segment_is_chosen_as_often_as_the_others():
    embeddings, cover = torch.randn(1, 4, D).expand(300, -1, -1), torch.zeros(300, 4, 2, 2)
    cover.view(300, 4, 4)[:, range(4), range(4)] = 1
    sets = chosen(training_map(embeddings, cover, (1, 3), 0.05, generator()), embeddings, cover)
    often = np.bincount([i for s in sets for i in s])
    assert often.min() > 0.8 * often.mean()


def test_small_segments_and_empty_rows_are_never_chosen():
    """Areas: half, a quarter, 1/16, 1/64 of the image and an unused row of zeros."""
    masks = torch.zeros(100, 5, 8, 8, dtype=torch.bool)
    masks[:, 0, :4], masks[:, 1, 4:, :4], masks[:, 2, 4:6, 4:6], masks[:, 3, 7, 7] = (True,) * 4
    embeddings, cover = torch.randn(100, 5, D), coverage(masks, (4, 4))
    embeddings[:, 4] = 0
    for min_area, allowed in ((0.02, {0, 1, 2}), (0.05, {0, 1, 2}), (0.1, {0, 1}), (0.3, {0})):
        st_map = training_map(embeddings, cover, (3, 3), min_area, generator())
        sets = chosen(st_map, embeddings[:, :4], cover[:, :4])
        assert set(map(frozenset, sets)) == {frozenset(allowed)}


def test_unused_rows_are_never_chosen():
    """Without a least area too; the rows that are used are all chosen where all are wanted."""
    covered = torch.rand(8, 6, 4, 4, generator=generator())
    used = torch.arange(6) < torch.tensor([1, 2, 3, 4, 5, 6, 3, 2])[:, None]
    covered = covered * used[..., None, None]
    chosen = choose_segments(covered, (6, 6), 0.0, generator())
    assert torch.equal(chosen, used)


def test_where_nothing_is_large_enough_the_map_is_zero():
    cover = torch.full((2, 3, 4, 4), 0.01)
    assert not training_map(torch.randn(2, 3, D), cover, (1, 3), 0.05, generator()).any()


def test_a_training_map_holds_each_segments_embedding_in_its_place_and_zeros_elsewhere():
    """All cells are whole: a cell is a chosen segment's embedding or nothing, never a mixture."""
    masks, embeddings = patches(6, 4), torch.randn(6, 4, D)
    st_map = training_map(embeddings, coverage(masks, (4, 4)), (1, 3), 0.0, generator())
    for b, y, x in product(range(6), range(4), range(4)):
        owner = [k for k in range(4) if masks[b, k, 4 * y, 4 * x]]
        cell = st_map[b, :, y, x]
        assert not cell.any() or (owner and torch.equal(cell, embeddings[b, owner[0]]))


def test_a_training_map_is_the_same_for_the_same_generator():
    embeddings, cover = torch.randn(3, 4, D), coverage(patches(3, 4), (4, 4))
    one, two, other = (
        training_map(embeddings, cover, (1, 3), 0.05, generator(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


# --- the inference map ----------------------------------------------------------------------------

BOOK = {"ball": torch.tensor([1.0, 0, 0]), "tree": torch.tensor([0, 1.0, 0])}


def look_up(texts: list[str]) -> Tensor:
    return torch.stack([BOOK[text] for text in texts])


def test_a_map_of_boxes_by_hand():
    """The ball fills the left half; the tree lies over its lower right quarter of a quarter."""
    scene = Scene(
        "", [Region("ball", box=(0, 0, 0.5, 1)), Region("tree", box=(0.25, 0.5, 0.75, 1))]
    )
    expected = torch.zeros(3, 4, 4)
    expected[0, :, :2] = 1
    expected[:, 2:, 1:3] = torch.tensor([0, 1.0, 0])[:, None, None]
    assert torch.equal(inference_map(scene, look_up, (4, 4)), expected)


def test_half_a_cell_holds_half_an_embedding():
    scene = Scene("", [Region("ball", box=(0.125, 0, 1, 0.25))])
    st_map = inference_map(scene, look_up, (4, 4))
    assert_close(st_map[0, 0], torch.tensor([0.5, 1, 1, 1]))
    assert not st_map[0, 1:].any()


def test_a_map_of_masks_against_a_loop():
    rng = np.random.default_rng(0)
    masks = rng.random((2, 32, 32)) < [[[0.5]], [[0.3]]]
    scene = Scene("", [Region("ball", mask=masks[0]), Region("tree", mask=masks[1])])
    st_map = inference_map(scene, look_up, (8, 8))
    assert OVERSAMPLE * 8 == 32  # so that the masks are read as they are
    for y, x in product(range(8), range(8)):
        cell = np.s_[4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
        tree = masks[1][cell].mean()
        ball = (masks[0] & ~masks[1])[cell].mean()
        assert_close(st_map[:, y, x], torch.tensor([ball, tree, 0], dtype=torch.float32))


def test_a_map_of_a_large_image_is_near_the_true_fractions():
    """A disc in 512 x 512 pixels, read on a 32 x 32 grid: within an eighth of a cell or so."""
    y, x = np.mgrid[:512, :512] + 0.5
    disc = np.hypot(x - 260, y - 240) < 150
    scene = Scene("", [Region("ball", mask=disc)])
    true = disc.reshape(8, 64, 8, 64).mean((1, 3))
    error = np.abs(inference_map(scene, look_up, (8, 8))[0].numpy() - true)
    assert error.max() < 0.15
    assert error.mean() < 0.02


def test_region_texts_are_read_in_the_scenes_order():
    asked = []

    def remember(texts: list[str]) -> Tensor:
        asked.append(texts)
        return look_up(texts)

    regions = [Region(text, box=(0, 0, 1, 1)) for text in ("tree", "ball", "tree")]
    st_map = inference_map(Scene("a wood", regions), remember, (2, 2))
    assert asked == [["tree", "ball", "tree"]]
    assert torch.equal(st_map, BOOK["tree"][:, None, None].expand(3, 2, 2))


def test_a_scene_without_regions_is_refused():
    with pytest.raises(ValueError, match="regions is empty"):
        inference_map(Scene("a meadow"), look_up, (4, 4))


class Allocated(TorchDispatchMode):
    """Adds up the bytes of every tensor that an operation gives back, freed or not."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not any(
            isinstance(a, Tensor) and a.data_ptr() == out.data_ptr() for a in args
        ):
            self.total += out.numel() * out.element_size()
        return out


def test_no_map_is_built_at_the_size_of_the_image():
    """8 regions, 768 numbers, 512 x 512 pixels: 805 MB that way; the map itself is 12.6 MB."""
    regions = [Region(str(k), box=(k / 8, 0, (k + 1) / 8, 1)) for k in range(8)]
    embeddings = torch.randn(8, 768)
    with Allocated() as allocated:
        st_map = inference_map(Scene("", regions), lambda texts: embeddings, (64, 64))
    assert st_map.shape == (768, 64, 64)
    assert allocated.total < 40e6, f"{allocated.total / 1e6:.0f} MB"


def test_the_work_that_is_shown_is_the_work_that_is_done():
    embeddings, cover = torch.randn(3, 4, D), coverage(patches(3, 4), (4, 4))
    given = (embeddings, cover, (1, 2), 0.0)
    work = training_map(*given, generator(5), show_work=True)
    assert torch.equal(work["st_map"], training_map(*given, generator(5)))
    assert torch.equal(paint(work["painted"], cover), work["st_map"])
    for b, k in product(range(3), range(4)):
        assert torch.equal(work["painted"][b, k], embeddings[b, k] * work["chosen"][b, k])

    regions = [Region("ball", box=(0, 0, 1, 0.5)), Region("tree", box=(0, 0.25, 1, 1))]
    scene = Scene("a wood", regions)
    work = inference_map(scene, look_up, (4, 4), show_work=True)
    assert torch.equal(work["st_map"], inference_map(scene, look_up, (4, 4)))
    assert torch.equal(work["embeddings"], look_up(["ball", "tree"]))
    assert work["coverage"].sum((1, 2)).tolist() == [4.0, 12.0]
    parts = region_maps(work["embeddings"], work["coverage"])
    assert_close(parts.sum(0), work["st_map"])
    for k in range(2):
        assert torch.equal(
            parts[k], paint(work["embeddings"][None, [k]], work["coverage"][None, [k]])[0]
        )
