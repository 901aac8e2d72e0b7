# SPDX-License-Identifier: Apache-2.0
"""Access to the cross-attention of a U-Net of diffusers, for the time of one network call."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

# (layer, hidden states of the cells, those of the text, attention mask) -> hidden states
Processor = Callable[..., Tensor]


@contextmanager
def cross_attention(
    unet: UNet2DConditionModel, processor: Callable[[Processor], Processor], *parts: str
) -> Iterator[None]:
    """Within it, the cross-attention layers have other processors; afterwards their own again.

    One thread at a time may use the U-Net within it.

    Args:
        processor: from a layer's processor to the one in its place.
        parts: only layers whose names start with one of them, such as "up_blocks."; all by default.
    """
    named = [(name, m) for name, m in unet.named_modules() if name.endswith("attn2")]
    layers = [layer for name, layer in named if name.startswith(parts or "")]
    before = [layer.processor for layer in layers]
    try:
        for layer, own in zip(layers, before, strict=True):
            layer.set_processor(processor(own))
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.set_processor(own)


def attention_map(
    layer: Attention, cells: Float[Tensor, "b cells c"], text: Float[Tensor, "b l d"]
) -> Float[Tensor, "b heads cells l"]:
    """How much each cell attends to each token: softmax(Q K^T / sqrt(d)), 1 over the tokens."""
    query = layer.head_to_batch_dim(layer.to_q(cells))
    key = layer.head_to_batch_dim(layer.to_k(text))
    scores = layer.get_attention_scores(query, key)
    return rearrange(scores, "(b heads) cells l -> b heads cells l", heads=layer.heads)
