# SPDX-License-Identifier: Apache-2.0
"""Layout guidance: the energy against a loop, its gradient against finite differences."""

import copy

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from torch.testing import assert_close

from spatext_lab.baselines.layout_guidance import LayoutGuidancePipeline, layout_energy
from spatext_lab.baselines.phrases import Phrases, phrased
from spatext_lab.diffusion import initial_noise
from spatext_lab.evaluation.methods import METHODS
from spatext_lab.scene import Region, Scene
from tests.tiny import BARE, OTHER, SCENE, final

T = torch.tensor(800)
BALLS = Scene(
    "Red balls, trees and a RED BALL",
    [
        Region("a red ball", box=(0, 0, 0.5, 0.5)),
        Region("a tree", box=(0.5, 0, 1, 0.5)),
        Region("a red ball", box=(0.5, 0.5, 1, 1)),
    ],
)


# --- the energy -----------------------------------------------------------------------------------


def test_the_energy_against_a_loop():
    attention, inside = torch.rand(2, 3, 6, 5), torch.rand(2, 6) < 0.5
    tokens = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 0, 0, 1]]).bool()
    ours = layout_energy(attention, inside.float(), tokens)
    for n in range(2):
        each = []
        for head in range(3):
            for token in tokens[n].nonzero().flatten().tolist():
                paid = attention[n, head, :, token]
                within = sum(paid[cell].item() for cell in range(6) if inside[n, cell])
                each.append((1 - within / sum(paid.tolist())) ** 2)
        assert ours[n].item() == pytest.approx(sum(each) / len(each), rel=1e-5)


def test_the_energy_in_closed_form():
    """A fraction p of the attention inside gives (1 - p)^2, whatever its amount."""
    inside, token = torch.tensor([[1.0, 1, 0, 0]]), torch.tensor([[True]])
    for paid, want in (([1, 2, 0, 0], 0), ([0, 0, 5, 1], 1), ([0.1, 0.2, 0.3, 0.6], 0.5625)):
        attention = torch.tensor(paid, dtype=torch.float32).view(1, 1, 4, 1)
        assert layout_energy(attention, inside, token).item() == pytest.approx(want, abs=1e-6)


def told(pipeline, scenes):
    return pipeline.condition(scenes), Phrases.of(scenes, pipeline.tokenizer)


@pytest.fixture(scope="module")
def exact(base) -> LayoutGuidancePipeline:
    """In double precision."""
    return LayoutGuidancePipeline.from_pipe(base, unet=copy.deepcopy(base.unet).double())


def attention_of_a_head(layer, head: int, cells: np.ndarray, text: np.ndarray) -> np.ndarray:
    """softmax(Q K^T / sqrt(width)) of one head: cells x tokens."""
    width = layer.to_q.out_features // layer.heads
    own = slice(head * width, (head + 1) * width)
    query, key = (
        states @ part.weight.detach().numpy()[own].T
        for part, states in ((layer.to_q, cells), (layer.to_k, text))
    )
    paid = np.exp(query @ key.T / np.sqrt(width))
    return paid / paid.sum(1, keepdims=True)


def tokens_of(tokenizer, text: str, caption: str) -> list[int]:
    """Where the text's tokens stand among the caption's, compared number by number."""
    own = tokenizer(text, add_special_tokens=False).input_ids
    whole, n = tokenizer(caption).input_ids, len(own)
    start = next(k for k in range(len(whole)) if whole[k : k + n] == own)
    return list(range(start, start + n))


