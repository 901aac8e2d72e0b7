# SPDX-License-Identifier: Apache-2.0
"""The autoencoder: its penalty in closed form, latents of unit variance, photos it never saw."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from spatext_lab.images import encode, to_tensor
from spatext_lab.training.loop import Plan, Trainer
from spatext_lab.training.photos import held_out_squares
from spatext_lab.training.recipes import autoencoder
from tests.photos import MINI, photo_folder
from tests.training.steps import PLAN

pytestmark = pytest.mark.usefixtures("small")


def test_the_moment_penalty_in_closed_form():
    z = torch.randn(4, 3, 50, 50)
    z = (z - z.mean((0, 2, 3), keepdim=True)) / z.var((0, 2, 3), keepdim=True).sqrt()
    assert autoencoder.moment_penalty(z).item() == pytest.approx(0, abs=1e-6)
    assert autoencoder.moment_penalty(z + 0.5).item() == pytest.approx(0.25, rel=1e-3)
    assert autoencoder.moment_penalty(2 * z).item() == pytest.approx(9, rel=1e-3)


def test_a_saved_autoencoder_has_latents_of_unit_variance(tmp_path, monkeypatch):
    pocket_images = autoencoder.pocket_images
    monkeypatch.setattr(
        autoencoder, "pocket_images", lambda split, which: pocket_images(split, which[:16])
    )
    autoencoder.make(PLAN, "cpu").save(tmp_path)
    vae = AutoencoderTiny.from_pretrained(tmp_path, torch_dtype=torch.float32)
    latents = encode(vae, pocket_images("val", range(16)))
    assert latents.shape == (16, 4, 16, 16)
    assert latents.std().item() == pytest.approx(1, abs=0.02)


MEASURED = 6


def squares(vae, folder):
    return autoencoder.distances(vae, held_out_squares(folder, 64, MEASURED, licences=None))


@pytest.mark.parametrize("photos", ["made up", "COCO's"])
def test_photos_raise_the_psnr_of_others(photos, tmp_path, monkeypatch):
    """A few steps from the shipped autoencoder, by a second way to the PSNR."""
    monkeypatch.undo()  # the shipped model, not the tiny one
    if photos == "COCO's" and not (MINI / "annotations").is_dir():
        pytest.skip("no real COCO photos here: set SPATEXT_COCO_MINI to a COCO 2017 folder")
    data = MINI if photos == "COCO's" else photo_folder(tmp_path / "photos")
    plan = Plan(steps=10, lr=1e-3, warmup=2)
    job = autoencoder.make(plan, "cpu", data=data, base="pocket", batch=4, licences=None)
    before = np.mean(squares(job.module, data))
    trainer = Trainer(job.module, job.loss_at, plan, "cpu")
    list(trainer.run())
    trainer.use_average()
    after = squares(job.module, data)
    assert np.mean(after) > before + 0.3
    monkeypatch.setattr(autoencoder, "MEASURED", MEASURED)
    job.save(tmp_path / "out")
    vae = AutoencoderTiny.from_pretrained(tmp_path / "out", torch_dtype=torch.float32)
    assert squares(vae, data) == pytest.approx(after, abs=0.2)  # in half precision
    row = (tmp_path / "out" / "reconstruction.md").read_text().splitlines()[2]
    seen = held_out_squares(data, 64, MEASURED, licences=None)
    with torch.no_grad():
        again = vae(to_tensor(seen)).sample.clamp(-1, 1)
    errors = ((again - to_tensor(seen)) / 2).square().mean((1, 2, 3))
    _, _, count, mean, *_ = (cell.strip() for cell in row.split("|"))
    assert int(count) == len(seen)
    assert float(mean.removesuffix(" dB")) == pytest.approx(
        -10 * errors.log10().mean().item(), abs=0.02
    )


def test_an_autoencoder_of_another_class_is_refused(tmp_path):
    AutoencoderKL(latent_channels=4).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"base is .*a AutoencoderKL: this recipe continues"):
        autoencoder.make(PLAN, "cpu", base=str(tmp_path))
