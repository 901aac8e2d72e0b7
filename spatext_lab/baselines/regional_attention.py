# SPDX-License-Identifier: Apache-2.0
"""Regional cross-attention: each cell attends to its own region's text and to the caption.

What most node editors do with a "regional prompt", without training. Its older form is
paint-with-words (eDiff-I, Balaji et al., arXiv 2211.01324): there all cells attend to
one prompt, and a region's cells have a bonus on the tokens of its phrase.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny, SchedulerMixin, UNet2DConditionModel
from einops import rearrange, repeat
from jaxtyping import Float, Int, Real
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from spatext_lab.baselines.attention import Processor, cross_attention
from spatext_lab.diffusion import Condition, SampleStep, UNetDenoiser, guided, sample
from spatext_lab.scene import Scene
from spatext_lab.text_to_image.pipeline import TextToImagePipeline


class RegionalAttentionPipeline(TextToImagePipeline):
    """Samples images of scenes whose regions are read by the cross-attention of their own cells.

    Where regions overlap, the later one lies on top. Without regions the image is that of
    `TextToImagePipeline`.

    Args:
        unet, vae, text_encoder, tokenizer, scheduler: those of `TextToImagePipeline`.
        region_weight: how much more a token of a cell's region weighs than one of the caption;
            1 for alike, more for the region.

    Raises:
        ValueError: for a `region_weight` that is not above 0.

    Example:
        >>> base = TextToImagePipeline.from_pretrained(zoo.folder("pocket", "text-to-image"))
        >>> scene = Scene("a meadow at noon", [Region("a red ball", box=(0.1, 0.5, 0.4, 0.9))])
        >>> image = RegionalAttentionPipeline.from_pipe(base)(scene, seed=3).images[0]
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderTiny | AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        scheduler: SchedulerMixin,
        region_weight: float = 1.0,
    ) -> None:
        super().__init__(unet, vae, text_encoder, tokenizer, scheduler)
        if not region_weight > 0:
            raise ValueError(f"region_weight is {region_weight}; pass a number above 0")
        self.register_to_config(region_weight=region_weight)

    def _sample(
        self,
        scenes: Sequence[Scene],
        x_T: Float[Tensor, "b c h w"],
        condition: Condition,
        scale: float,
        steps: int,
        sources: Sequence[torch.Generator],
    ) -> Iterator[SampleStep]:
        """The sampling loop, in which the network attends to all texts of a scene."""
        condition = self._all_texts(scenes, condition)
        denoiser = RegionalDenoiser(self.unet, scenes, self.config.region_weight)
        return sample(guided(denoiser, scale), self.scheduler, x_T, condition, steps, sources)

    def _all_texts(self, scenes: Sequence[Scene], condition: Condition) -> Condition:
        """Region texts before the caption, all with the same null; shorter scenes are padded.

        The caption comes last: the pocket U-Net reads its last token for the image as a whole.
        """
        most, length = max(len(scene.regions) for scene in scenes), condition.text.shape[1]
        text = repeat(condition.text, "b l c -> b n l c", n=most + 1).clone()
        for row, scene in zip(text, scenes, strict=True):
            if scene.regions:
                own = self.encode_captions([region.text for region in scene.regions]).text
                row[: len(own)] = own
        null = repeat(condition.null_text, "b l c -> b (n l) c", n=most + 1)
        return Condition(rearrange(text, "b n l c -> b (n l) c", l=length), null)


@dataclass(frozen=True, eq=False)
class RegionalDenoiser:
    """A U-Net as a `Denoiser` for texts of which each cell attends to two: region and caption.

    Args:
        unet: any of diffusers' with cross-attention; it has its own processors between calls.
        scenes: b of them; a call's batch is their images, once or several times in a row.
        region_weight: of the region's tokens against the caption's.
    """

    unet: UNet2DConditionModel
    scenes: Sequence[Scene]
    region_weight: float

    def __call__(
        self, x_t: Float[Tensor, "n c h w"], t: Real[Tensor, "n"], condition: Condition
    ) -> Float[Tensor, "n c h w"]:
        """The prediction for x_t; the condition holds the texts of most + 1 places."""
        most = max(len(scene.regions) for scene in self.scenes)

        def regional(before: Processor) -> Processor:
            def attend(attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
                side, length = round(hidden_states.shape[1] ** 0.5), encoder_hidden_states.shape[1]
                labels = np.stack([scene.label_map(side, side) for scene in self.scenes])
                labels = torch.from_numpy(labels).to(hidden_states.device).flatten(1)
                bias = attention_bias(labels, most, length // (most + 1), self.region_weight)
                bias = bias.repeat(len(hidden_states) // len(bias), 1, 1).to(hidden_states)
                return before(attn, hidden_states, encoder_hidden_states, attention_mask=bias)

            return attend

        with cross_attention(self.unet, regional):
            return UNetDenoiser(self.unet)(x_t, t, condition)


# softmax(Q K^T / sqrt(d) + bias): bias is 0 for the caption, log(weight) for the cell's own region,
# minus infinity for all other texts
def attention_bias(
    labels: Int[Tensor, "b cells"], most: int, length: int, weight: float
) -> Float[Tensor, "b cells tokens"]:
    """What is added to the attention scores of each cell, for `most` region texts and the caption.

    Args:
        labels: the region of each cell from 1, 0 for none.
        length: tokens of each text.
        weight: of the region's tokens against the caption's.
    """
    places = torch.arange(1, most + 1, device=labels.device)
    own = torch.where(labels[..., None] == places, math.log(weight), -math.inf)
    return repeat(F.pad(own, (0, 1)), "b cells n -> b cells (n l)", l=length)
