# SPDX-License-Identifier: Apache-2.0
"""What every pipeline promises, each on tiny models of random weights and on the shipped ones."""

import copy
import inspect
import json
import os
import pty
import subprocess
import sys
import termios
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from huggingface_hub.utils import filter_repo_objects
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from spatext_lab import zoo
from spatext_lab.course import stand_in
from spatext_lab.diffusion import initial_noise
from spatext_lab.reco.pipeline import ReCoPipeline
from spatext_lab.scene import Region, Scene
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.spatext.prior import LinearPrior
from spatext_lab.spatext.widen import narrow_input
from spatext_lab.text_to_image import base
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from tests.tiny import BARE, OTHER, SCENE, final, tiny_model

KINDS = {
    "text-to-image": TextToImagePipeline,
    "spatext": SpaTextPipeline,
    "spatext-pixel": SpaTextPipeline,
    "reco": ReCoPipeline,
}
PARTS = {
    "text-to-image": {"unet", "vae", "text_encoder", "tokenizer", "scheduler"},
    "spatext": {"unet", "vae", "text_encoder", "tokenizer", "scheduler", "clip", "prior"},
    "spatext-pixel": {"unet", "vae", "scheduler", "clip", "prior"},
    "reco": {"unet", "vae", "text_encoder", "tokenizer", "scheduler"},
}
SCHEDULERS = {
    "DDIM": DDIMScheduler,
    "Euler": EulerDiscreteScheduler,
    "DPM-Solver++": DPMSolverMultistepScheduler,
    "UniPC": UniPCMultistepScheduler,
}
TWO = {"num_inference_steps": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@cache
def opened(folder: Path, name: str) -> DiffusionPipeline:
    return KINDS[name].from_pretrained(folder)


@pytest.fixture(params=[f"{size} {name}" for size in ("tiny", "shipped") for name in KINDS])
def name(request) -> str:
    return request.param


@pytest.fixture
def folder(name, root) -> Path:
    size, kind = name.split()
    return root / kind if size == "tiny" else zoo.folder("pocket", kind)


@pytest.fixture
def kind(name) -> str:
    return name.split()[1]


@pytest.fixture
def pipeline(folder, kind) -> DiffusionPipeline:
    return opened(folder, kind)


@pytest.fixture
def fresh(pipeline) -> DiffusionPipeline:
    """One of its own for a test that changes the pipeline."""
    parts = {name: copy.deepcopy(part) for name, part in pipeline.components.items()}
    return type(pipeline).from_pipe(pipeline, **parts)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def noise_of(pipeline: DiffusionPipeline, seeds) -> Tensor:
    size = pipeline.latent_size
    return initial_noise(seeds, (pipeline.unet.config.out_channels, size, size))


# --- one seed, one image --------------------------------------------------------------------------


def test_the_same_call_gives_the_same_bits(pipeline):
    one, two, other = (pipeline(SCENE, seed=seed, **TWO).images[0] for seed in (1, 1, 2))
    assert np.array_equal(pixels(one), pixels(two))
    assert not np.array_equal(pixels(one), pixels(other))
    assert one.size == (pipeline.image_size, pipeline.image_size) == (64, 64)
    zero = pipeline(SCENE, **TWO).images[0]
    assert np.array_equal(pixels(zero), pixels(pipeline(SCENE, seed=0, **TWO).images[0]))


def test_an_image_is_the_same_alone_and_in_a_batch(pipeline):
    scenes = [SCENE, OTHER, BARE, SCENE]
    batch = final(pipeline, scenes, seed=5, num_inference_steps=3)
    for k, scene in enumerate(scenes):
        alone = final(pipeline, scene, seed=5 + k, num_inference_steps=3)[0]
        assert_close(batch[k], alone, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(batch[0], batch[3], atol=0.1), "one noise for both"


def test_the_stream_ends_in_the_image(pipeline):
    steps = list(pipeline.stream(SCENE, seed=2, num_inference_steps=3))
    assert [step.index for step in steps] == [0, 1, 2]
    assert torch.is_grad_enabled(), "the loop left the gradients off"
    assert_close(steps[-1].x_t, steps[-1].x_0)
    (last,) = pipeline.decode(steps[-1].x_t)
    (image,) = pipeline(SCENE, seed=2, num_inference_steps=3).images
    assert np.array_equal(pixels(last), pixels(image))


@pytest.mark.parametrize(("scale", "conditions"), [(1.0, 1), (2.0, 2)])
def test_a_step_is_one_call_of_the_network(pipeline, scale, conditions):
    batches = []
    hook = pipeline.unet.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    try:
        pipeline([SCENE, OTHER], num_inference_steps=3, guidance_scale=scale)
    finally:
        hook.remove()
    assert batches == [2 * conditions] * 3


def test_a_scale_for_the_map_is_one_call_with_three_conditions(root):
    spatext, batches = opened(root / "spatext", "spatext"), []
    hook = spatext.unet.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    settings = {"seed": 5, "num_inference_steps": 3, "region_guidance_scale": 3.0}
    try:
        batch = final(spatext, [SCENE, OTHER], **settings)
    finally:
        hook.remove()
    assert batches == [2 * 3] * 3
    for k, scene in enumerate([SCENE, OTHER]):
        alone = final(spatext, scene, **settings | {"seed": 5 + k})[0]
        assert_close(batch[k], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model", ["tiny", "shipped"])
def test_the_text_to_image_pipeline_ignores_regions(root, model):
    place = root / "text-to-image" if model == "tiny" else zoo.folder("pocket", "text-to-image")
    pipeline = opened(place, "text-to-image")
    bare = Scene(SCENE.caption)
    assert torch.equal(final(pipeline, SCENE, **TWO), final(pipeline, bare, **TWO))


def test_regions_change_the_image(pipeline, kind):
    if kind != "text-to-image":
        moved = Scene(SCENE.caption, [Region(r.text, box=(0, 0, 0.5, 0.5)) for r in SCENE.regions])
        for other in (moved, Scene(SCENE.caption)):
            difference = final(pipeline, SCENE, **TWO) - final(pipeline, other, **TWO)
            assert difference.abs().max() > 1e-4


# --- arguments of diffusers -----------------------------------------------------------------------


def test_images_are_a_list_scene_by_scene(pipeline):
    """Also of one scene; and of several images for each scene, each with a seed of its own."""
    out = pipeline([SCENE, BARE], seed=3, num_images_per_prompt=2, **TWO)
    assert isinstance(out.images, list)
    assert len(out.images) == 4
    for k, image in enumerate(out.images):
        one = pipeline([SCENE, SCENE, BARE, BARE][k], seed=3 + k, **TWO).images
        assert isinstance(one, list)
        assert np.abs(pixels(image) - pixels(one[0])).max() <= 1
    assert isinstance(pipeline(SCENE, return_dict=False, **TWO), tuple)
    (images,) = pipeline(SCENE, return_dict=False, **TWO)
    assert np.array_equal(pixels(images[0]), pixels(pipeline(SCENE, **TWO).images[0]))


def test_output_types(pipeline):
    pil, pt, arrays, latents = (
        pipeline([SCENE, BARE], output_type=kind, **TWO).images
        for kind in ("pil", "pt", "np", "latent")
    )
    assert torch.equal(latents, final(pipeline, [SCENE, BARE], **TWO))
    assert pt.shape == (2, 3, 64, 64)
    assert arrays.shape == (2, 64, 64, 3)
    assert 0 <= pt.min() <= pt.max() <= 1
    assert np.array_equal(pt.permute(0, 2, 3, 1).numpy(), arrays)
    for image, array, decoded in zip(pil, arrays, pipeline.decode(latents), strict=True):
        assert np.abs(pixels(image) - 255 * array).max() <= 0.5 + 1e-4
        assert np.array_equal(pixels(image), pixels(decoded))


def test_latents_are_where_sampling_starts(pipeline):
    noise = noise_of(pipeline, [7, 8])
    given = pipeline([SCENE, BARE], latents=noise, output_type="latent", **TWO).images
    assert torch.equal(given, final(pipeline, [SCENE, BARE], seed=7, **TWO))
    assert torch.equal(noise, noise_of(pipeline, [7, 8])), "the caller's noise was changed"


def test_generators_give_the_noise_in_place_of_a_seed(pipeline):
    """A list with one per image; and one from which all images draw, as in diffusers."""
    settings = {"output_type": "latent", **TWO}
    scenes = [SCENE, BARE]
    several = [torch.Generator().manual_seed(seed) for seed in (4, 9)]
    images = pipeline(scenes, generator=several, **settings).images
    noise = torch.cat([noise_of(pipeline, [4]), noise_of(pipeline, [9])])
    assert torch.equal(images, pipeline(scenes, latents=noise, **settings).images)
    source, size = torch.Generator().manual_seed(4), pipeline.latent_size
    noise = torch.randn(2, pipeline.unet.config.out_channels, size, size, generator=source)
    one = pipeline(scenes, generator=torch.Generator().manual_seed(4), **settings).images
    assert torch.equal(one, pipeline(scenes, latents=noise, **settings).images)
    with pytest.raises(ValueError, match="generator holds 3 for 2 images; pass one per image"):
        pipeline(scenes, generator=[*several, several[0]], **settings)
    with pytest.raises(ValueError, match="seed is 1 and generator is passed too; pass one of them"):
        pipeline(scenes, generator=several, seed=1, **settings)


def test_a_negative_prompt_takes_the_empty_captions_place(pipeline):
    """eps_negative + s (eps_joint - eps_negative), each by the network called by hand; one text
    for all scenes, and one per scene."""
    scenes, scale = [SCENE, OTHER], 3.0
    noise, joint = noise_of(pipeline, [0, 1]), pipeline.condition(scenes)
    denoiser = base_denoiser(pipeline)
    t, alpha = torch.full((2,), 999), pipeline.scheduler.alphas_cumprod[999]
    for prompt in ("a dark cave", ["a dark cave", "snow"]):
        texts = [prompt] * 2 if isinstance(prompt, str) else prompt
        negative = pipeline.condition([Scene(text) for text in texts])
        with torch.no_grad():
            low, high = (denoiser(noise, t, condition) for condition in (negative, joint))
        want = low + scale * (high - low)
        if pipeline.scheduler.config.prediction_type == "v_prediction":  # pixels: x_0
            want = alpha.sqrt() * noise - (1 - alpha).sqrt() * want
        settings = {"guidance_scale": scale, "num_inference_steps": 1}
        got = final(pipeline, scenes, negative_prompt=prompt, **settings)
        assert_close(got, want, atol=1e-3, rtol=1e-3)
        assert (got - final(pipeline, scenes, **settings)).abs().max() > 1e-3


def base_denoiser(pipeline):
    """The U-Net on x_t with the map beside it, by hand."""

    def denoise(x_t, t, condition):
        x_in = x_t
        if condition.st_map is not None:
            x_in = torch.cat([x_t, condition.st_map * condition.st_map.shape[1] ** 0.5], 1)
        return pipeline.unet(x_in, t, encoder_hidden_states=condition.text)[0]

    return denoise


def test_a_callback_sees_each_step_and_may_replace_the_latents(pipeline):
    seen = []

    def look(asked, index, t, given):
        assert asked is pipeline
        seen.append((index, t, given["latents"].clone()))
        return {}

    plain = pipeline(SCENE, seed=6, callback_on_step_end=look, output_type="latent", **TWO).images
    steps = list(pipeline.stream(SCENE, seed=6, **TWO))
    for (index, t, latents), step in zip(seen, steps, strict=True):
        assert (index, t) == (step.index, step.t)
        assert torch.equal(latents, step.x_t)
    assert torch.equal(plain, steps[-1].x_t)

    other = noise_of(pipeline, [50])
    settings = {"output_type": "latent", **TWO}

    def replace_after(index_wanted):
        return lambda _, index, t, given: {"latents": other} if index == index_wanted else {}

    last = pipeline(SCENE, callback_on_step_end=replace_after(1), **settings).images
    assert torch.equal(last, other)
    first = pipeline(SCENE, seed=6, callback_on_step_end=replace_after(0), **settings).images
    assert (first - plain).abs().max() > 1e-3
    again = pipeline(SCENE, seed=7, callback_on_step_end=replace_after(0), **settings).images
    assert_close(first, again)  # all that the seed gave was replaced
    nothing = pipeline(SCENE, seed=6, callback_on_step_end=lambda *_: None, **settings).images
    assert torch.equal(nothing, plain)


def test_old_and_wrong_names_of_arguments_are_refused_with_todays(pipeline):
    with pytest.raises(TypeError, match=r"steps \(it is num_inference_steps now\)"):
        pipeline(SCENE, steps=3)
    with pytest.raises(TypeError, match="unexpected argument guidance; help"):
        pipeline(SCENE, guidance=3)
    for method in (pipeline.__call__, pipeline.stream):
        with pytest.raises(TypeError):
            method(SCENE, 3)


def test_the_signature_is_visible(pipeline):
    names = inspect.signature(pipeline.__call__).parameters
    asked = inspect.signature(pipeline.stream).parameters
    diffusers_own = set(inspect.signature(StableDiffusionPipeline.__call__).parameters)
    shared = {"num_inference_steps", "guidance_scale", "negative_prompt", "num_images_per_prompt"}
    shared |= {"generator", "latents", "output_type", "callback_on_step_end", "return_dict"}
    assert shared <= set(names) & diffusers_own
    further = {"output_type", "callback_on_step_end", "return_dict", "unknown"}
    assert set(names) - set(asked) == further


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"num_inference_steps": 0},
            "num_inference_steps is 0; pass a whole number from 1 to 1000",
        ),
        ({"num_inference_steps": 1001}, "num_inference_steps is 1001"),
        ({"guidance_scale": -1.0}, "^guidance_scale is -1"),
        ({"guidance_scale": float("nan")}, "^guidance_scale is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808; pass a whole number from 0 to"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"output_type": "jpg"}, "output_type is 'jpg'; pass one of pil, np, pt, latent"),
        (
            {"negative_prompt": ["a", "b", "c"]},
            "negative_prompt holds 3 texts; pass one text, or a list of 1",
        ),
        ({"latents": torch.zeros(1, 1, 2, 2)}, r"latents has shape \(1, 1, 2, 2\)"),
        ({"latents": torch.zeros(3, 4, 16, 16)}, r"latents has shape \(3, 4, 16, 16\); pass"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(pipeline, settings, message):
    with pytest.raises(ValueError, match=message):
        pipeline(SCENE, **settings)


def test_no_scenes_are_refused(pipeline):
    with pytest.raises(ValueError, match="scenes is empty; pass at least one"):
        pipeline([])


STEPS = "num_inference_steps is .*; pass a whole number from 1 to 1000"
IMAGES = "num_images_per_prompt is .*; pass a whole number >= 1"
SEED = "seed is .*; pass a whole number from 0"
SCALE = "^guidance_scale is .*; pass a finite number >= 0"
NEGATIVE = "negative_prompt is .*; pass a text, or one per scene"
LATENTS = torch.zeros(1, 4, 16, 16)
WRONG = [
    *(("num_inference_steps", value, STEPS) for value in (None, True, 2.0, "2", 0, 1001)),
    *(("num_images_per_prompt", value, IMAGES) for value in (0, -1, 2.5, True, None, "2")),
    *(("seed", value, SEED) for value in (True, 1.5, "1", -1, [1])),
    *(("guidance_scale", value, SCALE) for value in ("2", None, [2.0], float("inf"))),
    *(("negative_prompt", value, NEGATIVE) for value in (5, ["a", 5], {"a": 1})),
    ("negative_prompt", [], "negative_prompt holds 0 texts; pass one text, or a list of 1"),
    *(("generator", value, "generator is .*; pass a torch.Generator") for value in (5, "abc", [3])),
    ("generator", [], "generator holds 0 for 1 images"),
    ("latents", "noise", "latents is of type str; pass finite floating-point numbers of shape"),
    ("latents", LATENTS.long(), "latents is of type torch.int64; pass finite"),
    ("latents", LATENTS[0], r"latents has shape \(4, 16, 16\); pass finite"),
    ("latents", LATENTS / 0, "latents has 1024 infinite or NaN"),
    ("callback_on_step_end", 5, "callback_on_step_end is 5; pass f"),
    ("callback_on_step_end", lambda *_: 5, "callback_on_step_end returned 5; pass f"),
    ("callback_on_step_end", lambda *_: {"latent": 1}, "returned {'latent': 1}; pass f"),
    ("callback_on_step_end", lambda *_: {"latents": LATENTS[0]}, r"latents has shape \(4, 16, 16"),
    ("callback_on_step_end", lambda *_: {"latents": LATENTS / 0}, "latents has 1024 infinite"),
    ("callback_on_step_end", lambda *_: {"latents": None}, "latents is of type NoneType"),
]


@pytest.mark.usefixtures("as_for_users")
@pytest.mark.parametrize("kind", ["text-to-image", "spatext", "reco"])
@pytest.mark.parametrize(("field", "value", "message"), WRONG)
def test_an_argument_of_a_wrong_kind_is_named_with_its_right_form(
    root, kind, field, value, message
):
    with pytest.raises(ValueError, match=message):
        opened(root / kind, kind)(SCENE, **{"num_inference_steps": 1, field: value})


@pytest.mark.usefixtures("as_for_users")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scenes", [None, 5, "a scene", {"a": 1}, [SCENE, "a ball"]])
def test_what_is_no_scene_is_named(root, kind, scenes):
    with pytest.raises(ValueError, match=r"scenes\[\d\] is .*; pass a Scene, or a list of them"):
        opened(root / kind, kind)(scenes)


@pytest.mark.usefixtures("as_for_users")
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_numpy_are_numbers(root, kind):
    pipeline = opened(root / kind, kind)
    plain = {"seed": 3, "num_inference_steps": 2, "num_images_per_prompt": 2, "guidance_scale": 1.5}
    numpy = {name: np.float64(v) if v == 1.5 else np.int64(v) for name, v in plain.items()}
    assert torch.equal(final(pipeline, SCENE, **numpy), final(pipeline, SCENE, **plain))


@pytest.mark.parametrize("kind", KINDS)
def test_a_negative_prompt_without_guidance_has_one_warning(root, kind):
    pipeline = opened(root / kind, kind)
    settings = {"guidance_scale": 1.0, "negative_prompt": "a cave", "num_inference_steps": 2}
    with pytest.warns(UserWarning, match="negative_prompt has no effect") as caught:
        pipeline([SCENE, OTHER], **settings)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline(SCENE, **settings | {"negative_prompt": ""})
        if kind.startswith("spatext"):  # with a scale of its own for the map there is no "off"
            pipeline(SCENE, region_guidance_scale=1.0, **settings)


@pytest.mark.usefixtures("as_for_users")
@pytest.mark.parametrize("kind", ["text-to-image", "spatext", "spatext-pixel"])
@pytest.mark.parametrize("captions", ["abc", ["a", 5]])
def test_a_text_is_not_taken_for_a_list_of_letters(root, kind, captions):
    pipeline = opened(root / kind, kind)
    with pytest.raises(ValueError, match=r"captions is .*; pass a list of texts"):
        pipeline.encode_captions(captions)
    if kind != "text-to-image":
        for embed in (pipeline.embed, pipeline.clip.encode_text):
            with pytest.raises(ValueError, match=r"texts is .*; pass a list of texts"):
                embed(captions)


# --- texts that are too long ----------------------------------------------------------------------


def test_the_end_of_a_long_caption_is_named(pipeline, kind):
    """Two captions that differ there have one condition; a caption that just fits has no note."""
    if kind == "spatext-pixel":  # its captions are read by CLIP
        limit = pipeline.clip.context_length
    else:
        limit = pipeline.tokenizer.model_max_length
    fits = " ".join(["a"] * (limit - 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline(Scene(fits), num_inference_steps=1)
    ends = ["in a red barn", "by the green sea"]
    conditions = []
    for end in ends:
        with pytest.warns(UserWarning, match=f"caption is longer than .*{limit} tokens.*{end!r}"):
            conditions.append(pipeline.condition([Scene(f"{fits} {end}")]))
        with pytest.warns(UserWarning, match=f"'{end}' is truncated"):
            pipeline(Scene(f"{fits} {end}"), num_inference_steps=1)
    assert torch.equal(conditions[0].text, conditions[1].text)


def test_the_end_of_a_long_negative_prompt_is_named(pipeline, kind):
    limit = pipeline.clip.context_length if kind == "spatext-pixel" else None
    limit = limit or pipeline.tokenizer.model_max_length
    long = " ".join(["a"] * limit)
    with pytest.warns(UserWarning, match="^negative_prompt is longer .*'a a' is truncated"):
        pipeline(BARE, num_inference_steps=1, negative_prompt=long)


def test_of_a_long_region_text_what_is_not_read_is_named(pipeline, kind):
    """Of a text without spaces too; the beginning, which is read, is not."""
    text = "红色的球在绿色的草地上旁边有一棵大树和一座房子还有许多白色的小花开在湖边的山下" * 3
    scene = Scene("a wood", [Region(text, box=(0, 0, 1, 1))])
    if kind.startswith("spatext"):
        with pytest.warns(UserWarning, match=r"regions\[0\].text is longer than the") as caught:
            pipeline(scene, num_inference_steps=1)
        (note,) = [str(w.message) for w in caught if "longer than" in str(w.message)]
        rest = pipeline.clip.truncated(text)
        assert text.endswith(rest)
        assert 0 < len(rest) < len(text)
        assert note.endswith("is truncated; shorten it")
        assert rest[:50] in note
    if kind == "reco":
        longer = Scene("a wood", [Region(text * 5, box=(0, 0, 1, 1))])
        with pytest.warns(UserWarning, match=r"regions dropped: regions\[0\] \('红色的球"):
            pipeline(longer, num_inference_steps=1)


# --- parts ----------------------------------------------------------------------------------------


def test_components_are_the_parts(pipeline, kind):
    parts = {name for name, part in pipeline.components.items() if part is not None}
    assert parts == PARTS[kind]
    assert pipeline.device.type == "cpu"
    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    assert not any(part.training for part in modules)


def test_a_saved_pipeline_gives_the_same_image(pipeline, kind, tmp_path):
    pipeline.save_pretrained(tmp_path)
    again = type(pipeline).from_pretrained(tmp_path)
    settings = {"seed": 4, **TWO}
    assert torch.equal(final(again, SCENE, **settings), final(pipeline, SCENE, **settings))
    assert {path.name for path in tmp_path.iterdir()} == {"model_index.json", *PARTS[kind]}
    kinds = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".safetensors", ".txt"}
    here = [str(Path.home()), str(tmp_path), os.sep + "tests"]
    for file in tmp_path.rglob("*.json"):
        text = file.read_text()
        assert not any(path in text for path in here), f"{file.name} names a path of this machine"
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == type(pipeline).__name__
    assert "_diffusers_version" in index
    own = ["spatext_lab.text_to_image.unet", "PocketUNet"]
    assert index["unet"] in (["diffusers", "UNet2DConditionModel"], own)
    assert index["unet"][1] == type(pipeline.unet).__name__
    if kind != "spatext-pixel":
        assert index["tokenizer"] == ["transformers", "CLIPTokenizer"]


@pytest.mark.parametrize("argument", ["torch_dtype", "dtype"])
def test_a_precision_of_ones_own(folder, kind, argument):
    """All weights in half the bytes, and an image that is nearly the same."""
    half = KINDS[kind].from_pretrained(folder, **{argument: torch.bfloat16})
    for part in half.components.values():
        if isinstance(part, torch.nn.Module):
            assert {p.dtype for p in part.parameters()} <= {torch.bfloat16}
    settings = {"seed": 3, "num_inference_steps": 2}
    latents, exact = (final(p, SCENE, **settings) for p in (half, opened(folder, kind)))
    assert torch.isfinite(latents).all()
    distance = (latents.float() - exact).square().mean().sqrt()
    assert 0 < distance < 0.2 * exact.std()
    assert half(SCENE, **settings).images[0].size == (64, 64)


@pytest.mark.usefixtures("as_for_users")
@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("reco", {"torch_dtype": "bfloat16"}, "torch_dtype is 'bfloat16'; pass a floating-point"),
        ("reco", {"dtype": torch.int8}, r"torch_dtype is torch.int8; pass a floating-point type"),
        ("reco", {"torch_dtype": {"unet": "half"}}, "torch_dtype is {'unet': 'half'}; pass"),
        ("reco", {"use_safetensors": False}, "use_safetensors is False; weights are read from"),
        (
            "spatext",
            {"variant": "fp16"},
            "variant is 'fp16', which the parts from spatext_lab.clip",
        ),
        ("spatext", {"device_map": "balanced"}, "device_map is 'balanced', which the parts from"),
    ],
)
def test_settings_of_loading_that_cannot_be_followed_are_named(root, kind, settings, message):
    with pytest.raises(ValueError, match=message):
        KINDS[kind].from_pretrained(root / kind, **settings)
    if "variant" in settings:
        with pytest.raises(ValueError, match=message):
            opened(root / kind, kind).save_pretrained(root / "other", **settings)


