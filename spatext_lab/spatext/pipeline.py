# SPDX-License-Identifier: Apache-2.0
"""SpaText: a scene's regions condition the denoiser as a spatio-textual map."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from numbers import Real
from typing import ClassVar

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, SchedulerMixin, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from einops import repeat
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from spatext_lab.clip import Clip, hidden_states
from spatext_lab.diffusion import (
    Condition,
    SampleStep,
    UNetDenoiser,
    checked_latents,
    few_threads,
    generators,
    guided,
    multi_guided,
    sample,
)
from spatext_lab.scene import Scene, scene_list
from spatext_lab.scene.notes import warn
from spatext_lab.spatext.pixel import PixelFold, caption_state
from spatext_lab.spatext.prior import DiffusionPrior, LinearPrior
from spatext_lab.spatext.representation import inference_map, region_maps, region_scales
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


class SpaTextPipeline(ScenePipeline):
    """Samples images of scenes: the caption through the text encoder, the regions as a map.

    Args:
        unet: its input channels beyond those of its output are the map's.
        vae: the autoencoder; a `PixelFold` in the pixel variant.
        scheduler: DDIM, Euler, DPM-Solver++, UniPC ... of diffusers, see `diffusion.sample`.
        clip: embeds the region texts, see `Clip`.
        text_encoder, tokenizer: for the caption; without them the caption's CLIP image embedding
            takes their place (the pixel variant).
        prior: from a text's embedding to an image's; without one the text's itself is used.
        most_regions: the most segments that a training map had; a scene with more gets a warning.
        min_area: the smallest fraction of the image that a segment of a training map covered; a
            scene with a smaller region gets a warning.

    Raises:
        ValueError: where CLIP, prior and U-Net do not fit together.

    Example:
        >>> pipeline = SpaTextPipeline.from_pretrained(zoo.folder("pocket", "spatext"))
        >>> scene = Scene("a meadow at noon", [Region("a red ball", box=(0.1, 0.5, 0.4, 0.9))])
        >>> image = pipeline(scene, seed=3).images[0]
    """

    PARTS_FROM = (
        *ScenePipeline.PARTS_FROM,
        "spatext_lab.clip",
        "spatext_lab.spatext.prior",
        "spatext_lab.spatext.pixel",
    )
    model_cpu_offload_seq = "text_encoder->clip->prior->unet->vae"
    _optional_components: ClassVar[list[str]] = ["text_encoder", "tokenizer", "prior"]
    _sample = staticmethod(sample)  # what other ways of sampling replace

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderTiny | AutoencoderKL | PixelFold,
        scheduler: SchedulerMixin,
        clip: Clip,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: CLIPTokenizer | None = None,
        prior: DiffusionPrior | LinearPrior | None = None,
        most_regions: int | None = None,
        min_area: float | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            unet=unet.eval(),
            vae=vae.eval(),
            scheduler=scheduler,
            clip=clip,
            text_encoder=text_encoder and text_encoder.eval(),
            tokenizer=tokenizer,
            prior=prior,
        )
        self.register_to_config(most_regions=most_regions, min_area=min_area)
        self._check_widths()

    def _check_widths(self) -> None:
        unet, prior, d = self.unet.config, self.prior, self.clip.embedding_dim
        width, channels = unet.in_channels - unet.out_channels, self._channels
        if width != channels:
            raise ValueError(
                f"clip has embeddings of {d} numbers, so maps have {channels} channels, but the "
                f"U-Net takes {width}: pass the CLIP of its training, or for a base's U-Net, "
                f"which takes none, unet=widen_input(unet, {channels})"
            )
        if prior is not None and prior.embedding_dim != d:
            raise ValueError(
                f"prior has embeddings of {prior.embedding_dim} numbers, clip of {d}; "
                "pass the prior that was trained for this CLIP"
            )

    @property
    def _channels(self) -> int:
        """Channels of the map."""
        return self.clip.embedding_dim

    @torch.no_grad()
    def __call__(
        self,
        scenes: Scenes,
        *,
        seed: int | None = None,
        num_inference_steps: int = 10,
        guidance_scale: float = 2.0,
        region_guidance_scale: float | Sequence[float] | None = None,
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
            scenes: a `Scene`, or a list of them.
            seed: image k is sampled with seed `seed` + k; the same seed, scene and settings give
                the same image on the same machine. 0 where no `generator` is passed.
            num_inference_steps: denoising steps, one network call each (PNDM makes one more).
            guidance_scale: 1.0 is no guidance. With `region_guidance_scale`, the caption's scale.
            region_guidance_scale: the map's own scale (3 passes a step in one call); a list for a
                scale per region (regions + 2 passes; all scenes need as many regions); one joint
                scale (2 passes) if not given.
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
            # 1. to 6. Scenes to latents, step by step: see `stream`
            steps = self.stream(
                scenes,
                seed=seed,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                region_guidance_scale=region_guidance_scale,
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
            # 7. Latents to images
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
        region_guidance_scale: float | Sequence[float] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        latents: Float[Tensor, "b c h w"] | None = None,
    ) -> Iterator[SampleStep]:
        """The sampling loop as a generator: x_t and the predicted x_0 (latents) of each step.

        Arguments and errors are those of `__call__`; errors come at once, not at the first step.
        """
        # 1. Scenes, with a warning where one lies outside of what the model was trained on
        scenes = scene_list(scenes, num_images_per_prompt)
        for scene in scenes:
            self.check(scene)
        scales = None
        if region_guidance_scale is not None:
            scales = region_scales(scenes, region_guidance_scale)
        elif negative_prompt and guidance_scale == 1:
            warn(UNUSED_NEGATIVE, stacklevel=3)
        # 2. Captions to hidden states of the text encoder
        condition = self.encode_captions([scene.caption for scene in scenes], negative_prompt)
        # 3. Region texts to CLIP embeddings, regions to maps (SpaText, section 3.1)
        apart = scales is not None and not isinstance(region_guidance_scale, Real)
        condition = replace(condition, **self.st_maps(scenes, apart))
        if num_images_per_prompt != 1:
            condition = condition.repeat(num_images_per_prompt)
        # 4. Guidance: one scale for all, or one for each condition (section 3.3)
        denoiser = guided(UNetDenoiser(self.unet), guidance_scale)
        if scales is not None:
            denoiser = multi_guided(UNetDenoiser(self.unet), [guidance_scale, *scales])
        # 5. Noise, each image from its own generator
        channels, size = self.unet.config.out_channels, self.unet.config.sample_size
        shape = (len(condition.text), channels, size, size)
        sources = generators(shape[0], seed, generator)
        if latents is None:
            x_T = randn_tensor(shape, sources, condition.text.device)
        else:
            x_T = checked_latents(latents, shape, condition.text.device)
        # 6. The sampling loop
        steps = num_inference_steps
        return self._sample(denoiser, self.scheduler, x_T, condition, steps, sources)

    def check(self, scene: Scene) -> None:
        """Warns of more regions than the model was trained with, and of truncated texts."""
        most, n = self.config.most_regions, len(scene.regions)
        if most is not None and n > most:
            warn(
                f"the scene has {n} regions and the model was trained with {most} at most: "
                "some may be missing or distorted; use fewer",
                stacklevel=4,
            )
        for k, region in enumerate(scene.regions):
            # a token is one byte at least
            if len(region.text.encode()) > self.clip.context_length - 2:
                self._warn_if_truncated(f"regions[{k}].text", region.text)

    def _warn_if_truncated(self, name: str, text: str) -> None:
        if rest := self.clip.truncated(text):
            warn(
                f"{name} is longer than the {self.clip.context_length} tokens that CLIP reads: "
                f"{rest!r:.80} is truncated; shorten it",
                stacklevel=5,
            )

    @torch.no_grad()
    def encode_captions(
        self, captions: Sequence[str], negative_prompt: str | Sequence[str] | None = None
    ) -> Condition:
        """The condition of captions alone, without a map.

        Args:
            negative_prompt: text of the null condition, or one per caption; "" by default.
        """
        one = not isinstance(negative_prompt, list | tuple)
        negatives = [negative_prompt or ""] if one else negative_prompt
        texts, b = [*captions, *negatives], len(captions)
        fit = not isinstance(captions, str) and len(negatives) == (1 if one else b)
        if not (fit and all(isinstance(text, str) for text in texts)):
            raise wrong_texts(captions, negative_prompt)
        if self.text_encoder is None:  # the pixel variant; its null is the zero vector
            for k, text in enumerate(texts):
                self._warn_if_truncated("caption" if k < b else "negative_prompt", text)
            known = self.embed(texts if negative_prompt else captions)
            if not negative_prompt:
                known = torch.cat([known, torch.zeros_like(known[:1])])
            states = caption_state(known)
        else:
            parts = self.text_encoder, self.tokenizer
            states = hidden_states(*parts, texts, self._execution_device, len(negatives))
        null = states[b:]
        null = repeat(null, "1 l c -> b l c", b=b) if one else null
        return Condition(states[:b], null)

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Float[Tensor, "k d"]:
        """The embeddings that the map holds for region texts, P(CLIP_txt(text)).

        SpaText, section 3.1; without a prior they are the text embeddings.
        """
        embeddings = self.clip.encode_text(texts)
        return embeddings if self.prior is None else self.prior(embeddings)

    def st_map(self, scene: Scene) -> Float[Tensor, "d h w"]:
        """The spatio-textual map of one scene; zeros where it has no regions."""
        return self.st_maps([scene])["st_map"][0]

    def st_maps(self, scenes: Sequence[Scene], apart: bool = False) -> dict:
        """The maps of scenes as fields of a `Condition`: st_map and, if `apart`, region_maps.

        All texts are embedded by one call of CLIP and of the prior, each once. Warns of regions
        that are smaller than those that the model was trained with.

        Args:
            apart: also each region's map alone; the scenes must have equally many regions.
        """
        size = (self.unet.config.sample_size,) * 2
        texts = list(dict.fromkeys(r.text for scene in scenes for r in scene.regions))
        known = dict(zip(texts, self.embed(texts), strict=True)) if texts else {}
        maps, parts, least = [], [], self.config.min_area or 0
        for scene in scenes:
            if not scene.regions:
                maps.append(torch.zeros(self._channels, *size, device=self._execution_device))
                continue
            embed = lambda own: torch.stack([known[text] for text in own])  # noqa: E731
            work = inference_map(scene, embed, size, show_work=True)
            for k, area in enumerate(work["coverage"].mean((-2, -1)).tolist()):
                if area < least:
                    warn(
                        f"regions[{k}] ({scene.regions[k].text!r:.60}) covers {area:.2%} of the "
                        f"image and the model was trained with {least:.0%} at least: it may be "
                        "missing; make it larger, or remove what covers it",
                        stacklevel=4,
                    )
            maps.append(work["st_map"])
            if apart:
                parts.append(region_maps(work["embeddings"], work["coverage"]))
        fields = {"st_map": torch.stack(maps)}
        return fields | ({"region_maps": torch.stack(parts, dim=1).unbind()} if apart else {})

    def condition(self, scenes: Sequence[Scene]) -> Condition:
        """The condition that `stream` samples from, for custom sampling loops."""
        captions = self.encode_captions([scene.caption for scene in scenes])
        return replace(captions, **self.st_maps(scenes))
