# SPDX-License-Identifier: Apache-2.0
"""Passes as graphs: the same numbers and gradients, one capture for each shape, all put back.

Without a GPU the capture is replaced by a function that runs the network: what is tested then is
how arguments become a flat list and outputs the network's own again.
"""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from spatext_lab.training import graphs
from spatext_lab.training.plan import Plan
from spatext_lab.training.recipes import RECIPES
from spatext_lab.training.recipes.text_to_image import new_pipeline


@pytest.fixture
def captures(monkeypatch):
    """The shapes of what was captured."""
    seen = []

    def capture(flat: nn.Module, examples: tuple, **_):
        assert not torch.is_autocast_cache_enabled()
        flat(*examples)
        seen.append([tuple(each.shape) for each in examples])
        return flat

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    monkeypatch.setattr(graphs, "_gains", lambda network: True)
    return seen


@pytest.fixture
def networks():
    torch.manual_seed(0)
    pipeline = new_pipeline()
    return nn.ModuleDict({"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}).train()


def step(networks: nn.ModuleDict, n: int = 2) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A prediction and all gradients."""
    generator = torch.Generator().manual_seed(1)
    x_t, window = torch.randn(n, 4, 8, 8, generator=generator), torch.rand(n, 4)
    text = networks["text_encoder"](torch.arange(n * 77).view(n, 77)).last_hidden_state
    window = torch.tensor([[0.0, 0.0, 0.5, 0.5]]).expand(n, 4)
    prediction = networks["unet"](x_t, torch.arange(n), text, window=window).sample
    networks.zero_grad()
    prediction.square().mean().backward()
    return prediction.detach(), [w.grad for w in networks.parameters() if w.grad is not None]


def test_the_same_numbers_and_gradients(captures, networks):
    plain = step(networks)
    with graphs.graphed(networks.values()):
        replayed = [step(networks) for _ in range(2)]
    assert captures == [[(2, 77)], [(2, 4, 8, 8), (2,), (2, 77, 128), (2, 4)]]
    for each in replayed:
        assert_close(each, plain)


def test_without_gradients_and_afterwards_the_network_itself_runs(captures, networks):
    with graphs.graphed(networks.values()), torch.no_grad():
        networks["text_encoder"](torch.zeros(1, 77, dtype=torch.long))
    assert captures == []
    step(networks)
    assert captures == []
    assert "forward" not in vars(networks["unet"])


def test_more_shapes_than_there_is_room_for_run_without(captures, networks, monkeypatch):
    monkeypatch.setattr(graphs, "MOST", 2)
    with graphs.graphed(networks.values()):
        for n in (1, 2, 3, 3):
            replayed = step(networks, n)
    assert len(captures) == 4  # two networks, two shapes each
    assert_close(replayed, step(networks, 3))


def test_on_the_cpu_nothing_is_captured(networks):
    with graphs.graphed(networks.values()):
        assert "forward" not in vars(networks["unet"])


class OnGPU(nn.Parameter):
    """A parameter that says that it is on a GPU."""

    is_cuda = True


def test_a_large_network_runs_without(networks, monkeypatch):
    """It keeps the GPU busy, and its graphs would keep gigabytes."""
    layer = nn.Linear(10, 10, bias=False)
    layer.weight = OnGPU(layer.weight.detach())
    for least, replayed in ((101, True), (100, False)):
        monkeypatch.setattr(graphs, "SMALL", least)
        with graphs.graphed([layer]):
            assert ("forward" in vars(layer)) == replayed


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("text-to-image", {}, 2),
        ("spatext", {}, 1),
        ("pixel", {}, 1),
        ("other-maps", {}, 1),
        ("reco", {}, 2),
        ("gligen", {}, 0),  # diffusers copies from the CPU within the pass
    ],
)
def test_networks_that_do_more_than_compute_run_without(small, name, options, count):
    job = RECIPES[name].make(Plan(steps=1, lr=1e-3), "cpu", **options)
    assert len(job.replayed) == count
    assert set(job.replayed) <= set(job.module.modules())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_the_same_numbers(networks):
    networks.cuda()
    with torch.device("cuda"):
        plain = step(networks)
        with graphs.graphed(networks.values()):
            step(networks)
            replayed = step(networks)
    assert_close(replayed, plain, atol=1e-3, rtol=1e-3)
