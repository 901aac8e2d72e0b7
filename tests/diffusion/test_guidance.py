# SPDX-License-Identifier: Apache-2.0
"""Guidance against slow loops and against Gaussians, whose guided denoiser is known."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from spatext_lab.diffusion import (
    Condition,
    guided,
    initial_noise,
    multi_guided,
    noise_schedule,
    sample,
    to_x0_eps,
)

B, SHAPE = 3, (2, 4, 4)
ALPHAS_CUMPROD = noise_schedule().alphas_cumprod.double()


class Counted:
    """A denoiser that remembers the batch size of each call. Caption and map work on each other
    (`tanh` of their product), so that together they do another thing than one plus the other."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.batches.append(len(x_t))
        text = condition.text.mean((1, 2))[:, None, None, None]
        st_map = 0.0 if condition.st_map is None else condition.st_map.mean(1, keepdim=True)
        time = (t / 1000)[:, None, None, None]
        return torch.sin(x_t + time) + text * x_t + st_map + torch.tanh(5 * text * st_map)


class Split(Condition):
    """A condition of three parts: the first half of the caption's states, the second, the map."""

    def single_conditions(self) -> list[Condition]:
        null, half = self.null(), self.text.shape[1] // 2
        first = torch.cat([self.text[:, :half], self.null_text[:, half:]], dim=1)
        second = torch.cat([self.null_text[:, :half], self.text[:, half:]], dim=1)
        return [
            replace(null, text=first),
            replace(null, text=second),
            replace(null, st_map=self.st_map),
        ]


class Twice(Condition):
    """A condition whose two parts are the same: the whole."""

    def single_conditions(self) -> list[Condition]:
        return [self, self]


def inputs(kind: type[Condition] = Condition, with_map: bool = True):
    """(x_t, t, condition), in float64."""
    text, null_text = torch.randn(2, B, 6, 5, dtype=torch.float64)
    st_map = torch.randn(B, 7, *SHAPE[1:], dtype=torch.float64) if with_map else None
    x_t = torch.randn(B, *SHAPE, dtype=torch.float64)
    return x_t, torch.tensor([0, 500, 999]), kind(text, null_text, st_map)


