# SPDX-License-Identifier: Apache-2.0
"""ReCo from scene to image: against diffusers' own pipeline, and one region after the other.

What all pipelines promise is tested in `text_to_image/test_pipelines.py`.
"""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch.testing import assert_close

from spatext_lab.course import stand_in
from spatext_lab.diffusion import initial_noise
from spatext_lab.reco.pipeline import ReCoPipeline
from spatext_lab.reco.position_tokens import to_bin
from spatext_lab.reco.prompts import write_bins
from spatext_lab.reco.text_encoder import grow
from spatext_lab.scene import Region, Scene
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.spatext.widen import widen_input
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from spatext_lab.training.recipes.reco.start import build_model
from tests.tiny import BARE, OTHER, SCENE, WIDTH, final, tiny_model

SHAPE, LENGTH, BINS = (4, 16, 16), 154, 64
MOVED = Scene(
    SCENE.caption,
    [Region("a red ball", box=(0.5, 0.2, 0.9, 0.8)), Region("a tree", box=(0.1, 0.5, 0.6, 1))],
)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def reco(root) -> ReCoPipeline:
    return ReCoPipeline.from_pretrained(root / "reco")


def pieces(pipeline: ReCoPipeline, scene: Scene) -> list[list[int]]:
    """Words of the caption, then in turn the bins and the words of each region."""
    encode, first = (
        pipeline.tokenizer.encode,
        len(pipeline.tokenizer) - pipeline.position_tokens.bins,
    )
    found = [encode(scene.caption)]
    for region in scene.regions:
        found.append([first + to_bin(value, pipeline.position_tokens.bins) for value in region.box])
        found.append(encode(region.text))
    return found


# --- the condition --------------------------------------------------------------------------------


@torch.no_grad()
def test_a_scene_is_one_sequence_through_the_text_encoder(reco):
    condition = reco.condition([SCENE, BARE])
    for k, scene in enumerate([SCENE, BARE]):
        ids = [token for piece in pieces(reco, scene) for token in piece]
        ids += [reco.tokenizer.eos_token_id] * (LENGTH - len(ids))
        want = reco.text_encoder(torch.tensor([ids]))[0][0]
        assert_close(condition.text[k], want, atol=1e-5, rtol=1e-5)
    assert condition.text.shape == (2, LENGTH, WIDTH)
    assert condition.st_map is None


@torch.no_grad()
def test_the_null_condition_is_the_empty_sequence(reco):
    ids = reco.tokenizer("", padding="max_length", return_tensors="pt").input_ids
    want = reco.text_encoder(ids)[0][0]
    condition = reco.condition([SCENE, OTHER])
    for null in (*condition.null_text, *condition.null().text):
        assert_close(null, want, atol=1e-5, rtol=1e-5)
    assert_close(reco.condition([Scene("")]).text[0], want, atol=1e-5, rtol=1e-5)


def test_the_tokens_are_the_encoded_ones(reco):
    assert reco.tokens(SCENE).ids == reco.position_tokens.encode([SCENE])[0].tolist()


def test_a_box_that_moves_changes_the_image(reco):
    one, two = (final(reco, scene, seed=1, num_inference_steps=2) for scene in (SCENE, MOVED))
    assert (one - two).abs().max() > 1e-4


# --- one call -----------------------------------------------------------------------------------


def test_the_text_encoder_is_called_once_for_all_steps(reco):
    calls = []
    hook = reco.text_encoder.register_forward_pre_hook(
        lambda _, inputs: calls.append(tuple(inputs[0].shape))
    )
    try:
        reco([SCENE, OTHER], num_inference_steps=3)
    finally:
        hook.remove()
    assert calls == [(3, LENGTH)]


# --- beyond the training --------------------------------------------------------------------------


