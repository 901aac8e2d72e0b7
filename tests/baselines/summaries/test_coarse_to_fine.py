# SPDX-License-Identifier: Apache-2.0
"""Two sizes in one loop: statistics of the noise, a world in closed form, and a loop by hand."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler
from torch import Tensor
from torch.testing import assert_close

from spatext_lab.baselines.summaries.coarse_to_fine import (
    coarse_to_fine,
    enlarged,
    halved,
    halved_noise,
    implied,
)
from spatext_lab.diffusion import (
    Condition,
    add_noise,
    initial_noise,
    noise_schedule,
    sample,
    target,
    to_x0_eps,
)
from spatext_lab.spatext.pixel import PixelFold

TYPES = ["epsilon", "v_prediction", "sample"]


def neighbours(x: Tensor) -> float:
    """The mean correlation of horizontal and vertical neighbours."""
    pairs = ((x[..., 1:], x[..., :-1]), (x[..., 1:, :], x[..., :-1, :]))
    return sum(float((a * b).mean() / x.var()) for a, b in pairs) / 2


def some_condition(b: int, side: int = 8) -> Condition:
    return Condition(torch.randn(b, 4, 6), torch.randn(b, 4, 6), torch.randn(b, 5, side, side))


# --- the noise ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("fold", "channels"), [(1, 4), (4, 48)])
def test_halved_noise_is_white_with_variance_1(fold, channels):
    half = halved_noise(torch.randn(500, channels, 16, 16), fold)
    assert half.shape == (500, channels, 8, 8)
    pixels = F.pixel_shuffle(half, fold)
    assert_close(pixels.var(), torch.tensor(1.0), atol=0.02, rtol=0)
    assert abs(pixels.mean()) < 0.01
    assert abs(neighbours(pixels)) < 0.01


def test_enlarged_noise_would_be_neither():
    """Why x_t itself is not enlarged: the numbers of the module's docstring."""
    noise = torch.randn(2000, 1, 8, 8)
    copied = F.interpolate(noise, scale_factor=2)
    assert_close(copied.var(), torch.tensor(1.0), atol=0.02, rtol=0)
    assert neighbours(copied) > 0.4
    inner = enlarged(noise)[..., 2:-2, 2:-2]  # (1/4)^2 + (3/4)^2 = 5/8 along each axis
    assert_close(inner.var(), torch.tensor((5 / 8) ** 2), atol=0.02, rtol=0)
    assert neighbours(inner) > 0.4


