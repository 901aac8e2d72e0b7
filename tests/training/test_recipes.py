# SPDX-License-Identifier: Apache-2.0
"""Every recipe on a handful of scenes: it learns, it can be stopped, and what it saves is read."""

from collections import Counter
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from torch.testing import assert_close

from spatext_lab import zoo
from spatext_lab.clip import Clip
from spatext_lab.datasets.pocket import pocket_item
from spatext_lab.diffusion import Condition
from spatext_lab.evaluation.judge import Judge
from spatext_lab.pipeline import TextToImagePipeline, encode
from spatext_lab.scene import Region, Scene
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.training import cache, checkpoint
from spatext_lab.training.job import Job
from spatext_lab.training.loop import Plan, Trainer
from spatext_lab.training.recipes import (
    RECIPES,
    autoencoder,
    clip,
    decoder,
    judge,
    pixel,
    prior,
    spatext,
    text_to_image,
    tokenizer,
)
from spatext_lab.unet import UNetDenoiser
from tests.tiny import tiny_model

PLAN = Plan(steps=12, lr=2e-3, warmup=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def small(monkeypatch, root):
    """Few scenes, small batches, and the tiny model where a recipe looks for the shipped one."""
    for module in (autoencoder, decoder, judge):
        monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(clip, "SCENES", 6)
    monkeypatch.setattr(clip, "WHOLE", 3)
    for module in (text_to_image, spatext, prior):
        monkeypatch.setattr(module, "BATCH", 4)
    for module in (text_to_image, spatext, pixel, prior):
        monkeypatch.setattr(module, "SCENES", 8)
    monkeypatch.setattr(zoo, "folder", lambda model, part: root / part)


def losses(job: Job, *, same_data: bool = True) -> list[float]:
    """A run's losses; with the first step's data and noise in every step, they must fall."""

    def loss_at(step: int, generator: torch.Generator) -> torch.Tensor:
        first = torch.Generator().manual_seed(0)
        return job.loss_at(0, first) if same_data else job.loss_at(step, generator)

    return [step.loss for step in Trainer(job.module, loss_at, job.plan, "cpu").run()]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_learns(name):
    curve = losses(RECIPES[name].make(PLAN, "cpu"))
    assert np.isfinite(curve).all()
    assert np.mean(curve[-2:]) < 0.93 * np.mean(curve[:2])


# One with a frozen weight, one with convolutions in another memory layout, one of two networks.
@pytest.mark.parametrize("name", ["clip", "judge", "text-to-image"])
def test_a_recipe_can_be_stopped_and_gone_on_with(name, tmp_path):
    """Real networks, fresh data in each step: two steps, disk, one more, against three."""
    plan = Plan(steps=3, lr=1e-3, warmup=1)
    whole, first, second = (
        Trainer(job.module, job.loss_at, plan, "cpu")
        for job in (RECIPES[name].make(plan, "cpu") for _ in range(3))
    )
    list(whole.run())
    for step in first.run():
        if step.index == 1:
            break
    checkpoint.save(first, tmp_path / "saved")
    checkpoint.load(second, tmp_path / "saved")
    list(second.run())
    assert second.losses == whole.losses
    assert all(torch.equal(a, b) for a, b in zip(second.weights, whole.weights, strict=True))
    pairs = zip(second.ema.shadow_params, whole.ema.shadow_params, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


# --- tokenizer ------------------------------------------------------------------------------------

WORDS = (
    "a red striped fish with dots on the snow, two crimson mushrooms; 42 x 7 don't! crème 日本 🐟 "
    "the quick brown fox jumps over lazy dogs in meadows at noon"
)


def slow_bpe(word: str, merges: list[tuple[str, str]], letters: list[str]) -> list[str]:
    """Byte-pair encoding as it is defined: the merges in their order, each one everywhere."""
    pieces = [letters[byte] for byte in word.encode()]
    pieces[-1] += "</w>"
    for pair in merges:
        i = 0
        while i < len(pieces) - 1:
            if (pieces[i], pieces[i + 1]) == pair:
                pieces[i : i + 2] = ["".join(pair)]
            i += 1
    return pieces


@pytest.fixture(scope="module")
def theirs() -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer()


def merges_of(theirs, count: int) -> list[tuple[str, str]]:
    return [pair for pair, _ in sorted(theirs.bpe_ranks.items(), key=lambda item: item[1])][:count]


def test_words_are_cut_as_the_first_merges_say(theirs):
    ours, merges = tokenizer.new_tokenizer(merges=1500), merges_of(theirs, 1500)
    letters = [theirs.byte_encoder[byte] for byte in range(256)]
    for word in theirs.pat.findall(WORDS.lower()):
        ids = ours(word, add_special_tokens=False).input_ids
        assert ours.convert_ids_to_tokens(ids) == slow_bpe(word, merges, letters), word


def test_words_whose_merges_are_all_there_have_clips_own_ids(theirs):
    """The vocabulary is a prefix, so the number of such a word's only token is CLIP's."""
    ours, known = tokenizer.new_tokenizer(), 0
    for word in theirs.pat.findall(WORDS.lower()):
        want = theirs.encode(word)
        if max(want) < 512 + tokenizer.MERGES:
            assert ours(word, add_special_tokens=False).input_ids == want
            known += 1
    assert known > 15
    vocabulary = ours.get_vocab()
    for token, number in theirs.encoder.items():
        if number < 512 + tokenizer.MERGES:
            assert vocabulary[token] == number
    assert len(ours) == len(vocabulary) == 512 + tokenizer.MERGES + 2


def test_with_all_merges_it_is_clips_tokenizer(theirs):
    every = len(theirs.bpe_ranks)
    ours = tokenizer.new_tokenizer(merges=every)
    assert len(ours) == 49408
    assert ours(WORDS).input_ids == [49406, *theirs.encode(WORDS), 49407]


def test_any_text_comes_back():
    ours = tokenizer.new_tokenizer()
    for text in ("zxqj vwk", "crème brûlée", "日本", "🐟 and so on", "a red ball"):
        assert ours.decode(ours(text).input_ids, skip_special_tokens=True).strip() == text


def test_texts_are_filled_up_with_the_end_and_cut_to_77(theirs):
    ours = tokenizer.new_tokenizer()
    ids = ours(["a ball", "ball " * 200], padding="max_length", truncation=True).input_ids
    assert [len(row) for row in ids] == [77, 77]
    end = len(ours) - 1
    assert ids[0][0] == ids[1][0] == end - 1
    assert ids[0].count(end) == 77 - 3
    assert ids[1][-1] == end


def test_a_tokenizer_survives_the_disk(tmp_path):
    from transformers import CLIPTokenizer

    ours = tokenizer.new_tokenizer(length=32)
    ours.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    assert again(WORDS).input_ids == ours(WORDS).input_ids
    assert again.model_max_length == 32


# --- autoencoder ----------------------------------------------------------------------------------


def test_the_moment_penalty_in_closed_form():
    z = torch.randn(4, 3, 50, 50)
    z = (z - z.mean((0, 2, 3), keepdim=True)) / z.var((0, 2, 3), keepdim=True).sqrt()
    assert autoencoder.moment_penalty(z).item() == pytest.approx(0, abs=1e-6)
    assert autoencoder.moment_penalty(z + 0.5).item() == pytest.approx(0.25, rel=1e-3)
    assert autoencoder.moment_penalty(2 * z).item() == pytest.approx(9, rel=1e-3)


def test_a_saved_autoencoder_has_latents_of_unit_variance(tmp_path, monkeypatch):
    pictures = autoencoder.pictures
    monkeypatch.setattr(autoencoder, "pictures", lambda split, which: pictures(split, which[:16]))
    autoencoder.make(PLAN, "cpu").save(tmp_path)
    from diffusers import AutoencoderTiny

    vae = AutoencoderTiny.from_pretrained(tmp_path, torch_dtype=torch.float32)
    latents = encode(vae, pictures("val", range(16)))
    assert latents.shape == (16, 4, 16, 16)
    assert latents.std().item() == pytest.approx(1, abs=0.02)


def test_the_decoder_is_trained_alone(root):
    """So that a U-Net that learned on the latents need not learn again."""
    job = decoder.make(PLAN, "cpu")
    before = {name: value.clone() for name, value in job.module.state_dict().items()}
    losses(job, same_data=False)
    moved = {
        name for name, value in job.module.state_dict().items() if (value != before[name]).any()
    }
    assert moved
    assert all(name.startswith("decoder.") for name in moved)


# --- CLIP -----------------------------------------------------------------------------------------


def test_no_two_crops_of_a_batch_show_the_same():
    """Else the contrastive loss would call a right text wrong."""
    items = [pocket_item("train", i) for i in range(40)]
    pairs = clip.distinct(items)
    looks = [(s.label, s.colour, s.pattern) for _, s in pairs]
    assert max(Counter(looks).values()) == 1
    assert set(looks) == {(s.label, s.colour, s.pattern) for item in items for s in item.segments}
    assert all(any(s is segment for s in items[i].segments) for i, segment in pairs)


def test_a_batch_of_pictures_and_their_texts():
    pictures, texts = clip.batch(0, torch.Generator().manual_seed(0), 32)
    assert len(pictures) == len(texts)
    assert pictures.shape[1:] == (3, 32, 32)
    assert 0 <= pictures.min() <= pictures.max() <= 1 + 1e-6
    assert texts[-3:] == [pocket_item("train", i).captions[0] for i in range(3)]
    black = (pictures[:-3] == 0).all(1).float().mean((1, 2))
    assert (black > 0.1).any()


def test_a_close_up_keeps_the_surroundings():
    image, mask = torch.rand(3, 20, 20), torch.zeros(20, 20, dtype=torch.bool)
    mask[4, 6], mask[11, 13] = True, True
    assert_close(clip.close_up(image, mask, 8), image[:, 4:12, 6:14])


def test_a_saved_clip_is_read_by_open_clip(tmp_path):
    job = clip.make(PLAN, "cpu")
    job.save(tmp_path)
    ours = Clip.from_pretrained(tmp_path)
    assert (ours.width, ours.image_size) == (64, 32)
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    for name, value in model.state_dict().items():
        assert_close(value, job.module.model.state_dict()[name], atol=2e-3, rtol=1e-3)
    assert ours.model.logit_scale.exp().item() == pytest.approx(1 / clip.TEMPERATURE, rel=1e-3)


# --- judge ----------------------------------------------------------------------------------------


def test_softening_only_blurs_and_adds_noise():
    """A flat grey picture stays grey but for noise of at most 0.08."""
    grey = torch.full((64, 3, 16, 16), 0.3)
    soft = judge.soften(grey, torch.Generator().manual_seed(0))
    assert_close(soft.mean((1, 2, 3)), grey.mean((1, 2, 3)), atol=0.02, rtol=0)
    deviation = soft.std((1, 2, 3))
    assert 0.05 < deviation.max() < 0.09
    assert deviation.min() < 0.01


def test_a_saved_judge_judges(tmp_path):
    job = judge.make(PLAN, "cpu")
    job.save(tmp_path)
    kinds, colours = Judge.from_pretrained(tmp_path)(torch.rand(1, 3, 64, 64))
    assert kinds.shape == colours.shape == (1, 64, 64)


# --- the cache ------------------------------------------------------------------------------------


def test_the_cache_against_one_picture_at_a_time(root):
    base = TextToImagePipeline.from_pretrained(root / "text-to-image")
    reader = Clip.from_pretrained(root / "spatext" / "clip")
    pool = cache.build(cache.pocket_examples(35), 35, base.vae, reader)  # more than one chunk
    assert len(pool) == 35
    for i in (0, 7, 33, 34):
        item = pocket_item("train", i)
        pixels = torch.from_numpy(item.image).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            assert_close(pool.latents[[i]], encode(base.vae, pixels * 2 - 1), atol=1e-4, rtol=1e-4)
        assert pool.captions[i] == item.captions
        largest = sorted(item.segments, key=lambda s: -s.mask.sum())
        for k in range(cache.SEGMENTS):
            if k >= len(largest):
                assert not pool.vectors[i, k].any()
                assert not pool.cover[i, k].any()
                continue
            mask = torch.from_numpy(largest[k].mask)
            assert_close(pool.cover[i, k], mask.view(16, 4, 16, 4).float().mean((1, 3)))
            with torch.no_grad():
                vector = reader.segments(pixels, mask[None])[0]
            assert_close(pool.vectors[i, k], vector, atol=1e-4, rtol=1e-4)


def test_captions_are_drawn_evenly():
    pool = cache.Cache(torch.zeros(2, 4, 2, 2), [("a", "b", "c"), ("d",)])
    drawn = pool.draw_captions(torch.tensor([0, 1] * 600), torch.Generator().manual_seed(0))
    assert set(drawn[1::2]) == {"d"}
    assert set(drawn[::2]) == {"a", "b", "c"}
    assert min(Counter(drawn[::2]).values()) > 150


# --- text-to-image and SpaText --------------------------------------------------------------------


def test_a_saved_text_model_draws(tmp_path):
    text_to_image.make(PLAN, "cpu").save(tmp_path)
    pipeline = TextToImagePipeline.from_pretrained(tmp_path)
    assert pipeline(Scene("a red ball"), steps=1).size == (64, 64)


def test_spatext_starts_as_the_text_model(root):
    """Step 0: whatever the map, the widened network predicts what the base model does."""
    base = TextToImagePipeline.from_pretrained(root / "text-to-image")
    unet = spatext.make(PLAN, "cpu").module.eval()
    x_t, t, text = torch.randn(2, 4, 16, 16), torch.tensor([10, 900]), torch.randn(2, 77, 16)
    with torch.no_grad():
        want = base.unet(x_t, t, encoder_hidden_states=text).sample
        for size in (0.0, 5.0):
            condition = Condition(text, torch.zeros_like(text), size * torch.randn(2, 16, 16, 16))
            assert_close(UNetDenoiser(unet)(x_t, t, condition), want, atol=1e-5, rtol=1e-5)


def test_spatext_learns_to_read_the_map_and_leaves_the_rest_alone(root):
    """The new channels and the U-Net move; text encoder, autoencoder and CLIP are not trained."""
    job = spatext.make(PLAN, "cpu")
    assert not job.module.conv_in.weight[:, 4:].any()
    losses(job, same_data=False)
    assert job.module.conv_in.weight[:, 4:].abs().sum() > 0
    assert sum(p.numel() for p in job.module.parameters()) < 1e6  # a U-Net alone


def test_a_saved_spatext_model_draws_beside_its_text_model(root, tmp_path):
    import shutil

    shutil.copytree(root / "text-to-image", tmp_path / "text-to-image")
    spatext.make(PLAN, "cpu").save(tmp_path / "spatext")
    pipeline = SpaTextPipeline.from_pretrained(tmp_path / "spatext")
    scene = Scene("a red ball", [Region("a ball", box=(0, 0, 0.5, 0.5))])
    assert pipeline(scene, steps=1).size == (64, 64)


@pytest.mark.parametrize("name", ["text-to-image", "spatext"])
def test_the_loss_of_a_network_that_says_nothing_is_the_targets_variance(name, monkeypatch):
    """v = alpha eps - sigma x_0: about 1 per number where latents have unit variance; and what is
    random in a step comes from the step's generator."""
    job = RECIPES[name].make(PLAN, "cpu")
    unet = job.module["unet"] if name == "text-to-image" else job.module
    for parameter in unet.conv_out.parameters():
        parameter.data.zero_()
    with torch.no_grad():
        one, two, other = (
            job.loss_at(0, torch.Generator().manual_seed(seed)).item() for seed in (1, 1, 2)
        )
    assert one == two != other
    assert 0.3 < one < 3
