# SPDX-License-Identifier: Apache-2.0
"""A contrastive loss beside ReCo's: a summary of the paper, not the paper."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from spatext_lab.diffusion import Condition

TEMPERATURE = 0.07


def last_states(condition: Condition) -> Float[Tensor, "b c"]:
    """The hidden state of each sequence's last content token, which has attended to all others."""
    if condition.text_mask is None:
        return condition.text[:, -1]
    last = condition.text_mask.sum(1) - 1
    return condition.text[torch.arange(len(last), device=last.device), last]


# loss = reconstruction + contrastive, temperature 0.07; the similarity of each code of a batch with
# each, the diagonal as the target
def contrastive_loss(
    codes: Float[Tensor, "b c"], temperature: float = TEMPERATURE
) -> Float[Tensor, ""]:
    """Cross-entropy of the codes' cosine similarities with each other: pushes them apart.

    Args:
        codes: one vector per sequence, see `last_states`.
    """
    unit = F.normalize(codes, dim=1)
    target = torch.arange(len(codes), device=codes.device)
    return F.cross_entropy(unit @ unit.T / temperature, target)
