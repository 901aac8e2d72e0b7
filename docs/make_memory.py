# SPDX-License-Identifier: Apache-2.0
"""Writes docs/measured/memory.json: the memory of training Stable Diffusion 1.5, counted.

`python docs/make_memory.py` takes some minutes and 2 GB. The networks have Stable Diffusion 1.5's
shapes and no weights; `training.memory` counts what a step would hold on a GPU. 512 pixels.
"""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import open_clip
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from open_clip.model import CLIP
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from spatext_lab.training import memory
from spatext_lab.training.optimiser import save_activations
from spatext_lab.training.plan import Plan

OUT = Path(__file__).resolve().parent / "measured" / "memory.json"
BATCHES, SIDE, WIDTH = (1, 4, 8, 16), 64, 768  # images, latents, CLIP ViT-L/14
LENGTHS = {"SpaText": 77, "ReCo": 616}  # tokens
STEP = Plan(steps=1, lr=1.0, accumulate=2)
SETTINGS = {
    "all": STEP,
    "cpu": replace(STEP, average="cpu"),
    "bits": replace(STEP, average="cpu", adamw="8bit"),
}


def unet(channels: int) -> UNet2DConditionModel:
    """Stable Diffusion 1.5's, for so many input channels."""
    widths = (320, 640, 1280, 1280)
    shape = {"cross_attention_dim": WIDTH, "attention_head_dim": 8, "block_out_channels": widths}
    return UNet2DConditionModel(sample_size=SIDE, in_channels=channels, out_channels=4, **shape)


def text_encoder(length: int) -> CLIPTextModel:
    """CLIP ViT-L/14's, for so many tokens."""
    shape = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 12}
    return CLIPTextModel(
        CLIPTextConfig(**shape, num_attention_heads=12, max_position_embeddings=length)
    )


def autoencoder() -> AutoencoderKL:
    """Stable Diffusion 1's."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
    )


def rows(method: str, checkpointing: bool) -> list[dict]:
    """The rows of a method: a batch each, with three ways to hold average and moments."""
    with torch.device("meta"):
        reads_map = method == "SpaText"
        network, reader = unet(4 + WIDTH * reads_map), text_encoder(LENGTHS[method])
        others: list[nn.Module] = [autoencoder()]
        if reads_map:
            others += [reader, CLIP(**open_clip.get_model_config("ViT-L-14"))]
    parts = {"unet": network} if reads_map else {"unet": network, "text_encoder": reader}
    module = nn.ModuleDict(parts).train()
    if checkpointing:
        save_activations(module)

    def loss_of(batch: int, generator: torch.Generator) -> Tensor:
        x = torch.zeros(batch, network.config.in_channels, SIDE, SIDE)
        ids = torch.zeros(batch, LENGTHS[method], dtype=torch.long)
        text = torch.zeros(batch, LENGTHS[method], WIDTH)
        text = text if reads_map else reader(ids).last_hidden_state
        return network(x, torch.zeros(batch), text).sample.sum()

    found = []
    for batch in BATCHES:
        held = memory.pass_bytes(module, lambda _, g, n=batch: loss_of(n, g), bf16=True)
        name = f"{method}, batch {batch}" + ", checkpointing" * checkpointing
        row = {"name": name, "passes": held / memory.GIB}
        for setting, plan in SETTINGS.items():
            kept = memory.resident(module, plan, others, held)
            row[setting] = kept.total / memory.GIB
        print(row, flush=True)
        found.append(row)
    return found


def main() -> None:
    """Counts, and writes the file."""
    warnings.filterwarnings("ignore")
    kinds = [(method, again) for method in LENGTHS for again in (False, True)]
    content = {
        "command": "python docs/make_memory.py",
        "rows": [row for kind in kinds for row in rows(*kind)],
    }
    OUT.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
