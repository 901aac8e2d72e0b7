# SPDX-License-Identifier: Apache-2.0
"""SpaText from scene to image, against the loop written out.

What all pipelines promise is tested in `text_to_image/test_pipelines.py`.
"""

import shutil
import warnings
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor
from torch.testing import assert_close

from spatext_lab.diffusion import initial_noise
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


# --- the loop written out -------------------------------------------------------------------------


@torch.no_grad()
def slow_spatext(pipeline: SpaTextPipeline, scene: Scene, seed: int, steps: int, scales) -> Tensor:
    """One pass of the network per condition, one scene, DDIM in numbers."""

    def states(caption: str) -> Tensor:
        ids = pipeline.tokenizer(caption, padding="max_length", return_tensors="pt").input_ids
        return pipeline.text_encoder(ids)[0]

    st_map = inference_map(scene, pipeline.embed, (16, 16))[None]
    zero, caption, null = torch.zeros_like(st_map), states(scene.caption), states("")
    alphas = DDIMScheduler.from_config(pipeline.scheduler.config).alphas_cumprod.double()
    x = initial_noise([seed], SHAPE)
    times = [round(1000 - k * 1000 / steps) - 1 for k in range(steps)]
    for t, after in zip(times, [*times[1:], None], strict=True):

        def v(text: Tensor, a_map: Tensor, x=x, t=t) -> Tensor:
            x_in = torch.cat([x, pipeline.clip.embedding_dim**0.5 * a_map], 1)
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
    ours = final(spatext, SCENE, seed=3, num_inference_steps=4, **settings)
    slow = slow_spatext(spatext, SCENE, 3, 4, scales)
    assert_close(ours, slow, atol=1e-3, rtol=1e-3)


def test_the_map_is_that_of_the_scene(spatext):
    maps = spatext.condition([SCENE, BARE]).st_map
    assert_close(maps[0], inference_map(SCENE, spatext.embed, (16, 16)))
    assert not maps[1].any()
    assert maps.shape == (2, WIDTH, 16, 16)


def test_regions_change_the_image_and_their_scale_too(spatext):
    settings = {"seed": 1, "num_inference_steps": 2}
    with_regions = final(spatext, OTHER, **settings)
    assert not torch.allclose(with_regions, final(spatext, BARE, **settings), atol=0.01)
    weak, strong = (final(spatext, OTHER, region_guidance_scale=s, **settings) for s in (0.0, 5.0))
    assert not torch.allclose(weak, strong, atol=0.01)
    with pytest.warns(UserWarning, match="no effect"):
        bare = final(spatext, BARE, region_guidance_scale=5.0, **settings)
    assert_close(weak, bare, atol=1e-4, rtol=1e-4)


def test_a_scale_for_each_region_against_one_pass_after_the_other(spatext):
    scene = Scene(
        SCENE.caption,
        [Region("a red ball", box=(0, 0, 0.6, 0.6)), Region("grass", box=(0.3, 0.3, 1, 1))],
    )
    size, scales = (16, 16), [1.5, 2.0, 4.0]
    whole = spatext.condition([scene])
    seen = scene.visible_masks(64, 64)
    alone = [Scene("", [Region(r.text, mask=m)]) for r, m in zip(scene.regions, seen, strict=True)]
    maps = [inference_map(one, spatext.embed, size)[None] for one in alone]
    assert_close(maps[0] + maps[1], whole.st_map)
    got = list(
        spatext.stream(
            scene,
            seed=2,
            num_inference_steps=1,
            guidance_scale=1.5,
            region_guidance_scale=[2.0, 4.0],
        )
    )[-1].x_0

    def v(text: Tensor, st_map: Tensor) -> Tensor:
        x_in = torch.cat([initial_noise([2], SHAPE), WIDTH**0.5 * st_map], 1)
        with torch.no_grad():
            return spatext.unet(x_in, 999, encoder_hidden_states=text)[0]

    zero = torch.zeros_like(whole.st_map)
    nothing = v(whole.null_text, zero)
    conditions = [(whole.text, zero), *((whole.null_text, one) for one in maps)]
    out = nothing + sum(s * (v(*c) - nothing) for s, c in zip(scales, conditions, strict=True))
    alpha = spatext.scheduler.alphas_cumprod[999]
    want = alpha.sqrt() * initial_noise([2], SHAPE) - (1 - alpha).sqrt() * out
    assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_a_scale_for_each_region_of_several_scenes(spatext):
    """As for one scene after the other; all texts are embedded by one call of each network."""
    other = Scene(OTHER.caption, [*OTHER.regions, SCENE.regions[0]])
    settings = {"num_inference_steps": 2, "region_guidance_scale": [2.0, 4.0]}
    calls = []
    hooks = [
        network.register_forward_pre_hook(lambda *_: calls.append(1))
        for network in (spatext.clip.model.transformer, spatext.prior)
    ]
    try:
        batch = final(spatext, [SCENE, other], seed=5, **settings)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(calls) == 2
    for k, scene in enumerate([SCENE, other]):
        alone = final(spatext, scene, seed=5 + k, **settings)[0]
        assert_close(batch[k], alone, atol=1e-4, rtol=1e-4)


