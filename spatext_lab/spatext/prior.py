# SPDX-License-Identifier: Apache-2.0
"""The prior: from CLIP's vector of a text to a vector that a picture of it could have.

SpaText learns from image vectors and is asked with text vectors, and the two lie apart (the
modality gap). A prior maps one to the other. Two are here: a diffusion prior as in the paper, and
the best straight line, the thing to beat.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, PriorTransformer
from einops import rearrange
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from spatext_lab.diffusion import Condition, guided, initial_noise, sample

LINEAR_NAME = "linear.safetensors"


class LinearPrior:
    """image = text @ weight + bias, brought to length 1."""

    def __init__(self, weight: Float[Tensor, "d d"], bias: Float[Tensor, "d"]) -> None:
        self.weight, self.bias = weight, bias

    # Ridge regression, closed form: W = (X^T X + ridge n I)^-1 X^T Y on centred X and Y
    @classmethod
    def fit(
        cls, text: Float[Tensor, "n d"], image: Float[Tensor, "n d"], ridge: float = 1e-4
    ) -> "LinearPrior":
        """The line with the least squared error over pairs of vectors, its slope held small."""
        x, y = text.double() - text.double().mean(0), image.double() - image.double().mean(0)
        gram = x.T @ x + ridge * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
        weight = torch.linalg.solve(gram, x.T @ y)
        bias = image.double().mean(0) - text.double().mean(0) @ weight
        return cls(weight.float().contiguous(), bias.float())

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "LinearPrior":
        """Reads what `save_pretrained` wrote."""
        return cls(**load_file(Path(folder) / LINEAR_NAME))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes one safetensors file into a prior's folder."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file({"weight": self.weight, "bias": self.bias}, Path(folder) / LINEAR_NAME)

    def to(self, device: torch.device | str) -> "LinearPrior":
        """The same line, its numbers moved."""
        self.weight, self.bias = self.weight.to(device), self.bias.to(device)
        return self

    def __call__(self, text: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """One unit vector for each text's vector."""
        return F.normalize(text @ self.weight + self.bias, dim=-1)


# DALL-E 2, arXiv 2204.06125, section 2.2: a diffusion model over CLIP's image vectors,
# conditioned on the text. A vector is a picture of one pixel with d channels, so noise schedule,
# loss, guidance and sampling loop are the ones of pictures.
class PriorDenoiser:
    """A `PriorTransformer` as a `Denoiser` of pictures (b, d, 1, 1).

    It is given the text's vector as `condition.text` (b, 1, d); the null condition is zeros.
    """

    def __init__(self, transformer: PriorTransformer) -> None:
        self.transformer = transformer

    def __call__(
        self, x_t: Float[Tensor, "b d 1 1"], t: Int[Tensor, "b"], condition: Condition
    ) -> Float[Tensor, "b d 1 1"]:
        """The prediction for x_t, in the scheduler's prediction type."""
        flat, text = rearrange(x_t, "b d 1 1 -> b d"), rearrange(condition.text, "b 1 d -> b d")
        out = self.transformer(flat, t, text * text.shape[1] ** 0.5).predicted_image_embedding
        return rearrange(out, "b d -> b d 1 1")


def text_condition(text: Float[Tensor, "b d"]) -> Condition:
    """Vectors of texts as what one pass of the prior is told."""
    states = rearrange(text, "b d -> b 1 d")
    return Condition(states, torch.zeros_like(states))


class DiffusionPrior:
    """Draws an image vector for a text vector; the same text and seed give the same vector."""

    def __init__(
        self,
        transformer: PriorTransformer,
        scheduler: DDIMScheduler,
        linear: LinearPrior | None = None,
        steps: int = 5,
        guidance_scale: float = 1.0,
    ) -> None:
        """linear: the best line through the same pairs of vectors, saved in the same folder."""
        self.transformer, self.scheduler = transformer.eval(), scheduler
        self.linear, self.steps, self.guidance_scale = linear, steps, guidance_scale

    def half(self) -> "DiffusionPrior":
        """The same prior, its weights in half precision."""
        self.transformer.half()
        return self

    def float(self) -> "DiffusionPrior":
        """The same prior, its weights in single precision."""
        self.transformer.float()
        return self

    def to(self, device: torch.device | str) -> "DiffusionPrior":
        """The same prior, its weights moved."""
        self.transformer.to(device)
        return self

    @property
    def width(self) -> int:
        """Dimension of the vectors."""
        return self.transformer.config.embedding_dim

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "DiffusionPrior":
        """Reads a diffusers folder of a `PriorTransformer` with a `scheduler` folder in it."""
        transformer = PriorTransformer.from_pretrained(folder, torch_dtype=torch.float32)
        scheduler = DDIMScheduler.from_pretrained(Path(folder) / "scheduler")
        has_line = (Path(folder) / LINEAR_NAME).is_file()
        return cls(
            transformer, scheduler, LinearPrior.from_pretrained(folder) if has_line else None
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes that folder."""
        self.transformer.register_to_config(_name_or_path="")  # a path of this machine
        self.transformer.save_pretrained(folder)
        self.scheduler.save_pretrained(Path(folder) / "scheduler")
        if self.linear is not None:
            self.linear.save_pretrained(folder)

    def normalise(self, image: Float[Tensor, "b d"]) -> Float[Tensor, "b d 1 1"]:
        """Image vectors with mean 0 and variance 1 in every number, what the diffusion draws."""
        mean, std = self.transformer.clip_mean, self.transformer.clip_std
        return rearrange((image - mean) / std, "b d -> b d 1 1")

    @torch.no_grad()
    def __call__(self, text: Float[Tensor, "b d"], seed: int = 0) -> Float[Tensor, "b d"]:
        """One unit vector for each text's vector, drawn from the noise of `seed`."""
        noise = initial_noise([seed] * len(text), (self.width, 1, 1)).to(text)
        denoiser = guided(PriorDenoiser(self.transformer), self.guidance_scale)
        for step in sample(denoiser, self.scheduler, noise, text_condition(text), self.steps):
            x_0 = step.x_0
        vectors = self.transformer.post_process_latents(rearrange(x_0, "b d 1 1 -> b d"))
        return F.normalize(vectors, dim=-1)
