# SPDX-License-Identifier: Apache-2.0
"""What a network is told beside x_t and t: a caption, and a map where it takes one.

Guidance takes a condition apart, training leaves parts of it out; both are said here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Condition:
    """What one pass of the network is told.

    text:      (b, l, c) text states of the captions
    null_text: (b, l, c) text states of the empty caption, the null condition of the text
    st_map:    (b, d, h, w) spatio-textual map at the resolution of `x_t`, or None for a model that
               takes none; its null condition is the zero map, as an uncovered pixel holds zeros
    region_maps: (b, d, h, w) each, the map's parts, one for each region alone; only needed where
               every region has a guidance scale of its own
    text_mask, null_mask: (b, l) which of the states the network may look at; None for all of them,
               the padding too, as Stable Diffusion has it

    Raises ValueError where the three do not fit together.
    """

    text: Float[Tensor, "b l c"]
    null_text: Float[Tensor, "_ _ _"]  # which axes must agree is said below, in words
    st_map: Float[Tensor, "_ d h w"] | None = None
    region_maps: tuple[Tensor, ...] = ()
    text_mask: Bool[Tensor, "b l"] | None = None
    null_mask: Bool[Tensor, "b l"] | None = None

    def __post_init__(self) -> None:
        if self.text.shape != self.null_text.shape:
            raise ValueError(
                f"null_text has shape {tuple(self.null_text.shape)}; "
                f"it must have the shape of text, {tuple(self.text.shape)}"
            )
        if self.st_map is not None and len(self.st_map) != len(self.text):
            raise ValueError(
                f"st_map holds {len(self.st_map)} maps for {len(self.text)} captions; "
                "give one map per caption, shape (b, d, h, w)"
            )

    def __len__(self) -> int:
        return len(self.text)

    def null(self) -> "Condition":
        """Everything off: the empty caption and the zero map."""
        st_map = None if self.st_map is None else torch.zeros_like(self.st_map)
        text = {"text": self.null_text, "text_mask": self.null_mask}
        return replace(self, **text, st_map=st_map, region_maps=())

    def singles(self) -> "list[Condition]":
        """One thing on, the others off: the caption, then the map or each region's, if any."""
        null = self.null()
        whole = () if self.st_map is None else (self.st_map,)
        maps = self.region_maps or whole
        caption = replace(null, text=self.text, text_mask=self.text_mask)
        return [caption, *(replace(null, st_map=one) for one in maps)]

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Condition":
        """The same condition on another device or in another floating-point type."""
        return replace(
            self,
            text=self.text.to(device, dtype),
            null_text=self.null_text.to(device, dtype),
            st_map=None if self.st_map is None else self.st_map.to(device, dtype),
            region_maps=tuple(one.to(device, dtype) for one in self.region_maps),
            text_mask=None if self.text_mask is None else self.text_mask.to(device),
            null_mask=None if self.null_mask is None else self.null_mask.to(device),
        )

    @staticmethod
    def batch(conditions: "Sequence[Condition]") -> "Condition":
        """One condition that holds all of them in order, so that one network call serves them all.

        `region_maps` are left out: what a network is told has no parts. Raises ValueError for no
        conditions, and where some have a map and some have none.
        """
        maps = [c.st_map for c in conditions if c.st_map is not None]
        if not conditions or len(maps) not in (0, len(conditions)):
            raise ValueError(
                f"conditions: {len(maps)} of {len(conditions)} have an st_map; "
                "give at least one condition, and a map to all of them or to none"
            )
        masks = [c.text_mask for c in conditions]
        return replace(
            conditions[0],
            text=torch.cat([c.text for c in conditions]),
            null_text=torch.cat([c.null_text for c in conditions]),
            st_map=torch.cat(maps) if maps else None,
            region_maps=(),
            text_mask=None if masks[0] is None else torch.cat(masks),
            null_mask=None if masks[0] is None else torch.cat([c.null_mask for c in conditions]),
        )


# SpaText, arXiv 2211.14305, section 3.3: each condition is replaced by its null, independently
def drop_conditions(
    condition: Condition, drop_text: Bool[Tensor, "b"], drop_map: Bool[Tensor, "b"]
) -> Condition:
    """The condition with the marked captions and the marked maps replaced by their null.

    In training the caller draws both masks, each True with probability 0.1 and independent of the
    other, so that the network also learns to predict with all off and with one thing on, which
    guidance needs. drop_map has no effect where there is no map.
    """
    text = torch.where(drop_text[:, None, None], condition.null_text, condition.text)
    text_mask, st_map = condition.text_mask, condition.st_map
    if text_mask is not None:
        text_mask = torch.where(drop_text[:, None], condition.null_mask, text_mask)
    if st_map is not None:
        st_map = st_map.masked_fill(drop_map[:, None, None, None], 0)
    return replace(condition, text=text, text_mask=text_mask, st_map=st_map)