def test_scales_and_regions_must_be_equally_many(spatext):
    """At once, before anything is sampled."""
    message = r"region_guidance_scale holds 3 numbers and the scenes have \[2\] regions; pass one"
    with pytest.raises(ValueError, match=message):
        spatext.stream(SCENE, num_inference_steps=1, region_guidance_scale=[1.0, 1.0, 1.0])
    for scenes in ([SCENE, BARE], [SCENE, OTHER]):
        with pytest.raises(ValueError, match=r"the scenes have \[[01], 2\] regions"):
            spatext.stream(scenes, num_inference_steps=1, region_guidance_scale=[1.0, 1.0])


def test_a_scale_for_the_map_of_a_scene_without_regions_has_one_warning(spatext):
    with pytest.warns(UserWarning, match="region_guidance_scale has no effect") as caught:
        spatext([BARE, SCENE, BARE], num_inference_steps=1, region_guidance_scale=2.0)
    assert len(caught) == 1


def box_of(area: float) -> Region:
    return Region("a red ball", box=(0, 0, 1, area))


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([box_of(0.1)] * 7, "the scene has 7 regions and the model was trained with 6 at most"),
        (
            [box_of(0.1), box_of(0.015)],
            r"regions\[1\] \('a red ball'\) covers 1.56%",
        ),
        (
            [box_of(0.1), box_of(0.2)],
            r"regions\[0\] .* covers 0.00% .* what covers it",
        ),
        ([Region("a ball and " * 30, box=(0, 0, 1, 1))], r"regions\[0\].text is longer than"),
    ],
)
def test_a_scene_beyond_the_training_is_sampled_with_a_warning(spatext, regions, message):
    assert (spatext.config.most_regions, spatext.config.min_area) == (6, 0.02)
    with pytest.warns(UserWarning, match=message):
        (image,) = spatext(Scene("a wood", regions), num_inference_steps=1).images
    assert image.size == (64, 64)


def test_a_scene_within_the_training_is_sampled_without(spatext):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spatext(SCENE, num_inference_steps=1)


# --- parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["unet", "clip", "prior", "vae", "model_index.json"])
def test_a_missing_part_is_named(root, tmp_path, part):
    """Also the prior, without which a folder may be: not where its index names one."""
    shutil.copytree(root / "spatext", tmp_path / "model")
    path = tmp_path / "model" / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError, match=part):
        SpaTextPipeline.from_pretrained(tmp_path / "model")


def test_without_a_prior_the_map_holds_the_texts_own_embeddings(spatext, tmp_path):
    plain = SpaTextPipeline(**spatext.components | {"prior": None})
    plain.save_pretrained(tmp_path)
    again = SpaTextPipeline.from_pretrained(tmp_path)
    assert again.prior is None
    with torch.no_grad():
        want = spatext.clip.encode_text(["a boat"])
    for pipeline in (plain, again):
        assert torch.equal(pipeline.embed(["a boat"]), want)
    assert not torch.allclose(spatext.embed(["a boat"]), want, atol=0.01)


def test_a_text_model_is_no_spatext_model(root):
    with pytest.raises(FileNotFoundError, match="no part 'clip'"):
        SpaTextPipeline.from_pretrained(root / "text-to-image")


def test_a_clip_of_another_width_is_refused(root, spatext, text):
    with pytest.raises(
        ValueError,
        match=r"clip has embeddings of 16 .* have 16 channels, but the U-Net takes 0: pass",
    ):
        SpaTextPipeline(**spatext.components | {"unet": text.unet})


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.usefixtures("as_for_users")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_inference_steps": 1001}, "num_inference_steps is 1001"),
        ({"guidance_scale": -1.0}, "^guidance_scale is -1"),
        ({"guidance_scale": -1.0, "region_guidance_scale": 2.0}, "^guidance_scale is -1"),
        ({"region_guidance_scale": -2.0}, "region_guidance_scale is -2.0; pass a finite number"),
        ({"region_guidance_scale": "2"}, "region_guidance_scale is '2'; pass a finite number >= 0"),
        ({"region_guidance_scale": torch.ones(2)}, r"region_guidance_scale is tensor\(.*or a list"),
        ({"region_guidance_scale": [1.0, "2"]}, r"region_guidance_scale\[1\] is '2'; pass"),
        ({"region_guidance_scale": [1.0, float("nan")]}, r"region_guidance_scale\[1\] is nan"),
        ({"region_guidance_scale": []}, "region_guidance_scale holds 0 numbers"),
    ],
)
def test_settings_out_of_range_are_refused(spatext, settings, message):
    with pytest.raises(ValueError, match=message):
        spatext(SCENE, **settings)
