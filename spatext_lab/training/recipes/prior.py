# SPDX-License-Identifier: Apache-2.0
"""The prior of the pocket CLIP: text to image embeddings, by diffusion and by ridge regression."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from diffusers import PriorTransformer
from jaxtyping import Float
from torch import Tensor

from spatext_lab.clip import Clip
from spatext_lab.datasets.coco import CocoItem, PhotoChoice
from spatext_lab.datasets.photo_views import wide_view
from spatext_lab.datasets.pocket import SIZE, pocket_item
from spatext_lab.diffusion import drop_conditions, noise_schedule, training_loss
from spatext_lab.figures.progress import Progress
from spatext_lab.images import to_tensor, to_unit
from spatext_lab.spatext.prior import DiffusionPrior, LinearPrior, PriorDenoiser, text_condition
from spatext_lab.training.cache import draw_noise
from spatext_lab.training.job import Job, device_of, part, save_half
from spatext_lab.training.loop import Plan
from spatext_lab.training.photos import training_photos

BATCH, SCENES, DROP = 256, 12_000, 0.1
VIEWS = 16  # of a photo
MIN_AREA = 0.02  # smaller segments are left out, as in SpaText's own recipe


View = tuple[np.ndarray, list[np.ndarray], list[str]]  # image, masks, their texts and a caption
Pairs = tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]


def new_transformer(width: int) -> PriorTransformer:
    """A transformer over four tokens: text, timestep, noisy embedding, output.

    It has 4 layers of 128 for the pocket CLIP. For embeddings of more numbers than that, which such
    a layer could not hold, it has 12 layers as wide as the embeddings, as LAION's prior for
    ViT-L/14.

    Args:
        width: numbers of an embedding; beyond 128 a multiple of 64.
    """
    small = width <= 128
    return PriorTransformer(
        num_attention_heads=4 if small else width // 64,
        attention_head_dim=32 if small else 64,
        num_layers=4 if small else 12,
        embedding_dim=width,
        num_embeddings=0,
        additional_embeddings=4,
        encoder_hid_proj_type=None,
    )


@torch.no_grad()
def pairs(clip: Clip, views: Iterable[View], total: int) -> Pairs:
    """(text embeddings, image embeddings) of views' segments and of whole views.

    Args:
        total: how many views there are, for the progress bar.
    """
    text, image = [], []
    for pixels, masks, texts in Progress(views, total=total, desc="caching", unit="image"):
        whole = to_unit(to_tensor([pixels]))
        if len(masks):
            shown = torch.from_numpy(np.stack(masks))
            image.append(clip.encode_segments(whole.expand(len(masks), -1, -1, -1), shown))
        text.append(clip.encode_text(texts))
        image.append(clip.encode_images(whole.to(clip.device)))
    return torch.cat(text).cpu(), torch.cat(image).cpu()


def pocket_views() -> Iterator[View]:
    """Training scenes, one of their captions in turn."""
    for i in range(SCENES):
        item = pocket_item("train", i)
        segments = [s for s in item.segments if s.mask.mean() >= MIN_AREA]
        caption = item.captions[i % len(item.captions)]
        yield item.image, [s.mask for s in segments], [*(s.text for s in segments), caption]


def photo_views(photos: Sequence[CocoItem], size: int, seed: int) -> Iterator[View]:
    """VIEWS views for each photo, at most as many as pocket scenes."""
    for i in range(min(SCENES, VIEWS * len(photos))):
        view = wide_view(i, seed, photos, size)
        seen = [(view.labels == k, text) for k, text in enumerate(view.texts, start=1)]
        kept = [(mask, text) for mask, text in seen if mask.mean() >= MIN_AREA]
        caption = view.captions[i % len(view.captions)]
        yield view.image, [mask for mask, _ in kept], [*(text for _, text in kept), caption]


def make(
    plan: Plan,
    device: str,
    *,
    data: Path | None = None,
    clip: Path | None = None,
    **choice: Unpack[PhotoChoice],
) -> Job:
    """The diffusion loss on image embeddings given their texts'; one text in ten is dropped.

    Args:
        data: a folder in COCO layout, whose segments and photos are embedded; pocket scenes if not
            given.
        clip: the folder of the CLIP whose embeddings are learned; the shipped one if not given.
        choice: of the folder's photos, see `PhotoChoice`.
    """
    torch.manual_seed(plan.seed)
    reader = Clip.from_pretrained(part(clip, "spatext/clip")).to(device_of(device))
    views, total, phrase = pocket_views(), SCENES, f"pocket scenes train 0-{SCENES - 1}"
    if data is not None:
        photos, phrase = training_photos(data, **{"min_area": MIN_AREA} | choice)
        views = photo_views(photos, max(SIZE, reader.image_size), plan.seed)
        total = min(SCENES, VIEWS * len(photos))
    text, image = pairs(reader, views, total)
    line = LinearPrior.fit(text, image)
    prior = DiffusionPrior(new_transformer(reader.embedding_dim), noise_schedule(), line)
    prior.transformer.clip_mean.requires_grad_(False).copy_(image.mean(0))
    prior.transformer.clip_std.requires_grad_(False).copy_(image.std(0))
    denoiser, x_0 = PriorDenoiser(prior.transformer), prior.normalize(image)

    def loss_at(number: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(x_0), (BATCH,), generator=generator)
        drop = torch.rand(BATCH, generator=generator) < DROP
        noise, t = draw_noise(x_0[index], prior.scheduler, generator)
        where = prior.transformer.device
        condition = drop_conditions(text_condition(text[index]), drop, drop).to(where)
        batch = (x_0[index].to(where), condition, t.to(where), noise.to(where))
        return training_loss(denoiser, *batch, prior.scheduler)

    return Job(prior.transformer, loss_at, lambda folder: save_half(prior, folder), plan, phrase)