def test_the_energy_of_images_against_a_loop(exact):
    """The mean over texts, layers from the middle on, heads and tokens; a caption may begin with
    its region's text."""
    tree = Scene("a tree by a lake", [Region("a tree", box=(0.25, 0, 1, 0.5))])
    scenes, seen, handles = [SCENE, BARE, BALLS, tree], [], []
    for name, layer in exact.unet.named_modules():
        if name.endswith("attn2") and not name.startswith("down_blocks."):

            def spy(layer, args, known, _):
                seen.append((layer, args[0].numpy(), known["encoder_hidden_states"].numpy()))

            handles.append(layer.register_forward_hook(spy, with_kwargs=True))
    x_t = initial_noise(range(4), (4, 16, 16)).double()
    with torch.no_grad():
        energy = exact.energy(x_t, T, *told(exact, scenes))
    for handle in handles:
        handle.remove()
    assert len(seen) > 1
    for k, scene in enumerate(scenes):
        means = []
        for text in {region.text for region in scene.regions}:
            tokens, each = tokens_of(exact.tokenizer, text, phrased(scene)), []
            for layer, cells, states in seen:
                side = round(cells.shape[1] ** 0.5)
                masks = [r.mask_at(side, side) for r in scene.regions if r.text == text]
                inside = np.any(masks, axis=0).ravel()
                for head in range(layer.heads):
                    paid = attention_of_a_head(layer, head, cells[k], states[k])[:, tokens]
                    each += ((1 - paid[inside].sum(0) / paid.sum(0)) ** 2).tolist()
            means.append(np.mean(each))
        assert energy[k].item() == pytest.approx(np.mean(means) if means else 0, rel=1e-5)


def test_the_gradient_against_finite_differences(exact):
    condition, phrases = told(exact, [SCENE, BARE, BALLS])
    x_t = initial_noise([1, 2, 3], (4, 16, 16)).double().requires_grad_()
    energy = exact.energy(x_t, T, condition, phrases)
    assert energy[1] == 0, "no region"
    (gradient,) = torch.autograd.grad(energy.sum(), x_t)
    assert not gradient[1].any()
    for seed in range(3):
        direction = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(seed)).double()
        with torch.no_grad():
            above, below = (
                exact.energy(x_t + step * direction, T, condition, phrases).sum()
                for step in (1e-5, -1e-5)
            )
        want = ((above - below) / 2e-5).item()
        assert abs(want) > 1e-6
        assert (gradient * direction).sum().item() == pytest.approx(want, rel=1e-4)


def test_a_move_is_the_papers(exact):
    """Down the gradient, eta sigma^2 long where x_t is x_0 + sigma eps; the energy falls."""
    exact.register_to_config(layout_scale=3.0, iterations=1)
    condition, phrases = told(exact, [SCENE, OTHER])
    x_t = initial_noise([1, 2], (4, 16, 16)).double()
    moved = exact.guide(x_t, T, condition, phrases)
    alpha_bar = exact.scheduler.alphas_cumprod[800].double()
    sigma = ((1 - alpha_bar) / alpha_bar).sqrt()
    theirs = (x_t / alpha_bar.sqrt()).requires_grad_()
    energy = exact.energy(theirs / (1 + sigma**2).sqrt(), T, condition, phrases)
    (gradient,) = torch.autograd.grad(energy.sum(), theirs)
    want = (theirs - 3 * sigma**2 * gradient) / (1 + sigma**2).sqrt()
    assert_close(moved, want.detach(), atol=1e-9, rtol=1e-5)
    with torch.no_grad():
        assert (exact.energy(moved, T, condition, phrases) < energy).all()


# --- which tokens ---------------------------------------------------------------------------------


def test_texts_that_the_caption_lacks_are_added():
    assert phrased(SCENE) == SCENE.caption
    assert phrased(BALLS) == "Red balls, trees and a RED BALL, a tree"
    assert phrased(Scene("", OTHER.regions)) == "a boat"
    assert phrased(Scene("two boats", OTHER.regions)) == "two boats, a boat"


def test_the_tokens_and_cells_of_each_text(base):
    phrases = Phrases.of([BARE, BALLS], base.tokenizer)
    assert phrases.image.tolist() == [1, 1]
    ids = torch.tensor(base.tokenizer(phrased(BALLS), padding="max_length").input_ids)
    for tokens, text in zip(phrases.tokens, ["a red ball", "a tree"], strict=True):
        assert base.tokenizer.decode(ids[tokens]).strip() == text
    ball, tree = phrases.inside(2).tolist()
    assert (ball, tree) == ([True, False, False, True], [False, True, False, False])
    long = Scene("red " * 80, [Region("a tree", box=(0, 0, 1, 1))])
    assert Phrases.of([long], base.tokenizer).tokens.shape == (0, 77), "truncated"


# --- the pipeline ---------------------------------------------------------------------------------


