# SPDX-License-Identifier: Apache-2.0
"""The widened U-Net against the U-Net that it was made from."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from spatext_lab.diffusion import Condition, UNetDenoiser, noise_schedule, training_loss
from spatext_lab.spatext.widen import narrow_input, widen_input

EXTRA = 5
T = torch.tensor([0, 999])


@pytest.fixture
def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=6,
        attention_head_dim=4,
        norm_num_groups=4,
    )


def condition(st_map: Tensor | None = None) -> Condition:
    text = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1))
    return Condition(text, torch.zeros(2, 3, 6), st_map)


@torch.no_grad()
def predict(unet: UNet2DConditionModel, x_t: Tensor, st_map: Tensor | None = None) -> Tensor:
    return UNetDenoiser(unet)(x_t, T, condition(st_map))


@pytest.mark.parametrize("extra", [1, 64])
def test_before_training_the_widened_unet_gives_the_same_bits_for_any_map(unet, extra):
    x_t, wide = torch.randn(2, 4, 8, 8), widen_input(unet, extra)
    for size in (0.0, 1.0, 1e6):
        st_map = size * torch.randn(2, extra, 8, 8)
        assert torch.equal(predict(wide, x_t, st_map), predict(unet, x_t))


def test_widening_leaves_the_old_unet_alone(unet):
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    wide = widen_input(unet, EXTRA)
    with torch.no_grad():
        for parameter in wide.parameters():
            parameter.add_(1)
    assert unet.config.in_channels == 4
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


def test_new_channels_are_zero_and_the_config_knows_them(unet):
    wide = widen_input(unet, EXTRA)
    assert wide.config.in_channels == 4 + EXTRA
    assert wide.config.out_channels == 4
    assert torch.equal(wide.conv_in.weight[:, :4], unet.conv_in.weight)
    assert not wide.conv_in.weight[:, 4:].any()


def test_widening_keeps_the_number_type(unet):
    wide = widen_input(unet.to(torch.bfloat16), EXTRA)
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.bfloat16}


def test_a_widened_unet_survives_the_disk(unet, tmp_path):
    wide = widen_input(unet, EXTRA)
    torch.nn.init.normal_(wide.conv_in.weight)
    wide.save_pretrained(tmp_path)
    again = UNet2DConditionModel.from_pretrained(tmp_path)
    assert again.config.in_channels == 4 + EXTRA
    x_t, st_map = torch.randn(2, 4, 8, 8), torch.randn(2, EXTRA, 8, 8)
    assert torch.equal(predict(again, x_t, st_map), predict(wide.eval(), x_t, st_map))


def test_the_new_channels_learn(unet):
    """At t = 999 too, where alphas_cumprod is about 0, loss and gradient are finite."""
    wide = widen_input(unet, EXTRA)
    x_0, noise, st_map = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.randn(2, 5, 8, 8)
    before = predict(wide, x_0, st_map)
    loss = training_loss(UNetDenoiser(wide), x_0, condition(st_map), T, noise, noise_schedule())
    loss.backward()
    gradient = wide.conv_in.weight.grad
    assert torch.isfinite(gradient).all()
    assert (gradient[:, 4:].flatten(2).abs().sum(2) > 0).all()
    torch.optim.SGD(wide.parameters(), lr=0.1).step()
    assert not torch.equal(predict(wide, x_0, st_map), before)
    assert not torch.equal(predict(wide, x_0, st_map), predict(wide, x_0, -st_map))


def test_no_map_is_the_zero_map(unet):
    wide = widen_input(unet, EXTRA)
    torch.nn.init.normal_(wide.conv_in.weight)
    x_t = torch.randn(2, 4, 8, 8)
    zero = predict(wide, x_t, torch.zeros(2, EXTRA, 8, 8))
    assert torch.equal(predict(wide, x_t), zero)
    assert not torch.equal(predict(wide, x_t, torch.ones(2, EXTRA, 8, 8)), zero)


def test_a_map_stands_after_the_latent(unet):
    """Against the U-Net called by hand."""
    wide = widen_input(unet, EXTRA)
    torch.nn.init.normal_(wide.conv_in.weight)
    x_t, st_map = torch.randn(2, 4, 8, 8), torch.randn(2, EXTRA, 8, 8)
    with torch.no_grad():
        by_hand = wide(
            torch.cat([x_t, EXTRA**0.5 * st_map], 1), T, condition().text, return_dict=False
        )[0]
    assert torch.equal(predict(wide, x_t, st_map), by_hand)


# --- and back -------------------------------------------------------------------------------------


def test_the_narrowed_unet_is_the_wide_one_with_a_zero_map(unet):
    wide = widen_input(unet, EXTRA)
    torch.nn.init.normal_(wide.conv_in.weight)
    before = {name: value.clone() for name, value in wide.state_dict().items()}
    narrow, x_t = narrow_input(wide), torch.randn(2, 4, 8, 8)
    assert (narrow.config.in_channels, narrow.conv_in.in_channels) == (4, 4)
    want = predict(wide, x_t, torch.zeros(2, EXTRA, 8, 8))
    torch.testing.assert_close(predict(narrow, x_t), want, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(want, predict(wide, x_t, torch.ones(2, EXTRA, 8, 8)), atol=1e-2)
    with torch.no_grad():
        for parameter in narrow.parameters():
            parameter.add_(1)
    assert wide.config.in_channels == 4 + EXTRA
    assert all(torch.equal(value, before[name]) for name, value in wide.state_dict().items())


def test_widened_and_narrowed_it_is_the_unet_it_was(unet):
    for same in (narrow_input(widen_input(unet, EXTRA)), narrow_input(unet)):
        assert same is not unet
        assert dict(same.config) == dict(unet.config)
        weights = same.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in unet.state_dict().items())
    with pytest.raises(ValueError, match=r"takes none \(st_map=None\)"):
        predict(
            narrow_input(widen_input(unet, EXTRA)),
            torch.randn(2, 4, 8, 8),
            torch.zeros(2, EXTRA, 8, 8),
        )


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [0, -1])
def test_widening_by_nothing_is_refused(unet, extra):
    with pytest.raises(ValueError, match=f"extra is {extra}; .* at least 1"):
        widen_input(unet, extra)


def test_maps_of_another_shape_are_refused(unet):
    x_t, wide = torch.randn(2, 4, 8, 8), widen_input(unet, EXTRA)
    for shape in [(2, EXTRA + 1, 8, 8), (2, EXTRA, 64, 64)]:
        with pytest.raises(ValueError, match=r"takes one of shape \(2, 5, 8, 8\)"):
            predict(wide, x_t, torch.zeros(shape))


def test_a_map_for_a_unet_that_takes_none_is_refused(unet):
    with pytest.raises(ValueError, match=r"takes none \(st_map=None\)"):
        predict(unet, torch.randn(2, 4, 8, 8), torch.zeros(2, EXTRA, 8, 8))