def test_a_variant_is_read(root, tmp_path):
    reco = opened(root / "reco", "reco")
    reco.save_pretrained(tmp_path, variant="fp16")
    again = ReCoPipeline.from_pretrained(tmp_path, variant="fp16", use_safetensors=True)
    assert torch.equal(final(again, SCENE, **TWO), final(reco, SCENE, **TWO))


def test_weights_in_half_precision_are_read_in_single(folder, kind, tmp_path):
    half = KINDS[kind].from_pretrained(folder, torch_dtype=torch.float16)
    half.save_pretrained(tmp_path)
    again = KINDS[kind].from_pretrained(tmp_path)
    for part in again.components.values():
        if isinstance(part, torch.nn.Module):
            assert {p.dtype for p in part.parameters()} <= {torch.float32}
            assert not part.training


def test_a_hub_id_is_downloaded_and_then_a_folder(folder, kind, monkeypatch):
    """The parts alone, in safetensors alone: repositories hold the same weights several times."""
    asked = []

    def snapshot_download(name, **settings):
        asked.append((name, settings))
        return str(folder)

    monkeypatch.setattr(base, "snapshot_download", snapshot_download)
    hub = KINDS[kind].from_pretrained(f"somebody/{kind}", revision="v2")
    assert torch.equal(
        final(hub, SCENE, seed=4, **TWO), final(opened(folder, kind), SCENE, seed=4, **TWO)
    )
    ((name, settings),) = asked
    assert name == f"somebody/{kind}"
    assert settings["revision"] == "v2"
    files = ["model_index.json", "unet/config.json", "vae/diffusion_pytorch_model.safetensors"]
    files += [f"{part}/config.json" for part in PARTS[kind]]
    files += ["unet/model-00001-of-00002.safetensors", "unet/model.safetensors.index.json"]
    others = ["v1-5-pruned.safetensors", "unet/diffusion_pytorch_model.bin", "unet/evil.py"]
    others += ["unet/diffusion_pytorch_model.fp16.safetensors", "safety_checker/model.safetensors"]
    others += ["pipeline.py", "unet/weights.pt", "vae/model.ckpt", "README.md"]
    wanted = filter_repo_objects(
        files + others,
        allow_patterns=settings["allow_patterns"],
        ignore_patterns=settings["ignore_patterns"],
    )
    assert set(wanted) == set(files)


