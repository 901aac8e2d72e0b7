# SPDX-License-Identifier: Apache-2.0
"""A text encoder that learns to read places: more words, and room for longer sentences."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTextModel
from transformers.models.clip.modeling_clip import CLIPTextEmbeddings

from spatext_lab.reco.position_tokens import bin_ids
from spatext_lab.reco.prompts import bin_token

# (old rows (v, d), bins, generator) -> new rows (bins, d)
Init = Callable[[Tensor, int, torch.Generator], Tensor]


def normal_rows(old: Tensor, bins: int, generator: torch.Generator) -> Float[Tensor, "bins d"]:
    """Small and all at random, N(0, 0.02), as CLIP's own rows were before its training."""
    return 0.02 * torch.randn(bins, old.shape[1], generator=generator)


def mean_rows(old: Tensor, bins: int, generator: torch.Generator) -> Float[Tensor, "bins d"]:
    """Drawn from the Gaussian that the old rows have, so a new word looks like any other word.

    What transformers calls mean resizing is this Gaussian with 1e-9 of its covariance, so there
    all new words begin as nearly the same one, the average word.
    """
    cloud = torch.distributions.MultivariateNormal(old.mean(0), _covariance(old))
    noise = torch.randn(bins, old.shape[1], generator=generator)
    return cloud.mean + noise @ cloud.scale_tril.T


def smooth_rows(old: Tensor, bins: int, generator: torch.Generator) -> Float[Tensor, "bins d"]:
    """Neighbouring bins begin alike: a random smooth curve through the cloud of the old rows.

    Each number of a row is a sum of WAVES cosines of the bin's coordinate v in [0, 1],
    cos(pi j v) / j, j = 1 ... WAVES, with random weights, so that long waves, which tell left from
    right, are the loudest; its spread over the bins is the old rows'.
    """
    v = torch.linspace(0, 1, bins, dtype=torch.float64)
    j = torch.arange(1, WAVES + 1)
    waves = torch.cos(math.pi * v[:, None] * j) / j / (0.5 * (1 / j**2).sum()).sqrt()
    weights = torch.randn(WAVES, old.shape[1], generator=generator, dtype=torch.float64)
    return (old.mean(0) + old.std(0) * (waves @ weights)).to(old.dtype)


WAVES = 16  # the finest wave is an eighth of the picture long
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
    """Copies of both that know `bins` more words and read `length` tokens.

    The new words are `<bin000>` ..., their rows begin as INITS[init] says; the position table is
    grown by repeating its last row. All other weights are the old ones, to the last bit. Both
    arguments are left as they were.

    Raises ValueError for a tokenizer that has bins already, for one bin (0 for none), a length
    under the old one and an unknown init.
    """
    if known := len(bin_ids(tokenizer)):
        raise ValueError(f"the tokenizer has {known} bins already; start from a base without any")
    if bins < 0 or bins == 1:
        raise ValueError(f"bins is {bins}; give at least 2, the picture's two edges, or 0 for none")
    if init not in INITS:
        raise ValueError(f"init is {init!r}; there are {', '.join(INITS)}")
    text_encoder, tokenizer = copy.deepcopy(text_encoder), copy.deepcopy(tokenizer)
    _add_words(text_encoder, tokenizer, bins, init, seed)
    _lengthen(text_encoder, length)
    tokenizer.model_max_length = length
    return text_encoder, tokenizer


def forget(text_encoder: CLIPTextModel, tokenizer) -> CLIPTextModel:
    """A copy of a grown text encoder that knows only the words of `tokenizer`, one without bins.

    So that the same model can learn other position tokens. Raises ValueError where the tokenizer
    has bins, and where it has more words than the text encoder.
    """
    rows = text_encoder.get_input_embeddings().num_embeddings
    if known := len(bin_ids(tokenizer)):
        raise ValueError(f"the tokenizer has {known} bins; give the one from before them")
    if len(tokenizer) > rows:
        raise ValueError(f"the tokenizer has {len(tokenizer)} words, the text encoder {rows} rows")
    text_encoder = copy.deepcopy(text_encoder)
    text_encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return text_encoder


def without_bins(tokenizer):
    """The tokenizer as it was before it had bins, for `forget`; the one given is left as it was."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    bins = set(bin_ids(tokenizer))
    state["added_tokens"] = [one for one in state["added_tokens"] if one["id"] not in bins]
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        (Path(folder) / "tokenizer.json").write_text(json.dumps(state))
        return type(tokenizer).from_pretrained(folder)


def _add_words(text_encoder: CLIPTextModel, tokenizer, bins: int, init: str, seed: int) -> None:
    old = text_encoder.get_input_embeddings().weight.detach().clone()
    first = len(tokenizer)
    tokenizer.add_tokens([bin_token(number) for number in range(bins)], special_tokens=True)
    # mean_resizing would draw from torch's global generator; the rows are filled below
    text_encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if bins:
        rows = INITS[init](old, bins, torch.Generator().manual_seed(seed))
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
    """Of the rows, with a little more on the diagonal, so that it has a root."""
    scale = rows.var(0).mean()
    return torch.cov(rows.T) + 1e-5 * scale * torch.eye(rows.shape[1])
