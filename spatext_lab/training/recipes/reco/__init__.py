# SPDX-License-Identifier: Apache-2.0
"""ReCo's fine-tune: U-Net and whole text encoder learn what position tokens mean."""

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from spatext_lab import zoo
from spatext_lab.baselines.positional_words import PositionalWordsPipeline
from spatext_lab.clip import Clip
from spatext_lab.diffusion import Condition, training_loss
from spatext_lab.reco.pipeline import ReCoPipeline
from spatext_lab.reco.position_tokens import bin_ids, is_thin
from spatext_lab.reco.text_encoder import forget, grow, without_bins
from spatext_lab.scene import Scene
from spatext_lab.spatext.widen import narrow_input
from spatext_lab.text_to_image.folder import kind_of
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from spatext_lab.training import cache
from spatext_lab.training.job import Job, device_of, save_model
from spatext_lab.training.loop import Plan
from spatext_lab.training.recipes.reco.aids import ATTENTION, aided_base, box_weights, noisy_times
from spatext_lab.training.recipes.reco.attention import attention_loss, watched
from spatext_lab.training.recipes.reco.views import MOST_REGIONS, examples

BATCH = 16
# Caption, regions, or both left out, so that guidance has a null and each can be alone. The
# released code leaves out nothing: its guidance lives on what Stable Diffusion had learned before.
DROP = 0.1
CAPTION = 77  # tokens that CLIP reads
MOST_BINS = 1000  # as in the paper; small pictures need no more than two a pixel
TEMPERATURE = 0.07

VARIANTS = ("reco", "after", "contrastive", "words")


def make(
    plan: Plan,
    device: str,
    data: Path | None = None,
    base: str = "pocket",
    variant: str = "reco",
    bins: int | None = None,
    init: str | None = None,
    aided: bool = False,
    relearn: bool = False,
) -> Job:
    """The diffusion loss on sentences of caption and boxes; nothing else is learned from.

    data: a folder in COCO layout; None for pocket scenes and PaintSkills' four skills in them.
    base: a text-to-image model to grow: "pocket", "sd15" or a folder, also SpaText's, whose map is
        then left out; or a ReCo folder to go on from.
    variant: "reco"; "after", position vectors put in after the text encoder; "contrastive", a
        second loss beside the first; "words", positional words in the caption instead of tokens.
    bins, init: of the new words, see `text_encoder.grow`; None for two bins a pixel, 1000 at most,
        and for "smooth".
    aided: with the help that a small base needs, see `reco_aids`; False for the paper's way.
    relearn: the base is a ReCo folder whose position tokens are forgotten first.

    Raises what `started` raises.
    """
    torch.manual_seed(plan.seed)
    folder = zoo.part(base, "text-to-image")
    model = started(folder, device_of(device), variant, bins, init, plan.seed, aided, relearn)
    views, total, phrase = examples(data, model.picture_size, plan.seed)
    pool = without_thin(cache.build(views, total, model.vae), model.sentences.bins)
    model.most_regions = max(len(regions) for regions in pool.regions)
    temperature = TEMPERATURE if variant == "contrastive" else None
    return fine_tune(model, pool, plan, phrase, temperature, aided)


