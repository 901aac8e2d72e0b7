# SPDX-License-Identifier: Apache-2.0
"""Every recipe on a handful of scenes: it learns, and it can be stopped and resumed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from spatext_lab.training import checkpoint
from spatext_lab.training.loop import Plan, Trainer
from spatext_lab.training.recipes import RECIPES, spatext
from spatext_lab.training.recipes.reco import views
from tests.training.steps import PLAN, losses

NETWORKS = ("text-to-image", "spatext", "other-maps", "pixel", "reco", "gligen")
pytestmark = pytest.mark.usefixtures("small")


# GLIGEN's base is frozen, and random weights have little to attend to: see test_gligen.
@pytest.mark.parametrize("name", [name for name in RECIPES if name != "gligen"])
def test_a_recipe_learns(name):
    """Every recipe with its usual options, on the same data in every step."""
    curve = losses(RECIPES[name].make(PLAN, "cpu"))
    assert np.isfinite(curve).all()
    assert np.mean(curve[-2:]) < 0.93 * np.mean(curve[:2])


@pytest.mark.parametrize("name", ["spatext", "other-maps", "pixel"])
def test_the_card_of_a_model_of_painted_masks_says_so(name):
    data = RECIPES[name].make(PLAN, "cpu").data
    painted = "50% of the images with masks as people paint them: ours, not the paper's"
    assert data == f"pocket scenes train 0-7; {painted}"


# One with a frozen weight, one with convolutions in another memory layout, one of two networks, one
# whose network is frozen but for new layers.
@pytest.mark.parametrize("name", ["clip", "judge", "text-to-image", "gligen"])
def test_a_recipe_can_be_stopped_and_resumed(name, tmp_path):
    """Real networks, fresh data in each step: two steps, disk, one more, against three."""
    plan = Plan(steps=3, lr=1e-3, warmup=1)
    whole, first, second = (
        Trainer(job.module, job.loss_at, plan, "cpu")
        for job in (RECIPES[name].make(plan, "cpu") for _ in range(3))
    )
    list(whole.run())
    for step in first.run():
        if step.index == 1:
            break
    checkpoint.save(first, tmp_path / "saved")
    checkpoint.load(second, tmp_path / "saved")
    list(second.run())
    assert second.losses == whole.losses
    assert all(torch.equal(a, b) for a, b in zip(second.weights, whole.weights, strict=True))
    pairs = zip(second.ema.shadow_params, whole.ema.shadow_params, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "pixel"])
def test_the_micro_batches_of_a_step_have_its_size(name, monkeypatch):
    """Half of the resolution or all of it: that is for a step to say."""
    for module in (spatext, views):
        monkeypatch.setattr(module, "PocketUNet", torch.nn.Module)  # the tiny base knows both
    shapes: dict[int, list] = {1: [], 2: []}
    for accumulate, seen in shapes.items():
        job = RECIPES[name].make(replace(PLAN, accumulate=accumulate), "cpu")
        unet = job.module["unet"] if isinstance(job.module, torch.nn.ModuleDict) else job.module
        unet.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].shape))
        with torch.no_grad():
            for number in range(6 * accumulate):
                job.loss_at(number, torch.Generator().manual_seed(number))
    assert [shape for shape in shapes[1] for _ in range(2)] == shapes[2]
    assert len({*shapes[1]}) == 2


@pytest.mark.parametrize("name", NETWORKS)
def test_the_loss_of_a_network_of_zeros_is_the_targets_variance(name, monkeypatch):
    """v = alpha eps - sigma x_0: about 1 per number where latents have unit variance, and x_0 of
    pixels in [-1, 1] some 0.3; what is random in a step comes from the step's generator."""
    job = RECIPES[name].make(PLAN, "cpu")
    unet = job.module["unet"] if isinstance(job.module, torch.nn.ModuleDict) else job.module
    for parameter in unet.conv_out.parameters():
        parameter.data.zero_()
    with torch.no_grad():
        seeds = (1, 1, *range(2, 10))
        one, two, *others = (
            job.loss_at(0, torch.Generator().manual_seed(seed)).item() for seed in seeds
        )
    assert one == two
    assert one not in others
    assert (0.1 if name == "pixel" else 0.3) < np.mean(others) < 2
