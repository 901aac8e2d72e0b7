# SPDX-License-Identifier: Apache-2.0
"""ReCo from scene to picture: against diffusers' own pipeline, and one region after the other."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from spatext_lab.diffusion import (
    COORDINATES,
    Condition,
    PlacedDenoiser,
    UNetDenoiser,
    coordinates,
    initial_noise,
)
from spatext_lab.reco.pipeline import ReCoPipeline
from spatext_lab.reco.position_tokens import to_bin
from spatext_lab.reco.prompts import write_bins
from spatext_lab.reco.text_encoder import grow
from spatext_lab.scene import Region, Scene
from spatext_lab.spatext.widen import widen_input
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from tests.tiny import BARE, OTHER, SCENE, WIDTH, final, tiny_model, tiny_stable_diffusion

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


@pytest.fixture(scope="module")
def after(reco) -> ReCoPipeline:
    return ReCoPipeline(*reco.parts().values(), positions="after")


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def pieces(pipeline: ReCoPipeline, scene: Scene) -> list[list[int]]:
    """Words of the caption, then in turn the bins and the words of each region."""
    encode, first = pipeline.tokenizer.encode, len(pipeline.tokenizer) - pipeline.sentences.bins
    found = [encode(scene.caption)]
    for region in scene.regions:
        found.append([first + to_bin(value, pipeline.sentences.bins) for value in region.box])
        found.append(encode(region.text))
    return found


# --- what the network is told ---------------------------------------------------------------------


@torch.no_grad()
def test_a_scene_is_one_sentence_through_the_text_encoder(reco):
    condition = reco.condition([SCENE, BARE])
    for k, scene in enumerate([SCENE, BARE]):
        ids = [token for piece in pieces(reco, scene) for token in piece]
        ids += [reco.tokenizer.eos_token_id] * (LENGTH - len(ids))
        want = reco.text_encoder(torch.tensor([ids]))[0][0]
        assert_close(condition.text[k], want, atol=1e-5, rtol=1e-5)
    assert condition.text.shape == (2, LENGTH, WIDTH)
    assert condition.st_map is None


@torch.no_grad()
def test_the_null_condition_is_the_empty_sentence(reco, after):
    ids = reco.tokenizer("", padding="max_length", return_tensors="pt").input_ids
    want = reco.text_encoder(ids)[0][0]
    for pipeline in (reco, after):
        condition = pipeline.condition([SCENE, OTHER])
        for null in (*condition.null_text, *condition.null().text):
            assert_close(null, want, atol=1e-5, rtol=1e-5)
        assert_close(pipeline.condition([Scene("")]).text[0], want, atol=1e-5, rtol=1e-5)


def test_captions_alone_are_scenes_without_regions(reco):
    captions = ["a boat on the sea", ""]
    told = reco.captions(captions)
    want = reco.condition([Scene(caption) for caption in captions])
    assert torch.equal(told.text, want.text)
    assert torch.equal(told.null_text, want.null_text)


def test_the_sentence_shows_what_was_said(reco):
    assert reco.sentence(SCENE).ids == reco.sentences.batch([SCENE])[0].tolist()


def test_a_box_that_moves_moves_the_picture(reco, after):
    for pipeline in (reco, after):
        pictures = [final(pipeline, scene, seed=1, steps=2) for scene in (SCENE, MOVED)]
        assert (pictures[0] - pictures[1]).abs().max() > 1e-4


# --- positions after the text encoder -------------------------------------------------------------


@torch.no_grad()
def slow_after(pipeline: ReCoPipeline, scene: Scene) -> Tensor:
    """The words and the padding behind them encoded as one text that has no bins; then, region by
    region, the bins' rows of the vocabulary put where they are said."""
    caption, *regions = pieces(pipeline, scene)
    words = [*caption, *(token for text in regions[1::2] for token in text)]
    bins = sum(len(box) for box in regions[::2])
    words += [pipeline.tokenizer.eos_token_id] * (LENGTH - bins - len(words))
    encoded = pipeline.text_encoder(torch.tensor([words]))[0][0]
    table = pipeline.text_encoder.get_input_embeddings().weight
    parts, at = [encoded[: len(caption)]], len(caption)
    for box, text in zip(regions[::2], regions[1::2], strict=True):
        parts += [table[box], encoded[at : at + len(text)]]
        at += len(text)
    return torch.cat([*parts, encoded[at:]])


def test_positions_after_the_text_encoder_against_one_region_after_the_other(reco, after):
    whole = Region("the evening sky", box=(0, 0, 1, 0.3))  # of the first bin and the last
    scenes = [SCENE, BARE, Scene("", [whole]), OTHER]
    told = after.condition(scenes).text
    for k, scene in enumerate(scenes):
        assert_close(told[k], slow_after(after, scene), atol=1e-5, rtol=1e-5)
    before = reco.condition(scenes).text
    assert_close(told[1], before[1], atol=1e-5, rtol=1e-5)
    assert (told[0] - before[0]).abs().max() > 0.1