def test_a_folder_that_is_not_there_is_named(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for place in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "nobody/nothing", "nowhere"):
        with pytest.raises(FileNotFoundError, match=str(place)):
            KINDS[kind].from_pretrained(place)
    with pytest.raises(FileNotFoundError, match=r"has no model_index.json; pass a folder that a"):
        KINDS[kind].from_pretrained(tmp_path)


def test_from_pipe_hands_on_the_parts_themselves(pipeline):
    again = type(pipeline).from_pipe(pipeline)
    for name, part in pipeline.components.items():
        assert getattr(again, name) is part
    config = {key: value for key, value in pipeline.config.items() if key in again.config}
    assert config == dict(again.config)
    settings = {"most_regions", "min_area"}
    assert settings & set(pipeline.config) == settings & set(again.config)
    settings = {"seed": 4, **TWO}
    assert torch.equal(final(again, SCENE, **settings), final(pipeline, SCENE, **settings))


def test_from_pipe_hands_a_bases_parts_to_spatext(root):
    """Nothing is loaded twice or converted; what the base lacks and what is replaced is passed."""
    spatext = opened(root / "spatext", "spatext")
    start = TextToImagePipeline.from_pretrained(root / "text-to-image", torch_dtype=torch.bfloat16)
    named = {"unet": spatext.unet, "clip": spatext.clip, "prior": spatext.prior}
    grown = SpaTextPipeline.from_pipe(start, **named, most_regions=3)
    for name in ("vae", "text_encoder", "tokenizer", "scheduler"):
        assert getattr(grown, name) is getattr(start, name)
    assert {p.dtype for p in grown.text_encoder.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in grown.unet.parameters()} == {torch.float32}
    assert grown.config.most_regions == 3
    assert final(grown, SCENE, **TWO).isfinite().all()


