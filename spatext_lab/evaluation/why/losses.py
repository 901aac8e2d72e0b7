# SPDX-License-Identifier: Apache-2.0
"""The loss of held-out images under their own layout and under others, always with equal noise."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from spatext_lab.datasets.coco import read_coco
from spatext_lab.datasets.pocket import pocket_item
from spatext_lab.diffusion import Condition, UNetDenoiser, add_noise, few_threads, target
from spatext_lab.figures.progress import Progress
from spatext_lab.images import encode, to_tensor
from spatext_lab.reco.pipeline import EMPTY, ReCoPipeline
from spatext_lab.reco.position_tokens import is_thin
from spatext_lab.scene import Region, Scene
from spatext_lab.scene.notes import collected
from spatext_lab.spatext.pipeline import SpaTextPipeline

Pipeline = SpaTextPipeline | ReCoPipeline
BINS = 8  # of the timesteps
MOST = 4  # regions of a scene, where the model's folder does not say how many it was trained with
CHUNK = 16  # images in one pass of the network
OWN = "own"

# What a model may take four coordinates for, if not (x0, y0, x1, y1): bins (k, 4), the last bin.
ORDERS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "x and y exchanged": lambda box, last: box[:, [1, 0, 3, 2]],
    "counted from the opposite edges": lambda box, last: last - box,
    "x, y, width, height": lambda box, last: torch.cat([box[:, :2], box[:, 2:] - box[:, :2]], 1),
}
# And in which way a map may lie wrongly over the image: (b, d, h, w), square.
TURNS: dict[str, Callable[[Tensor], Tensor]] = {
    "x and y exchanged": lambda st_map: st_map.transpose(2, 3),
    "mirrored left to right": lambda st_map: st_map.flip(3),
    "upside down": lambda st_map: st_map.flip(2),
}


@dataclass(frozen=True)
class Shown:
    """A held-out image and its scene."""

    image: np.ndarray  # uint8 (H, W, 3)
    scene: Scene


def held_out(pipeline: Pipeline, count: int, data: Path | None = None) -> list[Shown]:
    """Held-out images with their scenes, all with at least one region.

    Args:
        pipeline: whose image size they have; for ReCo the scenes are those that it can tokenize.
        count: number of images at most.
        data: a folder in COCO layout, whose photos of val2017 (centre squares) are taken; scenes of
            the pocket world's test split, enlarged to the image size, if not given.

    Raises:
        ValueError: where there are fewer than two such images.
    """
    found = list(islice(_with_regions(pipeline, data), count))
    if len(found) < 2:
        raise ValueError(f"{len(found)} images have a region; at least 2 are needed to compare")
    # so that each scene has another one with as many regions
    most = sorted(len(shown.scene.regions) for shown in found)[-2]
    return [
        replace(shown, scene=Scene(shown.scene.caption, shown.scene.regions[:most]))
        for shown in found
    ]


def _with_regions(pipeline: Pipeline, data: Path | None) -> Iterator[Shown]:
    reco, side = isinstance(pipeline, ReCoPipeline), pipeline.image_size
    most = pipeline.config.most_regions or MOST
    for image, scene in _pocket(side, reco) if data is None else _photos(data, side, most):
        regions = scene.regions
        if reco:
            bins = pipeline.position_tokens.bins
            regions = [region for region in regions if not is_thin(region.box, bins)]
        if regions:
            yield Shown(image, Scene(scene.caption, regions[:most]))


def _pocket(side: int, boxes: bool) -> Iterator[tuple[np.ndarray, Scene]]:
    for index in range(10**6):
        item = pocket_item("test", index)
        image = Image.fromarray(item.image).resize((side, side), Image.Resampling.BICUBIC)
        yield np.asarray(image), item.layout if boxes else item.scene


def _photos(data: Path, side: int, most: int) -> Iterator[tuple[np.ndarray, Scene]]:
    subset = read_coco(data, "val", regions=(1, most)).not_empty()
    for _, image, scene in subset.squares(side):
        yield image, scene


def variants(scenes: Sequence[Scene]) -> dict[str, list[Scene]]:
    """Each scene as it is, and with one part exchanged for another image's, or left out.

    The other image is one with at least as many regions, with equally many where there is one.
    """
    others = [scenes[j] for j in partners([len(scene.regions) for scene in scenes])]
    pairs = list(zip(scenes, others, strict=True))

    def mixed(text: Callable, place: Callable) -> list[Scene]:
        return [
            Scene(own.caption, [_region(text(*two), place(*two)) for two in _zipped(own, other)])
            for own, other in pairs
        ]

    return {
        OWN: list(scenes),
        "other layout": mixed(lambda own, other: own, lambda own, other: other),
        "other texts": mixed(lambda own, other: other, lambda own, other: own),
        "no regions": [Scene(own.caption) for own in scenes],
        "other caption": [Scene(other.caption, own.regions) for own, other in pairs],
        "no caption": [Scene("", own.regions) for own in scenes],
    }


def partners(counts: Sequence[int]) -> list[int]:
    """For each scene the index of another one with at least as many regions, and few more.

    Among equals each is the partner of one, in a circle.
    """
    n = len(counts)
    return [
        min(
            (j for j in range(n) if j != i and counts[j] >= counts[i]),
            key=lambda j, i=i: (counts[j], (j - i) % n),
        )
        for i in range(n)
    ]


def _zipped(own: Scene, other: Scene) -> Iterator[tuple[Region, Region]]:
    return zip(own.regions, other.regions, strict=False)  # the other may have more


def _region(named: Region, placed: Region) -> Region:
    """A region with the text of one and the mask or box of another."""
    where = {"mask": placed.mask} if placed.is_mask else {"box": placed.box}
    return Region(named.text, **where)


@torch.no_grad()
def paired_losses(
    pipeline: Pipeline, shown: Sequence[Shown], seed: int = 0
) -> dict[str, Float[np.ndarray, "bins n"]]:
    """The loss of every image in every bin of t, for each of the `variants` and misreadings.

    An image has one noise and one t per bin, the same for all variants, so differences are paired.

    Args:
        shown: the images, from `held_out`.
        seed: of noise and t.

    Returns:
        By name. Variants that the model does not have (ORDERS for ReCo, TURNS for SpaText) are
        absent.
    """
    told = variants([each.scene for each in shown])
    names = [*told, *(ORDERS if isinstance(pipeline, ReCoPipeline) else TURNS)]
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    generator = torch.Generator().manual_seed(seed)
    total = len(names) * BINS * len(shown)
    with (
        few_threads(pipeline.unet),
        collected(),  # that a scene is unusual is no news for whoever asks about the model
        Progress(total=total, desc="losses", unit="image") as bar,
    ):
        for start in range(0, len(shown), CHUNK):
            part = slice(start, start + CHUNK)
            images = to_tensor(each.image for each in shown[part]).to(pipeline.device)
            x_0 = encode(pipeline.vae, images.to(pipeline.vae.dtype)).float()
            noise, t = _noise_and_t(x_0, pipeline.scheduler.config.num_train_timesteps, generator)
            for name, condition in _conditions(pipeline, {k: v[part] for k, v in told.items()}):
                rows = []
                for b in range(BINS):
                    rows.append(_errors(pipeline, x_0, condition, t[b], noise[b]))
                    bar.update(len(x_0))
                found[name].append(np.stack(rows))
    return {name: np.concatenate(parts, axis=1) for name, parts in found.items()}


def edges(steps: int) -> list[int]:
    """The first timestep of each bin of t, and the number of timesteps after the last."""
    return [round(b * steps / BINS) for b in range(BINS + 1)]


def _noise_and_t(
    x_0: Tensor, steps: int, generator: torch.Generator
) -> tuple[Float[Tensor, "bins b c h w"], Int[Tensor, "bins b"]]:
    noise = torch.randn((BINS, *x_0.shape), generator=generator)
    limits = edges(steps)
    t = [
        torch.randint(low, high, (len(x_0),), generator=generator) for low, high in pairwise(limits)
    ]
    return noise.to(x_0), torch.stack(t).to(x_0.device)


def _conditions(
    pipeline: Pipeline, told: dict[str, list[Scene]]
) -> Iterator[tuple[str, Condition]]:
    """The condition of each variant, then of each misreading of the own layout."""
    for name, scenes in told.items():
        yield name, (condition := pipeline.condition(scenes))
        own = condition if name == OWN else own
    if isinstance(pipeline, ReCoPipeline):
        for name, order in ORDERS.items():
            yield name, _reordered(pipeline, told[OWN], order)
    else:
        for name, turn in TURNS.items():
            yield name, replace(own, st_map=turn(own.st_map))


def _reordered(
    pipeline: ReCoPipeline, scenes: Sequence[Scene], order: Callable[[Tensor, int], Tensor]
) -> Condition:
    """The condition of scenes whose four position tokens are changed for others."""
    ids = pipeline.position_tokens.encode([*scenes, EMPTY])
    bins = torch.tensor(pipeline.position_tokens.bin_ids)
    places = torch.isin(ids, bins)
    numbers = (ids[places][:, None] == bins).int().argmax(1)
    ids[places] = bins[order(numbers.view(-1, 4), len(bins) - 1)].flatten()
    return pipeline.encode_ids(ids, len(scenes))


# DDPM, arXiv 2006.11239, equation 14, as `diffusion.training_loss` has it, for each image alone
def _errors(
    pipeline: Pipeline, x_0: Tensor, condition: Condition, t: Tensor, noise: Tensor
) -> Float[np.ndarray, "b"]:
    alphas_cumprod = pipeline.scheduler.alphas_cumprod.to(x_0.device)
    kind = pipeline.scheduler.config.prediction_type
    x_t, denoiser = add_noise(x_0, noise, t, alphas_cumprod), UNetDenoiser(pipeline.unet)
    wanted = target(x_0, noise, t, alphas_cumprod, kind)
    return (denoiser(x_t, t, condition) - wanted).square().mean((1, 2, 3)).cpu().numpy()
