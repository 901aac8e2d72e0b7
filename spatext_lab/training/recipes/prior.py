# SPDX-License-Identifier: Apache-2.0
"""The prior of the pocket CLIP: text to image embeddings, by diffusion and by ridge regression."""

from pathlib import Path

import torch
from diffusers import PriorTransformer
from jaxtyping import Float
from torch import Tensor

from spatext_lab.clip import Clip
from spatext_lab.datasets.pocket import pocket_item
from spatext_lab.diffusion import drop_conditions, noise_schedule, training_loss
from spatext_lab.figures.progress import Progress
from spatext_lab.images import to_tensor, to_unit
from spatext_lab.spatext.prior import DiffusionPrior, LinearPrior, PriorDenoiser, text_condition
from spatext_lab.training.cache import draw_noise
from spatext_lab.training.job import Job, device_of, part, save_half
from spatext_lab.training.loop import Plan

BATCH, SCENES, DROP = 256, 12_000, 0.1
MIN_AREA = 0.02  # smaller segments are left out, as in SpaText's own recipe


def new_transformer(width: int) -> PriorTransformer:
    """A transformer over four tokens (text, timestep, noisy embedding, output), 4 layers of 128."""
    return PriorTransformer(
        num_attention_heads=4,
        attention_head_dim=32,
        num_layers=4,
        embedding_dim=width,
        num_embeddings=0,
        additional_embeddings=4,
        encoder_hid_proj_type=None,
    )


@torch.no_grad()
def pairs(clip: Clip, scenes: int) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
    """(text embeddings, image embeddings) of training scenes' segments and whole images."""
    text, image = [], []
    for i in Progress(range(scenes), desc="caching", unit="image"):
        item = pocket_item("train", i)
        segments = [s for s in item.segments if s.mask.mean() >= MIN_AREA]
        whole = to_unit(to_tensor([item.image]))
        masks = torch.stack([torch.from_numpy(s.mask.copy()) for s in segments])
        crops = clip.encode_segments(whole.expand(len(segments), -1, -1, -1), masks)
        caption = item.captions[i % len(item.captions)]
        text.append(clip.encode_text([*(s.text for s in segments), caption]))
        image += [crops, clip.encode_images(whole.to(clip.device))]
    return torch.cat(text).cpu(), torch.cat(image).cpu()


def make(plan: Plan, device: str, *, clip: Path | None = None) -> Job:
    """The diffusion loss on image embeddings given their texts'; one text in ten is dropped.

    Args:
        clip: the folder of the CLIP whose embeddings are learned; the shipped one if not given.
    """
    torch.manual_seed(plan.seed)
    reader = Clip.from_pretrained(part(clip, "spatext/clip")).to(device_of(device))
    text, image = pairs(reader, SCENES)
    line = LinearPrior.fit(text, image)
    prior = DiffusionPrior(new_transformer(reader.embedding_dim), noise_schedule(), line)
    prior.transformer.clip_mean.requires_grad_(False).copy_(image.mean(0))
    prior.transformer.clip_std.requires_grad_(False).copy_(image.std(0))
    denoiser, x_0 = PriorDenoiser(prior.transformer), prior.normalize(image)

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(x_0), (BATCH,), generator=generator)
        drop = torch.rand(BATCH, generator=generator) < DROP
        noise, t = draw_noise(x_0[index], prior.scheduler, generator)
        where = prior.transformer.device
        condition = drop_conditions(text_condition(text[index]), drop, drop).to(where)
        batch = (x_0[index].to(where), condition, t.to(where), noise.to(where))
        return training_loss(denoiser, *batch, prior.scheduler)

    scenes = f"pocket scenes train 0-{SCENES - 1}"
    return Job(prior.transformer, loss_at, lambda folder: save_half(prior, folder), plan, scenes)
