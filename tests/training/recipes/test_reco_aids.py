# SPDX-License-Identifier: Apache-2.0
"""What helps a small base: refitted layers, weights and timesteps against loops and equations."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from spatext_lab.clip import Clip
from spatext_lab.diffusion import training_loss
from spatext_lab.reco.coordinates import COORDINATES, PlacedDenoiser
from spatext_lab.reco.pipeline import ReCoPipeline
from spatext_lab.scene import Region, Scene
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from spatext_lab.training.loop import Plan
from spatext_lab.training.recipes import reco
from spatext_lab.training.recipes.reco import aids
from spatext_lab.training.recipes.reco.aids import SHIFT, noisy_timesteps
from spatext_lab.training.recipes.reco.attention import attention_loss, watched
from spatext_lab.training.recipes.reco.start import VARIANTS, build_model
from tests.training.steps import PLAN, losses

pytestmark = pytest.mark.usefixtures("small")


CAPTIONS = ["a red ball and a tree", "a blue boat on the sea", "two stars at night", ""]
TURN = torch.randn(24, 24, generator=torch.Generator().manual_seed(7))[:16]


def turned(base: TextToImagePipeline) -> torch.nn.Module:
    """An encoder whose states are the base's, projected to 24 numbers and shifted."""
    encoder = copy.deepcopy(base.text_encoder)

    def forward(ids: torch.Tensor) -> SimpleNamespace:
        states = base.text_encoder(ids).last_hidden_state
        return SimpleNamespace(last_hidden_state=states @ TURN + 0.3)

    encoder.forward = forward
    return encoder


def layers_of(unet: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """Keys and values of the text, by name."""
    return {k: v for k, v in unet.named_modules() if k.endswith(("attn2.to_k", "attn2.to_v"))}


def test_refitted_keys_and_values_read_the_new_states_as_the_old_ones_the_old(root, monkeypatch):
    """Without the fresh part, and but for what is the same for all tokens; then the base's states,
    which here follow from the new ones, are met as closely as the ridge is small."""
    base = TextToImagePipeline.from_pretrained(root / "text-to-image")
    before = {name: value.clone() for name, value in base.unet.state_dict().items()}
    linear = torch.nn.Linear

    def empty(*shape, **given) -> torch.nn.Linear:
        layer = linear(*shape, **given)
        torch.nn.init.zeros_(layer.weight)
        return layer

    captions, encoder = [*CAPTIONS, *(f"{c} at noon" for c in CAPTIONS)], turned(base)
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn, "Linear", empty)
        plain = aids.refitted(base.unet, base, encoder, captions)
    ids = torch.tensor(base.tokenizer(CAPTIONS, padding="max_length").input_ids)
    with torch.no_grad():
        old = base.text_encoder(ids).last_hidden_state.flatten(0, 1)
        new = encoder(ids).last_hidden_state.flatten(0, 1)
        changed = layers_of(plain)
        for name, layer in layers_of(base.unet).items():
            want, got = layer(old), changed[name](new)
            want, got = want - want.mean(0), got - got.mean(0)
            assert want.square().mean().sqrt() > 0.02
            assert (got - want).square().mean() < 0.01 * want.square().mean()
    assert plain.config.cross_attention_dim == 24
    assert all(torch.equal(value, before[name]) for name, value in base.unet.state_dict().items())
    assert base.unet.config.cross_attention_dim == 16


def test_refitting_changes_keys_and_values_alone_and_adds_half_a_fresh_layer(root, monkeypatch):
    base = TextToImagePipeline.from_pretrained(root / "text-to-image")
    monkeypatch.setattr(aids, "ridge_regression", lambda x, y, ridge: torch.zeros(24, 16))
    changed = aids.refitted(base.unet, base, turned(base), CAPTIONS)
    weights, number = dict(changed.state_dict()), 0
    for name, value in base.unet.state_dict().items():
        if ".attn2.to_k" in name or ".attn2.to_v" in name:
            number += 1
            # a fresh layer's weights are even in +- 1 / sqrt(inputs)
            assert 0.4 < weights[name].abs().max().item() * math.sqrt(24) <= 0.5 + 1e-6
        else:
            assert torch.equal(weights[name], value), name
    assert number == 2 * len([k for k, _ in base.unet.named_modules() if k.endswith("attn2")]) > 0


def test_an_aided_base_has_clips_text_transformer_and_coordinates(root):
    base = TextToImagePipeline.from_pretrained(root / "text-to-image")
    reader = Clip.from_pretrained(root / "spatext" / "clip")
    before = {name: value.clone() for name, value in base.unet.state_dict().items()}
    aided = aids.aided_base(base, reader)
    theirs = reader.text_transformer(77).state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in aided.text_encoder.state_dict().items())
    assert aided.unet.config.in_channels == 4 + COORDINATES
    assert torch.equal(aided.unet.conv_in.weight[:, :4], base.unet.conv_in.weight)
    assert aided.unet.conv_in.weight[:, 4:].std().item() == pytest.approx(0.1, rel=0.1)
    assert all(torch.equal(v, before[k]) for k, v in base.unet.state_dict().items())
    assert base.unet.config.in_channels == 4


