# SPDX-License-Identifier: Apache-2.0
"""CLIP as two functions: a text becomes a vector, a picture or a segment of one becomes a vector.

The network is an `open_clip` model in open_clip's own folder layout; a tokenizer in
transformers' layout lies in the same folder, as open_clip expects it.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from safetensors.torch import save_file
from torch import Tensor

CONFIG_NAME, WEIGHTS_NAME = "open_clip_config.json", "open_clip_model.safetensors"


# SpaText, arXiv 2211.14305, section 3.1 and figure 3: "a tight square crop", black outside
def segment_crop(
    image: Float[Tensor, "3 H W"], mask: Bool[Tensor, "H W"], size: int
) -> Float[Tensor, "3 size size"]:
    """The tight square around a segment, pixels outside the segment black, resized to `size`.

    image: values in [0, 1]. Where the square reaches over the picture's edge it is black too.
    Raises ValueError for an empty mask.
    """
    if not mask.any():
        raise ValueError("mask is empty; a segment needs at least one pixel")
    rows, columns = torch.where(mask.any(1))[0], torch.where(mask.any(0))[0]
    top, bottom = rows[0].item(), rows[-1].item() + 1
    left, right = columns[0].item(), columns[-1].item() + 1
    side = max(bottom - top, right - left)
    spare_y, spare_x = side - (bottom - top), side - (right - left)
    tight = (image * mask)[:, top:bottom, left:right]
    around = (spare_x // 2, spare_x - spare_x // 2, spare_y // 2, spare_y - spare_y // 2)
    square = F.pad(tight, around)[None]
    return F.interpolate(square, (size, size), mode="bilinear", antialias=True)[0]


class Clip:
    """An open_clip model and its tokenizer; all vectors that leave have length 1."""

    def __init__(self, model: torch.nn.Module, tokenizer, config: dict) -> None:
        self.model, self.tokenizer, self.config = model.eval(), tokenizer, config

    @property
    def width(self) -> int:
        """Dimension of the joint space of pictures and texts."""
        return self.config["model_cfg"]["embed_dim"]

    @property
    def image_size(self) -> int:
        """Side of the square picture that the network reads, in pixels."""
        return self.config["model_cfg"]["vision_cfg"]["image_size"]

    @property
    def device(self) -> torch.device:
        """Where the network's weights are."""
        return next(self.model.parameters()).device

    def to(self, device: torch.device | str) -> "Clip":
        """The same CLIP, its weights moved."""
        self.model.to(device)
        return self

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Clip":
        """Reads an open_clip folder. Raises FileNotFoundError where there is none."""
        import open_clip

        if not (Path(folder) / CONFIG_NAME).is_file():
            raise FileNotFoundError(f"{folder} has no {CONFIG_NAME}; give an open_clip folder")
        config = json.loads((Path(folder) / CONFIG_NAME).read_text())
        name = f"local-dir:{folder}"
        return cls(open_clip.create_model(name), open_clip.get_tokenizer(name), config)

    def half(self) -> "Clip":
        """The same CLIP, its weights in half precision."""
        self.model.half()
        return self

    def float(self) -> "Clip":
        """The same CLIP, its weights in single precision."""
        self.model.float()
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes an open_clip folder that `open_clip.create_model("local-dir:...")` reads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if hasattr(self.tokenizer, "save_pretrained"):  # CLIP's own needs no file
            self.tokenizer.save_pretrained(folder)
        weights = self.model.state_dict()
        state = {k: v.cpu().contiguous() for k, v in weights.items()}
        save_file(state, folder / WEIGHTS_NAME)
        (folder / CONFIG_NAME).write_text(json.dumps(self.config, indent=2) + "\n")

    def text(self, texts: list[str]) -> Float[Tensor, "b d"]:
        """One unit vector per text."""
        ids = self.tokenizer(texts).to(self.device)
        return self.model.encode_text(ids, normalize=True)

    def text_transformer(self, length: int):
        """The text transformer as a `CLIPTextModel` of transformers, in single precision: a state
        for each token where `text` gives one vector for all.

        length: tokens that it is to read; beyond what CLIP has learned, its last position repeats.
        The tokenizer must be one of transformers', as the pocket CLIP's is.
        """
        from transformers import CLIPTextConfig, CLIPTextModel

        shape, tokenizer = self.config["model_cfg"]["text_cfg"], self.tokenizer.tokenizer
        config = CLIPTextConfig(
            vocab_size=shape["vocab_size"],
            hidden_size=shape["width"],
            intermediate_size=4 * shape["width"],
            num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"],
            max_position_embeddings=length,
            projection_dim=shape["width"],
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        model = CLIPTextModel(config)
        model.load_state_dict(_renamed(self.model.float().state_dict(), shape["layers"], length))
        return model.eval()

    def cut(self, text: str) -> str:
        """The end of a text that is beyond what the text transformer reads; mostly empty."""
        context = self.config["model_cfg"]["text_cfg"]["context_length"]
        words = text.split()
        for kept in range(len(words), 0, -1):
            if self._length(" ".join(words[:kept])) <= context:
                return " ".join(words[kept:])
        return text

    def _length(self, text: str) -> int:
        """Tokens of a text with its begin and its end, not cut."""
        tokenizer = getattr(self.tokenizer, "tokenizer", None)
        if tokenizer is None:  # open_clip's own
            return len(self.tokenizer.encode(text)) + 2
        return len(tokenizer(text).input_ids)

    def images(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """One unit vector per picture; values in [0, 1], any size (resized to `image_size`)."""
        size = (self.image_size, self.image_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        mean, std = (
            torch.tensor(self.config["preprocess_cfg"][key], device=images.device).view(3, 1, 1)
            for key in ("mean", "std")
        )
        return self.model.encode_image((images - mean) / std, normalize=True)

    def segments(
        self, images: Float[Tensor, "b 3 H W"], masks: Bool[Tensor, "b H W"]
    ) -> Float[Tensor, "b d"]:
        """One unit vector per (picture, segment): CLIP of the segment's crop on black."""
        pairs = zip(images, masks, strict=True)
        crops = [segment_crop(image, mask, self.image_size) for image, mask in pairs]
        return self.images(torch.stack(crops).to(self.device))


# open_clip's name of a part of a layer, and transformers'
_PARTS = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def _renamed(weights: dict[str, Tensor], layers: int, length: int) -> dict[str, Tensor]:
    """The weights of open_clip's text transformer by the names that transformers has for them."""
    places = weights["positional_embedding"]
    named = {
        "embeddings.token_embedding.weight": weights["token_embedding.weight"],
        "embeddings.position_embedding.weight": torch.cat(
            [places, places[-1:].expand(length - len(places), -1)]
        ),
    }
    for kind in ("weight", "bias"):
        named[f"final_layer_norm.{kind}"] = weights[f"ln_final.{kind}"]
        for i in range(layers):
            old, new = f"transformer.resblocks.{i}.", f"encoder.layers.{i}."
            for a, b in _PARTS.items():
                named[f"{new}{b}.{kind}"] = weights[f"{old}{a}.{kind}"]
            parts = weights[f"{old}attn.in_proj_{kind}"].chunk(3)
            for letter, part in zip("qkv", parts, strict=True):
                named[f"{new}self_attn.{letter}_proj.{kind}"] = part
    return named
