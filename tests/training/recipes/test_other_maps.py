# SPDX-License-Identifier: Apache-2.0
"""The rivals of SpaText's map: each starts as its base, learns, and is saved as its own kind."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from spatext_lab.baselines.other_maps import KINDS, OtherMapsPipeline
from spatext_lab.diffusion import Condition, UNetDenoiser
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from spatext_lab.training.recipes import other_maps
from tests.training.steps import PLAN, losses

pytestmark = pytest.mark.usefixtures("small")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_starts_as_its_base_learns_and_is_saved(kind, root, tmp_path):
    job = other_maps.make(PLAN, "cpu", representation=kind)
    base = TextToImagePipeline.from_pretrained(root / "text-to-image")
    channels = {"binary": 1, "caption": 32, "similarity": len(other_maps.WORDS)}[kind]
    x_t, t, text = torch.randn(2, 4, 16, 16), torch.tensor([10, 900]), torch.randn(2, 77, 16)
    condition = Condition(text, torch.zeros_like(text), torch.randn(2, channels, 16, 16))
    with torch.no_grad():
        want = base.unet(x_t, t, encoder_hidden_states=text).sample
        got = UNetDenoiser(job.module.eval())(x_t, t, condition)
    assert_close(got, want, atol=1e-5, rtol=1e-5)
    curve = losses(job)
    assert np.isfinite(curve).all()
    assert np.mean(curve[-2:]) < 0.95 * np.mean(curve[:2])
    assert job.module.conv_in.weight[:, 4:].abs().sum() > 0
    job.save(tmp_path)
    model = OtherMapsPipeline.from_pretrained(tmp_path)
    assert model.config.representation == kind
    assert model.config.words == (list(other_maps.WORDS) if kind == "similarity" else [])
    for name, value in model.unet.state_dict().items():
        assert torch.equal(value, job.module.state_dict()[name].half().float()), name
