# SPDX-License-Identifier: Apache-2.0
"""Regional cross-attention against a loop over cells, heads and texts, in numpy."""

from itertools import product

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from spatext_lab.baselines.regional_attention import RegionalAttentionPipeline, attention_bias
from spatext_lab.scene import Region, Scene
from tests.tiny import BARE, OTHER, SCENE, final


def spied(pipeline, scenes, **settings) -> list[tuple]:
    """(layer, cells' states, texts' states, output) of every cross-attention of one step."""
    seen, handles = [], []
    for name, layer in pipeline.unet.named_modules():
        if name.endswith("attn2"):
            handles.append(
                layer.register_forward_hook(
                    lambda layer, args, known, out: seen.append(
                        (layer, args[0], known["encoder_hidden_states"], out)
                    ),
                    with_kwargs=True,
                )
            )
    try:
        next(iter(pipeline.stream(scenes, **settings)))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def attention_of_a_cell(layer, cell: np.ndarray, texts: list[np.ndarray], weight: float):
    """What one cell reads from the caption's tokens and, each `weight` times, its region's."""
    query, key, value = (
        part.weight.detach().numpy().T for part in (layer.to_q, layer.to_k, layer.to_v)
    )
    q, read = cell @ query, []
    width = len(q) // layer.heads
    for head in range(layer.heads):
        here = slice(head * width, (head + 1) * width)
        total, mean = 0.0, np.zeros(width)
        for text, times in zip(texts, (1, weight), strict=False):
            much = times * np.exp((text @ key)[:, here] @ q[here] / np.sqrt(width))
            total, mean = total + much.sum(), mean + much @ (text @ value)[:, here]
        read.append(mean / total)
    out = layer.to_out[0]
    return np.concatenate(read) @ out.weight.detach().numpy().T + out.bias.detach().numpy()


def on_top(scene: Scene, side: int, y: int, x: int) -> list[int]:
    """The last region that holds a cell, if there is one."""
    held = [k for k, region in enumerate(scene.regions) if region.mask_at(side, side)[y, x]]
    return held[-1:]


@pytest.mark.parametrize("weight", [1.0, 6.0])
def test_every_cell_against_a_loop(base, weight):
    """Its own region's text and the caption; outside of all regions the caption alone."""
    pipeline = RegionalAttentionPipeline.from_pipe(base, region_weight=weight)
    scenes = [SCENE, OTHER, BARE]
    told = [base.encode_captions([scene.caption]).text[0].numpy() for scene in scenes]
    regions = [
        [base.encode_captions([region.text]).text[0].numpy() for region in scene.regions]
        for scene in scenes
    ]
    empty, sides = base.encode_captions(["a wood"]).null_text[0].numpy(), set()
    for layer, states, _, output in spied(pipeline, scenes):
        side = round(states.shape[1] ** 0.5)
        if side > 8 or side in sides:  # one layer of each size
            continue
        sides.add(side)
        for k, y, x in product(range(3), range(side), range(side)):
            texts = [told[k], *(regions[k][r] for r in on_top(scenes[k], side, y, x))]
            cell = y * side + x
            for row, known in ((k, [empty]), (3 + k, texts)):  # nulls first
                want = attention_of_a_cell(layer, states[row, cell].numpy(), known, weight)
                assert_close(output[row, cell].double().numpy(), want, atol=1e-5, rtol=1e-4)
    assert sides == {4, 8}


def test_the_bias_in_closed_form():
    bias = attention_bias(torch.tensor([[0, 2], [1, 1]]), 2, 3, 5.0)
    log, no = np.log(5.0), -np.inf
    rows = [[no, no, 0], [no, log, 0]], [[log, no, 0], [log, no, 0]]
    assert_close(bias, torch.tensor(rows).float().repeat_interleave(3, dim=2))


