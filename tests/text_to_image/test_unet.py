# SPDX-License-Identifier: Apache-2.0
"""The pocket U-Net against diffusers' own, which it is but for two additions."""

import math

import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from torch.testing import assert_close
from transformers import CLIPTextConfig, CLIPTextModel

from spatext_lab.diffusion import noise_schedule
from spatext_lab.spatext.widen import narrow_input, widen_input
from spatext_lab.text_to_image.tokenizer import new_tokenizer
from spatext_lab.text_to_image.unet import POSITION_CHANNELS, WAVES, PocketUNet, positions

T = torch.tensor([0, 700])
SHAPE = {
    "sample_size": 16,
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (8, 8, 16),
    "cross_attention_dim": 6,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}


@pytest.fixture
def unet() -> PocketUNet:
    torch.manual_seed(0)
    return PocketUNet(**SHAPE).eval()


@torch.no_grad()
def predict(unet, x_t, text, **given):
    return unet(x_t, T, text, **given).sample


def batch(size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(2, 4, size, size, generator=generator)
    return noise, torch.randn(2, 5, 6, generator=generator)


# --- positions ------------------------------------------------------------------------------------


def test_positions_against_a_slow_loop():
    window = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.25, 0.5, 0.75, 0.625]])
    h, w = 3, 5
    ours = positions(window, h, w)
    assert ours.shape == (2, POSITION_CHANNELS, h, w)
    for b, (x0, y0, x1, y1) in enumerate(window.tolist()):
        for i in range(h):
            for j in range(w):
                x = x0 + (x1 - x0) * (j + 0.5) / w
                y = y0 + (y1 - y0) * (i + 0.5) / h
                want = [
                    f(math.pi * 2**k * v)
                    for v in (x, y)
                    for f in (math.cos, math.sin)
                    for k in range(WAVES)
                ]
                assert_close(ours[b, :, i, j], torch.tensor(want), atol=1e-5, rtol=0)


def test_a_crop_has_the_positions_of_its_part_of_the_whole():
    whole = positions(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), 16, 16)
    crop = positions(torch.tensor([[3 / 16, 5 / 16, 11 / 16, 13 / 16]]), 8, 8)
    assert_close(crop, whole[:, :, 5:13, 3:11], atol=1e-5, rtol=0)


def test_no_two_cells_have_the_same_position():
    cells = positions(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), 16, 16).flatten(2)[0].T
    assert (torch.cdist(cells, cells) + torch.eye(256)).min() > 0.1


# --- the network ----------------------------------------------------------------------------------


def test_it_is_diffusers_unet_with_positions_before_the_latents(unet):
    """The same weights in the plain class, the positions concatenated by hand; the caption's vector
    is constant, so that it can stand in the bias of the time embedding."""
    plain = UNet2DConditionModel.from_config(
        dict(unet.config) | {"in_channels": POSITION_CHANNELS + 4}
    ).eval()
    torch.nn.init.zeros_(unet.caption_embedding.weight)
    weights = unet.state_dict()
    shift = weights.pop("caption_embedding.bias")
    weights.pop("caption_embedding.weight")
    plain.load_state_dict(weights)
    plain.time_embedding.linear_2.bias.data += shift
    x_t, text = batch()
    window = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.1, 0.2, 0.6, 0.7]])
    by_hand = torch.cat([positions(window, 16, 16), x_t], dim=1)
    assert_close(predict(unet, x_t, text, window=window), predict(plain, by_hand, text))


@pytest.mark.parametrize("size", [8, 16])
def test_without_a_window_it_sees_the_whole_image_at_any_resolution(unet, size):
    x_t, text = batch(size)
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(2, 4)
    assert torch.equal(predict(unet, x_t, text), predict(unet, x_t, text, window=whole))
    crop = torch.tensor([[0.0, 0.0, 0.5, 0.5]]).expand(2, 4)
    assert not torch.allclose(predict(unet, x_t, text), predict(unet, x_t, text, window=crop))


def test_the_last_token_reaches_the_network_beside_attention(unet):
    """With all values of the attention at zero the text has no other way in."""
    for name, module in unet.named_modules():
        if name.endswith("attn2.to_v"):
            torch.nn.init.zeros_(module.weight)
    x_t, text = batch()
    first, last = text.clone(), text.clone()
    first[:, 0] += 1
    last[:, -1] += 1
    assert torch.equal(predict(unet, x_t, text), predict(unet, x_t, first))
    assert not torch.allclose(predict(unet, x_t, text), predict(unet, x_t, last), atol=1e-4)


def test_it_survives_the_disk(unet, tmp_path):
    unet.save_pretrained(tmp_path)
    again = PocketUNet.from_pretrained(tmp_path).eval()
    assert again.config.in_channels == unet.config.in_channels == 4
    assert again.config._class_name == "PocketUNet"
    assert torch.equal(predict(again, *batch()), predict(unet, *batch()))


def test_spatext_can_widen_it_and_narrow_it(unet, tmp_path):
    """New channels come after x_t's, have weight zero, and the config counts them."""
    wide = widen_input(unet, 7)
    assert wide.config.in_channels == 11
    x_t, text = batch()
    st_map = torch.randn(2, 7, 16, 16)
    assert torch.equal(predict(wide, torch.cat([x_t, st_map], 1), text), predict(unet, x_t, text))
    assert not wide.conv_in.weight[:, -7:].any()
    narrow = narrow_input(wide)
    assert dict(narrow.config) == dict(unet.config)
    assert torch.equal(predict(narrow, x_t, text), predict(unet, x_t, text))
    torch.nn.init.normal_(wide.conv_in.weight)
    wide.save_pretrained(tmp_path)
    again = PocketUNet.from_pretrained(tmp_path).eval()
    both = torch.cat([x_t, st_map], 1)
    assert torch.equal(predict(again, both, text), predict(wide, both, text))


def test_diffusers_own_pipeline_runs_it(unet):
    """Against the loop by hand: two guided DDIM steps from the same noise."""
    tokenizer = new_tokenizer(merges=50)
    torch.manual_seed(0)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=6,
            intermediate_size=6,
            num_hidden_layers=1,
            num_attention_heads=2,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    ).eval()
    parts = {"unet": unet, "text_encoder": text_encoder, "tokenizer": tokenizer}
    pipe = StableDiffusionPipeline(
        **parts,
        vae=AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            num_encoder_blocks=(0, 0, 1),
            num_decoder_blocks=(1, 0, 0),
        ),
        scheduler=noise_schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    settings = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "latent"}
    theirs = pipe("a red ball", latents=x.clone(), **settings).images
    scheduler = noise_schedule()
    scheduler.set_timesteps(2)
    ids = tokenizer(["", "a red ball"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        text = text_encoder(ids).last_hidden_state
        for t in scheduler.timesteps:
            off, on = unet(torch.cat([x, x]), t, text).sample.chunk(2)
            x = scheduler.step(off + 2.0 * (on - off), t, x).prev_sample
    assert_close(theirs, x, atol=1e-4, rtol=1e-4)
