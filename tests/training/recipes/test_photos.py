# SPDX-License-Identifier: Apache-2.0
"""Recipes on photos: they learn, each reads what the one before has written, and all can sample."""

import shutil
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from spatext_lab.clip import Clip
from spatext_lab.datasets.augment import swap_sides
from spatext_lab.datasets.coco import read_coco
from spatext_lab.datasets.photo_views import wide_view
from spatext_lab.datasets.pocket import SIZE
from spatext_lab.reco.pipeline import ReCoPipeline
from spatext_lab.scene import Region, Scene
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from spatext_lab.training import cache
from spatext_lab.training import photos as module
from spatext_lab.training.recipes import RECIPES, clip, spatext, text_to_image
from spatext_lab.training.run import run
from tests.photos import photo_folder
from tests.training.steps import PLAN, loss_of, losses

SCENE = Scene("a dog and a car", [Region("a dog", box=(0.1, 0.2, 0.5, 0.8))])
pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return photo_folder(tmp_path_factory.mktemp("photos") / "coco")


@pytest.fixture
def items(data):
    return read_coco(data, "train", regions=(1, 20)).items


@pytest.mark.parametrize("name", ["clip", "prior", "text-to-image"])
def test_a_recipe_learns_photos(name, data):
    """The same data in every step; and a job that is made anew has the same losses."""
    curve = losses(RECIPES[name].make(PLAN, "cpu", data=data))
    assert np.isfinite(curve).all()
    assert np.mean(curve[-2:]) < 0.93 * np.mean(curve[:2])
    again = RECIPES[name].make(PLAN, "cpu", data=data)
    assert loss_of(again).item() == curve[0]


def test_photos_from_their_autoencoder_to_reco(data, tmp_path):
    """A step of each, every one made from the folders before; the folder of all is a base."""
    out = tmp_path / "photos"
    parts = {
        "autoencoder": {},
        "clip": {},
        "prior": {"clip": out / "clip"},
        "text-to-image": {"vae": out / "autoencoder", "clip": out / "clip", "batch": 2},
        "spatext": {
            "base": str(out / "text-to-image"),
            "clip": out / "clip",
            "prior": out / "prior",
        },
    }
    settings = {"steps": 1, "device": "cpu", "data": data, "licences": [4]}
    for name, given in parts.items():
        run(name, out=out / name, **settings, **given)
    run("reco", out=out / "reco", base=str(out), **settings)
    kinds = (TextToImagePipeline, SpaTextPipeline, ReCoPipeline)
    for name, kind in zip(("text-to-image", "spatext", "reco"), kinds, strict=True):
        model = kind.from_pretrained(out / name)
        assert model(SCENE, num_inference_steps=1, seed=0).images[0].size == (64, 64)
        assert len(model.tokenizer) >= clip.PHOTO_MERGES  # its words are those of the photos' CLIP
    card = (out / "clip" / "README.md").read_text()
    assert "2 photos of coco, train2017" in card
    assert "--licences 4" in card


def test_a_photos_base_without_a_prior_is_widened_with_a_warning(root, data, tmp_path):
    shutil.copytree(root / "text-to-image", tmp_path / "text-to-image")
    shutil.copytree(root / "spatext" / "clip", tmp_path / "spatext" / "clip")
    with pytest.warns(UserWarning, match=r"has no prior: texts are painted by their own"):
        job = RECIPES["spatext"].make(PLAN, "cpu", base=str(tmp_path), data=data)
    assert np.isfinite(loss_of(job).item())


def test_a_batch_of_photos_has_each_text_once_and_each_photo_once(items, monkeypatch):
    """Else the contrastive loss would call a right text wrong."""
    monkeypatch.setattr(clip, "WHOLE", 16)
    views = [wide_view(k, 0, items, SIZE) for k in range(12)]
    images, texts = clip.photo_batch(views, torch.Generator().manual_seed(0), 32)
    seen = {
        text
        for view in views
        for k, text in enumerate(view.texts, start=1)
        if (view.labels == k).mean() >= clip.MIN_AREA
    }
    crops, captions = texts[: len(seen)], texts[len(seen) :]
    assert images.shape == (len(texts), 3, 32, 32)
    assert max(Counter(crops).values()) == 1
    assert set(crops) == seen
    assert len(captions) == len({view.photo for view in views}) == 2
    assert all(any(text in view.captions for view in views) for text in captions)


