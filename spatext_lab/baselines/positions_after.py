# SPDX-License-Identifier: Apache-2.0
"""Positions after the text encoder: a summary of ReCo, not the paper.

The texts pass through the text transformer without the position tokens, and the position tokens'
embeddings are put between their hidden states. A sequence ends with a text's end token or with
padding, so `PocketUNet`'s vector of the caption, which is the last state, has read all texts and no
position.
"""

import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import CLIPTextModel

from spatext_lab.reco.pipeline import ReCoPipeline


class PositionsAfterPipeline(ReCoPipeline):
    """ReCo with position embeddings inserted after the text encoder instead of before it."""

    def encode(self, ids: Int[Tensor, "n l"]) -> Float[Tensor, "n l c"]:
        """Hidden states of token sequences, with gradients."""
        bins = torch.tensor(self.position_tokens.bin_ids, device=ids.device)
        return states_then_positions(self.text_encoder, ids, torch.isin(ids, bins))


def states_then_positions(
    text_encoder: CLIPTextModel, ids: Int[Tensor, "b l"], is_bin: Bool[Tensor, "b l"]
) -> Float[Tensor, "b l c"]:
    """Hidden states of the texts alone, with the position tokens' embeddings between them.

    A stable sort brings the text tokens to the front; they pass through the transformer and return
    to their indices.

    Args:
        is_bin: True for position tokens.
    """
    order = is_bin.long().argsort(dim=1, stable=True)
    states = text_encoder(ids.gather(1, order)).last_hidden_state
    back = order.argsort(dim=1)
    states = states.gather(1, repeat(back, "b l -> b l c", c=states.shape[-1]))
    embeddings = text_encoder.get_input_embeddings()(ids)
    return torch.where(is_bin[..., None], embeddings, states)