@pytest.mark.usefixtures("as_for_users")
@pytest.mark.parametrize(
    ("kind", "source", "parts", "message"),
    [
        (
            "spatext",
            "text-to-image",
            {},
            r"SpaTextPipeline lacks clip; pass .*from_pipe\(base, clip=...\)",
        ),
        ("text-to-image", None, {}, "pipeline is None; pass a pipeline that has been loaded"),
        ("reco", "text-to-image", {"unett": 3}, "ReCoPipeline does not take unett; pass its parts"),
        ("spatext", "text-to-image", {"clip": ...}, r"takes 0: .* unet=widen_input\(unet, 16\)"),
    ],
)
def test_from_pipe_names_what_is_wrong(root, kind, source, parts, message):
    start = opened(root / source, source) if source else None
    if "clip" in parts:
        parts = {"clip": opened(root / "spatext", "spatext").clip}
    with pytest.raises(ValueError, match=message):
        KINDS[kind].from_pipe(start, **parts)


def test_channels_that_text_to_image_cannot_fill_are_named(root):
    """A map's, which zeros would pass for."""
    text = TextToImagePipeline.from_pipe(opened(root / "spatext", "spatext"))
    with pytest.raises(ValueError, match=r"unet has 16 input channels .* narrow_input"):
        text(SCENE, **TWO)
    narrow = TextToImagePipeline.from_pipe(text, unet=narrow_input(text.unet))
    assert final(narrow, SCENE, **TWO).isfinite().all()