def test_weights_of_boxes_against_a_slow_loop():
    """A cell counts if its middle is in any box of its own image; overlaps count once."""
    rows = [
        [Region("a", box=(0.1, 0.2, 0.55, 0.8)), Region("b", box=(0.3, 0.3, 0.9, 0.6))],
        [],
        [Region("c", box=(0, 0, 1, 0.5))],
    ]
    want = torch.ones(3, 1, 8, 12)
    for k, regions in enumerate(rows):
        for y in range(8):
            for x in range(12):
                u, v = (x + 0.5) / 12, (y + 0.5) / 8
                boxes = [region.box for region in regions]
                if any(x0 <= u < x1 and y0 <= v < y1 for x0, y0, x1, y1 in boxes):
                    want[k, 0, y, x] = aids.BOX_WEIGHT
    got = aids.box_weights([Scene("c", row) for row in rows], (8, 12))
    assert_close(got, want * want.numel() / want.sum())
    assert got.mean().item() == pytest.approx(1, rel=1e-5)
    assert len(got.unique()) == 2
    assert_close(aids.box_weights([Scene("c")], (8, 12)), torch.ones(1, 1, 8, 12))


@pytest.mark.parametrize("steps", [1000, 100])
def test_uniform_timesteps_are_shifted_as_equation_23_says(steps):
    """The fraction of timesteps below t is u(t / steps), equation 23 solved for u."""
    uniform = torch.arange(steps)
    shifted = noisy_timesteps(uniform, steps)
    assert 0 <= shifted.min() < shifted.max() == steps - 1
    for k in range(1, steps, steps // 10):
        x = k / steps
        below = x / (SHIFT - (SHIFT - 1) * x)
        assert (shifted < k).double().mean().item() == pytest.approx(below, abs=1 / steps)


class Watched:
    """An aided job, its model and its pool, and what the last step's loss was made of."""

    def __init__(self, monkeypatch, plan: Plan) -> None:
        fine_tune, loss = reco.fine_tune, reco.training_loss

        def watch_job(model, pool, *rest):
            self.model, self.pool = model, pool
            return fine_tune(model, pool, *rest)

        def watch_loss(*given):
            self.given = given
            return loss(*given)

        monkeypatch.setattr(reco, "fine_tune", watch_job)
        monkeypatch.setattr(reco, "training_loss", watch_loss)
        self.job = reco.make(plan, "cpu", aided=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_aided_reco_learns(variant):
    curve = losses(reco.make(PLAN, "cpu", variant=variant, aided=True))
    assert np.isfinite(curve).all()
    assert np.mean(curve[-2:]) < 0.95 * np.mean(curve[:2])


def test_the_aided_loss_is_of_the_sequences_boxes_and_attention(monkeypatch):
    """With the step's own random numbers drawn again by hand: shifted timesteps, weighted
    boxes, whole sequences where the recipe drops what is padding in all, and the attention."""
    watch = Watched(monkeypatch, PLAN)
    model, pool = watch.model, watch.pool
    generator = torch.Generator().manual_seed(3)
    index = torch.randint(len(pool), (reco.BATCH,), generator=generator)
    scenes = reco.draw_scenes(pool, index, generator)
    x_0 = pool.latents[index]
    noise = torch.randn(x_0.shape, generator=generator)
    t = noisy_timesteps(torch.randint(1000, (reco.BATCH,), generator=generator), 1000)
    weight = aids.box_weights(scenes, (16, 16))
    ids = model.position_tokens.encode([*scenes, Scene("")])
    with torch.no_grad():
        whole = model.encode_ids(ids, reco.BATCH)
        with watched(model.unet) as seen:
            want = training_loss(model.denoiser(), x_0, whole, t, noise, model.scheduler, weight)
        paid = attention_loss(seen, model.position_tokens.token_regions(ids[:-1]), scenes)
        got = watch.job.loss_at(0, torch.Generator().manual_seed(3))
    assert paid > 0.1
    assert_close(got, want + aids.ATTENTION * paid, atol=1e-4, rtol=1e-4)
    short = watch.given[2]
    assert short.text.shape[1] == int(whole.text_mask.sum(1).max()) < whole.text.shape[1] == 154


def test_aided_reco_is_saved_with_masked_padding_and_coordinates(root, tmp_path):
    reco.make(PLAN, "cpu", bins=64, aided=True).save(tmp_path)
    model = ReCoPipeline.from_pretrained(tmp_path)
    assert model.config.padding == "masked"
    assert type(model.denoiser()) is PlacedDenoiser
    scene = Scene("a red ball", [Region("a ball", box=(0, 0, 0.5, 0.5))])
    assert model(scene, num_inference_steps=1).images[0].size == (64, 64)
    onward = build_model(tmp_path, "cpu", aided=True)
    assert onward.config.padding == "masked"
    assert all(
        torch.equal(onward.unet.state_dict()[name], value)
        for name, value in model.unet.state_dict().items()
    )
    assert build_model(root / "text-to-image", "cpu").config.padding == "read"