def test_words_do_not_hear_of_positions_that_come_after(after):
    """The same texts at other places: the states of all words are the same."""
    one, two = after.condition([SCENE, MOVED]).text
    is_bin = torch.tensor([token.is_position for token in after.sentence(SCENE).tokens])
    assert_close(one[~is_bin], two[~is_bin], atol=1e-6, rtol=1e-6)
    assert (one[is_bin] - two[is_bin]).abs().max() > 1e-3


# --- padding that nobody looks at -----------------------------------------------------------------


@pytest.fixture(scope="module")
def masked(reco) -> ReCoPipeline:
    return ReCoPipeline(*reco.parts().values(), padding="masked")


@torch.no_grad()
def test_masks_are_of_what_is_said(reco, masked):
    told, read = masked.condition([SCENE, BARE]), reco.condition([SCENE, BARE])
    assert torch.equal(told.text, read.text)
    assert torch.equal(told.null_text, read.null_text)
    for row, scene in zip(told.text_mask, (SCENE, BARE), strict=True):
        said = sum(len(piece) for piece in pieces(masked, scene))
        assert row.tolist() == [True] * said + [False] * (LENGTH - said)
    for row in told.null_mask:
        assert row.tolist() == [True] * 2 + [False] * (LENGTH - 2)
    assert (read.text_mask, read.null_mask) == (None, None)


def test_masked_padding_draws_as_sentences_that_are_cut_off(masked):
    """At every length that is long enough; not so where the padding is read."""
    condition = masked.condition([SCENE])
    said = int(condition.text_mask.sum())
    want = final(masked, SCENE, seed=3, steps=2)
    for length in (said, said + 5):
        short = Condition(
            *(states[:, :length] for states in (condition.text, condition.null_text)),
            text_mask=condition.text_mask[:, :length],
            null_mask=condition.null_mask[:, :length],
        )
        *_, last = masked.sample(short, seed=3, steps=2)
        assert_close(last.x_t, want, atol=1e-4, rtol=1e-4)
    unmasked = Condition(condition.text, condition.null_text)
    *_, last = masked.sample(unmasked, seed=3, steps=2)
    assert (last.x_t - want).abs().max() > 1e-3


def test_a_masked_picture_is_the_same_alone_and_in_a_batch(masked):
    scenes = [SCENE, OTHER, BARE]
    batch = final(masked, scenes, seed=5, steps=2)
    for k, scene in enumerate(scenes):
        assert_close(batch[k], final(masked, scene, seed=5 + k, steps=2)[0], atol=1e-4, rtol=1e-4)


# --- coordinates ----------------------------------------------------------------------------------


def test_a_unet_with_more_inputs_is_told_where_its_cells_are(reco):
    unet = widen_input(reco.unet, COORDINATES)
    torch.nn.init.normal_(unet.conv_in.weight[:, -COORDINATES:])
    parts = {**reco.parts(), "unet": unet}
    placed = ReCoPipeline(*parts.values())
    assert type(placed.denoiser()) is PlacedDenoiser
    assert type(reco.denoiser()) is UNetDenoiser
    seen = []
    hook = unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        latents = final(placed, [SCENE, OTHER], steps=2)
    finally:
        hook.remove()
    assert latents.shape == (2, *SHAPE)
    for x_in in seen:
        assert x_in.shape == (4, SHAPE[0] + COORDINATES, *SHAPE[1:])
        for picture in x_in:
            assert torch.equal(picture[SHAPE[0] :], coordinates(*SHAPE[1:]))


# --- one seed, one picture ------------------------------------------------------------------------


def test_the_same_call_gives_the_same_bits(reco):
    one, two, other = (reco(SCENE, seed=seed, steps=2) for seed in (1, 1, 2))
    assert np.array_equal(pixels(one), pixels(two))
    assert not np.array_equal(pixels(one), pixels(other))
    assert one.size == (64, 64)


def test_a_picture_is_the_same_alone_and_in_a_batch(reco, after):
    for pipeline in (reco, after):
        scenes = [SCENE, OTHER, BARE]
        batch = final(pipeline, scenes, seed=5, steps=3, guidance_scale=2.0)
        for k, scene in enumerate(scenes):
            alone = final(pipeline, scene, seed=5 + k, steps=3, guidance_scale=2.0)[0]
            assert_close(batch[k], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("scale", "conditions"), [(1.0, 1), (2.0, 2)])
def test_a_guided_step_is_one_call_of_the_network(reco, scale, conditions):
    batches = []
    hook = reco.unet.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    try:
        reco([SCENE, OTHER], steps=3, guidance_scale=scale)
    finally:
        hook.remove()
    assert batches == [2 * conditions] * 3


