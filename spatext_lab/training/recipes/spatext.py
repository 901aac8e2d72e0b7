# SPDX-License-Identifier: Apache-2.0
"""SpaText's fine-tune: the text-to-image U-Net, widened, learns to read the map."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from spatext_lab import zoo
from spatext_lab.clip import Clip
from spatext_lab.datasets.coco import read_coco
from spatext_lab.datasets.pocket import COLOURS, KINDS, PATTERNS, STUFF
from spatext_lab.diffusion import Condition, UNetDenoiser, drop_conditions, training_loss
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.spatext.prior import DiffusionPrior
from spatext_lab.spatext.representation import Representation, choose_segments
from spatext_lab.spatext.widen import widen_input
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from spatext_lab.training import cache
from spatext_lab.training.job import Job, device_of, save_model
from spatext_lab.training.loop import Plan

BATCH, SCENES, DROP = 16, 24_000, 0.1
# The paper paints 1 to 3 segments of at least 5 % of the picture. Students paint more and smaller
# ones, so the shipped model has seen up to 6, down to 2 %.
COUNT, MIN_AREA = (1, 6), 0.02

# The channels of similarity maps: every word that a pocket text can mean.
WORDS = (*KINDS, *COLOURS, *PATTERNS, *STUFF)

ConditionOf = Callable[[Tensor, torch.Generator], Condition]  # of the pictures with these numbers


def make(
    plan: Plan,
    device: str,
    data: Path | None = None,
    base: str = "pocket",
    representation: str = "vectors",
) -> Job:
    """The diffusion loss with training maps; caption and map dropped independently, 10 % each.

    data: a folder in COCO layout; None for pocket scenes.
    base: the model that has the text-to-image pipeline to widen, and the CLIP: "pocket", "sd15" or
        a folder with their layout. A folder of one pipeline is widened with the pocket CLIP.
    representation: a kind of `Representation`.
    """
    torch.manual_seed(plan.seed)
    start = TextToImagePipeline.from_pretrained(zoo.part(base, "text-to-image"), device_of(device))
    home = "pocket" if zoo.is_pipeline(base) else base
    clip = Clip.from_pretrained(zoo.folder(home, "spatext/clip")).to(device_of(device))
    known = (zoo.root(home) / "spatext/prior").is_dir()
    prior = DiffusionPrior.from_pretrained(zoo.folder(home, "spatext/prior")) if known else None
    prior = prior and prior.to(device_of(device))
    model = widened(start, clip, prior, representation)
    examples, total, phrase = _examples(data, start.picture_size)
    return fine_tune(model, cache.build(examples, total, start.vae, clip), plan, phrase)


def widened(
    base: TextToImagePipeline,
    clip: Clip,
    prior: DiffusionPrior | None = None,
    representation: str = "vectors",
) -> SpaTextPipeline:
    """SpaText before its first step: `base` with a U-Net that takes maps and does not heed them."""
    words = WORDS if representation == "similarity" else ()
    channels = Representation(representation, clip, words).channels
    unet = widen_input(base.unet, channels).to(memory_format=torch.channels_last)
    rest = (base.text_encoder, base.tokenizer, prior, representation, words, COUNT[1], MIN_AREA)
    return SpaTextPipeline(unet, base.vae, base.scheduler, clip, *rest)


def fine_tune(model: SpaTextPipeline, pool: cache.Cache, plan: Plan, phrase: str) -> Job:
    """The job of teaching a model to read maps, from a cache of pictures and their segments."""

    def condition_of(index: Tensor, generator: torch.Generator) -> Condition:
        captions = pool.draw_captions(index, generator)
        chosen = choose_segments(pool.cover[index], COUNT, MIN_AREA, generator)
        texts = [
            [text for text, on in zip(pool.texts[i], row, strict=False) if on]  # rows are padded
            for i, row in zip(index.tolist(), chosen.tolist(), strict=True)
        ]
        spoken = model.captions([*map(model.map.caption, captions, texts)])
        cover = pool.cover[index] * chosen[..., None, None]
        segments = pool.vectors[index].to(model.device), cover.to(model.device)
        return replace(spoken, st_map=model.map.paint(*segments, captions))

    return map_job(model, pool, condition_of, plan, phrase)


def map_job(
    model: SpaTextPipeline, pool: cache.Cache, condition_of: ConditionOf, plan: Plan, phrase: str
) -> Job:
    """The diffusion loss of `model.unet` on `pool`, told of pictures what `condition_of` says."""
    denoiser, scheduler = UNetDenoiser(model.unet), model.scheduler

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(pool), (BATCH,), generator=generator)
        condition = condition_of(index, generator).to(model.device)
        drop = (torch.rand(2, BATCH, generator=generator) < DROP).to(model.device)
        x_0 = pool.latents[index]
        noise = torch.randn(x_0.shape, generator=generator).to(model.device)
        times = scheduler.config.num_train_timesteps
        t = torch.randint(times, (BATCH,), generator=generator).to(model.device)
        condition = drop_conditions(condition, *drop)
        return training_loss(denoiser, x_0.to(model.device), condition, t, noise, scheduler)

    return Job(model.unet, loss_at, lambda folder: save_model(model, folder), plan, phrase)


def _examples(data: Path | None, side: int) -> tuple[Iterable[cache.Example], int, str]:
    """The pictures to learn from, how many (at most), and a phrase for the card."""
    if data is None:
        return cache.pocket_examples(SCENES), SCENES, f"pocket scenes train 0-{SCENES - 1}"
    subset = read_coco(data, "train", min_area=MIN_AREA, regions=(1, cache.SEGMENTS))
    print(subset.report.text())
    subset.not_empty()
    phrase = f"{len(subset.items)} pictures of {data.name}, train2017"
    return cache.coco_examples(subset, side), len(subset.items), phrase
