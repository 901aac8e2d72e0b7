# SPDX-License-Identifier: Apache-2.0
"""Sampling in which the U-Net computes only what still changes, and the rest is held.

The summary puts cells back to their previous value, which for x_t would be wrong: it has the noise
of the timestep before, and the next step would take that noise for a part of the image. What is
held here is the image that the denoiser predicted for the cell. From it follows a prediction at any
timestep (`implied`), so x_t loses its noise as the schedule says, computed or not.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin
from einops import rearrange
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor, nn

from spatext_lab.baselines.summaries.coarse_to_fine import implied
from spatext_lab.diffusion import Condition, Denoiser, to_x0_eps
from spatext_lab.text_to_image.unet import PocketUNet

GRID = 4  # a window's corner and sides are multiples of so many cells, which U-Nets halve twice
# (x_t, t, map) -> which cells of each image have to be predicted anew
Mask = Callable[[Tensor, Tensor, Tensor], Bool[Tensor, "b h w"]]


@dataclass(eq=False)
class PartialDenoiser:
    """A `Denoiser` that evaluates another one only for the cells that a mask names.

    It holds each cell's predicted image, so it serves one sampling loop alone. Its first call
    evaluates whole images.

    Args:
        denoiser: predicts; guided or not.
        mask: which cells are predicted anew.
        scheduler: says what the denoiser predicts.
        sides: of the windows that may be evaluated, see `smallest_windows`; None for the summary's
            form, in which the denoiser always sees whole images and no time is saved.
        spare: fraction of an image's cells that may be left out although the mask names them.
        unet: of the denoiser; a `PocketUNet` is passed where a window lies.

    Attributes:
        computed: cells that were predicted anew so far, and cells in all.
    """

    denoiser: Denoiser
    mask: Mask
    scheduler: SchedulerMixin
    sides: Sequence[int] | None = None
    spare: float = 0.0
    unet: nn.Module | None = None
    computed: list[int] = field(default_factory=lambda: [0, 0])
    x_0: Tensor | None = None

    def __call__(
        self, x_t: Float[Tensor, "b c h w"], t: Real[Tensor, "b"], condition: Condition
    ) -> Float[Tensor, "b c h w"]:
        """The prediction for x_t: anew where the mask says so, elsewhere that of the held image."""
        if self.x_0 is None:
            needed = torch.ones_like(x_t[:, 0], dtype=torch.bool)
        else:
            needed = self.mask(x_t, t, condition.st_map)
        if needed.all():
            new, count = self.denoiser(x_t, t, condition), needed.numel()
        else:
            new = implied(self.x_0, x_t, t, self.scheduler)
            fill = self._cells if self.sides is None else self._windows
            count = fill(new, needed, x_t, t, condition)
        alphas_cumprod = self.scheduler.alphas_cumprod.to(x_t)
        kind = self.scheduler.config.prediction_type
        self.x_0, _ = to_x0_eps(new, x_t, t.round().long(), alphas_cumprod, kind)
        self.computed[0] += count
        self.computed[1] += needed.numel()
        return new

    def _cells(self, new, needed, x_t, t, condition) -> int:
        """Writes the needed cells into `new`, from whole images; returns their number."""
        new.copy_(torch.where(needed[:, None], self.denoiser(x_t, t, condition), new))
        return int(needed.sum())

    def _windows(self, new, needed, x_t, t, condition) -> int:
        """Writes windows into `new`, one call for all of one size; returns their cells' number."""
        found = smallest_windows(needed, self.sides, self.spare)
        for side in found[:, 0].unique().tolist():
            rows = (found[:, 0] == side).nonzero()[:, 0]
            corners = found[rows, 1:].tolist()
            if not side:
                continue

            def cut(value: Tensor, rows=rows, corners=corners, side=side) -> Tensor:
                pairs = zip(rows.tolist(), corners, strict=True)
                return torch.stack([value[i, :, y : y + side, x : x + side] for i, (y, x) in pairs])

            where = torch.tensor(corners, device=x_t.device).flip(1)
            window = torch.cat([where, where + side], dim=1) / x_t.shape[-1]
            with showing(self.unet, window):
                part = self.denoiser(cut(x_t), t[rows], _part(condition, rows, cut))
            for i, (y, x), one in zip(rows.tolist(), corners, part, strict=True):
                new[i, :, y : y + side, x : x + side] = one
        return int(found[:, 0].square().sum())


def smallest_windows(
    needed: Bool[Tensor, "b h w"], sides: Sequence[int], spare: float = 0.0
) -> Int[Tensor, "b 3"]:
    """The smallest window of each image that holds its needed cells: side, top and left.

    Args:
        needed: of square images.
        sides: that may be chosen, in cells, ascending, multiples of GRID; 0 for no window at all.
        spare: fraction of an image's cells that may be left out although they are needed.
    """
    total, cells = needed.sum((1, 2)), needed[0].numel()
    found = torch.zeros(len(needed), 3, dtype=torch.long, device=needed.device)
    open_ = torch.ones_like(total, dtype=torch.bool)
    for side in sides:
        best, place, columns = torch.zeros_like(total), torch.zeros_like(total), 1
        if side:
            counts = F.avg_pool2d(needed[:, None].float(), side, GRID)[:, 0] * side**2
            best, place = rearrange(counts, "b y x -> b (y x)").round().long().max(1)
            columns = counts.shape[2]
        fits = open_ & (total - best <= spare * cells)
        row = torch.stack(
            [torch.full_like(place, side), place // columns * GRID, place % columns * GRID], dim=1
        )
        found = torch.where(fits[:, None], row, found)
        open_ &= ~fits
    return found


def _part(condition: Condition, rows: Tensor, cut: Callable[[Tensor], Tensor]) -> Condition:
    """The condition of some images, its maps cut to their windows."""
    own = {
        name: value[rows]
        for name in ("text", "null_text", "objects")
        if (value := getattr(condition, name)) is not None
    }
    return replace(
        condition,
        **own,
        st_map=cut(condition.st_map),
        region_maps=tuple(map(cut, condition.region_maps)),
    )


@contextmanager
def showing(unet: nn.Module | None, window: Float[Tensor, "b 4"]) -> Iterator[None]:
    """Passes to a `PocketUNet` which part of the image it sees, in every call of the context.

    Args:
        unet: any other one, which knows of no window, is left as it is.
        window: (x0, y0, x1, y1) in [0, 1]; repeated for guidance, whose calls have several batches.
    """
    if not isinstance(unet, PocketUNet):
        yield
        return

    def with_window(_, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return args, kwargs | {"window": window.repeat(len(args[0]) // len(window), 1)}

    hook = unet.register_forward_pre_hook(with_window, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
