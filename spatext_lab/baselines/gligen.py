# SPDX-License-Identifier: Apache-2.0
"""GLIGEN (arXiv 2301.07093): boxes with texts as grounding tokens of a frozen base."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, SchedulerMixin, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from spatext_lab import zoo
from spatext_lab.baselines import gated
from spatext_lab.diffusion import Condition, Denoiser
from spatext_lab.scene import Scene, files
from spatext_lab.scene.notes import warn
from spatext_lab.text_to_image.base import INDEX, class_name
from spatext_lab.text_to_image.pipeline import TextToImagePipeline

BASE, GATED = "text-to-image", "gated/diffusion_pytorch_model.safetensors"
SETTINGS = ("max_objects", "scheduled_sampling_beta")


class GligenPipeline(TextToImagePipeline):
    """Samples images of scenes with a grounding token for each box; of a mask, the box around it.

    Args:
        unet: the base's with gated layers, see `gated.with_gates`.
        vae, text_encoder, tokenizer, scheduler: the base's.
        max_objects: regions of a scene that are read; fewer are padded with null embeddings.
        scheduled_sampling_beta: the fraction of the steps, from the first, that have grounding; in
            the others the base refines alone.
        base: SHA-256 of the weights of the base's U-Net.

    Raises:
        ValueError: for a U-Net without gated layers, and for a setting that is out of range.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderTiny | AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        scheduler: SchedulerMixin,
        max_objects: int = 8,
        scheduled_sampling_beta: float = 1.0,
        base: str | None = None,
    ) -> None:
        if unet.config.attention_type != "gated":
            raise ValueError("unet has no gated layers; pass with_gates(unet)")
        beta = scheduled_sampling_beta
        if not (isinstance(beta, int | float) and 0 <= beta <= 1):
            raise ValueError(f"scheduled_sampling_beta is {beta!r:.40}; pass a number from 0 to 1")
        if not (isinstance(max_objects, int) and max_objects >= 1):
            raise ValueError(f"max_objects is {max_objects!r:.40}; pass a whole number, at least 1")
        super().__init__(unet, vae, text_encoder, tokenizer, scheduler)
        self.register_to_config(max_objects=max_objects, scheduled_sampling_beta=beta, base=base)

    @classmethod
    def from_base(cls, folder: str | Path, torch_dtype: torch.dtype | None = None, **kwargs):
        """A pipeline with untrained gated layers, whose images are the text-to-image model's.

        Args:
            folder: the text-to-image model's.
            torch_dtype: precision of the weights; single by default.
            kwargs: settings of this class, and what `TextToImagePipeline.from_pretrained` takes.
        """
        settings = {name: kwargs.pop(name) for name in SETTINGS if name in kwargs}
        model = TextToImagePipeline.from_pretrained(folder, torch_dtype, **kwargs)
        base = gated.fingerprint(Path(folder, "unet"))
        return cls.from_pipe(model, unet=gated.with_gates(model.unet), base=base, **settings)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, torch_dtype: torch.dtype | None = None, base=None, **kwargs
    ):
        """Reads a folder's gated layers, and all other parts from their base.

        Args:
            folder: as `save_pretrained` writes it.
            torch_dtype: precision of the weights; single by default.
            base: folder of the text-to-image model; if not given, the one beside `folder` with the
                name "text-to-image", or else the pocket model's.
            kwargs: settings of this class, and what `TextToImagePipeline.from_pretrained` takes.

        Raises:
            FileNotFoundError: where a file is missing; names it.
            ValueError: for a damaged file, and for gated layers of another base; names the folder.
        """
        folder = Path(folder)
        if (kind := class_name(folder)) != cls.__name__:
            raise ValueError(f"{folder} is a {kind}; pass the folder of a {cls.__name__}")
        zoo.check_files(folder, INDEX, GATED)
        if base is None:
            beside = folder.resolve().parent
            base = zoo.folder(str(beside) if (beside / BASE).is_dir() else "pocket", BASE)
        index = zoo.read_json(folder / INDEX)
        kwargs = {name: index[name] for name in SETTINGS if name in index} | kwargs
        pipeline = cls.from_base(base, torch_dtype, **kwargs)
        if pipeline.config.base != index.get("base"):
            raise ValueError(f"{folder} was trained on another base than {base}; pass that as base")
        gated.load_gated(pipeline.unet, folder / GATED)
        return pipeline

    def save_pretrained(self, folder: str | Path, **kwargs) -> None:
        """Writes the gated layers and the settings; not the base, which `from_pretrained` reads."""
        settings = {name: self.config[name] for name in (*SETTINGS, "base")}
        gated.save_gated(self.unet, Path(folder, GATED))
        index = {"_class_name": type(self).__name__} | settings
        files.write(Path(folder, INDEX), json.dumps(index, indent=2) + "\n")

    @torch.no_grad()
    def condition(
        self, scenes: Sequence[Scene], negative_prompt: str | Sequence[str] | None = None
    ) -> Condition:
        """Captions and objects of scenes; the null condition has no objects."""
        captions = super().condition(scenes, negative_prompt)
        return replace(captions, objects=self.objects(scenes))

    def denoiser(self) -> Denoiser:
        """The U-Net as sampling calls it: with grounding in the first steps alone."""
        off = 1 - self.config.scheduled_sampling_beta
        return gated.GroundedDenoiser(self.unet, off * self.scheduler.config.num_train_timesteps)

    @torch.no_grad()
    def objects(self, scenes: Sequence[Scene]) -> Float[Tensor, "b n e"]:
        """The regions of scenes as `Condition.objects`, n = max_objects; the first of too many."""
        most, device = self.config.max_objects, self._execution_device
        texts = list(dict.fromkeys(r.text for scene in scenes for r in scene.regions))
        states = gated.pooled(self.text_encoder, self.tokenizer, texts).cpu() if texts else ()
        known = dict(zip(texts, states, strict=True))
        e = 5 + self.text_encoder.config.hidden_size
        objects = torch.zeros(len(scenes), most, e)  # filled on the CPU: a GPU minds small copies
        for row, scene in zip(objects, scenes, strict=True):
            if rest := [region.text for region in scene.regions[most:]]:
                warn(
                    f"regions[{most}:] ({', '.join(rest):.80}) are dropped: the scene has "
                    f"{len(scene.regions)} regions and the model takes {most}; use fewer",
                    stacklevel=4,
                )
            for slot, region in zip(row, scene.regions, strict=False):
                slot[:5] = torch.tensor([1, *region.box])
                slot[5:] = known[region.text]
        return objects.to(device)