def test_without_regions_it_is_the_text_to_image_model(base):
    pipeline = LayoutGuidancePipeline.from_pipe(base, until=500)
    settings = {"seed": 1, "num_inference_steps": 3}
    scenes = [BARE, Scene("a wood")]
    assert torch.equal(final(pipeline, scenes, **settings), final(base, scenes, **settings))
    still = LayoutGuidancePipeline.from_pipe(base, layout_scale=0, until=500)
    assert_close(final(still, SCENE, **settings), final(base, SCENE, **settings))
    one = final(pipeline, [SCENE, BARE], **settings)
    assert_close(one[1], final(base, BARE, **settings | {"seed": 2})[0], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(one[0], final(base, SCENE, **settings)[0], atol=1e-3)


def test_an_image_is_the_same_alone_and_in_a_batch(base):
    pipeline = LayoutGuidancePipeline.from_pipe(base, iterations=1, until=500)
    settings = {"num_inference_steps": 3}
    scenes = [OTHER, SCENE]
    negative, two = ["a tree", "snow"], {"num_images_per_prompt": 2}
    batch = final(pipeline, scenes, seed=5, negative_prompt=negative, **two, **settings)
    for k in range(2 * len(scenes)):
        own = {"seed": 5 + k, "negative_prompt": negative[k // 2]}
        alone = final(pipeline, scenes[k // 2], **own, **settings)[0]
        assert_close(batch[k], alone, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("start", [0, 1])
def test_moves_lie_between_the_steps(base, start):
    """Also with a scheduler whose x_t is larger than what the network reads."""
    scheduler = base.scheduler
    if start:
        scheduler = EulerDiscreteScheduler.from_config(scheduler.config)
    pipeline = LayoutGuidancePipeline.from_pipe(base, scheduler=scheduler, until=600)
    seen, read = [], []
    pipeline.guide = lambda x_t, t, *_: seen.append((t.item(), x_t)) or x_t + 1.0
    hook = base.unet.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0][:1]))
    try:
        list(pipeline.stream(OTHER, num_inference_steps=4, seed=1))
    finally:
        hook.remove()
    assert [t for t, _ in seen] == [t for t in pipeline_times(scheduler) if t >= 600]
    assert len(read) == 4
    for (_, before), after in zip(seen, read, strict=False):
        assert_close(after, before + 1.0, atol=1e-4, rtol=1e-4)


def pipeline_times(scheduler) -> list:
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(4)
    return scheduler.timesteps.tolist()


def test_the_network_is_as_it_was(base):
    """Also after an error in the middle of a call; no gradients are left on."""
    pipeline, before = LayoutGuidancePipeline.from_pipe(base), dict(base.unet.attn_processors)
    hook = base.unet.register_forward_hook(lambda *_: 1 / 0)
    try:
        with pytest.raises(ZeroDivisionError):
            pipeline(SCENE, num_inference_steps=2)
    finally:
        hook.remove()
    assert base.unet.attn_processors == before
    pipeline(SCENE, num_inference_steps=1)
    assert base.unet.attn_processors == before
    assert all(weight.grad is None for weight in base.unet.parameters())


def test_the_passes_of_its_row(base):
    """Each forward pass between two steps has a backward pass, which counts as one more."""
    method, batches = METHODS["layout-guidance"], []
    pipeline = LayoutGuidancePipeline.from_pipe(base)
    hook = base.unet.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    try:
        list(pipeline.stream(SCENE, **method.settings))
    finally:
        hook.remove()
    steps = method.settings["num_inference_steps"]
    moves = batches.count(1)
    assert batches.count(2) == steps
    assert method.passes([SCENE]) == pytest.approx((2 * steps + 2 * moves) / steps)
    assert method.passes([SCENE, BARE]) == pytest.approx((method.passes([SCENE]) + 2) / 2)


def test_a_folder_of_stable_diffusion(stable_diffusion, tmp_path):
    pipeline = LayoutGuidancePipeline.from_pretrained(stable_diffusion, until=900)
    assert pipeline(SCENE, num_inference_steps=2).images[0].size == (64, 64)
    pipeline.save_pretrained(tmp_path)
    assert LayoutGuidancePipeline.from_pretrained(tmp_path).config.until == 900


def test_settings_that_are_none(base):
    with pytest.raises(ValueError, match=r"iterations is -1; pass a number of at least 0"):
        LayoutGuidancePipeline.from_pipe(base, iterations=-1)
