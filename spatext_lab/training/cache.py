# SPDX-License-Identifier: Apache-2.0
"""What a diffusion model is trained on, computed once: latents, and embeddings of segments.

The autoencoder and CLIP stay fixed while a U-Net is trained, so each image passes through them
once. Segments are kept as their coverage of the latent's cells, which is all that a map needs.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin
from jaxtyping import Float, Int
from torch import Tensor

from spatext_lab.clip import Clip
from spatext_lab.datasets.coco import CocoSubset
from spatext_lab.datasets.corrupted_masks import painted
from spatext_lab.datasets.pocket import pocket_item
from spatext_lab.figures.progress import Progress
from spatext_lab.images import encode, to_tensor, to_unit
from spatext_lab.scene import Region, Scene
from spatext_lab.spatext.representation import coverage

SEGMENTS = 6  # kept per image, the largest first
_CHUNK = 32


@dataclass(frozen=True)
class Example:
    """A training example: an image, its captions, and the scene that it shows."""

    image: np.ndarray  # uint8 (H, W, 3)
    captions: tuple[str, ...]
    scene: Scene  # its regions as masks for SpaText, as boxes for ReCo


@dataclass(frozen=True)
class Cache:
    """n training examples as tensors.

    ReCo reads `scenes`; SpaText reads what CLIP made of their segments, where a CLIP was passed.

    Args:
        latents: unit-variance latents of the images.
        captions: all captions of each image.
        scenes: of each image; None where the segments are kept as tensors instead.
        texts: of the segments of each image, the largest first.
        embeddings: CLIP image embeddings of up to k = SEGMENTS segments; unused rows are zero.
        coverage: the segments' coverages of the latent's cells; unused rows are zero.
        painted: the coverages of masks as people might paint them, see `corrupted_masks.painted`.
        image_embeddings: CLIP embeddings of the whole images.
        half_latents: latents of the images at half their width and height, where asked for.
    """

    latents: Float[Tensor, "n c h w"]
    captions: list[tuple[str, ...]]
    scenes: list[Scene] | None = None
    texts: list[tuple[str, ...]] | None = None
    embeddings: Float[Tensor, "n k d"] | None = None
    coverage: Float[Tensor, "n k h w"] | None = None
    painted: Float[Tensor, "n k h w"] | None = None
    image_embeddings: Float[Tensor, "n d"] | None = None
    half_latents: Float[Tensor, "n c h/2 w/2"] | None = None

    def __len__(self) -> int:
        return len(self.latents)

    def draw_captions(self, index: Tensor, generator: torch.Generator) -> list[str]:
        """One caption of each image in `index`, uniformly at random."""
        u = torch.rand(len(index), generator=generator)
        rows = (self.captions[i] for i in index.tolist())
        return [row[int(x * len(row))] for row, x in zip(rows, u.tolist(), strict=True)]


def draw_noise(
    x_0: Float[Tensor, "b c h w"], scheduler: SchedulerMixin, generator: torch.Generator
) -> tuple[Float[Tensor, "b c h w"], Int[Tensor, "b"]]:
    """The noise and the uniform timesteps of a training step, on the CPU."""
    noise = torch.randn(x_0.shape, generator=generator)
    steps = scheduler.config.num_train_timesteps
    return noise, torch.randint(steps, (len(x_0),), generator=generator)


def pocket_images(split: str, indices: Iterable[int]) -> Float[Tensor, "b 3 64 64"]:
    """Pocket images in [-1, 1]; rendered anew each time, which costs a millisecond each."""
    return to_tensor(pocket_item(split, i).image for i in indices)


def pocket_examples(count: int) -> Iterator[Example]:
    """The first `count` training scenes of the pocket world, their segments as masks."""
    for i in range(count):
        item = pocket_item("train", i)
        yield Example(item.image, item.captions, item.scene)


def coco_examples(subset: CocoSubset, size: int) -> Iterator[Example]:
    """The centre squares of a COCO subset's photos, `size` pixels wide, with all their captions."""
    for item, image, scene in subset.squares(size):
        yield Example(image, item.captions, scene)


