# SPDX-License-Identifier: Apache-2.0
"""Growing a text encoder: position tokens, and a longer context."""

import copy
import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTextModel
from transformers.models.clip.modeling_clip import CLIPTextEmbeddings

from spatext_lab.reco.position_tokens import bin_ids
from spatext_lab.reco.prompts import bin_token

# (old embeddings (v, d), bins, generator) -> new embeddings (bins, d)
Init = Callable[[Tensor, int, torch.Generator], Tensor]


def normal_rows(old: Tensor, bins: int, generator: torch.Generator) -> Float[Tensor, "bins d"]:
    """N(0, 0.02), as CLIP initializes its own embeddings."""
    return 0.02 * torch.randn(bins, old.shape[1], generator=generator)


def mean_rows(old: Tensor, bins: int, generator: torch.Generator) -> Float[Tensor, "bins d"]:
    """Sampled from the Gaussian of the old embeddings, so that a new embedding resembles any other.

    Mean resizing of transformers is this Gaussian with 1e-9 of its covariance: there all new tokens
    begin as nearly the same one, the average token.
    """
    cloud = torch.distributions.MultivariateNormal(old.mean(0), _covariance(old))
    noise = torch.randn(bins, old.shape[1], generator=generator)
    return cloud.mean + noise @ cloud.scale_tril.T


def smooth_rows(old: Tensor, bins: int, generator: torch.Generator) -> Float[Tensor, "bins d"]:
    """Neighbouring bins begin alike: a random smooth curve through the old embeddings.

    Each dimension is a sum of WAVES cosines of the bin's coordinate v in [0, 1], cos(pi j v) / j,
    j = 1 ... WAVES, with random weights, so that long waves, which separate left from right,
    dominate; its deviation over the bins is that of the old embeddings.
    """
    v = torch.linspace(0, 1, bins, dtype=torch.float64)
    j = torch.arange(1, WAVES + 1)
    waves = torch.cos(math.pi * v[:, None] * j) / j / (0.5 * (1 / j**2).sum()).sqrt()
    weights = torch.randn(WAVES, old.shape[1], generator=generator, dtype=torch.float64)
    return (old.mean(0) + old.std(0) * (waves @ weights)).to(old.dtype)


WAVES = 16  # the shortest wave is an eighth of the image long
INITS: dict[str, Init] = {"mean": mean_rows, "normal": normal_rows, "smooth": smooth_rows}


# ReCo, arXiv 2211.15518, section 3.1; its released code repeats the last row of the position table
def grow(
    text_encoder: CLIPTextModel,
    tokenizer,
    bins: int,
    length: int,
    init: str = "smooth",
    seed: int = 0,
) -> tuple[CLIPTextModel, object]:
    """Adds position tokens and extends the context length; returns copies of both.

    The new tokens are `<bin000>` ...; the position table is extended by repeating its last row. All
    other weights are unchanged, to the last bit.

    Args:
        bins: number of position tokens, at least 2; 0 for none.
        length: new context length in tokens.
        init: how the new embeddings begin, a key of `INITS`.
        seed: of the random initialization.

    Raises:
        ValueError: for a tokenizer that has bins already, for one bin, for a length under the old
            one and for an unknown init.
    """
    if known := len(bin_ids(tokenizer)):
        raise ValueError(f"the tokenizer has {known} bins already; start from a base without")
    if bins < 0 or bins == 1:
        raise ValueError(f"bins is {bins}; pass at least 2, the image's two edges, or 0 for none")
    if init not in INITS:
        raise ValueError(f"init is {init!r}; there are {', '.join(INITS)}")
    text_encoder, tokenizer = copy.deepcopy(text_encoder), copy.deepcopy(tokenizer)
    _add_words(text_encoder, tokenizer, bins, init, seed)
    _lengthen(text_encoder, length)
    tokenizer.model_max_length = length
    return text_encoder, tokenizer


def _add_words(text_encoder: CLIPTextModel, tokenizer, bins: int, init: str, seed: int) -> None:
    old = text_encoder.get_input_embeddings().weight.detach().clone()
    first = len(tokenizer)
    tokenizer.add_tokens([bin_token(number) for number in range(bins)], special_tokens=True)
    # mean_resizing would use torch's global generator; the rows are filled below
    text_encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if bins:
        rows = INITS[init](old.cpu(), bins, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            text_encoder.get_input_embeddings().weight[first:] = rows


def _lengthen(text_encoder: CLIPTextModel, length: int) -> None:
    # by class: its place in the model is another one before and after transformers 5.6
    (embeddings,) = (m for m in text_encoder.modules() if isinstance(m, CLIPTextEmbeddings))
    old = embeddings.position_embedding.weight.detach()
    if length < len(old):
        raise ValueError(f"length is {length}; the encoder reads {len(old)} tokens already")
    rows = torch.cat([old, old[-1:].expand(length - len(old), -1)])
    embeddings.position_embedding = nn.Embedding.from_pretrained(rows.clone(), freeze=False)
    embeddings.position_ids = torch.arange(length, device=old.device)[None]
    text_encoder.config.max_position_embeddings = length


def _covariance(rows: Tensor) -> Float[Tensor, "d d"]:
    """The covariance of rows, slightly regularized on the diagonal for its Cholesky factor."""
    scale = rows.var(0).mean()
    return torch.cov(rows.T) + 1e-5 * scale * torch.eye(rows.shape[1])
