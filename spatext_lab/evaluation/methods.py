# SPDX-License-Identifier: Apache-2.0
"""What can be measured: a name for each way to turn a scene into a picture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from spatext_lab import zoo
from spatext_lab.baselines.positional_words import PositionalWordsPipeline
from spatext_lab.datasets.pocket import PocketItem, Segment
from spatext_lab.diffusion import Condition
from spatext_lab.images import decode, encode, to_images, to_tensor
from spatext_lab.reco.pipeline import ReCoPipeline
from spatext_lab.reco.position_tokens import is_thin
from spatext_lab.scene import Region, Scene
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.spatext.representation import coverage, paint
from spatext_lab.text_to_image.pipeline import TextToImagePipeline


@dataclass(frozen=True)
class Task:
    """One evaluation scene: some segments of an unseen picture, with a caption of the whole."""

    item: PocketItem
    segments: tuple[Segment, ...]
    masks: tuple[np.ndarray, ...]  # the segments' own, or worse ones that a method is to bear

    @property
    def scene(self) -> Scene:
        """What the method is given."""
        pairs = zip(self.segments, self.masks, strict=True)
        return Scene(self.item.captions[0], [Region(s.text, mask=mask) for s, mask in pairs])


# Tasks (anything with a scene; some methods look at its item too), and the first one's seed
Draw = Callable[[Sequence[Any], int], list[Image.Image]]


@dataclass(frozen=True)
class Method:
    """One way to draw: how it is made from a model's folder, and its sampling settings."""

    what: str  # a phrase for tables
    make: Callable[[str, dict[str, Any]], Draw]
    settings: dict[str, Any]
    protocol: str = "segments"  # which of report.PROTOCOLS measures it where nothing else is said

    @property
    def passes(self) -> int | None:
        """Passes of the network a step; None where no network samples."""
        if not self.settings:
            return None
        return 3 if "region_guidance_scale" in self.settings else 2

    def drawer(self, model: str, settings: dict[str, Any] | None = None) -> Draw:
        """A function from tasks and the first one's seed to pictures.

        settings: in place of the method's own. Raises what reading the model raises.
        """
        return self.make(model, settings or self.settings)


def _pipeline(kind: type, part: str, prepare: Callable = lambda pipeline: None) -> Callable:
    """Draws with a pipeline as it is used by everyone, `prepare` having changed it."""

    def make(model: str, settings: dict[str, Any]) -> Draw:
        pipeline = kind.from_pretrained(zoo.part(model, part))
        prepare(pipeline)
        return lambda todo, seed: pipeline([task.scene for task in todo], seed=seed, **settings)

    return make


def _without_prior(pipeline: SpaTextPipeline) -> None:
    pipeline.prior = None


def _with_linear_prior(pipeline: SpaTextPipeline) -> None:
    pipeline.prior = pipeline.prior.linear


def _without_thin(pipeline: ReCoPipeline) -> None:
    """Boxes thinner than a bin are not said; what was asked for in them still counts."""
    bins = pipeline.sentences.bins
    pipeline.spoken = lambda scene: Scene(
        scene.caption, [r for r in scene.regions if not (bins and is_thin(r.box, bins))]
    )


def _caption_alone(pipeline: ReCoPipeline) -> None:
    """ReCo as a text-to-image model that has learned from the same pictures and captions."""
    pipeline.spoken = lambda scene: Scene(scene.caption)


def _true_vectors(model: str, settings: dict[str, Any]) -> Draw:
    """SpaText, painted with CLIP's image vectors of the true segments."""
    pipeline = SpaTextPipeline.from_pretrained(zoo.part(model, "spatext"))

    @torch.no_grad()
    def st_map(task: Task) -> torch.Tensor:
        picture = to_tensor(task.item.image[None]) / 2 + 0.5
        masks = torch.from_numpy(np.stack([segment.mask for segment in task.segments]))
        vectors = pipeline.clip.segments(picture.expand(len(masks), -1, -1, -1), masks)
        size = (pipeline.latent_size, pipeline.latent_size)
        asked = torch.from_numpy(np.stack(task.masks))
        return paint(vectors[None], coverage(asked, size)[None])[0]

    def told(todo: Sequence[Task]) -> Condition:
        captions = pipeline.captions([task.item.captions[0] for task in todo])
        return replace(captions, st_map=torch.stack([st_map(task) for task in todo]))

    def draw(todo: Sequence[Task], seed: int) -> list[Image.Image]:
        for step in pipeline.sample(told(todo), seed=seed, **settings):
            latents = step.x_0
        return pipeline.decode(latents)

    return draw


def _autoencoder(model: str, settings: dict[str, Any]) -> Draw:
    vae = TextToImagePipeline.from_pretrained(zoo.part(model, "text-to-image")).vae

    @torch.no_grad()
    def draw(todo: Sequence[Any], seed: int) -> list[Image.Image]:
        latents = encode(vae, to_tensor(np.stack([task.item.image for task in todo])))
        return to_images(decode(vae, latents))

    return draw


def _true(model: str, settings: dict[str, Any]) -> Draw:
    return lambda todo, seed: [Image.fromarray(task.item.image) for task in todo]


# Chosen on the validation split. One scale for all is the paper's fast form, 2 passes a step.
JOINT = {"steps": 10, "guidance_scale": 2.0}
MULTI_SCALE = {"steps": 10, "guidance_scale": 1.5, "region_guidance_scale": 2.0}

RECO = {"steps": 10, "guidance_scale": 2.0}

_SPATEXT = _pipeline(SpaTextPipeline, "spatext")
METHODS = {
    "spatext": Method("SpaText, full: joint guidance, diffusion prior", _SPATEXT, JOINT),
    "multi-scale": Method("a scale each for caption and map", _SPATEXT, MULTI_SCALE),
    "no-prior": Method(
        "text vectors as they are", _pipeline(SpaTextPipeline, "spatext", _without_prior), JOINT
    ),
    "linear-prior": Method(
        "the best straight line as prior",
        _pipeline(SpaTextPipeline, "spatext", _with_linear_prior),
        JOINT,
    ),
    "true-vectors": Method("image vectors of the true segments (bound)", _true_vectors, JOINT),
    "pixel": Method("pixel variant", _pipeline(SpaTextPipeline, "spatext-pixel"), JOINT),
    # Not shipped: `spatext-lab train spatext --representation KIND` makes them.
    "vectors": Method("SpaText's map", _pipeline(SpaTextPipeline, "spatext-vectors"), JOINT),
    "binary": Method(
        "binary map, texts after the caption", _pipeline(SpaTextPipeline, "spatext-binary"), JOINT
    ),
    "caption": Method(
        "caption's vector painted too", _pipeline(SpaTextPipeline, "spatext-caption"), JOINT
    ),
    "similarity": Method(
        "similarity to words", _pipeline(SpaTextPipeline, "spatext-similarity"), JOINT
    ),
    "reco": Method("ReCo", _pipeline(ReCoPipeline, "reco", _without_thin), RECO, "boxes"),
    "reco-caption": Method(
        "ReCo, told the caption alone",
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
    "autoencoder": Method("the true picture, through the autoencoder", _autoencoder, {}),
    "true": Method("the true picture", _true, {}),
}
