# SPDX-License-Identifier: Apache-2.0
"""SpaText's fine-tune: the text-to-image U-Net, widened, learns to read the map."""

from collections.abc import Iterable
from pathlib import Path

import torch
from einops import repeat
from torch import Tensor

from spatext_lab import zoo
from spatext_lab.clip import Clip
from spatext_lab.datasets.coco import read_coco
from spatext_lab.diffusion import Condition, drop_conditions, training_loss
from spatext_lab.spatext.pipeline import SpaTextPipeline, TextToImagePipeline, write_index
from spatext_lab.spatext.representation import training_map
from spatext_lab.spatext.unet import UNetDenoiser, widen_input
from spatext_lab.training import cache
from spatext_lab.training.job import Job, save_half
from spatext_lab.training.loop import Plan

BATCH, SCENES, DROP = 16, 8_000, 0.1
# The paper paints 1 to 3 segments of at least 5 % of the picture. Students paint more and smaller
# ones, so the shipped model has seen up to 6, down to 2 %.
COUNT, MIN_AREA = (1, 6), 0.02


def make(plan: Plan, device: str, data: Path | None) -> Job:
    """The diffusion loss with training maps; caption and map dropped independently, 10 % each."""
    torch.manual_seed(plan.seed)
    base = TextToImagePipeline.from_pretrained(zoo.folder("pocket", "text-to-image"))
    clip = Clip.from_pretrained(zoo.folder("pocket", "spatext/clip"))
    examples, total, phrase = _examples(data, base.picture_size)
    pool = cache.build(examples, total, base.vae, clip)
    return fine_tune(base, clip, pool, plan, phrase)


def fine_tune(
    base: TextToImagePipeline, clip: Clip, pool: cache.Cache, plan: Plan, phrase: str
) -> Job:
    """The job of teaching `base` to read maps of `clip`'s vectors from a cache of pictures."""
    unet = widen_input(base.unet, clip.width).to(memory_format=torch.channels_last)
    denoiser, null = UNetDenoiser(unet), base.text_states([""])[0]

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(pool), (BATCH,), generator=generator)
        text = base.text_states(pool.draw_captions(index, generator))
        st_map = training_map(pool.vectors[index], pool.cover[index], COUNT, MIN_AREA, generator)
        condition = Condition(text, repeat(null, "l c -> b l c", b=BATCH), st_map).to(unet.device)
        drop = (torch.rand(2, BATCH, generator=generator) < DROP).to(unet.device)
        x_0 = pool.latents[index]
        noise = torch.randn(x_0.shape, generator=generator).to(unet.device)
        times = base.scheduler.config.num_train_timesteps
        t = torch.randint(times, (BATCH,), generator=generator).to(unet.device)
        condition = drop_conditions(condition, *drop)
        return training_loss(denoiser, x_0.to(unet.device), condition, t, noise, base.scheduler)

    def save(folder: Path) -> None:
        save_half(unet, folder / "unet")
        clip.save_pretrained(folder / "clip", torch.float16)
        write_index(folder, SpaTextPipeline, shared="../text-to-image")

    return Job(unet, loss_at, save, plan, phrase)


def _examples(data: Path | None, side: int) -> tuple[Iterable[cache.Example], int, str]:
    """The pictures to learn from, how many (at most), and a phrase for the card."""
    if data is None:
        return cache.pocket_examples(SCENES), SCENES, f"pocket scenes train 0-{SCENES - 1}"
    subset = read_coco(data, "train", min_area=MIN_AREA, regions=(1, cache.SEGMENTS))
    print(subset.report.text())
    phrase = f"{len(subset.items)} pictures of {data.name}, train2017"
    return cache.coco_examples(subset, side), len(subset.items), phrase
