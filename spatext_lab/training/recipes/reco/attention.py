# SPDX-License-Identifier: Apache-2.0
"""A U-Net's cross-attention, recorded as it predicts, and an auxiliary loss on it.

ReCo has no such loss: its network learns from images alone that the cells in a box should attend to
that box's tokens. A small network does not learn it in an hour; with the loss it does in minutes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spatext_lab.scene import Scene


class _Watch:
    """Cross-attention as in diffusers' plain processor; the weights of each call go to a list."""

    def __init__(self, seen: list[Tensor]) -> None:
        self.seen = seen

    def __call__(
        self, attn: Attention, hidden_states, encoder_hidden_states=None, attention_mask=None
    ) -> Tensor:
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
        value = attn.head_to_batch_dim(attn.to_v(encoder_hidden_states))
        b, n, length = len(hidden_states), hidden_states.shape[1], key.shape[1]
        mask = attn.prepare_attention_mask(attention_mask, length, b)
        weights = attn.get_attention_scores(query, key, mask)
        self.seen.append(weights.view(b, -1, n, length).mean(1))
        return attn.to_out[0](attn.batch_to_head_dim(weights @ value))


@contextmanager
def watched(unet: UNet2DConditionModel) -> Iterator[list[Float[Tensor, "b n l"]]]:
    """Records the cross-attention weights of every call of `unet` in a list, layer by layer.

    The weights are those of n cells (row by row) over l tokens, averaged over the heads, with
    gradients.
    """
    seen: list[Tensor] = []
    layers = [m for name, m in unet.named_modules() if name.endswith("attn2")]
    before = [layer.processor for layer in layers]
    for layer in layers:
        layer.set_processor(_Watch(seen))
    try:
        yield seen
    finally:
        for layer, processor in zip(layers, before, strict=True):
            layer.set_processor(processor)


def attention_loss(
    weights: Sequence[Float[Tensor, "b _ l"]], owners: Int[Tensor, "b l"], scenes: Sequence[Scene]
) -> Float[Tensor, ""]:
    """-log of the attention that the cells in a box pay to that box's tokens, mean over the cells.

    0 where every cell in a box attends to its region alone; cells in no box are free. Where boxes
    overlap, a cell belongs to the later one.

    Args:
        weights: of each layer, see `watched`.
        owners: the region of each token, see `PositionTokens.token_regions`.
        scenes: whose boxes own the cells.
    """
    owners = owners.to(weights[0].device)
    sides = [round(layer.shape[1] ** 0.5) for layer in weights]
    known = {side: _its_tokens(scenes, side, owners) for side in set(sides)}
    losses = []
    for layer, side in zip(weights, sides, strict=True):
        its = known[side]
        paid = (layer * its).sum(-1)[its.any(-1)]  # a region that did not fit has no tokens
        losses.append(-paid.clamp_min(1e-6).log())
    paid = torch.cat(losses)
    return paid.mean() if len(paid) else weights[0].sum() * 0


def _its_tokens(
    scenes: Sequence[Scene], side: int, owners: Int[Tensor, "b l"]
) -> Bool[Tensor, "b n l"]:
    """Whether a token belongs to the region that owns the cell, in a grid of side x side cells."""
    rows = [torch.from_numpy(scene.label_map(side, side)).flatten() for scene in scenes]
    labels = torch.stack(rows).to(owners.device)[:, :, None]
    return (labels == owners[:, None, :]) & (labels > 0)
