# SPDX-License-Identifier: Apache-2.0
"""From a scene to a picture: the text-to-image model that every method here starts from."""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from einops import repeat
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from spatext_lab.diffusion import (
    Condition,
    Denoiser,
    SampleStep,
    UNetDenoiser,
    guided,
    initial_noise,
    sample,
)
from spatext_lab.images import decode, to_images
from spatext_lab.scene import Scene
from spatext_lab.text_to_image.folder import ModelFolder

RegionScale = float | Sequence[float] | None


def listed(scenes: Scene | Sequence[Scene]) -> list[Scene]:
    """Several scenes as a list, or one as a list of one."""
    return [scenes] if isinstance(scenes, Scene) else list(scenes)


class TextToImagePipeline(ModelFolder):
    """Draws a scene's caption and takes no notice of its regions: the floor that SpaText lifts.

    The parts are plain `diffusers` and `transformers` objects: unet, vae, text_encoder, tokenizer,
    scheduler.
    """

    PARTS: ClassVar[tuple[str, ...]] = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")

    def __init__(self, unet, vae, text_encoder, tokenizer, scheduler) -> None:
        for part in (unet, vae, text_encoder):
            if isinstance(part, torch.nn.Module):
                part.eval()
        self.unet, self.vae, self.text_encoder = unet, vae, text_encoder
        self.tokenizer, self.scheduler = tokenizer, scheduler

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
    def captions(self, captions: Sequence[str]) -> Condition:
        """What the network is told of the captions alone."""
        text = self.text_states([*captions, ""])
        return Condition(text[:-1], repeat(text[-1], "l c -> b l c", b=len(captions)))

    def condition(self, scenes: Sequence[Scene]) -> Condition:
        """What the network is told of the scenes: here the captions."""
        return self.captions([scene.caption for scene in scenes])

    def stream(self, scenes: Scene | Sequence[Scene], **settings) -> Iterator[SampleStep]:
        """The sampling loop as a generator: x_t and the predicted x_0 (latents) of each step."""
        return self.sample(self.condition(listed(scenes)), **settings)

    @torch.no_grad()
    def sample(
        self,
        condition: Condition,
        *,
        seed: int = 0,
        steps: int = 10,
        guidance_scale: float = 2.0,
        region_guidance_scale: RegionScale = None,
    ) -> Iterator[SampleStep]:
        """The same for conditions that were made by hand; settings as in `__call__`."""
        denoiser = self._guided(guidance_scale, region_guidance_scale)
        shape = (self.unet.config.out_channels, self.latent_size, self.latent_size)
        x_t = initial_noise(range(seed, seed + len(condition)), shape).to(self.device)
        yield from sample(denoiser, self.scheduler, x_t, condition, steps)

    @torch.no_grad()
    def __call__(self, scenes: Scene | Sequence[Scene], **settings):
        """A picture of a scene (seed `seed`), or a list of pictures (seeds `seed`, `seed` + 1 ...).

        seed: the same seed, scene and settings give the same picture on the same machine.
        steps: denoising steps, each one network call.
        guidance_scale: 1.0 is off. With `region_guidance_scale` it belongs to the caption alone.
        region_guidance_scale: None for one scale for all (2 passes a step); a number for the map's
            own scale (3 passes a step in one call); a sequence for a scale for each region
            (regions + 2 passes). Only a pipeline with a map takes it.

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
        return to_images(decode(self.vae, latents))

    def denoiser(self) -> Denoiser:
        """The network as sampling and training call it."""
        return UNetDenoiser(self.unet)

    def _guided(self, guidance_scale: float, region_guidance_scale: RegionScale) -> Denoiser:
        if region_guidance_scale is not None:
            raise ValueError(
                f"region_guidance_scale is {region_guidance_scale}; a text-to-image model has no "
                "regions, leave it out"
            )
        return guided(self.denoiser(), guidance_scale)
