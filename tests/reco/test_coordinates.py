# SPDX-License-Identifier: Apache-2.0
"""A U-Net's further inputs: attention masks of the text, and the coordinates of its cells.

Maps, which only SpaText has, are tested in `spatext/test_widen.py`.
"""

import math
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.testing import assert_close

from spatext_lab.diffusion import Condition, UNetDenoiser
from spatext_lab.reco.coordinates import COORDINATES, PlacedDenoiser, coordinates

T = torch.tensor([0, 999])


def network(extra: int = 0) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4 + extra,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=6,
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()


def denoisers() -> list[UNetDenoiser]:
    return [UNetDenoiser(network()), PlacedDenoiser(network(COORDINATES))]


# --- masks of the text ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [0, 1], ids=["plain", "placed"])
@torch.no_grad()
def test_masked_padding_is_as_if_it_were_not_there(kind):
    """Also where the caption of one image is longer than that of the other."""
    denoiser, x_t, text = denoisers()[kind], torch.randn(2, 4, 8, 8), torch.randn(2, 7, 6)
    lengths = (3, 5)
    mask = torch.arange(7)[None] < torch.tensor(lengths)[:, None]
    plain = Condition(text, torch.zeros_like(text))
    got = denoiser(x_t, T, replace(plain, text_mask=mask, null_mask=mask))
    for k, length in enumerate(lengths):
        cut = Condition(text[[k], :length], torch.zeros(1, length, 6))
        assert_close(got[[k]], denoiser(x_t[[k]], T[[k]], cut), atol=1e-5, rtol=1e-5)
    assert (got - denoiser(x_t, T, plain)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", [0, 1], ids=["plain", "placed"])
@torch.no_grad()
def test_a_mask_that_hides_nothing_has_no_effect(kind):
    denoiser, x_t, text = denoisers()[kind], torch.randn(2, 4, 8, 8), torch.randn(2, 7, 6)
    plain, all_true = Condition(text, torch.zeros_like(text)), torch.ones(2, 7, dtype=torch.bool)
    masked = replace(plain, text_mask=all_true, null_mask=all_true)
    assert_close(denoiser(x_t, T, masked), denoiser(x_t, T, plain), atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_without_a_mask_the_unet_is_called_as_it_is():
    unet, x_t, text = network(), torch.randn(2, 4, 8, 8), torch.randn(2, 7, 6)
    want = unet(x_t, T, text, return_dict=False)[0]
    assert torch.equal(UNetDenoiser(unet)(x_t, T, Condition(text, torch.zeros_like(text))), want)


# --- where the cells are --------------------------------------------------------------------------


def slow_coordinates(h: int, w: int) -> Tensor:
    """Each number by itself, from its cell's centre in the image."""

    def waves(v: float) -> list[float]:
        half = [math.cos(math.pi * v), math.sin(math.pi * v) - 2 / math.pi]
        whole = [math.cos(2 * math.pi * v), math.sin(2 * math.pi * v)]
        return [math.sqrt(2) * value for value in half + whole]

    rows = [[[*waves((x + 0.5) / w), *waves((y + 0.5) / h)] for x in range(w)] for y in range(h)]
    return torch.tensor(rows).permute(2, 0, 1)


@pytest.mark.parametrize(("h", "w"), [(16, 16), (3, 5), (1, 64)])
def test_coordinates_against_a_slow_loop(h, w):
    got = coordinates(h, w)
    assert got.shape == (COORDINATES, h, w)
    assert_close(got, slow_coordinates(h, w), atol=1e-5, rtol=1e-5)


def test_coordinates_have_mean_zero_and_no_two_cells_the_same():
    """Variances over a fine grid in closed form: 1, but 1 - 8 / pi^2 for the half sine."""
    fine = coordinates(200, 200).flatten(1)
    assert_close(fine.mean(1), torch.zeros(COORDINATES), atol=1e-3, rtol=0)
    four = torch.tensor([1, 1 - 8 / math.pi**2, 1, 1])
    assert_close(fine.var(1), torch.cat([four, four]), atol=1e-3, rtol=0)
    assert torch.pdist(coordinates(16, 16).flatten(1).T).min() > 0.05


@torch.no_grad()
def test_coordinates_stand_after_the_latent():
    """Against the U-Net called by hand, each image of the batch with the same ones."""
    unet, x_t, text = network(COORDINATES), torch.randn(2, 4, 8, 8), torch.randn(2, 7, 6)
    places = slow_coordinates(8, 8)
    x_in = torch.stack([torch.cat([image, places]) for image in x_t])
    want = unet(x_in, T, text, return_dict=False)[0]
    got = PlacedDenoiser(unet)(x_t, T, Condition(text, torch.zeros_like(text)))
    assert_close(got, want, atol=1e-5, rtol=1e-5)
    bare = unet(torch.cat([x_t, torch.zeros(2, COORDINATES, 8, 8)], 1), T, text)[0]
    assert (bare - want).abs().max() > 1e-3