def test_outside_of_the_regions_attention_is_unchanged(base):
    """What the first cross-attention gives a cell there: the text-to-image model's, to rounding."""
    corner = Scene("a wood", [Region("a red ball", box=(0, 0, 0.5, 0.5))])
    pipeline = RegionalAttentionPipeline.from_pipe(base)
    (*_, ours), *_ = spied(pipeline, corner, seed=3)
    (*_, plain), *_ = spied(base, corner, seed=3)
    side = round(plain.shape[1] ** 0.5)
    ours, plain = (out.view(2, side, side, -1) for out in (ours, plain))
    half = side // 2
    assert_close(ours[0], plain[0], atol=1e-6, rtol=1e-5)  # the null
    assert_close(ours[1, half:], plain[1, half:], atol=1e-6, rtol=1e-5)
    assert_close(ours[1, :, half:], plain[1, :, half:], atol=1e-6, rtol=1e-5)
    assert (ours[1, :half, :half] - plain[1, :half, :half]).abs().amax(-1).min() > 1e-4


# --- the pipeline ---------------------------------------------------------------------------------


def test_without_regions_it_is_the_text_to_image_model(base):
    pipeline = RegionalAttentionPipeline.from_pipe(base)
    settings = {"seed": 1, "num_inference_steps": 3}
    scenes = [BARE, Scene("a wood")]
    assert_close(final(pipeline, scenes, **settings), final(base, scenes, **settings))


def test_a_region_that_repeats_the_caption_changes_nothing(base):
    pipeline, settings = RegionalAttentionPipeline.from_pipe(base), {"num_inference_steps": 3}
    scene = Scene(BARE.caption, [Region(BARE.caption, box=(0.2, 0.1, 0.7, 0.9))])
    want = final(base, BARE, **settings)
    assert_close(final(pipeline, scene, **settings), want, atol=1e-4, rtol=1e-4)
    other = Scene(BARE.caption, [Region("a wood", box=(0.2, 0.1, 0.7, 0.9))])
    assert not torch.allclose(final(pipeline, other, **settings), want, atol=1e-3)


def test_an_image_is_the_same_alone_and_in_a_batch(base):
    pipeline = RegionalAttentionPipeline.from_pipe(base)
    settings = {"num_inference_steps": 3}
    scenes = [OTHER, SCENE, BARE]
    negative, two = ["a tree", "snow", ""], {"num_images_per_prompt": 2}
    batch = final(pipeline, scenes, seed=5, negative_prompt=negative, **two, **settings)
    for k in range(2 * len(scenes)):
        own = {"seed": 5 + k, "negative_prompt": negative[k // 2]}
        alone = final(pipeline, scenes[k // 2], **own, **settings)[0]
        assert_close(batch[k], alone, atol=1e-4, rtol=1e-4)


def test_the_network_is_as_it_was(base):
    """After a call, between two steps, and after an error in the middle of a call."""
    pipeline, before = RegionalAttentionPipeline.from_pipe(base), dict(base.unet.attn_processors)
    for step in pipeline.stream(SCENE, num_inference_steps=2):
        assert base.unet.attn_processors == before, step.index

    def fails(*_):
        raise RuntimeError("in the middle")

    hook = base.unet.mid_block.register_forward_hook(fails)
    try:
        with pytest.raises(RuntimeError, match="in the middle"):
            pipeline(SCENE, num_inference_steps=2)
    finally:
        hook.remove()
    assert base.unet.attn_processors == before


def test_a_folder_of_stable_diffusion(stable_diffusion, tmp_path):
    pipeline = RegionalAttentionPipeline.from_pretrained(stable_diffusion, region_weight=3)
    assert pipeline(SCENE, num_inference_steps=2).images[0].size == (64, 64)
    pipeline.save_pretrained(tmp_path)
    assert RegionalAttentionPipeline.from_pretrained(tmp_path).config.region_weight == 3


def test_a_weight_that_is_none(base):
    with pytest.raises(ValueError, match=r"region_weight is 0; pass a number above 0"):
        RegionalAttentionPipeline.from_pipe(base, region_weight=0)
