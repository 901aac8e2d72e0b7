# SPDX-License-Identifier: Apache-2.0
"""The text-to-image baseline: samples a scene's caption and ignores its regions."""

from collections.abc import Callable, Iterator, Sequence

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, SchedulerMixin, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from einops import repeat
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from spatext_lab.clip import hidden_states
from spatext_lab.diffusion import (
    Condition,
    Denoiser,
    SampleStep,
    UNetDenoiser,
    checked_latents,
    few_threads,
    generators,
    guided,
    sample,
)
from spatext_lab.scene import Scene, scene_list
from spatext_lab.scene.notes import warn
from spatext_lab.text_to_image.base import (
    OUTPUT_TYPES,
    UNUSED_NEGATIVE,
    ScenePipeline,
    after_step,
    wrong_arguments,
    wrong_texts,
)

Scenes = Scene | Sequence[Scene]
Generators = torch.Generator | Sequence[torch.Generator] | None


class TextToImagePipeline(ScenePipeline):
    """Samples images of captions; a scene's regions are ignored. What every method starts from.

    The parts are those of Stable Diffusion, in its folder layout.

    Args:
        unet: the denoiser.
        vae: the autoencoder.
        text_encoder, tokenizer: for the caption.
        scheduler: DDIM, Euler, DPM-Solver++, UniPC ... of diffusers, see `diffusion.sample`.

    Example:
        >>> pipeline = TextToImagePipeline.from_pretrained(zoo.folder("pocket", "text-to-image"))
        >>> image = pipeline(Scene("a red ball in a meadow"), seed=3).images[0]
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderTiny | AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        scheduler: SchedulerMixin,
    ) -> None:
        super().__init__()
        self.register_modules(
            unet=unet.eval(),
            vae=vae.eval(),
            text_encoder=text_encoder.eval(),
            tokenizer=tokenizer,
            scheduler=scheduler,
        )

    @torch.no_grad()
    def __call__(
        self,
        scenes: Scenes,
        *,
        seed: int | None = None,
        num_inference_steps: int = 10,
        guidance_scale: float = 2.0,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        latents: Float[Tensor, "b c h w"] | None = None,
        output_type: str = "pil",
        callback_on_step_end: Callable[..., dict] | None = None,
        return_dict: bool = True,
        **unknown,
    ) -> ImagePipelineOutput | tuple:
        """Images of the captions of one scene or of several.

        Args:
            scenes: a `Scene`, or a list of them; their regions are ignored.
            seed: image k is sampled with seed `seed` + k; the same seed, caption and settings give
                the same image on the same machine. 0 where no `generator` is passed.
            num_inference_steps: denoising steps, one network call each (PNDM makes one more).
            guidance_scale: 1.0 is no guidance.
            negative_prompt: text in place of the empty caption in the null condition; or one text
                per scene.
            num_images_per_prompt: images per scene.
            generator: a torch generator, or a list with one per image, in place of `seed`.
            latents: N(0, 1) noise (b, c, h, w) to start from, one per image.
            output_type: "pil", "np" (b, h, w, 3) or "pt" (b, 3, h, w) in [0, 1], or "latent".
            callback_on_step_end: called after each step as f(pipeline, index, t, {"latents": x_t});
                latents in the dict that it returns replace x_t.
            return_dict: False for a tuple in place of the output object.

        Returns:
            An output with `.images`: for each scene its images in a row, always a list or a batch.

        Raises:
            ValueError: for a setting that is out of range; names it.
        """
        if unknown or output_type not in OUTPUT_TYPES:
            raise wrong_arguments(unknown, output_type)
        with few_threads(self.unet):
            # 1. to 5. Captions to latents, step by step: see `stream`
            steps = self.stream(
                scenes,
                seed=seed,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                negative_prompt=negative_prompt,
                num_images_per_prompt=num_images_per_prompt,
                generator=generator,
                latents=latents,
            )
            with self.progress_bar(total=num_inference_steps) as bar:
                for step in steps:
                    if callback_on_step_end is not None:
                        step.x_t = after_step(self, step, callback_on_step_end)
                    bar.update()
            # 6. Latents to images
            images = x_0 = step.x_t
            if output_type != "latent":
                x_0 = x_0.contiguous(memory_format=torch.channels_last)  # faster on a CPU
                scaled = (x_0 / self.vae.config.scaling_factor).to(self.vae.dtype)
                pixels = self.vae.decode(scaled).sample
                images = self.image_processor.postprocess(pixels, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images) if return_dict else (images,)

    @torch.no_grad()
    def stream(
        self,
        scenes: Scenes,
        *,
        seed: int | None = None,
        num_inference_steps: int = 10,
        guidance_scale: float = 2.0,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        latents: Float[Tensor, "b c h w"] | None = None,
    ) -> Iterator[SampleStep]:
        """The sampling loop as a generator: x_t and the predicted x_0 (latents) of each step.

        Arguments and errors are those of `__call__`; errors come at once, not at the first step.
        """
        # 1. Scenes
        scenes = scene_list(scenes, num_images_per_prompt)
        if negative_prompt and guidance_scale == 1:
            warn(UNUSED_NEGATIVE, stacklevel=3)
        # 2. Their captions to hidden states of the text encoder
        condition = self.condition(scenes, negative_prompt)
        if num_images_per_prompt != 1:
            condition = condition.repeat(num_images_per_prompt)
        # 3. Noise, each image from its own generator
        channels, size = self.unet.config.out_channels, self.unet.config.sample_size
        shape = (len(condition.text), channels, size, size)
        sources = generators(shape[0], seed, generator)
        if latents is None:
            x_T = randn_tensor(shape, sources, condition.text.device)
        else:
            x_T = checked_latents(latents, shape, condition.text.device)
        # 4. and 5. Guidance, and the sampling loop
        scenes = [scene for scene in scenes for _ in range(num_images_per_prompt)]
        settings = {"steps": num_inference_steps, "sources": sources}
        return self._sample(scenes, x_T, condition, guidance_scale, **settings)

    def _sample(
        self,
        scenes: Sequence[Scene],
        x_T: Float[Tensor, "b c h w"],
        condition: Condition,
        scale: float,
        steps: int,
        sources: Sequence[torch.Generator],
    ) -> Iterator[SampleStep]:
        """From noise to images, one scene each; what training-free methods change."""
        denoiser = guided(self.denoiser(), scale)
        return sample(denoiser, self.scheduler, x_T, condition, steps, sources)

    @torch.no_grad()
    def encode_captions(
        self, captions: Sequence[str], negative_prompt: str | Sequence[str] | None = None
    ) -> Condition:
        """The condition of captions.

        Args:
            negative_prompt: text of the null condition, or one per caption; "" by default.
        """
        one = not isinstance(negative_prompt, list | tuple)
        negatives = [negative_prompt or ""] if one else negative_prompt
        texts, b = [*captions, *negatives], len(captions)
        fit = not isinstance(captions, str) and len(negatives) == (1 if one else b)
        if not (fit and all(isinstance(text, str) for text in texts)):
            raise wrong_texts(captions, negative_prompt)
        parts = self.text_encoder, self.tokenizer
        states = hidden_states(*parts, texts, self._execution_device, len(negatives))
        null = states[b:]
        null = repeat(null, "1 l c -> b l c", b=b) if one else null
        return Condition(states[:b], null)

    def condition(
        self, scenes: Sequence[Scene], negative_prompt: str | Sequence[str] | None = None
    ) -> Condition:
        """The condition that `stream` samples from; rivals that read regions add to it.

        Args:
            negative_prompt: text of the null condition, or one per scene; "" by default.
        """
        return self.encode_captions([scene.caption for scene in scenes], negative_prompt)

    def denoiser(self) -> Denoiser:
        """The U-Net as sampling calls it.

        Raises:
            ValueError: for a U-Net that reads more than x_t, such as SpaText's.
        """
        if extra := self.unet.config.in_channels - self.unet.config.out_channels:
            raise ValueError(
                f"unet has {extra} input channels beyond those of x_t, which text-to-image cannot "
                "fill; narrow_input(unet) removes a map's"
            )
        return UNetDenoiser(self.unet)