def test_more_regions_than_in_training_are_sampled_with_a_warning(reco):
    regions = [Region("a ball", box=(0.1, 0.1, 0.1 * k, 0.9)) for k in range(2, 9)]
    assert reco.config.most_regions == 6
    with pytest.warns(UserWarning, match="has 7 regions and the model was trained with 6 at most"):
        (image,) = reco(Scene("a wood", regions), num_inference_steps=1).images
    assert image.size == (64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reco(Scene("a wood", regions[:6]), num_inference_steps=1)


def test_where_nothing_is_known_of_the_training_there_is_no_warning(reco):
    plain = ReCoPipeline(**reco.components)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain.condition([Scene("c", [Region("a", box=(0, 0, 1, 1))] * 9)])


# --- disk -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"most_regions": 3}])
def test_a_saved_pipeline_keeps_its_settings(reco, settings, tmp_path):
    pipeline = ReCoPipeline(**reco.components, **settings)
    pipeline.save_pretrained(tmp_path)
    again = ReCoPipeline.from_pretrained(tmp_path)
    assert again.config.most_regions == settings.get("most_regions")
    assert again.position_tokens.bin_ids == reco.position_tokens.bin_ids
    assert again.position_tokens.length == LENGTH
    one, two = (final(p, SCENE, seed=4, num_inference_steps=2) for p in (again, pipeline))
    assert torch.equal(one, two)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["tokenizer"] == ["transformers", "CLIPTokenizer"]
    assert index["text_encoder"] == ["transformers", "CLIPTextModel"]
    assert {key: index[key] for key in settings} == settings


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A folder as others publish ReCo's weights: Stable Diffusion's own classes, a tokenizer with a
    thousand bins, a longer table of positions, no word of this project."""
    folder = tmp_path_factory.mktemp("published")
    return stand_in.stable_diffusion(folder, length=LENGTH, bins=1000, levels=2, side=16)


def test_published_weights_give_what_diffusers_gives_for_their_prompt(published):
    """The scene here, and there the same scene written in bins: text states, and last latents from
    the same noise and schedule."""
    ours = ReCoPipeline.from_pretrained(published)
    theirs = StableDiffusionPipeline.from_pretrained(published)
    theirs.set_progress_bar_config(disable=True)
    assert (ours.position_tokens.bins, ours.position_tokens.length) == (1000, LENGTH)
    prompts = [write_bins(scene, 1000) for scene in (SCENE, OTHER)]
    with torch.no_grad():
        text, null = theirs.encode_prompt(prompts, "cpu", 1, True)
    condition = ours.condition([SCENE, OTHER])
    assert_close(condition.text, text, atol=1e-5, rtol=1e-5)
    assert_close(condition.null_text, null, atol=1e-5, rtol=1e-5)
    theirs.scheduler = ours.scheduler
    latents = theirs(
        prompts,
        height=32,
        width=32,
        num_inference_steps=4,
        guidance_scale=3.0,
        latents=initial_noise([7, 8], SHAPE),
        output_type="latent",
    ).images
    mine = final(ours, [SCENE, OTHER], seed=7, num_inference_steps=4, guidance_scale=3.0)
    assert_close(mine, latents, atol=1e-4, rtol=1e-4)
    assert ours(SCENE, num_inference_steps=2).images[0].size == (32, 32)


# --- what is refused ------------------------------------------------------------------------------


@pytest.fixture
def earlier(root, tmp_path) -> Callable[..., Path]:
    """A model's folder as earlier versions wrote it, with `padding` in its index, or a U-Net that
    also reads coordinates."""

    def write(padding: str, channels: int = 0) -> Path:
        shutil.copytree(root / "reco", tmp_path / "reco")
        index = tmp_path / "reco" / "model_index.json"
        index.write_text(json.dumps(json.loads(index.read_text()) | {"padding": padding}))
        if channels:
            unet = UNet2DConditionModel.from_pretrained(root / "reco" / "unet")
            widen_input(unet, channels).save_pretrained(tmp_path / "reco" / "unet")
        return tmp_path / "reco"

    return write


@pytest.mark.parametrize(
    ("padding", "channels", "message"),
    [
        ("masked", 0, "padding is 'masked'; expected 'read': an earlier version"),
        ("masked", 8, "padding is 'masked'; expected 'read': an earlier version"),
        ("read", 8, r"unet has 8 input channels beyond those of x_t; expected none\. .* earlier"),
    ],
)
def test_a_model_of_an_earlier_version_is_refused(earlier, padding, channels, message):
    """The message says what to do; the recipe refuses to continue such a model too."""
    folder = earlier(padding, channels)
    remedy = "train it again (spatext-lab train reco), or use that version"
    for read in (ReCoPipeline.from_pretrained, lambda place: build_model(place, "cpu")):
        with pytest.raises(ValueError, match=message) as error:
            read(folder)
        assert str(error.value).endswith(remedy)


def test_a_model_of_an_earlier_version_that_reads_padding_is_as_it_was(reco, earlier, tmp_path):
    """The same latents; saved again, its folder no longer names padding."""
    again = ReCoPipeline.from_pretrained(earlier("read"))
    one, two = (final(p, SCENE, seed=4, num_inference_steps=2) for p in (again, reco))
    assert torch.equal(one, two)
    again.save_pretrained(tmp_path / "anew")
    assert "padding" not in json.loads((tmp_path / "anew" / "model_index.json").read_text())


def test_a_map_that_reco_cannot_read_is_refused(root):
    tiny = ReCoPipeline.from_pretrained(root / "reco")
    wide = SpaTextPipeline.from_pretrained(root / "spatext").unet
    with pytest.raises(ValueError, match=r"unet has 16 input channels .* narrow_input\(unet\)"):
        ReCoPipeline.from_pipe(tiny, unet=wide)


def test_a_text_encoder_that_does_not_know_the_bins_is_refused(root):
    base = TextToImagePipeline.from_pretrained(root / "text-to-image")
    _, tokenizer = grow(base.text_encoder, base.tokenizer, BINS, LENGTH)
    with pytest.raises(
        ValueError, match=r"text_encoder has 714 embeddings for the tokenizer's 778 tokens"
    ):
        ReCoPipeline(base.unet, base.vae, base.text_encoder, tokenizer, base.scheduler)


def test_regions_for_a_model_without_bins_are_refused(root):
    plain = ReCoPipeline.from_pretrained(root / "text-to-image")
    assert plain(BARE, num_inference_steps=1).images[0].size == (64, 64)
    with pytest.raises(ValueError, match=r"regions\[0\]: the tokenizer has no position tokens"):
        plain(OTHER, num_inference_steps=1)
