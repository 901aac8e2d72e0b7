# SPDX-License-Identifier: Apache-2.0
"""The spatio-textual map: a CLIP vector at every place, zeros where nothing is asked for.

In training the vectors are CLIP image vectors of segments, at inference they come from texts.
The map is made at the resolution of the network's latents; masks are brought there once, as the
share of each cell that they cover, so nothing is ever picture resolution times embedding width.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import einsum, repeat
from jaxtyping import Bool, Float
from torch import Tensor

from spatext_lab.clip import Clip
from spatext_lab.scene import Scene

KINDS = ("vectors", "binary", "caption", "similarity")
TextToVectors = Callable[[list[str]], Float[Tensor, "k d"]]
# (vectors (b, k, d), cover (b, k, h, w), captions) -> map (b, channels, h, w)
Painter = Callable[[Tensor, Tensor, Sequence[str]], Tensor]
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
    show_work: bool = False,
) -> Float[Tensor, "b d h w"] | dict[str, Tensor]:
    """Paints a random choice of each picture's segments, see `choose_segments`.

    vectors, cover: CLIP image vectors and coverages of up to k segments; unused rows are zero.
    show_work: give every intermediate by name: chosen (b, k), painted (b, k, d), st_map.
    """
    chosen = choose_segments(cover, count, min_area, generator)
    painted = vectors * chosen.to(vectors)[..., None]
    st_map = paint(painted, cover)
    return {"chosen": chosen, "painted": painted, "st_map": st_map} if show_work else st_map


def choose_segments(
    cover: Float[Tensor, "b k h w"],
    count: tuple[int, int],
    min_area: float,
    generator: torch.Generator,
) -> Bool[Tensor, "b k"]:
    """Which of each picture's segments are painted.

    count: the least and the most segments that are chosen (the paper: 1 to 3), drawn evenly.
    min_area: segments that cover less of the picture (the paper: 0.05) are never chosen.
    """
    b, k = cover.shape[:2]
    area = cover.mean((-2, -1)).cpu()
    order = torch.rand(b, k, generator=generator).masked_fill(area < min_area, 2.0)
    wanted = torch.randint(count[0], count[1] + 1, (b, 1), generator=generator)
    rank = order.argsort(1).argsort(1)
    return ((rank < wanted) & (order < 2)).to(cover.device)


# SpaText, arXiv 2211.14305, section 3.1 (inference): ST[i, j] = P(CLIP_txt(text at [i, j]))
def inference_map(
    scene: Scene,
    text_to_vectors: TextToVectors,
    size: tuple[int, int],
    painter: Painter = lambda vectors, cover, captions: paint(vectors, cover),
    show_work: bool = False,
) -> Float[Tensor, "d h w"] | dict[str, Tensor]:
    """The map of a scene, for one picture.

    text_to_vectors: the region texts' vectors; CLIP's text vectors, or a prior of them.
    painter: `Representation.paint` of another kind of map.
    show_work: give every intermediate by name: vectors (k, d), cover (k, h, w), st_map.
    Raises ValueError for a scene without regions: its map would not say how wide it is.
    """
    if not scene.regions:
        raise ValueError("regions is empty; a spatio-textual map needs at least one region")
    vectors, cover = _vectors_and_cover(scene, text_to_vectors, size)
    st_map = painter(vectors[None], cover[None], [scene.caption])[0]
    return {"vectors": vectors, "cover": cover, "st_map": st_map} if show_work else st_map


def region_maps(
    scene: Scene, text_to_vectors: TextToVectors, size: tuple[int, int], painter: Painter
) -> Float[Tensor, "k d h w"]:
    """The map of each region alone, as far as later regions leave it to be seen."""
    vectors, cover = _vectors_and_cover(scene, text_to_vectors, size)
    k = len(vectors)
    alone = torch.eye(k).to(cover)[..., None, None] * cover
    return painter(repeat(vectors, "k d -> n k d", n=k), alone, [scene.caption] * k)


def _vectors_and_cover(
    scene: Scene, text_to_vectors: TextToVectors, size: tuple[int, int]
) -> tuple[Float[Tensor, "k d"], Float[Tensor, "k h w"]]:
    h, w = size
    masks = torch.from_numpy(scene.visible_masks(h * OVERSAMPLE, w * OVERSAMPLE))
    vectors = text_to_vectors([region.text for region in scene.regions])
    return vectors, coverage(masks, size).to(vectors)


class Representation:
    """What the map says at each place: the paper's choice, and the ones that it is compared with.

    kind:
      "vectors"     a CLIP vector in each segment, as above
      "binary"      1 in every segment, whatever it is; the texts follow the caption in words
                    (the paper's ablation)
      "caption"     the vectors, and the caption's CLIP text vector at every pixel: 2 d channels
                    (a summary of the paper: `encode(S, T, R)`)
      "similarity"  how similar each segment's vector is to each of `words`: one channel a word
                    (a summary of the paper: similarity between picture and text tokens)

    The painting is the same in training, where the vectors are CLIP's of the true segments, and at
    inference, where they come from texts. Raises ValueError for another kind, and for "similarity"
    without words.
    """

    def __init__(self, kind: str, clip: Clip, words: Sequence[str] = ()) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}; there are {', '.join(KINDS)}")
        if kind == "similarity" and not words:
            raise ValueError("words is empty; 'similarity' needs words, a channel for each")
        if kind != "similarity" and words:
            raise ValueError(f"words is {list(words)}; {kind!r} takes none")
        self.kind, self.clip, self.words = kind, clip, tuple(words)
        with torch.no_grad():
            self._words = clip.text(list(words)) if words else None

    @property
    def channels(self) -> int:
        """Channels of the map."""
        d = self.clip.width
        return {"vectors": d, "binary": 1, "caption": 2 * d, "similarity": len(self.words)}[
            self.kind
        ]

    def caption(self, caption: str, texts: Sequence[str]) -> str:
        """The caption that goes with the map; only "binary" has to say more in words."""
        return ", ".join([caption, *texts]) if self.kind == "binary" else caption

    @torch.no_grad()
    def paint(
        self,
        vectors: Float[Tensor, "b k d"],
        cover: Float[Tensor, "b k h w"],
        captions: Sequence[str],
    ) -> Float[Tensor, "b channels h w"]:
        """The map of k disjoint segments with their vectors; a segment without cover is not there.

        captions: one a picture; only "caption" reads them.
        """
        if self.kind == "binary":
            return cover.sum(1, keepdim=True)
        if self.kind == "similarity":
            return paint(einsum(vectors, self._words, "b k d, n d -> b k n"), cover)
        st_map = paint(vectors, cover)
        if self.kind == "vectors":
            return st_map
        whole = repeat(self.clip.text(list(captions)), "b d -> b d h w", h=1, w=1)
        return torch.cat([st_map, whole.expand_as(st_map)], dim=1)
