# SPDX-License-Identifier: Apache-2.0
"""Layout guidance (Chen et al., arXiv 2304.03373, "backward guidance"), without training.

Before each of the first steps x_t moves down the gradient of an energy, which is low where those
cells that attend to a region's words lie in the region.
"""

import copy
from collections.abc import Iterator, Sequence

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, SchedulerMixin, UNet2DConditionModel
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from spatext_lab.baselines.attention import Processor, attention_map, cross_attention
from spatext_lab.baselines.phrases import Phrases, phrased
from spatext_lab.diffusion import Condition, SampleStep, UNetDenoiser, guided, sample
from spatext_lab.scene import Scene
from spatext_lab.text_to_image.pipeline import TextToImagePipeline

# Whose attention the energy reads. The paper takes only the first block of the way up; the pocket
# U-Net has 4 x 4 cells there, which are too few.
LAYERS = ("mid_block.", "up_blocks.")


class LayoutGuidancePipeline(TextToImagePipeline):
    """Samples images of captions, whose attention is moved into the regions of their words.

    Region texts that the caption lacks are added to it. Without regions the image is that of
    `TextToImagePipeline`.

    Args:
        unet, vae, text_encoder, tokenizer, scheduler: those of `TextToImagePipeline`.
        layout_scale: length of a move, the paper's eta.
        iterations: moves before a step, each a forward and a backward pass of the network.
        until: the last timestep that has moves; 1000 for none, 0 for all.

    Example:
        >>> base = TextToImagePipeline.from_pretrained(zoo.folder("pocket", "text-to-image"))
        >>> scene = Scene("a red ball at noon", [Region("a red ball", box=(0.1, 0.5, 0.4, 0.9))])
        >>> image = LayoutGuidancePipeline.from_pipe(base)(scene, seed=3).images[0]
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderTiny | AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        scheduler: SchedulerMixin,
        layout_scale: float = 30.0,
        iterations: int = 5,
        until: int = 700,
    ) -> None:
        super().__init__(unet, vae, text_encoder, tokenizer, scheduler)
        settings = {"layout_scale": layout_scale, "iterations": iterations, "until": until}
        if bad := [f"{name} is {n}" for name, n in settings.items() if not n >= 0]:
            raise ValueError(f"{', '.join(bad)}; pass a number of at least 0")
        self.register_to_config(**settings)

    def condition(
        self, scenes: Sequence[Scene], negative_prompt: str | Sequence[str] | None = None
    ) -> Condition:
        """The captions of scenes, with the region texts that they lack."""
        return self.encode_captions([phrased(scene) for scene in scenes], negative_prompt)

    def _sample(self, scenes, x_T, condition, scale, steps, sources) -> Iterator[SampleStep]:
        """The sampling loop, with moves between its steps."""
        parts, rest = (guided(UNetDenoiser(self.unet), scale), self.scheduler), (steps, sources)
        loop, phrases = sample(*parts, x_T, condition, *rest), Phrases.of(scenes, self.tokenizer)
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(steps)
        times = scheduler.timesteps

        def moved(x_t: Tensor, index: int, factor: float = 1.0) -> Tensor:
            """x_t before the step of this index."""
            if index == len(times) or (t := times[index]) < self.config.until:
                return x_t
            # what the network reads is x_t times a factor, 1 with most schedulers
            factor *= copy.deepcopy(scheduler).scale_model_input(torch.ones(()), t).item()
            return self.guide(x_t * factor, t, condition, phrases) / factor

        def run() -> Iterator[SampleStep]:
            first = moved(x_T, 0, float(scheduler.init_noise_sigma))
            for step in sample(*parts, first, condition, *rest):
                yield step
                step.x_t = moved(step.x_t, step.index + 1)

        return run() if phrases.regions else loop

    # Layout guidance, arXiv 2304.03373: x_t <- x_t - eta sigma_t^2 grad E, for x_0 + sigma_t eps as
    # x_t. Times sqrt(alpha_bar_t), as x_t is here, the same move is eta (1 - alpha_bar_t) grad E.
    def guide(
        self, x_t: Float[Tensor, "b c h w"], t: Tensor, condition: Condition, phrases: Phrases
    ) -> Float[Tensor, "b c h w"]:
        """x_t after all moves at one timestep."""
        variance = 1 - self.scheduler.alphas_cumprod[t.round().long().cpu()].item()
        for _ in range(self.config.iterations):
            with torch.enable_grad():
                x = x_t.detach().requires_grad_()
                energy = self.energy(x, t, condition, phrases).sum()
            x_t = x_t - self.config.layout_scale * variance * torch.autograd.grad(energy, x)[0]
        return x_t

    def energy(
        self, x_t: Float[Tensor, "b c h w"], t: Tensor, condition: Condition, phrases: Phrases
    ) -> Float[Tensor, "b"]:
        """Each image's mean over texts and layers; 0 for one without regions."""
        energies, image, tokens = [], phrases.image.to(x_t.device), phrases.tokens.to(x_t.device)

        def recording(before: Processor) -> Processor:
            def attend(attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
                maps = attention_map(attn, hidden_states, encoder_hidden_states)[image]
                inside = phrases.inside(round(maps.shape[2] ** 0.5)).to(maps)
                energies.append(layout_energy(maps, inside, tokens))
                return before(attn, hidden_states, encoder_hidden_states, attention_mask)

            return attend

        with cross_attention(self.unet, recording, *LAYERS):
            UNetDenoiser(self.unet)(x_t, t.to(x_t.device).expand(len(x_t)), condition)
        each = torch.stack(energies).mean(0)
        count = image.bincount(minlength=len(x_t)).clamp(min=1)
        return each.new_zeros(len(x_t)).index_add(0, image, each) / count


# Layout guidance, arXiv 2304.03373, the energy of one token:
# E = (1 - sum of A over the cells inside / sum of A over all cells)^2
def layout_energy(
    attention: Float[Tensor, "n heads cells l"],
    inside: Float[Tensor, "n cells"],
    tokens: Bool[Tensor, "n l"],
) -> Float[Tensor, "n"]:
    """The energy of n texts in one layer: 0 where their attention lies inside, 1 where outside.

    Args:
        attention: how much each cell attends to each token.
        inside: 1 for the cells of the text's regions, 0 for the others.
        tokens: those of the text; the mean is over them and over the heads.
    """
    here = einsum(attention, inside, "n heads cells l, n cells -> n heads l")
    energy = ((1 - here / attention.sum(2)) ** 2).mean(1)
    return (energy * tokens).sum(1) / tokens.sum(1)
