# SPDX-License-Identifier: Apache-2.0
"""The pixel variant: folding against a loop, and a model conditioned on CLIP embeddings alone."""

from itertools import product

import pytest
import torch
from torch.testing import assert_close

from spatext_lab.images import encode
from spatext_lab.scene import Region, Scene
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.spatext.pixel import PixelFold, caption_state
from tests.tiny import WIDTH, tiny_model

SCENE = Scene("two objects", [Region("a red ball", box=(0, 0, 0.5, 0.5))])


@pytest.fixture(scope="module")
def pixel(tmp_path_factory) -> SpaTextPipeline:
    root = tiny_model(tmp_path_factory.mktemp("model"))
    return SpaTextPipeline.from_pretrained(root / "spatext-pixel")


def test_folding_against_a_loop():
    images = torch.randn(2, 3, 8, 12)
    folded = PixelFold().encode(images).latents
    assert folded.shape == (2, 48, 2, 3)
    for c, y, x, p, q in product(range(3), range(2), range(3), range(4), range(4)):
        assert torch.equal(folded[:, 16 * c + 4 * p + q, y, x], images[:, c, 4 * y + p, 4 * x + q])


def test_folding_loses_nothing_and_the_disk_neither(tmp_path):
    images = torch.randn(1, 3, 64, 64)
    PixelFold((3, 12), scaling_factor=2.0).save_pretrained(tmp_path)
    fold = PixelFold.from_pretrained(tmp_path)
    assert fold.config.scaling_factor == 2.0
    assert fold.encode(images).latents.shape == (1, 12, 32, 32)
    assert torch.equal(fold.decode(fold.encode(images).latents).sample, images)
    assert torch.equal(encode(fold, images), 2 * fold.encode(images).latents)


def test_channels_that_folding_does_not_give_are_refused():
    with pytest.raises(
        ValueError, match=r"block_out_channels is \(3, 16\); folding gives \(3, 12\)"
    ):
        PixelFold((3, 16))


def test_a_pixel_model_is_read_as_every_other(pixel, tmp_path):
    assert isinstance(pixel.vae, PixelFold)
    assert (pixel.image_size, pixel.text_encoder, pixel.tokenizer) == (64, None, None)
    pixel.save_pretrained(tmp_path)
    again = SpaTextPipeline.from_pretrained(tmp_path)
    one, two = (
        list(p.stream(SCENE, num_inference_steps=2, seed=5))[-1].x_0 for p in (pixel, again)
    )
    assert torch.equal(one, two)
    assert one.shape == (1, 48, 16, 16)


@torch.no_grad()
def test_its_caption_is_the_priors_embedding(pixel):
    condition = pixel.condition([SCENE, Scene("a house")])
    embeddings = pixel.prior(pixel.clip.encode_text(["two objects", "a house"]))
    assert_close(condition.text, embeddings[:, None] * WIDTH**0.5)
    assert_close(caption_state(embeddings), condition.text)
    assert not condition.null_text.any()
    assert condition.st_map.shape == (2, WIDTH, 16, 16)


@torch.no_grad()
def test_a_negative_prompt_of_a_pixel_model_is_the_priors_embedding_too(pixel):
    condition = pixel.encode_captions(["a house", "a ball"], "a boat")
    a_house, a_ball, a_boat = pixel.prior(pixel.clip.encode_text(["a house", "a ball", "a boat"]))
    assert_close(condition.text, caption_state(torch.stack([a_house, a_ball])))
    assert_close(condition.null_text, caption_state(torch.stack([a_boat, a_boat])))


def test_caption_and_map_change_its_image(pixel):
    def sampled(scene: Scene) -> torch.Tensor:
        return list(pixel.stream(scene, num_inference_steps=2, seed=5))[-1].x_0

    base = sampled(SCENE)
    assert not torch.allclose(sampled(Scene("a house", SCENE.regions)), base, atol=1e-4)
    assert not torch.allclose(sampled(Scene("two objects")), base, atol=1e-4)
    (image,) = pixel(SCENE, num_inference_steps=1).images
    assert image.size == (64, 64)
