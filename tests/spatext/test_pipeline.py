# SPDX-License-Identifier: Apache-2.0
"""From scene to picture: against diffusers' own pipeline, and against the loop written out."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from spatext_lab.diffusion import initial_noise
from spatext_lab.images import encode, to_images
from spatext_lab.scene import Region, Scene
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.spatext.representation import inference_map
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from tests.tiny import BARE, OTHER, SCENE, WIDTH, final, tiny_model

SHAPE = (4, 16, 16)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def text(root) -> TextToImagePipeline:
    return TextToImagePipeline.from_pretrained(root / "text-to-image")


@pytest.fixture(scope="module")
def spatext(root) -> SpaTextPipeline:
    return SpaTextPipeline.from_pretrained(root / "spatext")


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


# --- against others -------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_text_to_image_against_diffusers(root, text, scale):
    """The folder read and sampled by Stable Diffusion's pipeline, from the same noise: its own text
    states, guidance, steps and decoding."""
    theirs = StableDiffusionPipeline.from_pretrained(
        root / "text-to-image",
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    theirs.set_progress_bar_config(disable=True)
    arguments = {
        "prompt": [SCENE.caption, OTHER.caption],
        "height": 64,
        "width": 64,
        "num_inference_steps": 5,
        "guidance_scale": scale,
        "eta": 0.0,
    }
    noise = initial_noise([7, 8], SHAPE)
    latents = theirs(**arguments, latents=noise.clone(), output_type="latent").images
    settings = {"seed": 7, "steps": 5, "guidance_scale": scale}
    assert_close(final(text, [SCENE, OTHER], **settings), latents, atol=1e-4, rtol=1e-4)
    for ours, image in zip(
        text([SCENE, OTHER], **settings),
        theirs(**arguments, latents=noise.clone()).images,
        strict=True,
    ):
        assert np.abs(pixels(ours) - pixels(image)).max() <= 1


@torch.no_grad()
def slow_spatext(pipeline: SpaTextPipeline, scene: Scene, seed: int, steps: int, scales) -> Tensor:
    """One pass of the network per condition, one scene, DDIM in numbers."""

    def states(caption: str) -> Tensor:
        ids = pipeline.tokenizer(caption, padding="max_length", return_tensors="pt").input_ids
        return pipeline.text_encoder(ids)[0]

    st_map = inference_map(scene, pipeline.vectors, (16, 16))[None]
    zero, caption, null = torch.zeros_like(st_map), states(scene.caption), states("")
    alphas = DDIMScheduler.from_config(pipeline.scheduler.config).alphas_cumprod.double()
    x = initial_noise([seed], SHAPE)
    times = [round(1000 - k * 1000 / steps) - 1 for k in range(steps)]
    for t, after in zip(times, [*times[1:], None], strict=True):

        def v(text: Tensor, a_map: Tensor, x=x, t=t) -> Tensor:
            x_in = torch.cat([x, pipeline.clip.width**0.5 * a_map], 1)
            return pipeline.unet(x_in, t, encoder_hidden_states=text)[0]

        nothing = v(null, zero)
        if len(scales) == 1:
            out = nothing + scales[0] * (v(caption, st_map) - nothing)
        else:
            out = nothing + scales[0] * (v(caption, zero) - nothing)
            out = out + scales[1] * (v(null, st_map) - nothing)
        a, s = alphas[t].sqrt(), (1 - alphas[t]).sqrt()
        x_0, eps = a * x - s * out, s * x + a * out
        before = alphas[after] if after is not None else torch.tensor(1.0).double()
        x = (before.sqrt() * x_0 + (1 - before).sqrt() * eps).float()
    return x


@pytest.mark.parametrize("scales", [(3.0,), (2.0, 4.0), (1.0, 1.0)])
def test_spatext_against_the_loop_written_out(spatext, scales):
    settings = dict(zip(("guidance_scale", "region_guidance_scale"), scales, strict=False))
    ours = final(spatext, SCENE, seed=3, steps=4, **settings)
    slow = slow_spatext(spatext, SCENE, 3, 4, scales)
    assert_close(ours, slow, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_pictures_against_the_autoencoder_called_by_hand(text):
    latents = torch.randn(2, *SHAPE)
    text.vae.register_to_config(scaling_factor=1.7)
    decoded = text.vae.decoder(latents / 1.7).permute(0, 2, 3, 1)
    by_hand = np.clip(np.rint((decoded.numpy() + 1) / 2 * 255), 0, 255)
    for image, want in zip(text.decode(latents), by_hand, strict=True):
        assert np.abs(pixels(image) - want).max() <= 1
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    assert_close(encode(text.vae, pictures), text.vae.encoder(pictures) * 1.7)
    text.vae.register_to_config(scaling_factor=1.0)


def test_to_images_keeps_every_level_and_cuts_what_lies_beyond():
    levels = np.arange(256).repeat(3).reshape(16, 16, 3)
    tensor = torch.from_numpy(levels / 127.5 - 1).permute(2, 0, 1)[None].float()
    assert np.array_equal(pixels(to_images(tensor)[0]), levels)
    wild = torch.tensor([-7.0, 7.0]).repeat(3, 2, 1)[None]
    assert pixels(to_images(wild)[0])[0, :, 0].tolist() == [0, 255]


# --- one seed, one picture ------------------------------------------------------------------------

SETTINGS = [
    {"guidance_scale": 2.0},
    {"guidance_scale": 2.0, "region_guidance_scale": 3.0},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_picture_is_the_same_alone_and_in_a_batch(spatext, settings):
    batch = final(spatext, [SCENE, OTHER, SCENE], seed=5, steps=3, **settings)
    for k, scene in enumerate([SCENE, OTHER, SCENE]):
        alone = final(spatext, scene, seed=5 + k, steps=3, **settings)[0]
        assert_close(batch[k], alone, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(batch[0], batch[2], atol=0.1), "one noise for both"


def test_the_same_call_gives_the_same_bits(spatext):
    one, two, other = (spatext(SCENE, seed=seed, steps=2) for seed in (1, 1, 2))
    assert np.array_equal(pixels(one), pixels(two))
    assert not np.array_equal(pixels(one), pixels(other))


def test_a_scene_gives_a_picture_and_a_list_gives_a_list(text):
    one, several = text(BARE, steps=1), text([BARE], steps=1)
    assert isinstance(one, Image.Image)
    assert one.size == (64, 64)
    assert isinstance(several, list)
    assert np.array_equal(pixels(one), pixels(several[0]))


def test_the_stream_ends_in_the_picture(text):
    steps = list(text.stream(BARE, seed=2, steps=3))
    assert [step.index for step in steps] == [0, 1, 2]
    assert torch.is_grad_enabled(), "the loop left the gradients off"
    assert_close(steps[-1].x_t, steps[-1].x_0)
    (last,) = text.decode(steps[-1].x_t)
    assert np.array_equal(pixels(last), pixels(text(BARE, seed=2, steps=3)))


# --- what the network is asked --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "conditions"),
    [({"guidance_scale": 1.0}, 1), ({"guidance_scale": 2.0}, 2), (SETTINGS[1], 3)],
)
def test_all_conditions_are_one_call_a_step(spatext, settings, conditions):
    batches = []
    hook = spatext.unet.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    try:
        spatext([SCENE, OTHER], steps=3, **settings)
    finally:
        hook.remove()
    assert batches == [2 * conditions] * 3


def test_the_map_is_that_of_the_scene(spatext):
    maps = spatext.condition([SCENE, BARE]).st_map
    assert_close(maps[0], inference_map(SCENE, spatext.vectors, (16, 16)))
    assert not maps[1].any()
    assert maps.shape == (2, WIDTH, 16, 16)


def test_regions_move_the_picture_and_their_scale_too(spatext):
    settings = {"seed": 1, "steps": 2}
    with_regions = final(spatext, OTHER, **settings)
    assert not torch.allclose(with_regions, final(spatext, BARE, **settings), atol=0.01)
    weak, strong = (final(spatext, OTHER, region_guidance_scale=s, **settings) for s in (0.0, 5.0))
    assert not torch.allclose(weak, strong, atol=0.01)
    bare = final(spatext, BARE, region_guidance_scale=5.0, **settings)
    assert_close(weak, bare, atol=1e-4, rtol=1e-4)


def test_the_text_model_takes_no_notice_of_regions(text):
    assert torch.equal(final(text, OTHER, steps=2), final(text, BARE, steps=2))


@torch.no_grad()
def test_long_captions_are_cut(text):
    states = text.text_states(["a ball and " * 100, "a ball"])
    assert states.shape == (2, 77, WIDTH)


def test_a_scale_for_each_region_against_one_pass_after_the_other(spatext):
    scene = Scene(
        SCENE.caption,
        [Region("a red ball", box=(0, 0, 0.6, 0.6)), Region("grass", box=(0.3, 0.3, 1, 1))],
    )
    size, scales = (16, 16), [1.5, 2.0, 4.0]
    whole = spatext.condition([scene])
    seen = scene.visible_masks(64, 64)
    alone = [Scene("", [Region(r.text, mask=m)]) for r, m in zip(scene.regions, seen, strict=True)]
    maps = [inference_map(one, spatext.vectors, size)[None] for one in alone]
    assert_close(maps[0] + maps[1], whole.st_map)
    got = list(
        spatext.stream(scene, seed=2, steps=1, guidance_scale=1.5, region_guidance_scale=[2.0, 4.0])
    )[-1].x_0

    def v(text: Tensor, st_map: Tensor) -> Tensor:
        x_in = torch.cat([initial_noise([2], SHAPE), WIDTH**0.5 * st_map], 1)
        with torch.no_grad():
            return spatext.unet(x_in, 999, encoder_hidden_states=text)[0]

    zero = torch.zeros_like(whole.st_map)
    nothing = v(whole.null_text, zero)
    told = [(whole.text, zero), *((whole.null_text, one) for one in maps)]
    out = nothing + sum(s * (v(*c) - nothing) for s, c in zip(scales, told, strict=True))
    alpha = spatext.scheduler.alphas_cumprod[999]
    want = alpha.sqrt() * initial_noise([2], SHAPE) - (1 - alpha).sqrt() * out
    assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_scales_and_regions_must_be_equally_many(spatext, text):
    with pytest.raises(ValueError, match="scales holds 4 numbers and the condition has 3 parts"):
        spatext(SCENE, steps=1, region_guidance_scale=[1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match=r"the scenes have \[0, 2\] regions"):
        spatext([SCENE, BARE], steps=1, region_guidance_scale=[1.0, 1.0])
    with pytest.raises(ValueError, match="a text-to-image model has no regions"):
        text(SCENE, steps=1, region_guidance_scale=[1.0, 1.0])


def box_of(area: float) -> Region:
    return Region("a red ball", box=(0, 0, 1, area))


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([box_of(0.1)] * 7, "the scene has 7 regions and the model has seen 6 at most"),
        (
            [box_of(0.1), box_of(0.015)],
            r"regions\[1\] \('a red ball'\) covers 1.56%",
        ),
        (
            [box_of(0.1), box_of(0.2)],
            r"regions\[0\] .* covers 0.00% .* what lies over it",
        ),
        ([Region("a ball and " * 30, box=(0, 0, 1, 1))], r"regions\[0\] is longer than"),
    ],
)
def test_a_scene_beyond_the_training_is_drawn_with_a_warning(spatext, regions, message):
    assert (spatext.most_regions, spatext.min_area) == (6, 0.02)
    with pytest.warns(UserWarning, match=message):
        assert spatext(Scene("a wood", regions), steps=1).size == (64, 64)


def test_a_scene_within_the_training_is_drawn_without(spatext):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spatext(SCENE, steps=1)


# --- disk -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [TextToImagePipeline, SpaTextPipeline])
def test_a_saved_pipeline_draws_the_same_picture(kind, text, spatext, tmp_path):
    pipeline = spatext if kind is SpaTextPipeline else text
    pipeline.save_pretrained(tmp_path / "model")
    again = kind.from_pretrained(tmp_path / "model")
    assert_close(
        final(again, SCENE, seed=4, steps=2),
        final(pipeline, SCENE, seed=4, steps=2),
        atol=0,
        rtol=0,
    )
    assert {p.name for p in (tmp_path / "model").iterdir()} == {"model_index.json", *kind.PARTS}
    kinds = {p.suffix for p in (tmp_path / "model").rglob("*") if p.is_file()}
    assert kinds <= {".json", ".safetensors", ".txt"}


def test_weights_in_half_precision_are_read_in_single(text, tmp_path):
    text.save_pretrained(tmp_path)
    text.unet.half().save_pretrained(tmp_path / "unet")
    text.unet.float()
    again = TextToImagePipeline.from_pretrained(tmp_path)
    assert {p.dtype for p in again.unet.parameters()} == {torch.float32}
    assert {p.dtype for p in again.text_encoder.parameters()} == {torch.float32}
    assert not again.unet.training


def test_shared_parts_are_the_text_models(root, spatext, text):
    own = {"model_index.json", "unet", "clip", "prior"}
    assert {p.name for p in (root / "spatext").iterdir()} == own
    for name in ("vae", "text_encoder"):
        ours, theirs = (getattr(p, name).state_dict() for p in (spatext, text))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("part", ["unet", "clip", "prior", "model_index.json"])
def test_a_missing_part_is_named(root, tmp_path, part):
    shutil.copytree(root, tmp_path / "model")
    place = tmp_path / "model" / "spatext" / part
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    # The shared folder has a U-Net too, for captions alone: it must not slip in unnoticed.
    with pytest.raises(FileNotFoundError, match=part):
        SpaTextPipeline.from_pretrained(tmp_path / "model" / "spatext")


def test_a_missing_shared_part_is_named(root, tmp_path):
    shutil.copytree(root / "spatext", tmp_path / "spatext")
    with pytest.raises(FileNotFoundError, match="has no part 'vae'; SpaTextPipeline needs it"):
        SpaTextPipeline.from_pretrained(tmp_path / "spatext")


def test_a_text_model_is_no_spatext_model(root):
    with pytest.raises(FileNotFoundError, match="no part 'clip'"):
        SpaTextPipeline.from_pretrained(root / "text-to-image")


def test_a_clip_of_another_width_is_refused(root, spatext, text):
    parts = {name: getattr(spatext, name) for name in SpaTextPipeline.PARTS}
    with pytest.raises(
        ValueError, match=r"clip has vectors of 16 .* have 16 channels; the U-Net takes 0"
    ):
        SpaTextPipeline(**parts | {"unet": text.unet})


def test_the_index_names_the_parts_as_diffusers_does(root):
    index = json.loads((root / "text-to-image" / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["tokenizer"] == ["transformers", "CLIPTokenizer"]
    assert "_diffusers_version" in index


# --- what is refused ------------------------------------------------------------------------------


def test_a_text_model_has_no_scale_for_regions(text):
    with pytest.raises(ValueError, match=r"region_guidance_scale is 2\.0; .* leave it out"):
        text(SCENE, region_guidance_scale=2.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 1001}, "steps is 1001"),
        ({"guidance_scale": -1.0}, "scale is -1"),
        ({"guidance_scale": float("nan")}, "scale is nan"),
        ({"region_guidance_scale": -2.0}, r"scales\[1\] is -2"),
    ],
)
def test_settings_out_of_range_are_refused(spatext, settings, message):
    with pytest.raises(ValueError, match=message):
        spatext(SCENE, **settings)


def test_no_scenes_are_refused(text):
    with pytest.raises(ValueError, match="empty"):
        text([])
