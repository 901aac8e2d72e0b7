# SPDX-License-Identifier: Apache-2.0
"""The better decoder: trained alone, wider without a change, on scenes and every skill."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from torch.testing import assert_close

from spatext_lab.datasets.pocket import pocket_item
from spatext_lab.datasets.pocket.paintskills import SKILLS, skill_item
from spatext_lab.images import to_tensor
from spatext_lab.training.recipes import decoder
from tests.training.steps import PLAN, losses

pytestmark = pytest.mark.usefixtures("small")


def test_the_decoder_is_trained_alone(root):
    """So that a U-Net that learned on the latents need not learn again."""
    job = decoder.make(PLAN, "cpu")
    before = {name: value.clone() for name, value in job.module.state_dict().items()}
    losses(job, same_data=False)
    moved = {
        name for name, value in job.module.state_dict().items() if (value != before[name]).any()
    }
    assert moved == {name for name in before if name.startswith("decoder.")}


def _tiny_vae(root: Path) -> AutoencoderTiny:
    place = root / "text-to-image" / "vae"
    return AutoencoderTiny.from_pretrained(place, torch_dtype=torch.float32)


def test_a_wider_decoder_starts_with_the_same_images(root):
    vae = _tiny_vae(root)
    wide = decoder.widened(vae, 12)
    z, images = torch.randn(2, 4, 16, 16), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert_close(wide.decoder(z), vae.decoder(z))
        assert_close(wide.encoder(images), vae.encoder(images))
    assert wide.config.scaling_factor == vae.config.scaling_factor
    widths = {weight.shape[0] for weight in wide.decoder.parameters()}
    assert widths == {12, 3}  # 3: the image's


def test_a_decoder_that_is_wide_enough_stays_as_it_is(root):
    vae = _tiny_vae(root)
    assert decoder.widened(vae, 8) is vae


def test_a_decoder_is_not_made_narrower(root):
    with pytest.raises(ValueError, match="width is 4; the decoder has 8 channels already"):
        decoder.widened(_tiny_vae(root), 4)


def test_a_decoders_batch_has_every_skill(monkeypatch):
    monkeypatch.setattr(decoder, "SCENES", 1)
    want = [pocket_item("train", 200_005), *(skill_item(skill, "train", 5) for skill in SKILLS)]
    assert_close(decoder.batch(5), to_tensor(item.image for item in want))
    assert decoder.batch(30_000).shape == (5, 3, 64, 64)  # beyond the skills' own numbers
