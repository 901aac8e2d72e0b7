# SPDX-License-Identifier: Apache-2.0
"""What can be measured: a name for each way to turn a scene into an image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from spatext_lab import zoo
from spatext_lab.baselines.other_maps import OtherMapsPipeline
from spatext_lab.baselines.positional_words import PositionalWordsPipeline
from spatext_lab.datasets.pocket import PocketItem, Segment
from spatext_lab.diffusion import UNetDenoiser, guided, initial_noise, sample
from spatext_lab.images import decode, encode, to_images, to_tensor
from spatext_lab.reco.pipeline import ReCoPipeline
from spatext_lab.reco.position_tokens import is_thin
from spatext_lab.scene import Region, Scene
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.spatext.prior import LinearPrior
from spatext_lab.spatext.representation import coverage, paint
from spatext_lab.text_to_image.pipeline import TextToImagePipeline


@dataclass(frozen=True)
class Task:
    """One evaluation scene: some segments of an unseen image, with its caption."""

    item: PocketItem
    segments: tuple[Segment, ...]
    masks: tuple[np.ndarray, ...]  # the segments' own, or corrupted ones for the robustness table

    @property
    def scene(self) -> Scene:
        """The scene that the method is conditioned on."""
        pairs = zip(self.segments, self.masks, strict=True)
        return Scene(self.item.captions[0], [Region(s.text, mask=mask) for s, mask in pairs])


# Tasks (anything with a scene; some methods look at its item too), and the first one's seed
Draw = Callable[[Sequence[Any], int], list[Image.Image]]


@dataclass(frozen=True)
class Method:
    """One way to generate images: how it is made from a model's folder, and its settings."""

    what: str  # a phrase for tables
    make: Callable[[str, dict[str, Any]], Draw]
    settings: dict[str, Any]
    protocol: str = "segments"  # which of report.PROTOCOLS measures it where nothing else is said

    @property
    def passes(self) -> int | None:
        """Network passes per step; None where nothing is sampled."""
        if not self.settings:
            return None
        return 3 if "region_guidance_scale" in self.settings else 2

    def drawer(self, model: str, settings: dict[str, Any] | None = None) -> Draw:
        """A function from tasks and the first one's seed to images.

        Args:
            model: "pocket", or a folder with its layout.
            settings: sampling settings in place of the method's own.
        """
        return self.make(model, settings or self.settings)


Rewrite = Callable[[Scene], Scene]


def _pipeline(kind: type, part: str, rewrite: Rewrite | None = None, **parts: Any) -> Callable:
    """Samples with a pipeline as everyone uses it.

    rewrite: of each scene before the pipeline gets it. parts: in place of the folder's own.
    """

    def make(model: str, settings: dict[str, Any]) -> Draw:
        pipeline = kind.from_pretrained(zoo.folder(model, part), **parts)

        def draw(todo: Sequence[Any], seed: int) -> list[Image.Image]:
            scenes = [task.scene for task in todo]
            scenes = [rewrite(scene) for scene in scenes] if rewrite else scenes
            return pipeline(scenes, seed=seed, **settings).images

        return draw

    return make


def _reco(model: str, settings: dict[str, Any]) -> Draw:
    """ReCo without boxes thinner than a bin; an object asked for in one counts all the same."""
    pipeline = ReCoPipeline.from_pretrained(zoo.folder(model, "reco"))
    bins = pipeline.position_tokens.bins

    def draw(todo: Sequence[Any], seed: int) -> list[Image.Image]:
        scenes = [
            Scene(task.scene.caption, [r for r in task.scene.regions if not is_thin(r.box, bins)])
            for task in todo
        ]
        return pipeline(scenes, seed=seed, **settings).images

    return draw


def _caption_alone(scene: Scene) -> Scene:
    return Scene(scene.caption)


def _linear_prior(model: str, settings: dict[str, Any]) -> Draw:
    prior = LinearPrior.from_pretrained(zoo.folder(model, "spatext") / "prior")
    return _pipeline(SpaTextPipeline, "spatext", prior=prior)(model, settings)


