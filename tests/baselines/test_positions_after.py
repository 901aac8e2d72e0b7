# SPDX-License-Identifier: Apache-2.0
"""Positions after the text encoder, against one region after the other."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from spatext_lab.baselines.positions_after import PositionsAfterPipeline
from spatext_lab.reco.pipeline import ReCoPipeline
from spatext_lab.reco.position_tokens import to_bin
from spatext_lab.scene import Region, Scene
from tests.tiny import BARE, OTHER, SCENE, final, tiny_model

LENGTH = 154
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
def after(reco) -> PositionsAfterPipeline:
    return PositionsAfterPipeline.from_pipe(reco)


def pieces(pipeline: ReCoPipeline, scene: Scene) -> list[list[int]]:
    """The caption's tokens, then in turn the bins and the text's tokens of each region."""
    encode, bins = pipeline.tokenizer.encode, pipeline.position_tokens.bins
    first, found = len(pipeline.tokenizer) - bins, [encode(scene.caption)]
    for region in scene.regions:
        found.append([first + to_bin(value, bins) for value in region.box])
        found.append(encode(region.text))
    return found


@torch.no_grad()
def slow_after(pipeline: ReCoPipeline, scene: Scene) -> Tensor:
    """The texts and the padding behind them encoded as one text that has no bins; then, region by
    region, the bins' embeddings put in their places."""
    caption, *regions = pieces(pipeline, scene)
    texts = [*caption, *(token for text in regions[1::2] for token in text)]
    bins = sum(len(box) for box in regions[::2])
    texts += [pipeline.tokenizer.eos_token_id] * (LENGTH - bins - len(texts))
    encoded = pipeline.text_encoder(torch.tensor([texts]))[0][0]
    table = pipeline.text_encoder.get_input_embeddings().weight
    parts, at = [encoded[: len(caption)]], len(caption)
    for box, text in zip(regions[::2], regions[1::2], strict=True):
        parts += [table[box], encoded[at : at + len(text)]]
        at += len(text)
    return torch.cat([*parts, encoded[at:]])


def test_positions_after_the_text_encoder_against_one_region_after_the_other(reco, after):
    whole = Region("the evening sky", box=(0, 0, 1, 0.3))  # of the first bin and the last
    scenes = [SCENE, BARE, Scene("", [whole]), OTHER]
    states = after.condition(scenes).text
    for k, scene in enumerate(scenes):
        assert_close(states[k], slow_after(after, scene), atol=1e-5, rtol=1e-5)
    before = reco.condition(scenes).text
    assert_close(states[1], before[1], atol=1e-5, rtol=1e-5)
    assert (states[0] - before[0]).abs().max() > 0.1


def test_texts_do_not_hear_of_positions_that_come_after(after):
    """The same texts at other places: the states of all texts are the same."""
    one, two = after.condition([SCENE, MOVED]).text
    is_bin = torch.tensor([token.is_position for token in after.tokens(SCENE).tokens])
    assert_close(one[~is_bin], two[~is_bin], atol=1e-6, rtol=1e-6)
    assert (one[is_bin] - two[is_bin]).abs().max() > 1e-3


@pytest.mark.parametrize("padded", [True, False])
@torch.no_grad()
def test_the_last_state_has_read_all_texts_and_no_position(after, padded):
    """Which `PocketUNet` takes for the whole caption; also where no padding is behind the texts."""
    first, second = SCENE.regions
    renamed = Scene(SCENE.caption, [first, Region("a cup", box=second.box)])

    def vector(scene: Scene) -> Tensor:
        ids = after.position_tokens.encode([scene])
        content = ids[after.position_tokens.attention_mask(ids)][None]
        return after.encode(ids if padded else content)[0, -1]

    one, moved, other = map(vector, (SCENE, MOVED, renamed))
    assert_close(one, moved, atol=1e-6, rtol=1e-6)
    assert (one - other).abs().max() > 1e-3


def test_the_null_and_captions_alone_are_recos(reco, after):
    for scenes in ([BARE], [Scene("")], [BARE, Scene("")]):
        ours, theirs = after.condition(scenes), reco.condition(scenes)
        assert_close(ours.text, theirs.text, atol=1e-5, rtol=1e-5)
        assert_close(ours.null_text, theirs.null_text, atol=1e-5, rtol=1e-5)


def test_a_box_that_moves_changes_the_image(after):
    one, two = (final(after, scene, seed=1, num_inference_steps=2) for scene in (SCENE, MOVED))
    assert (one - two).abs().max() > 1e-4


def test_an_image_is_the_same_alone_in_a_batch_and_after_the_disk(after, tmp_path):
    after.save_pretrained(tmp_path)
    again = PositionsAfterPipeline.from_pretrained(tmp_path)
    scenes = [SCENE, OTHER, BARE]
    batch = final(again, scenes, seed=5, num_inference_steps=2)
    for k, scene in enumerate(scenes):
        alone = final(after, scene, seed=5 + k, num_inference_steps=2)[0]
        assert_close(batch[k], alone, atol=1e-4, rtol=1e-4)
