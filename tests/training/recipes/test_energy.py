# SPDX-License-Identifier: Apache-2.0
"""The energy's recipe: what its maps say, its loss by hand, and what it learns."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from spatext_lab.baselines.summaries.energy import EnergyNetwork
from spatext_lab.diffusion import noise_schedule
from spatext_lab.training import cache
from spatext_lab.training.loop import Plan, Trainer
from spatext_lab.training.recipes import energy
from tests.training.steps import PLAN, loss_of, losses


def pool(n: int = 40, k: int = 3, size: int = 8) -> cache.Cache:
    """Images of k stripes; segment j of image i has the embedding (i, j) and stripe j, whose edges
    are another image's elsewhere."""
    embeddings = torch.cartesian_prod(torch.arange(n) + 1.0, torch.arange(k) + 1.0).view(n, k, 2)
    edges = torch.rand(n, k - 1, 1, 1, generator=torch.Generator().manual_seed(0)).sort(1).values
    row = (torch.arange(size) + 0.5).view(1, 1, size, 1) / size
    below = torch.cat(
        [torch.ones(n, 1, size, size), (row > edges).float().expand(-1, -1, -1, size)], 1
    )
    above = torch.cat([below[:, 1:], torch.zeros(n, 1, size, size)], 1)
    latents = torch.randn(n, 4, size, size, generator=torch.Generator().manual_seed(1))
    stripes = below - above
    return cache.Cache(latents, [("",)] * n, None, None, embeddings, stripes, stripes.flip(3))


def test_what_is_right_is_what_the_image_has_there(monkeypatch):
    """Cell by cell: an embedding says whose segment it is, and the image's own coverage where."""
    monkeypatch.setattr(energy, "MIN_AREA", 0)
    monkeypatch.setattr(energy, "EXACT", 1.0)
    some, kinds = pool(), Counter()
    index = torch.randperm(40, generator=torch.Generator().manual_seed(3)).repeat(3)
    st_map, covered, right = energy.draw_maps(some, index, torch.Generator().manual_seed(5))
    for i in range(len(index)):
        for y, (who, which) in enumerate(st_map[i, :, :, 0].T.round().int().tolist()):
            has = 1 + some.coverage[index[i], :, y, 0].argmax().item()
            kind = "empty"
            if who:
                own = "own" if which == has else "elsewhere"
                kind = own if who - 1 == index[i] else "of another image"
            kinds[kind] += 1
            assert covered[i, y, 0] == float(kind != "empty")
            assert right[i, y, 0] == float(kind == "own")
    assert len(kinds) == 4
    assert min(kinds.values()) >= 8, kinds


def test_painted_masks_are_used_for_half_of_the_images(monkeypatch):
    monkeypatch.setattr(energy, "MOVED", 0.0)
    some = replace(pool(), painted=torch.zeros(40, 3, 8, 8))
    index = torch.arange(40).repeat(20)
    _, covered, _ = energy.draw_maps(some, index, torch.Generator().manual_seed(0))
    exact = covered.flatten(1).any(1).float().mean().item()
    assert exact == pytest.approx(energy.EXACT, abs=0.08)


@pytest.mark.parametrize("seed", [3, 5])
def test_the_loss_is_the_cross_entropy_of_covered_cells(seed, monkeypatch):
    """With the step's own random numbers drawn again, and each cell's loss in a loop."""
    monkeypatch.setattr(energy, "BATCH", 3)
    some = pool()
    job = energy.contrast(some, PLAN)
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(40, (3,), generator=generator)
    st_map, covered, right = energy.draw_maps(some, index, generator)
    noise = torch.randn(3, 4, 8, 8, generator=generator)
    t = torch.randint(1000, (3,), generator=generator)
    alpha_bar = noise_schedule().alphas_cumprod[t].view(-1, 1, 1, 1)
    x_t = alpha_bar.sqrt() * some.latents[index] + (1 - alpha_bar).sqrt() * noise
    with torch.no_grad():
        odds = job.module.log_odds(x_t, t, st_map)
    total, columns = 0.0, (each.flatten().tolist() for each in (covered, right, odds))
    for w, y, value in zip(*columns, strict=True):
        p = 1 / (1 + math.exp(-value))
        total -= w * (y * math.log(p) + (1 - y) * math.log(1 - p))
    want = total / covered.sum().item()
    assert loss_of(job, seed).item() == pytest.approx(want, rel=1e-5)


def test_it_learns_the_log_odds_of_two_gaussian_classes(monkeypatch):
    """Images are N(+-mean, spread^2), one segment says which: the odds are known in closed form.

    Half of the segments are another image's, of either class: p(c | x_t) / p(c) = 2 p(c | x_t).
    """
    monkeypatch.setattr(energy, "MOVED", 0.0)
    monkeypatch.setattr(energy, "BATCH", 128)
    level = lambda x_0, _, g: (  # noqa: E731
        torch.randn(x_0.shape, generator=g),
        torch.full((len(x_0),), 400),
    )
    monkeypatch.setattr(cache, "draw_noise", level)
    torch.manual_seed(0)
    n, mean, spread = 20_000, 0.1, 0.3
    sign = torch.where(torch.rand(n) < 0.5, 1.0, -1.0)
    latents = sign.view(-1, 1, 1, 1) * mean + spread * torch.randn(n, 4, 4, 4)
    embeddings, everywhere = sign.view(n, 1, 1), torch.ones(n, 1, 4, 4)
    some = cache.Cache(latents, [("",)] * n, None, None, embeddings, everywhere, everywhere)
    job = energy.contrast(some, Plan(steps=250, lr=3e-3, ema_decay=0.98))
    trainer = Trainer(job.module, job.loss_at, job.plan, "cpu")
    list(trainer.run())
    trainer.use_average()
    t = torch.full((500,), 400)
    alpha_bar = noise_schedule().alphas_cumprod[400]
    x_t = alpha_bar.sqrt() * latents[:500] + (1 - alpha_bar).sqrt() * torch.randn(500, 4, 4, 4)
    variance = alpha_bar * spread**2 + 1 - alpha_bar
    log_odds = (2 * alpha_bar.sqrt() * mean * x_t / variance).sum((1, 2, 3))  # of class +1
    with torch.no_grad():
        found = job.module.log_odds(x_t, t, torch.ones(500, 1, 4, 4)).mean((1, 2))
    want = (2 * log_odds.sigmoid()).log()
    assert torch.corrcoef(torch.stack([found, want]))[0, 1] > 0.95
    assert (found - want).abs().mean() < 0.3 * want.std()


@pytest.mark.usefixtures("small")
def test_a_saved_energy_is_the_trained_one(tmp_path):
    job = energy.make(PLAN, "cpu")
    losses(job, same_data=False)
    job.save(tmp_path)
    again = EnergyNetwork.from_pretrained(tmp_path)
    for name, value in again.state_dict().items():
        assert torch.equal(value.float(), job.module.state_dict()[name].half().float()), name
