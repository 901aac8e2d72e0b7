# SPDX-License-Identifier: Apache-2.0
"""The pipeline of the summary's systems: plain SpaText where they are off, settings, folders."""

import copy

import pytest
import torch
from torch.testing import assert_close

from spatext_lab.baselines.summaries.coarse_to_fine import halved, halved_noise
from spatext_lab.baselines.summaries.energy import EnergyNetwork
from spatext_lab.baselines.summaries.pipeline import (
    UPDATES,
    AcceleratedSpaTextPipeline,
    windows,
)
from spatext_lab.baselines.summaries.update_mask import UpdateMaskNetwork
from spatext_lab.diffusion import initial_noise, noise_schedule
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.spatext.pixel import PixelFold
from spatext_lab.spatext.widen import widen_input
from tests.tiny import BARE, OTHER, SCENE, WIDTH, _unet, final, tiny_clip, tiny_prior

SETTINGS = {"seed": 5, "num_inference_steps": 4}


@pytest.mark.parametrize("own", [{}, {"region_guidance_scale": 3.0}, {"guidance_scale": 1.0}])
def test_without_parts_it_is_spatext(spatext, own):
    fast = AcceleratedSpaTextPipeline.from_pipe(spatext)
    scenes = [SCENE, OTHER]
    ours, theirs = (final(each, scenes, **SETTINGS, **own) for each in (fast, spatext))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("updates", UPDATES)
def test_a_mask_that_names_everything_is_spatext(spatext, mask, updates):
    settings = {"update_mask": mask, "least_probability": 0.0, "updates": updates}
    fast = AcceleratedSpaTextPipeline.from_pipe(spatext, **settings)
    scenes = [SCENE, OTHER]
    assert torch.equal(final(fast, scenes, **SETTINGS), final(spatext, scenes, **SETTINGS))
    assert fast.computed == [4 * 2 * 256] * 2


def test_with_a_mask_that_names_nothing_there_is_one_call(spatext, mask):
    with torch.no_grad():
        mask.conv_out.bias -= 50
    calls = []
    hook = spatext.unet.register_forward_pre_hook(lambda _, args: calls.append(args[0].shape[-1]))
    try:
        fast = AcceleratedSpaTextPipeline.from_pipe(spatext, update_mask=mask)
        first, *_, last = fast.stream(SCENE, **SETTINGS)
    finally:
        hook.remove()
        with torch.no_grad():
            mask.conv_out.bias += 50
    assert calls == [16]
    assert_close(last.x_t, first.x_0, atol=1e-3, rtol=1e-3)
    assert fast.computed == [256, 4 * 256]


def test_a_held_image_holds_no_move_of_the_energy(spatext, mask):
    """By hand: one image of the U-Net, and at each timestep the energy's move for that one."""
    mask, scale, alphas = copy.deepcopy(mask), 3e4, spatext.scheduler.alphas_cumprod
    with torch.no_grad():
        mask.conv_out.bias -= 50  # names nothing
    torch.manual_seed(3)
    energy = EnergyNetwork(4, WIDTH, width=16, blocks=1)
    parts = {"update_mask": mask, "energy": energy, "energy_scale": scale}
    steps = list(AcceleratedSpaTextPipeline.from_pipe(spatext, **parts).stream(SCENE, **SETTINGS))
    held = next(spatext.stream(SCENE, **SETTINGS)).x_0
    x_t, st_map = initial_noise([SETTINGS["seed"]], (4, 16, 16)), spatext.condition([SCENE]).st_map
    after, moved = [alphas[step.t] for step in steps[1:]] + [torch.tensor(1.0)], []
    for step, alpha_after in zip(steps, after, strict=True):
        alpha = alphas[step.t]
        gradient = energy.gradient(x_t, torch.tensor([step.t]), st_map)
        x_0 = held - scale * (1 - alpha) / alpha.sqrt() * gradient
        eps = (x_t - alpha.sqrt() * x_0) / (1 - alpha).sqrt()
        x_t = alpha_after.sqrt() * x_0 + (1 - alpha_after).sqrt() * eps
        assert_close(step.x_t, x_t, atol=2e-3, rtol=2e-3)
        moved.append((x_0 - held).abs().max())
    assert moved[0] > 0.05


def test_the_energy_moves_a_cell_of_any_size_as_far(spatext):
    """The scale for the sum over cells, by hand: as large for halved latents as for whole ones."""
    torch.manual_seed(3)
    energy, per_cell = EnergyNetwork(4, WIDTH, width=16, blocks=1), 100
    parts = {"energy": energy, "energy_scale": per_cell * 16**2}
    for fraction in (0.5, 0.0):
        halves = {"coarse_fraction": fraction}
        with_energy = AcceleratedSpaTextPipeline.from_pipe(spatext, **parts, **halves)
        without = AcceleratedSpaTextPipeline.from_pipe(spatext, **halves)
        one, other = (next(each.stream(SCENE, **SETTINGS)) for each in (with_energy, without))
        x_t, condition = initial_noise([5], (4, 16, 16)), spatext.condition([SCENE])
        if fraction:
            x_t, condition = halved_noise(x_t), halved(condition)
        alpha = spatext.scheduler.alphas_cumprod[one.t]
        cells = x_t[0, 0].numel()
        summed = cells * energy.gradient(x_t, torch.tensor([one.t]), condition.st_map)
        move = -per_cell * (1 - alpha) / alpha.sqrt() * summed
        assert move.abs().max() > 0.05
        assert_close(one.x_0 - other.x_0, move, atol=2e-3, rtol=2e-3)


