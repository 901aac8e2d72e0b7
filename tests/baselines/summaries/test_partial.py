# SPDX-License-Identifier: Apache-2.0
"""Predicting anew only what changes: against plain sampling, slow loops and a world of cells."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from spatext_lab.baselines.summaries.partial import PartialDenoiser, showing, smallest_windows
from spatext_lab.diffusion import Condition, initial_noise, noise_schedule, sample, to_x0_eps
from spatext_lab.text_to_image.unet import PocketUNet
from tests.baselines.conftest import POCKET_SHAPE
from tests.tiny import WIDTH

SIDE, STEPS = 16, 6


def some_condition(b: int) -> Condition:
    return Condition(torch.randn(b, 4, 6), torch.randn(b, 4, 6), torch.randn(b, 5, SIDE, SIDE))


def cellwise(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """Each cell knows only itself, its map and its caption: a crop changes nothing."""
    own = condition.st_map.mean(1, keepdim=True) + condition.text.mean((1, 2)).view(-1, 1, 1, 1)
    return torch.tanh(0.5 * x_t + own + t.view(-1, 1, 1, 1) / 1000)


def run(mask, b: int = 3, denoiser=cellwise, **settings) -> tuple[PartialDenoiser, list]:
    torch.manual_seed(4)
    condition, scheduler = some_condition(b), noise_schedule()
    partial = PartialDenoiser(denoiser, mask, scheduler, **settings)
    x_T = initial_noise(range(b), (4, SIDE, SIDE))
    return partial, list(sample(partial, scheduler, x_T, condition, STEPS))


def everything(x_t: Tensor, t: Tensor, st_map: Tensor) -> Tensor:
    return torch.ones_like(x_t[:, 0], dtype=torch.bool)


def nothing(x_t: Tensor, t: Tensor, st_map: Tensor) -> Tensor:
    return ~everything(x_t, t, st_map)


def some(x_t: Tensor, t: Tensor, st_map: Tensor) -> Tensor:
    """Another part of each image at each timestep."""
    mask = nothing(x_t, t, st_map)
    for k in range(len(x_t)):
        y, x = (int(t[k]) // 7 + 3 * k) % 11, (int(t[k]) // 3 + 5 * k) % 11
        mask[k, y : y + 3 + 2 * k, x : x + 4] = True
    return mask


@pytest.mark.parametrize("sides", [None, [0, 16], [0, 8, 16]])
def test_a_mask_of_ones_is_plain_sampling(sides):
    partial, steps = run(everything, sides=sides)
    torch.manual_seed(4)
    condition, scheduler = some_condition(3), noise_schedule()
    x_T = initial_noise(range(3), (4, SIDE, SIDE))
    for one, other in zip(steps, sample(cellwise, scheduler, x_T, condition, STEPS), strict=True):
        assert torch.equal(one.x_t, other.x_t)
    assert partial.computed == [STEPS * 3 * SIDE**2] * 2


def test_a_mask_of_zeros_ends_in_the_first_image():
    """All later steps only remove the noise; the image is the one that was predicted first."""
    calls = []

    def counted(x_t, t, condition):
        calls.append(len(x_t))
        return cellwise(x_t, t, condition)

    partial, steps = run(nothing, denoiser=counted, sides=[0, 16])
    assert calls == [3]
    assert_close(steps[-1].x_t, steps[0].x_0, atol=1e-4, rtol=1e-4)
    assert partial.computed == [3 * SIDE**2, STEPS * 3 * SIDE**2]


def by_hand(b: int, mask) -> Tensor:
    """The summary's form, cell by cell: a cell that is not updated keeps its predicted x_0."""
    torch.manual_seed(4)
    condition, alphas = some_condition(b), noise_schedule().alphas_cumprod
    x_t, held = initial_noise(range(b), (4, SIDE, SIDE)), None
    times = torch.linspace(1000, 0, STEPS + 1).round().long() - 1
    for k, t in enumerate(times[:-1]):
        t_in = t.expand(b)
        pred = cellwise(x_t, t_in, condition)
        x_0, _ = to_x0_eps(pred, x_t, t_in, alphas, "v_prediction")
        needed = mask(x_t, t_in, condition.st_map)
        for i in range(b):
            for y in range(SIDE):
                for x in range(SIDE):
                    if held is not None and not needed[i, y, x]:
                        x_0[i, :, y, x] = held[i, :, y, x]
        held = x_0
        eps = (x_t - alphas[t].sqrt() * x_0) / (1 - alphas[t]).sqrt()
        after = alphas[t - 1000 // STEPS] if k < STEPS - 1 else torch.tensor(1.0)
        x_t = after.sqrt() * x_0 + (1 - after).sqrt() * eps
    return x_t


def test_the_summarys_form_against_a_loop_over_cells():
    _, steps = run(some, b=2)
    assert_close(steps[-1].x_t, by_hand(2, some), atol=1e-4, rtol=1e-3)


def test_windows_hold_all_that_is_needed():
    """A denoiser of single cells gives the same for a window as for the whole image, so windows
    can only update more than the cells that are needed; here exactly as a mask of windows does."""
    sides = [0, 8, 12, 16]

    def windows(x_t, t, st_map):
        mask = nothing(x_t, t, st_map)
        for k, (side, y, x) in enumerate(smallest_windows(some(x_t, t, st_map), sides).tolist()):
            mask[k, y : y + side, x : x + side] = True
        return mask

    cropped, ours = run(some, sides=sides)
    whole, theirs = run(windows)
    assert_close(ours[-1].x_t, theirs[-1].x_t, atol=1e-5, rtol=1e-5)
    assert cropped.computed == whole.computed
    assert cropped.computed[0] < cropped.computed[1]


def test_an_image_is_the_same_alone_and_in_a_batch():
    torch.manual_seed(4)
    condition, scheduler = some_condition(3), noise_schedule()
    x_T, rows = initial_noise(range(3), (4, SIDE, SIDE)), slice(2, 3)
    one = Condition(condition.text[rows], condition.null_text[rows], condition.st_map[rows])
    first = lambda x_t, t, st_map: st_map[:, 0] > 1  # noqa: E731
    settings = {"sides": [0, 8, 16], "spare": 0.1}
    batch = PartialDenoiser(cellwise, first, scheduler, **settings)
    alone = PartialDenoiser(cellwise, first, scheduler, **settings)
    *_, many = sample(batch, scheduler, x_T, condition, 4)
    *_, single = sample(alone, scheduler, x_T[rows], one, 4)
    assert_close(many.x_t[rows], single.x_t)


def slowest(needed: Tensor, sides: list[int], spare: float) -> int:
    """The side of the smallest window, by trying every place of the grid."""
    h, w = needed.shape
    for side in sides:
        for y in range(0, h - side + 1, 4):
            for x in range(0, w - side + 1, 4):
                inside = needed[y : y + side, x : x + side].sum()
                if needed.sum() - inside <= spare * h * w:
                    return side
    raise AssertionError


@pytest.mark.parametrize("spare", [0.0, 0.05])
def test_the_smallest_window_against_a_search(spare):
    sides = [0, 4, 8, 12, 16]
    needed = torch.rand(60, 16, 16) < torch.linspace(0, 0.2, 60)[:, None, None]
    needed[:, :, 9:] &= torch.arange(60)[:, None, None] % 2 == 0
    needed[0] = False
    found = smallest_windows(needed, sides, spare)
    assert found[:, 0].tolist() == [slowest(one, sides, spare) for one in needed]
    for one, (side, y, x) in zip(needed, found.tolist(), strict=True):
        assert 0 <= y <= 16 - side
        assert 0 <= x <= 16 - side
        assert one.sum() - one[y : y + side, x : x + side].sum() <= spare * 256
    assert len(found[:, 0].unique()) >= 3


def test_a_pocket_unet_is_passed_where_the_window_lies():
    """A window of its first convolution is what the whole image has there, inside of the border."""
    unet, seen = PocketUNet(**POCKET_SHAPE), []
    hook = unet.conv_in.register_forward_hook(lambda _, args, out: seen.append(out))
    x, text = torch.randn(2, 4, 16, 16), torch.randn(2, 3, WIDTH)
    window = torch.tensor([[0.5, 0.25, 1.0, 0.75]])
    try:
        with torch.no_grad():
            unet(x, 5, text)
            with showing(unet, window):
                unet(x[:, :, 4:12, 8:16], 5, text)
            unet(x[:, :, 4:12, 8:16], 5, text)
    finally:
        hook.remove()
    whole, passed, without = seen
    inner = (..., slice(1, -1), slice(1, -1))
    assert_close(passed[inner], whole[:, :, 4:12, 8:16][inner], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(without[inner], passed[inner], atol=1e-2)
    assert not unet._forward_pre_hooks
