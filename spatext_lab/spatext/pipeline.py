# SPDX-License-Identifier: Apache-2.0
"""From a scene to a picture: the text-to-image model, and SpaText on top of it.

A model folder has the layout of diffusers: `model_index.json` and a folder per part. A part that
several models share need not lie there twice: `_shared` says which other folder has it.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import diffusers
import torch
import transformers
from einops import repeat
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from spatext_lab.clip import Clip
from spatext_lab.diffusion import Condition, Denoiser, SampleStep, initial_noise, sample
from spatext_lab.guidance import guided, multi_guided
from spatext_lab.scene import Scene
from spatext_lab.spatext.representation import inference_map
from spatext_lab.spatext.unet import UNetDenoiser

INDEX = "model_index.json"


def encode(vae, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
    """Latents of unit variance of pictures in [-1, 1], by an AutoencoderTiny or AutoencoderKL."""
    out = vae.encode(images)
    latents = out.latents if "latents" in out else out.latent_dist.mode()
    return latents * vae.config.scaling_factor


def to_images(pixels: Float[Tensor, "b 3 H W"]) -> list[Image.Image]:
    """PIL pictures of tensors in [-1, 1]; what lies beyond is cut."""
    array = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in array]


class TextToImagePipeline:
    """Draws a scene's caption and takes no notice of its regions: the floor that SpaText lifts.

    The parts are plain `diffusers` and `transformers` objects: unet, vae, text_encoder, tokenizer,
    scheduler.
    """

    PARTS: ClassVar[dict[str, tuple[str, str]]] = {
        "unet": ("diffusers", "UNet2DConditionModel"),
        "vae": ("diffusers", "AutoencoderTiny"),
        "text_encoder": ("transformers", "CLIPTextModel"),
        "tokenizer": ("transformers", "CLIPTokenizer"),
        "scheduler": ("diffusers", "DDIMScheduler"),
    }

    def __init__(self, unet, vae, text_encoder, tokenizer, scheduler) -> None:
        self.unet, self.vae, self.text_encoder = unet.eval(), vae.eval(), text_encoder.eval()
        self.tokenizer, self.scheduler = tokenizer, scheduler

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu"):
        """Reads a model folder; weights in single precision.

        Raises FileNotFoundError, naming the part, where the folder or a part of it is missing.
        """
        folder = Path(folder)
        if not (folder / INDEX).is_file():
            raise FileNotFoundError(f"{folder} has no {INDEX}; give a folder that a model is in")
        index = json.loads((folder / INDEX).read_text())
        parts = {}
        for name in cls.PARTS:
            place = folder / index.get("_shared", {}).get(name, "") / name
            if name not in index or not place.is_dir():
                raise FileNotFoundError(f"{folder} has no part {name!r}; {cls.__name__} needs it")
            parts[name] = _load(index[name], place, device)
        return cls(**parts)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes a complete model folder, all parts in it, in the precision they have."""
        folder = Path(folder)
        for name in self.PARTS:
            getattr(self, name).save_pretrained(folder / name)
        write_index(folder, type(self))

    @property
    def device(self) -> torch.device:
        """Where the U-Net's weights are."""
        return next(self.unet.parameters()).device

    @property
    def latent_size(self) -> int:
        """Height and width of the latents."""
        return self.unet.config.sample_size

    @property
    def picture_size(self) -> int:
        """Height and width of the pictures, in pixels: each downsampling halves them."""
        return self.latent_size * 2 ** (len(self.vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def text_states(self, texts: list[str]) -> Float[Tensor, "b l c"]:
        """What the text encoder makes of texts, padded to its full length."""
        ids = self.tokenizer(
            texts, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        return self.text_encoder(ids.to(self.device)).last_hidden_state

    @torch.no_grad()
    def condition(self, scenes: Sequence[Scene]) -> Condition:
        """What the network is told of the scenes: here the captions."""
        text = self.text_states([*(scene.caption for scene in scenes), ""])
        return Condition(text[:-1], repeat(text[-1], "l c -> b l c", b=len(scenes)))

    @torch.no_grad()
    def stream(
        self,
        scenes: Scene | Sequence[Scene],
        *,
        seed: int = 0,
        steps: int = 10,
        guidance_scale: float = 2.0,
        region_guidance_scale: float | None = None,
    ) -> Iterator[SampleStep]:
        """The sampling loop as a generator: x_t and the predicted x_0 (latents) of each step."""
        scenes = [scenes] if isinstance(scenes, Scene) else list(scenes)
        denoiser = self._guided(guidance_scale, region_guidance_scale)
        size = self.latent_size
        shape = (self.unet.config.out_channels, size, size)
        x_t = initial_noise(range(seed, seed + len(scenes)), shape).to(self.device)
        yield from sample(denoiser, self.scheduler, x_t, self.condition(scenes), steps)

    @torch.no_grad()
    def __call__(self, scenes: Scene | Sequence[Scene], **settings):
        """A picture of a scene (seed `seed`), or a list of pictures (seeds `seed`, `seed` + 1 ...).

        seed: the same seed, scene and settings give the same picture on the same machine.
        steps: denoising steps, each one network call.
        guidance_scale: 1.0 is off. With `region_guidance_scale` it belongs to the caption alone.
        region_guidance_scale: None for one scale for all (2 passes a step); else the map's own
            scale (3 passes a step in one call). Only a pipeline with a map takes it.

        Raises ValueError for settings out of range.
        """
        for step in self.stream(scenes, **settings):
            # the last x_0: x_t itself where `steps` divides the schedule, and free of noise always
            latents = step.x_0
        pictures = self.decode(latents)
        return pictures[0] if isinstance(scenes, Scene) else pictures

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c h w"]) -> list[Image.Image]:
        """Pictures of latents."""
        return to_images(self.vae.decode(latents / self.vae.config.scaling_factor).sample)

    def _guided(self, guidance_scale: float, region_guidance_scale: float | None) -> Denoiser:
        if region_guidance_scale is not None:
            raise ValueError(
                f"region_guidance_scale is {region_guidance_scale}; a text-to-image model has no "
                "regions, leave it out"
            )
        return guided(UNetDenoiser(self.unet), guidance_scale)


class SpaTextPipeline(TextToImagePipeline):
    """Draws a scene: the caption through the text encoder, the regions as a spatio-textual map.

    One part more than text-to-image: `clip`, an open_clip folder.
    """

    PARTS: ClassVar[dict[str, tuple[str, str]]] = {
        **TextToImagePipeline.PARTS,
        "clip": ("spatext_lab", "Clip"),
    }

    def __init__(self, unet, vae, text_encoder, tokenizer, scheduler, clip: Clip) -> None:
        super().__init__(unet, vae, text_encoder, tokenizer, scheduler)
        width = unet.config.in_channels - unet.config.out_channels
        if width != clip.width:
            raise ValueError(
                f"clip has vectors of {clip.width} numbers, the U-Net takes maps of {width}; "
                "give the CLIP that the U-Net was trained with"
            )
        self.clip = clip

    @torch.no_grad()
    def st_map(self, scene: Scene) -> Float[Tensor, "d h w"]:
        """The scene's spatio-textual map; all zeros for a scene without regions."""
        size = (self.latent_size, self.latent_size)
        if not scene.regions:
            return torch.zeros(self.clip.width, *size, device=self.device)
        return inference_map(scene, self.clip.text, size)

    @torch.no_grad()
    def condition(self, scenes: Sequence[Scene]) -> Condition:
        """Captions and maps of the scenes."""
        captions = super().condition(scenes)
        maps = torch.stack([self.st_map(scene) for scene in scenes])
        return Condition(captions.text, captions.null_text, maps)

    def _guided(self, guidance_scale: float, region_guidance_scale: float | None) -> Denoiser:
        denoiser = UNetDenoiser(self.unet)
        if region_guidance_scale is None:
            return guided(denoiser, guidance_scale)
        return multi_guided(denoiser, [guidance_scale, region_guidance_scale])


def write_index(folder: Path, pipeline: type[TextToImagePipeline], shared: str = "") -> None:
    """Writes `model_index.json`; parts that are not in `folder` are looked for in `shared`.

    shared: a model folder's path as seen from `folder`; empty where every part is in `folder`.
    """
    index = {"_class_name": pipeline.__name__, "_diffusers_version": diffusers.__version__}
    index |= {name: list(kind) for name, kind in pipeline.PARTS.items()}
    if shared:
        missing = [name for name in pipeline.PARTS if not (folder / name).is_dir()]
        index["_shared"] = dict.fromkeys(missing, shared)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _load(kind: Sequence[str], place: Path, device: str):
    """One part: a class of diffusers, transformers or ours, by the index's (library, class)."""
    library, name = kind
    if library == "spatext_lab":
        clip = Clip.from_pretrained(place)
        clip.model.to(device)
        return clip
    part = getattr({"diffusers": diffusers, "transformers": transformers}[library], name)
    if not issubclass(part, torch.nn.Module):
        return part.from_pretrained(place)
    key = "torch_dtype" if library == "diffusers" else "dtype"
    return part.from_pretrained(place, **{key: torch.float32}).to(device)