def finite(images: Tensor, sizes: list | None = None):
    """The ideal denoiser of a finite set of images, at their size and at half of it."""
    alphas = noise_schedule().alphas_cumprod

    def denoise(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        if sizes is not None:
            sizes.append(x_t.shape[-1])
        known = images if x_t.shape[-1] == images.shape[-1] else F.avg_pool2d(images, 2)
        alpha, sigma = alphas[t.long()].sqrt(), (1 - alphas[t.long()]).sqrt()
        alpha, sigma = (v.view(-1, 1, 1, 1) for v in (alpha, sigma))
        off = (x_t[:, None] - alpha[:, None] * known[None]).square().flatten(2).sum(2)
        weight = (-off / (2 * sigma.view(-1, 1) ** 2)).softmax(1)
        x_0 = torch.einsum("bn,nchw->bchw", weight, known)
        return alpha * (x_t - alpha * x_0) / sigma - sigma * x_0

    return denoise


def test_x_t_after_the_change_of_size_has_the_schedules_noise():
    """Where one smooth image is all there is, what is left of x_t is white noise of variance 1."""
    smooth = enlarged(enlarged(torch.randn(1, 4, 2, 2)))
    scheduler, b = noise_schedule(), 400
    x_T = initial_noise(range(b), (4, 8, 8))
    seen = []

    def fine(x_t, t, condition):
        seen.append((x_t, int(t[0])))
        return finite(smooth)(x_t, t, condition)

    parts = (finite(smooth), fine, scheduler, x_T, some_condition(b), 10)
    list(coarse_to_fine(*parts, coarse_steps=6))
    x_t, t = seen[0]
    assert t == 399
    alpha_bar = scheduler.alphas_cumprod[t]
    x_0 = enlarged(F.avg_pool2d(smooth, 2))
    noise = (x_t - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()
    assert_close(noise.var(), torch.tensor(1.0), atol=0.02, rtol=0)
    assert abs(neighbours(noise)) < 0.01


# --- the loop -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [None, EulerDiscreteScheduler, DPMSolverMultistepScheduler],
    ids=["DDIM", "Euler", "DPM"],
)
def test_it_ends_in_the_images_of_a_finite_set(kind):
    scheduler = noise_schedule()
    if kind is not None:
        scheduler = kind.from_config(scheduler.config)
    images, sizes, b = 2 * torch.randn(3, 4, 8, 8), [], 24
    x_T = initial_noise(range(b), (4, 8, 8))
    parts = (finite(images, sizes), finite(images, sizes), scheduler, x_T, some_condition(b), 20)
    *_, last = coarse_to_fine(*parts, coarse_steps=10)
    assert sizes == [4] * 10 + [8] * 10
    off = (last.x_t[:, None] - images[None]).square().mean((2, 3, 4))
    assert off.min(1).values.max() < 0.02
    assert len(off.argmin(1).unique()) == 3


def test_against_a_loop_by_hand():
    """DDIM's steps written out, with the change of size between the third and the fourth."""
    scheduler = noise_schedule()
    alphas = scheduler.alphas_cumprod
    x_T, condition = initial_noise([3], (4, 8, 8)), some_condition(1)

    def denoiser(x_t, t, condition):  # of no use, but what it is passed is seen in the result
        return torch.tanh(0.5 * x_t + condition.st_map[:, :4] + t.view(-1, 1, 1, 1) / 1000)

    x_t = halved_noise(x_T)
    times = [999, 799, 599, 399, 199]
    for k, t in enumerate(times):
        after = alphas[times[k + 1]] if k + 1 < len(times) else torch.tensor(1.0)
        now = halved(condition) if k < 3 else condition
        pred = denoiser(x_t, torch.tensor([t]), now)
        x_0, eps = to_x0_eps(pred, x_t, torch.tensor([t]), alphas, "v_prediction")
        if k == 2:
            x_0, eps = enlarged(x_0), x_T
        x_t = after.sqrt() * x_0 + (1 - after).sqrt() * eps
    parts = (denoiser, denoiser, scheduler, x_T, condition, 5)
    steps = list(coarse_to_fine(*parts, coarse_steps=3))
    assert [step.x_t.shape[-1] for step in steps] == [4, 4, 4, 8, 8]
    assert [step.index for step in steps] == [0, 1, 2, 3, 4]
    assert_close(steps[-1].x_t, x_t, atol=1e-5, rtol=1e-5)


def test_no_coarse_steps_is_plain_sampling():
    images, scheduler, condition = torch.randn(4, 4, 8, 8), noise_schedule(), some_condition(2)
    parts = (scheduler, initial_noise([1, 2], (4, 8, 8)), condition, 4)
    ours = coarse_to_fine(finite(images), finite(images), *parts, coarse_steps=0)
    for one, other in zip(ours, sample(finite(images), *parts), strict=True):
        assert torch.equal(one.x_t, other.x_t)


@pytest.mark.parametrize("kind", TYPES)
def test_an_implied_prediction_implies_its_image(kind):
    scheduler, b = noise_schedule(kind), 6
    x_0, noise = torch.randn(b, 4, 8, 8).double(), torch.randn(b, 4, 8, 8).double()
    t = torch.tensor([1, 100, 300, 500, 700, 900])
    alphas = scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    x_t = add_noise(x_0, noise, t, alphas)
    pred = implied(x_0, x_t, t, scheduler)
    assert_close(pred, target(x_0, noise, t, alphas, kind))


def test_a_halved_map_is_the_map_of_halved_coverages():
    embeddings, covered = torch.randn(2, 3, 5), torch.rand(2, 3, 8, 8)
    paint = lambda c: torch.einsum("bkd,bkhw->bdhw", embeddings, c)  # noqa: E731
    condition = Condition(torch.zeros(2, 1, 1), torch.zeros(2, 1, 1), paint(covered))
    assert_close(halved(condition).st_map, paint(F.avg_pool2d(covered, 2)))


def test_pixels_are_enlarged_as_pixels():
    images, fold = torch.rand(2, 3, 32, 32), PixelFold()
    wanted = F.interpolate(images, scale_factor=2, mode="bilinear")
    got = fold.decode(enlarged(fold.encode(images).latents, fold.fold)).sample
    assert_close(got, wanted)


# --- what cannot be done ------------------------------------------------------------------------


@pytest.mark.parametrize("coarse_steps", [-1, 4, True])
def test_wrong_numbers_of_coarse_steps(coarse_steps):
    parts = (finite, finite, noise_schedule(), torch.randn(1, 4, 8, 8), some_condition(1), 4)
    with pytest.raises(ValueError, match=r"coarse_steps is .* of 4 steps; pass .* 0 to 3"):
        coarse_to_fine(*parts, coarse_steps=coarse_steps)


def test_latents_that_cannot_be_halved():
    parts = (finite, finite, noise_schedule(), torch.randn(1, 4, 7, 8), some_condition(1), 4)
    with pytest.raises(ValueError, match="coarse_steps is 2 and latents of 7 x 8 cannot be halved"):
        coarse_to_fine(*parts, coarse_steps=2)
