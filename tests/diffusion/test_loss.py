# SPDX-License-Identifier: Apache-2.0
"""The training loss against slow loops, and against the ideal denoiser of white noise."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from spatext_lab.diffusion import Condition, noise_schedule, training_loss
from tests.conditions import noisy_images, some_condition

TYPES = ["epsilon", "v_prediction", "sample"]


@pytest.mark.parametrize("prediction_type", TYPES)
def test_training_loss_equals_a_slow_loop(prediction_type):
    x_0, noise, t = noisy_images(4)
    condition, scheduler = some_condition(4), noise_schedule(prediction_type)

    def denoiser(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        shift = condition.text.mean((1, 2)) + condition.st_map.mean((1, 2, 3)) + t / 1000
        return 0.7 * x_t + shift[:, None, None, None]

    total = 0.0
    for k in range(4):
        one = Condition(condition.text[[k]], condition.null_text[[k]], condition.st_map[[k]])
        x_t = scheduler.add_noise(x_0[k], noise[k], t[k])
        velocity = scheduler.get_velocity(x_0[k], noise[k], t[k])
        wanted = {"epsilon": noise[k], "v_prediction": velocity, "sample": x_0[k]}[prediction_type]
        error = denoiser(x_t[None], t[[k]], one)[0] - wanted
        total += sum(e.item() ** 2 for e in error.flatten())
    loss = training_loss(denoiser, x_0, condition, t, noise, scheduler)
    assert_close(loss.item(), total / x_0.numel(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("prediction_type", TYPES)
def test_weights_of_the_loss_against_a_slow_loop(prediction_type):
    """Each pixel's squared error counts as often as its weight says, in every channel."""
    x_0, noise, t = noisy_images(3)
    condition, scheduler = some_condition(3), noise_schedule(prediction_type)
    weight = torch.rand(3, 1, *x_0.shape[2:]) * 4

    def denoiser(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return 0.7 * x_t

    total, plain = 0.0, 0.0
    for k in range(3):
        velocity = scheduler.get_velocity(x_0[k], noise[k], t[k])
        wanted = {"epsilon": noise[k], "v_prediction": velocity, "sample": x_0[k]}[prediction_type]
        error = 0.7 * scheduler.add_noise(x_0[k], noise[k], t[k]) - wanted
        for channel in range(x_0.shape[1]):
            for y in range(x_0.shape[2]):
                for x in range(x_0.shape[3]):
                    square = error[channel, y, x].item() ** 2
                    total += weight[k, 0, y, x].item() * square
                    plain += square
    given = (denoiser, x_0, condition, t, noise, scheduler)
    assert_close(training_loss(*given, weight).item(), total / x_0.numel(), rtol=1e-5, atol=0)
    ones = training_loss(*given, torch.ones_like(weight)).item()
    assert_close(ones, plain / x_0.numel(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("prediction_type", TYPES)
def test_training_loss_of_the_ideal_denoiser_of_white_noise(prediction_type):
    """For data N(0, 1) the ideal eps is sigma_t x_t with error alpha_bar_t; the ideal v is 0, with
    error 1 at every t; the ideal x_0 is sqrt(alpha_bar_t) x_t with error 1 - alpha_bar_t."""
    scheduler = noise_schedule(prediction_type)
    b = 4000
    t = torch.arange(0, 1000).repeat(4)

    def denoiser(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        alpha_bar = scheduler.alphas_cumprod[t][:, None, None, None]
        factors = {"epsilon": (1 - alpha_bar).sqrt(), "sample": alpha_bar.sqrt()}
        return factors.get(prediction_type, 0 * alpha_bar) * x_t

    x_0, noise = torch.randn(b, 1, 4, 4), torch.randn(b, 1, 4, 4)
    loss = training_loss(denoiser, x_0, some_condition(b), t, noise, scheduler)
    alpha_bar = scheduler.alphas_cumprod.mean()
    ideals = {"epsilon": alpha_bar, "v_prediction": torch.tensor(1.0), "sample": 1 - alpha_bar}
    ideal = ideals[prediction_type]
    assert_close(loss, ideal, rtol=0.03, atol=0)


def test_training_loss_refuses_a_condition_for_other_images():
    x_0, noise, t = noisy_images(2)
    with pytest.raises(ValueError, match="condition is for 3 images and there are 2"):
        training_loss(lambda x_t, t, c: x_t, x_0, some_condition(3), t, noise, noise_schedule())
