# SPDX-License-Identifier: Apache-2.0
"""The pocket text-to-image model: a small Stable Diffusion trained on captions alone.

One run in two stages. At first all images have 8 x 8 latents: crops around an object and large
objects at half the resolution, which cost a quarter of a whole image and show what a caption says
in most of their cells. From SMALL_STEPS on, three steps of four have whole images, 16 x 16 latents.
The text encoder starts as the pocket CLIP's text transformer, as Stable Diffusion's is CLIP's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler
from einops import rearrange, reduce, repeat
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import CLIPTokenizer

from spatext_lab import zoo
from spatext_lab.clip import Clip
from spatext_lab.datasets.coco import PhotoChoice
from spatext_lab.datasets.pocket.pretraining import View, large_view, small_view
from spatext_lab.diffusion import Condition, drop_conditions, noise_schedule, training_loss
from spatext_lab.images import encode, to_tensor
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from spatext_lab.text_to_image.unet import PocketUNet
from spatext_lab.training.ahead import Ahead, renderers
from spatext_lab.training.cache import draw_noise
from spatext_lab.training.job import Job, device_of, part, save_model
from spatext_lab.training.loop import Plan
from spatext_lab.training.photos import large_photo, small_photo, training_photos

SMALL_STEPS = 5400  # of the first stage; of photos a fraction of all steps
PHOTO_SMALL = 0.2
MIN_AREA = 0.02  # of a photo, that a segment covers whose text is learned
BATCH = 32  # whole images a step, or twice as many small ones
# New views are rendered for every BLOCK steps of a size, so many for each image of the batch: a
# small view is seen about twelve times, a large one six times, and never again.
BLOCK, SMALL_VIEWS, LARGE_VIEWS = 200, 16, 32
DROP = 0.1
CAPTION = 77  # tokens that Stable Diffusion's text encoder reads
# Most of a caption's tokens are padding, which costs as much as the words. On the CPU this fraction
# of the steps has all of it, as sampling has; the others have what their longest caption needs. A
# GPU has time for it, and repeats steps of one shape fastest.
FULL_LENGTH = 1 / 8
OBJECT_WEIGHT = 3.0  # of a cell full of an object, in whole images, where x_t has no noise
_CHUNK = 64


@dataclass(frozen=True)
class Views:
    """Views as tensors."""

    latents: Float[Tensor, "n 4 h w"]
    ids: Int[Tensor, "n k 77"]  # of up to k captions each
    count: Int[Tensor, "n"]  # how many these are
    windows: Float[Tensor, "n 4"]
    coverage: Float[Tensor, "n 1 h w"]  # the fraction of each cell that objects cover

    def draw_captions(self, index: Tensor, generator: torch.Generator) -> Int[Tensor, "b 77"]:
        """The ids of one caption of each view, at random."""
        chosen = torch.rand(len(index), generator=generator) * self.count[index]
        return self.ids[index, chosen.long()]


def tokenized(
    number: int, view: Callable[[int, int], View], seed: int, tokenizer: CLIPTokenizer
) -> tuple[View, Int[np.ndarray, "k 77"]]:
    """A view by its number, and the ids of its captions."""
    shown = view(number, seed)
    padded = {"padding": "max_length", "truncation": True, "return_tensors": "np"}
    return shown, tokenizer(list(shown.captions), **padded).input_ids


@torch.no_grad()
def encoded(shown: list[tuple[View, Int[np.ndarray, "_ 77"]]], vae) -> Views:
    """The views' latents, and what the loss needs beside them."""
    views, captions = zip(*shown, strict=True)
    images = to_tensor(np.stack([view.image for view in views])).to(vae.device)
    with torch.autocast(images.device.type, enabled=False):  # a training step has it on a GPU
        latents = torch.cat([encode(vae, some) for some in images.split(_CHUNK)]).cpu()
    objects = torch.from_numpy(np.stack([view.objects for view in views])).float()
    h, w = latents.shape[2:]
    coverage = reduce(objects, "n (h p) (w q) -> n 1 h w", "mean", h=h, w=w)
    windows = torch.tensor([view.window for view in views])
    ids = pad_sequence([torch.from_numpy(each) for each in captions], batch_first=True)
    return Views(latents, ids, torch.tensor([*map(len, captions)]), windows, coverage)