def test_a_linear_prior_of_another_width_is_named(root):
    parts = opened(root / "spatext", "spatext").components
    prior = LinearPrior(torch.eye(8), torch.zeros(8))
    with pytest.raises(ValueError, match="prior has embeddings of 8 numbers, clip of 16; pass"):
        SpaTextPipeline(**parts | {"prior": prior})


def test_to_moves_every_part(fresh):
    """To the device without memory, so that a part that stayed behind would be seen."""
    fresh.to("meta")
    assert fresh.device.type == "meta"
    for part in fresh.components.values():
        if isinstance(part, torch.nn.Module):
            tensors = [*part.parameters(), *part.buffers()]
            assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_to_changes_the_precision_of_every_part(fresh):
    fresh.to(torch.float64)
    for part in fresh.components.values():
        if isinstance(part, torch.nn.Module):
            assert {p.dtype for p in part.parameters()} <= {torch.float64}


def test_offloading_moves_every_part_in_and_out(fresh, kind):
    """On the CPU nothing moves; but every part's hook is called, in the order in which the parts
    are needed, and the image is the same."""
    want, moved = final(fresh, SCENE, seed=2, **TWO), []
    fresh.enable_model_cpu_offload(device="cpu")
    for name, part in fresh.components.items():
        if isinstance(part, torch.nn.Module):
            assert hasattr(part, "_hf_hook"), f"{name} has no hook"
            before = part._hf_hook.pre_forward
            part._hf_hook.pre_forward = lambda *args, name=name, before=before, **settings: (
                moved.append(name),
                before(*args, **settings),
            )[1]
    (image,) = fresh(SCENE, seed=2, **TWO).images
    order = list(dict.fromkeys(moved))
    assert (
        order
        == {
            "text-to-image": ["text_encoder", "unet", "vae"],
            "spatext": ["text_encoder", "clip", "prior", "unet", "vae"],
            "spatext-pixel": ["clip", "prior", "unet"],  # folding has no weights
            "reco": ["text_encoder", "unet", "vae"],
        }[kind]
    )
    assert np.array_equal(pixels(image), pixels(fresh.decode(want)[0]))
    assert torch.equal(final(fresh, SCENE, seed=2, **TWO), want)


