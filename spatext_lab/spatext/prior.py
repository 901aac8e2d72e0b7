# SPDX-License-Identifier: Apache-2.0
"""The prior: from CLIP's embedding of a text to one that an image of it could have.

SpaText is trained with image embeddings and used with text embeddings, which differ (the modality
gap). A prior maps one to the other. There are two: a diffusion prior as in the paper, and the best
linear map, the baseline to beat.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, ModelMixin, PriorTransformer
from diffusers.utils.torch_utils import randn_tensor
from einops import rearrange, repeat
from jaxtyping import Float, Real
from safetensors.torch import load_file, save_file
from torch import Tensor

from spatext_lab import zoo
from spatext_lab.diffusion import Condition, guided, sample
from spatext_lab.text_to_image.base import read_weights

LINEAR_NAME, SETTINGS_NAME = "linear.safetensors", "sampling.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"


# Ridge regression, closed form: W = (X^T X + ridge n I)^-1 X^T Y
def ridge_regression(
    x: Float[Tensor, "n d"], y: Float[Tensor, "n e"], ridge: float = 1e-4
) -> Float[Tensor, "d e"]:
    """The matrix W with the least squared error |x W - y|^2 + ridge n |W|^2, in x's precision."""
    gram = x.T @ x + ridge * len(x) * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return torch.linalg.solve(gram, x.T @ y)


class LinearPrior(ModelMixin):
    """image = text @ weight + bias, normalized to length 1."""

    def __init__(self, weight: Float[Tensor, "d d"], bias: Float[Tensor, "d"]) -> None:
        super().__init__()
        # parameters, which diffusers asks a part for when it moves it
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.bias = torch.nn.Parameter(bias, requires_grad=False)

    @property
    def embedding_dim(self) -> int:
        """Dimension of the embeddings."""
        return len(self.bias)

    @classmethod
    def fit(
        cls, text: Float[Tensor, "n d"], image: Float[Tensor, "n d"], ridge: float = 1e-4
    ) -> "LinearPrior":
        """Fits the map by ridge regression over n pairs of embeddings, in double precision."""
        x, y = text.double() - text.double().mean(0), image.double() - image.double().mean(0)
        weight = ridge_regression(x, y, ridge)
        bias = image.double().mean(0) - text.double().mean(0) @ weight
        return cls(weight.float().contiguous(), bias.float())

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, torch_dtype: torch.dtype | None = None, **_
    ) -> "LinearPrior":
        """Reads what `save_pretrained` wrote.

        Args:
            torch_dtype: precision of the weights; single by default.

        Raises:
            FileNotFoundError: naming the file, where it is missing.
            ValueError: naming the file, where it is damaged.
        """
        zoo.check_files(Path(folder), LINEAR_NAME)
        with zoo.named(Path(folder) / LINEAR_NAME):
            weights = load_file(Path(folder) / LINEAR_NAME)
            return cls(**{name: w.to(torch_dtype or torch.float32) for name, w in weights.items()})

    def save_pretrained(self, folder: str | Path, **_) -> None:
        """Writes one safetensors file into a prior's folder."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        weights = {name: value.float().contiguous() for name, value in self.state_dict().items()}
        save_file(weights, Path(folder) / LINEAR_NAME)

    def forward(self, text: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """One unit image embedding for each text embedding."""
        return F.normalize(text @ self.weight.to(text) + self.bias.to(text), dim=-1)


# DALL-E 2, arXiv 2204.06125, section 2.2: a diffusion model over CLIP's image embeddings,
# conditioned on the text. An embedding is an image of one pixel with d channels, so noise schedule,
# loss, guidance and sampling loop are those of images.
@dataclass(frozen=True, eq=False)
class PriorDenoiser:
    """A `PriorTransformer` as a `Denoiser` of images (b, d, 1, 1).

    `condition.text` (b, 1, d) is the text's embedding; the null condition is zeros.
    """

    transformer: PriorTransformer

    def __call__(
        self, x_t: Float[Tensor, "b d 1 1"], t: Real[Tensor, "b"], condition: Condition
    ) -> Float[Tensor, "b d 1 1"]:
        """The prediction for x_t, in the scheduler's prediction type."""
        dtype = self.transformer.dtype
        flat, text = rearrange(x_t, "b d 1 1 -> b d"), rearrange(condition.text, "b 1 d -> b d")
        scaled = (text * text.shape[1] ** 0.5).to(dtype)
        out = self.transformer(flat.to(dtype), t, scaled).predicted_image_embedding
        return rearrange(out.to(x_t.dtype), "b d -> b d 1 1")


