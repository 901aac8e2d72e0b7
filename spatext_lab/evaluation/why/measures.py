# SPDX-License-Identifier: Apache-2.0
"""Measurements inside a model that say why it ignores its layout: embeddings, states, weights."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spatext_lab.diffusion import UNetDenoiser, add_noise
from spatext_lab.evaluation.why.losses import Pipeline, Shown
from spatext_lab.images import encode, to_tensor
from spatext_lab.reco.pipeline import EMPTY, ReCoPipeline
from spatext_lab.reco.text_encoder import WAVES
from spatext_lab.scene import Region, Scene

# Texts that differ in one word, a colour or a kind; and boxes that differ in x, in y.
WORDS = (("a red ball", "a blue ball"), ("a red ball", "a red tree"))
HERE = (0.1, 0.1, 0.35, 0.35)
PLACES = ((0.65, 0.1, 0.9, 0.35), (0.1, 0.65, 0.35, 0.9))
IMAGES = 16  # for the regression of positions
RIDGE = 1e-3


@torch.no_grad()
def inner_measures(pipeline: Pipeline, shown: Sequence[Shown]) -> dict[str, float]:
    """What each part of the model makes of a layout, as numbers.

    Args:
        shown: held-out images, for the U-Net's features.

    Returns:
        For both: words, how far one word moves what the U-Net is conditioned on, the least of some.
        For SpaText: map_weights, the first convolution's weights on the map relative to those on
        x_t. For ReCo: boxes, how far another box moves the hidden states, the least of two;
        neighbours and start, see `table_measures`; position, see `position_r2`.
    """
    if not isinstance(pipeline, ReCoPipeline):
        moved = [_distance(*pipeline.embed(list(pair)).unsqueeze(1)) for pair in WORDS]
        return {"words": min(moved), "map_weights": map_weights(pipeline)}
    scene = {text: Scene("", [Region(text, box=HERE)]) for pair in WORDS for text in pair}
    words = [states_distance(pipeline, scene[a], scene[b]) for a, b in WORDS]
    first = WORDS[0][0]
    boxes = [
        states_distance(pipeline, scene[first], Scene("", [Region(first, box=box)]))
        for box in PLACES
    ]
    found = {"words": min(words), "boxes": min(boxes)}
    table = pipeline.text_encoder.get_input_embeddings().weight
    found |= table_measures(table[pipeline.position_tokens.bin_ids].float().cpu())
    return found | {"position": position_r2(pipeline, shown[:IMAGES])}


def states_distance(pipeline: ReCoPipeline, one: Scene, other: Scene) -> float:
    """How far two scenes with one region each are apart in the text encoder's hidden states.

    The largest distance at a word of the region's text or at its end token, relative to the length
    of the state; the position tokens, which differ in any case, are left out.
    """
    tokens = pipeline.position_tokens
    ids = tokens.encode([one, other])
    states = pipeline.encode(ids.to(pipeline.device)).float().cpu()
    special = torch.tensor([*tokens.bin_ids, tokens.tokenizer.bos_token_id])
    at = (tokens.token_regions(ids) == 1) & ~torch.isin(ids, special)
    both = at[0] & at[1]
    return _distance(states[0, both], states[1, both])


def _distance(a: Float[Tensor, "n d"], b: Float[Tensor, "n d"]) -> float:
    """The largest distance of two vectors, relative to their mean length."""
    length = (a.norm(dim=-1) + b.norm(dim=-1)) / 2
    return float(((a - b).norm(dim=-1) / length.clamp(min=1e-12)).max())


def table_measures(rows: Float[Tensor, "bins d"]) -> dict[str, float]:
    """Whether the position tokens' embeddings look trained.

    Returns:
        neighbours: the mean squared distance of neighbouring bins, relative to that of any two
        bins: 1 for random embeddings, small where training has put near bins near each other.
        start: the fraction of the embeddings' spread that lies outside of the smooth curves that
        `smooth_rows` begins with: 0 before training. Absent for too few bins to tell.
    """
    rows = rows.double()
    centred = rows - rows.mean(0)
    any_two = 2 * centred.square().sum(1).mean()
    neighbours = (rows[1:] - rows[:-1]).square().sum(1).mean() / any_two.clamp(min=1e-12)
    found = {"neighbours": float(neighbours)}
    if len(rows) > 2 * WAVES:
        v = torch.linspace(0, 1, len(rows), dtype=torch.float64)
        waves = torch.cos(math.pi * v[:, None] * torch.arange(WAVES + 1))
        basis, _ = torch.linalg.qr(waves)
        rest = rows - basis @ (basis.T @ rows)
        found["start"] = float(rest.norm() / centred.norm().clamp(min=1e-12))
    return found


def map_weights(pipeline: Pipeline) -> float:
    """Root mean square of the first convolution's weights on the map, relative to the others."""
    weight, width = pipeline.unet.conv_in.weight.float(), pipeline.clip.embedding_dim
    rms = [part.square().mean().sqrt() for part in (weight[:, -width:], weight[:, :-width])]
    return float(rms[0] / rms[1].clamp(min=1e-12))


@torch.no_grad()
def position_r2(pipeline: ReCoPipeline, shown: Sequence[Shown]) -> float:
    """How well a cell's column and row can be read from the U-Net's features by linear regression.

    The features are what each cross-attention layer reads, without any prompt and in nearly pure
    noise, so they know of positions only what the U-Net itself does. The regression is fitted on
    half of the images and measured on the other half.

    Returns:
        R^2 of the worse of both axes in the best layer.
    """
    layers = [m for name, m in pipeline.unet.named_modules() if name.endswith("attn2")]
    return max(
        min(_regression(features, axis) for axis in (0, 1))
        for features in _features(pipeline, layers, shown)
    )


def _features(
    pipeline: ReCoPipeline, layers: list[nn.Module], shown: Sequence[Shown]
) -> list[Float[Tensor, "b cells c"]]:
    seen: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].float().cpu()))
        for layer in layers
    ]
    try:
        images = to_tensor(each.image for each in shown).to(pipeline.device)
        x_0 = encode(pipeline.vae, images.to(pipeline.vae.dtype)).float()
        noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0)).to(x_0)
        steps = pipeline.scheduler.config.num_train_timesteps
        t = torch.full((len(x_0),), steps - 1 - steps // 20, device=x_0.device)
        x_t = add_noise(x_0, noise, t, pipeline.scheduler.alphas_cumprod.to(x_0.device))
        UNetDenoiser(pipeline.unet)(x_t, t, pipeline.condition([EMPTY] * len(x_0)))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _regression(features: Float[Tensor, "b cells c"], axis: int) -> float:
    """R^2 of ridge regression from features to the cells' row (axis 0) or column (axis 1)."""
    side = math.isqrt(features.shape[1])
    wanted = torch.arange(side * side) // side if axis == 0 else torch.arange(side * side) % side
    half = len(features) // 2
    x = [part.flatten(0, 1).double() for part in (features[:half], features[half:])]
    y = [wanted.repeat(len(part) // len(wanted)).double() for part in x]
    centre, middle = x[0].mean(0), y[0].mean()
    a = x[0] - centre
    gram = a.T @ a
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    line = torch.linalg.solve(gram, a.T @ (y[0] - middle))
    rest = y[1] - middle - (x[1] - centre) @ line
    return float(1 - rest.square().mean() / y[1].var(correction=0))
