# SPDX-License-Identifier: Apache-2.0
"""Guidance scales with sliders: an image for every pair of scales, sampled once, then looked up.

    grid = explore("outputs/grid.json", spatext, scene)   # computed the first time, with a bar
    grid                                                  # sliders; they work without a kernel too
    grid.image(caption=2.0, map=4.0)                      # what the sliders show there

A slider that samples would answer after a second; this one answers at once.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from spatext_lab.diffusion import (
    UNetDenoiser,
    few_threads,
    initial_noise,
    multi_guided,
    sample,
    to_x0_eps,
)
from spatext_lab.figures.png import enlarged
from spatext_lab.scene import Scene
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.widgets.grids import Grid

SCALES = (0.0, 1.0, 2.0, 4.0, 8.0)
LARGEST = 256  # pixels of an image in the file
QUALITY = 80  # of WebP: a 64 x 64 image takes about a kilobyte


def explore(
    path: str | os.PathLike,
    pipeline: SpaTextPipeline,
    scene: Scene,
    *,
    captions: Sequence[float] = SCALES,
    maps: Sequence[float] = SCALES,
    steps: Sequence[int] = (5, 10),
    seeds: int = 2,
    progress: bool | None = None,
) -> Grid:
    """The grid in a file; sampled, and the file written, if there is none or it is stale.

    A file is stale if its scene, scales, steps, seeds or model weights differ.

    Args:
        captions: guidance scales of the caption.
        maps: guidance scales of the map.
        steps: numbers of sampling steps.
        seeds: how many; they are 0 ... seeds - 1.
        progress: whether to show a bar; if not given, unless the variable `CI` is set.

    Raises:
        ValueError: an empty list, or settings that the pipeline refuses.
    """
    asked = {
        "scene": scene.to_json(),
        "captions": [float(s) for s in captions],
        "maps": [float(s) for s in maps],
        "steps": list(steps),
        "seeds": list(range(seeds)),
        "model": fingerprint(pipeline),
    }
    for name in ("captions", "maps", "steps", "seeds"):
        if not asked[name]:
            raise ValueError(f"{name} is empty: pass at least one")
    if Path(path).exists() and (found := Grid.load(path)).parameters == asked:
        return found
    progress = "CI" not in os.environ if progress is None else progress
    grid = _compute(pipeline, scene, asked, progress)
    grid.save(path)
    return grid


def fingerprint(pipeline: SpaTextPipeline) -> str:
    """A digest of all weights."""
    digest = hashlib.sha256()
    for _, part in sorted(pipeline.components.items()):
        tensors = part.state_dict().values() if isinstance(part, torch.nn.Module) else ()
        for values in tensors:
            digest.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _compute(pipeline: SpaTextPipeline, scene: Scene, asked: dict, progress: bool) -> Grid:
    from tqdm.auto import tqdm

    seeds = asked["seeds"]
    cells = list(product(asked["captions"], asked["maps"], asked["steps"]))
    condition, size = pipeline.condition([scene] * len(seeds)), pipeline.latent_size
    x_T = initial_noise(seeds, (pipeline.unet.config.out_channels, size, size)).to(pipeline.device)
    images = {}
    with few_threads(pipeline.unet):
        for s, r, steps in tqdm(cells, "sampling the grid", disable=not progress, leave=False):
            denoiser = multi_guided(UNetDenoiser(pipeline.unet), [s, r])
            *_, last = sample(denoiser, pipeline.scheduler, x_T, condition, steps)
            for seed, image in zip(seeds, pipeline.decode(last.x_t), strict=True):
                images[s, r, steps, seed] = _webp(image)
        film = directions(pipeline, scene, steps=max(asked["steps"]))
    return Grid(asked, images, tuple({k: _webp(v) for k, v in step.items()} for step in film))


# SpaText, arXiv 2211.14305, section 3.3: delta_i = eps(x_t | c_i alone) - eps(x_t | null)
@torch.no_grad()
def directions(
    pipeline: SpaTextPipeline, scene: Scene, *, seed: int = 0, steps: int = 10, scale: float = 2.0
) -> list[dict[str, Image.Image]]:
    """The directions of guidance as images, for each step of one sampling with equal scales.

    "seen" is the guided prediction of the clean image, "null" the one of the null condition.
    "caption" and "map" show what each condition alone changes in it; grey means no change.
    """
    condition, network = pipeline.condition([scene]), UNetDenoiser(pipeline.unet)
    levels, kind = pipeline.scheduler.alphas_cumprod, pipeline.scheduler.config.prediction_type

    def seen(x_t: torch.Tensor, t: int, question: Any) -> np.ndarray:
        when = torch.tensor([t], device=x_t.device)
        x_0, _ = to_x0_eps(network(x_t, when, question), x_t, when, levels.to(x_t.device), kind)
        return np.asarray(pipeline.decode(x_0)[0], np.float32)

    shape = (pipeline.unet.config.out_channels, pipeline.latent_size, pipeline.latent_size)
    x_t, film = initial_noise([seed], shape).to(pipeline.device), []
    guided = multi_guided(network, [scale, scale])
    for step in sample(guided, pipeline.scheduler, x_t, condition, steps):
        null, caption, map_ = (
            seen(x_t, step.t, question)
            for question in (condition.null(), *condition.single_conditions())
        )
        shown = {"null": null, "caption": 128 + caption - null, "map": 128 + map_ - null}
        frame = {name: _image(values) for name, values in shown.items()}
        film.append({"seen": pipeline.decode(step.x_0)[0]} | frame)
        x_t = step.x_t
    return film


def _image(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))


def _webp(image: Image.Image) -> bytes:
    small = enlarged(image, LARGEST) if max(image.size) > LARGEST else image
    small.save(buffer := io.BytesIO(), format="WEBP", quality=QUALITY, method=6)
    return buffer.getvalue()
