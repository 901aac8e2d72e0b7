# SPDX-License-Identifier: Apache-2.0
"""Which family a model folder is of: Stable Diffusion 1 and 2 are read, others refused by name.

Nothing is loaded for it; the settings say enough.
"""

from pathlib import Path

from spatext_lab.zoo.checks import read_json

INDEX = "model_index.json"
READ = (
    "read here are text-to-image models of Stable Diffusion 1 and 2 in diffusers' folder layout: "
    "one CLIP text encoder, a U-Net of 4 channels, an autoencoder"
)
_TRANSFORMERS = {"StableDiffusion3": "Stable Diffusion 3", "Flux": "Flux", "PixArt": "PixArt"}
# U-Nets of Stable Diffusion that read something beside x_t, by their input channels
_CHANNELS = {
    5: "a depth-to-image model",
    7: "an upscaler",
    8: "an image-editing model (InstructPix2Pix)",
    9: "an inpainting model",
}
# settings of a U-Net that asks for a further input
_INPUTS = {
    "addition_embed_type": "a U-Net that reads sizes or a second embedding, as Stable Diffusion XL",
    "class_embed_type": "a U-Net that reads an image embedding or a class",
    "num_class_embeds": "a U-Net that reads a noise level or a class",
    "time_cond_proj_dim": "a model distilled for few steps, whose U-Net reads the guidance scale",
}
_CHECKPOINTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def refuse_other_families(place: Path) -> None:
    """Does nothing for a model that may be read, and for a folder that says nothing of itself.

    Args:
        place: a model folder, or what was passed in its place.

    Raises:
        ValueError: for a model of another family, a single-file checkpoint, or a part of a model;
            says what it is, and what is read.
    """
    if what := _other(place):
        raise ValueError(f"{place} is {what}; {READ}")


def _other(place: Path) -> str | None:
    if place.is_file():
        return "a single file" if place.suffix in _CHECKPOINTS else None
    if (place / INDEX).is_file():
        index = read_json(place / INDEX)
        return _pipeline(str(index.get("_class_name")), index) or _unet(place, index)
    if (place / "config.json").is_file():
        kind = read_json(place / "config.json").get("_class_name")
        return f"one part of a model ({kind})" if isinstance(kind, str) else None
    files = place.iterdir() if place.is_dir() else ()
    single = [path.name for path in files if path.suffix in _CHECKPOINTS and path.is_file()]
    return f"a folder with a single-file checkpoint ({min(single)})" if single else None


def _pipeline(kind: str, index: dict) -> str | None:
    """What the parts of a pipeline say."""
    if _has(index, "transformer"):
        name = next((n for start, n in _TRANSFORMERS.items() if kind.startswith(start)), kind)
        return f"{name} (a transformer in place of the U-Net)"
    if "XL" in kind or _has(index, "text_encoder_2"):
        name = "Stable Diffusion XL" if "XL" in kind else kind
        return f"{name} (two text encoders)"
    return None


def _unet(place: Path, index: dict) -> str | None:
    """What the U-Net of a pipeline says, where it is diffusers' own."""
    file = place / "unet" / "config.json"
    if not str(index.get("_class_name")).startswith("StableDiffusion") or not file.is_file():
        return None
    config = read_json(file)
    channels = config.get("in_channels", 4)
    if channels != config.get("out_channels", 4):
        what = _CHANNELS.get(channels, "a model that reads something beside the noisy image")
        return f"{what} ({channels} input channels)"
    return next((what for key, what in _INPUTS.items() if config.get(key) is not None), None)


def _has(index: dict, part: str) -> bool:
    """Whether a pipeline has a part: `[library, class]`, and not `[null, null]`."""
    value = index.get(part)
    return isinstance(value, list) and any(value)
