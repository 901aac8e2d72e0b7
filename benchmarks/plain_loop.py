# SPDX-License-Identifier: Apache-2.0
"""The peer of a training step: a plain loop in the manner of diffusers' `train_text_to_image`.

It keeps nothing: in each step the autoencoder encodes the images, the text encoder the captions,
and for maps CLIP the segments that are painted; only masks are at hand. It draws the random numbers
that the library's loop draws, and so reaches the same losses.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.training_utils import EMAModel
from torch import Tensor

from spatext_lab.clip import Clip
from spatext_lab.datasets.corrupted_masks import painted
from spatext_lab.images import encode
from spatext_lab.scene import Region, Scene
from spatext_lab.spatext.representation import choose_segments
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from spatext_lab.training.cache import SEGMENTS, Example
from spatext_lab.training.plan import Plan
from spatext_lab.training.recipes.spatext import BATCH, COUNT, DROP, EXACT, MIN_AREA

PLAN = Plan(steps=10_000, lr=1e-4)


@dataclass(frozen=True)
class Data:
    """Images as pixels, their captions, and the masks of their largest segments, exact and not."""

    images: list[np.ndarray]
    captions: list[tuple[str, ...]]
    masks: list[np.ndarray]
    painted: list[np.ndarray]

    @staticmethod
    def of(examples: list[Example]) -> "Data":
        """The data of some examples."""
        masks, inexact = [], []
        for number, example in enumerate(examples):
            h, w = example.image.shape[:2]
            own, rng = example.scene.visible_masks(h, w), Random(f"painted/{number}")
            area = own.sum((1, 2))
            order = [k for k in np.argsort(-area, kind="stable") if area[k]][:SEGMENTS]
            masks.append(own[order])
            regions = [Region("segment", mask=painted(mask, rng)) for mask in own[order]]
            inexact.append(Scene("", regions).visible_masks(h, w))
        return Data([e.image for e in examples], [e.captions for e in examples], masks, inexact)


def plain_loop(
    base: TextToImagePipeline, unet: torch.nn.Module, data: Data, clip: Clip | None = None
) -> Iterator[float]:
    """The losses of a loop that computes everything in each step; with `clip` it has maps."""
    optimizer = torch.optim.AdamW(unet.parameters(), betas=(0.9, 0.99), weight_decay=0.01)
    ema = EMAModel(unet.parameters(), decay=PLAN.ema_decay)
    unet.train()
    schedule, kind = base.scheduler, base.scheduler.config.prediction_type
    for step in range(PLAN.steps):
        generator = torch.Generator().manual_seed(PLAN.seed * 1_000_003 + step)
        index = torch.randint(len(data.images), (BATCH,), generator=generator).tolist()
        u = torch.rand(BATCH, generator=generator).tolist()
        texts = [
            data.captions[i][int(x * len(data.captions[i]))] for i, x in zip(index, u, strict=True)
        ]
        pixels = torch.stack([torch.from_numpy(data.images[i]) for i in index])
        pixels = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            x_0 = encode(base.vae, pixels)
            st_map = (
                None if clip is None else segment_map(data, clip, index, pixels, x_0, generator)
            )
            drop_text, drop_map = torch.rand(2, BATCH, generator=generator) < DROP
            texts = ["" if drop else text for text, drop in zip(texts, drop_text, strict=True)]
            ids = base.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
            states = base.text_encoder(ids.input_ids).last_hidden_state
        noise = torch.randn(x_0.shape, generator=generator)
        t = torch.randint(schedule.config.num_train_timesteps, (BATCH,), generator=generator)
        x_t = schedule.add_noise(x_0, noise, t)
        if st_map is not None:
            kept = st_map * ~drop_map[:, None, None, None] * clip.embedding_dim**0.5
            x_t = torch.cat([x_t, kept], dim=1)
        target = schedule.get_velocity(x_0, noise, t) if kind == "v_prediction" else noise
        loss = F.mse_loss(unet(x_t, t, states).sample, target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), PLAN.clip_norm)
        optimizer.param_groups[0]["lr"] = PLAN.rate(step)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
        yield loss.item()


def segment_map(
    data: Data, clip: Clip, index: list[int], pixels: Tensor, x_0: Tensor, generator
) -> Tensor:
    """The maps of a batch, of embeddings that CLIP makes now of the segments that are painted."""
    exact = torch.rand(BATCH, 1, 1, 1, generator=generator) < EXACT
    size, covered = x_0.shape[2:], torch.zeros(BATCH, SEGMENTS, *x_0.shape[2:])
    for row, i, is_exact in zip(covered, index, exact.flatten().tolist(), strict=True):
        masks = torch.from_numpy((data.masks if is_exact else data.painted)[i]).float()
        row[: len(masks)] = F.interpolate(masks[None], size, mode="area")[0]
    chosen = choose_segments(covered, COUNT, MIN_AREA, generator)
    rows, slots = chosen.nonzero(as_tuple=True)
    masks = [torch.from_numpy(data.masks[index[b]][k]) for b, k in zip(rows, slots, strict=True)]
    embeddings = clip.encode_segments((pixels[rows] + 1) / 2, torch.stack(masks))
    st_map = torch.zeros(BATCH, clip.embedding_dim, *size)
    for b, k, embedding in zip(rows, slots, embeddings, strict=True):
        st_map[b] += embedding[:, None, None] * covered[b, k]
    return st_map
