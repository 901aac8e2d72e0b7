# SPDX-License-Identifier: Apache-2.0
"""Positions after the text encoder against one sequence after the other, in plain lists."""

import pytest
import torch
from torch.testing import assert_close

from spatext_lab import Region, Scene, zoo
from spatext_lab.baselines.positions_after import PositionsAfterPipeline, states_then_positions

BALL, HOUSE = "a white ball with dots", "a blue house"
SCENE = Scene("snow", [Region(BALL, box=(0.1, 0.2, 0.5, 0.6)), Region(HOUSE, box=(0, 0, 0.4, 1))])
MOVED = Scene("snow", [Region(BALL, box=(0.4, 0.5, 0.8, 0.9)), Region(HOUSE, box=(0.6, 0, 1, 1))])


@pytest.fixture(scope="module")
def pipeline() -> PositionsAfterPipeline:
    return PositionsAfterPipeline.from_pretrained(zoo.folder("pocket", "reco"))


@torch.no_grad()
def test_against_a_loop(pipeline):
    ids = pipeline.position_tokens.encode([SCENE, Scene("a beach")])
    bins = set(pipeline.position_tokens.bin_ids)
    is_bin = torch.tensor([[one in bins for one in row] for row in ids.tolist()])
    got = states_then_positions(pipeline.text_encoder, ids, is_bin)
    table = pipeline.text_encoder.get_input_embeddings().weight
    for row, found in zip(ids.tolist(), got, strict=True):
        texts = [one for one in row if one not in bins]
        padded = texts + [one for one in row if one in bins]  # behind all texts: not attended to
        states = iter(pipeline.text_encoder(torch.tensor([padded])).last_hidden_state[0])
        want = [table[one] if one in bins else next(states) for one in row]
        assert_close(found, torch.stack(want), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_texts_do_not_depend_on_boxes(pipeline):
    """Only the embeddings of the position tokens differ when the boxes move."""
    ids = pipeline.position_tokens.encode([SCENE, MOVED])
    one, two = pipeline.encode(ids)
    same = ids[0] == ids[1]
    assert 1 <= (~same).sum() <= 8
    assert_close(one[same], two[same], atol=1e-6, rtol=1e-6)
    assert (one[~same] - two[~same]).abs().max() > 1e-3