def test_the_text_encoder_is_called_once_for_all_steps(reco):
    calls = []
    hook = reco.text_encoder.register_forward_pre_hook(
        lambda _, inputs: calls.append(tuple(inputs[0].shape))
    )
    try:
        reco([SCENE, OTHER], steps=3)
    finally:
        hook.remove()
    assert calls == [(3, LENGTH)]


# --- beyond the training --------------------------------------------------------------------------


def test_more_regions_than_were_learned_from_are_drawn_with_a_warning(reco):
    regions = [Region("a ball", box=(0.1, 0.1, 0.1 * k, 0.9)) for k in range(2, 9)]
    assert reco.most_regions == 6
    with pytest.warns(UserWarning, match="has 7 regions and the model has seen 6 at most"):
        assert reco(Scene("a wood", regions), steps=1).size == (64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reco(Scene("a wood", regions[:6]), steps=1)


def test_where_nothing_is_known_of_the_training_nothing_is_warned_of(reco):
    plain = ReCoPipeline(*reco.parts().values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain.condition([Scene("c", [Region("a", box=(0, 0, 1, 1))] * 9)])


# --- disk -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{}, {"positions": "after"}, {"padding": "masked"}, {"most_regions": 3}]
)
def test_a_saved_pipeline_draws_the_same_picture(reco, settings, tmp_path):
    pipeline = ReCoPipeline(*reco.parts().values(), **settings)
    pipeline.save_pretrained(tmp_path)
    again = ReCoPipeline.from_pretrained(tmp_path)
    assert again.positions == settings.get("positions", "before")
    assert again.padding == settings.get("padding", "read")
    assert again.most_regions == settings.get("most_regions")
    assert again.sentences.bin_ids == reco.sentences.bin_ids
    assert again.sentences.length == LENGTH
    assert torch.equal(
        final(again, SCENE, seed=4, steps=2), final(pipeline, SCENE, seed=4, steps=2)
    )
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["tokenizer"] == ["transformers", "CLIPTokenizer"]
    assert index["text_encoder"] == ["transformers", "CLIPTextModel"]
    assert {key: index[key] for key in settings} == settings
    assert not {"positions", "padding", "most_regions"} & (index.keys() - settings.keys())
    kinds = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".safetensors", ".txt"}


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A folder as others publish ReCo's weights: Stable Diffusion's own classes, a tokenizer with a
    thousand bins, a longer table of positions, no word of this project."""
    folder = tmp_path_factory.mktemp("published")
    return tiny_stable_diffusion(folder, LENGTH, bins=1000, levels=2, side=16)


def test_published_weights_draw_as_diffusers_draws_their_prompt(published):
    """The scene here, and there the same scene written in bins: text states, and last latents from
    the same noise and schedule."""
    ours = ReCoPipeline.from_pretrained(published)
    theirs = StableDiffusionPipeline.from_pretrained(published)
    theirs.set_progress_bar_config(disable=True)
    assert (ours.sentences.bins, ours.sentences.length, ours.positions) == (1000, LENGTH, "before")
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
    mine = final(ours, [SCENE, OTHER], seed=7, steps=4, guidance_scale=3.0)
    assert_close(mine, latents, atol=1e-4, rtol=1e-4)
    assert ours(SCENE, steps=2).size == (32, 32)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2.0, [1.0, 2.0]])
def test_one_sentence_has_one_scale(reco, scale):
    with pytest.raises(ValueError, match=r"region_guidance_scale is .* one sentence .* leave it"):
        reco(SCENE, steps=1, region_guidance_scale=scale)


def test_other_places_of_positions_are_refused(reco):
    with pytest.raises(ValueError, match="positions is 'between'; there are before, after"):
        ReCoPipeline(*reco.parts().values(), positions="between")


def test_other_padding_is_refused(reco):
    with pytest.raises(ValueError, match="padding is 'cut'; there are read, masked"):
        ReCoPipeline(*reco.parts().values(), padding="cut")


def test_a_text_encoder_that_does_not_know_the_bins_is_refused(root):
    base = TextToImagePipeline.from_pretrained(root / "text-to-image")
    _, tokenizer = grow(base.text_encoder, base.tokenizer, BINS, LENGTH)
    with pytest.raises(ValueError, match=r"text_encoder has 714 rows for 778 words"):
        ReCoPipeline(base.unet, base.vae, base.text_encoder, tokenizer, base.scheduler)


def test_regions_for_a_model_without_bins_are_refused(root):
    plain = ReCoPipeline.from_pretrained(root / "text-to-image")
    assert plain(BARE, steps=1).size == (64, 64)
    with pytest.raises(ValueError, match=r"no position tokens for regions\[0\]: grow it"):
        plain(OTHER, steps=1)


def test_no_scenes_are_refused(reco):
    with pytest.raises(ValueError, match="empty"):
        reco([])
