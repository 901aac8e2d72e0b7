# SPDX-License-Identifier: Apache-2.0
"""ReCo's fine-tune: U-Net and whole text encoder learn what position tokens mean."""

from dataclasses import replace
from pathlib import Path
from typing import Literal, Unpack

import torch
from torch import Tensor

from spatext_lab import zoo
from spatext_lab.baselines.contrastive import contrastive_loss
from spatext_lab.baselines.digit_coordinates import digit_scene
from spatext_lab.baselines.positional_words import positional_scene
from spatext_lab.datasets.coco import PhotoChoice
from spatext_lab.diffusion import UNetDenoiser, training_loss
from spatext_lab.reco.pipeline import ReCoPipeline
from spatext_lab.reco.position_tokens import is_thin
from spatext_lab.scene import Scene
from spatext_lab.training.cache import Cache, Mapped, draw_noise
from spatext_lab.training.job import Job, device_of, save_model
from spatext_lab.training.loop import Plan
from spatext_lab.training.recipes.reco.start import build_model
from spatext_lab.training.recipes.reco.views import MOST_REGIONS, Stages, training_pool

BATCH = 64
STAGES = 1000, 1800  # steps before which views have one large box, or large boxes alone
# Most of a sequence is padding. On the CPU this fraction of the steps has all of it, as sampling
# has; the others have what their longest sequence needs.
FULL_LENGTH = 1 / 8
# Regions, or all, dropped, so that guidance has a null; and the caption, without which the boxes
# and their texts must be read. The released code drops nothing: its guidance relies on Stable
# Diffusion's own.
DROP, DROP_CAPTION = 0.1, 0.5


def make(
    plan: Plan,
    device: str,
    *,
    data: Path | None = None,
    base: str = "pocket",
    variant: Literal["reco", "after", "contrastive", "words", "digits"] = "reco",
    bins: int | None = None,
    init: Literal["mean", "normal", "smooth"] | None = None,
    batch: int = BATCH,
    cache: Path | None = None,
    **choice: Unpack[PhotoChoice],
) -> Job:
    """By default the paper's recipe: the diffusion loss alone, on sequences of texts and boxes.

    Args:
        data: a folder in COCO layout; pocket scenes and PaintSkills' skills in them if not given.
        base: a text-to-image model to grow: "pocket", "sd15" or a folder, also SpaText's, whose
            map is then dropped; or a ReCo folder to continue from.
        variant: "reco"; "after", position embeddings after the text encoder; "contrastive", a
            second loss beside the first; "words", positional words in the caption instead;
            "digits", the boxes' numbers in the caption instead.
        bins: number of position tokens; two a pixel, 1000 at most, if not given.
        init: how their embeddings begin; "smooth" if not given.
        batch: images a step.
        cache: has a folder for each cache of photos, which later runs read; outputs/cache if not
            given.
        choice: of the folder's photos, see `PhotoChoice`.

    Raises:
        ValueError: for arguments that do not fit the base or each other, see `build_model`.
    """
    torch.manual_seed(plan.seed)
    folder = zoo.folder(base, "text-to-image")
    model = build_model(folder, device_of(device), variant, bins, init, plan.seed)
    pool, phrase = training_pool(model, data, plan.seed, cache, **choice)
    pool = without_thin(pool, model.position_tokens.bins)
    most = max(len(scene.regions) for scene in pool.scenes)
    model.register_to_config(most_regions=most)
    return fine_tune(model, pool, plan, phrase, variant, batch)


def without_thin(pool: Cache, bins: int) -> Cache:
    """The cache without boxes that are thinner than a bin, which position tokens cannot express.

    Prints how many they are. With 0 bins all stay: words can express any box.
    """
    if not bins:
        return pool

    def kept(scene: Scene) -> Scene:
        return Scene(scene.caption, [r for r in scene.regions if not is_thin(r.box, bins)])

    if thin := sum(len(scene.regions) - len(kept(scene).regions) for scene in pool.scenes):
        print(f"{thin} boxes are thinner than one of {bins} bins and dropped")
    return replace(pool, scenes=Mapped(kept, pool.scenes))


def fine_tune(
    model: ReCoPipeline,
    pool: Cache,
    plan: Plan,
    phrase: str,
    variant: str = "reco",
    batch: int = BATCH,
) -> Job:
    """The job of training a model to read boxes, from a cache of images and their scenes.

    Args:
        variant: as in `make`.
        batch: images a step.
    """
    denoiser, scheduler = UNetDenoiser(model.unet), model.scheduler
    stages = Stages(pool, STAGES)

    def loss_at(number: int, generator: torch.Generator) -> Tensor:
        index, x_0 = stages.draw(plan.step_of(number), batch, generator)
        scenes = draw_scenes(pool, index, generator)
        if variant == "words":
            scenes = [positional_scene(scene) for scene in scenes]
        elif variant == "digits":
            scenes = [digit_scene(scene, model.tokenizer) for scene in scenes]
        ids = model.position_tokens.encode([*scenes, Scene("")])
        if model.device.type == "cpu" and torch.rand((), generator=generator) >= FULL_LENGTH:
            ids = ids[:, : model.position_tokens.attention_mask(ids).sum(1).max()]
        condition = model.encode_ids(ids, batch)
        noise, t = draw_noise(x_0, scheduler, generator)
        x_0, noise, t = (each.to(model.device) for each in (x_0, noise, t))
        loss = training_loss(denoiser, x_0, condition, t, noise, scheduler)
        if variant == "contrastive":
            loss = loss + contrastive_loss(condition.text[:, -1])
        return loss

    both = torch.nn.ModuleDict({"unet": model.unet, "text_encoder": model.text_encoder})
    both.to(memory_format=torch.channels_last)
    save = lambda folder: save_model(model, folder)  # noqa: E731
    replayed = [model.unet, model.text_encoder]
    return Job(both, loss_at, save, plan, phrase, replayed, model, "boxes")


def draw_scenes(pool: Cache, index: Tensor, generator: torch.Generator) -> list[Scene]:
    """The scenes of a training step: a caption each and the regions in random order, some dropped.

    Three independent decisions per image: drop the caption (p = DROP_CAPTION), the regions, both
    (p = DROP each).
    """
    captions = pool.draw_captions(index, generator)
    scenes, chances = [], torch.tensor([DROP_CAPTION, DROP, DROP])
    for i, caption in zip(index.tolist(), captions, strict=True):
        no_caption, no_regions, nothing = torch.rand(3, generator=generator) < chances
        regions = pool.scenes[i].regions
        order = torch.randperm(len(regions), generator=generator)[:MOST_REGIONS].tolist()
        kept = () if no_regions or nothing else [regions[k] for k in order]
        scenes.append(Scene("" if no_caption or nothing else caption, kept))
    return scenes
