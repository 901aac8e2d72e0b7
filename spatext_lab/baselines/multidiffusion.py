# SPDX-License-Identifier: Apache-2.0
"""MultiDiffusion (Bar-Tal et al., arXiv 2302.08113), "region-based" form, without training.

Each step asks the network once for the caption, whose mask is the background, and once for every
region's text; each cell takes the mean of the predictions whose masks hold it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, SchedulerMixin, UNet2DConditionModel
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from spatext_lab.diffusion import (
    Condition,
    Denoiser,
    SampleStep,
    UNetDenoiser,
    add_noise,
    guided,
    sample,
)
from spatext_lab.images import encode
from spatext_lab.scene import Scene
from spatext_lab.text_to_image.pipeline import TextToImagePipeline


class MultiDiffusionPipeline(TextToImagePipeline):
    """Samples images of scenes by one prediction for the caption and one for each region.

    All predictions of a step, with their nulls, are one network call; without regions the image is
    that of `TextToImagePipeline`.

    Args:
        unet, vae, text_encoder, tokenizer, scheduler: those of `TextToImagePipeline`.
        bootstrapping: fraction of the steps, the first ones, in which a region's prediction sees
            a background of one random colour outside its mask; 0 for none.

    Raises:
        ValueError: for a `bootstrapping` outside [0, 1].

    Example:
        >>> base = TextToImagePipeline.from_pretrained(zoo.folder("pocket", "text-to-image"))
        >>> scene = Scene("a meadow at noon", [Region("a red ball", box=(0.1, 0.5, 0.4, 0.9))])
        >>> image = MultiDiffusionPipeline.from_pipe(base)(scene, seed=3).images[0]
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderTiny | AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        scheduler: SchedulerMixin,
        bootstrapping: float = 0.5,
    ) -> None:
        super().__init__(unet, vae, text_encoder, tokenizer, scheduler)
        if not 0 <= bootstrapping <= 1:
            raise ValueError(f"bootstrapping is {bootstrapping}; pass a fraction from 0 to 1")
        self.register_to_config(bootstrapping=bootstrapping)

    @staticmethod
    def passes(scene: Scene) -> int:
        """Passes of the network a step: caption and regions, each with its null."""
        return 2 * (len(scene.regions) + 1)

    def _sample(
        self,
        scenes: Sequence[Scene],
        x_T: Float[Tensor, "b c h w"],
        condition: Condition,
        scale: float,
        steps: int,
        sources: Sequence[torch.Generator],
    ) -> Iterator[SampleStep]:
        """The sampling loop, in which one prediction becomes the mean of those of all regions."""
        h, w = x_T.shape[2:]
        texts = [region.text for scene in scenes for region in scene.regions]
        known = [self.encode_captions(texts).text] if texts else []
        of_region = [k for k, scene in enumerate(scenes) for _ in scene.regions]
        image = torch.tensor([*range(len(scenes)), *of_region], device=x_T.device)
        free = [scene.label_map(h, w) == 0 for scene in scenes]
        masks = [region.mask_at(h, w) for scene in scenes for region in scene.regions]
        denoiser = RegionDenoiser(
            guided(UNetDenoiser(self.unet), scale),
            Condition(torch.cat([condition.text, *known]), condition.null_text[image]),
            image,
            torch.from_numpy(np.stack([*free, *masks])).to(x_T.device)[:, None],
            self._backgrounds(of_region, x_T, steps, sources),
            self.scheduler.alphas_cumprod.to(x_T.device),
        )
        return sample(denoiser, self.scheduler, x_T, condition, steps, sources)

    # MultiDiffusion, "fidelity to tight masks": a random constant colour, with the noise of x_T
    def _backgrounds(
        self, of_region: list[int], x_T: Tensor, steps: int, sources: Sequence[torch.Generator]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """For each bootstrapping step, the latents of a background a region, and their noise."""
        count, size = round(self.config.bootstrapping * steps) if of_region else 0, self.image_size
        colours = [  # image by image: the same alone and in a batch
            torch.rand(count, of_region.count(k), 3, generator=source, device=source.device)
            for k, source in enumerate(sources)
        ]
        for colour in torch.cat(colours, dim=1) if count else ():
            pixels = (2 * colour - 1).to(self.vae.device, self.vae.dtype)[..., None, None]
            yield encode(self.vae, pixels.expand(-1, -1, size, size)).to(x_T), x_T[of_region]


@dataclass(frozen=True, eq=False)
class RegionDenoiser:
    """A `Denoiser` that is the mean of several, each within its mask.

    Args:
        denoiser: predicts for one text.
        views: texts of n predictions: the captions of b images, then the regions'.
        image: the image that each of them belongs to.
        masks: where each counts; every cell of an image is in one at least.
        backgrounds: for each of the first steps, latents and noise (n - b, c, h, w) of what the
            regions' predictions see outside their masks.
        alphas_cumprod: the schedule's signal fractions.
    """

    denoiser: Denoiser
    views: Condition
    image: Int[Tensor, "n"]
    masks: Bool[Tensor, "n 1 h w"]
    backgrounds: Iterator[tuple[Tensor, Tensor]]
    alphas_cumprod: Float[Tensor, "steps"]

    # MultiDiffusion, arXiv 2302.08113: x_{t-1} = sum_k M_k step_k(x_t) / sum_k M_k. The mean of the
    # predictions gives the same: all have one x_t in their masks, and the step is linear in them.
    def __call__(
        self, x_t: Float[Tensor, "b c h w"], t: Real[Tensor, "b"], condition: Condition
    ) -> Float[Tensor, "b c h w"]:
        """The prediction for x_t; `condition` is what `views` begins with."""
        x_in, t_in = x_t[self.image], t[self.image]
        if (background := next(self.backgrounds, None)) is not None:
            own = slice(len(x_t), None)
            seen = add_noise(*background, t_in[own].long(), self.alphas_cumprod)
            x_in[own] = torch.where(self.masks[own], x_in[own], seen)
        eps, weight = self.denoiser(x_in, t_in, self.views), self.masks.to(x_t)
        total = torch.zeros_like(x_t).index_add(0, self.image, weight * eps)
        count = x_t.new_zeros(len(x_t), *weight.shape[1:]).index_add(0, self.image, weight)
        return total / count