def test_a_linear_prior_is_offloaded_too(root):
    """It has no network of its own: diffusers asks every part for its parameters."""
    spatext = opened(root / "spatext", "spatext")
    parts = spatext.components | {"prior": copy.deepcopy(spatext.prior.linear)}
    linear = SpaTextPipeline(**parts)
    want = final(linear, SCENE, **TWO)
    linear.enable_model_cpu_offload(device="cpu")
    assert torch.equal(final(linear, SCENE, **TWO), want)
    linear.remove_all_hooks()


# --- schedulers -----------------------------------------------------------------------------------


TWELVE = {"seed": 2, "num_inference_steps": 12}


@cache
def after_twelve_steps(folder: Path, kind: str) -> Tensor:
    return final(opened(folder, kind), SCENE, **TWELVE)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_scheduler_can_be_swapped(fresh, folder, kind, scheduler):
    """Each draws: finite latents, near DDIM's own with many steps, ending in the predicted x_0."""
    want = after_twelve_steps(folder, kind)
    fresh.scheduler = SCHEDULERS[scheduler].from_config(fresh.scheduler.config)
    before = {k: v for k, v in vars(fresh.scheduler).items() if k != "_internal_dict"}
    steps = list(fresh.stream(SCENE, **TWELVE))
    assert len(steps) == 12
    got = steps[-1].x_t
    assert torch.isfinite(got).all()
    assert (got - want).square().mean().sqrt() < 0.5 * want.std()
    assert_close(got, steps[-1].x_0, atol=0.05, rtol=0.05)
    after = {k: v for k, v in vars(fresh.scheduler).items() if k != "_internal_dict"}
    assert before.keys() == after.keys(), "the scheduler was changed"
    assert fresh(SCENE, **TWO).images[0].size == (64, 64)


