# SPDX-License-Identifier: Apache-2.0
"""GLIGEN's recipe: the base stays as it is, the gated layers learn, and the loss by hand."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from spatext_lab.baselines.gated import is_gated
from spatext_lab.baselines.gligen import GligenPipeline
from spatext_lab.datasets.pocket import pocket_item
from spatext_lab.scene import Scene
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from spatext_lab.training import cache
from spatext_lab.training.loop import Plan
from spatext_lab.training.recipes import gligen
from spatext_lab.training.recipes.reco import views
from tests.tiny import SCENE, final
from tests.training.steps import PLAN, loss_of, losses

pytestmark = pytest.mark.usefixtures("small")


def test_the_base_stays_and_every_gated_weight_learns(root):
    base = TextToImagePipeline.from_pretrained(root / "text-to-image")
    job = gligen.make(PLAN, "cpu")
    start = {name: value.clone() for name, value in job.module.state_dict().items()}
    assert np.isfinite(losses(job, same_data=False)).all()
    trained = {name for name, w in job.module.named_parameters() if w.requires_grad}
    assert trained == {name for name in start if is_gated(name)}
    for name, value in job.module.state_dict().items():
        if is_gated(name):
            assert not torch.equal(value, start[name]), name
        else:
            assert torch.equal(value, base.unet.state_dict()[name]), name


def test_open_gates_learn(root, monkeypatch):
    """A network of random weights has little to attend to; its loss falls all the same."""
    monkeypatch.setattr(gligen, "DROP_GROUNDING", 0.0)
    curve = losses(gligen.make(Plan(steps=60, lr=2e-2, warmup=2), "cpu"))
    assert np.mean(curve[-5:]) < 0.97 * np.mean(curve[:5])


def test_a_saved_model_is_the_trained_one_on_its_base(root, tmp_path):
    job = gligen.make(PLAN, "cpu")
    losses(job, same_data=False)
    job.save(tmp_path / "gligen")
    model = GligenPipeline.from_pretrained(tmp_path / "gligen", base=root / "text-to-image")
    assert model.config.max_objects == 8
    base = TextToImagePipeline.from_pretrained(root / "text-to-image").unet.state_dict()
    for name, value in model.unet.state_dict().items():
        want = job.module.state_dict()[name].half().float()
        assert torch.equal(value, base.get(name, want)), name
    trained = GligenPipeline.from_pipe(model, unet=job.module.eval())
    images = (final(each, SCENE, num_inference_steps=2) for each in (model, trained))
    assert_close(*images, atol=2e-2, rtol=2e-2)


def pocket_pool() -> cache.Cache:
    items = [pocket_item("train", i) for i in range(12)]
    scenes = [item.layout for item in items]
    return cache.Cache(torch.zeros(12, 4, 2, 2), [item.captions for item in items], scenes)


def test_captions_and_grounding_are_dropped_independently():
    pool, n = pocket_pool(), 12_000
    index = torch.arange(12).repeat(n // 12)
    scenes = gligen.draw_scenes(pool, index, torch.Generator().manual_seed(0))
    gone = Counter((not scene.caption, not scene.regions) for scene in scenes)
    for case, want in {
        (True, True): 0.05,
        (True, False): 0.45,
        (False, True): 0.05,
        (False, False): 0.45,
    }.items():
        deviation = math.sqrt(want * (1 - want) / n)
        assert gone[case] / n == pytest.approx(want, abs=4 * deviation)
    for i, scene in zip(index.tolist(), scenes, strict=True):
        assert scene.caption in {"", *pool.captions[i]}
        assert scene.regions in ((), pool.scenes[i].regions)


def test_a_dropped_layout_is_null_tokens(root):
    """What training drops is what guidance and padding have: the objects of no scene."""
    model = GligenPipeline.from_pretrained(root / "gligen")
    x_t, t = torch.randn(1, 4, 16, 16), torch.tensor([500])
    condition, dropped = model.condition([SCENE]), model.condition([Scene(SCENE.caption)])
    with torch.no_grad():
        net = model.unet.position_net
        null = net.linears(torch.cat([net.null_positive_feature, net.null_position_feature]))
        tokens = []
        hook = net.register_forward_hook(lambda _, __, out: tokens.append(out))
        predictions = [model.denoiser()(x_t, t, each) for each in (condition, dropped)]
        hook.remove()
    assert_close(tokens[1], null.expand(1, 8, -1), atol=1e-6, rtol=1e-6)
    assert (predictions[0] - predictions[1]).abs().max() > 1e-4


@pytest.mark.parametrize("seed", [3, 5])  # the first timestep of one is late, of the other early
def test_the_loss_is_that_of_captions_and_objects(root, seed):
    """With the step's own random numbers drawn again by hand, and the network called by hand."""
    job = gligen.make(PLAN, "cpu")
    model = GligenPipeline.from_pretrained(root / "gligen")
    found = list(views.pocket_views(views.LARGE, views.SCENES, views.PER_SKILL, 64, PLAN.seed))
    pool = cache.build(found, len(found), model.vae)
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(len(pool), (gligen.BATCH,), generator=generator)
    scenes = gligen.draw_scenes(pool, index, generator)
    noise = torch.randn(pool.latents[index].shape, generator=generator)
    t = torch.randint(1000, (gligen.BATCH,), generator=generator)
    alpha = model.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    x_0, objects = pool.latents[index], model.objects(scenes)
    text = model.encode_captions([scene.caption for scene in scenes]).text
    grounding = {"boxes": objects[..., 1:5], "masks": objects[..., 0]}
    grounding |= {"positive_embeddings": objects[..., 5:]}
    job.module.load_state_dict(model.unet.state_dict())
    with torch.no_grad():
        x_t = alpha.sqrt() * x_0 + (1 - alpha).sqrt() * noise
        v = model.unet(x_t, t, text, cross_attention_kwargs={"gligen": grounding}).sample
        want = (v - (alpha.sqrt() * noise - (1 - alpha).sqrt() * x_0)).square().mean()
        assert_close(loss_of(job, seed), want, atol=1e-4, rtol=1e-4)
