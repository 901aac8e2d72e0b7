# SPDX-License-Identifier: Apache-2.0
"""SpaText on top of the text-to-image model: a scene's regions as a spatio-textual map."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import ClassVar
from warnings import warn

import torch
from jaxtyping import Float
from torch import Tensor

from spatext_lab.clip import Clip
from spatext_lab.diffusion import Condition, Denoiser, SampleStep, guided, multi_guided
from spatext_lab.scene import Scene
from spatext_lab.spatext.pixel import caption_state
from spatext_lab.spatext.prior import DiffusionPrior
from spatext_lab.spatext.representation import Representation, inference_map, region_maps
from spatext_lab.text_to_image.pipeline import RegionScale, TextToImagePipeline, listed

# (text vectors (k, d)) -> vectors to paint (k, d): DiffusionPrior, LinearPrior, or a function
Prior = Callable[[Tensor], Tensor]


class SpaTextPipeline(TextToImagePipeline):
    """Draws a scene: the caption through the text encoder, the regions as a spatio-textual map.

    Two parts more than text-to-image: `clip`, an open_clip folder, and `prior`; without a prior
    the text vectors themselves are painted. The pixel variant is a folder with other parts: `vae`
    is a PixelFold, and without text encoder and tokenizer the caption is a CLIP image vector.

    representation, words: the `Representation` that the U-Net was trained with.
    most_regions, min_area: how many segments a training map had at most, and which part of the
        picture each covered at least; a scene beyond that is drawn with a warning.
    Raises ValueError where CLIP, prior, representation and U-Net do not fit together.
    """

    PARTS: ClassVar[tuple[str, ...]] = (*TextToImagePipeline.PARTS, "clip", "prior")
    OPTIONAL: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer", "prior")
    SETTINGS: ClassVar[tuple[str, ...]] = ("representation", "words", "most_regions", "min_area")

    def __init__(
        self,
        unet,
        vae,
        scheduler,
        clip: Clip,
        text_encoder=None,
        tokenizer=None,
        prior: Prior | None = None,
        representation: str = "vectors",
        words: Sequence[str] = (),
        most_regions: int | None = None,
        min_area: float | None = None,
    ) -> None:
        super().__init__(unet, vae, text_encoder, tokenizer, scheduler)
        self.clip, self.prior = clip, prior
        self.map = Representation(representation, clip, words)
        self.most_regions, self.min_area = most_regions, min_area
        width = unet.config.in_channels - unet.config.out_channels
        if width != self.map.channels:
            raise ValueError(
                f"clip has vectors of {clip.width} numbers, so maps of {representation!r} have "
                f"{self.map.channels} channels; the U-Net takes {width}: "
                "give the CLIP and the representation that the U-Net was trained with"
            )
        if isinstance(prior, DiffusionPrior) and prior.width != clip.width:
            raise ValueError(
                f"prior has vectors of {prior.width} numbers, clip of {clip.width}; "
                "give the prior that was trained for this CLIP"
            )

    def stream(self, scenes: Scene | Sequence[Scene], **settings) -> Iterator[SampleStep]:
        """The sampling loop as a generator: x_t and the predicted x_0 (latents) of each step."""
        if isinstance(settings.get("region_guidance_scale"), Sequence):
            return self.sample(self.condition_apart(listed(scenes)), **settings)
        return super().stream(scenes, **settings)

    def _settings(self) -> dict:
        """The limits of the training, and the representation where it is not the paper's."""
        known = {"most_regions": self.most_regions, "min_area": self.min_area}
        if self.map.kind != "vectors":
            known |= {"representation": self.map.kind, "words": list(self.map.words)}
        return {name: value for name, value in known.items() if value is not None}

    def check(self, scene: Scene) -> None:
        """Warns where a scene goes beyond what the model has learned, and says what will happen."""
        n, size = len(scene.regions), self.picture_size
        if self.most_regions is not None and n > self.most_regions:
            warn(
                f"the scene has {n} regions and the model has seen {self.most_regions} at most: "
                "some may be drawn badly or left out; draw fewer",
                stacklevel=3,
            )
        for k, (region, mask) in enumerate(
            zip(scene.regions, scene.visible_masks(size, size), strict=True)
        ):
            if self.min_area is not None and mask.mean() < self.min_area:
                warn(
                    f"regions[{k}] ({region.text!r:.60}) covers {mask.mean():.2%} of the picture "
                    f"and the model has seen {self.min_area:.0%} at least: it may not be drawn; "
                    "make it larger, or take away what lies over it",
                    stacklevel=3,
                )
            cut = self.clip.cut(region.text)
            if cut:
                warn(
                    f"regions[{k}] is longer than CLIP reads: {cut!r} has no effect; say less",
                    stacklevel=3,
                )

    @torch.no_grad()
    def captions(self, captions: Sequence[str]) -> Condition:
        """What the network is told of the captions alone."""
        if self.text_encoder is not None:
            return super().captions(captions)
        state = caption_state(self.vectors(captions))
        return Condition(state, torch.zeros_like(state))

    @torch.no_grad()
    def vectors(self, texts: Sequence[str]) -> Float[Tensor, "k d"]:
        """What stands in the map for each text: the prior of its CLIP vector, if there is a prior.

        SpaText, arXiv 2211.14305, section 3.1 (inference): P(CLIP_txt(text)).
        """
        text = self.clip.text(list(texts))
        return text if self.prior is None else self.prior(text)

    @torch.no_grad()
    def st_map(self, scene: Scene) -> Float[Tensor, "channels h w"]:
        """The scene's map; a scene without regions asks for nothing anywhere."""
        size = (self.latent_size, self.latent_size)
        if scene.regions:
            return inference_map(scene, self.vectors, size, self.map.paint)
        none = torch.zeros(1, 1, self.clip.width, device=self.device)
        nowhere = torch.zeros(1, 1, *size, device=self.device)
        return self.map.paint(none, nowhere, [scene.caption])[0]

    @torch.no_grad()
    def condition(self, scenes: Sequence[Scene]) -> Condition:
        """Captions and maps of the scenes."""
        for scene in scenes:
            self.check(scene)
        texts = [[region.text for region in scene.regions] for scene in scenes]
        spoken = [
            self.map.caption(scene.caption, of) for scene, of in zip(scenes, texts, strict=True)
        ]
        maps = torch.stack([self.st_map(scene) for scene in scenes])
        return replace(self.captions(spoken), st_map=maps)

    @torch.no_grad()
    def condition_apart(self, scenes: Sequence[Scene]) -> Condition:
        """The same with each region's own map beside the whole, for a guidance scale a region.

        Raises ValueError where the scenes do not have equally many regions, or none.
        """
        counts = {len(scene.regions) for scene in scenes}
        if len(counts) > 1 or 0 in counts:
            raise ValueError(
                f"the scenes have {sorted(counts)} regions; for a region_guidance_scale each, "
                "draw scenes with equally many together, and at least one"
            )
        size = (self.latent_size, self.latent_size)
        maps = [region_maps(scene, self.vectors, size, self.map.paint) for scene in scenes]
        return replace(self.condition(scenes), region_maps=torch.stack(maps, dim=1).unbind())

    def _guided(self, guidance_scale: float, region_guidance_scale: RegionScale) -> Denoiser:
        denoiser = self.denoiser()
        if region_guidance_scale is None:
            return guided(denoiser, guidance_scale)
        scales = region_guidance_scale
        scales = [scales] if isinstance(scales, (int, float)) else list(scales)
        return multi_guided(denoiser, [guidance_scale, *scales])
