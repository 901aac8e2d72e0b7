# SPDX-License-Identifier: Apache-2.0
"""The text-to-image recipe: what a step learns from, and its loss by hand."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from torch.testing import assert_close

from spatext_lab import zoo
from spatext_lab.clip import Clip
from spatext_lab.datasets.pocket.pretraining import View, large_view, small_view
from spatext_lab.diffusion import noise_schedule
from spatext_lab.images import encode, to_tensor
from spatext_lab.scene import Scene
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from spatext_lab.text_to_image.unet import PocketUNet
from spatext_lab.training.job import Job
from spatext_lab.training.loop import Plan
from spatext_lab.training.recipes import text_to_image

PLAN = Plan(steps=12, lr=1e-3)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Two steps of small images first, blocks of eight steps and, for batches of four, views."""
    monkeypatch.setattr(text_to_image, "SMALL_STEPS", 2)
    monkeypatch.setattr(text_to_image, "BLOCK", 8)
    monkeypatch.setattr(text_to_image, "SMALL_VIEWS", 1)
    monkeypatch.setattr(text_to_image, "LARGE_VIEWS", 2)


def made() -> Job:
    return text_to_image.make(PLAN, "cpu", batch=4)


def shown(render, numbers, tokenizer) -> list:
    """Views with the ids of their captions, tokenised one by one."""
    views = [render(number) for number in numbers]
    padded = {"padding": "max_length", "truncation": True}
    return [
        (view, np.array([tokenizer(text, **padded).input_ids for text in view.captions]))
        for view in views
    ]


def test_small_images_first_then_one_step_of_four():
    small = [text_to_image.is_small(step) for step in range(10)]
    assert small == [True, True, False, False, True, False, False, False, True, False]


@pytest.mark.parametrize("first", [None, 20, 3, 0])
def test_blocks_are_of_steps_of_one_size(monkeypatch, first):
    """Counted one by one: eight small steps have a block, and so have eight large ones."""
    monkeypatch.setattr(text_to_image, "SMALL_STEPS", 21)
    seen = {True: 0, False: 0}
    for step in range(200):
        small = text_to_image.is_small(step, first)
        assert text_to_image.block_of(step, first) == seen[small] // 8
        seen[small] += 1


@pytest.mark.parametrize("render", [small_view, large_view])
def test_a_view_is_tokenised_as_it_is_by_number(render):
    tokenizer = text_to_image.new_pipeline().tokenizer
    view, ids = text_to_image.tokenized(3, render, 0, tokenizer)
    ((same, wanted),) = shown(render, [3], tokenizer)
    assert np.array_equal(view.image, same.image)
    assert np.array_equal(ids, wanted)


