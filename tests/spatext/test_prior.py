# SPDX-License-Identifier: Apache-2.0
"""Priors against least squares by another library, and a diffusion whose answer is known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import PriorTransformer
from torch.testing import assert_close

from spatext_lab.diffusion import add_noise, noise_schedule, target
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.spatext.prior import DiffusionPrior, LinearPrior, PriorDenoiser, text_condition
from tests.tiny import WIDTH, tiny_model, tiny_prior

TEXT = F.normalize(torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(1)), dim=-1)


@pytest.fixture(scope="module")
def prior() -> DiffusionPrior:
    torch.manual_seed(3)
    return tiny_prior()


def pairs(n: int = 300, d: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator)
    return x, 0.5 * x.flip(1) + 2.0 + 0.3 * torch.randn(n, d, generator=generator)


# --- the line -------------------------------------------------------------------------------------


def test_the_line_against_least_squares():
    x, y = pairs()
    line = LinearPrior.fit(x, y, ridge=0.0)
    with_one = np.concatenate([x.numpy(), np.ones((len(x), 1))], 1)
    solution, *_ = np.linalg.lstsq(with_one, y.numpy(), rcond=None)
    assert_close(line.weight.numpy(), solution[:-1].astype(np.float32), atol=1e-5, rtol=1e-5)
    assert_close(line.bias.numpy(), solution[-1].astype(np.float32), atol=1e-5, rtol=1e-5)


def test_a_ridge_against_least_squares_with_more_rows():
    """sqrt(ridge n) times the identity as extra rows is the same as the penalty."""
    x, y = pairs()
    line = LinearPrior.fit(x, y, ridge=0.2)
    xc, yc = (x - x.mean(0)).double().numpy(), (y - y.mean(0)).double().numpy()
    rows = np.concatenate([xc, np.sqrt(0.2 * len(x)) * np.eye(6)])
    solution, *_ = np.linalg.lstsq(rows, np.concatenate([yc, np.zeros((6, 6))]), rcond=None)
    assert_close(line.weight.double().numpy(), solution, atol=1e-5, rtol=1e-5)


def test_what_the_line_gives_has_length_1_and_survives_the_disk(tmp_path):
    line = LinearPrior.fit(*pairs())
    x = pairs(5)[0]
    assert_close(line(x).norm(dim=1), torch.ones(5))
    assert_close(line(x), F.normalize(x @ line.weight + line.bias, dim=-1))
    line.save_pretrained(tmp_path)
    assert torch.equal(LinearPrior.from_pretrained(tmp_path)(x), line(x))


# --- diffusion ------------------------------------------------------------------------------------


def test_the_denoiser_is_the_transformer(prior):
    x_t, t = torch.randn(7, WIDTH), torch.randint(1000, (7,))
    with torch.no_grad():
        got = PriorDenoiser(prior.transformer)(x_t[:, :, None, None], t, text_condition(TEXT))
        each = [
            prior.transformer(x_t[[i]], t[[i]], TEXT[[i]] * WIDTH**0.5)[0][0] for i in range(len(t))
        ]
    assert_close(got[:, :, 0, 0], torch.stack(each), atol=1e-5, rtol=1e-5)


class Knows(PriorTransformer):
    """A transformer that knows the answer, `image` in the diffusion's own units, for every text."""

    def __init__(self, prior: DiffusionPrior, image: torch.Tensor) -> None:
        super().__init__(1, 2, 1, embedding_dim=image.shape[1], num_embeddings=0)
        self.clip_mean, self.clip_std = prior.transformer.clip_mean, prior.transformer.clip_std
        self.answer, self.alphas = prior.normalize(image), prior.scheduler.alphas_cumprod
        self.calls: list[int] = []

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, text: torch.Tensor):
        self.calls.append(len(x_t))
        x_0 = self.answer.repeat(len(x_t) // len(self.answer), 1, 1, 1)
        signal, sigma = (a[t].sqrt()[:, None] for a in (self.alphas, 1 - self.alphas))
        x_t, x_0 = x_t.double(), x_0[:, :, 0, 0].double()
        eps = (x_t - signal * x_0) / sigma.clamp(min=1e-8)
        return SimpleNamespace(predicted_image_embedding=(signal * eps - sigma * x_0).float())


@pytest.mark.parametrize(("scale", "batch"), [(1.0, 7), (2.0, 14)])
def test_sampling_ends_at_what_the_network_knows(prior, scale, batch):
    image = F.normalize(torch.randn(7, WIDTH), dim=-1)
    torch.nn.init.normal_(prior.transformer.clip_mean)
    knows = Knows(prior, image)
    sampler = DiffusionPrior(knows, prior.scheduler, num_inference_steps=4, guidance_scale=scale)
    assert_close(sampler(TEXT), image, atol=1e-4, rtol=1e-4)
    assert knows.calls == [batch] * 4


def test_knows_is_the_schedules_own_v():
    """The test's network against `target`, or the test above would prove nothing."""
    x_0, noise = torch.randn(5, WIDTH, 1, 1), torch.randn(5, WIDTH, 1, 1)
    prior, t = tiny_prior(), torch.tensor([10, 200, 500, 800, 990])
    alphas = prior.scheduler.alphas_cumprod
    knows = Knows(prior, torch.randn(5, WIDTH))
    knows.answer = x_0
    x_t = add_noise(x_0, noise, t, alphas)[:, :, 0, 0]
    v = knows(x_t, t, None).predicted_image_embedding
    want = target(x_0, noise, t, alphas, "v_prediction")[:, :, 0, 0]
    assert_close(v, want, atol=1e-3, rtol=1e-3)


def test_a_text_has_one_embedding_whatever_stands_beside_it(prior):
    all_at_once = prior(TEXT)
    assert_close(all_at_once[3:4], prior(TEXT[3:4]), atol=1e-5, rtol=1e-5)
    assert_close(all_at_once.norm(dim=1), torch.ones(7))
    assert torch.equal(prior(TEXT), all_at_once)
    assert not torch.allclose(prior(TEXT, seed=1), all_at_once, atol=0.01)


def test_normalize_and_back(prior):
    image = torch.randn(4, WIDTH)
    flat = prior.normalize(image)[:, :, 0, 0]
    assert_close(prior.transformer.post_process_latents(flat), image)


def test_a_prior_survives_the_disk(prior, tmp_path):
    prior.save_pretrained(tmp_path)
    again = DiffusionPrior.from_pretrained(tmp_path)
    assert torch.equal(again(TEXT), prior(TEXT))
    assert torch.equal(again.linear(TEXT), prior.linear(TEXT))
    assert again.scheduler.config.prediction_type == "v_prediction"
    other = DiffusionPrior(prior.transformer, prior.scheduler, None, 3, 2.0)
    other.save_pretrained(tmp_path / "other")
    again = DiffusionPrior.from_pretrained(tmp_path / "other")
    assert (again.num_inference_steps, again.guidance_scale) == (3, 2.0)
    assert torch.equal(again(TEXT), other(TEXT))
    assert not torch.equal(other(TEXT), prior(TEXT))
    (tmp_path / "linear.safetensors").unlink()
    assert DiffusionPrior.from_pretrained(tmp_path).linear is None


def test_a_prior_of_another_clip_is_refused(tmp_path):
    root = tiny_model(tmp_path)
    pipeline = SpaTextPipeline.from_pretrained(root / "spatext")
    transformer = tiny_prior(width=WIDTH + 2).transformer
    parts = pipeline.components | {"prior": DiffusionPrior(transformer, noise_schedule())}
    with pytest.raises(ValueError, match="prior has embeddings of 18 numbers, clip of 16"):
        SpaTextPipeline(**parts)
