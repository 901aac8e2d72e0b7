# SPDX-License-Identifier: Apache-2.0
"""CLIP: a text, or an image or a segment of one, becomes a unit embedding.

The network is an `open_clip` model in open_clip's own folder layout. A small CLIP has its tokenizer
in the same folder, in transformers' layout; the published ones use open_clip's.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from jaxtyping import Bool, Float
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer, get_clean_fn
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from spatext_lab import zoo
from spatext_lab.scene.notes import warn

CONFIG_NAME, WEIGHTS_NAME = "open_clip_config.json", "open_clip_model.safetensors"
# Of open_clip's settings the ones that are plain numbers; others load further models or run code.
_MODEL_KEYS = {
    "": {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"},
    "vision_cfg": {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio"},
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "hf_tokenizer_name"},
}
_clean = get_clean_fn("whitespace")


# SpaText, arXiv 2211.14305, section 3.1 and figure 3: "a tight square crop", black outside
def segment_crop(
    image: Float[Tensor, "3 H W"], mask: Bool[Tensor, "H W"], size: int
) -> Float[Tensor, "3 size size"]:
    """The tight square around a segment, resized to `size`; black outside the segment.

    Args:
        image: values in [0, 1]. Beyond the image's edge the square is black too.
        mask: True inside the segment.
        size: side of the crop in pixels.

    Raises:
        ValueError: for an empty mask.
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


def truncated(tokenizer: CLIPTokenizer | SimpleTokenizer, text: str, length: int) -> str:
    """The end of a text that a text encoder of `length` tokens does not read; "" for most texts."""
    if isinstance(tokenizer, SimpleTokenizer):
        rest = tokenizer.decode(tokenizer.encode(text)[length - 2 :])
        return rest.lstrip("\ufffd").strip()  # of a character that is read in part
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    beyond = spans.offset_mapping[length - 2 :]
    return text[beyond[0][0] :].strip() if beyond else ""


def hidden_states(
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    texts: Sequence[str],
    device: torch.device | str,
    negatives: int = 0,
) -> Float[Tensor, "b l c"]:
    """The last hidden states of CLIP's text transformer, padded to the l tokens that it reads.

    These condition a text-to-image U-Net through cross-attention. Longer texts are truncated, with
    a warning that quotes what is lost.

    Args:
        negatives: how many of `texts`, at the end, are negative prompts; the others are captions.
    """
    limit = tokenizer.model_max_length
    tokens = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt")
    for k, (text, encoding) in enumerate(zip(texts, tokens.encodings, strict=True)):
        if encoding.overflowing:
            name = "caption" if k < len(texts) - negatives else "negative_prompt"
            warn(
                f"{name} is longer than the {limit} tokens that the text encoder reads: "
                f"{truncated(tokenizer, text, limit)!r:.80} is truncated; shorten it",
                stacklevel=5,
            )
    return text_encoder(tokens.input_ids.to(device)).last_hidden_state


