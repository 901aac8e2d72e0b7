# SPDX-License-Identifier: Apache-2.0
"""MultiDiffusion against a loop with one network call for each text, and in closed form."""

import copy

import pytest
import torch
from torch.testing import assert_close

from spatext_lab.baselines.multidiffusion import MultiDiffusionPipeline, RegionDenoiser
from spatext_lab.diffusion import Condition, initial_noise, noise_schedule, sample
from spatext_lab.images import encode
from spatext_lab.scene import Region, Scene
from tests.tiny import BARE, OTHER, SCENE, final

HALVES = [Region("a tree", box=(0, 0, 0.5, 1)), Region("a boat", box=(0.5, 0, 1, 1))]


@torch.no_grad()
def slowly(pipeline, scene: Scene, seed: int, steps: int, scale: float, first: int) -> torch.Tensor:
    """As the paper writes it: every region has a diffusion path, whose x_{t-1} are averaged."""
    source = torch.Generator().manual_seed(seed)
    size = pipeline.latent_size
    noise = x_t = torch.randn(1, 4, size, size, generator=source)
    colours = torch.rand(first, len(scene.regions), 3, generator=source)
    masks = [torch.from_numpy(region.mask_at(size, size)).float() for region in scene.regions]
    masks = [(sum(masks) == 0).float(), *masks]
    texts = [scene.caption, *(region.text for region in scene.regions)]
    scheduler = copy.deepcopy(pipeline.scheduler)
    scheduler.set_timesteps(steps)
    for index, t in enumerate(scheduler.timesteps):
        total = torch.zeros_like(x_t)
        for k, (text, mask) in enumerate(zip(texts, masks, strict=True)):
            view = x_t
            if k and index < first:
                image = (2 * colours[index, k - 1] - 1)[None, :, None, None]
                image = image.expand(1, 3, pipeline.image_size, pipeline.image_size)
                background = scheduler.add_noise(encode(pipeline.vae, image), noise, t[None])
                view = mask * x_t + (1 - mask) * background
            states = pipeline.encode_captions([text])
            null, told = (
                pipeline.unet(view, t, encoder_hidden_states=state).sample
                for state in (states.null_text, states.text)
            )
            guided = null + scale * (told - null)
            total += mask * scheduler.step(guided, t, view).prev_sample
        x_t = total / sum(masks)
    return x_t


@pytest.mark.parametrize("bootstrapping", [0.0, 0.5])
def test_against_one_network_call_for_each_text(base, bootstrapping):
    pipeline = MultiDiffusionPipeline.from_pipe(base, bootstrapping=bootstrapping)
    settings = {"num_inference_steps": 4, "guidance_scale": 3.0}
    batch = final(pipeline, [SCENE, OTHER], seed=5, **settings)
    for k, scene in enumerate([SCENE, OTHER]):
        want = slowly(pipeline, scene, 5 + k, 4, 3.0, round(4 * bootstrapping))
        assert_close(batch[k], want[0], atol=1e-4, rtol=1e-3)


def test_in_closed_form():
    """Where every text knows one image alone, each cell ends in the mean of its texts' images."""
    alphas, means = noise_schedule().alphas_cumprod, torch.tensor([3.0, -1.0, 5.0, 2.0])

    def knows_one_image(x_t, t, condition):
        alpha, sigma = alphas[t].sqrt(), (1 - alphas[t]).sqrt()
        alpha, sigma, x_0 = (v.view(-1, 1, 1, 1) for v in (alpha, sigma, condition.text[:, 0, 0]))
        eps = (x_t - alpha * x_0) / sigma
        return alpha * eps - sigma * x_0  # v

    masks = torch.zeros(4, 1, 2, 3, dtype=torch.bool)
    masks[1, :, :, :1] = masks[2, :, 0, :2] = True  # of the first image; they share one cell
    masks[0] = ~(masks[1] | masks[2])
    masks[3] = True  # the second image has no region
    texts = Condition(means[:, None, None], torch.zeros(4, 1, 1))
    order = [0, 3, 1, 2]  # captions first
    views = Condition(texts.text[order], texts.null_text[order])
    denoiser = RegionDenoiser(
        knows_one_image, views, torch.tensor([0, 1, 0, 0]), masks[order], iter(()), alphas
    )
    x_T = initial_noise([0, 1], (1, 2, 3))
    captions = Condition(views.text[:2], views.null_text[:2])
    *_, last = sample(denoiser, noise_schedule(), x_T, captions, 5)
    assert_close(last.x_t[0, 0], torch.tensor([[2.0, 5.0, 3.0], [-1.0, 3.0, 3.0]]))
    assert_close(last.x_t[1, 0], torch.full((2, 3), 2.0))