@pytest.mark.parametrize("name", [f"tiny {kind}" for kind in KINDS])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_folders_own_scheduler_is_kept(fresh, scheduler, tmp_path):
    fresh.scheduler = SCHEDULERS[scheduler].from_config(fresh.scheduler.config)
    fresh.save_pretrained(tmp_path)
    again = type(fresh).from_pretrained(tmp_path)
    assert type(again.scheduler) is SCHEDULERS[scheduler]
    assert torch.equal(final(again, SCENE, **TWO), final(fresh, SCENE, **TWO))


# --- against diffusers' own pipeline --------------------------------------------------------------


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory) -> Path:
    return stand_in.stable_diffusion(tmp_path_factory.mktemp("sd"), levels=2, side=16)


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("scheduler", ["PNDM", *SCHEDULERS])
def test_text_to_image_against_stable_diffusion(stable_diffusion, scheduler, scale):
    """Same folder, same noise: diffusers' own hidden states, guidance, steps and decoding."""
    ours = TextToImagePipeline.from_pretrained(stable_diffusion)
    theirs = StableDiffusionPipeline.from_pretrained(stable_diffusion)
    theirs.set_progress_bar_config(disable=True)
    assert type(ours.scheduler) is PNDMScheduler
    if scheduler != "PNDM":
        changed = SCHEDULERS[scheduler].from_config(theirs.scheduler.config)
        ours.scheduler, theirs.scheduler = changed, copy.deepcopy(changed)
    settings = {"num_inference_steps": 5, "guidance_scale": scale}
    captions = [SCENE.caption, OTHER.caption]
    noise = initial_noise([7, 8], (4, 16, 16))
    for further in (
        {"latents": noise},
        {"latents": noise, "negative_prompt": ["a cave", "snow"]},
        {"generator": [torch.Generator().manual_seed(seed) for seed in (3, 4)]},
        {"generator": torch.Generator().manual_seed(5)},
        {"generator": torch.Generator().manual_seed(5), "num_images_per_prompt": 2},
    ):
        given = {**settings, **copy.deepcopy(further)}
        mine = ours([SCENE, OTHER], output_type="latent", **given).images
        given = {**settings, **copy.deepcopy(further)}
        latents = theirs(captions, height=32, width=32, output_type="latent", **given).images
        assert_close(mine, latents, atol=1e-4, rtol=1e-4)
    images = ours([SCENE, OTHER], latents=noise, **settings).images
    same = theirs(captions, height=32, width=32, latents=noise, **settings).images
    for one, two in zip(images, same, strict=True):
        assert np.abs(pixels(one) - pixels(two)).max() <= 1


