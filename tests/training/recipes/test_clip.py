# SPDX-License-Identifier: Apache-2.0
"""The pocket CLIP's recipe: its batches, its crops, and what open_clip reads of it."""

from collections import Counter

import open_clip
import pytest
import torch
from torch.testing import assert_close

from spatext_lab.clip import Clip
from spatext_lab.datasets.pocket import pocket_item
from spatext_lab.training.recipes import clip
from tests.training.steps import PLAN

pytestmark = pytest.mark.usefixtures("small")


def test_no_two_crops_of_a_batch_show_the_same():
    """Else the contrastive loss would call a right text wrong."""
    items = [pocket_item("train", i) for i in range(40)]
    pairs = clip.distinct(items)
    looks = [(s.label, s.colour, s.pattern) for _, s in pairs]
    assert max(Counter(looks).values()) == 1
    assert set(looks) == {(s.label, s.colour, s.pattern) for item in items for s in item.segments}
    assert all(any(s is segment for s in items[i].segments) for i, segment in pairs)


def test_a_batch_of_images_and_their_texts():
    images, texts = clip.batch(0, torch.Generator().manual_seed(0), 32)
    assert len(images) == len(texts)
    assert images.shape[1:] == (3, 32, 32)
    assert 0 <= images.min() <= images.max() <= 1 + 1e-6
    assert texts[-3:] == [pocket_item("train", i).captions[0] for i in range(3)]
    black = (images[:-3] == 0).all(1).float().mean((1, 2))
    assert (black > 0.1).any()


def test_a_close_up_keeps_the_surroundings():
    image, mask = torch.rand(3, 20, 20), torch.zeros(20, 20, dtype=torch.bool)
    mask[4, 6], mask[11, 13] = True, True
    assert_close(clip.close_up(image, mask, 8), image[:, 4:12, 6:14])


def test_a_saved_clip_is_read_by_open_clip(tmp_path):
    job = clip.make(PLAN, "cpu")
    job.save(tmp_path)
    ours = Clip.from_pretrained(tmp_path)
    assert (ours.embedding_dim, ours.image_size) == (64, 32)
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    for name, value in model.state_dict().items():
        assert_close(value, job.module.model.state_dict()[name], atol=2e-3, rtol=1e-3)
    assert ours.model.logit_scale.exp().item() == pytest.approx(1 / clip.TEMPERATURE, rel=1e-3)