def test_disjoint_masks_that_cover_everything(base):
    """Each cell has its own text's prediction; the caption has none."""
    pipeline = MultiDiffusionPipeline.from_pipe(base, bootstrapping=0.0)
    first, *_ = pipeline.stream(Scene("ignored", HALVES), seed=2, num_inference_steps=3)
    tree, boat = (
        next(iter(base.stream(Scene(region.text), seed=2, num_inference_steps=3)))
        for region in HALVES
    )
    half = pipeline.latent_size // 2
    assert_close(first.x_0[..., :half], tree.x_0[..., :half], atol=1e-4, rtol=1e-4)
    assert_close(first.x_0[..., half:], boat.x_0[..., half:], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(tree.x_0, boat.x_0, atol=1e-2)


def test_without_regions_it_is_the_text_to_image_model(base):
    pipeline = MultiDiffusionPipeline.from_pipe(base)
    settings = {"seed": 1, "num_inference_steps": 3}
    scenes = [BARE, Scene("a wood")]
    assert torch.equal(final(pipeline, scenes, **settings), final(base, scenes, **settings))
    one = final(pipeline, [SCENE, BARE], **settings)[1]
    assert_close(one, final(base, BARE, **settings | {"seed": 2})[0], atol=1e-4, rtol=1e-4)


def test_an_image_is_the_same_alone_and_in_a_batch(base):
    pipeline = MultiDiffusionPipeline.from_pipe(base, bootstrapping=0.7)
    settings = {"num_inference_steps": 3}
    scenes = [OTHER, SCENE, BARE]
    negative, two = ["a tree", "snow", ""], {"num_images_per_prompt": 2}
    batch = final(pipeline, scenes, seed=5, negative_prompt=negative, **two, **settings)
    for k in range(2 * len(scenes)):
        own = {"seed": 5 + k, "negative_prompt": negative[k // 2]}
        alone = final(pipeline, scenes[k // 2], **own, **settings)[0]
        assert_close(batch[k], alone, atol=1e-4, rtol=1e-4)


def test_a_step_is_one_network_call(base):
    pipeline, batches = MultiDiffusionPipeline.from_pipe(base), []
    hook = base.unet.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    try:
        pipeline([SCENE, OTHER, BARE], num_inference_steps=3)
    finally:
        hook.remove()
    assert batches == [2 * (3 + 2 + 1)] * 3


def test_a_folder_of_stable_diffusion(stable_diffusion, tmp_path):
    pipeline = MultiDiffusionPipeline.from_pretrained(stable_diffusion, bootstrapping=0.4)
    assert pipeline(SCENE, num_inference_steps=2).images[0].size == (64, 64)
    pipeline.save_pretrained(tmp_path)
    assert MultiDiffusionPipeline.from_pretrained(tmp_path).config.bootstrapping == 0.4


def test_a_fraction_that_is_none(base):
    with pytest.raises(ValueError, match=r"bootstrapping is 20; pass a fraction from 0 to 1"):
        MultiDiffusionPipeline.from_pipe(base, bootstrapping=20)
