# SPDX-License-Identifier: Apache-2.0
"""Pocket scenes as tensors."""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from spatext_lab.datasets.pocket import pocket_item


def to_tensor(images: UInt8[np.ndarray, "b h w 3"]) -> Float[Tensor, "b 3 h w"]:
    """uint8 pictures as float tensors in [-1, 1], what the autoencoder and the judge read."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def pictures(split: str, indices: Iterable[int]) -> Float[Tensor, "b 3 64 64"]:
    """Pocket pictures in [-1, 1]; drawn anew each time, which costs a millisecond each."""
    return to_tensor(np.stack([pocket_item(split, i).image for i in indices]))
