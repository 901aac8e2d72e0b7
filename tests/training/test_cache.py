# SPDX-License-Identifier: Apache-2.0
"""The cache against one image at a time, and its random draws against their frequencies."""

from collections import Counter
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from spatext_lab.clip import Clip
from spatext_lab.datasets.corrupted_masks import painted
from spatext_lab.datasets.pocket import pocket_item
from spatext_lab.diffusion import noise_schedule
from spatext_lab.images import encode, to_tensor
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from spatext_lab.training import cache


def test_the_cache_against_one_image_at_a_time(root):
    base = TextToImagePipeline.from_pretrained(root / "text-to-image")
    reader = Clip.from_pretrained(root / "spatext" / "clip")
    pool = cache.build(cache.pocket_examples(35), 35, base.vae, reader)  # more than one chunk
    assert len(pool) == 35
    for i in (0, 7, 33, 34):
        item = pocket_item("train", i)
        pixels = torch.from_numpy(item.image).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            assert_close(pool.latents[[i]], encode(base.vae, pixels * 2 - 1), atol=1e-4, rtol=1e-4)
            assert_close(pool.image_embeddings[i], reader.encode_images(pixels)[0])
        assert pool.captions[i] == item.captions
        largest = sorted(item.segments, key=lambda s: -s.mask.sum())
        assert pool.texts[i] == tuple(s.text for s in largest[: cache.SEGMENTS])
        for k in range(cache.SEGMENTS):
            if k >= len(largest):
                assert not pool.embeddings[i, k].any()
                assert not pool.coverage[i, k].any()
                continue
            mask = torch.from_numpy(largest[k].mask)
            assert_close(pool.coverage[i, k], mask.view(16, 4, 16, 4).float().mean((1, 3)))
            with torch.no_grad():
                embedding = reader.encode_segments(pixels, mask[None])[0]
            assert_close(pool.embeddings[i, k], embedding, atol=1e-4, rtol=1e-4)


def test_painted_masks_are_disjoint_and_the_smaller_ones_on_top(root):
    """Against one pixel at a time: it belongs to the last of the painted masks that has it."""
    base = TextToImagePipeline.from_pretrained(root / "text-to-image")
    reader = Clip.from_pretrained(root / "spatext" / "clip")
    pool = cache.build(cache.pocket_examples(6), 6, base.vae, reader)
    for i in range(6):
        rng = Random(f"painted/{i}")
        segments = sorted(pocket_item("train", i).segments, key=lambda s: -s.mask.sum())
        owner = np.full((64, 64), -1)
        for k, segment in enumerate(segments[: cache.SEGMENTS]):
            for y, x in np.argwhere(painted(segment.mask, rng)):
                owner[y, x] = k
        for k in range(cache.SEGMENTS):
            want = torch.from_numpy(owner == k).view(16, 4, 16, 4).float().mean((1, 3))
            assert_close(pool.painted[i, k], want)
    assert not torch.equal(pool.painted, pool.coverage)


def test_half_latents_are_of_images_at_half_their_size(root):
    vae = TextToImagePipeline.from_pretrained(root / "text-to-image").vae
    pool = cache.build(cache.pocket_examples(2), 2, vae, halves=True)
    for i in range(2):
        half = Image.fromarray(pocket_item("train", i).image).resize((32, 32), Image.Resampling.BOX)
        with torch.no_grad():
            want = encode(vae, to_tensor([np.asarray(half)]))[0]
        assert_close(pool.half_latents[i], want, atol=0.05, rtol=0)  # PIL rounds to 8 bits


def test_captions_are_drawn_uniformly():
    pool = cache.Cache(torch.zeros(2, 4, 2, 2), [("a", "b", "c"), ("d",)])
    drawn = pool.draw_captions(torch.tensor([0, 1] * 600), torch.Generator().manual_seed(0))
    assert set(drawn[1::2]) == {"d"}
    assert set(drawn[::2]) == {"a", "b", "c"}
    assert min(Counter(drawn[::2]).values()) > 150


def test_without_a_clip_the_scenes_are_kept(root):
    vae = TextToImagePipeline.from_pretrained(root / "text-to-image").vae
    pool = cache.build(cache.pocket_examples(3), 3, vae)
    assert pool.scenes == [pocket_item("train", i).scene for i in range(3)]
    assert pool.embeddings is pool.coverage is pool.texts is pool.image_embeddings is None


def test_noise_and_timesteps_of_a_step():
    """Standard normal noise, and every timestep as often as any other."""
    x_0, scheduler = torch.zeros(20_000, 1, 1, 1), noise_schedule()
    noise, t = cache.draw_noise(x_0, scheduler, torch.Generator().manual_seed(0))
    again, same = cache.draw_noise(x_0, scheduler, torch.Generator().manual_seed(0))
    assert torch.equal(noise, again)
    assert torch.equal(t, same)
    assert noise.mean().item() == pytest.approx(0, abs=0.03)
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    counts = torch.bincount(t // 100, minlength=10)
    assert (t.min().item(), t.max().item()) == (0, 999)
    assert ((counts - 2000).abs() < 4 * 2000**0.5).all()