def _true_embeddings(model: str, settings: dict[str, Any]) -> Draw:
    """SpaText, its map made of CLIP's image embeddings of the true segments."""
    pipeline = SpaTextPipeline.from_pretrained(zoo.folder(model, "spatext"))
    size = (pipeline.latent_size, pipeline.latent_size)

    @torch.no_grad()
    def st_map(task: Task) -> torch.Tensor:
        image = to_tensor(task.item.image[None]) / 2 + 0.5
        masks = torch.from_numpy(np.stack([segment.mask for segment in task.segments]))
        embeddings = pipeline.clip.encode_segments(image.expand(len(masks), -1, -1, -1), masks)
        asked = torch.from_numpy(np.stack(task.masks))
        return paint(embeddings[None], coverage(asked, size)[None])[0]

    @torch.no_grad()
    def draw(todo: Sequence[Task], seed: int) -> list[Image.Image]:
        captions = pipeline.encode_captions([task.item.captions[0] for task in todo])
        condition = replace(captions, st_map=torch.stack([st_map(task) for task in todo]))
        denoiser = guided(UNetDenoiser(pipeline.unet), settings["guidance_scale"])
        channels = pipeline.unet.config.out_channels
        x_T = initial_noise(range(seed, seed + len(todo)), (channels, *size))
        steps = settings["num_inference_steps"]
        *_, last = sample(denoiser, pipeline.scheduler, x_T, condition, steps)
        return pipeline.decode(last.x_t)

    return draw


def _autoencoder(model: str, settings: dict[str, Any]) -> Draw:
    vae = TextToImagePipeline.from_pretrained(zoo.folder(model, "text-to-image")).vae

    @torch.no_grad()
    def draw(todo: Sequence[Any], seed: int) -> list[Image.Image]:
        latents = encode(vae, to_tensor(np.stack([task.item.image for task in todo])))
        return to_images(decode(vae, latents))

    return draw


def _true(model: str, settings: dict[str, Any]) -> Draw:
    return lambda todo, seed: [Image.fromarray(task.item.image) for task in todo]


# Chosen on the validation split. One scale for all is the paper's fast form, 2 passes a step.
JOINT = {"num_inference_steps": 10, "guidance_scale": 2.0}
MULTI_SCALE = {"num_inference_steps": 10, "guidance_scale": 1.5, "region_guidance_scale": 2.0}

RECO = {"num_inference_steps": 10, "guidance_scale": 2.0}

_SPATEXT = _pipeline(SpaTextPipeline, "spatext")
METHODS = {
    "spatext": Method("SpaText, full: joint guidance, diffusion prior", _SPATEXT, JOINT),
    "multi-scale": Method("a scale each for caption and map", _SPATEXT, MULTI_SCALE),
    "no-prior": Method(
        "text embeddings as they are", _pipeline(SpaTextPipeline, "spatext", prior=None), JOINT
    ),
    "linear-prior": Method("the best linear map as prior", _linear_prior, JOINT),
    "true-vectors": Method(
        "image embeddings of the true segments (bound)", _true_embeddings, JOINT
    ),
    "pixel": Method("pixel variant", _pipeline(SpaTextPipeline, "spatext-pixel"), JOINT),
    # Not shipped: `spatext-lab train other-maps --representation KIND` makes them.
    "binary": Method(
        "binary map, texts after the caption", _pipeline(OtherMapsPipeline, "spatext-binary"), JOINT
    ),
    "caption": Method(
        "caption's embedding in every cell", _pipeline(OtherMapsPipeline, "spatext-caption"), JOINT
    ),
    "similarity": Method(
        "similarity to words", _pipeline(OtherMapsPipeline, "spatext-similarity"), JOINT
    ),
    "vectors": Method("SpaText's map", _pipeline(SpaTextPipeline, "spatext-vectors"), JOINT),
    "reco": Method("ReCo", _reco, RECO, "boxes"),
    "reco-caption": Method(
        "ReCo, caption alone",
        _pipeline(ReCoPipeline, "reco", _caption_alone),
        RECO,
        "boxes",
    ),
    # Not shipped: `spatext-lab train reco --variant words` makes it.
    "words": Method(
        "positional words", _pipeline(PositionalWordsPipeline, "reco-words"), RECO, "boxes"
    ),
    "text": Method(
        "text-to-image without map", _pipeline(TextToImagePipeline, "text-to-image"), JOINT
    ),
    "autoencoder": Method("the true image, through the autoencoder", _autoencoder, {}),
    "true": Method("the true image", _true, {}),
}
