# SPDX-License-Identifier: Apache-2.0
"""The judge's recipe: renders softened as decoded images are, a loss that is the labels'."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from spatext_lab.datasets.pocket import pocket_item
from spatext_lab.evaluation.judge import Judge
from spatext_lab.images import to_tensor
from spatext_lab.training.recipes import judge
from tests.training.steps import PLAN, loss_of, losses

pytestmark = pytest.mark.usefixtures("small")


def test_softening_only_blurs_and_adds_noise():
    """A flat grey image stays grey but for noise of at most 0.08."""
    grey = torch.full((64, 3, 16, 16), 0.3)
    soft = judge.soften(grey, torch.Generator().manual_seed(0))
    assert_close(soft.mean((1, 2, 3)), grey.mean((1, 2, 3)), atol=0.02, rtol=0)
    deviation = soft.std((1, 2, 3))
    assert 0.05 < deviation.max() < 0.09
    assert deviation.min() < 0.01


def test_the_loss_is_the_cross_entropy_of_the_true_labels(tmp_path):
    """Of the saved network, on the first scenes, softened with the step's own random numbers."""
    job = judge.make(PLAN, "cpu")
    losses(job)
    job.save(tmp_path)
    items = [pocket_item("train", i) for i in range(judge.BATCH)]
    generator = torch.Generator().manual_seed(5)
    images = judge.soften(to_tensor(item.image for item in items), generator)
    with torch.no_grad():
        answers = Judge.from_pretrained(tmp_path).logits(images)
        want = 0.0
        for logits, name in zip(answers, ("kind_map", "colour_map"), strict=True):
            truth = torch.from_numpy(np.stack([getattr(item, name) for item in items])).long()
            picked = F.log_softmax(logits, 1).gather(1, truth[:, None])
            want = want - picked.mean()
        assert_close(loss_of(job, 5), want, atol=5e-3, rtol=5e-3)  # weights in half precision
