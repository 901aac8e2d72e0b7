# SPDX-License-Identifier: Apache-2.0
"""ReCo: caption and regions condition the denoiser as one token sequence."""

from collections.abc import Callable, Iterator, Sequence

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, SchedulerMixin, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from spatext_lab.diffusion import (
    Condition,
    SampleStep,
    UNetDenoiser,
    checked_latents,
    few_threads,
    generators,
    guided,
    sample,
)
from spatext_lab.reco.position_tokens import PositionTokens, TokenSequence
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
EMPTY = Scene("")  # the null condition
# These models read coordinates as further input channels, and no padding.
EARLIER = (
    "an earlier version trained this model with inputs that ReCo no longer has; train it again "
    "(spatext-lab train reco), or use that version"
)


class ReCoPipeline(ScenePipeline):
    """Samples images of scenes: caption, position tokens and region texts as one token sequence.

    The parts are text-to-image's own; only the tokenizer has position tokens and the text encoder
    their embeddings. So published ReCo weights in the layout of diffusers are such a folder as they
    are.

    Args:
        unet: the denoiser.
        vae: the autoencoder.
        text_encoder, tokenizer: grown by position tokens, see `text_encoder.grow`.
        scheduler: DDIM, Euler, DPM-Solver++, UniPC ... of diffusers, see `diffusion.sample`.
        padding: "read" alone, which folders of earlier versions name: the U-Net attends to padding
            as to any token, as Stable Diffusion's does.
        most_regions: the most regions of a training scene; a scene with more gets a warning.

    Raises:
        ValueError: for another padding, for a U-Net that reads more than x_t, and where the
            tokenizer has more tokens than the text encoder has embeddings.

    Example:
        >>> pipeline = ReCoPipeline.from_pretrained(zoo.folder("pocket", "reco"))
        >>> scene = Scene("a meadow at noon", [Region("a red ball", box=(0.1, 0.5, 0.4, 0.9))])
        >>> image = pipeline(scene, seed=3).images[0]
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderTiny | AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        scheduler: SchedulerMixin,
        padding: str = "read",
        most_regions: int | None = None,
    ) -> None:
        super().__init__()
        if padding != "read":
            raise ValueError(f"padding is {padding!r}; expected 'read': {EARLIER}")
        known = text_encoder.get_input_embeddings().num_embeddings
        if known < len(tokenizer):
            raise ValueError(
                f"text_encoder has {known} embeddings for the tokenizer's {len(tokenizer)} tokens; "
                "pass the text encoder that was grown with it"
            )
        if extra := unet.config.in_channels - unet.config.out_channels:
            raise ValueError(
                f"unet has {extra} input channels beyond those of x_t; expected none. If they are "
                f"a map's, narrow_input(unet) removes them; else {EARLIER}"
            )
        self.register_modules(
            unet=unet.eval(),
            vae=vae.eval(),
            text_encoder=text_encoder.eval(),
            tokenizer=tokenizer,
            scheduler=scheduler,
        )
        self.register_to_config(most_regions=most_regions)
        self.position_tokens = PositionTokens(
            tokenizer, text_encoder.config.max_position_embeddings
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
        """Images of one scene or of several.

        Args:
            scenes: a `Scene`, or a list of them; of a mask, the box around it is used.
            seed: image k is sampled with seed `seed` + k; the same seed, scene and settings give
                the same image on the same machine. 0 where no `generator` is passed.
            num_inference_steps: denoising steps, one network call each (PNDM makes one more).
            guidance_scale: 1.0 is no guidance; caption and regions are one sequence with one scale.
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
            ValueError: for a setting that is out of range, and for a region that cannot be
                tokenized; names it.
        """
        if unknown or output_type not in OUTPUT_TYPES:
            raise wrong_arguments(unknown, output_type)
        with few_threads(self.unet):
            # 1. to 5. Scenes to latents, step by step: see `stream`
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
        # 1. Scenes, with a warning where one has more regions than the model was trained with
        scenes = scene_list(scenes, num_images_per_prompt)
        if negative_prompt and guidance_scale == 1:
            warn(UNUSED_NEGATIVE, stacklevel=3)
        # 2. Scenes to token sequences to hidden states of the text encoder (ReCo, section 3.1)
        condition = self.condition(scenes, negative_prompt)
        if num_images_per_prompt != 1:
            condition = condition.repeat(num_images_per_prompt)
        # 3. Guidance
        denoiser = guided(UNetDenoiser(self.unet), guidance_scale)
        # 4. Noise, each image from its own generator
        channels, size = self.unet.config.out_channels, self.unet.config.sample_size
        shape = (len(condition.text), channels, size, size)
        sources = generators(shape[0], seed, generator)
        if latents is None:
            x_T = randn_tensor(shape, sources, condition.text.device)
        else:
            x_T = checked_latents(latents, shape, condition.text.device)
        # 5. The sampling loop
        return sample(denoiser, self.scheduler, x_T, condition, num_inference_steps, sources)

    @torch.no_grad()
    def condition(
        self, scenes: Sequence[Scene], negative_prompt: str | Sequence[str] | None = None
    ) -> Condition:
        """The condition of scenes, one token sequence each; its null is the empty sequence.

        Args:
            negative_prompt: text of the null condition, or one per scene; "" by default.
        """
        most = self.config.most_regions
        for scene in scenes:
            if most is not None and len(scene.regions) > most:
                warn(
                    f"the scene has {len(scene.regions)} regions and the model was trained with "
                    f"{most} at most: some may be missing or distorted; use fewer",
                    stacklevel=4,
                )
        one, b = not isinstance(negative_prompt, list | tuple), len(scenes)
        negatives = [negative_prompt or ""] if one else negative_prompt
        fit = len(negatives) == (1 if one else b)
        if not (fit and all(isinstance(text, str) for text in negatives)):
            raise wrong_texts([scene.caption for scene in scenes], negative_prompt)
        whole = [*scenes, *(Scene(text) if text else EMPTY for text in negatives)]
        return self.encode_ids(self.position_tokens.encode(whole, len(negatives)), b)

    def encode_ids(self, ids: Int[Tensor, "n l"], b: int) -> Condition:
        """The condition of token sequences; keeps gradients, so that training uses it too.

        Args:
            ids: b sequences, followed by the null's: one for all, or b.
            b: number of sequences before the null's.
        """
        states = self.encode(ids.to(self._execution_device))
        each = b if len(ids) == b + 1 else 1
        return Condition(states[:b], repeat(states[b:], "n l c -> (n each) l c", each=each))

    def encode(self, ids: Int[Tensor, "n l"]) -> Float[Tensor, "n l c"]:
        """The text encoder's last hidden states of token sequences, with gradients."""
        return self.text_encoder(ids).last_hidden_state

    def tokens(self, scene: Scene) -> TokenSequence:
        """The scene's token sequence, which a notebook displays in colour."""
        return self.position_tokens.show_work(scene)
