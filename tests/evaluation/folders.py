# SPDX-License-Identifier: Apache-2.0
"""Segmenters and captioners of `transformers`' own classes, of random weights, as it saves them."""

from pathlib import Path

import torch
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    SamConfig,
    SamImageProcessor,
    SamModel,
)

WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *["a", "dog", "cat", "on", "the", "grass", "tree", "sea"],
]
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
SMALL |= {"num_hidden_layers": 1}
SIDE = {"height": 32, "width": 32}


def _tokenizer(place: Path) -> BertTokenizer:
    place.mkdir()
    (place / "vocab.txt").write_text("\n".join(WORDS))
    return BertTokenizer.from_pretrained(place)


def _ids(**more: int) -> dict[str, int]:
    return {"vocab_size": len(WORDS), "pad_token_id": 0, "eos_token_id": 3, **more}


def tiny_git(place: Path) -> Path:
    """Writes a GIT folder."""
    torch.manual_seed(0)
    vision = SMALL | {"image_size": 32, "patch_size": 16}
    model = GitForCausalLM(GitConfig(vision_config=vision, **SMALL, **_ids(bos_token_id=2)))
    torch.nn.init.normal_(model.output.weight)  # so that images differ in their captions
    for weight in model.git.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.5)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SIDE)
    GitProcessor(images, _tokenizer(place)).save_pretrained(place)
    model.save_pretrained(place)
    return place


def tiny_blip(place: Path) -> Path:
    """Writes a BLIP folder."""
    torch.manual_seed(0)
    text = SMALL | _ids(bos_token_id=2, sep_token_id=3) | {"encoder_hidden_size": 16}
    vision = SMALL | {"image_size": 32, "patch_size": 16}
    config = BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=16)
    BlipForConditionalGeneration(config).save_pretrained(place)
    BlipProcessor(BlipImageProcessor(size=SIDE), _tokenizer(place / "words")).save_pretrained(place)
    return place


def tiny_sam(place: Path) -> Path:
    """Writes a SAM folder."""
    torch.manual_seed(0)
    grid = {"image_size": 64, "patch_size": 16}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "mlp_dim": 16}
    vision = layers | grid | {"output_channels": 16, "num_pos_feats": 8, "window_size": 0}
    config = SamConfig(
        vision_config=vision | {"global_attn_indexes": [0]},
        prompt_encoder_config=grid | {"hidden_size": 16, "mask_input_channels": 4},
        mask_decoder_config=layers | {"iou_head_hidden_dim": 16},
    )
    SamModel(config).save_pretrained(place)
    SamImageProcessor(
        size={"longest_edge": 64},
        pad_size={"height": 64, "width": 64},
        mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    ).save_pretrained(place)
    return place
