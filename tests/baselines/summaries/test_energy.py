# SPDX-License-Identifier: Apache-2.0
"""Learned energy: its gradient by finite differences, its guidance against an exact posterior."""

import copy
import math

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from torch.testing import assert_close

from spatext_lab.baselines.summaries.energy import (
    EnergyNetwork,
    energy_guided,
)
from spatext_lab.baselines.summaries.pipeline import AcceleratedSpaTextPipeline
from spatext_lab.diffusion import (
    Condition,
    UNetDenoiser,
    guided,
    initial_noise,
    noise_schedule,
    to_x0_eps,
)
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.training.recipes.spatext import widened
from tests.tiny import BARE, OTHER, SCENE, WIDTH, final, tiny_clip, tiny_prior

SETTINGS = {"seed": 1, "num_inference_steps": 3}


def told(st_map: torch.Tensor) -> Condition:
    """A condition of this map and of no text."""
    text = torch.zeros(len(st_map), 1, 2)
    return Condition(text, text, st_map)


@pytest.fixture(scope="module")
def energy() -> EnergyNetwork:
    torch.manual_seed(0)
    return EnergyNetwork(map_channels=WIDTH, width=16, blocks=2).eval()


@pytest.fixture(scope="module")
def exact(energy) -> EnergyNetwork:
    """The same network in double precision."""
    twin = EnergyNetwork.from_config(energy.config)
    twin.load_state_dict(energy.state_dict())
    return twin.double().eval()


