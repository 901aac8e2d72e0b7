# SPDX-License-Identifier: Apache-2.0
"""The classroom's path, tiny: Stable Diffusion's own classes in its official layout, an OpenCLIP
with CLIP's own tokenizer, COCO photos; load, widen or grow, encode, two steps, save, reload,
sample."""

import json
import shutil
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)
from safetensors.torch import load_file

from spatext_lab import zoo
from spatext_lab.course import stand_in
from spatext_lab.reco.pipeline import ReCoPipeline
from spatext_lab.reco.prompts import write_bins
from spatext_lab.scene import Region, Scene
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from spatext_lab.training.recipes import prior, reco, spatext
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


# --- Stable Diffusion 2: v-prediction -------------------------------------------------------------


@pytest.fixture(scope="module")
def sd2(sd, tmp_path_factory) -> Path:
    """models/sd2: the same parts with Stable Diffusion 2's prediction type."""
    root = tmp_path_factory.mktemp("models") / "sd2"
    shutil.copytree(sd, root)
    file = root / "text-to-image" / "scheduler" / "scheduler_config.json"
    settings = json.loads(file.read_text()) | {"prediction_type": "v_prediction"}
    file.write_text(json.dumps(settings))
    return root


@pytest.mark.parametrize("kind", [PNDMScheduler, EulerDiscreteScheduler])
def test_v_prediction_samples_as_diffusers_does(sd2, kind):
    ours = TextToImagePipeline.from_pretrained(sd2 / "text-to-image")
    theirs = StableDiffusionPipeline.from_pretrained(sd2 / "text-to-image", safety_checker=None)
    theirs.set_progress_bar_config(disable=True)
    ours.scheduler = theirs.scheduler = kind.from_config(theirs.scheduler.config)
    assert ours.scheduler.config.prediction_type == "v_prediction"
    settings = {"num_inference_steps": 5, "guidance_scale": 3.0, "output_type": "latent"}
    noise = torch.randn(1, 4, 8, 8)
    mine = ours(Scene("a boat"), latents=noise, **settings).images
    torch.testing.assert_close(mine, theirs("a boat", latents=noise, **settings).images)


@pytest.mark.parametrize("recipe", ["spatext", "reco"])
def test_v_prediction_is_what_is_trained_and_saved(sd2, tmp_path, monkeypatch, recipe):
    """The loss is that of diffusers' own target, `get_velocity`."""
    seen, real = [], spatext.training_loss

    def loss(denoiser, x_0, condition, t, noise, scheduler):
        value = real(denoiser, x_0, condition, t, noise, scheduler)
        with torch.no_grad():
            x_t = scheduler.add_noise(x_0, noise, t)
            wanted = DDIMScheduler.from_config(scheduler.config).get_velocity(x_0, noise, t)
            seen.append((value.item(), F.mse_loss(denoiser(x_t, t, condition), wanted).item()))
        return value

    module = {"spatext": spatext, "reco": reco}[recipe]
    monkeypatch.setattr(module, "training_loss", loss)
    monkeypatch.setattr(reco_views, "VIEWS", 1)
    out = run(
        recipe, steps=1, data=COCO, min_area=0.1, base=str(sd2), batch=2, out=tmp_path / "mine"
    )
    assert len(seen) == 1
    assert seen[0][0] == pytest.approx(seen[0][1], rel=1e-4)
    model = {"spatext": SpaTextPipeline, "reco": ReCoPipeline}[recipe].from_pretrained(out)
    assert model.scheduler.config.prediction_type == "v_prediction"
    assert model(SCENE, num_inference_steps=2).images[0].size == (64, 64)


# --- what is trained from a base lies beside it ---------------------------------------------------


def test_a_result_beside_its_base_passes_its_licence_on(sd, tmp_path, monkeypatch):
    """As the page on Stable Diffusion has it: --base sd15 --out models/sd15/spatext."""
    shutil.copytree(sd, tmp_path / "models" / "sd15")
    monkeypatch.chdir(tmp_path)
    out = Path("models/sd15/spatext")
    options = {"steps": 1, "data": COCO, "min_area": 0.1, "base": "sd15", "batch": 2, "out": out}
    with pytest.warns(UserWarning, match="has no prior"):
        assert run("spatext", device="cpu", **options) == out
    assert SpaTextPipeline.from_pretrained(zoo.folder("sd15", "spatext")).prior is None
    assert zoo.folder("sd15", "spatext/clip") == Path("models/sd15/clip")
    assert "Card: CC BY 4.0. Weights: mind the photos' licences" in (out / "README.md").read_text()
    licence = {"name": "A Licence", "address": "https://127.0.0.1/licence", "forbids": "much"}
    card = tmp_path / "models" / "sd15" / "text-to-image" / "card.json"
    card.write_text(json.dumps({"licence": licence}))
    run("spatext", device="cpu", **options)
    assert "A Licence (https://127.0.0.1/licence)" in (out / "README.md").read_text()
    assert "CC BY 4.0" not in (out / "README.md").read_text()


def test_a_prior_of_its_own_clip_is_found_beside_the_base(sd, tmp_path, monkeypatch):
    shutil.copytree(sd, tmp_path / "models" / "sd15")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prior, "SCENES", 6)
    clip, out = Path("models/sd15/clip"), Path("models/sd15/prior")
    run("prior", steps=1, data=COCO, clip=clip, out=out, device="cpu")
    _, reader, found = spatext.base_parts("sd15", "cpu")
    assert found.embedding_dim == reader.embedding_dim == stand_in.EMBEDDING_DIM
    assert found(reader.encode_text(["a red ball"])).shape == (1, stand_in.EMBEDDING_DIM)


def test_a_prior_is_as_wide_as_its_embeddings():
    with torch.device("meta"):
        large, small = prior.new_transformer(768), prior.new_transformer(64)
    assert large.transformer_blocks[0].norm1.normalized_shape == (768,)
    assert len(large.transformer_blocks) == 12
    assert small.transformer_blocks[0].norm1.normalized_shape == (128,)