def test_a_photos_clip_reads_more_words_in_one_piece(data):
    texts = "a motorcycle parked beside a refrigerator"
    of_photos, of_scenes = (clip.new_clip(n).tokenizer for n in (clip.PHOTO_MERGES, clip.MERGES))
    assert len(of_photos(texts).input_ids) < len(of_scenes(texts).input_ids)
    job = clip.make(PLAN, "cpu", data=data)
    assert job.module.model.token_embedding.num_embeddings == len(of_photos)


def test_a_text_to_image_model_of_photos_begins_as_its_base(data, tmp_path):
    """U-Net, text encoder and autoencoder of the base, unless others are passed."""
    text_to_image.make(PLAN, "cpu", data=data, batch=2).save(tmp_path / "base")
    other = clip.make(PLAN, "cpu", data=data)
    other.save(tmp_path / "clip")
    base = TextToImagePipeline.from_pretrained(tmp_path / "base")
    model = text_to_image.new_pipeline(base=str(tmp_path / "base"))
    for name in ("unet", "text_encoder", "vae"):
        same = getattr(base, name).state_dict()
        assert all(torch.equal(v, same[k]) for k, v in getattr(model, name).state_dict().items())
    reader = Clip.from_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match=r"U-Net is a PocketUNet for hidden states of width 16"):
        text_to_image.new_pipeline(clip=tmp_path / "clip", base=str(tmp_path / "base"))
    assert reader.text_transformer(77).config.hidden_size == 128


def test_a_base_of_another_u_net_is_refused(data):
    with pytest.raises(ValueError, match=r"base is pocket, whose U-Net is a UNet2DConditionModel"):
        text_to_image.make(PLAN, "cpu", data=data, base="pocket")


def test_photos_stages_are_fractions_of_the_run(data, monkeypatch):
    """A fifth of the steps has small views, whatever the run's length."""
    sizes = []
    source = text_to_image.Ahead.block
    monkeypatch.setattr(
        text_to_image.Ahead,
        "block",
        lambda self, k: sizes.append(source(self, k)[0][0].image.shape[0]) or source(self, k),
    )
    job = text_to_image.make(replace(PLAN, steps=20), "cpu", data=data, batch=2)
    for step in (3, 5):
        job.loss_at(step, torch.Generator().manual_seed(0))
    assert sizes == [32, 64]


def test_held_out_squares_are_those_of_val(data):
    found = module.held_out_squares(data, 32, 2)
    assert found.shape == (2, 32, 32, 3)
    every = module.held_out_squares(data, 32, 9)
    wanted = [item.square(32)[0] for item in read_coco(data, "val").items]
    np.testing.assert_array_equal(every, wanted)
    shutil.copytree(data, data.parent / "train alone", dirs_exist_ok=True)
    for kind in ("instances", "captions"):
        (data.parent / "train alone" / "annotations" / f"{kind}_val2017.json").unlink()
    assert len(module.held_out_squares(data.parent / "train alone", 32, 9)) == 0


def test_batches_are_the_views_by_their_numbers(items, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 3)
    views = module.batches(partial(wide_view, seed=1, photos=items, size=8), 2, "cpu")
    for step in (0, 4, 2):
        for k, view in enumerate(views(step)):
            same = wide_view(2 * step + k, 1, items, 8)
            np.testing.assert_array_equal(view.image, same.image)


def test_views_for_spatext_are_the_square_and_others(data, items):
    """All disjoint masks of enough of the view, with the captions of the photo, swapped or not."""
    choice = {"min_area": 0.05, "regions": (1, 6)}
    plain = cache.squares(data, 32, choice)
    several = cache.views(data, 32, 5, choice)
    assert cache.views(data, 32, 1, choice).identity == plain.identity != several.identity
    for k, item in enumerate(several.items):
        first, *others = several.examples(k)
        (square,) = plain.examples(k)
        np.testing.assert_array_equal(first.image, square.image)
        assert len(others) == 4
        assert any((a.image != first.image).any() for a in others)
        for each in others:
            masks = np.stack([region.mask for region in each.scene.regions])
            assert masks.sum(0).max() == 1
            assert masks.mean((1, 2)).min() >= 0.05
            assert {region.text for region in each.scene.regions} <= {"a dog", "a car"}
            assert {swap_sides(c) for c in each.captions} & {swap_sides(c) for c in item.captions}


def test_several_views_need_photos(data):
    job = spatext.make(PLAN, "cpu", data=data, views=3)
    assert job.data.startswith("6 views (up to 3 of each photo) of coco, train2017; ")
    for wrong in ({"views": 2}, {"views": 0, "data": data}):
        with pytest.raises(ValueError, match=r"views is \d; pass 1, or with photos"):
            spatext.make(PLAN, "cpu", **wrong)