def text_condition(text: Float[Tensor, "b d"]) -> Condition:
    """Text embeddings as the condition of the prior's denoiser."""
    states = rearrange(text, "b d -> b 1 d")
    return Condition(states, torch.zeros_like(states))


class DiffusionPrior(ModelMixin):
    """Samples an image embedding for a text embedding; same text and seed, same embedding.

    Args:
        transformer: the network; its `clip_mean` and `clip_std` are the image embeddings'.
        scheduler: the noise schedule that it was trained with.
        linear: the linear prior of the same pairs of embeddings, saved in the same folder.
        num_inference_steps: denoising steps, saved with the prior.
        guidance_scale: 1.0 is no guidance; saved with the prior.
    """

    def __init__(
        self,
        transformer: PriorTransformer,
        scheduler: DDIMScheduler,
        linear: LinearPrior | None = None,
        num_inference_steps: int = 5,
        guidance_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.transformer, self.scheduler, self.linear = transformer, scheduler, linear
        self.num_inference_steps, self.guidance_scale = num_inference_steps, guidance_scale
        self.eval()

    @property
    def embedding_dim(self) -> int:
        """Dimension of the embeddings."""
        return self.transformer.config.embedding_dim

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, torch_dtype: torch.dtype | None = None, **_
    ) -> "DiffusionPrior":
        """Reads a diffusers folder of a `PriorTransformer` with a `scheduler` folder in it.

        Args:
            torch_dtype: precision of the weights; single by default.

        Raises:
            FileNotFoundError: naming the file that is missing.
            ValueError: naming the file that is damaged.
        """
        folder = Path(folder)
        zoo.check_files(folder, "config.json", WEIGHTS_NAME, "scheduler/scheduler_config.json")
        with zoo.named(folder):
            transformer = read_weights(folder, PriorTransformer, torch_dtype or torch.float32)
            scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
            linear = None
            if (folder / LINEAR_NAME).is_file():
                linear = LinearPrior.from_pretrained(folder, torch_dtype)
            file = folder / SETTINGS_NAME
            settings = zoo.read_json(file) if file.is_file() else {}
            return cls(transformer, scheduler, linear, **settings)

    def save_pretrained(self, folder: str | Path, **_) -> None:
        """Writes the folder that `from_pretrained` reads, sampling settings included."""
        folder = Path(folder)
        self.transformer.register_to_config(_name_or_path="")  # a path of this machine
        self.transformer.save_pretrained(folder)
        self.scheduler.save_pretrained(folder / "scheduler")
        if self.linear is not None:
            self.linear.save_pretrained(folder)
        names = ("num_inference_steps", "guidance_scale")
        settings = {name: getattr(self, name) for name in names}
        (folder / SETTINGS_NAME).write_text(json.dumps(settings, indent=2) + "\n")

    def normalize(self, image: Float[Tensor, "b d"]) -> Float[Tensor, "b d 1 1"]:
        """Image embeddings with mean 0 and variance 1 in every dimension, as they are sampled."""
        mean, std = self.transformer.clip_mean, self.transformer.clip_std
        return rearrange((image - mean) / std, "b d -> b d 1 1")

    @torch.no_grad()
    def forward(self, text: Float[Tensor, "b d"], seed: int = 0) -> Float[Tensor, "b d"]:
        """One unit image embedding for each text embedding, sampled from the noise of `seed`.

        All texts start from the same noise, so a text's embedding does not depend on its batch.
        """
        noise = randn_tensor((1, text.shape[1], 1, 1), torch.Generator().manual_seed(seed)).to(text)
        x_T = repeat(noise, "1 d h w -> b d h w", b=len(text))
        denoiser = guided(PriorDenoiser(self.transformer), self.guidance_scale)
        condition, n = text_condition(text), self.num_inference_steps
        for step in sample(denoiser, self.scheduler, x_T, condition, n):
            x_0 = step.x_0
        embeddings = self.transformer.post_process_latents(rearrange(x_0, "b d 1 1 -> b d"))
        return F.normalize(embeddings, dim=-1)
