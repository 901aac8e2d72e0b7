# SPDX-License-Identifier: Apache-2.0
"""The pocket autoencoder: 64 x 64 x 3 images to 16 x 16 x 4 latents of unit variance and back."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from diffusers import AutoencoderTiny
from jaxtyping import Float
from torch import Tensor

from spatext_lab import zoo
from spatext_lab.datasets.coco import PhotoChoice
from spatext_lab.datasets.photo_views import image_view
from spatext_lab.datasets.pocket import SIZE, pocket_item
from spatext_lab.evaluation.metrics import psnr
from spatext_lab.images import decode, encode, to_tensor, to_unit
from spatext_lab.scene import files
from spatext_lab.training.cache import pocket_images
from spatext_lab.training.job import Job, save_half
from spatext_lab.training.photos import batches, held_out_squares, training_photos
from spatext_lab.training.plan import Plan, device_of

BATCH = 8
LATENT_CHANNELS = 4
LATENT_NOISE = 0.05  # makes the decoder robust to the small errors of a sampler
CONFIG = "config.json"
MEASURED = 256  # images at most, for the latents' scale and for the PSNR


def new_autoencoder() -> AutoencoderTiny:
    """An autoencoder with random weights, most of its layers at 16 x 16, where they cost least."""
    width = 32  # AutoencoderTiny needs the same width everywhere
    return AutoencoderTiny(
        encoder_block_out_channels=(width,) * 3,
        decoder_block_out_channels=(width,) * 3,
        num_encoder_blocks=(0, 1, 3),
        num_decoder_blocks=(4, 2, 0),
        latent_channels=LATENT_CHANNELS,
    )


def moment_penalty(z: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """Squared distance of each latent channel's mean and variance from those of N(0, 1)."""
    return z.mean((0, 2, 3)).square().mean() + (z.var((0, 2, 3)) - 1).square().mean()


def make(
    plan: Plan,
    device: str,
    *,
    data: Path | None = None,
    base: str | None = None,
    batch: int = BATCH,
    **choice: Unpack[PhotoChoice],
) -> Job:
    """The squared error of reconstructions (the aim is PSNR) from latents with a little noise.

    Trained on photos, the folder says how well photos that it never saw come back.

    Args:
        data: a folder in COCO layout, random views of whose photos are learned, also of those
            without captions; pocket scenes if not given.
        base: the model whose autoencoder is the start, "pocket" or a folder; random weights if not
            given.
        batch: images a step.
        choice: of the folder's photos, see `PhotoChoice`.
    """
    torch.manual_seed(plan.seed)
    vae = (new_autoencoder() if base is None else start(base)).to(memory_format=torch.channels_last)
    if data is None:
        images, phrase = pocket_batches(batch), f"pocket scenes train 0-{plan.batches * batch - 1}"
    else:
        photos, phrase = training_photos(data, pixels_alone=True, **choice)
        view = partial(image_view, seed=plan.seed, photos=photos, size=SIZE)
        views = batches(view, batch, device_of(device))
        images = lambda step: to_tensor(views(step))  # noqa: E731

    def loss_at(number: int, generator: torch.Generator) -> Tensor:
        shown = images(number).to(vae.device).contiguous(memory_format=torch.channels_last)
        z = vae.encoder(shown)
        noise = torch.randn(z.shape, generator=generator).to(z.device)
        error = (vae.decoder(z + LATENT_NOISE * noise) - shown).square().mean()
        return error + 1e-3 * moment_penalty(z)

    def save(folder: Path) -> None:
        known = pocket_images("val", range(MEASURED))
        if data is not None:
            known = torch.cat([images(number) for number in range(max(1, MEASURED // batch))])
        with torch.no_grad():
            latents = vae.encode(known.to(vae.device)).latents
        vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
        save_half(vae, folder)
        if data is not None:
            table = reconstruction(vae, data, **choice)
            print(table, end="")
            files.write(folder / "reconstruction.md", table)

    return Job(vae, loss_at, save, plan, phrase)


def pocket_batches(batch: int) -> Callable[[int], Float[Tensor, "b 3 64 64"]]:
    """A function from a micro-batch's number to its pocket images."""
    return lambda number: pocket_images("train", range(number * batch, (number + 1) * batch))


def start(base: str) -> AutoencoderTiny:
    """The autoencoder to continue from, in single precision.

    Args:
        base: "pocket", a model folder with a text-to-image model, or the folder of an autoencoder
            that this recipe wrote.

    Raises:
        ValueError: it has an autoencoder of another class.
    """
    alone = (Path(base) / CONFIG).is_file()
    place = zoo.folder(base) if alone else zoo.folder(base, "text-to-image") / "vae"
    kind = zoo.read_json(place / CONFIG).get("_class_name")
    if kind != AutoencoderTiny.__name__:
        raise ValueError(
            f"base is {base}, whose {place / CONFIG} is of a {kind}: this recipe "
            f"continues an {AutoencoderTiny.__name__}, such as the pocket's"
        )
    return AutoencoderTiny.from_pretrained(place, torch_dtype=torch.float32)


@torch.no_grad()
def distances(vae: AutoencoderTiny, images: Iterable[np.ndarray]) -> list[float]:
    """The PSNR in dB of each image (uint8, h x w x 3), encoded and decoded."""
    found = []
    for image in images:
        pixels = to_tensor([image])
        again = decode(vae, encode(vae, pixels.to(vae.device))).clamp(-1, 1).cpu()
        found.append(psnr(to_unit(again).numpy(), to_unit(pixels).numpy()))
    return found


def reconstruction(vae: AutoencoderTiny, data: Path, **choice: Unpack[PhotoChoice]) -> str:
    """How well images come back that it was not trained on, as Markdown."""
    sets = {
        f"photos of {data.name}, val2017 (centre squares)": held_out_squares(
            data, SIZE, MEASURED, **choice
        ),
        "pocket scenes of the validation split": [
            pocket_item("val", i).image for i in range(MEASURED // 4)
        ],
    }
    rows = ["| never trained on | images | PSNR, mean | worst |", "|---|---|---|---|"]
    for name, images in sets.items():
        if len(images):
            found = distances(vae, images)
            numbers = f"{np.mean(found):.2f} dB | {min(found):.2f} dB"
            rows.append(f"| {name} | {len(found)} | {numbers} |")
    return "\n".join(rows) + "\n"
