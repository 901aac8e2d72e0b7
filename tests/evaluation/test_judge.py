# SPDX-License-Identifier: Apache-2.0
"""The judge: what it folds it unfolds, and every pixel has its label."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from torch import Tensor
from torch.testing import assert_close

from spatext_lab.evaluation.judge import COLOUR_CLASSES, FOLD, KIND_CLASSES, Judge
from tests.tiny import tiny_model

CLASSES = KIND_CLASSES + COLOUR_CLASSES


class Fixed(UNet2DModel):
    """A network that remembers its input and has a fixed output."""

    def __init__(self, answer: Tensor) -> None:
        torch.nn.Module.__init__(self)
        self.answer, self.asked = answer, None

    def forward(self, sample: Tensor, timestep: Tensor) -> SimpleNamespace:
        assert not timestep.any()
        self.asked = sample
        return SimpleNamespace(sample=self.answer)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model")) / "judge"


def test_folding_is_torchs_pixel_unshuffle():
    """In: every pixel of the image, once. Out: every score at the pixel that it belongs to."""
    images, scores = torch.rand(2, 3, 8, 6), torch.randn(2, CLASSES, 8, 6)
    unet = Fixed(F.pixel_unshuffle(scores, FOLD))
    kinds, colours = Judge(unet).logits(images)
    assert torch.equal(unet.asked, F.pixel_unshuffle(images, FOLD))
    assert torch.equal(F.pixel_shuffle(unet.asked, FOLD), images)
    assert torch.equal(torch.cat([kinds, colours], 1), scores)


def test_the_answer_is_the_highest_score():
    """Maps are written as scores and read back."""
    kinds = torch.randint(KIND_CLASSES, (2, 8, 8))
    colours = torch.randint(COLOUR_CLASSES, (2, 8, 8))
    scores = torch.cat([F.one_hot(kinds, KIND_CLASSES), F.one_hot(colours, COLOUR_CLASSES)], -1)
    scores = scores.permute(0, 3, 1, 2).float() + torch.rand(2, CLASSES, 8, 8) / 2
    seen = Judge(Fixed(F.pixel_unshuffle(scores, FOLD)))(torch.rand(2, 3, 8, 8))
    assert torch.equal(seen[0], kinds)
    assert torch.equal(seen[1], colours)


def test_a_judge_survives_the_disk(folder, tmp_path):
    judge, images = Judge.from_pretrained(folder), torch.rand(2, 3, 64, 64)
    judge.save_pretrained(tmp_path)
    again = Judge.from_pretrained(tmp_path)
    with torch.no_grad():
        for a, b in zip(judge.logits(images), again.logits(images), strict=True):
            assert a.shape[2:] == (64, 64)
            assert_close(a, b)
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors"}
    assert {p.dtype for p in judge.unet.parameters()} == {torch.float32}
    assert not again.unet.training


def test_an_image_is_judged_alike_in_any_batch(folder):
    judge, images = Judge.from_pretrained(folder), torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        together = judge.logits(images)[0]
        alone = torch.cat([judge.logits(image[None])[0] for image in images])
    assert_close(together, alone, atol=1e-4, rtol=1e-4)
