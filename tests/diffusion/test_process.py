# SPDX-License-Identifier: Apache-2.0
"""The diffusion equations against diffusers, against slow loops, and the sampler against worlds
whose ideal denoiser is known in closed form."""

import math
import os
import subprocess
import sys
from collections.abc import Callable

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from torch import Tensor
from torch.testing import assert_close

from spatext_lab.diffusion import (
    Condition,
    Denoiser,
    add_noise,
    initial_noise,
    noise_schedule,
    sample,
    target,
    to_x0_eps,
)
from tests.conditions import noisy_images, some_condition

TYPES = ["epsilon", "v_prediction", "sample"]
SHAPE = (2, 3, 3)


def test_add_noise_equals_diffusers():
    x_0, noise, t = noisy_images(8)
    scheduler = noise_schedule()
    theirs = scheduler.add_noise(x_0, noise, t)
    assert_close(add_noise(x_0, noise, t, scheduler.alphas_cumprod), theirs)


def test_target_equals_diffusers():
    x_0, noise, t = noisy_images(8)
    scheduler = noise_schedule()
    alphas_cumprod = scheduler.alphas_cumprod
    theirs = scheduler.get_velocity(x_0, noise, t)
    assert_close(target(x_0, noise, t, alphas_cumprod, "v_prediction"), theirs)
    assert torch.equal(target(x_0, noise, t, alphas_cumprod, "epsilon"), noise)
    assert torch.equal(target(x_0, noise, t, alphas_cumprod, "sample"), x_0)


@pytest.mark.parametrize("prediction_type", TYPES)
def test_to_x0_eps_is_the_way_back(prediction_type):
    x_0, noise, t = (a.double() if a.is_floating_point() else a for a in noisy_images(8))
    alphas_cumprod = noise_schedule().alphas_cumprod.double()
    x_t = add_noise(x_0, noise, t, alphas_cumprod)
    pred = target(x_0, noise, t, alphas_cumprod, prediction_type)
    got_x_0, got_noise = to_x0_eps(pred, x_t, t, alphas_cumprod, prediction_type)
    assert_close(got_noise, noise)
    assert_close(got_x_0, x_0, rtol=1e-9, atol=1e-9)


def test_v_holds_where_no_image_is_left():
    scheduler = DDIMScheduler(rescale_betas_zero_snr=True)
    assert scheduler.alphas_cumprod[-1] == 0
    x_0, noise, t = torch.randn(1, *SHAPE), torch.randn(1, *SHAPE), torch.tensor([999])
    x_t = add_noise(x_0, noise, t, scheduler.alphas_cumprod)
    assert torch.equal(x_t, noise)
    pred = target(x_0, noise, t, scheduler.alphas_cumprod, "v_prediction")
    assert_close(to_x0_eps(pred, x_t, t, scheduler.alphas_cumprod, "v_prediction"), (x_0, noise))


@pytest.mark.parametrize("prediction_type", ["x_0", "v", ""])
def test_unknown_prediction_types_are_refused(prediction_type):
    x, t, alphas_cumprod = torch.zeros(1, *SHAPE), torch.tensor([0]), torch.ones(1)
    for call in (
        lambda: noise_schedule(prediction_type),
        lambda: target(x, x, t, alphas_cumprod, prediction_type),
        lambda: to_x0_eps(x, x, t, alphas_cumprod, prediction_type),
    ):
        with pytest.raises(ValueError, match=r"prediction_type is .*v_prediction"):
            call()


@pytest.mark.parametrize("prediction_type", TYPES)
def test_noise_schedule_keeps_its_settings_on_disk(prediction_type, tmp_path):
    noise_schedule(prediction_type).save_pretrained(tmp_path)
    config = DDIMScheduler.from_pretrained(tmp_path).config
    assert config.prediction_type == prediction_type
    assert config.clip_sample is False
    assert config.timestep_spacing == "trailing"
    assert config.set_alpha_to_one is True
    assert noise_schedule().alphas_cumprod[-1] < 1e-8


