# SPDX-License-Identifier: Apache-2.0
"""What spares memory leaves the result as it is, or says what it needs."""

import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from diffusers.training_utils import EMAModel

from spatext_lab.training import checkpoint, optimiser
from spatext_lab.training.loop import Trainer
from spatext_lab.training.plan import Plan
from tests.tiny import _text_to_image
from tests.training import toy

PLAN = Plan(steps=6, lr=0.02, warmup=2)


def trained(plan: Plan) -> Trainer:
    job = toy.make(plan)
    trainer = Trainer(job.module, job.loss_at, plan, "cpu")
    list(trainer.run())
    return trainer


def test_the_average_is_diffusers_own_wherever_it_lies():
    job = toy.make(PLAN)
    plain = Trainer(job.module, job.loss_at, PLAN, "cpu")
    theirs = EMAModel(plain.weights, decay=PLAN.ema_decay)
    for _ in plain.run():
        theirs.step(plain.weights)
    for place in ("device", "cpu"):
        ours = trained(replace(PLAN, average=place)).ema.shadow_params
        for a, b in zip(ours, theirs.shadow_params, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


def test_without_an_average_the_weights_are_the_model(tmp_path):
    plan = replace(PLAN, average="off")
    trainer = trained(plan)
    last = [weight.clone() for weight in trainer.weights]
    checkpoint.save(trainer, tmp_path)
    trainer.use_average()
    assert all(torch.equal(a, b) for a, b in zip(trainer.weights, last, strict=True))
    job = toy.make(plan)
    again = Trainer(job.module, job.loss_at, plan, "cpu")
    checkpoint.load(again, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.weights, last, strict=True))


def test_activations_computed_again_give_the_same_gradients():
    torch.manual_seed(0)
    model = _text_to_image()
    both = torch.nn.ModuleDict({"unet": model.unet, "text": model.text_encoder}).train()

    def gradients() -> list[torch.Tensor]:
        both.zero_grad()
        text = model.text_encoder(torch.arange(154).reshape(2, 77)).last_hidden_state
        noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        model.unet(noise, torch.tensor([3, 700]), text).sample.square().mean().backward()
        return [weight.grad.clone() for weight in both.parameters() if weight.grad is not None]

    plain = gradients()
    optimiser.save_activations(both)
    assert model.unet.is_gradient_checkpointing
    assert model.text_encoder.is_gradient_checkpointing
    again = gradients()
    assert len(plain) == len(again) > 100
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_a_model_that_cannot_compute_them_again_is_refused():
    with pytest.raises(ValueError, match="checkpointing is 'on', which no part"):
        trained(replace(PLAN, checkpointing=True))


def test_8_bits_say_what_they_need(monkeypatch):
    plan = replace(PLAN, adamw="8bit")
    with pytest.raises(ValueError, match="needs a GPU; pass --adamw 32bit"):
        trained(plan)
    monkeypatch.setattr(optimiser, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="python -m pip install bitsandbytes"):
        optimiser.adamw([], plan, "cuda")


class AdamW8bit(torch.optim.SGD):
    """What bitsandbytes keeps for a weight: bytes, scales, and the steps as an int."""

    def __init__(self, groups, lr, betas, weight_decay) -> None:
        assert betas == optimiser.BETAS
        super().__init__(groups, lr=lr, weight_decay=weight_decay)

    def load_state_dict(self, known: dict) -> None:
        """Torch's own would turn bytes into floats; bitsandbytes's does not."""
        weights = [weight for group in self.param_groups for weight in group["params"]]
        self.state |= {weight: known["state"][i] for i, weight in enumerate(weights)}

    def step(self) -> None:
        super().step()
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                state["step"] = state.get("step", 0) + 1
                bits = weight.detach().mul(50 + state["step"]).to(torch.uint8)
                state |= {"state1": bits, "absmax1": weight.detach().abs().max().reshape(1)}


def test_a_checkpoint_keeps_the_state_of_an_8_bit_optimiser(tmp_path, monkeypatch):
    fake = ModuleType("bitsandbytes.optim")
    fake.AdamW8bit = AdamW8bit
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", fake)
    monkeypatch.setattr(optimiser, "check_8bit", lambda device: None)
    plan = replace(PLAN, adamw="8bit")
    first = trained(plan)
    checkpoint.save(first, tmp_path)
    job = toy.make(plan)
    second = Trainer(job.module, job.loss_at, plan, "cpu")
    checkpoint.load(second, tmp_path)
    states = [trainer.optimizer.state_dict()["state"] for trainer in (first, second)]
    assert states[0].keys() == states[1].keys()
    for i, state in states[0].items():
        assert type(states[1][i]["step"]) is int
        for name, value in state.items():
            other = states[1][i][name]
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other)), name
            assert torch.as_tensor(value).dtype == torch.as_tensor(other).dtype
    with pytest.raises(ValueError, match="adamw is '32bit'; the run in"):
        checkpoint.check(tmp_path, PLAN)
