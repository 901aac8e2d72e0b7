# SPDX-License-Identifier: Apache-2.0
"""Images, tensors and latents: every level there and back, and the autoencoder called by hand."""

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch.testing import assert_close

from spatext_lab.course import stand_in
from spatext_lab.images import decode, encode, to_images, to_tensor
from spatext_lab.spatext.pixel import PixelFold
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from tests.tiny import tiny_model


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> TextToImagePipeline:
    return TextToImagePipeline.from_pretrained(
        tiny_model(tmp_path_factory.mktemp("model")) / "text-to-image"
    )


def test_every_level_comes_back():
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    tensor = to_tensor(levels)
    assert tensor.shape == (1, 3, 16, 16)
    assert (tensor.min(), tensor.max()) == (-1, 1)
    assert_close(tensor[0, 0].flatten(), torch.arange(256) / 127.5 - 1)
    assert np.array_equal(pixels(to_images(tensor)[0]), levels[0])


def test_what_lies_beyond_is_clamped():
    wild = torch.tensor([-7.0, 7.0]).repeat(3, 2, 1)[None]
    assert pixels(to_images(wild)[0])[0, :, 0].tolist() == [0, 255]


def test_images_against_diffusers_own_processor():
    """Also between two levels, where both round."""
    tensor = torch.rand(4, 3, 20, 12) * 3 - 1.5
    theirs = VaeImageProcessor(do_resize=False).postprocess(tensor, "pil")
    for ours, want in zip(to_images(tensor), theirs, strict=True):
        assert np.array_equal(pixels(ours), pixels(want))
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    batch = [Image.fromarray(image) for image in images]
    assert_close(to_tensor(images), VaeImageProcessor(do_resize=False).preprocess(batch))


@torch.no_grad()
def test_latents_against_the_autoencoder_called_by_hand(text):
    latents = torch.randn(2, 4, 16, 16)
    text.vae.register_to_config(scaling_factor=1.7)
    try:
        decoded = text.vae.decoder(latents / 1.7)
        assert_close(decode(text.vae, latents), decoded)
        by_hand = np.clip(np.rint((decoded.permute(0, 2, 3, 1).numpy() + 1) / 2 * 255), 0, 255)
        for image, want in zip(text.decode(latents), by_hand, strict=True):
            assert np.abs(pixels(image) - want).max() <= 1
        images = torch.rand(2, 3, 64, 64) * 2 - 1
        assert_close(encode(text.vae, images), text.vae.encoder(images) * 1.7)
    finally:
        text.vae.register_to_config(scaling_factor=1.0)


@torch.no_grad()
def test_a_variational_autoencoder_gives_the_mode(tmp_path):
    """The middle of the distribution: nothing is random."""
    folder = stand_in.stable_diffusion(tmp_path, levels=2, side=16)
    vae = TextToImagePipeline.from_pretrained(folder).vae
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    mean, _ = vae.quant_conv(vae.encoder(images)).chunk(2, dim=1)
    latents = encode(vae, images)
    assert_close(latents, mean * vae.config.scaling_factor)
    want = vae.decoder(vae.post_quant_conv(latents / vae.config.scaling_factor))
    assert_close(decode(vae, latents), want)


def test_folded_pixels_come_back():
    fold, images = PixelFold(scaling_factor=2.0), torch.randn(2, 3, 64, 64)
    assert torch.equal(decode(fold, encode(fold, images)), images)
