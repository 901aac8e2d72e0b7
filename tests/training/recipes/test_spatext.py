# SPDX-License-Identifier: Apache-2.0
"""SpaText's recipe: it starts as its base, learns to read the map, and is saved as it is."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from spatext_lab.clip import Clip
from spatext_lab.diffusion import Condition, UNetDenoiser, drop_conditions, training_loss
from spatext_lab.scene import Region, Scene
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.spatext.representation import training_map
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from spatext_lab.training import cache
from spatext_lab.training.recipes import spatext
from tests.tiny import final
from tests.training.steps import PLAN, loss_of, losses

pytestmark = pytest.mark.usefixtures("small")
COCO = Path(__file__).resolve().parents[3] / "data" / "pocket-coco"
SCENE = Scene("a red ball", [Region("a ball", box=(0, 0, 0.5, 0.5))])


def test_spatext_starts_as_the_text_model(root):
    """Step 0: whatever the map, the widened network predicts what the base model does."""
    base = TextToImagePipeline.from_pretrained(root / "text-to-image")
    unet = spatext.make(PLAN, "cpu").module.eval()
    x_t, t, text = torch.randn(2, 4, 16, 16), torch.tensor([10, 900]), torch.randn(2, 77, 16)
    with torch.no_grad():
        want = base.unet(x_t, t, encoder_hidden_states=text).sample
        for size in (0.0, 5.0):
            condition = Condition(text, torch.zeros_like(text), size * torch.randn(2, 16, 16, 16))
            assert_close(UNetDenoiser(unet)(x_t, t, condition), want, atol=1e-5, rtol=1e-5)


def test_spatext_learns_to_read_the_map_and_leaves_the_rest_alone():
    """The new channels and the U-Net move; text encoder, autoencoder and CLIP are not trained."""
    job = spatext.make(PLAN, "cpu")
    assert not job.module.conv_in.weight[:, 4:].any()
    losses(job, same_data=False)
    assert job.module.conv_in.weight[:, 4:].abs().sum() > 0
    assert sum(p.numel() for p in job.module.parameters()) < 1e6  # a U-Net alone


def test_the_loss_is_the_readmes_equation(root):
    """With the step's own random numbers drawn again by hand, and the public functions; the U-Net
    reads the map, so that it counts."""
    job = spatext.make(PLAN, "cpu")
    torch.nn.init.normal_(job.module.conv_in.weight, std=0.3)
    base = TextToImagePipeline.from_pretrained(root / "text-to-image")
    clip = Clip.from_pretrained(root / "spatext" / "clip")
    pool = cache.build(cache.pocket_examples(spatext.SCENES), spatext.SCENES, base.vae, clip)
    generator = torch.Generator().manual_seed(3)
    index = torch.randint(len(pool), (spatext.BATCH,), generator=generator)
    condition = base.encode_captions(pool.draw_captions(index, generator))
    exact = torch.rand(spatext.BATCH, 1, 1, 1, generator=generator) < spatext.EXACT
    covered = exact * pool.coverage[index] + ~exact * pool.painted[index]
    embeddings = pool.embeddings[index]
    st_map = training_map(embeddings, covered, spatext.COUNT, spatext.MIN_AREA, generator)
    drop = torch.rand(2, spatext.BATCH, generator=generator) < spatext.DROP
    condition = drop_conditions(replace(condition, st_map=st_map), *drop)
    x_0 = pool.latents[index]
    noise, t = cache.draw_noise(x_0, base.scheduler, generator)
    denoiser = UNetDenoiser(job.module)
    with torch.no_grad():
        want = training_loss(denoiser, x_0, condition, t, noise, base.scheduler)
        assert_close(loss_of(job, 3), want, atol=1e-5, rtol=1e-5)


def test_photos_regions_of_the_least_area_are_painted(tmp_path, monkeypatch):
    """What is read with a minimum area is painted with it, and the saved model knows of it."""
    seen = []

    def watch(embeddings, covered, count, min_area, generator):
        seen.append(min_area)
        st_map = training_map(embeddings, covered, count, min_area, generator)
        painted = (embeddings != 0).any(-1) & (covered.mean((-2, -1)) < spatext.MIN_AREA)
        seen.append(painted.any().item())
        return st_map

    monkeypatch.setattr(spatext, "training_map", watch)
    job = spatext.make(PLAN, "cpu", data=COCO, min_area=0.001)
    loss_of(job)
    assert seen == [0.001, True]
    job.save(tmp_path)
    assert SpaTextPipeline.from_pretrained(tmp_path).config.min_area == 0.001


def test_a_saved_model_is_the_trained_one(root, tmp_path):
    """All parts in one folder, the U-Net's weights in half precision."""
    job = spatext.make(PLAN, "cpu")
    losses(job, same_data=False)
    job.save(tmp_path)
    model = SpaTextPipeline.from_pretrained(tmp_path)
    assert (model.config.most_regions, model.config.min_area) == (6, 0.02)
    for name, value in model.unet.state_dict().items():
        assert torch.equal(value, job.module.state_dict()[name].half().float()), name
    base = TextToImagePipeline.from_pretrained(root / "text-to-image")
    parts = {
        "unet": job.module.eval(),
        "clip": Clip.from_pretrained(root / "spatext" / "clip"),
        "prior": SpaTextPipeline.from_pretrained(root / "spatext").prior,
    }
    want = final(SpaTextPipeline.from_pipe(base, **parts), SCENE, num_inference_steps=2)
    assert_close(final(model, SCENE, num_inference_steps=2), want, atol=2e-2, rtol=2e-2)


def test_a_base_has_a_prior_or_none_but_no_half_of_one(root, tmp_path):
    for part in ("text-to-image", "spatext"):
        shutil.copytree(root / part, tmp_path / part)
    whole = spatext.base_parts(str(tmp_path), "cpu")
    assert whole[2].embedding_dim == whole[1].embedding_dim
    (tmp_path / "spatext/prior/scheduler/scheduler_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"scheduler_config.json is missing"):
        spatext.base_parts(str(tmp_path), "cpu")
    shutil.rmtree(tmp_path / "spatext/prior")
    assert spatext.base_parts(str(tmp_path), "cpu")[2] is None
    with pytest.raises(FileNotFoundError, match=r"model is .*nowhere"):
        spatext.base_parts(str(tmp_path), "cpu", prior=tmp_path / "nowhere")
