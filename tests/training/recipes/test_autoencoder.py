# SPDX-License-Identifier: Apache-2.0
"""The autoencoder: its penalty in closed form, latents of unit variance once it is saved."""

import pytest
import torch
from diffusers import AutoencoderTiny

from spatext_lab.images import encode
from spatext_lab.training.recipes import autoencoder
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