def one_by_one(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """Counted, an image at a time."""

    def row(k: int) -> Condition:
        st_map = None if condition.st_map is None else condition.st_map[[k]]
        return Condition(condition.text[[k]], condition.null_text[[k]], st_map)

    return torch.cat([Counted()(x_t[[k]], t[[k]], row(k)) for k in range(len(x_t))])


def slow_multi(
    x_t: Tensor, t: Tensor, condition: Condition, parts: list[Condition], scales: Sequence[float]
) -> Tensor:
    eps_null = one_by_one(x_t, t, condition.null())
    total = eps_null.clone()
    for part, scale in zip(parts, scales, strict=True):
        total += scale * (one_by_one(x_t, t, part) - eps_null)
    return total


# --- one scale ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 7.5])
@pytest.mark.parametrize("with_map", [True, False])
def test_guided_equals_a_slow_loop(scale, with_map):
    x_t, t, condition = inputs(with_map=with_map)
    slow = slow_multi(x_t, t, condition, [condition], [scale])
    assert_close(guided(Counted(), scale)(x_t, t, condition), slow)


def test_scale_one_is_exactly_the_conditional_model_in_one_pass():
    args = inputs()
    denoiser = Counted()
    assert torch.equal(guided(denoiser, 1.0)(*args), Counted()(*args))
    assert denoiser.batches == [B]


def test_scale_zero_is_the_unconditional_model():
    x_t, t, condition = inputs()
    assert_close(guided(Counted(), 0.0)(x_t, t, condition), Counted()(x_t, t, condition.null()))


def test_guided_is_a_straight_line_in_the_scale():
    args = inputs()
    at = {scale: guided(Counted(), scale)(*args) for scale in (0.0, 1.0, 2.0, 6.0)}
    slope = at[1.0] - at[0.0]
    assert slope.abs().min() > 0
    assert_close(at[2.0], at[0.0] + 2 * slope)
    assert_close(at[6.0], at[0.0] + 6 * slope)


def test_guided_calls_once_with_twice_the_batch():
    denoiser = Counted()
    guided(denoiser, 3.0)(*inputs())
    assert denoiser.batches == [2 * B]


# --- a scale for each condition -----------------------------------------------------------------


@pytest.mark.parametrize("scales", [(0.0, 0.0), (1.0, 1.0), (3.0, 0.0), (0.0, 3.0), (2.0, 5.5)])
def test_multi_guided_equals_a_slow_loop(scales):
    """The parts are written out here, so that the order (caption, map) is tested too."""
    x_t, t, condition = inputs()
    caption = Condition(condition.text, condition.null_text, torch.zeros_like(condition.st_map))
    st_map = Condition(condition.null_text, condition.null_text, condition.st_map)
    slow = slow_multi(x_t, t, condition, [caption, st_map], scales)
    assert_close(multi_guided(Counted(), scales)(x_t, t, condition), slow)


def test_multi_guided_with_three_conditions_equals_a_slow_loop():
    x_t, t, condition = inputs(Split)
    denoiser, scales = Counted(), (1.5, 4.0, 0.5)
    slow = slow_multi(x_t, t, condition, condition.single_conditions(), scales)
    assert_close(multi_guided(denoiser, scales)(x_t, t, condition), slow)
    assert denoiser.batches == [4 * B]


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
def test_multi_guided_with_one_condition_equals_guided(scale):
    args = inputs(with_map=False)
    assert_close(multi_guided(Counted(), [scale])(*args), guided(Counted(), scale)(*args))


def test_equal_conditions_add_their_scales():
    args = inputs(Twice)
    assert_close(multi_guided(Counted(), [1.5, 2.0])(*args), guided(Counted(), 3.5)(*args))


def test_scales_of_one_differ_from_the_joint_model_where_conditions_interact():
    """Why the fast form is an approximation of the many-scales form, and not the same."""
    args = inputs()
    difference = multi_guided(Counted(), [1.0, 1.0])(*args) - guided(Counted(), 1.0)(*args)
    assert difference.abs().max() > 0.1


def test_multi_guided_calls_once_a_step_with_three_times_the_batch():
    denoiser = Counted()
    x_T, _, condition = inputs()
    steps = list(sample(multi_guided(denoiser, [3.0, 3.0]), noise_schedule(), x_T, condition, 5))
    assert len(steps) == 5
    assert denoiser.batches == [3 * B] * 5


# --- Gaussians: to guide moves the mean -----------------------------------------------------------


def mean_of(condition: Condition) -> Tensor:
    text = condition.text.mean((1, 2))[:, None, None, None]
    return text + condition.st_map.mean(1, keepdim=True)


def gaussian_eps(x_t: Tensor, t: Tensor, mean: Tensor) -> Tensor:
    """The ideal eps where the data are N(mean, 1)."""
    a = ALPHAS_CUMPROD[t][:, None, None, None]
    return (1 - a).sqrt() * (x_t - a.sqrt() * mean)


def gaussian_v(x_t: Tensor, t: Tensor, mean: Tensor) -> Tensor:
    """The ideal v where the data are N(mean, 1): it does not look at x_t."""
    return -(1 - ALPHAS_CUMPROD[t]).sqrt()[:, None, None, None] * mean.expand_as(x_t)


@pytest.mark.parametrize("ideal", [gaussian_eps, gaussian_v])
def test_guidance_of_gaussians_is_a_gaussian_with_a_moved_mean(ideal):
    x_t, t, condition = inputs()
    caption, st_map = condition.single_conditions()
    null = mean_of(condition.null())

    def denoiser(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return ideal(x_t, t, mean_of(condition))

    joint = ideal(x_t, t, null + 4.0 * (mean_of(condition) - null))
    assert_close(guided(denoiser, 4.0)(x_t, t, condition), joint)
    moved = null + 2.0 * (mean_of(caption) - null) + 3.0 * (mean_of(st_map) - null)
    multi = multi_guided(denoiser, [2.0, 3.0])(x_t, t, condition)
    assert_close(multi, ideal(x_t, t, moved))


def test_guided_samples_of_gaussians_end_at_the_moved_mean():
    """The deterministic path from x_T ends at mean + x_T for data N(mean, 1)."""
    _, _, condition = inputs()
    caption, st_map = condition.single_conditions()
    null = mean_of(condition.null())
    moved = null + 2.0 * (mean_of(caption) - null) + 3.0 * (mean_of(st_map) - null)
    x_T = initial_noise([0, 1, 2], SHAPE).double()
    denoiser = multi_guided(lambda x_t, t, c: gaussian_v(x_t, t, mean_of(c)), [2.0, 3.0])
    *_, step = sample(denoiser, noise_schedule(), x_T, condition, 200)
    assert_close(step.x_t, moved + x_T, rtol=0, atol=0.03)


@pytest.mark.parametrize("scales", [(2.0,), (1.0, 4.0)])
def test_to_guide_v_is_to_guide_eps(scales):
    x_t, t, condition = inputs()

    def eps_of(v: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return to_x0_eps(v, x_t, t, ALPHAS_CUMPROD, "v_prediction")[1]

    def eps_denoiser(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return eps_of(Counted()(x_t, t, condition), x_t, t)

    def guide(denoiser):
        return guided(denoiser, *scales) if len(scales) == 1 else multi_guided(denoiser, scales)

    by_v = eps_of(guide(Counted())(x_t, t, condition), x_t, t)
    assert_close(guide(eps_denoiser)(x_t, t, condition), by_v)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.usefixtures("as_for_users")
@pytest.mark.parametrize("scale", [-0.1, math.nan, math.inf, -math.inf, "2", None])
def test_scales_that_are_no_scales_are_refused(scale):
    with pytest.raises(ValueError, match=r"^guidance_scale is .* finite number >= 0"):
        guided(Counted(), scale)
    with pytest.raises(ValueError, match=r"^scales\[1\] is .* finite number >= 0"):
        multi_guided(Counted(), [1.0, scale])


@pytest.mark.parametrize(
    ("scales", "with_map"), [([2.0], True), ([1.0] * 3, True), ([2.0, 2.0], False)]
)
def test_a_wrong_number_of_scales_is_refused(scales, with_map):
    denoise, parts = multi_guided(Counted(), scales), 1 + with_map
    with pytest.raises(
        ValueError, match=f"scales holds {len(scales)} numbers and .* {parts} parts"
    ):
        denoise(*inputs(with_map=with_map))
