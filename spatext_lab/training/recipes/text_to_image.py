# SPDX-License-Identifier: Apache-2.0
"""The pocket text-to-image model: a small Stable Diffusion trained on captions alone.

One run in two stages. At first all images have 8 x 8 latents: crops around an object and large
objects at half the resolution, which cost a quarter of a whole image and show what a caption says
in most of their cells. From SMALL_STEPS on, three steps of four have whole images, 16 x 16 latents.
The text encoder starts as the pocket CLIP's text transformer, as Stable Diffusion's is CLIP's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler
from einops import rearrange, reduce, repeat
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import CLIPTokenizer

from spatext_lab.clip import Clip
from spatext_lab.datasets.pocket.pretraining import View, large_view, small_view
from spatext_lab.diffusion import Condition, drop_conditions, noise_schedule, training_loss
from spatext_lab.images import encode, to_tensor
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from spatext_lab.text_to_image.unet import PocketUNet
from spatext_lab.training.ahead import Ahead, renderers
from spatext_lab.training.cache import draw_noise
from spatext_lab.training.job import Job, device_of, part, save_model
from spatext_lab.training.loop import Plan

SMALL_STEPS = 5400  # of the first stage
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


def is_small(step: int) -> bool:
    """Whether the step has 8 x 8 latents: all of the first stage, then one step of four."""
    return step < SMALL_STEPS or step % 4 == 0


def block_of(step: int) -> int:
    """The number of the block of views that the step uses: BLOCK steps of its size have it."""
    small = min(step, SMALL_STEPS) + max(0, step - SMALL_STEPS + 3) // 4  # small steps before it
    return (small if is_small(step) else step - small) // BLOCK


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


def new_pipeline(vae: Path | None = None, clip: Path | None = None) -> TextToImagePipeline:
    """An autoencoder, a CLIP's text transformer and a U-Net of random weights; see `make`."""
    reader = Clip.from_pretrained(part(clip, "spatext/clip"))
    text_encoder, tokenizer = reader.text_transformer(CAPTION), reader.tokenizer
    tokenizer.model_max_length = CAPTION
    autoencoder = AutoencoderTiny.from_pretrained(
        part(vae, "text-to-image/vae"), torch_dtype=torch.float32
    )
    unet = new_unet(4, 4, text_encoder.config.hidden_size)
    return TextToImagePipeline(unet, autoencoder, text_encoder, tokenizer, noise_schedule())


def make(
    plan: Plan,
    device: str,
    *,
    vae: Path | None = None,
    clip: Path | None = None,
    batch: int = BATCH,
) -> Job:
    """The diffusion loss on views that are rendered without end; one caption in ten is dropped.

    Args:
        plan: the run's length and rate; where it stops has no effect on the steps before it.
        device: "cpu", or "auto" for a GPU where there is one.
        vae: the autoencoder's folder; the shipped one if not given.
        clip: the folder of the CLIP whose text transformer is the start of the text encoder; the
            shipped one if not given.
        batch: whole images a step, or twice as many at half the resolution; a GPU takes hundreds.
    """
    torch.manual_seed(plan.seed)
    model = new_pipeline(vae, clip)
    unet, scheduler = model.unet, model.scheduler
    model.vae.to(device_of(device))
    processes = renderers(device_of(device))
    items = partial(tokenized, seed=plan.seed, tokenizer=model.tokenizer)
    small = Ahead(partial(items, view=small_view), 2 * batch * SMALL_VIEWS, processes)
    large = Ahead(partial(items, view=large_view), batch * LARGE_VIEWS, processes)

    @lru_cache(maxsize=2)
    def views(source: Ahead, block: int) -> Views:
        return encoded(source.block(block), model.vae)

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        source, size = (small, 2 * batch) if is_small(step) else (large, batch)
        pool = views(source, block_of(step))
        index = torch.randint(len(pool.latents), (size,), generator=generator)
        condition = conditions(model, pool, index, generator)
        x_0 = pool.latents[index]
        noise, t = draw_noise(x_0, scheduler, generator)
        weight = None if is_small(step) else object_weights(pool.coverage[index], t, scheduler)
        window = pool.windows[index].to(unet.device)

        def denoiser(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
            return unet(x_t, t, condition.text, window=window).sample

        x_0, noise, t = (one.to(unet.device) for one in (x_0, noise, t))
        weight = weight if weight is None else weight.to(unet.device)
        return training_loss(denoiser, x_0, condition, t, noise, scheduler, weight)

    both = torch.nn.ModuleDict({"unet": unet, "text_encoder": model.text_encoder})
    both.to(memory_format=torch.channels_last)
    data = "pocket views rendered while it learns: crops, large objects, scenes, PaintSkills"
    save = lambda folder: save_model(model, folder)  # noqa: E731
    return Job(both, loss_at, save, plan, data, [*both.values()])


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
