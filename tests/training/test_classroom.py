# SPDX-License-Identifier: Apache-2.0
"""The classroom's path, tiny: Stable Diffusion's own classes in its official layout, an OpenCLIP
with CLIP's own tokenizer, COCO photos; load, widen or grow, encode, two steps, save, reload,
sample."""

import json
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

import pytest
import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file

from spatext_lab.course import stand_in
from spatext_lab.reco.pipeline import ReCoPipeline
from spatext_lab.reco.prompts import write_bins
from spatext_lab.scene import Region, Scene
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from spatext_lab.training.recipes import reco, spatext
from spatext_lab.training.recipes.reco import views as reco_views
from spatext_lab.training.run import run

COCO = Path(__file__).resolve().parents[2] / "data" / "pocket-coco"
SCENE = Scene("a red ball in a meadow", [Region("a red ball", box=(0.2, 0.2, 0.7, 0.8))])


@contextmanager
def models(sd: Path) -> Iterator[None]:
    """The folder under the name that the command looks for, where the models are."""
    root = sd.parent
    root.rename(root.parent / "models")
    try:
        with chdir(root.parent):
            yield
    finally:
        (root.parent / "models").rename(root)


@pytest.fixture(scope="module")
def sd(tmp_path_factory) -> Path:
    """models/sd15 with everything as the real one has it, only small."""
    return stand_in.write(tmp_path_factory.mktemp("models") / "sd15")


def test_stable_diffusions_folder_is_read_with_its_own_schedule(sd):
    base = TextToImagePipeline.from_pretrained(sd / "text-to-image")
    assert (base.image_size, base.latent_size) == (64, 8)
    theirs = PNDMScheduler.from_pretrained(sd / "text-to-image" / "scheduler")
    assert type(base.scheduler) is PNDMScheduler
    assert torch.equal(base.scheduler.alphas_cumprod, theirs.alphas_cumprod)
    assert base.scheduler.config.prediction_type == "epsilon"
    assert base(SCENE, num_inference_steps=2).images[0].size == (64, 64)


def test_the_whole_path(sd, tmp_path, monkeypatch):
    """By name, as the command is used where the models are: `--base sd15`."""
    monkeypatch.setattr(spatext, "BATCH", 2)
    with models(sd):
        out = run("spatext", steps=2, data=COCO, base="sd15", out=tmp_path / "mine", device="cpu")
    model = SpaTextPipeline.from_pretrained(out)
    assert model.prior is None
    assert model.unet.config.in_channels == 4 + stand_in.EMBEDDING_DIM
    before = load_file(sd / "text-to-image" / "unet" / "diffusion_pytorch_model.safetensors")
    after = model.unet.state_dict()
    assert after["conv_in.weight"][:, 4:].abs().sum() > 0
    assert set(before) == set(after)
    condition = model.condition([SCENE])
    assert condition.st_map.shape == (1, stand_in.EMBEDDING_DIM, 8, 8)
    assert condition.text.shape == (1, 77, 16)
    assert model(SCENE, num_inference_steps=2).images[0].size == (64, 64)
    card = json.loads((out / "card.json").read_text())
    assert card["given"] == {"data": "pocket-coco", "base": "sd15"}
    assert "--base sd15" in (out / "README.md").read_text()
    assert not [p for p in out.rglob("*") if p.suffix in (".bin", ".pt", ".ckpt")]


def test_the_whole_path_of_reco(sd, tmp_path, monkeypatch):
    """`train reco --base sd15 --data ...`: text encoder and U-Net are fine-tuned, in Stable
    Diffusion's own layout, which its own pipeline reads, encoding a prompt in bins alike."""
    monkeypatch.setattr(reco, "BATCH", 2)
    monkeypatch.setattr(reco_views, "VIEWS", 2)
    with models(sd):
        out = run("reco", steps=2, data=COCO, base="sd15", out=tmp_path / "mine", device="cpu")
    model = ReCoPipeline.from_pretrained(out)
    assert model.position_tokens.bins == 128  # two a pixel
    assert model.position_tokens.length == 77  # for latents of 8 x 8; 616 for those of 64 x 64
    assert model.unet.config.in_channels == 4
    assert model.config.most_regions >= 3
    for part, file in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        before = load_file(sd / "text-to-image" / part / f"{file}.safetensors")
        after = load_file(out / part / f"{file}.safetensors")
        assert set(before) == set(after)
        moved = [
            name for name, old in before.items() if (after[name][: len(old)] != old.half()).any()
        ]
        assert len(moved) > 0.8 * len(before)
    condition = model.condition([SCENE])
    assert condition.text.shape == (1, 77, 16)
    assert model(SCENE, num_inference_steps=2).images[0].size == (64, 64)
    theirs = StableDiffusionPipeline.from_pretrained(
        out,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(torch.float32)
    with torch.no_grad():
        text, _ = theirs.encode_prompt(write_bins(SCENE, 128), "cpu", 1, False)
    torch.testing.assert_close(text, condition.text, atol=1e-5, rtol=1e-5)
    card = json.loads((out / "card.json").read_text())
    assert card["given"] == {"data": "pocket-coco", "base": "sd15"}
    assert "2 random views each of 256 photos of pocket-coco" in card["data"]
    assert "--base sd15" in (out / "README.md").read_text()
    assert not [p for p in out.rglob("*") if p.suffix in (".bin", ".pt", ".ckpt")]


def test_pickled_weights_are_refused(sd, tmp_path):
    import shutil

    shutil.copytree(sd / "text-to-image", tmp_path / "sd")
    unet = tmp_path / "sd" / "unet"
    weights = load_file(unet / "diffusion_pytorch_model.safetensors")
    torch.save(weights, unet / "diffusion_pytorch_model.bin")
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        TextToImagePipeline.from_pretrained(tmp_path / "sd")
