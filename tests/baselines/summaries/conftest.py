# SPDX-License-Identifier: Apache-2.0
"""A tiny SpaText of each kind of U-Net that may compute a window, and a tiny update mask."""

import pytest
import torch

from spatext_lab.baselines.summaries.update_mask import UpdateMaskNetwork
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.training.recipes.spatext import widened
from tests.tiny import WIDTH, tiny_clip, tiny_prior


@pytest.fixture(scope="session")
def spatext(base) -> SpaTextPipeline:
    """Of random weights, the map's included."""
    torch.manual_seed(1)
    pipeline = widened(base, tiny_clip(), tiny_prior())
    torch.nn.init.normal_(pipeline.unet.conv_in.weight, std=0.3)
    return pipeline


@pytest.fixture(scope="session")
def mask() -> UpdateMaskNetwork:
    torch.manual_seed(2)
    return UpdateMaskNetwork(4, WIDTH, width=16, depth=1)