def test_sizes_of_the_network_calls(spatext, mask):
    calls = []
    hook = spatext.unet.register_forward_pre_hook(lambda _, args: calls.append(args[0].shape[-1]))
    try:
        fast = AcceleratedSpaTextPipeline.from_pipe(spatext, coarse_fraction=0.75)
        images = fast([SCENE, BARE], **SETTINGS).images
    finally:
        hook.remove()
    assert calls == [8, 8, 8, 16]
    assert {image.size for image in images} == {(64, 64)}


def test_all_parts_together_in_any_batch(spatext, mask):
    settings = {"update_mask": mask, "coarse_fraction": 0.5, "updates": "windows", "spare": 0.2}
    fast = AcceleratedSpaTextPipeline.from_pipe(spatext, **settings)
    batch = final(fast, [OTHER, SCENE], **SETTINGS)
    alone = final(fast, SCENE, **SETTINGS | {"seed": 6})
    assert_close(batch[1:], alone, atol=1e-3, rtol=1e-3)


def test_an_untrained_widened_base_is_the_base(base):
    clip, prior = tiny_clip(), tiny_prior()
    parts = {"clip": clip, "prior": prior, "unet": widen_input(base.unet, WIDTH)}
    fast = AcceleratedSpaTextPipeline.from_pipe(base, **parts)
    assert_close(final(fast, SCENE, **SETTINGS), final(base, SCENE, **SETTINGS))
    halves = AcceleratedSpaTextPipeline.from_pipe(base, **parts, coarse_fraction=0.5)
    assert final(halves, SCENE, **SETTINGS).shape == (1, 4, 16, 16)


def test_the_pixel_form():
    parts = (_unet(48 + WIDTH, 48), PixelFold(), noise_schedule("sample"), tiny_clip())
    spatext = SpaTextPipeline(*parts, prior=tiny_prior())
    fast = AcceleratedSpaTextPipeline.from_pipe(spatext, coarse_fraction=0.5)
    steps = list(fast.stream(SCENE, **SETTINGS))
    assert [step.x_t.shape for step in steps] == [(1, 48, 8, 8)] * 2 + [(1, 48, 16, 16)] * 2
    assert fast(SCENE, **SETTINGS).images[0].size == (64, 64)


def test_a_folder(spatext, mask, tmp_path):
    settings = {"update_mask": mask, "coarse_fraction": 0.25, "spare": 0.05, "updates": "windows"}
    fast = AcceleratedSpaTextPipeline.from_pipe(spatext, **settings)
    fast.save_pretrained(tmp_path)
    again = AcceleratedSpaTextPipeline.from_pretrained(tmp_path)
    assert isinstance(again.update_mask, UpdateMaskNetwork)
    assert again.config.updates == "windows"
    assert_close(final(again, SCENE, **SETTINGS), final(fast, SCENE, **SETTINGS))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coarse_fraction": 3}, "coarse_fraction is 3; pass a number from 0 to below 1"),
        ({"spare": 1.0}, "spare is 1.0; pass a number from 0 to below 1"),
        ({"least_probability": 1.5}, "least_probability is 1.5; pass a number from 0 to below 1"),
        ({"updates": "rows"}, "updates is 'rows'; pass one of steps, windows, cells"),
        ({"update_mask": UpdateMaskNetwork(4, 3)}, r"update_mask reads .*\(4, 3\) channels"),
    ],
)
def test_settings_that_cannot_be(spatext, mask, settings, message):
    with pytest.raises(ValueError, match=message):
        AcceleratedSpaTextPipeline.from_pipe(spatext, **{"update_mask": mask} | settings)


@pytest.mark.parametrize(("steps", "sizes"), [(1, [16]), (2, [8, 16]), (4, [8, 8, 8, 16])])
def test_the_last_step_has_the_whole_size(spatext, steps, sizes):
    fast = AcceleratedSpaTextPipeline.from_pipe(spatext, coarse_fraction=0.9)
    found = fast.stream(SCENE, seed=1, num_inference_steps=steps)
    assert [step.x_t.shape[-1] for step in found] == sizes


@pytest.mark.parametrize("steps", [0, 1001])
def test_steps_that_cannot_be(spatext, steps):
    fast = AcceleratedSpaTextPipeline.from_pipe(spatext, coarse_fraction=0.5)
    with pytest.raises(ValueError, match=r"num_inference_steps is .*; pass a whole number from 1"):
        fast(SCENE, num_inference_steps=steps)


def test_windows_of_any_latents():
    assert windows("cells", 16) is None
    assert windows("steps", 16) == [0, 16]
    assert windows("windows", 16) == [0, 8, 12, 16]
    assert windows("windows", 64) == [0, 32, 48, 64]
    assert windows("windows", 20) == [0, 8, 12, 20]
    assert windows("windows", 4) == [0, 4]
