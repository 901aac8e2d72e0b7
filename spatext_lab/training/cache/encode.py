# SPDX-License-Identifier: Apache-2.0
"""Training examples through the fixed networks, once: autoencoder, and CLIP on their segments."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from spatext_lab.clip import Clip
from spatext_lab.datasets.corrupted_masks import painted
from spatext_lab.images import encode, to_tensor, to_unit
from spatext_lab.scene import Region, Scene
from spatext_lab.spatext.representation import coverage
from spatext_lab.training.cache.examples import Example

SEGMENTS = 6  # kept per image, the largest first
_CHUNK, _PIXELS = 32, 2**21  # images, and their pixels, that pass through a network at once


@dataclass(frozen=True)
class Encoded:
    """What is kept of some examples, by the names of `Cache`.

    Args:
        tensors: a row for each example.
        lists: a value for each example.
        cell: how many pixels of an image a cell of its latents stands for.
    """

    tensors: dict[str, Tensor]
    lists: dict[str, list]
    cell: int


@dataclass(frozen=True)
class Segments:
    """The largest segments of an image; disjoint, the largest first."""

    texts: tuple[str, ...]
    masks: Bool[Tensor, "k H W"]
    painted: Bool[Tensor, "k H W"]  # as people might paint them


@dataclass(frozen=True)
class Ready:
    """An example before the networks see it, its segments found where they are wanted."""

    example: Example
    segments: Segments | None


@dataclass(frozen=True)
class Encoder:
    """The networks that an example passes through once; arguments as for `build`."""

    vae: Any
    clip: Clip | None
    halves: bool

    def prepare(self, example: Example, number: int) -> Ready:
        """What an example needs before the networks; safe in a thread of its own.

        Args:
            number: decides how its masks are painted.
        """
        return Ready(example, None if self.clip is None else _segments(example, number))

    @torch.no_grad()
    def encode(self, chunk: list[Ready]) -> Encoded:
        """What is kept of a chunk of examples, by the names of `Cache`."""
        images = to_tensor(each.example.image for each in chunk).to(self.vae.device)
        tensors = {"latents": encode(self.vae, images).cpu()}
        lists = {"captions": [each.example.captions for each in chunk]}
        if self.halves:
            tensors["half_latents"] = encode(self.vae, F.avg_pool2d(images, 2)).cpu()
        if self.clip is None:
            lists["scenes"] = [each.example.scene for each in chunk]
        else:
            lists["texts"] = [each.segments.texts for each in chunk]
            tensors |= self._read(to_unit(images).to(self.clip.device), chunk)
            size = tensors["latents"].shape[-2:]
            for name in ("masks", "painted"):
                rows = [_padded(coverage(getattr(each.segments, name), size)) for each in chunk]
                tensors[name.replace("masks", "coverage")] = torch.stack(rows)
        cell = images[0, 0].numel() // tensors["latents"][0, 0].numel()
        return Encoded(tensors, lists, cell)

    def _read(self, images: Tensor, chunk: list[Ready]) -> dict[str, Tensor]:
        """CLIP's embeddings of the images and of their segments."""
        rows = []
        for image, each in zip(images, chunk, strict=True):
            masks = each.segments.masks.to(image.device)
            rows.append(self.clip.encode_segments(image.expand(len(masks), *image.shape), masks))
        whole = self.clip.encode_images(images)
        return {
            "embeddings": torch.stack([_padded(row.cpu()) for row in rows]),
            "image_embeddings": whole.cpu(),
        }


def chunks(ready: Iterable[Ready]) -> Iterator[list[Ready]]:
    """Examples in lists that pass through the networks at once."""
    chunk: list[Ready] = []
    for each in ready:
        chunk.append(each)
        pixels = each.example.image.shape[0] * each.example.image.shape[1]
        if len(chunk) >= max(1, min(_CHUNK, _PIXELS // pixels)):
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _segments(example: Example, number: int) -> Segments:
    """The SEGMENTS largest segments of an example, exact and as painted by its own `Random`."""
    scene, (h, w) = example.scene, example.image.shape[:2]
    masks, rng = scene.visible_masks(h, w), Random(f"painted/{number}")
    seen = min(SEGMENTS, masks.any((1, 2)).sum())
    largest = np.argsort(-masks.sum((1, 2)), kind="stable")[:seen]
    # Segments are disjoint; painted ones overlap, and then the smaller is on top.
    regions = [Region(scene.regions[i].text, mask=painted(masks[i], rng)) for i in largest]
    inexact = Scene("", regions).visible_masks(h, w)
    texts = tuple(region.text for region in regions)
    return Segments(texts, torch.from_numpy(masks[largest]), torch.from_numpy(inexact))


def _padded(rows: Float[Tensor, "k *d"]) -> Float[Tensor, "m *d"]:
    """Rows, and as many rows of zeros as it takes to have SEGMENTS."""
    return torch.cat([rows, rows.new_zeros(SEGMENTS - len(rows), *rows.shape[1:])])


def joined(parts: list[Encoded]) -> Encoded:
    """Several chunks as one; of none, an empty one."""
    names = parts[0].tensors if parts else ()
    tensors = {name: torch.cat([part.tensors[name] for part in parts]) for name in names}
    lists: dict[str, list] = {"captions": []}
    for part in parts:
        for name, values in part.lists.items():
            lists.setdefault(name, []).extend(values)
    return Encoded(tensors, lists, parts[0].cell if parts else 1)