def is_small(step: int, first: int | None = None) -> bool:
    """Whether the step has 8 x 8 latents: all of the first stage, then one step of four.

    Args:
        first: steps of the first stage; SMALL_STEPS if not given.
    """
    return step < (SMALL_STEPS if first is None else first) or step % 4 == 0


def block_of(step: int, first: int | None = None) -> int:
    """The number of the block of views that the step uses: BLOCK steps of its size have it."""
    stage = SMALL_STEPS if first is None else first
    small = min(step, stage) + (max(step, stage) + 3) // 4 - (stage + 3) // 4  # steps before it
    return (small if is_small(step, first) else step - small) // BLOCK


# As far as x_t shows the objects: at the noisy end, where it does not, a larger weight would draw
# the prediction towards objects that need not be there.
def object_weights(
    coverage: Float[Tensor, "b 1 h w"], t: Int[Tensor, "b"], scheduler: DDIMScheduler
) -> Float[Tensor, "b 1 h w"]:
    """1 + (OBJECT_WEIGHT - 1) sqrt(alpha_bar_t) coverage, brought to mean 1 over the batch."""
    signal = rearrange(scheduler.alphas_cumprod[t].sqrt(), "b -> b 1 1 1")
    weights = 1 + (OBJECT_WEIGHT - 1) * signal * coverage
    return weights / weights.mean()


