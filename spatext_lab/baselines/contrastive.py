# SPDX-License-Identifier: Apache-2.0
"""A contrastive loss beside ReCo's: a summary of the paper, not the paper."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

TEMPERATURE = 0.07


# loss = reconstruction + contrastive, temperature 0.07; the similarity of each code of a batch with
# each, the diagonal as the target
def contrastive_loss(
    codes: Float[Tensor, "b c"], temperature: float = TEMPERATURE
) -> Float[Tensor, ""]:
    """Cross-entropy of the codes' cosine similarities with each other: pushes them apart.

    Args:
        codes: one vector per sequence: its last hidden state, which has read all of it.
    """
    unit = F.normalize(codes, dim=1)
    target = torch.arange(len(codes), device=codes.device)
    return F.cross_entropy(unit @ unit.T / temperature, target)
