# SPDX-License-Identifier: Apache-2.0
"""Classifier-free guidance: what a denoiser is conditioned on, and how its predictions combine.

A `Condition` knows its null. Training drops parts of it, so that one network learns to predict with
and without them; sampling adds the differences up: a denoiser goes in, a guided denoiser comes out.

One convention everywhere. With one scale s, s = 1 is the plain conditional prediction (guidance is
off) and s = 0 the unconditional one; the paper of classifier-free guidance writes w = s - 1. With
a scale for each condition there is no "off": (1, 1) is null + delta_caption + delta_map, which is
not the prediction for caption and map together.

The formulas are written for eps and hold for v-predictions too: at one x_t and t, v is an affine
function of eps, and the weights of the predictions in each formula add up to 1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real as Number
from operator import attrgetter

import torch
from diffusers import UNet2DConditionModel
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Real
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Condition:
    """The conditioning inputs of one pass of the denoiser, for a batch of b images.

    Args:
        text: (b, l, c) hidden states of the text encoder for the captions.
        null_text: (b, l, c) the same for the null condition: the empty or the negative prompt.
        st_map: (b, d, h, w) spatio-textual map at the resolution of x_t; None for a denoiser that
            takes none. Its null is the zero map: a cell that no region covers holds zeros.
        region_maps: (b, d, h, w) each: the map of one region alone. Only needed where every region
            has its own guidance scale.
        objects: (b, n, e) a vector for each of n objects, for a denoiser that attends to objects
            (GLIGEN); None for one that takes none. Their null is zeros.

    Raises:
        ValueError: where two of them do not fit together; names both.
    """

    text: Float[Tensor, "b l c"]
    null_text: Float[Tensor, "_ _ _"]  # which axes must agree is checked below, with a message
    st_map: Float[Tensor, "_ d h w"] | None = None
    region_maps: tuple[Tensor, ...] = ()
    objects: Float[Tensor, "b n e"] | None = None

    def __post_init__(self) -> None:
        if self.text.shape != self.null_text.shape:
            raise ValueError(
                f"null_text has shape {tuple(self.null_text.shape)}; "
                f"it must have the shape of text, {tuple(self.text.shape)}"
            )
        if self.st_map is not None and len(self.st_map) != len(self.text):
            raise ValueError(
                f"st_map holds {len(self.st_map)} maps for {len(self.text)} captions; "
                "pass one map per caption, shape (b, d, h, w)"
            )

    def __len__(self) -> int:
        return len(self.text)

    def null(self) -> "Condition":
        """The null condition: the empty (or negative) prompt, the zero map, and no object."""
        st_map = None if self.st_map is None else torch.zeros_like(self.st_map)
        objects = None if self.objects is None else torch.zeros_like(self.objects)
        text = self.null_text
        return replace(self, text=text, st_map=st_map, region_maps=(), objects=objects)

    def single_conditions(self) -> "list[Condition]":
        """One condition per guidance scale, in which all the others are null.

        First the caption, then the map or, where `region_maps` is given, each region's map.
        """
        null = self.null()
        maps = self.region_maps or (() if self.st_map is None else (self.st_map,))
        return [replace(null, text=self.text), *(replace(null, st_map=one) for one in maps)]

    def repeat(self, n: int) -> "Condition":
        """Each of the b conditions n times in a row: a condition for n * b images."""
        return self._each(lambda value: value.repeat_interleave(n, dim=0))

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Condition":
        """The condition on another device or in another floating-point type."""
        return self._each(lambda value: value.to(device, dtype))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Condition":
        def changed(value):
            return None if value is None else change(value)

        return Condition(
            changed(self.text),
            changed(self.null_text),
            changed(self.st_map),
            tuple(map(changed, self.region_maps)),
            changed(self.objects),
        )

    @staticmethod
    def batch(conditions: "Sequence[Condition]") -> "Condition":
        """One condition that holds all of them in order, so that one network call serves them all.

        `region_maps` are left out: a network reads one map.

        Raises:
            ValueError: for no conditions, and where some have a map or objects and some have none.
        """
        fields = {}
        for name in ("text", "null_text", "st_map", "objects"):
            values = [getattr(c, name) for c in conditions if getattr(c, name) is not None]
            if not conditions or len(values) not in (0, len(conditions)):
                name = name if conditions else "text"
                raise ValueError(
                    f"conditions: {len(values)} of {len(conditions)} have {name}; "
                    f"pass at least one condition, and {name} in all of them or in none"
                )
            fields[name] = torch.cat(values) if values else None
        return Condition(**fields)


# (x_t (b, c, h, w), t (b,), condition) -> prediction (b, c, h, w) in the scheduler's terms
Denoiser = Callable[[Tensor, Tensor, Condition], Tensor]


@dataclass(frozen=True, eq=False)
class UNetDenoiser:
    """A U-Net as a `Denoiser`, with or without a spatio-textual map.

    A U-Net returns as many channels as x_t has; its further input channels are the map's.
    """

    unet: UNet2DConditionModel
    # diffusers looks through all weights for it, so once and not in every step
    dtype = cached_property(attrgetter("unet.dtype"))

    def __call__(
        self, x_t: Float[Tensor, "b c h w"], t: Real[Tensor, "b"], condition: Condition
    ) -> Float[Tensor, "b c h w"]:
        """The prediction for x_t, in x_t's precision; a missing map is the zero map.

        Raises:
            ValueError: for a map of another shape than this U-Net takes beside this x_t, and for
                any map if it takes none.
        """
        unet, st_map = self.unet, condition.st_map
        channels = unet.config.in_channels - unet.config.out_channels
        shape = (len(x_t), channels, *x_t.shape[2:])
        x_in = x_t
        if st_map is None and channels:
            x_in = torch.cat([x_t, x_t.new_zeros(shape)], dim=1)
        elif st_map is not None:
            if st_map.shape != shape:
                wanted = f"one of shape {shape}" if channels else "none (st_map=None)"
                raise ValueError(
                    f"st_map has shape {tuple(st_map.shape)}; this U-Net takes {wanted}"
                )
            # An embedding of length 1 has d small numbers. Times sqrt(d), they have the variance
            # of the latents beside them (our choice), and the map is learned as fast.
            x_in = torch.cat([x_t, st_map.to(x_t) * st_map.shape[1] ** 0.5], dim=1)
        text = condition.text.to(self.dtype)
        return unet(x_in.to(self.dtype), t, encoder_hidden_states=text).sample.to(x_t.dtype)


# SpaText, arXiv 2211.14305, section 3.3: each condition is replaced by its null, independently
def drop_conditions(
    condition: Condition, drop_text: Bool[Tensor, "b"], drop_map: Bool[Tensor, "b"]
) -> Condition:
    """Replaces the marked captions and the marked maps by their null, for training.

    The caller samples both masks independently, each True with probability 0.1, so that the network
    also learns to predict with one condition alone and with none, which guidance needs.

    Args:
        drop_text: (b,) True where the caption is dropped.
        drop_map: (b,) True where the map is dropped; no effect where there is no map.
    """
    text = torch.where(drop_text[:, None, None], condition.null_text, condition.text)
    st_map = condition.st_map
    if st_map is not None:
        st_map = st_map.masked_fill(drop_map[:, None, None, None], 0)
    return replace(condition, text=text, st_map=st_map)


# Classifier-free guidance, arXiv 2207.12598, equation 6; SpaText, arXiv 2211.14305, section 3.3:
# eps_null + s delta_joint,   delta_joint = eps(x_t | all c_i) - eps(x_t | null)
def guided(denoiser: Denoiser, guidance_scale: float) -> Denoiser:
    """Guidance with one scale for the whole condition, caption and map jointly.

    One call of `denoiser` with batch 2 b; at scale 1.0 the denoiser itself, one call with batch b.

    Raises:
        ValueError: for a scale that is not a finite number >= 0.
    """
    if not (isinstance(guidance_scale, Number) and 0 <= guidance_scale < math.inf):
        raise ValueError(
            f"guidance_scale is {guidance_scale!r:.80}; "
            "pass a finite number >= 0 (1.0 is no guidance)"
        )
    if guidance_scale == 1:
        return denoiser

    def denoise(
        x_t: Float[Tensor, "b c h w"], t: Real[Tensor, "b"], condition: Condition
    ) -> Float[Tensor, "b c h w"]:
        eps_null, eps_joint = _predict_all(denoiser, x_t, t, [condition.null(), condition])
        return eps_null + guidance_scale * (eps_joint - eps_null)

    return denoise


# SpaText, arXiv 2211.14305, section 3.3 (multi-scale):
# eps_null + sum_i s_i delta_i,   delta_i = eps(x_t | c_i alone) - eps(x_t | null)
def multi_guided(denoiser: Denoiser, scales: Sequence[float]) -> Denoiser:
    """Guidance with a scale for each condition, in the order of `Condition.single_conditions`.

    That is the caption, then the map, or each region's map where the condition has them apart.
    Each direction is taken with its own condition alone, and all are added up. One call of
    `denoiser` with batch (N + 1) b.

    Raises:
        ValueError: for a scale that is not a finite number >= 0 and, when called, where the
            condition does not have len(scales) parts.
    """
    for i, scale in enumerate(scales):
        if not (isinstance(scale, Number) and 0 <= scale < math.inf):
            raise ValueError(f"scales[{i}] is {scale!r:.80}; pass a finite number >= 0")

    def denoise(
        x_t: Float[Tensor, "b c h w"], t: Real[Tensor, "b"], condition: Condition
    ) -> Float[Tensor, "b c h w"]:
        singles = condition.single_conditions()
        if len(singles) != len(scales):
            raise ValueError(
                f"scales holds {len(scales)} numbers and the condition has {len(singles)} parts; "
                "pass one scale for each: the caption, then the map, or each region's"
            )
        eps_null, *eps = _predict_all(denoiser, x_t, t, [condition.null(), *singles])
        return eps_null + sum(s * (eps_i - eps_null) for s, eps_i in zip(scales, eps, strict=True))

    return denoise


def _predict_all(denoiser: Denoiser, x_t: Tensor, t: Tensor, conditions: list[Condition]) -> Tensor:
    """The predictions (n, b, c, h, w) for one x_t under each of n conditions, by one call."""
    n = len(conditions)
    eps = denoiser(
        repeat(x_t, "b c h w -> (n b) c h w", n=n),
        repeat(t, "b -> (n b)", n=n),
        Condition.batch(conditions),
    )
    return rearrange(eps, "(n b) c h w -> n b c h w", n=n)