class Clip(ModelMixin):
    """An open_clip model with its tokenizer; embeddings have length 1.

    Args:
        model: the network, `open_clip.model.CLIP`.
        tokenizer: a `CLIPTokenizer` of transformers, or open_clip's own `SimpleTokenizer`.
        config: the content of `open_clip_config.json`.
    """

    def __init__(self, model: CLIP, tokenizer, config: dict) -> None:
        super().__init__()
        self.model, self.tokenizer, self.settings = model, tokenizer, config
        # tokens of a text that the network reads, start and end tokens included
        self.context_length = config["model_cfg"]["text_cfg"]["context_length"]
        self.scale = [config["preprocess_cfg"][key] for key in ("mean", "std")]  # of pixels
        self.eval()

    @property
    def embedding_dim(self) -> int:
        """Dimension of the joint space of images and texts."""
        return self.settings["model_cfg"]["embed_dim"]

    @property
    def image_size(self) -> int:
        """Side of the square image that the network reads, in pixels."""
        return self.settings["model_cfg"]["vision_cfg"]["image_size"]

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, torch_dtype: torch.dtype | None = None, **_
    ) -> "Clip":
        """Reads an open_clip folder; safetensors only, and nothing in it is executed.

        Args:
            torch_dtype: precision of the weights; single by default.

        Raises:
            FileNotFoundError: naming the file that is missing.
            ValueError: naming a damaged file, or a setting that would load or run something else.
        """
        folder = Path(folder)
        zoo.check_files(folder, CONFIG_NAME, WEIGHTS_NAME)
        config = zoo.read_json(folder / CONFIG_NAME)
        with zoo.named(folder):
            _check_settings(folder / CONFIG_NAME, config["model_cfg"])
            parts = dict(config["model_cfg"])
            text = dict(parts["text_cfg"])
            if text.pop("hf_tokenizer_name", None):
                zoo.check_files(folder, "tokenizer.json")
                tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
            else:
                tokenizer = SimpleTokenizer(context_length=text["context_length"])
            model = CLIP(**parts | {"text_cfg": text})
            model.load_state_dict(load_file(folder / WEIGHTS_NAME))
            return cls(model.to(torch_dtype or torch.float32), tokenizer, config)

    def save_pretrained(self, folder: str | Path, **_) -> None:
        """Writes an open_clip folder that `open_clip.create_model("local-dir:...")` reads too."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(self.tokenizer, CLIPTokenizer):  # open_clip's own needs no file
            self.tokenizer.save_pretrained(folder)
        state = {k: v.cpu().contiguous() for k, v in self.model.state_dict().items()}
        save_file(state, folder / WEIGHTS_NAME)
        (folder / CONFIG_NAME).write_text(json.dumps(self.settings, indent=2) + "\n")

    @apply_forward_hook
    def encode_text(self, texts: list[str]) -> Float[Tensor, "b d"]:
        """One unit embedding per text; texts of more than `context_length` tokens are truncated.

        Raises:
            ValueError: for anything but a list of texts.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"texts is {texts!r:.80}; pass a list of texts, such as ['a red ball']"
            )
        length = self.context_length
        if isinstance(self.tokenizer, SimpleTokenizer):
            ids = self.tokenizer(texts, length)
        else:
            fixed = {"max_length": length, "padding": "max_length", "truncation": True}
            clean = [_clean(text) for text in texts]
            ids = self.tokenizer(clean, return_tensors="pt", **fixed).input_ids
        weight = self.model.ln_final.weight  # where the network is, also while it is offloaded
        return self.model.encode_text(ids.to(weight.device), normalize=True)

    def truncated(self, text: str) -> str:
        """The end of a text that `encode_text` does not read; "" for most texts."""
        return truncated(self.tokenizer, _clean(text), self.context_length)

    @apply_forward_hook
    def encode_images(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """One unit embedding per image.

        Args:
            images: values in [0, 1], any size (resized to `image_size`).
        """
        size = (self.image_size, self.image_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in self.scale)
        scaled = ((images - mean) / std).to(self.model.ln_final.weight)
        return self.model.encode_image(scaled, normalize=True)

    def encode_segments(
        self, images: Float[Tensor, "b 3 H W"], masks: Bool[Tensor, "b H W"]
    ) -> Float[Tensor, "b d"]:
        """One unit embedding per (image, segment): CLIP of the segment's crop on black.

        Args:
            images: values in [0, 1].
            masks: True inside the segment; none may be empty.
        """
        pairs = zip(images, masks, strict=True)
        crops = [segment_crop(image, mask, self.image_size) for image, mask in pairs]
        return self.encode_images(torch.stack(crops).to(self.device))

    def text_transformer(self, length: int) -> CLIPTextModel:
        """A copy of the text transformer as transformers' `CLIPTextModel`, in single precision.

        It returns a hidden state for each token, where `encode_text` returns one embedding for the
        whole text.

        Args:
            length: tokens that it reads; beyond `context_length` its last position is repeated.
        """
        model_cfg, tokenizer = self.settings["model_cfg"], self.tokenizer
        shape, open_clips = model_cfg["text_cfg"], isinstance(tokenizer, SimpleTokenizer)
        end = tokenizer.eot_token_id if open_clips else tokenizer.eos_token_id
        config = CLIPTextConfig(
            vocab_size=shape["vocab_size"],
            hidden_size=shape["width"],
            intermediate_size=4 * shape["width"],
            num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"],
            max_position_embeddings=length,
            projection_dim=shape["width"],
            hidden_act="quick_gelu" if model_cfg.get("quick_gelu") else "gelu",
            bos_token_id=tokenizer.sot_token_id if open_clips else tokenizer.bos_token_id,
            eos_token_id=end,
            pad_token_id=0 if open_clips else tokenizer.pad_token_id,
        )
        model = CLIPTextModel(config)
        model.load_state_dict(_renamed(self.model.state_dict(), shape["layers"], length))
        return model.eval()


def _check_settings(file: Path, settings: dict, where: str = "") -> None:
    """Raises ValueError for a setting beyond `_MODEL_KEYS`, by its name."""
    for key, value in settings.items():
        if key not in _MODEL_KEYS[where]:
            name = ".".join(filter(None, ("model_cfg", where, key)))
            known = ", ".join(sorted(_MODEL_KEYS[where]))
            raise ValueError(f"{file}: {name} is {value!r:.60}; settings read here are {known}")
        if isinstance(value, dict):
            _check_settings(file, value, key)


# open_clip's name of a part of a layer -> transformers'
_PARTS = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def _renamed(weights: dict[str, Tensor], layers: int, length: int) -> dict[str, Tensor]:
    """The weights of open_clip's text transformer under transformers' names."""
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
