# SPDX-License-Identifier: Apache-2.0
"""What can be measured: a name for each way from a scene to an image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from spatext_lab import zoo
from spatext_lab.baselines.digit_coordinates import DigitCoordinatesPipeline
from spatext_lab.baselines.gligen import GligenPipeline
from spatext_lab.baselines.layout_guidance import LayoutGuidancePipeline
from spatext_lab.baselines.multidiffusion import MultiDiffusionPipeline
from spatext_lab.baselines.other_maps import OtherMapsPipeline
from spatext_lab.baselines.positional_words import PositionalWordsPipeline
from spatext_lab.baselines.regional_attention import RegionalAttentionPipeline
from spatext_lab.baselines.summaries.energy import EnergyNetwork
from spatext_lab.baselines.summaries.pipeline import AcceleratedSpaTextPipeline
from spatext_lab.baselines.summaries.update_mask import UpdateMaskNetwork
from spatext_lab.clip import Clip
from spatext_lab.diffusion import UNetDenoiser, guided, initial_noise, sample
from spatext_lab.evaluation.tasks import Task
from spatext_lab.images import decode, encode, to_images, to_tensor, to_unit
from spatext_lab.reco.pipeline import ReCoPipeline
from spatext_lab.reco.position_tokens import is_thin
from spatext_lab.scene import Scene
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.spatext.prior import DiffusionPrior, LinearPrior
from spatext_lab.spatext.representation import coverage, paint
from spatext_lab.spatext.widen import widen_input
from spatext_lab.text_to_image.base import ScenePipeline
from spatext_lab.text_to_image.pipeline import TextToImagePipeline

# Tasks and the first one's seed to images
Sampler = Callable[[Sequence[Task], int], list[Image.Image]]


@dataclass(frozen=True)
class Method:
    """A way from scenes to images: how it is loaded from a model's folder, and its settings.

    Args:
        what: a phrase for tables.
        load: from a model's name and sampling settings to a function that samples.
        settings: sampling settings; empty where no network samples.
        protocol: which of report.PROTOCOLS measures it by default.
        passes_for: passes of the network a step for one scene, where they depend on it.
    """

    what: str
    load: Callable[[str, dict[str, Any]], Sampler]
    settings: dict[str, Any]
    protocol: str = "segments"
    passes_for: Callable[[Scene], float] | None = None

    def passes(self, scenes: Sequence[Scene]) -> float | None:
        """Passes of the network a step, the mean over scenes; None where no network samples."""
        if not self.settings:
            return None
        if self.passes_for is not None:
            return sum(map(self.passes_for, scenes)) / len(scenes)
        return 3 if "region_guidance_scale" in self.settings else 2


def _pipeline(
    kind: type[ScenePipeline],
    part: str,
    scene: Callable[[Any, Scene], Scene] | None = None,
    parts: Callable[[str], dict[str, Any]] | None = None,
) -> Callable[[str, dict[str, Any]], Sampler]:
    """Samples with a pipeline as everyone uses it.

    Args:
        kind: the pipeline's class.
        part: its folder in the model's.
        scene: from the pipeline and a scene to the scene that it is called with.
        parts: from the model's name to parts in place of the folder's own.
    """

    def load(model: str, settings: dict[str, Any]) -> Sampler:
        pipeline = kind.from_pretrained(zoo.folder(model, part), **parts(model) if parts else {})

        def sampler(todo: Sequence[Task], seed: int) -> list[Image.Image]:
            scenes = [scene(pipeline, task.scene) if scene else task.scene for task in todo]
            return pipeline(scenes, seed=seed, **settings).images

        return sampler

    return load


def _caption_alone(_: ReCoPipeline, scene: Scene) -> Scene:
    return Scene(scene.caption)


def without_thin(pipeline: ReCoPipeline, scene: Scene) -> Scene:
    """ReCo cannot express a box thinner than a bin; measuring asks for its object all the same."""
    bins = pipeline.position_tokens.bins
    return Scene(scene.caption, [r for r in scene.regions if not is_thin(r.box, bins)])


def _linear_prior(model: str) -> dict[str, Any]:
    return {"prior": LinearPrior.from_pretrained(zoo.folder(model, "spatext") / "prior")}


def _update_mask(model: str) -> dict[str, Any]:
    """All or nothing of each image: where few cells change, the U-Net is skipped."""
    mask = UpdateMaskNetwork.from_pretrained(zoo.folder(model, "update-mask"))
    return {"update_mask": mask}


def _energy(model: str) -> dict[str, Any]:
    """What the text-to-image model lacks: an input for maps, which it ignores, and an energy."""
    unet = TextToImagePipeline.from_pretrained(zoo.folder(model, "text-to-image")).unet
    clip = Clip.from_pretrained(zoo.folder(model, "spatext/clip"))
    prior = DiffusionPrior.from_pretrained(zoo.folder(model, "spatext/prior"))
    energy = EnergyNetwork.from_pretrained(zoo.folder(model, "energy"), torch_dtype=torch.float32)
    parts = {"clip": clip, "prior": prior, "energy": energy}
    return {"unet": widen_input(unet, clip.embedding_dim)} | parts


def _true_embeddings(model: str, settings: dict[str, Any]) -> Sampler:
    """SpaText's sampling loop on maps of CLIP's image embeddings of the true segments."""
    pipeline = SpaTextPipeline.from_pretrained(zoo.folder(model, "spatext"))
    size = (pipeline.latent_size,) * 2

    def st_map(task: Task) -> torch.Tensor:
        image = to_unit(to_tensor([task.item.image]))
        true = torch.stack([torch.from_numpy(segment.mask) for segment in task.segments])
        embeddings = pipeline.clip.encode_segments(image.expand(len(true), -1, -1, -1), true)
        return paint(embeddings[None], coverage(torch.from_numpy(task.masks), size)[None])[0]

    @torch.no_grad()
    def sampler(todo: Sequence[Task], seed: int) -> list[Image.Image]:
        condition = pipeline.encode_captions([task.scene.caption for task in todo])
        condition = replace(condition, st_map=torch.stack([st_map(task) for task in todo]))
        denoiser = guided(UNetDenoiser(pipeline.unet), settings["guidance_scale"])
        channels, steps = pipeline.unet.config.out_channels, settings["num_inference_steps"]
        x_T = initial_noise(range(seed, seed + len(todo)), (channels, *size))
        *_, last = sample(denoiser, pipeline.scheduler, x_T, condition, steps)
        return pipeline.decode(last.x_t)

    return sampler


def _autoencoder(model: str, settings: dict[str, Any]) -> Sampler:
    vae = TextToImagePipeline.from_pretrained(zoo.folder(model, "text-to-image")).vae

    @torch.no_grad()
    def sampler(todo: Sequence[Task], seed: int) -> list[Image.Image]:
        latents = encode(vae, to_tensor([task.item.image for task in todo]))
        return to_images(decode(vae, latents))

    return sampler


def _true(model: str, settings: dict[str, Any]) -> Sampler:
    return lambda todo, seed: [Image.fromarray(task.item.image) for task in todo]


# Chosen on the validation split. One scale for all is the paper's fast form, 2 passes a step.
JOINT = {"num_inference_steps": 10, "guidance_scale": 2.0}
MULTI_SCALE = {"num_inference_steps": 10, "guidance_scale": 1.5, "region_guidance_scale": 2.0}
RECO = {"num_inference_steps": 10, "guidance_scale": 2.0}

_spatext = _pipeline(SpaTextPipeline, "spatext")
_no_prior = _pipeline(SpaTextPipeline, "spatext", parts=lambda model: {"prior": None})
_best_line = _pipeline(SpaTextPipeline, "spatext", parts=_linear_prior)
_pixel = _pipeline(SpaTextPipeline, "spatext-pixel")
_vectors = _pipeline(SpaTextPipeline, "spatext-vectors")
_binary = _pipeline(OtherMapsPipeline, "spatext-binary")
_caption = _pipeline(OtherMapsPipeline, "spatext-caption")
_similarity = _pipeline(OtherMapsPipeline, "spatext-similarity")
_masked = _pipeline(AcceleratedSpaTextPipeline, "spatext", parts=_update_mask)
_two_sizes = _pipeline(
    AcceleratedSpaTextPipeline, "spatext", parts=lambda model: {"coarse_fraction": 0.5}
)
_reco = _pipeline(ReCoPipeline, "reco", without_thin)
_reco_caption = _pipeline(ReCoPipeline, "reco", _caption_alone)
_words = _pipeline(PositionalWordsPipeline, "reco-words")
_digits = _pipeline(DigitCoordinatesPipeline, "reco-digits")
_gligen = _pipeline(GligenPipeline, "gligen")
_text = _pipeline(TextToImagePipeline, "text-to-image")
_energy_guided = _pipeline(AcceleratedSpaTextPipeline, "text-to-image", parts=_energy)
_multidiffusion = _pipeline(MultiDiffusionPipeline, "text-to-image")
_layout = _pipeline(LayoutGuidancePipeline, "text-to-image")
_regional = _pipeline(RegionalAttentionPipeline, "text-to-image")

METHODS = {
    "spatext": Method("SpaText, full: joint guidance, diffusion prior", _spatext, JOINT),
    "multi-scale": Method("a scale each for caption and map", _spatext, MULTI_SCALE),
    "no-prior": Method("text embeddings as they are", _no_prior, JOINT),
    "linear-prior": Method("the best linear map as prior", _best_line, JOINT),
    "true-vectors": Method(
        "image embeddings of the true segments (bound)", _true_embeddings, JOINT
    ),
    "pixel": Method("pixel variant", _pixel, JOINT),
    # Not shipped: `spatext-lab train spatext` makes the first (the rivals' equal), `train
    # other-maps --representation KIND` the others.
    "vectors": Method("SpaText's map", _vectors, JOINT),
    "binary": Method("binary map, texts after the caption", _binary, JOINT),
    "caption": Method("caption's embedding in every cell", _caption, JOINT),
    "similarity": Method("similarity to words", _similarity, JOINT),
    # What a summary of the paper describes; `spatext-lab train update-mask` makes the mask.
    "update-mask": Method("SpaText with a learned update mask", _masked, JOINT),
    "coarse-to-fine": Method("SpaText, half of the steps at half the size", _two_sizes, JOINT),
    "reco": Method("ReCo", _reco, RECO, "boxes"),
    "reco-caption": Method("ReCo, caption alone", _reco_caption, RECO, "boxes"),
    # Not shipped: `spatext-lab train reco --variant words` (or digits) makes them.
    "words": Method("positional words", _words, RECO, "boxes"),
    "digits": Method("coordinates as digits", _digits, RECO, "boxes"),
    "gligen": Method("GLIGEN", _gligen, RECO, "boxes"),
    "text": Method("text-to-image without map", _text, JOINT),
    # `spatext-lab train energy` makes the energy; a pass of it costs a fifth of the U-Net's two.
    "energy": Method("text-to-image with a learned energy", _energy_guided, JOINT),
    # Without training, on the same text-to-image model.
    "multidiffusion": Method(
        "MultiDiffusion", _multidiffusion, JOINT, passes_for=MultiDiffusionPipeline.passes
    ),
    "regional-attention": Method("regional cross-attention", _regional, JOINT),
    # In 3 of the 10 steps 5 moves, each a pass forward and one back.
    "layout-guidance": Method(
        "layout guidance", _layout, JOINT, passes_for=lambda scene: 5 if scene.regions else 2
    ),
    "autoencoder": Method("the true image, through the autoencoder", _autoencoder, {}),
    "true": Method("the true image", _true, {}),
}
