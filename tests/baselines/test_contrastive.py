# SPDX-License-Identifier: Apache-2.0
"""The contrastive loss against a loop and in closed form."""

import math

import pytest
import torch

from spatext_lab.baselines.contrastive import contrastive_loss


def test_the_contrastive_loss_against_a_loop():
    codes, temperature = torch.randn(5, 7), 0.3
    total = 0.0
    for i in range(5):
        alike = [
            math.exp((codes[i] @ c / codes[i].norm() / c.norm()).item() / temperature)
            for c in codes
        ]
        total -= math.log(alike[i] / sum(alike))
    assert contrastive_loss(codes, temperature).item() == pytest.approx(total / 5, rel=1e-4)


def test_the_contrastive_loss_in_closed_form():
    """All codes one: log b. All at right angles: log(1 + (b - 1) exp(-1 / temperature))."""
    one, apart = torch.ones(6, 6), 3 * torch.eye(6)
    assert contrastive_loss(one, 0.07).item() == pytest.approx(math.log(6), rel=1e-5)
    want = math.log(1 + 5 * math.exp(-1 / 0.5))
    assert contrastive_loss(apart, 0.5).item() == pytest.approx(want, rel=1e-5)
    codes = torch.randn(4, 3, requires_grad=True)
    contrastive_loss(codes, 0.07).backward()
    after = contrastive_loss(codes - 0.1 * codes.grad, 0.07)
    assert after < contrastive_loss(codes, 0.07)
