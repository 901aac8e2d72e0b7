# SPDX-License-Identifier: Apache-2.0
"""SpaText with what a summary of its paper adds: an energy, an update mask, and two sizes."""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, SchedulerMixin, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from spatext_lab.baselines.summaries.coarse_to_fine import coarse_to_fine
from spatext_lab.baselines.summaries.energy import EnergyNetwork, energy_guided
from spatext_lab.baselines.summaries.partial import GRID, PartialDenoiser
from spatext_lab.baselines.summaries.update_mask import UpdateMaskNetwork
from spatext_lab.clip import Clip
from spatext_lab.diffusion import Condition, Denoiser, SampleStep
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.spatext.pixel import PixelFold
from spatext_lab.spatext.prior import DiffusionPrior, LinearPrior

HOME = "spatext_lab.baselines.summaries"
UPDATES = ("steps", "windows", "cells")


class AcceleratedSpaTextPipeline(SpaTextPipeline):
    """Samples images of scenes as SpaText does, with fewer or smaller network calls.

    Each part may be left out; without any, the images are those of `SpaTextPipeline`, bit for bit.
    The text-to-image base is sampled in the same way with a widened U-Net, which ignores maps
    before its training: `from_pipe(base, unet=widen_input(base.unet, d), clip=..., prior=...)`.

    Args:
        unet, vae, scheduler, clip, text_encoder, tokenizer, prior, most_regions, min_area: those of
            `SpaTextPipeline`.
        update_mask: says which cells still change; None to predict all of them in each step.
        coarse_fraction: of the steps, the first ones, with latents of half the height and width,
            for a U-Net that was trained at both sizes; 0 for none. The last step has whole ones.
        least_probability: of a change, from which a cell is predicted anew.
        updates: what is predicted anew: "steps", a whole image or nothing; "windows", the smallest
            of some windows that holds the cells that change, or nothing; "cells", the summary's
            form: those cells alone, for which the U-Net sees whole images and no time is saved.
        spare: fraction of an image's cells that may change and are left out of the window all the
            same; without effect on "cells".
        energy: moves images towards their maps, whatever the U-Net does with them; None for none.
            It moves held images too, anew at each step: early moves are hundreds of times as large
            as late ones, and would spoil an image that is held with them.
        energy_scale: how strongly, see `energy_guided`; a quarter of it at half the size, where a
            mean over cells has a quarter of them.

    Raises:
        ValueError: for a setting that is out of range, and a mask or energy that does not fit the
            U-Net.

    Example:
        >>> spatext = SpaTextPipeline.from_pretrained(zoo.folder("pocket", "spatext"))
        >>> mask = UpdateMaskNetwork.from_pretrained(zoo.folder("pocket", "update-mask"))
        >>> fast = AcceleratedSpaTextPipeline.from_pipe(spatext, update_mask=mask)
        >>> scene = Scene("a meadow at noon", [Region("a red ball", box=(0.1, 0.5, 0.4, 0.9))])
        >>> image = fast(scene, seed=3).images[0]
    """

    PARTS_FROM = (*SpaTextPipeline.PARTS_FROM, f"{HOME}.update_mask", f"{HOME}.energy")
    model_cpu_offload_seq = "text_encoder->clip->prior->update_mask->unet->energy->vae"
    _optional_components: ClassVar[list[str]] = [
        *SpaTextPipeline._optional_components,
        "update_mask",
        "energy",
    ]

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
        update_mask: UpdateMaskNetwork | None = None,
        coarse_fraction: float = 0.0,
        least_probability: float = 0.5,
        updates: str = "steps",
        spare: float = 0.05,
        energy: EnergyNetwork | None = None,
        energy_scale: float = 200.0,
    ) -> None:
        parts = (text_encoder, tokenizer, prior, most_regions, min_area)
        super().__init__(unet, vae, scheduler, clip, *parts)
        self.register_modules(
            update_mask=update_mask and update_mask.eval(), energy=energy and energy.eval()
        )
        settings = {"least_probability": least_probability, "updates": updates, "spare": spare}
        settings |= {"coarse_fraction": coarse_fraction, "energy_scale": energy_scale}
        self.register_to_config(**settings)
        self.computed = [0, 0]  # by the last sampling: cells predicted anew, and cells in all
        self._check_settings()

    def _check_settings(self) -> None:
        config = self.config
        for name in ("coarse_fraction", "least_probability", "spare"):
            if not 0 <= config[name] < 1:
                raise ValueError(f"{name} is {config[name]!r:.40}; pass a number from 0 to below 1")
        if config.updates not in UPDATES:
            raise ValueError(f"updates is {config.updates!r:.40}; pass one of {', '.join(UPDATES)}")
        own = self.unet.config.out_channels, self._channels
        for name in ("update_mask", "energy"):
            part = getattr(self, name)
            reads = own if part is None else (part.config.channels, part.config.map_channels)
            if reads != own:
                raise ValueError(
                    f"{name} reads x_t and maps of {reads} channels and these latents and maps "
                    f"have {own}; pass the one that was trained with this model"
                )

    def _sample(
        self,
        denoiser: Denoiser,
        scheduler: SchedulerMixin,
        x_T: Float[Tensor, "b c h w"],
        condition: Condition,
        steps: int,
        sources: Sequence[torch.Generator],
    ) -> Iterator[SampleStep]:
        """The sampling loop: halved latents first, then whole ones, predicted where they change."""
        config, fine = self.config, denoiser
        if self.update_mask is not None:
            parts = (denoiser, self.changing, scheduler)
            sides = windows(config.updates, x_T.shape[-1])
            fine = PartialDenoiser(*parts, sides, config.spare, self.unet)
            self.computed = fine.computed
        # Around the mask, which holds images: a move is right for its own timestep alone. With a
        # quarter of the cells, a mean over them moves each four times as far.
        if self.energy is not None:
            scale = config.energy_scale
            fine = energy_guided(fine, self.energy, scale, scheduler)
            denoiser = energy_guided(denoiser, self.energy, scale / 4, scheduler)
        coarse = 0
        if isinstance(steps, int) and steps > 1:  # any other number meets its error in `sample`
            coarse = min(round(config.coarse_fraction * steps), steps - 1)
        settings = {"coarse_steps": coarse, "fold": getattr(self.vae, "fold", 1)}
        parts = (scheduler, x_T, condition, steps, sources)
        return coarse_to_fine(denoiser, fine, *parts, **settings)

    def changing(self, x_t: Tensor, t: Tensor, st_map: Tensor) -> Tensor:
        """Which cells of each image are to be predicted anew, (b, h, w), by the update mask."""
        return self.update_mask(x_t, t, st_map).sigmoid() >= self.config.least_probability


def windows(updates: str, side: int) -> list[int] | None:
    """The sides of the windows that a setting of `updates` allows, see `smallest_windows`."""
    if updates == "cells":
        return None
    parts = () if updates == "steps" else (side // 2, side * 3 // 4)
    return sorted({0, side, *(part // GRID * GRID for part in parts)})