@torch.no_grad()
def build(
    examples: Iterable[Example], total: int, vae, clip: Clip | None = None, halves: bool = False
) -> Cache:
    """Runs the autoencoder, and CLIP on the largest segments, over all examples once.

    Args:
        total: how many examples there are, for the progress bar.
        clip: embeds the segments; None to keep the scenes instead.
        halves: also keep the latents of the images at half their width and height.
    """
    captions, scenes, segments, whole = [], [], [], []
    latents, half = _Stack(total), _Stack(total)
    bar = Progress(total=total, desc="caching", unit="image")
    for chunk in _chunks(examples):
        images = to_tensor(e.image for e in chunk).to(vae.device)
        latents.append(encode(vae, images))
        if halves:
            half.append(encode(vae, F.avg_pool2d(images, 2)))
        captions += [e.captions for e in chunk]
        if clip is None:
            scenes += [e.scene for e in chunk]
        else:
            images, size = to_unit(images).to(clip.device), latents.tensor.shape[-2:]
            whole.append(clip.encode_images(images).cpu())
            for image, example in zip(images, chunk, strict=True):
                rng = Random(f"painted/{len(segments)}")
                segments.append(_segments(image, example.scene, clip, size, rng))
        bar.update(len(chunk))
    bar.close()
    if clip is None:
        return Cache(latents.tensor, captions, scenes, half_latents=half.tensor)
    texts, *stacks = zip(*segments, strict=True)
    stacks = [torch.stack(each) for each in stacks]
    whole = torch.cat(whole)
    return Cache(latents.tensor, captions, None, list(texts), *stacks, whole, half.tensor)


class _Stack:
    """Rows that are appended into one tensor with room for `total`.

    Kept one by one between the networks' large temporary tensors, they would split the heap, and
    the process would keep several times the memory of the rows.
    """

    def __init__(self, total: int) -> None:
        self.total, self.count, self.rows = total, 0, None

    def append(self, rows: Tensor) -> None:
        if self.rows is None:
            self.rows = torch.empty(self.total, *rows.shape[1:])
        self.rows[self.count : self.count + len(rows)] = rows
        self.count += len(rows)

    @property
    def tensor(self) -> Tensor | None:
        """The rows so far; None where there are none."""
        return None if self.rows is None else self.rows[: self.count]


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
    image: Tensor, scene: Scene, clip: Clip, size: tuple[int, int], rng: Random
) -> tuple[tuple[str, ...], Float[Tensor, "k d"], *tuple[Float[Tensor, "k h w"], ...]]:
    """Texts, embeddings and coverages of the SEGMENTS largest segments, then the coverages of
    their masks as painted by `rng`; zero rows where there are fewer."""
    h, w = image.shape[-2:]
    masks = scene.visible_masks(h, w)
    seen = min(SEGMENTS, masks.any((1, 2)).sum())
    largest = np.argsort(-masks.sum((1, 2)), kind="stable")[:seen]
    texts, n = tuple(scene.regions[i].text for i in largest), len(largest)
    chosen = torch.from_numpy(masks[largest])
    embeddings = torch.zeros(SEGMENTS, clip.embedding_dim)
    exact, inexact = torch.zeros(2, SEGMENTS, *size)
    images = image.expand(n, *image.shape)
    embeddings[:n] = clip.encode_segments(images, chosen.to(image.device)).cpu()
    exact[:n] = coverage(chosen, size)
    # Segments are disjoint; painted ones overlap, and then the smaller is on top.
    regions = [Region(scene.regions[i].text, mask=painted(masks[i], rng)) for i in largest]
    inexact[:n] = coverage(torch.from_numpy(Scene("", regions).visible_masks(h, w)), size)
    return texts, embeddings, exact, inexact