# --- the noise that sampling starts from --------------------------------------------------------


def test_initial_noise_of_a_seed_is_the_same_in_any_batch():
    state = torch.get_rng_state()
    batch = initial_noise([3, 1, 2**40], (4, 5, 6))
    assert batch.shape == (3, 4, 5, 6)
    for k, seed in enumerate([3, 1, 2**40]):
        assert torch.equal(initial_noise([seed], (4, 5, 6))[0], batch[k])
    assert not torch.equal(batch[0], batch[1])
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers moved on"


def test_initial_noise_is_standard_normal():
    noise = initial_noise(range(20), (8, 16, 16))
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02


def test_initial_noise_refuses_no_seeds():
    with pytest.raises(ValueError, match="seeds is empty"):
        initial_noise([], (1, 1, 1))


# --- the sampler against worlds with a known answer ----------------------------------------------

# five images, with values well beyond [-1, 1] as unit-variance latents have them
DATA_SET = 2 * torch.randn(
    5, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
)


def from_x_0(scheduler: SchedulerMixin, x_0_of: Callable[[Tensor, Tensor], Tensor]) -> Denoiser:
    """A denoiser of the scheduler's prediction type, from E[x_0 | x_t] as a function of
    (x_t, alpha_bar_t). Written with its own algebra, not with the library's."""
    alphas_cumprod = scheduler.alphas_cumprod.double()

    def denoiser(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        a = alphas_cumprod[t.long()][:, None, None, None]
        x_0 = x_0_of(x_t, a)
        eps = (x_t - a**0.5 * x_0) / (1 - a) ** 0.5
        v = (a**0.5 * x_t - x_0) / (1 - a) ** 0.5
        kinds = {"epsilon": eps, "v_prediction": v, "sample": x_0}
        return kinds[scheduler.config.prediction_type]

    return denoiser


def posterior_mean(x_t: Tensor, a: Tensor) -> Tensor:
    """E[x_0 | x_t] when x_0 is one of DATA_SET, each as likely: a weighted mean of the images."""
    distance = ((x_t[:, None] - a[:, None] ** 0.5 * DATA_SET) ** 2).sum((2, 3, 4))
    weight = torch.softmax(-distance / (2 * (1 - a[:, 0, 0])), dim=1)
    return torch.einsum("bn,nchw->bchw", weight, DATA_SET)


def last(denoiser: Denoiser, scheduler: DDIMScheduler, x_T: Tensor, steps: int) -> Tensor:
    *_, step = sample(denoiser, scheduler, x_T, some_condition(len(x_T)), steps)
    return step.x_t


def distance_to_data(x: Tensor) -> Tensor:
    """Root mean square distance of each sample to its nearest image."""
    return torch.cdist(x.flatten(1), DATA_SET.flatten(1)).min(dim=1).values / x[0].numel() ** 0.5


@pytest.mark.parametrize("prediction_type", TYPES)
def test_samples_of_a_finite_data_set_are_its_members(prediction_type):
    scheduler = noise_schedule(prediction_type)
    x_T = initial_noise(range(64), SHAPE).double()
    x = last(from_x_0(scheduler, posterior_mean), scheduler, x_T, 50)
    assert distance_to_data(x).max() < 1e-4
    nearest = torch.cdist(x.flatten(1), DATA_SET.flatten(1)).argmin(dim=1)
    assert set(nearest.tolist()) == set(range(5)), "some image of the data set is never sampled"


@pytest.mark.parametrize("prediction_type", TYPES)
def test_clip_sample_destroys_what_lies_beyond_one(prediction_type):
    """The trap: the schedulers' default clamps x_0 to [-1, 1], and no sample is an image."""
    config = {**noise_schedule(prediction_type).config, "clip_sample": True}
    scheduler = DDIMScheduler.from_config(config)
    x_T = initial_noise(range(64), SHAPE).double()
    x = last(from_x_0(scheduler, posterior_mean), scheduler, x_T, 50)
    assert distance_to_data(x).min() > 0.3
    assert x.abs().max() < 1.01


def test_gaussian_samples_converge_to_their_closed_form():
    """For data N(mu, s^2) the deterministic path from x_T ends at mu + s x_T, the better the more
    steps there are."""
    mu, s = 1.5, 0.5
    scheduler = noise_schedule()

    def x_0_of(x_t: Tensor, a: Tensor) -> Tensor:
        return mu + a**0.5 * s**2 / (a * s**2 + 1 - a) * (x_t - a**0.5 * mu)

    x_T = initial_noise([0, 1], SHAPE).double()
    errors = [
        (last(from_x_0(scheduler, x_0_of), scheduler, x_T, steps) - (mu + s * x_T)).abs().max()
        for steps in (10, 100, 1000)
    ]
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert errors[2] < 3e-3


@pytest.mark.parametrize("prediction_type", TYPES)
def test_a_step_takes_the_mixture_apart_and_mixes_it_with_less_noise(prediction_type):
    """The whole run against equation 12 of DDIM as a slow loop, with the library's equations."""
    scheduler = noise_schedule(prediction_type)
    denoiser = from_x_0(scheduler, posterior_mean)
    x = x_T = initial_noise([4, 5], SHAPE).double()
    times = [999, 749, 499, 249]
    steps = list(sample(denoiser, scheduler, x_T, some_condition(2), 4))
    assert [(step.index, step.t) for step in steps] == list(enumerate(times))
    for step, t_prev in zip(steps, [*times[1:], None], strict=True):
        t = torch.full((2,), step.t)
        pred = denoiser(x, t, some_condition(2))
        x_0, eps = to_x0_eps(pred, x, t, scheduler.alphas_cumprod, prediction_type)
        assert_close(step.x_0, x_0, rtol=1e-4, atol=1e-4)
        x = x_0
        if t_prev is not None:
            x = add_noise(x_0, eps, torch.full((2,), t_prev), scheduler.alphas_cumprod)
        assert_close(step.x_t, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [6, 7, 15, 30])
def test_step_counts_that_do_not_divide_leave_at_most_a_trace_of_noise(steps):
    scheduler = noise_schedule()
    x_T = initial_noise(range(16), SHAPE).double()
    *_, step = sample(
        from_x_0(scheduler, posterior_mean), scheduler, x_T, some_condition(16), steps
    )
    assert distance_to_data(step.x_0).max() < 1e-4
    assert distance_to_data(step.x_t).max() < 0.02


def test_image_k_is_the_same_in_any_batch():
    scheduler = noise_schedule()
    denoiser = from_x_0(scheduler, posterior_mean)
    batch = last(denoiser, scheduler, initial_noise([7, 8, 9], SHAPE).double(), 10)
    again = last(denoiser, scheduler, initial_noise([7, 8, 9], SHAPE).double(), 10)
    assert torch.equal(batch, again)
    for k, seed in enumerate([7, 8, 9]):
        alone = last(denoiser, scheduler, initial_noise([seed], SHAPE).double(), 10)
        assert_close(alone[0], batch[k], rtol=0, atol=1e-9)


# --- other schedulers -----------------------------------------------------------------------------

OTHERS = {
    "DDIM": DDIMScheduler,
    "PNDM": PNDMScheduler,
    "Euler": EulerDiscreteScheduler,
    "DPM-Solver++": DPMSolverMultistepScheduler,
    "UniPC": UniPCMultistepScheduler,
}
# Stable Diffusion's, in which a little of the image is left at the end; and the pocket's
STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def other(name: str, prediction_type: str, schedule: str) -> SchedulerMixin:
    """Another scheduler for a network that was trained with one of the two schedules."""
    config = dict(noise_schedule(prediction_type).config)
    config |= STABLE if schedule == "stable" else {}
    config |= {"skip_prk_steps": True} if name == "PNDM" else {}
    return OTHERS[name].from_config(config)


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize(
    ("name", "schedule"),
    [*((name, "stable") for name in OTHERS), *((name, "pocket") for name in OTHERS)],
)
def test_every_scheduler_samples_the_members_of_a_finite_data_set(name, schedule, prediction_type):
    """And the x_0 of each step is the closed form's at what the network was asked."""
    scheduler = other(name, prediction_type, schedule)
    ideal, asked = from_x_0(scheduler, posterior_mean), []

    def denoiser(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        asked.append((x_t, t))
        return ideal(x_t, t, condition)

    x_T = initial_noise(range(64), SHAPE).double()
    if (name, prediction_type) == ("PNDM", "sample"):  # diffusers' has no such form
        with pytest.raises(ValueError, match=r"prediction_type given as sample must be"):
            list(sample(denoiser, scheduler, x_T, some_condition(64), 50))
        return
    steps = list(sample(denoiser, scheduler, x_T, some_condition(64), 50))
    worst = 0
    for (x_t, t), step in zip(asked, steps, strict=True):
        assert (t == step.t).all()
        a = scheduler.alphas_cumprod.double()[t.long()][:, None, None, None]
        worst = max(worst, (step.x_0 - posterior_mean(x_t, a)).abs().max())
    x = steps[-1].x_t
    nearest = torch.cdist(x.flatten(1), DATA_SET.flatten(1)).argmin(dim=1)
    assert set(nearest.tolist()) == set(range(5)), "some image of the data set is never sampled"
    assert worst < 1e-4
    # PNDM averages the predictions of several timesteps, and v means another thing at each
    assert distance_to_data(x).max() < (2e-3 if name == "PNDM" else 1e-5)


# --- threads --------------------------------------------------------------------------------------

THREADS = """
import torch
from spatext_lab.diffusion import few_threads
small, large = torch.nn.Linear(10, 10), torch.nn.Linear(5000, 5000, device="meta")
given = torch.get_num_threads()
for before in {before}:
    torch.set_num_threads(before or given)
    seen = [torch.get_num_threads()]
    for network in (small, large):
        with few_threads(network):
            seen.append(torch.get_num_threads())
        seen.append(torch.get_num_threads())
    try:
        with few_threads(small):
            raise KeyError
    except KeyError:
        seen.append(torch.get_num_threads())
    print(*seen)
"""


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core is one thread anyway")
@pytest.mark.parametrize(
    ("before", "variables", "expected"),  # None: as many as there were; those of a small one
    [
        ((None, 7, 1), {}, ((None, 1), (7, 7), (1, 1))),
        ((None,), {"OMP_NUM_THREADS": "2"}, ((2, 2),)),
    ],
)
def test_small_networks_run_on_one_thread_where_the_user_has_not_chosen(
    before, variables, expected
):
    """In a process of its own. Large ones keep all; afterwards all is as it was, also by error."""
    plain = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", THREADS.format(before=before)],
        env=plain | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [[*map(int, line.split())] for line in done.stdout.splitlines()]
    for (threads, small), (known, *seen) in zip(expected, lines, strict=True):
        assert threads in (None, known)
        assert seen == [small, known, known, known, known]


# --- the sampler as a generator -----------------------------------------------------------------


def test_sampling_is_lazy_and_calls_once_a_step():
    seen = []

    def denoiser(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        assert t.dtype == torch.int64
        seen.append(t.tolist())
        return torch.zeros_like(x_t)

    run = sample(denoiser, noise_schedule(), torch.zeros(2, *SHAPE), some_condition(2), 5)
    assert seen == []
    next(run)
    assert seen == [[999, 999]]
    assert len(list(run)) == 4
    assert seen == [[t, t] for t in (999, 799, 599, 399, 199)]


def test_the_scheduler_is_left_as_it_was():
    scheduler = noise_schedule()
    scheduler.set_timesteps(7)
    before = scheduler.timesteps.clone()
    last(lambda x_t, t, c: torch.zeros_like(x_t), scheduler, torch.zeros(1, *SHAPE), 3)
    assert torch.equal(scheduler.timesteps, before)
    assert scheduler.num_inference_steps == 7


def test_two_runs_with_one_scheduler_do_not_disturb_each_other():
    scheduler = noise_schedule()
    denoiser = from_x_0(scheduler, posterior_mean)
    x_T = initial_noise([0], SHAPE).double()
    run_a = sample(denoiser, scheduler, x_T, some_condition(1), 4)
    run_b = sample(denoiser, scheduler, x_T, some_condition(1), 5)
    together = [(a.x_t, b.x_t) for a, b in zip(run_a, run_b, strict=False)]
    assert torch.equal(together[-1][0], last(denoiser, scheduler, x_T, 4))


def test_gradients_are_off_inside_a_step_and_on_between_steps():
    weight = torch.ones(1, requires_grad=True)
    run = sample(
        lambda x_t, t, c: weight * x_t,
        noise_schedule(),
        torch.ones(1, *SHAPE),
        some_condition(1),
        3,
    )
    for step in run:
        assert not step.x_t.requires_grad
        assert torch.is_grad_enabled()


@pytest.mark.usefixtures("as_for_users")
@pytest.mark.parametrize("steps", [0, -1, 1001, True, 2.0, None])
def test_step_counts_out_of_range_are_refused_before_the_first_step(steps):
    with pytest.raises(ValueError, match=f"num_inference_steps is {steps}; .* from 1 to 1000"):
        sample(
            lambda x_t, t, c: x_t,
            noise_schedule(),
            torch.zeros(1, *SHAPE),
            some_condition(1),
            steps,
        )


@pytest.mark.usefixtures("as_for_users")
@pytest.mark.parametrize("value", [torch.zeros(1, 2, 2), torch.full((1, *SHAPE), math.nan), None])
def test_an_x_t_that_does_not_fit_is_refused_before_the_next_step(value):
    """Also after the last step, where nothing would read it any more."""
    for index in (0, 1):
        denoiser, x_T = (lambda x, t, c: x), torch.ones(1, *SHAPE)
        run = sample(denoiser, noise_schedule(), x_T, some_condition(1), 2)
        for _ in range(index + 1):
            step = next(run)
        step.x_t = value
        with pytest.raises(ValueError, match=r"latents .*; pass finite floating-point numbers"):
            next(run)


@pytest.mark.parametrize("schedule", ["stable", "pocket"])
@pytest.mark.parametrize("name", ["Euler", "DPM-Solver++"])
def test_karras_sigmas_sample_the_members_too(name, schedule):
    """They repeat timesteps: at the start of the pocket's schedule, where a search would err."""
    plain = other(name, "v_prediction", schedule)
    scheduler = type(plain).from_config(plain.config, use_karras_sigmas=True)
    x_T = initial_noise(range(64), SHAPE).double()
    x = last(from_x_0(scheduler, posterior_mean), scheduler, x_T, 50)
    assert distance_to_data(x).max() < 1e-3


def test_sampling_refuses_a_condition_for_other_images():
    with pytest.raises(ValueError, match="condition is for 3 images and there are 2"):
        sample(
            lambda x_t, t, c: x_t, noise_schedule(), torch.zeros(2, *SHAPE), some_condition(3), 5
        )


# Named here too: taken from the library's own list, one that is lost there would go unnoticed.
NOISE = ["DDIMInverse", "EDMEuler", "HeunDiscrete", "KDPM2AncestralDiscrete"]


@pytest.mark.parametrize("name", [f"{name}Scheduler" for name in NOISE])
def test_schedulers_that_would_give_noise_are_refused(name):
    scheduler = getattr(diffusers, name)()
    with pytest.raises(ValueError, match=f"scheduler is {name}, which does not suit"):
        sample(lambda *_: None, scheduler, torch.zeros(1, 1, 2, 2), some_condition(1), 4)