def new_unet(in_channels: int, out_channels: int, text_width: int) -> PocketUNet:
    """Stable Diffusion's U-Net, small: 4.2 million weights, attention at 8 x 8 and 4 x 4."""
    return PocketUNet(
        sample_size=16,
        in_channels=in_channels,
        out_channels=out_channels,
        block_out_channels=(64, 96, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=text_width,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=16,
    )


def new_pipeline(
    vae: Path | None = None, clip: Path | None = None, base: str | None = None
) -> TextToImagePipeline:
    """The model before its first step; see `make`.

    Raises:
        ValueError: a base whose U-Net is not a pocket one, or does not read the CLIP's states.
    """
    parts: dict[str, Any] = {}
    if base is not None:
        parts = dict(
            TextToImagePipeline.from_pretrained(zoo.folder(base, "text-to-image")).components
        )
    if clip is not None or base is None:
        reader = Clip.from_pretrained(part(clip, "spatext/clip"))
        reader.tokenizer.model_max_length = CAPTION
        parts["tokenizer"] = reader.tokenizer
        parts["text_encoder"] = reader.text_transformer(CAPTION)
    if vae is not None or base is None:
        place = part(vae, "text-to-image/vae")
        parts["vae"] = AutoencoderTiny.from_pretrained(place, torch_dtype=torch.float32)
    width = parts["text_encoder"].config.hidden_size
    unet = parts["unet"] = parts.get("unet") or new_unet(4, 4, width)
    if not isinstance(unet, PocketUNet) or unet.config.cross_attention_dim != width:
        raise ValueError(
            f"base is {base}, whose U-Net is a {type(unet).__name__} for hidden states of width "
            f"{unet.config.cross_attention_dim}; pass one with a PocketUNet for width {width}"
        )
    return TextToImagePipeline(**{"scheduler": noise_schedule()} | parts)


def make(
    plan: Plan,
    device: str,
    *,
    data: Path | None = None,
    base: str | None = None,
    vae: Path | None = None,
    clip: Path | None = None,
    batch: int = BATCH,
    **choice: Unpack[PhotoChoice],
) -> Job:
    """The diffusion loss on views that are rendered without end; one caption in ten is dropped.

    Args:
        plan: the run's length and rate; where it stops has no effect on the steps before it, but
            for photos, whose first stage is a fraction of it.
        device: "cpu", or "auto" for a GPU where there is one.
        data: a folder in COCO layout, of whose photos most is shown with their captions, and
            segments with their names; pocket scenes if not given.
        base: the model to continue, "pocket" or a folder; a U-Net of random weights if not given.
        vae: the autoencoder's folder; the base's, or the shipped one, if not given.
        clip: the folder of the CLIP whose text transformer is the start of the text encoder; the
            base's text encoder, or the shipped CLIP's, if not given.
        batch: whole images a step, or twice as many at half the resolution; a GPU takes hundreds.
        choice: of the folder's photos, see `PhotoChoice`.
    """
    torch.manual_seed(plan.seed)
    model = new_pipeline(vae, clip, base)
    unet, scheduler = model.unet, model.scheduler
    model.vae.to(device_of(device))
    data_phrase = "pocket views rendered while it learns: crops, large objects, scenes, PaintSkills"
    first, shown = SMALL_STEPS, (small_view, large_view)
    if data is not None:
        photos, data_phrase = training_photos(data, **{"min_area": MIN_AREA} | choice)
        first = round(PHOTO_SMALL * plan.steps)
        shown = tuple(partial(view, photos=photos) for view in (small_photo, large_photo))
    size = batch * plan.accumulate  # of a step
    small, large = sources(model, shown, size, plan.seed, device_of(device))

    @lru_cache(maxsize=2)
    def views(source: Ahead, block: int) -> Views:
        return encoded(source.block(block), model.vae)

    def loss_at(number: int, generator: torch.Generator) -> Tensor:
        step = plan.step_of(number)
        is_half = is_small(step, first)
        source, count = (small, 2 * batch) if is_half else (large, batch)
        pool = views(source, block_of(step, first))
        index = torch.randint(len(pool.latents), (count,), generator=generator)
        condition = conditions(model, pool, index, generator)
        x_0 = pool.latents[index]
        noise, t = draw_noise(x_0, scheduler, generator)
        weight = None if is_half else object_weights(pool.coverage[index], t, scheduler)
        window = pool.windows[index].to(unet.device)

        def denoiser(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
            return unet(x_t, t, condition.text, window=window).sample

        x_0, noise, t = (one.to(unet.device) for one in (x_0, noise, t))
        weight = weight if weight is None else weight.to(unet.device)
        return training_loss(denoiser, x_0, condition, t, noise, scheduler, weight)

    both = torch.nn.ModuleDict({"unet": unet, "text_encoder": model.text_encoder})
    both.to(memory_format=torch.channels_last)
    save = lambda folder: save_model(model, folder)  # noqa: E731
    return Job(both, loss_at, save, plan, data_phrase, [*both.values()])


def sources(
    model: TextToImagePipeline, shown: Sequence[Callable], batch: int, seed: int, device: str
) -> list[Ahead]:
    """The views of small and of large steps, block by block, with the ids of their captions.

    Args:
        shown: the functions (number, seed) -> View of both.
        batch: whole images a step.
    """
    processes, tokenizer = renderers(device), model.tokenizer
    sizes = 2 * batch * SMALL_VIEWS, batch * LARGE_VIEWS
    return [
        Ahead(partial(tokenized, view=view, seed=seed, tokenizer=tokenizer), size, processes)
        for view, size in zip(shown, sizes, strict=True)
    ]


def conditions(
    model: TextToImagePipeline, pool: Views, index: Tensor, generator: torch.Generator
) -> Condition:
    """A caption of each view, with gradients for the text encoder; in DROP of all cases none."""
    null = model.tokenizer("", padding="max_length", return_tensors="pt").input_ids
    ids = torch.cat([pool.draw_captions(index, generator), null])
    if model.device.type == "cpu" and torch.rand((), generator=generator) >= FULL_LENGTH:
        longest = (ids != model.tokenizer.pad_token_id).sum(1).max() + 1  # and the end token
        ids = ids[:, :longest]
    text = model.text_encoder(ids.to(model.unet.device)).last_hidden_state
    condition = Condition(text[:-1], repeat(text[-1], "l c -> b l c", b=len(index)))
    drop = (torch.rand(len(index), generator=generator) < DROP).to(model.unet.device)
    return drop_conditions(condition, drop, drop)
