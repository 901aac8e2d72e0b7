# SPDX-License-Identifier: Apache-2.0
"""The spatio-textual map: a CLIP embedding in every cell that a region covers, zeros elsewhere.

In training the embeddings are CLIP image embeddings of segments, at inference they come from texts.
The map is made at the resolution of the network's latents; masks are brought there once, as the
fraction of each cell that they cover, so nothing is ever image resolution times embedding width.
"""

import math
from collections.abc import Callable, Sequence
from numbers import Real

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from spatext_lab.scene import Scene
from spatext_lab.scene.notes import warn

# region texts -> their embeddings (k, d)
Embed = Callable[[list[str]], Float[Tensor, "k d"]]
OVERSAMPLE = 4  # a scene's masks are sampled on a grid this many times finer than the map's cells


def coverage(masks: Bool[Tensor, "*b H W"], size: tuple[int, int]) -> Float[Tensor, "*b h w"]:
    """The fraction of each map cell that a mask covers, in [0, 1]: area averaging."""
    flat = masks.float().reshape(-1, 1, *masks.shape[-2:])
    return F.adaptive_avg_pool2d(flat, size).view(*masks.shape[:-2], *size)


# SpaText, arXiv 2211.14305, section 3.1: ST[j, k] = the segment's embedding in it, else 0
def paint(
    embeddings: Float[Tensor, "b k d"], covered: Float[Tensor, "b k h w"]
) -> Float[Tensor, "b d h w"]:
    """The map of k disjoint segments: each cell holds the sum of embedding times coverage.

    A cell that lies wholly in segment i holds embeddings[:, i]; one half covered holds half of it.
    """
    return einsum(embeddings, covered, "b k d, b k h w -> b d h w")


# SpaText, arXiv 2211.14305, section 3.1 (training): K random disjoint segments, CLIP_img each
def training_map(
    embeddings: Float[Tensor, "b k d"],
    covered: Float[Tensor, "b k h w"],
    count: tuple[int, int],
    min_area: float,
    generator: torch.Generator,
    show_work: bool = False,
) -> Float[Tensor, "b d h w"] | dict[str, Tensor]:
    """The maps of b images, of a random choice of each image's segments (`choose_segments`).

    Args:
        embeddings: CLIP image embeddings of up to k segments; unused rows are zero.
        covered: their coverages, see `coverage`; unused rows are zero.
        count: least and most segments that are chosen, 1 and 3 in the paper.
        min_area: smaller segments are never chosen; a fraction of the image, 0.05 in the paper.
        generator: source of the random choice, on the CPU.
        show_work: return every intermediate by name: chosen (b, k), painted (b, k, d), st_map.
    """
    chosen = choose_segments(covered, count, min_area, generator)
    painted = embeddings * chosen.to(embeddings)[..., None]
    st_map = paint(painted, covered)
    return {"chosen": chosen, "painted": painted, "st_map": st_map} if show_work else st_map


def choose_segments(
    covered: Float[Tensor, "b k h w"],
    count: tuple[int, int],
    min_area: float,
    generator: torch.Generator,
) -> Bool[Tensor, "b k"]:
    """Which of each image's k segments are painted: True for the chosen ones.

    Args:
        covered: the segments' coverages, see `coverage`; unused rows are zero.
        count: least and most segments that are chosen; their number is uniform.
        min_area: segments that cover a smaller fraction of the image are never chosen.
        generator: source of the random choice, on the CPU.
    """
    b, k = covered.shape[:2]
    area = covered.mean((-2, -1)).cpu()
    small = (area < min_area) | (area == 0)
    order = torch.rand(b, k, generator=generator).masked_fill(small, 2.0)
    wanted = torch.randint(count[0], count[1] + 1, (b, 1), generator=generator)
    rank = order.argsort(1).argsort(1)
    return ((rank < wanted) & (order < 2)).to(covered.device)


# SpaText, arXiv 2211.14305, section 3.1 (inference): ST[i, j] = P(CLIP_txt(text at [i, j]))
def inference_map(
    scene: Scene, embed: Embed, size: tuple[int, int], show_work: bool = False
) -> Float[Tensor, "d h w"] | dict[str, Tensor]:
    """The spatio-textual map of one scene.

    Args:
        embed: from the k region texts to their embeddings (k, d): P(CLIP_txt(text)).
        size: height and width of the map.
        show_work: return every intermediate by name: embeddings (k, d), coverage (k, h, w), st_map.

    Raises:
        ValueError: for a scene without regions, whose map would have no width.
    """
    if not scene.regions:
        raise ValueError("regions is empty; a spatio-textual map needs at least one region")
    h, w = size
    masks = torch.from_numpy(scene.visible_masks(h * OVERSAMPLE, w * OVERSAMPLE))
    embeddings = embed([region.text for region in scene.regions])
    covered = coverage(masks, size).to(embeddings)
    st_map = paint(embeddings[None], covered[None])[0]
    work = {"embeddings": embeddings, "coverage": covered, "st_map": st_map}
    return work if show_work else st_map


def region_maps(
    embeddings: Float[Tensor, "k d"], covered: Float[Tensor, "k h w"]
) -> Float[Tensor, "k d h w"]:
    """The map of each of k regions alone; they sum to the whole map."""
    return embeddings[..., None, None] * covered[:, None]


def region_scales(scenes: Sequence[Scene], scale: float | Sequence[float]) -> list[float]:
    """The guidance scales beside the caption's: the map's, or one for each region.

    Warns of scenes without regions, on which the map's scale has no effect.

    Raises:
        ValueError: for anything but a finite number >= 0 or a list with one for each region, and
            for a list where the scenes do not have equally many regions, at least one.
    """
    counts, each = {len(scene.regions) for scene in scenes}, isinstance(scale, list | tuple)
    scales = list(scale) if each else [scale]
    for k, value in enumerate(scales):
        if not (isinstance(value, Real) and 0 <= value < math.inf):
            name = f"region_guidance_scale[{k}]" if each else "region_guidance_scale"
            raise ValueError(
                f"{name} is {value!r:.80}; pass a finite number >= 0, or a list of one per region"
            )
    if each and counts != {len(scales)}:
        raise ValueError(
            f"region_guidance_scale holds {len(scales)} numbers and the scenes have "
            f"{sorted(counts)} regions; pass one number for each region, and scenes with equally "
            "many, at least one"
        )
    if 0 in counts:
        warn("region_guidance_scale has no effect on a scene without regions", stacklevel=4)
    return scales