@pytest.mark.parametrize("render", [small_view, large_view])
def test_views_as_tensors_against_one_at_a_time(render, monkeypatch):
    monkeypatch.setattr(text_to_image, "_CHUNK", 2)
    vae = AutoencoderTiny.from_pretrained(
        zoo.folder("pocket", "text-to-image/vae"), torch_dtype=torch.float32
    )
    tokenized = shown(render, range(5), text_to_image.new_pipeline().tokenizer)
    ours = text_to_image.encoded(tokenized, vae)
    for i, (view, ids) in enumerate(tokenized):
        with torch.no_grad():
            latents = encode(vae, to_tensor(view.image[None]))[0]
        assert_close(ours.latents[i], latents, atol=1e-5, rtol=1e-4)
        assert np.array_equal(ours.ids[i, : ours.count[i]].numpy(), ids)
        assert_close(ours.windows[i], torch.tensor(view.window))
        for y in range(latents.shape[1]):
            for x in range(latents.shape[2]):
                cell = view.objects[4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
                assert ours.coverage[i, 0, y, x].item() == pytest.approx(cell.mean())


def test_object_weights_in_closed_form():
    """Full and empty cells at the clean end are as 3 to 1, at the noisy end alike; mean 1."""
    coverage = torch.zeros(2, 1, 2, 2)
    coverage[:, 0, 0] = 1
    weights = text_to_image.object_weights(coverage, torch.tensor([0, 999]), noise_schedule())
    assert weights.mean().item() == pytest.approx(1)
    assert_close(weights[0, 0, 0] / weights[0, 0, 1], torch.tensor([3.0, 3.0]), atol=1e-2, rtol=0)
    assert_close(weights[1], weights[1, 0, 0, 0].expand(1, 2, 2), atol=1e-3, rtol=0)


def test_it_starts_as_clips_text_transformer_and_a_small_unet():
    model = text_to_image.new_pipeline()
    clip = Clip.from_pretrained(zoo.folder("pocket", "spatext/clip"))
    ids = model.tokenizer("a red ball", padding="max_length", return_tensors="pt").input_ids
    assert ids.shape == (1, 77)
    with torch.no_grad():
        states = model.text_encoder(ids).last_hidden_state
        assert torch.equal(states, clip.text_transformer(77)(ids).last_hidden_state)
    weights = text_to_image.new_unet(4, 4, 128).parameters()
    assert sum(weight.numel() for weight in weights) <= 4_500_000


@pytest.mark.parametrize("step", [0, 2])
def test_the_loss_is_that_of_the_views(step):
    """With the step's own random numbers drawn again by hand, and the network called by hand."""
    job, model = made(), text_to_image.new_pipeline()
    n = 8 if step == 0 else 4
    unet, text_encoder = job.module["unet"], job.module["text_encoder"]
    render = small_view if step == 0 else large_view
    pool = text_to_image.encoded(shown(render, range(8), model.tokenizer), model.vae)
    generator = torch.Generator().manual_seed(5)
    index = torch.randint(8, (n,), generator=generator)
    ids = pool.draw_captions(index, generator)
    full = torch.rand((), generator=generator) < text_to_image.FULL_LENGTH
    drop = torch.rand(n, generator=generator) < text_to_image.DROP
    noise = torch.randn(pool.latents[index].shape, generator=generator)
    t = torch.randint(1000, (n,), generator=generator)
    ends = (ids == model.tokenizer.eos_token_id).int().argmax(1)
    length = 77 if full else ends.max() + 1
    empty = model.tokenizer("", padding="max_length", return_tensors="pt").input_ids
    ids = torch.where(drop[:, None], empty, ids)[:, :length]
    alpha = model.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    x_0 = pool.latents[index]
    with torch.no_grad():
        text = text_encoder(ids).last_hidden_state
        x_t = alpha.sqrt() * x_0 + (1 - alpha).sqrt() * noise
        v = unet(x_t, t, text, window=pool.windows[index]).sample
        errors = (v - (alpha.sqrt() * noise - (1 - alpha).sqrt() * x_0)).square()
        if step == 2:
            weight = 1 + 2 * alpha.sqrt() * pool.coverage[index]
            errors = errors * weight / weight.mean()
        ours = job.loss_at(step, torch.Generator().manual_seed(5))
    assert_close(ours, errors.mean(), atol=1e-4, rtol=1e-4)


def test_every_block_of_steps_has_views_of_its_own(monkeypatch):
    """Rendered when they are needed, not again; where a run goes on changes nothing."""
    seen = []

    def render(number: int, seed: int) -> View:
        seen.append(number)
        return large_view(number, seed)

    monkeypatch.setattr(text_to_image, "large_view", render)
    job = made()
    for step in (2, 3, 5, 13, 22):  # the large steps 0, 1, 2, 8 and 15
        job.loss_at(step, torch.Generator().manual_seed(step))
    assert seen == list(range(16))
    seen.clear()
    again = made()
    with torch.no_grad():
        both = [one.loss_at(13, torch.Generator().manual_seed(9)) for one in (job, again)]
    assert seen == list(range(8, 16))
    assert torch.equal(*both)


@pytest.mark.parametrize("part", [0.0, 1.0])
def test_some_steps_have_the_whole_padding(monkeypatch, part):
    monkeypatch.setattr(text_to_image, "FULL_LENGTH", part)
    job, lengths = made(), []
    job.module["text_encoder"].register_forward_hook(
        lambda _, inputs, out: lengths.append(out.last_hidden_state.shape[1])
    )
    for step in range(4):
        job.loss_at(step, torch.Generator().manual_seed(step))
    assert set(lengths) == {77} if part else min(lengths) < 77


def test_a_saved_model_is_read_and_samples(tmp_path):
    """By our pipeline and by diffusers' own, from the same folder: the same latents."""
    made().save(tmp_path)
    pipeline = TextToImagePipeline.from_pretrained(tmp_path)
    assert isinstance(pipeline.unet, PocketUNet)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    settings = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "latent"}
    ours = pipeline(Scene("a red ball"), latents=noise, **settings).images
    theirs = StableDiffusionPipeline.from_pretrained(
        tmp_path,
        torch_dtype=torch.float32,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    theirs.set_progress_bar_config(disable=True)
    assert_close(ours, theirs("a red ball", latents=noise, **settings).images, atol=1e-3, rtol=1e-3)


def test_captions_are_drawn_evenly():
    """Of three captions each as often; of two, never the room for a third."""
    ids = torch.tensor([[[1], [2], [3]], [[4], [5], [0]]]).expand(2, 3, 77)
    rest = torch.zeros(2, 4), torch.zeros(2, 1, 2, 2)
    views = text_to_image.Views(torch.zeros(2, 4, 2, 2), ids, torch.tensor([3, 2]), *rest)
    index = torch.tensor([0, 1] * 600)
    drawn = views.draw_captions(index, torch.Generator().manual_seed(0))[:, 0]
    counts = torch.bincount(drawn, minlength=6).tolist()
    assert counts[0] == 0
    assert all(150 < count < 250 for count in counts[1:4])
    assert all(250 < count < 350 for count in counts[4:])