def test_the_shipped_text_to_image_model_against_stable_diffusion():
    folder = zoo.folder("pocket", "text-to-image")
    ours = opened(folder, "text-to-image")
    parts = dict.fromkeys(("safety_checker", "feature_extractor"))
    theirs = StableDiffusionPipeline(**ours.components, **parts, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    noise = initial_noise([7, 8], (4, 16, 16))
    settings = {"num_inference_steps": 5, "guidance_scale": 3.0, "latents": noise}
    captions = [SCENE.caption, OTHER.caption]
    latents = theirs(captions, height=64, width=64, output_type="latent", **settings).images
    mine = ours([SCENE, OTHER], output_type="latent", **settings).images
    assert_close(mine, latents, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("scheduler", [DPMSolverMultistepScheduler, EulerDiscreteScheduler])
def test_karras_sigmas_against_stable_diffusion(stable_diffusion, scheduler):
    ours = TextToImagePipeline.from_pretrained(stable_diffusion)
    theirs = StableDiffusionPipeline.from_pretrained(stable_diffusion)
    theirs.set_progress_bar_config(disable=True)
    changed = scheduler.from_config(theirs.scheduler.config, use_karras_sigmas=True)
    ours.scheduler, theirs.scheduler = changed, copy.deepcopy(changed)
    given = {"num_inference_steps": 8, "latents": initial_noise([7], (4, 16, 16))}
    given |= {"guidance_scale": 3.0, "output_type": "latent"}
    latents = theirs([SCENE.caption], height=32, width=32, **given).images
    assert_close(ours(SCENE, **given).images, latents, atol=1e-4, rtol=1e-4)


# --- the progress bar -----------------------------------------------------------------------------

PROGRESS = """
import os, sys, time
from pathlib import Path
from spatext_lab.scene import Scene
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
for before, wait, error in {cases}:
    pipeline = TextToImagePipeline.from_pretrained(Path({folder!r}))
    exec(before)
    os.dup2(error, 2)
    sleep = lambda *_: time.sleep(wait)
    pipeline(Scene("a ball"), num_inference_steps=4, callback_on_step_end=sleep)
"""
QUIET = [("", 0.9, False), ("", 0.0, True)]
SHOWN = [("", 0.9, True), ("pipeline.set_progress_bar_config(disable=False, delay=0)", 0.0, False)]
OFF = [("pipeline.set_progress_bar_config(disable=True)", 0.9, True)]
ALL = [*QUIET, *SHOWN, *OFF]


@pytest.fixture(scope="module")
def written(root) -> dict[tuple, str]:
    """What a pipeline writes to its error output while it samples, in a process of its own: with
    these lines before, this wait after each step, to a terminal or a pipe."""
    pairs = [pty.openpty() if terminal else os.pipe() for *_, terminal in ALL]
    ours, theirs = zip(*pairs, strict=True)
    cases = []
    for (before, wait, terminal), end in zip(ALL, theirs, strict=True):
        cases.append((before, wait, end))
        if terminal:
            termios.tcsetwinsize(end, (24, 80))
    code = PROGRESS.format(cases=cases, folder=str(root / "text-to-image"))
    subprocess.run([sys.executable, "-c", code], pass_fds=theirs, check=True, capture_output=True)
    for end in theirs:
        os.close(end)
    return dict(zip(ALL, map(_read, ours), strict=True))


def _read(end: int) -> str:
    """All that was written to a pipe or a terminal, whose other end is closed."""
    found = b""
    try:
        while chunk := os.read(end, 4096):
            found += chunk
    except OSError:  # a terminal's way to say so
        pass
    os.close(end)
    return found.decode()


@pytest.mark.parametrize("case", ALL)
def test_progress_is_silent_under_two_seconds_and_without_a_terminal(written, case):
    if case in SHOWN:
        assert "4/4" in written[case]
    else:
        assert written[case] == ""


def test_a_progress_bar_counts_the_steps(fresh, capsys):
    fresh.set_progress_bar_config(disable=False, delay=0)
    fresh(SCENE, num_inference_steps=3)
    assert "3/3" in capsys.readouterr().err
    fresh.set_progress_bar_config(disable=True)
    fresh(SCENE, num_inference_steps=3)
    assert capsys.readouterr().err == ""