def inputs(b: int = 3, h: int = 8, w: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise, a timestep each, and maps whose left half says nothing."""
    generator = torch.Generator().manual_seed(1)
    st_map = torch.randn(b, WIDTH, h, w, generator=generator).double()
    st_map[..., : w // 2] = 0
    x_t = torch.randn(b, 4, h, w, generator=generator).double()
    return x_t, torch.tensor([20, 500, 900])[:b], st_map


# --- the network ----------------------------------------------------------------------------------


def test_the_gradient_against_finite_differences(exact):
    x_t, t, st_map = inputs()
    gradient = exact.gradient(x_t, t, st_map)
    for seed in range(3):
        direction = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(seed)).double()
        with torch.no_grad():
            above, below = (exact(x_t + step * direction, t, st_map) for step in (1e-5, -1e-5))
        want = (above - below) / 2e-5
        assert (want.abs() > 1e-6).all()
        assert_close((gradient * direction).sum((1, 2, 3)), want, rtol=1e-5, atol=1e-10)


def test_the_energy_is_the_mean_of_a_value_per_cell(exact):
    """An empty cell says nothing, and nothing is known from pure noise."""
    x_t, t, st_map = inputs()
    with torch.no_grad():
        odds = exact.log_odds(x_t, t, st_map)
        cells = [
            [-math.log(1 / (1 + math.exp(-v))) for v in each[:, 3:].flatten()] for each in odds
        ]
        assert_close(exact(x_t, t, st_map), torch.tensor([sum(c) / 48 for c in cells]).double())
        assert not exact(x_t, t, torch.zeros_like(st_map)).any()
        late = exact.log_odds(x_t, torch.full_like(t, 999), st_map)
        assert late.abs().max() < 1e-3 * odds.abs().max()


def test_an_energy_depends_on_the_image_the_noise_level_and_the_map(exact):
    x_t, t, st_map = inputs()
    with torch.no_grad():
        here = exact(x_t, t, st_map)
        for other in ((x_t.flip(2), t, st_map), (x_t, t + 50, st_map), (x_t, t, st_map.flip(1))):
            assert (exact(*other) - here).abs().min() > 1e-5
        for k in range(3):
            alone = exact(*(each[k : k + 1] for each in (x_t, t, st_map)))
            assert_close(alone[0], here[k])


def test_a_saved_energy_is_the_same(energy, tmp_path):
    energy.save_pretrained(tmp_path)
    again = EnergyNetwork.from_pretrained(tmp_path, torch_dtype=torch.float32)
    x_t, t, st_map = (each.float() if each.is_floating_point() else each for each in inputs())
    with torch.no_grad():
        assert torch.equal(again(x_t, t, st_map), energy(x_t, t, st_map))


@pytest.mark.parametrize("shape", [(3, WIDTH, 4, 6), (3, WIDTH + 1, 8, 6), (2, WIDTH, 8, 6)])
def test_a_map_that_does_not_fit(exact, shape):
    x_t, t, _ = inputs()
    with pytest.raises(ValueError, match=r"st_map has shape .*; for this x_t the energy reads"):
        exact(x_t, t, torch.zeros(shape))


def test_sides_that_do_not_divide(exact):
    with pytest.raises(ValueError, match="even height and width"):
        exact(*inputs(w=5))


# --- guidance, where everything is known ----------------------------------------------------------


class TwoClasses(EnergyNetwork):
    """Images are N(mean of their class, spread^2), two classes alike in number; a map's first
    channel says which, +1 or -1. So E = -log p(class | x_t) is known."""

    SPREAD = 0.6

    def __init__(self) -> None:
        super().__init__(channels=2, map_channels=1, width=8, blocks=1)
        generator = torch.Generator().manual_seed(4)
        self.mean = torch.randn(2, 4, 4, generator=generator).double()

    def odds(self, x_t, t):
        """log p(class +1 | x_t) / p(class -1 | x_t) of two Gaussians with opposite means."""
        alpha_bar = noise_schedule().alphas_cumprod.double()[t].view(-1, 1, 1, 1)
        variance = alpha_bar * self.SPREAD**2 + 1 - alpha_bar
        return (2 * alpha_bar.sqrt() * self.mean * x_t / variance).sum((1, 2, 3))

    def forward(self, x_t, t, st_map):
        return -torch.nn.functional.logsigmoid(st_map[:, 0, 0, 0] * self.odds(x_t, t))

    def eps(self, x_t, t, sign):
        """The noise that the best denoiser of one class predicts; without one, of both."""
        alpha_bar = noise_schedule().alphas_cumprod.double()[t].view(-1, 1, 1, 1)
        if sign is None:
            weight = self.odds(x_t, t).sigmoid().view(-1, 1, 1, 1)
            return weight * self.eps(x_t, t, 1) + (1 - weight) * self.eps(x_t, t, -1)
        away = x_t - sign * alpha_bar.sqrt() * self.mean
        return (1 - alpha_bar).sqrt() * away / (alpha_bar * self.SPREAD**2 + 1 - alpha_bar)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_gradient_of_an_exact_energy_turns_all_images_into_those_of_a_class(kind):
    """Scale 1 on the denoiser of both classes is the denoiser of the one that the map names."""
    world, scheduler = TwoClasses(), noise_schedule(kind)
    alphas_cumprod = scheduler.alphas_cumprod.double()

    def denoiser(sign):
        def predict(x_t, t, _):
            eps = world.eps(x_t, t, sign)
            alpha_bar = alphas_cumprod[t].view(-1, 1, 1, 1)
            signal, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
            return {
                "epsilon": eps,
                "v_prediction": (eps - sigma * x_t) / signal,
                "sample": (x_t - sigma * eps) / signal,
            }[kind]

        return predict

    x_t = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(2)).double()
    t = torch.tensor([50, 500, 900])
    for sign in (1, -1):
        st_map = torch.full((3, 1, 4, 4), float(sign)).double()
        both, condition = denoiser(None), told(st_map)
        drawn = energy_guided(both, world, 1.0, scheduler)(x_t, t, condition)
        assert_close(drawn, denoiser(sign)(x_t, t, condition), rtol=1e-5, atol=1e-6)
        eps = [
            to_x0_eps(d(x_t, t, condition), x_t, t, alphas_cumprod, kind)[1]
            for d in (both, energy_guided(both, world, 3.0, scheduler))
        ]
        want = eps[0] + 3 * (1 - alphas_cumprod[t]).sqrt().view(-1, 1, 1, 1) * world.gradient(
            x_t, t, st_map
        )
        assert_close(eps[1], want, rtol=1e-5, atol=1e-6)


def test_a_step_down_the_energy_lowers_it(exact):
    x_t, t, st_map = inputs()
    drawn = energy_guided(lambda x_t, *_: 0 * x_t, exact, 1.0, noise_schedule("epsilon"))
    with torch.no_grad():
        before = exact(x_t, t, st_map)
        after = exact(x_t - 1e-2 * drawn(x_t, t, told(st_map)), t, st_map)
    assert (after < before).all()


def test_scale_zero_is_the_denoiser_itself(exact):
    denoiser = lambda x_t, t, condition: x_t  # noqa: E731
    assert energy_guided(denoiser, exact, 0, noise_schedule()) is denoiser


@pytest.mark.parametrize("scale", [-1, math.nan, math.inf])
def test_a_scale_that_is_none(exact, scale):
    with pytest.raises(ValueError, match=r"energy_scale is .*; pass a finite number >= 0"):
        energy_guided(lambda *_: None, exact, scale, noise_schedule())


def test_a_scale_with_which_the_prediction_overflows(energy):
    x_t, t, st_map = (each.float() if each.is_floating_point() else each for each in inputs())
    drawn = energy_guided(lambda x_t, *_: x_t, energy, 1e44, noise_schedule())
    with pytest.raises(ValueError, match=r"energy_scale is 1e\+44 .* timestep 20 .* smaller scale"):
        drawn(x_t, t, told(st_map))


# --- the pipeline ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def untold(base) -> SpaTextPipeline:
    """The text-to-image model, widened and not trained: it ignores maps."""
    return widened(base, tiny_clip(), tiny_prior())


def test_off_it_is_the_model_bit_for_bit(untold, energy):
    """With scale 0 for all scenes, with any scale for those without regions."""
    scenes = [SCENE, BARE, OTHER]
    plain = final(untold, scenes, **SETTINGS)
    off = AcceleratedSpaTextPipeline.from_pipe(untold, energy=energy, energy_scale=0)
    assert torch.equal(final(off, scenes, **SETTINGS), plain)
    on = AcceleratedSpaTextPipeline.from_pipe(untold, energy=energy, energy_scale=1000)
    drawn = final(on, scenes, **SETTINGS)
    assert torch.equal(drawn[1], plain[1])
    assert not torch.allclose(drawn[0], plain[0], atol=0.1)
    assert not torch.allclose(drawn[2], plain[2], atol=0.1)


@torch.no_grad()
@pytest.mark.parametrize("reads_maps", [False, True])
def test_against_a_slow_loop_of_ddim(untold, spatext, energy, reads_maps):
    """Classifier guidance by hand, on the clean image that the model predicts."""
    model, scale = spatext if reads_maps else untold, 300.0
    scheduler = copy.deepcopy(model.scheduler)
    scheduler.set_timesteps(3)
    condition, x_t = model.condition([SCENE]), initial_noise([1], (4, 16, 16))
    alphas = scheduler.alphas_cumprod
    for t, after in zip(scheduler.timesteps, [*scheduler.timesteps[1:], None], strict=True):
        at = t.expand(1)
        prediction = guided(UNetDenoiser(model.unet), 2.0)(x_t, at, condition)
        signal, sigma = alphas[t].sqrt(), (1 - alphas[t]).sqrt()
        if scheduler.config.prediction_type == "v_prediction":
            x_0 = signal * x_t - sigma * prediction
        else:
            x_0 = (x_t - sigma * prediction) / signal
        with torch.enable_grad():
            x = x_t.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(energy(x, at, condition.st_map).sum(), x)
        x_0 = x_0 - scale * sigma**2 / signal * gradient  # Tweedie's formula
        eps = (x_t - signal * x_0) / sigma
        x_t = (
            x_0 if after is None else alphas[after].sqrt() * x_0 + (1 - alphas[after]).sqrt() * eps
        )
    ours = AcceleratedSpaTextPipeline.from_pipe(model, energy=energy, energy_scale=scale)
    assert_close(x_t, final(ours, SCENE, **SETTINGS), atol=1e-2, rtol=1e-2)


def test_beside_the_other_parts_in_any_batch_and_from_a_folder(spatext, mask, energy, tmp_path):
    settings = {"energy": energy, "energy_scale": 50.0, "update_mask": mask}
    settings |= {"coarse_fraction": 0.5, "updates": "windows", "spare": 0.2}
    whole = AcceleratedSpaTextPipeline.from_pipe(spatext, **settings)
    batch = final(whole, [OTHER, SCENE], **SETTINGS)
    alone = final(whole, SCENE, **SETTINGS | {"seed": 2})
    assert_close(batch[1:], alone, atol=1e-3, rtol=1e-3)
    whole.save_pretrained(tmp_path)
    again = AcceleratedSpaTextPipeline.from_pretrained(tmp_path)
    assert_close(final(again, [OTHER, SCENE], **SETTINGS), batch, atol=1e-3, rtol=1e-3)


def test_a_scheduler_whose_noise_is_larger_than_what_the_network_reads(untold, energy):
    scheduler = EulerDiscreteScheduler.from_config(untold.scheduler.config)
    parts = {"energy": energy, "scheduler": scheduler}
    assert final(AcceleratedSpaTextPipeline.from_pipe(untold, **parts), SCENE).isfinite().all()


def test_settings_that_cannot_be(untold, energy):
    with pytest.raises(ValueError, match=r"energy_scale is 1e\+40 and .* pass a smaller scale"):
        final(AcceleratedSpaTextPipeline.from_pipe(untold, energy=energy, energy_scale=1e40), SCENE)
    with pytest.raises(ValueError, match=r"energy_scale is -1; pass a finite number >= 0"):
        final(AcceleratedSpaTextPipeline.from_pipe(untold, energy=energy, energy_scale=-1), SCENE)
    other = EnergyNetwork(map_channels=3, width=8, blocks=1)
    with pytest.raises(ValueError, match=r"energy reads x_t and maps of \(4, 3\) channels"):
        AcceleratedSpaTextPipeline.from_pipe(untold, energy=other)
