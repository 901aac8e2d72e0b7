# SPDX-License-Identifier: Apache-2.0
"""The spatio-textual map: a CLIP vector at every place, zeros where nothing is asked for.

In training the vectors are CLIP image vectors of segments, at inference they come from texts.
The map is made at the resolution of the network's latents; masks are brought there once, as the
share of each cell that they cover, so nothing is ever picture resolution times embedding width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from spatext_lab.scene import Scene

TextToVectors = Callable[[list[str]], Float[Tensor, "k d"]]
OVERSAMPLE = 4  # a scene's masks are read on a grid this many times finer than the map's cells


def coverage(masks: Bool[Tensor, "*b H W"], size: tuple[int, int]) -> Float[Tensor, "*b h w"]:
    """The share of each map cell that a mask covers, in [0, 1]: area averaging."""
    flat = masks.float().reshape(-1, 1, *masks.shape[-2:])
    return F.adaptive_avg_pool2d(flat, size).view(*masks.shape[:-2], *size)


# SpaText, arXiv 2211.14305, section 3.1: ST[j, k] = the segment's vector in the segment, else 0
def paint(
    vectors: Float[Tensor, "b k d"], cover: Float[Tensor, "b k h w"]
) -> Float[Tensor, "b d h w"]:
    """The map of k disjoint segments: each cell holds the covered share of each vector.

    A cell that lies wholly in segment i holds vectors[:, i]; one that is half in holds half.
    """
    return einsum(vectors, cover, "b k d, b k h w -> b d h w")


# SpaText, arXiv 2211.14305, section 3.1 (training): K random disjoint segments, CLIP image vectors
def training_map(
    vectors: Float[Tensor, "b k d"],
    cover: Float[Tensor, "b k h w"],
    count: tuple[int, int],
    min_area: float,
    generator: torch.Generator,
) -> Float[Tensor, "b d h w"]:
    """Paints a random choice of each picture's segments.

    vectors, cover: CLIP image vectors and coverages of up to k segments; unused rows are zero.
    count: the least and the most segments that are chosen (the paper: 1 to 3), drawn evenly.
    min_area: segments that cover less of the picture (the paper: 0.05) are never chosen.
    """
    b, k = cover.shape[:2]
    area = cover.mean((-2, -1)).cpu()
    order = torch.rand(b, k, generator=generator).masked_fill(area < min_area, 2.0)
    wanted = torch.randint(count[0], count[1] + 1, (b, 1), generator=generator)
    rank = order.argsort(1).argsort(1)
    chosen = ((rank < wanted) & (order < 2)).to(vectors)
    return paint(vectors * chosen[..., None], cover)


# SpaText, arXiv 2211.14305, section 3.1 (inference): ST[i, j] = P(CLIP_txt(text at [i, j]))
def inference_map(
    scene: Scene, text_to_vectors: TextToVectors, size: tuple[int, int]
) -> Float[Tensor, "d h w"]:
    """The map of a scene, for one picture.

    text_to_vectors: the region texts' vectors; CLIP's text vectors, or a prior of them.
    Raises ValueError for a scene without regions: its map would not say how wide it is.
    """
    if not scene.regions:
        raise ValueError("regions is empty; a spatio-textual map needs at least one region")
    h, w = size
    masks = torch.from_numpy(scene.visible_masks(h * OVERSAMPLE, w * OVERSAMPLE))
    vectors = text_to_vectors([region.text for region in scene.regions])
    return paint(vectors[None], coverage(masks, size)[None].to(vectors))[0]
