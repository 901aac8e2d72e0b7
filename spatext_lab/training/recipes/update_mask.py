# SPDX-License-Identifier: Apache-2.0
"""The update mask: which cells of the latents whole trajectories of SpaText still change."""

from dataclasses import dataclass
from itertools import pairwise
from random import Random

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spatext_lab import zoo
from spatext_lab.baselines.summaries.update_mask import UpdateMaskNetwork, changed
from spatext_lab.datasets.pocket import pocket_item
from spatext_lab.diffusion import UNetDenoiser, few_threads, guided, initial_noise, sample
from spatext_lab.figures.progress import Progress
from spatext_lab.scene import Region, Scene
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.training.job import Job, device_of, save_half
from spatext_lab.training.loop import Plan

BATCH, SCENES, CHUNK = 64, 256, 16
STEPS, GUIDANCE = (10, 20), 2.0  # of the trajectories, in turn, as SpaText is sampled
# Root mean square over a cell's channels, of latents with variance 1: twice what the autoencoder's
# own error is.
LEAST_CHANGE = 0.1
MIN_AREA = 0.02  # of the segments, as in SpaText's own recipe


@dataclass(frozen=True)
class Steps:
    """n steps of trajectories: what the mask reads, and what it should say."""

    x_t: Float[Tensor, "n c h w"]
    t: Int[Tensor, "n"]
    scene: Int[Tensor, "n"]
    changed: Bool[Tensor, "n h w"]  # between the prediction before this step and its own
    st_maps: Float[Tensor, "scenes d h w"]


def scene_of(index: int) -> Scene:
    """A training image's caption and some of its segments."""
    item, rng = pocket_item("train", index), Random(f"update-mask/{index}")
    large = [s for s in item.segments if s.mask.mean() >= MIN_AREA]
    some = rng.sample(large, rng.randint(1, len(large)))
    return Scene(item.captions[0], [Region(s.text, mask=s.mask) for s in some])


@torch.no_grad()
def trajectories(model: SpaTextPipeline, scenes: int, seed: int) -> Steps:
    """Whole trajectories, of which all steps but the first are kept."""
    x_t, t, scene, moved, maps = [], [], [], [], []
    denoiser, shape = guided(UNetDenoiser(model.unet), GUIDANCE), model.unet.config
    shape = (shape.out_channels, shape.sample_size, shape.sample_size)
    for start in Progress(range(0, scenes, CHUNK), desc="sampling", unit="batch"):
        numbers = range(start, min(start + CHUNK, scenes))
        condition = model.condition([scene_of(i) for i in numbers])
        x_T = initial_noise([seed + i for i in numbers], shape).to(model.device)
        count = STEPS[start // CHUNK % len(STEPS)]
        steps = list(sample(denoiser, model.scheduler, x_T, condition, count))
        maps.append(condition.st_map.cpu())
        for before, step in pairwise(steps):
            x_t.append(before.x_t.cpu())
            t.append(torch.full((len(x_T),), step.t))
            scene.append(torch.tensor(numbers))
            moved.append(changed(step.x_0, before.x_0, LEAST_CHANGE).cpu())
    return Steps(*map(torch.cat, (x_t, t, scene, moved, maps)))


def make(plan: Plan, device: str, *, base: str = "pocket") -> Job:
    """Cross-entropy of "this cell changes" on the steps of whole trajectories.

    Args:
        base: the SpaText whose trajectories are learned: "pocket" or a folder.
    """
    torch.manual_seed(plan.seed)
    model = SpaTextPipeline.from_pretrained(zoo.folder(base, "spatext")).to(device_of(device))
    with few_threads(model.unet):
        pool = trajectories(model, SCENES, plan.seed)
    width, channels = pool.st_maps.shape[1], pool.x_t.shape[1]
    network = UpdateMaskNetwork(channels, width)

    def loss_at(number: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(pool.x_t), (BATCH,), generator=generator)
        read = pool.x_t[index], pool.t[index], pool.st_maps[pool.scene[index]]
        odds = network(*(each.to(network.device) for each in read))
        return F.binary_cross_entropy_with_logits(odds, pool.changed[index].to(odds))

    data = f"trajectories of SpaText for pocket scenes train 0-{SCENES - 1}"
    return Job(network, loss_at, lambda folder: save_half(network, folder), plan, data)
