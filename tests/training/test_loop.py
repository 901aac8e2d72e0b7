# SPDX-License-Identifier: Apache-2.0
"""The training loop against formulas and against a loop in plain torch."""

import copy
import math
import os
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from spatext_lab.training.loop import Trainer
from spatext_lab.training.plan import Plan, device_of
from tests.training import toy

PLAN = Plan(steps=30, lr=0.02, warmup=5, seed=3)


def trainer(plan: Plan = PLAN) -> Trainer:
    job = toy.make(plan)
    return Trainer(job.module, job.loss_at, plan, "cpu")


def test_a_small_network_trains_on_one_thread(monkeypatch):
    """Two of them wait for each other where a class shares the cores: ten times slower."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before, seen = torch.get_num_threads(), []
    try:
        torch.set_num_threads(os.cpu_count())
        job = toy.make(PLAN)
        watched = Trainer(
            job.module,
            lambda *at: seen.append(torch.get_num_threads()) or job.loss_at(*at),
            PLAN,
            "cpu",
        )
        next(watched.run())
        assert torch.get_num_threads() == os.cpu_count()
    finally:
        torch.set_num_threads(before)
    assert seen == [1]


# --- the learning rate ----------------------------------------------------------------------------


def test_the_rate_in_closed_form():
    plan = Plan(steps=1000, lr=3e-3, warmup=100)
    assert plan.rate(0) == pytest.approx(3e-3 / 100)
    assert plan.rate(49) == pytest.approx(3e-3 * 0.5 * math.cos(math.pi * 0.049 / 2) ** 2)
    assert plan.rate(500) == pytest.approx(1.5e-3)
    assert plan.rate(750) == pytest.approx(3e-3 * math.cos(0.375 * math.pi) ** 2)
    assert plan.rate(999) < 1e-8
    rates = [plan.rate(step) for step in range(1000)]
    top = rates.index(max(rates))
    assert 95 <= top <= 99
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


@pytest.mark.parametrize("warmup", [0, 1])
def test_without_warm_up_the_first_step_is_the_fastest(warmup):
    plan = Plan(steps=10, lr=1.0, warmup=warmup)
    assert plan.rate(0) == 1.0
    assert plan.rate(1) < 1.0


def test_a_constant_rate_that_cools_down_in_closed_form():
    plan = Plan(steps=100, lr=2.0, warmup=10, cooldown=20)
    assert plan.rate(4) == pytest.approx(1.0)
    assert {plan.rate(step) for step in range(9, 81)} == {2.0}
    assert plan.rate(90) == pytest.approx(1.0)
    assert plan.rate(99) == pytest.approx(0.1)
    # a longer run has the same rates until the shorter one cools down
    longer = Plan(steps=500, lr=2.0, warmup=10, cooldown=20)
    assert [plan.rate(step) for step in range(81)] == [longer.rate(step) for step in range(81)]
    short = Plan(steps=10, lr=2.0, warmup=1, cooldown=20)  # of a short run the last half
    assert [short.rate(step) for step in (0, 5, 6, 9)] == pytest.approx([2, 2, 1.6, 0.4])


# --- a step ---------------------------------------------------------------------------------------


def slow_run(plan: Plan) -> tuple[list[float], list[torch.Tensor], list[torch.Tensor]]:
    """Losses, weights and moving averages by the formulas of AdamW (arXiv 1711.05101, algorithm 2)
    and of the average, one number type and one weight at a time."""
    job = toy.make(plan)
    weights = [p for p in job.module.parameters() if p.requires_grad]
    first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    average, losses = [w.detach().clone() for w in weights], []
    for i in range(plan.steps):
        numbers = range(i * plan.accumulate, (i + 1) * plan.accumulate)
        seeded = [torch.Generator().manual_seed(plan.seed * 1_000_003 + n) for n in numbers]
        loss = torch.stack([*map(job.loss_at, numbers, seeded)]).mean()
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, weights)
        length = math.sqrt(sum(g.square().sum().item() for g in gradients))
        cut = min(1.0, plan.clip_norm / (length + 1e-6))
        decay = 0.0 if i == 0 else min(plan.ema_decay, (1 + i) / (10 + i))
        with torch.no_grad():
            for k, (w, g) in enumerate(zip(weights, gradients, strict=True)):
                first[k] = 0.9 * first[k] + 0.1 * cut * g
                second[k] = 0.99 * second[k] + 0.01 * (cut * g) ** 2
                mean, square = first[k] / (1 - 0.9 ** (i + 1)), second[k] / (1 - 0.99 ** (i + 1))
                w -= plan.rate(i) * plan.weight_decay * w
                w -= plan.rate(i) * mean / (square.sqrt() + 1e-8)
                average[k] = decay * average[k] + (1 - decay) * w
    return losses, [w.detach() for w in weights], average


@pytest.mark.parametrize(
    "plan",
    [
        PLAN,
        Plan(steps=30, lr=0.05, warmup=0, clip_norm=0.1, weight_decay=0.3, ema_decay=0.5),
        replace(PLAN, accumulate=3),
    ],
)
def test_a_run_against_the_formulas(plan):
    run = trainer(plan)
    steps = list(run.run())
    losses, weights, average = slow_run(plan)
    assert_close([step.loss for step in steps], losses, atol=1e-5, rtol=1e-4)
    for ours, slow in zip(run.weights, weights, strict=True):
        assert_close(ours.detach(), slow, atol=1e-5, rtol=1e-4)
    for ours, slow in zip(run.ema.shadow_params, average, strict=True):
        assert_close(ours, slow, atol=1e-5, rtol=1e-4)
    run.use_average()
    for ours, slow in zip(run.weights, average, strict=True):
        assert_close(ours.detach(), slow, atol=1e-5, rtol=1e-4)
    assert not run.module.training


def test_several_micro_batches_are_those_of_a_plain_run():
    """Data and noise of micro-batch n are those of step n where a step has one."""
    seen = {}
    for accumulate, steps in ((1, 12), (4, 3)):
        plan = replace(PLAN, steps=steps, accumulate=accumulate)
        assert (plan.batches, plan.step_of(11)) == (12, steps - 1)
        job, rows = toy.make(plan), seen.setdefault(accumulate, [])

        def loss_at(number, generator, job=job, rows=rows):
            rows.append((number, generator.initial_seed()))
            return job.loss_at(number, generator)

        list(Trainer(job.module, loss_at, plan, "cpu").run())
    assert seen[1] == seen[4]
    assert [number for number, _ in seen[1]] == list(range(12))


class Reused(torch.autograd.Function):
    """A linear layer that writes each gradient into the same memory, as a CUDA graph does."""

    memory = None

    @staticmethod
    def forward(context, x, weight):
        context.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(context, grad):
        x, weight = context.saved_tensors
        if Reused.memory is None:
            Reused.memory = torch.empty_like(weight)
        return grad @ weight, Reused.memory.copy_(grad.T @ x).detach()


def test_gradients_add_up_where_a_graph_reuses_their_memory(monkeypatch):
    plan = replace(PLAN, steps=5, accumulate=3)
    plain = trainer(plan)
    list(plain.run())
    replayed = trainer(plan)
    first = replayed.module.first
    monkeypatch.setattr(first, "forward", lambda x: Reused.apply(x, first.weight) + first.bias)
    list(replayed.run())
    assert Reused.memory is not None
    assert_close(replayed.losses, plain.losses)


def test_a_weight_keeps_its_layout():
    """Convolutions in channels_last: their gradients too, or AdamW takes a slow path."""
    module = torch.nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    loss_at = lambda number, generator: module(torch.ones(1, 4, 5, 5)).square().mean()  # noqa: E731
    run = Trainer(module, loss_at, replace(PLAN, steps=2, accumulate=2), "cpu")
    list(run.run())
    assert module.weight.grad.stride() == module.weight.stride()
    assert not module.weight.grad.is_contiguous()
    assert module.weight.grad.untyped_storage().data_ptr() == run.gradient.data_ptr()


def test_a_part_can_have_a_rate_of_its_own():
    """Adam's first step is the rate in each number, whatever the gradient's size."""
    plan = Plan(steps=1, lr=0.02, warmup=0, weight_decay=0.0, rates={"second": 0.2, "first": 1.5})
    run = trainer(plan)
    before = copy.deepcopy(run.module.state_dict())
    list(run.run())
    for name, rate in {"first.weight": 0.03, "second.weight": 0.004, "second.bias": 0.004}.items():
        moved = (run.module.state_dict()[name] - before[name]).abs()
        assert_close(moved, torch.full_like(moved, rate), atol=1e-5, rtol=1e-3)
    assert {id(weight) for weight in run.weights} == {
        id(weight) for weight in run.module.parameters() if weight.requires_grad
    }


def test_a_rate_for_no_weight_is_refused():
    with pytest.raises(ValueError, match="rates has 'third', which is in the name of no weight"):
        trainer(Plan(steps=1, lr=0.02, rates={"third": 0.2}))


def test_what_a_step_tells():
    run = trainer()
    steps = list(run.run())
    assert [step.index for step in steps] == list(range(PLAN.steps))
    assert [step.loss for step in steps] == run.losses
    assert [step.seconds for step in steps] == sorted(step.seconds for step in steps)
    assert run.done == PLAN.steps
    assert list(run.run()) == []
    assert sum(run.losses[-5:]) < 0.5 * sum(run.losses[:5])


def test_a_run_is_a_generator_that_can_be_left_and_gone_on_with():
    whole, parts = trainer(), trainer()
    list(whole.run())
    for step in parts.run():
        torch.rand(3)  # what the caller draws makes no difference
        if step.index == 11:
            break
    assert parts.done == 12
    list(parts.run())
    assert parts.losses == whole.losses
    assert all(torch.equal(a, b) for a, b in zip(parts.weights, whole.weights, strict=True))


def test_seeds_are_different_runs_and_one_seed_is_one_run():
    curves = []
    for seed in (3, 3, 4):
        run = trainer(Plan(steps=5, lr=0.02, seed=seed))
        list(run.run())
        curves.append(run.losses)
    assert curves[0] == curves[1]
    assert curves[0] != curves[2]


def test_weights_that_are_fixed_stay():
    run = trainer()
    before = copy.deepcopy(run.module.state_dict())
    list(run.run())
    assert torch.equal(run.module.fixed, before["fixed"])
    assert not torch.equal(run.module.first.weight, before["first.weight"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run_before_it_does_harm(bad):
    job = toy.make(PLAN)

    def loss_at(step: int, generator: torch.Generator) -> torch.Tensor:
        return job.loss_at(step, generator) * (bad if step == 4 else 1)

    run = Trainer(job.module, loss_at, PLAN, "cpu")
    with pytest.raises(
        FloatingPointError, match=r"the loss of step 4 is (nan|inf); lower the rate"
    ):
        list(run.run())
    assert run.done == 4
    assert all(torch.isfinite(weight).all() for weight in run.weights)


# --- where ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "gpu", "device"),
    [
        ("auto", False, "cpu"),
        ("auto", True, "cuda"),
        ("cpu", True, "cpu"),
        ("cuda", True, "cuda"),
    ],
)
def test_the_device_that_a_name_stands_for(monkeypatch, name, gpu, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert device_of(name) == device


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no GPU here; pass --device auto"):
        trainer_on("cuda")
    with pytest.raises(ValueError, match="device is 'gpu'; there are auto, cpu, cuda"):
        device_of("gpu")


def trainer_on(device: str) -> Trainer:
    job = toy.make(PLAN)
    return Trainer(job.module, job.loss_at, PLAN, device)


@pytest.mark.parametrize(
    "change",
    [{"steps": 0}, {"steps": 10**400}, {"seed": -1}, {"seed": 2**64}, {"accumulate": 0}],
)
def test_a_plan_out_of_range_is_refused(change):
    (name,) = change
    with pytest.raises(ValueError, match=rf"{name} is .*; pass a whole number, [01] to \d+$"):
        replace(PLAN, **change)
