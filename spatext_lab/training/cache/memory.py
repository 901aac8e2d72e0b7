# SPDX-License-Identifier: Apache-2.0
"""What a diffusion model is trained on, computed once: latents, and embeddings of segments.

The autoencoder and CLIP stay fixed while a U-Net is trained, so each image passes through them
once. Segments are kept as their coverage of the latent's cells, which is all that a map needs.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from diffusers import SchedulerMixin
from jaxtyping import Float, Int
from torch import Tensor

from spatext_lab.clip import Clip
from spatext_lab.figures.progress import Progress
from spatext_lab.scene import Scene
from spatext_lab.training.cache.encode import Encoder, chunks
from spatext_lab.training.cache.examples import Example
from spatext_lab.training.cache.shards import Column


@dataclass(frozen=True)
class Cache:
    """n training examples as tensors, or as columns of a stored cache, which are indexed alike.

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

    latents: Float[Tensor, "n c h w"] | Column
    captions: Sequence[tuple[str, ...]]
    scenes: Sequence[Scene] | None = None
    texts: Sequence[tuple[str, ...]] | None = None
    embeddings: Float[Tensor, "n k d"] | Column | None = None
    coverage: Float[Tensor, "n k h w"] | Column | None = None
    painted: Float[Tensor, "n k h w"] | Column | None = None
    image_embeddings: Float[Tensor, "n d"] | Column | None = None
    half_latents: Float[Tensor, "n c h/2 w/2"] | Column | None = None

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


def build(
    examples: Iterable[Example], total: int, vae, clip: Clip | None = None, halves: bool = False
) -> Cache:
    """Runs the autoencoder, and CLIP on the largest segments, over all examples once.

    Args:
        total: how many examples there are, for the progress bar.
        clip: embeds the segments; None to keep the scenes instead.
        halves: also keep the latents of the images at half their width and height.
    """
    encoder = Encoder(vae, clip, halves)
    stacks, lists = defaultdict(lambda: _Stack(total)), defaultdict(list)
    bar = Progress(total=total, desc="caching", unit="image")
    ready = (encoder.prepare(example, k) for k, example in enumerate(examples))
    for chunk in chunks(ready):
        found = encoder.encode(chunk)
        for name, rows in found.tensors.items():
            stacks[name].append(rows)
        for name, values in found.lists.items():
            lists[name] += values
        bar.update(len(chunk))
    bar.close()
    return Cache(**{name: stack.tensor for name, stack in stacks.items()}, **lists)


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
    def tensor(self) -> Tensor:
        return self.rows[: self.count]
