# SPDX-License-Identifier: Apache-2.0
"""The pocket text-to-image model: a small Stable Diffusion, U-Net and text encoder from scratch."""

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from einops import repeat
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from spatext_lab import zoo
from spatext_lab.clip import hidden_states
from spatext_lab.diffusion import (
    Condition,
    UNetDenoiser,
    drop_conditions,
    noise_schedule,
    training_loss,
)
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from spatext_lab.text_to_image.tokenizer import new_tokenizer
from spatext_lab.training import cache
from spatext_lab.training.job import Job, device_of, save_model
from spatext_lab.training.loop import Plan

BATCH, SCENES, DROP = 32, 16_000, 0.1
TEXT_WIDTH = 96


def new_unet(
    in_channels: int = 4, out_channels: int = 4, text_width: int = TEXT_WIDTH
) -> UNet2DConditionModel:
    """Stable Diffusion's U-Net, small: attention where the picture is 8 x 8 and 4 x 4."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=in_channels,
        out_channels=out_channels,
        block_out_channels=(64, 64, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=text_width,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=16,
    )


def new_text_encoder(tokenizer) -> CLIPTextModel:
    """CLIP's text transformer, small, with the full 77 positions."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=77,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_pipeline() -> TextToImagePipeline:
    """The shipped autoencoder, and everything else with random weights."""
    tokenizer = new_tokenizer()
    vae = AutoencoderTiny.from_pretrained(
        zoo.folder("pocket", "text-to-image/vae"), torch_dtype=torch.float32
    )
    return TextToImagePipeline(
        new_unet(), vae, new_text_encoder(tokenizer), tokenizer, noise_schedule()
    )


def make(plan: Plan, device: str, *, base: str | None = None) -> Job:
    """The plain diffusion loss on cached latents; caption dropped for one image in ten.

    Args:
        base: the model to continue from, "pocket" or a folder; random weights if not given.
    """
    torch.manual_seed(plan.seed)
    if base:
        folder = zoo.folder(base, "text-to-image")
        model = TextToImagePipeline.from_pretrained(folder).to(device_of(device))
    else:
        model = new_pipeline()
    unet, text_encoder, vae = model.unet, model.text_encoder, model.vae
    tokenizer, scheduler, denoiser = model.tokenizer, model.scheduler, UNetDenoiser(unet)
    pool = cache.build(cache.pocket_examples(SCENES), SCENES, vae)

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(pool.latents), (BATCH,), generator=generator)
        texts = [*pool.draw_captions(index, generator), ""]
        text = hidden_states(text_encoder, tokenizer, texts, unet.device)  # with gradients
        condition = Condition(text[:-1], repeat(text[-1], "l c -> b l c", b=BATCH))
        drop = (torch.rand(BATCH, generator=generator) < DROP).to(unet.device)
        condition = drop_conditions(condition, drop, drop)
        x_0 = pool.latents[index]
        noise, t = cache.draw_noise(x_0, scheduler, generator)
        x_0, t, noise = (each.to(unet.device) for each in (x_0, t, noise))
        return training_loss(denoiser, x_0, condition, t, noise, scheduler)

    both = torch.nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    both.to(memory_format=torch.channels_last)
    scenes = f"pocket scenes train 0-{SCENES - 1}"
    return Job(both, loss_at, lambda folder: save_model(model, folder), plan, scenes)
