# SPDX-License-Identifier: Apache-2.0
"""The pocket text-to-image model: a small Stable Diffusion, U-Net and text encoder from scratch."""

from pathlib import Path

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from einops import repeat
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from spatext_lab import zoo
from spatext_lab.diffusion import Condition, drop_conditions, noise_schedule, training_loss
from spatext_lab.spatext.pipeline import TextToImagePipeline, write_index
from spatext_lab.spatext.unet import UNetDenoiser
from spatext_lab.training import cache
from spatext_lab.training.job import Job, save_half
from spatext_lab.training.loop import Plan
from spatext_lab.training.recipes.tokenizer import new_tokenizer

BATCH, SCENES, DROP = 32, 16_000, 0.1
TEXT_WIDTH = 96


def new_unet() -> UNet2DConditionModel:
    """Stable Diffusion's U-Net, small: attention where the picture is 8 x 8 and 4 x 4."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 64, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
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


def make(plan: Plan, device: str, data: Path | None) -> Job:
    """The plain diffusion loss on cached latents; caption dropped for one picture in ten."""
    torch.manual_seed(plan.seed)
    tokenizer = new_tokenizer()
    unet, text_encoder = new_unet(), new_text_encoder(tokenizer)
    vae = AutoencoderTiny.from_pretrained(
        zoo.folder("pocket", "text-to-image/vae"), torch_dtype=torch.float32
    )
    pool = cache.build(cache.pocket_examples(SCENES), SCENES, vae)
    scheduler, denoiser = noise_schedule(), UNetDenoiser(unet)

    def states(texts: list[str]) -> Tensor:
        ids = tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
        return text_encoder(ids.to(unet.device)).last_hidden_state

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(pool), (BATCH,), generator=generator)
        text = states([*pool.draw_captions(index, generator), ""])
        condition = Condition(text[:-1], repeat(text[-1], "l c -> b l c", b=BATCH))
        drop = torch.rand(BATCH, generator=generator) < DROP
        condition = drop_conditions(condition, drop.to(unet.device), drop.to(unet.device))
        x_0 = pool.latents[index]
        noise = torch.randn(x_0.shape, generator=generator)
        t = torch.randint(scheduler.config.num_train_timesteps, (BATCH,), generator=generator)
        x_0, noise, t = x_0.to(unet.device), noise.to(unet.device), t.to(unet.device)
        return training_loss(denoiser, x_0, condition, t, noise, scheduler)

    def save(folder: Path) -> None:
        for part, name in ((unet, "unet"), (text_encoder, "text_encoder"), (vae, "vae")):
            save_half(part, folder / name)
        tokenizer.save_pretrained(folder / "tokenizer")
        scheduler.save_pretrained(folder / "scheduler")
        write_index(folder, TextToImagePipeline)

    both = torch.nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    both.to(memory_format=torch.channels_last)
    return Job(both, loss_at, save, plan, f"pocket scenes train 0-{SCENES - 1}")
