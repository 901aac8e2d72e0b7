# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusion 1.5 with random weights, small: its own classes in its official folder layout.

Chapter 12 and tests take the real model's path with it, where the real weights are not at hand. Its
images are noise.
"""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from open_clip.model import CLIP
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from spatext_lab.text_to_image.tokenizer import new_tokenizer

WIDTH = 16  # of all hidden states; 768 in the real one
EMBEDDING_DIM = 24  # of OpenCLIP's embeddings; 768 in the real one


def write(root: Path) -> Path:
    """Writes root/text-to-image and root/clip, as `models fetch sd15` does."""
    stable_diffusion(root / "text-to-image")
    open_clip(root / "clip")
    return root


def stable_diffusion(
    folder: Path, *, length: int = 77, bins: int = 0, levels: int = 4, side: int = 8
) -> Path:
    """Writes a text-to-image model of Stable Diffusion's classes, with its noise schedule.

    Args:
        folder: where to.
        length: tokens that the text encoder reads.
        bins: position tokens, as in the published weights of ReCo.
        levels: of the U-Net and of the autoencoder; an image has side * 2 ** (levels - 1) pixels.
        side: of the latents.
    """
    torch.manual_seed(0)
    tokenizer = new_tokenizer(merges=100, length=length)
    tokenizer.add_tokens([f"<bin{number:03d}>" for number in range(bins)])
    blocks = {"block_out_channels": (8,) * levels, "norm_num_groups": 4}
    unet = UNet2DConditionModel(
        sample_size=side,
        down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        **blocks,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=4,
        sample_size=side * 2 ** (levels - 1),
        **blocks,
    )
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder(tokenizer, length),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def text_encoder(tokenizer, length: int) -> CLIPTextModel:
    """One layer of CLIP's text transformer, for a tokenizer's words."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=length,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def open_clip(folder: Path) -> Path:
    """Writes an OpenCLIP with CLIP's own tokenizer, as open_clip saves it."""
    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8}
    words = {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
    model = {"embed_dim": EMBEDDING_DIM, "vision_cfg": vision, "text_cfg": words}
    preprocess = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}
    folder.mkdir(parents=True, exist_ok=True)
    config = json.dumps({"model_cfg": model, "preprocess_cfg": preprocess}, indent=2)
    (folder / "open_clip_config.json").write_text(config, encoding="utf-8")
    save_file(CLIP(**model).state_dict(), folder / "open_clip_model.safetensors")
    return folder
