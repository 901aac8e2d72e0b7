# SPDX-License-Identifier: Apache-2.0
"""Other kinds of map against loops over their cells, and what a pipeline makes of them."""

from itertools import product
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from spatext_lab.baselines.other_maps import KINDS, OtherMapsPipeline
from spatext_lab.scene import Scene
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.spatext.representation import paint
from tests.tiny import BARE, OTHER, SCENE, WIDTH, final, tiny_model

CAPTIONS = ["a wood", "a meadow at noon"]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pipelines(root) -> dict[str, OtherMapsPipeline]:
    return {kind: OtherMapsPipeline.from_pretrained(root / f"spatext-{kind}") for kind in KINDS}


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_against_a_loop_over_the_cells(pipelines, kind):
    pipeline = pipelines[kind]
    embeddings, covered = torch.randn(2, 3, WIDTH), torch.rand(2, 3, 4, 5)
    st_map = pipeline.paint(embeddings, covered, CAPTIONS)
    encode, words = pipeline.clip.encode_text, pipeline.config.words
    channels = {"binary": 1, "caption": 2 * WIDTH, "similarity": len(words)}[kind]
    assert st_map.shape == (2, channels, 4, 5)
    assert pipeline.unet.config.in_channels == 4 + channels
    for b, y, x in product(range(2), range(4), range(5)):
        here = sum(embeddings[b, k] * covered[b, k, y, x] for k in range(3))
        want = {
            "binary": lambda b=b, y=y, x=x: covered[b, :, y, x].sum()[None],
            "caption": lambda b=b, here=here: torch.cat([here, encode([CAPTIONS[b]])[0]]),
            "similarity": lambda here=here: torch.stack([here @ encode([w])[0] for w in words]),
        }[kind]()
        assert_close(st_map[b, :, y, x], want, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_maps_of_scenes_hold_their_regions(pipelines, kind):
    """The same function as in training, on the scenes' own embeddings and coverages."""
    pipeline = pipelines[kind]
    condition = pipeline.condition([SCENE, BARE])
    regions = [region.text for region in SCENE.regions]
    masks = torch.from_numpy(SCENE.visible_masks(64, 64)).float()
    covered = torch.nn.functional.avg_pool2d(masks[:, None], 4)[None, :, 0]
    want = pipeline.paint(pipeline.embed(regions)[None], covered, [condition_caption(kind)])
    assert_close(condition.st_map[0], want[0], atol=1e-5, rtol=1e-5)
    nothing = torch.zeros(1, 1, 16, 16)
    bare = pipeline.paint(torch.zeros(1, 1, WIDTH), nothing, [BARE.caption])
    assert_close(condition.st_map[1], bare[0], atol=1e-5, rtol=1e-5)


def condition_caption(kind: str) -> str:
    texts = [SCENE.caption, *(region.text for region in SCENE.regions)]
    return ", ".join(texts) if kind == "binary" else SCENE.caption


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_binary_map_needs_the_texts_in_the_caption(pipelines, kind):
    caption = pipelines[kind].caption("a wood", ["a red ball", "grass"])
    assert caption == ("a wood, a red ball, grass" if kind == "binary" else "a wood")
    condition = pipelines[kind].condition([SCENE])
    want = pipelines[kind].encode_captions([condition_caption(kind)])
    assert torch.equal(condition.text, want.text)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_pipeline_gives_the_same_image(pipelines, kind, tmp_path):
    pipelines[kind].save_pretrained(tmp_path)
    again = OtherMapsPipeline.from_pretrained(tmp_path)
    assert again.config.representation == kind
    settings = {"seed": 4, "num_inference_steps": 2}
    one, two = (final(pipeline, SCENE, **settings) for pipeline in (pipelines[kind], again))
    assert torch.equal(one, two)
    bare = Scene(condition_caption(kind))
    assert not torch.allclose(one, final(pipelines[kind], bare, **settings), atol=1e-3)
    batch = final(again, [OTHER, SCENE], seed=3, num_inference_steps=2)
    assert_close(batch[1], one[0], atol=1e-4, rtol=1e-4)


def test_the_papers_own_map_is_spatexts(root):
    """`KINDS` are the others; painting its map here would be a second way of doing it."""
    spatext = SpaTextPipeline.from_pretrained(root / "spatext")
    embeddings, covered = torch.randn(1, 3, WIDTH), torch.rand(1, 3, 4, 5)
    with torch.no_grad():
        halves = OtherMapsPipeline.from_pretrained(root / "spatext-caption").paint(
            embeddings, covered, ["a wood"]
        )
    assert torch.equal(halves[:, :WIDTH], paint(embeddings, covered))
    with pytest.raises(ValueError, match="clip has embeddings of 16 numbers, so maps have 1"):
        OtherMapsPipeline(**spatext.components)


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        ("vector", [], "representation is 'vector'; there are binary, caption, similarity"),
        ("similarity", [], "'similarity' needs words"),
        ("binary", ["red"], r"words is \['red'\]; 'similarity' needs words, others take none"),
    ],
)
def test_a_kind_that_is_none_is_refused(pipelines, kind, words, message):
    parts = pipelines["binary"].components
    with pytest.raises(ValueError, match=message):
        OtherMapsPipeline(**parts, representation=kind, words=words)


def test_a_scale_for_each_region_is_refused(pipelines):
    with pytest.raises(ValueError, match="region_guidance_scale is a list; this kind of map takes"):
        pipelines["caption"](SCENE, num_inference_steps=1, region_guidance_scale=[1.0, 2.0])
