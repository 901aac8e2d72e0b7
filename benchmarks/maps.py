# SPDX-License-Identifier: Apache-2.0
"""The spatio-textual map at 512 px, against one that has an embedding at every pixel first."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timer import Case, Setup
from spatext_lab.scene import Region, Scene
from spatext_lab.spatext.representation import coverage, inference_map, paint

BOXES = ((0.0, 0.0, 1.0, 0.5), (0.125, 0.25, 0.5, 0.875), (0.625, 0.5, 0.9375, 0.9375))


def cases(setup: Setup) -> Iterator[Case]:
    """The map of a scene (sampling), and of an image's segments (training)."""
    pixels, cells, width = (64, 8, 16) if setup.quick else (512, 64, 768)
    words = f"map of 3 regions, {pixels} px, {width} channels"
    embeddings = torch.randn(3, width, generator=torch.Generator().manual_seed(0))
    scene = Scene("", [Region(f"region {k}", box=box) for k, box in enumerate(BOXES)])
    size = (cells, cells)
    ours = partial(inference_map, scene, lambda texts: embeddings, size)
    peer = partial(of_scene, scene, embeddings, size, pixels)
    yield Case(f"{words}, of a scene / the naive map", ours, peer)
    masks = discs(pixels)
    ours = partial(of_segments, masks, embeddings, size)
    peer = partial(naive, masks, embeddings, size)
    yield Case(f"{words}, of segments / the naive map", ours, peer)


def of_segments(masks: Tensor, embeddings: Tensor, size: tuple[int, int]) -> Tensor:
    """The map as training makes it."""
    return paint(embeddings[None], coverage(masks, size)[None])[0]


def naive(masks: Tensor, embeddings: Tensor, size: tuple[int, int]) -> Tensor:
    """The map as it is defined: an embedding in every pixel of a segment, then area averages."""
    whole = embeddings.new_zeros(embeddings.shape[1], *masks.shape[1:])
    for mask, embedding in zip(masks, embeddings, strict=True):
        whole[:, mask] = embedding[:, None]
    return F.interpolate(whole[None], size, mode="area")[0]


def of_scene(scene: Scene, embeddings: Tensor, size: tuple[int, int], pixels: int) -> Tensor:
    """The naive map of a scene, whose masks are made at the image's resolution."""
    return naive(torch.from_numpy(scene.visible_masks(pixels, pixels)), embeddings, size)


def discs(pixels: int) -> Tensor:
    """Three disjoint segments with curved outlines: two rings of a target, and what is outside."""
    y, x = np.mgrid[:pixels, :pixels] / pixels - 0.5
    radius = np.hypot(x, y)
    return torch.from_numpy(
        np.stack([radius < 0.2, (radius >= 0.2) & (radius < 0.4), radius > 0.4])
    )