def started(
    folder: Path,
    device: str,
    variant: str = "reco",
    bins: int | None = None,
    init: str | None = None,
    seed: int = 0,
    aided: bool = False,
    relearn: bool = False,
) -> ReCoPipeline:
    """ReCo before its first step: the base with more words, or a ReCo folder as it is.

    Raises ValueError for an unknown variant, for one that a ReCo folder is not of, for bins or an
    init where no words are added, for relearn where there are no bins to forget, and what `grow`
    raises.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; there are {', '.join(VARIANTS)}")
    base = TextToImagePipeline.from_pretrained(folder, device)
    known, spoken = len(bin_ids(base.tokenizer)), kind_of(folder) == "PositionalWordsPipeline"
    if relearn and not known:
        raise ValueError("relearn is given, and the base has no bins to forget; leave it out")
    if relearn:
        # Not with the seed that the base may have begun with: its layers know that curve of rows.
        base = _forgetful(folder, device)
        return _grown(base, variant, bins, init, seed + 1, base.padding)
    if known or spoken:
        _check_no_words(f"the base has {known} bins already", bins, init)
        return _gone_on_with(folder, device, variant, spoken)
    if aided:
        base = aided_base(base, Clip.from_pretrained(zoo.folder("pocket", "spatext/clip")))
    else:
        base.unet = narrow_input(base.unet)
    return _grown(base, variant, bins, init, seed, "masked" if aided else "read")


def _forgetful(folder: Path, device: str) -> ReCoPipeline:
    """The model of a ReCo folder without its position tokens; all else is as it was learned."""
    model = ReCoPipeline.from_pretrained(folder, device)
    tokenizer = without_bins(model.tokenizer)
    text_encoder = forget(model.text_encoder, tokenizer)
    parts = (model.unet, model.vae, text_encoder, tokenizer, model.scheduler)
    return ReCoPipeline(*parts, padding=model.padding)


def _grown(
    base: TextToImagePipeline,
    variant: str,
    bins: int | None,
    init: str | None,
    seed: int,
    padding: str,
) -> ReCoPipeline:
    """The variant's model: the base's parts, and a text encoder with more words and more room."""
    if variant == "words":
        _check_no_words("variant 'words' has no position tokens", bins, init)
        bins = 0
    elif bins is None:
        bins = min(2 * base.picture_size, MOST_BINS)
    elif bins == 0:
        raise ValueError("bins is 0; give at least 2, the picture's two edges")
    # Room for sentences as pictures have room for things: 77 x 8 for latents of 64 x 64, as in the
    # paper, 77 x 2 for those of 16 x 16. A base that was grown before may have it already.
    old = base.text_encoder.config.max_position_embeddings
    length = max(old, CAPTION * max(base.latent_size // 8, 1))
    grown = grow(base.text_encoder, base.tokenizer, bins, length, init or "smooth", seed)
    kind = PositionalWordsPipeline if variant == "words" else ReCoPipeline
    positions = "after" if variant == "after" else "before"
    parts = (base.unet, base.vae, *grown, base.scheduler)
    return kind(*parts, positions=positions, padding=padding)


def _check_no_words(why: str, bins: int | None, init: str | None) -> None:
    """Raises ValueError for what was said of new words where there will be none."""
    for name, value in (("bins", bins), ("init", init)):
        if value is not None:
            raise ValueError(f"{name} is {value!r}; {why}, leave it out")


def _gone_on_with(folder: Path, device: str, variant: str, spoken: bool) -> ReCoPipeline:
    """The model of a ReCo folder, if the variant is one that it can go on as."""
    kind = PositionalWordsPipeline if spoken else ReCoPipeline
    model = kind.from_pretrained(folder, device)
    able = ("after",) if model.positions == "after" else ("reco", "contrastive")
    able = ("words",) if spoken else able
    if variant not in able:
        raise ValueError(f"variant is {variant!r}; the base can go on as {' or '.join(able)} only")
    return model


def without_thin(pool: cache.Cache, bins: int) -> cache.Cache:
    """The same without boxes that are thinner than a bin, which no sentence can say; how many they
    are is printed. Without bins, all stay: words can say any box."""
    if not bins:
        return pool
    kept = [tuple(r for r in row if not is_thin(r.box, bins)) for row in pool.regions]
    if thin := sum(map(len, pool.regions)) - sum(map(len, kept)):
        print(f"{thin} boxes are thinner than one of {bins} bins and left out")
    return replace(pool, regions=kept)


def fine_tune(
    model: ReCoPipeline,
    pool: cache.Cache,
    plan: Plan,
    phrase: str,
    temperature: float | None = None,
    aided: bool = False,
) -> Job:
    """The job of teaching a model to read boxes, from a cache of pictures and their regions.

    temperature: of the contrastive loss that is added; None for none, as in the paper.
    aided: boxes weighed, more noise, and a loss on who looks at which words; see `reco_aids`.
    """
    denoiser, scheduler = model.denoiser(), model.scheduler

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(pool), (BATCH,), generator=generator)
        scenes = [model.spoken(scene) for scene in told(pool, index, generator)]
        ids = model.sentences.batch([*scenes, Scene("")])
        if model.padding == "masked":  # what nobody looks at need not be computed
            ids = ids[:, : model.sentences.said(ids).any(0).sum()]
        condition = model.told(ids)
        x_0 = pool.latents[index]
        noise = torch.randn(x_0.shape, generator=generator)
        times = scheduler.config.num_train_timesteps
        t = torch.randint(times, (BATCH,), generator=generator)
        if aided:
            t = noisy_times((t + 0.5) / times, times)
        x_0, noise, t = (each.to(model.device) for each in (x_0, noise, t))
        if aided:
            boxes = [scene.regions for scene in scenes]
            weight = box_weights(boxes, tuple(x_0.shape[-2:])).to(model.device)
            with watched(model.unet) as seen:
                loss = training_loss(denoiser, x_0, condition, t, noise, scheduler, weight)
            owners = model.sentences.regions(ids[:-1])
            loss = loss + ATTENTION * attention_loss(seen, owners, scenes)
        else:
            loss = training_loss(denoiser, x_0, condition, t, noise, scheduler)
        if temperature is None:
            return loss
        return loss + contrastive_loss(last_states(condition), temperature)

    both = torch.nn.ModuleDict({"unet": model.unet, "text_encoder": model.text_encoder})
    both.to(memory_format=torch.channels_last)
    return Job(both, loss_at, lambda folder: save_model(model, folder), plan, phrase)


def last_states(condition: Condition) -> Float[Tensor, "b c"]:
    """Of each sentence the state of its last token, which has read all the others."""
    if condition.text_mask is None:
        return condition.text[:, -1]
    last = condition.text_mask.sum(1) - 1
    return condition.text[torch.arange(len(last), device=last.device), last]


def told(pool: cache.Cache, index: Tensor, generator: torch.Generator) -> list[Scene]:
    """What the model is told of pictures: a caption and the regions in random order, some left out.

    Three dice a picture, each DROP: no caption, no regions, neither.
    """
    captions = pool.draw_captions(index, generator)
    scenes = []
    for i, caption in zip(index.tolist(), captions, strict=True):
        no_caption, no_regions, nothing = torch.rand(3, generator=generator) < DROP
        regions = pool.regions[i]
        order = torch.randperm(len(regions), generator=generator)[:MOST_REGIONS].tolist()
        kept = () if no_regions or nothing else [regions[k] for k in order]
        scenes.append(Scene("" if no_caption or nothing else caption, kept))
    return scenes


# A summary of the paper, not the paper: loss = reconstruction + contrastive, temperature 0.07, the
# similarity of each code of a batch with each, the diagonal as the right answer.
def contrastive_loss(codes: Float[Tensor, "b c"], temperature: float) -> Float[Tensor, ""]:
    """Cross-entropy of the codes' cosine similarities with each other: pushes them apart.

    codes: one vector a sentence, see `last_states`.
    """
    unit = F.normalize(codes, dim=1)
    right = torch.arange(len(codes), device=codes.device)
    return F.cross_entropy(unit @ unit.T / temperature, right)
