# SPDX-License-Identifier: Apache-2.0
"""The counted memory of a training step against PyTorch's profiler, which sees each allocation."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.profiler import ProfilerActivity, profile

from spatext_lab.training import memory
from spatext_lab.training.loop import Trainer
from spatext_lab.training.optimiser import save_activations
from spatext_lab.training.plan import Plan

PLAN = Plan(steps=1, lr=1e-3)


class Small:
    """A U-Net and its loss."""

    def __init__(self, batch: int = 4) -> None:
        torch.manual_seed(0)
        self.batch = batch
        self.unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(16,),
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=4,
        ).train()
        self.weights = 4 * sum(w.numel() for w in self.unet.parameters())

    def loss_at(self, number: int, generator: torch.Generator) -> torch.Tensor:
        x = torch.randn(self.batch, 4, 16, 16, generator=generator)
        index = torch.randint(10, (self.batch,), generator=generator)
        text = torch.ones(self.batch, 7, 16) * torch.tensor(index.tolist())[:, None, None]
        return self.unet(x, index, text).sample.square().mean()


def profiled(small: Small, trace) -> int:
    """The most bytes that a step's passes allocate, by the profiler's events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        small.loss_at(0, torch.Generator().manual_seed(0)).backward()
    seen.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    marks = sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"])
    totals = [event["args"]["Total Allocated"] for event in marks]
    return max(totals) - totals[0] + marks[0]["args"]["Bytes"]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_passes_hold_what_the_profiler_sees(tmp_path, checkpointing, keep):
    small = Small()
    if checkpointing:
        save_activations(small.unet)
    counted = memory.pass_bytes(small.unet, small.loss_at, keep_gradients=keep)
    if not keep:
        for weight in small.unet.parameters():
            weight.register_post_accumulate_grad_hook(lambda w: setattr(w, "grad", None))
    assert counted == pytest.approx(profiled(small, tmp_path / "trace.json"), rel=0.02)


def test_counting_leaves_no_trace():
    small = Small(2)
    before = {name: weight.clone() for name, weight in small.unet.state_dict().items()}
    forward = small.unet.forward
    memory.pass_bytes(small.unet, small.loss_at, bf16=True)
    assert small.unet.forward == forward
    assert all(w.grad is None for w in small.unet.parameters())
    assert all(torch.equal(before[n], w) for n, w in small.unet.state_dict().items())


def test_bfloat16_holds_less_and_normalises_in_single_precision_as_a_gpu_does():
    small, seen = Small(4), []
    plain = memory.pass_bytes(small.unet, small.loss_at)
    small.unet.conv_norm_out.register_forward_hook(lambda m, x, out: seen.append(out.dtype))
    small.unet.conv_out.register_forward_hook(lambda m, x, out: seen.append(out.dtype))
    assert memory.pass_bytes(small.unet, small.loss_at, bf16=True) < 0.8 * plain
    assert seen == [torch.float32, torch.bfloat16]


def test_the_parts_are_those_of_a_real_trainer():
    small, other = Small(2), torch.nn.Linear(10, 10)
    small.unet.conv_in.requires_grad_(False)
    frozen = 4 * sum(w.numel() for w in small.unet.conv_in.parameters())
    trainer = Trainer(small.unet, small.loss_at, PLAN, "cpu")
    list(trainer.run())
    kept = memory.expected(small.unet, small.loss_at, PLAN, bf16=False, others=[other])
    states = trainer.optimizer.state.values()
    moments = sum(s[m].nbytes for s in states for m in ("exp_avg", "exp_avg_sq"))
    assert kept.weights == small.weights - frozen
    assert kept.others == frozen + 440
    assert kept.gradients == sum(w.grad.nbytes for w in trainer.weights)
    assert kept.moments == moments
    assert kept.average == sum(w.nbytes for w in trainer.ema.shadow_params)
    assert kept.total == sum(
        (kept.weights, kept.others, kept.gradients, kept.moments, kept.average, kept.passes)
    )


def test_where_the_average_lies_and_how_gradients_are_added_up():
    small = Small(2)
    count = lambda plan: memory.expected(small.unet, small.loss_at, plan, bf16=False)  # noqa: E731
    once = count(replace(PLAN, average="cpu"))
    assert once.average == 0
    assert count(replace(PLAN, average="off")).total == once.total
    several = count(replace(PLAN, average="cpu", accumulate=4))
    # their gradients are there from the start, beside all activations
    assert several.passes == memory.pass_bytes(small.unet, small.loss_at)
    assert once.passes <= several.passes


def test_8_bit_moments_by_hand():
    plan = replace(PLAN, adamw="8bit")
    weights = [torch.empty(100), torch.empty(100, 1000)]
    assert memory.moment_bytes(weights, plan) == 800 + 2 * (100_000 + 4 * 391)
    assert memory.moment_bytes(weights, PLAN) == 8 * 100_100


def test_the_line_names_every_part_that_is_there():
    kept = memory.Memory(2**30, 0, 2**30, 2 * 2**30, 0, 2**29)
    assert kept.text() == "4.5 GiB: weights 1.0, gradients 1.0, moments 2.0, passes 0.5"
