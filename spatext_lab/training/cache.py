# SPDX-License-Identifier: Apache-2.0
"""What a diffusion model learns from, computed once: latents, and vectors of segments.

The autoencoder and CLIP stay fixed while a U-Net learns, so each picture goes through them once.
Segments are kept as their coverage of the latent's cells, which is all that a map is painted from.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from spatext_lab.clip import Clip
from spatext_lab.datasets.coco import CocoSubset
from spatext_lab.datasets.pocket import pocket_item
from spatext_lab.figures.progress import Progress
from spatext_lab.images import encode, to_tensor
from spatext_lab.scene import Region
from spatext_lab.spatext.representation import coverage

SEGMENTS = 6  # kept per picture, the largest first
_CHUNK = 32


@dataclass(frozen=True)
class Example:
    """A picture to learn from."""

    image: np.ndarray  # uint8 (H, W, 3)
    captions: tuple[str, ...]
    masks: np.ndarray | None = None  # bool (k, H, W), disjoint; SpaText reads these
    texts: tuple[str, ...] = ()  # of the k segments
    regions: tuple[Region, ...] = ()  # ReCo reads these


@dataclass(frozen=True)
class Cache:
    """n pictures as tensors; what CLIP and the segments give is None where no CLIP was given."""

    latents: Float[Tensor, "n c h w"]
    captions: list[tuple[str, ...]]
    regions: list[tuple[Region, ...]]
    texts: list[tuple[str, ...]] | None = None  # of the segments that are kept, the largest first
    vectors: Float[Tensor, "n k d"] | None = None
    cover: Float[Tensor, "n k h w"] | None = None
    pictures: Float[Tensor, "n d"] | None = None  # CLIP's vectors of the whole pictures

    def __len__(self) -> int:
        return len(self.latents)

    def draw_captions(self, index: Tensor, generator: torch.Generator) -> list[str]:
        """One caption of each picture, at random."""
        u = torch.rand(len(index), generator=generator)
        rows = (self.captions[i] for i in index.tolist())
        return [row[int(x * len(row))] for row, x in zip(rows, u.tolist(), strict=True)]


def pocket_images(split: str, indices: Iterable[int]) -> Float[Tensor, "b 3 64 64"]:
    """Pocket images in [-1, 1]; rendered anew each time, which costs a millisecond each."""
    return to_tensor(np.stack([pocket_item(split, i).image for i in indices]))


def pocket_examples(count: int) -> Iterator[Example]:
    """The first `count` training scenes of the pocket world."""
    for i in range(count):
        item = pocket_item("train", i)
        masks = np.stack([s.mask for s in item.segments])
        yield Example(item.image, item.captions, masks, tuple(s.text for s in item.segments))


def coco_examples(subset: CocoSubset, size: int) -> Iterator[Example]:
    """The centre squares of a COCO subset's pictures, with all captions of each."""
    for item in subset.items:
        image, scene = item.square(size)
        if scene.regions:
            texts = tuple(region.text for region in scene.regions)
            yield Example(image, item.captions, scene.visible_masks(size, size), texts)


@torch.no_grad()
def build(examples: Iterable[Example], total: int, vae, clip: Clip | None = None) -> Cache:
    """Runs the autoencoder, and CLIP on the largest segments, over all examples once."""
    latents, captions, regions, segments, pictures = [], [], [], [], []
    bar = Progress(total=total, desc="caching", unit="image")
    for chunk in _chunks(examples):
        images = to_tensor(np.stack([e.image for e in chunk])).to(vae.device)
        latents.append(encode(vae, images).cpu())
        captions += [e.captions for e in chunk]
        regions += [e.regions for e in chunk]
        if clip is not None:
            images, size = (images / 2 + 0.5).to(clip.device), latents[0].shape[-2:]
            pictures.append(clip.images(images).cpu())
            pairs = zip(images, chunk, strict=True)
            segments += [_segments(image, example, clip, size) for image, example in pairs]
        bar.update(len(chunk))
    bar.close()
    if clip is None:
        return Cache(torch.cat(latents), captions, regions)
    texts, vectors, cover = zip(*segments, strict=True)
    stacks = torch.stack(vectors), torch.stack(cover), torch.cat(pictures)
    return Cache(torch.cat(latents), captions, regions, list(texts), *stacks)


def _chunks(examples: Iterable[Example]) -> Iterator[list[Example]]:
    chunk: list[Example] = []
    for example in examples:
        chunk.append(example)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _segments(
    image: Tensor, example: Example, clip: Clip, size: tuple[int, int]
) -> tuple[tuple[str, ...], Float[Tensor, "k d"], Float[Tensor, "k h w"]]:
    """Texts, vectors and coverages of the SEGMENTS largest segments, zero rows where fewer."""
    largest = np.argsort(-example.masks.sum((1, 2)), kind="stable")[:SEGMENTS]
    chosen = torch.from_numpy(example.masks[largest])
    vectors, cover = torch.zeros(SEGMENTS, clip.width), torch.zeros(SEGMENTS, *size)
    images = image.expand(len(chosen), *image.shape)
    vectors[: len(chosen)] = clip.segments(images, chosen.to(image.device)).cpu()
    cover[: len(chosen)] = coverage(chosen, size)
    return tuple(example.texts[i] for i in largest), vectors, cover
