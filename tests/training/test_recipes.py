# SPDX-License-Identifier: Apache-2.0
"""Every recipe on a handful of scenes: it learns, it can be stopped, and what it saves is read."""

import copy
import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from diffusers import AutoencoderTiny
from torch.testing import assert_close

from spatext_lab import zoo
from spatext_lab.baselines.positional_words import PositionalWordsPipeline
from spatext_lab.clip import Clip
from spatext_lab.datasets.pocket import pocket_item
from spatext_lab.datasets.pocket.paintskills import SKILLS, skill_item
from spatext_lab.diffusion import (
    COORDINATES,
    Condition,
    PlacedDenoiser,
    UNetDenoiser,
    training_loss,
)
from spatext_lab.evaluation.judge import Judge
from spatext_lab.images import encode, to_tensor
from spatext_lab.reco.pipeline import ReCoPipeline
from spatext_lab.reco.text_encoder import forget, grow, without_bins
from spatext_lab.scene import Region, Scene
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.text_to_image import tokenizer
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
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
    reco,
    spatext,
    text_to_image,
)
from spatext_lab.training.recipes.reco import aids as reco_aids
from spatext_lab.training.recipes.reco import views as reco_views
from spatext_lab.training.recipes.reco.attention import attention_loss, watched
from tests.tiny import tiny_model

PLAN = Plan(steps=12, lr=2e-3, warmup=2)
COCO = Path(__file__).resolve().parents[2] / "data" / "pocket-coco"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def small(monkeypatch, root):
    """Few scenes, small batches, and the tiny model where a recipe looks for the shipped one."""
    for module in (autoencoder, judge):
        monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(decoder, "SCENES", 2)
    monkeypatch.setattr(decoder, "WIDTH", 12)
    monkeypatch.setattr(clip, "SCENES", 6)
    monkeypatch.setattr(clip, "WHOLE", 3)
    for module in (spatext, prior, reco):
        monkeypatch.setattr(module, "BATCH", 4)
    for module in (spatext, pixel, prior, reco_views):
        monkeypatch.setattr(module, "SCENES", 8)
    for size in ("SMALL", "LARGE"):
        monkeypatch.setattr(text_to_image, f"{size}_BATCH", 4)
        monkeypatch.setattr(text_to_image, f"{size}_VIEWS", 8)
    monkeypatch.setattr(text_to_image, "SMALL_STEPS", 1)
    monkeypatch.setattr(reco_views, "PER_SKILL", 1)
    monkeypatch.setattr(reco_aids, "TEXTS", 40)
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
    pocket_images = autoencoder.pocket_images
    monkeypatch.setattr(
        autoencoder, "pocket_images", lambda split, which: pocket_images(split, which[:16])
    )
    autoencoder.make(PLAN, "cpu").save(tmp_path)
    vae = AutoencoderTiny.from_pretrained(tmp_path, torch_dtype=torch.float32)
    latents = encode(vae, pocket_images("val", range(16)))
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
    assert moved == {name for name in before if name.startswith("decoder.")}


def _tiny_vae(root: Path) -> AutoencoderTiny:
    place = root / "text-to-image" / "vae"
    return AutoencoderTiny.from_pretrained(place, torch_dtype=torch.float32)


def test_a_wider_decoder_begins_with_the_same_pictures(root):
    vae = _tiny_vae(root)
    wide = decoder.widened(vae, 12)
    z, images = torch.randn(2, 4, 16, 16), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert_close(wide.decoder(z), vae.decoder(z))
        assert_close(wide.encoder(images), vae.encoder(images))
    assert wide.config.scaling_factor == vae.config.scaling_factor
    widths = {weight.shape[0] for weight in wide.decoder.parameters()}
    assert widths == {12, 3}  # 3: the picture's


def test_a_decoder_that_is_wide_enough_goes_on_as_it_is(root):
    vae = _tiny_vae(root)
    assert decoder.widened(vae, 8) is vae


def test_a_decoder_is_not_made_narrower(root):
    with pytest.raises(ValueError, match="width is 4; the decoder has 8 channels already"):
        decoder.widened(_tiny_vae(root), 4)


def test_a_decoders_batch_has_every_skill(monkeypatch):
    monkeypatch.setattr(decoder, "SCENES", 1)
    want = [pocket_item("train", 200_005), *(skill_item(skill, "train", 5) for skill in SKILLS)]
    assert_close(decoder.batch(5), to_tensor(np.stack([item.image for item in want])))
    assert decoder.batch(30_000).shape == (5, 3, 64, 64)  # beyond the skills' own numbers


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
    pool = cache.Cache(torch.zeros(2, 4, 2, 2), [("a", "b", "c"), ("d",)], [(), ()])
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


@pytest.mark.parametrize("name", ["text-to-image", "spatext", "reco"])
def test_the_loss_of_a_network_that_says_nothing_is_the_targets_variance(name, monkeypatch):
    """v = alpha eps - sigma x_0: about 1 per number where latents have unit variance; and what is
    random in a step comes from the step's generator."""
    job = RECIPES[name].make(PLAN, "cpu")
    unet = job.module if name == "spatext" else job.module["unet"]
    for parameter in unet.conv_out.parameters():
        parameter.data.zero_()
    with torch.no_grad():
        seeds = (1, 1, *range(2, 10))
        one, two, *others = (
            job.loss_at(0, torch.Generator().manual_seed(seed)).item() for seed in seeds
        )
    assert one == two
    assert one not in others
    assert 0.3 < np.mean(others) < 2


# --- ReCo -----------------------------------------------------------------------------------------


def reco_loss(job: Job, seed: int = 0) -> torch.Tensor:
    return job.loss_at(0, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("variant", ["after", "contrastive", "words"])  # "reco" is above
def test_every_variant_of_reco_learns(variant):
    curve = losses(reco.make(PLAN, "cpu", variant=variant))
    assert np.isfinite(curve).all()
    assert np.mean(curve[-2:]) < 0.95 * np.mean(curve[:2])


@pytest.mark.parametrize("variant", ["reco", "after"])
def test_unet_and_the_whole_text_encoder_learn(variant):
    """Every weight of both; of the new words all that are said, and no other."""
    job = reco.make(PLAN, "cpu", variant=variant, bins=64)
    before = {name: value.clone() for name, value in job.module.state_dict().items()}
    said: list[torch.Tensor] = []
    job.module["text_encoder"].register_forward_pre_hook(lambda _, inputs: said.append(inputs[0]))
    reco_loss(job).backward()
    for name, parameter in job.module.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    table = job.module["text_encoder"].get_input_embeddings().weight.grad
    learned = set(torch.nonzero(table.abs().sum(1)).flatten().tolist())
    assert learned == set(said[0].unique().tolist())
    assert 8 < sum(token >= len(table) - 64 for token in learned) < 64
    assert (position_rows(job).grad.abs().sum(1) > 0).all()
    optimiser = torch.optim.SGD(job.module.parameters(), lr=10.0)
    optimiser.step()
    still = {name for name, value in job.module.state_dict().items() if value.equal(before[name])}
    # a key's bias adds one number to all of a row's logits, which softmax takes away again
    assert {name for name in still if not name.endswith("k_proj.bias")} == set()


def position_rows(job: Job) -> torch.Tensor:
    named = job.module["text_encoder"].named_parameters()
    (rows,) = (value for name, value in named if "position_embedding" in name)
    assert rows.shape[0] == 2 * 77
    return rows


@pytest.mark.parametrize("bins", [None, 16])
def test_reco_starts_as_its_base_with_more_words(root, bins):
    base = TextToImagePipeline.from_pretrained(root / "text-to-image")
    model = reco.started(root / "text-to-image", "cpu", bins=bins)
    assert model.sentences.bins == (bins or 128)  # two a pixel
    assert model.sentences.length == 154
    assert model.positions == "before"
    captions = ["a red ball", "two trees"]
    with torch.no_grad():
        text = model.captions(captions).text[:, :77]
        assert_close(text, base.captions(captions).text, atol=1e-5, rtol=1e-5)
    for name, value in base.unet.state_dict().items():
        assert torch.equal(model.unet.state_dict()[name], value)


def test_reco_starts_from_spatexts_unet_without_its_map(root):
    wide = SpaTextPipeline.from_pretrained(root / "spatext-vectors").unet
    model = reco.started(root / "spatext-vectors", "cpu")
    assert model.unet.config.in_channels == 4
    assert torch.equal(model.unet.conv_in.weight, wide.conv_in.weight[:, :4])
    assert torch.equal(model.unet.conv_out.weight, wide.conv_out.weight)


def test_init_and_seed_choose_the_new_rows(root):
    def rows(**given) -> torch.Tensor:
        model = reco.started(root / "text-to-image", "cpu", bins=64, **given)
        return model.text_encoder.get_input_embeddings().weight.detach()[-64:]

    assert torch.equal(rows(), rows(init="smooth", seed=0))
    assert not torch.equal(rows(), rows(seed=1))
    assert rows(init="normal").std().item() == pytest.approx(0.02, rel=0.1)
    assert not torch.equal(rows(init="mean"), rows(init="normal"))


@pytest.mark.parametrize("variant", reco.VARIANTS)
def test_a_saved_reco_model_draws_and_can_be_gone_on_with(variant, tmp_path):
    kind = PositionalWordsPipeline if variant == "words" else ReCoPipeline
    given = {} if variant == "words" else {"bins": 64}
    reco.make(PLAN, "cpu", variant=variant, **given).save(tmp_path)
    model = kind.from_pretrained(tmp_path)
    assert model.most_regions == 4
    assert model.positions == ("after" if variant == "after" else "before")
    assert model.sentences.bins == (0 if variant == "words" else 64)
    scene = Scene("a red ball", [Region("a ball", box=(0, 0, 0.5, 0.5))])
    assert model(scene, steps=1).size == (64, 64)
    onward = reco.started(tmp_path, "cpu", variant)
    assert type(onward) is kind
    assert onward.positions == model.positions
    assert onward.sentences.bin_ids == model.sentences.bin_ids
    assert onward.sentences.length == model.sentences.length == 154
    for part in ("unet", "text_encoder"):
        ours, theirs = (getattr(m, part).state_dict() for m in (onward, model))
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert torch.isfinite(reco_loss(reco.make(PLAN, "cpu", base=str(tmp_path), variant=variant)))


@pytest.mark.parametrize(
    ("part", "given", "message"),
    [
        ("reco", {"bins": 64}, "bins is 64; the base has 64 bins already, leave it out"),
        ("reco", {"init": "smooth"}, "init is 'smooth'; the base has 64 bins already"),
        ("reco", {"variant": "words"}, "variant is 'words'; the base can go on as reco or contr"),
        ("reco", {"variant": "after"}, "variant is 'after'; .* can go on as reco or contrastive"),
        ("text-to-image", {"variant": "words", "bins": 8}, "bins is 8; variant 'words' has no"),
        ("text-to-image", {"variant": "words", "init": "mean"}, "init is 'mean'; variant 'words'"),
        ("text-to-image", {"variant": "plain"}, "variant is 'plain'; there are reco, after, contr"),
        ("text-to-image", {"bins": 0}, "bins is 0; give at least 2"),
        ("text-to-image", {"bins": 1}, "bins is 1; give at least 2"),
        ("text-to-image", {"init": "zero"}, "init is 'zero'; there are mean, normal, smooth"),
    ],
)
def test_what_reco_cannot_start_from(root, part, given, message):
    with pytest.raises(ValueError, match=message):
        reco.started(root / part, "cpu", **given)


def test_a_model_with_positions_after_cannot_go_on_with_them_before(root, tmp_path):
    parts = ReCoPipeline.from_pretrained(root / "reco").parts().values()
    ReCoPipeline(*parts, positions="after").save_pretrained(tmp_path)
    assert reco.started(tmp_path, "cpu", "after").positions == "after"
    with pytest.raises(ValueError, match=r"variant is 'reco'; .* can go on as after only"):
        reco.started(tmp_path, "cpu", "reco")


# --- what ReCo is told ----------------------------------------------------------------------------


def told_pool() -> cache.Cache:
    scenes = [pocket_item("train", i) for i in range(12)]
    return cache.Cache(
        torch.zeros(12, 4, 2, 2),
        [item.captions for item in scenes],
        [item.layout.regions for item in scenes],
    )


def test_captions_and_regions_are_left_out_as_often_as_is_said():
    """Three dice a picture: the caption is gone in 1 - 0.9 ^ 2, both in 0.1 + 0.9 x 0.1 ^ 2."""
    pool, n = told_pool(), 12_000
    index = torch.arange(12).repeat(n // 12)
    scenes = reco.told(pool, index, torch.Generator().manual_seed(0))
    gone = Counter((not scene.caption, not scene.regions) for scene in scenes)
    p = reco.DROP
    for case, want in {
        (True, True): p + (1 - p) * p * p,
        (True, False): (1 - p) * p * (1 - p),
        (False, True): (1 - p) * p * (1 - p),
        (False, False): (1 - p) ** 3,
    }.items():
        deviation = math.sqrt(want * (1 - want) / n)
        assert gone[case] / n == pytest.approx(want, abs=4 * deviation)


def test_what_is_told_keeps_texts_and_boxes():
    """All regions of the picture, each as it was, in any order; its own captions, all of them."""
    pool, index = told_pool(), torch.arange(12).repeat(300)
    scenes = reco.told(pool, index, torch.Generator().manual_seed(1))
    orders, captions = {}, {}
    for i, scene in zip(index.tolist(), scenes, strict=True):
        assert not scene.caption or scene.caption in pool.captions[i]
        captions.setdefault(i, set()).add(scene.caption)
        if scene.regions:
            assert Counter(scene.regions) == Counter(pool.regions[i])
            orders.setdefault(i, set()).add(scene.regions)
    for i in range(12):
        assert captions[i] == {*pool.captions[i], ""}
        assert len(orders[i]) == math.factorial(len(pool.regions[i]))


def test_of_many_regions_any_are_told(monkeypatch):
    monkeypatch.setattr(reco, "MOST_REGIONS", 2)
    regions = tuple(Region(f"thing {k}", box=(0, 0, 0.1 * k, 1)) for k in range(1, 6))
    pool = cache.Cache(torch.zeros(1, 4, 2, 2), [("c",)], [regions])
    scenes = reco.told(pool, torch.zeros(400).long(), torch.Generator().manual_seed(0))
    assert {len(scene.regions) for scene in scenes} == {0, 2}
    assert {region for scene in scenes for region in scene.regions} == set(regions)


def test_boxes_that_so_few_bins_cannot_say_are_left_out(root, capsys):
    """Those that a sentence refuses, and no others; then one can train with as few."""
    pool, model = told_pool(), reco.started(root / "text-to-image", "cpu", bins=5)
    kept = reco.without_thin(pool, 5)
    assert len(kept.regions) == len(pool)
    left_out = 0
    for before, after in zip(pool.regions, kept.regions, strict=True):
        model.sentences.batch([Scene("c", after)])
        for region in Counter(before) - Counter(after):
            left_out += 1
            with pytest.raises(ValueError, match="thinner than one of 5 bins"):
                model.sentences.batch([Scene("c", [region])])
    assert left_out > 0
    assert f"{left_out} boxes are thinner than one of 5 bins" in capsys.readouterr().out
    assert reco.without_thin(pool, 0) is pool
    assert torch.isfinite(reco_loss(reco.make(PLAN, "cpu", bins=3)))


def test_the_contrastive_loss_against_a_loop():
    codes, temperature = torch.randn(5, 7), 0.3
    total = 0.0
    for i in range(5):
        alike = [
            math.exp((codes[i] @ c / codes[i].norm() / c.norm()).item() / temperature)
            for c in codes
        ]
        total -= math.log(alike[i] / sum(alike))
    assert reco.contrastive_loss(codes, temperature).item() == pytest.approx(total / 5, rel=1e-4)


def test_the_contrastive_loss_in_closed_form():
    """All codes one: log b. All at right angles: log(1 + (b - 1) exp(-1 / temperature))."""
    one, apart = torch.ones(6, 6), 3 * torch.eye(6)
    assert reco.contrastive_loss(one, 0.07).item() == pytest.approx(math.log(6), rel=1e-5)
    want = math.log(1 + 5 * math.exp(-1 / 0.5))
    assert reco.contrastive_loss(apart, 0.5).item() == pytest.approx(want, rel=1e-5)
    codes = torch.randn(4, 3, requires_grad=True)
    reco.contrastive_loss(codes, 0.07).backward()
    after = reco.contrastive_loss(codes - 0.1 * codes.grad, 0.07)
    assert after < reco.contrastive_loss(codes, 0.07)


def test_the_contrastive_variant_adds_its_loss_to_the_diffusion_loss():
    """Of the last states of the sentences that are told in that step; everything else is equal."""
    seen = []
    plain, both = (reco.make(PLAN, "cpu", variant=name) for name in ("reco", "contrastive"))
    hook = both.module["text_encoder"].register_forward_hook(
        lambda _, inputs, out: seen.append(out.last_hidden_state.detach())
    )
    with torch.no_grad():
        difference = reco_loss(both, 5) - reco_loss(plain, 5)
    hook.remove()
    codes = seen[0][:-1, -1]  # the last of the batch is the empty sentence, guidance's null
    assert len(codes) == reco.BATCH
    assert_close(difference, reco.contrastive_loss(codes, 0.07), atol=1e-4, rtol=1e-4)
    assert difference > 0.01


def test_the_loss_is_that_of_the_sentences(root):
    """With the step's own random numbers drawn again by hand, and the network called by hand."""
    job = reco.make(PLAN, "cpu", base=str(root / "reco"))
    model = ReCoPipeline.from_pretrained(root / "reco")
    views = list(reco_views.pocket_views(reco_views.SCENES, reco_views.PER_SKILL, 64, PLAN.seed))
    pool = cache.build(views, len(views), model.vae)
    generator = torch.Generator().manual_seed(3)
    index = torch.randint(len(pool), (reco.BATCH,), generator=generator)
    scenes = reco.told(pool, index, generator)
    noise = torch.randn(pool.latents[index].shape, generator=generator)
    t = torch.randint(1000, (reco.BATCH,), generator=generator)
    alpha = model.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    x_0, text = pool.latents[index], model.condition(scenes).text
    with torch.no_grad():
        x_t = alpha.sqrt() * x_0 + (1 - alpha).sqrt() * noise
        v = model.unet(x_t, t, encoder_hidden_states=text).sample
        want = (v - (alpha.sqrt() * noise - (1 - alpha).sqrt() * x_0)).square().mean()
        assert_close(reco_loss(job, 3), want, atol=1e-4, rtol=1e-4)


# --- what helps a small base ----------------------------------------------------------------------


def test_the_ridge_against_numpys_least_squares():
    """Its penalty as more rows: sqrt(lambda n) on the diagonal, to be 0; whatever is added to all
    rows of either side has no effect."""
    x, y = 3 * torch.randn(40, 5), torch.randn(40, 3)
    centred = [(side - side.mean(0)).double().numpy() for side in (x, y)]
    rows = np.concatenate([centred[0], math.sqrt(1e-3 * 40) * np.eye(5)])
    want = np.linalg.lstsq(rows, np.concatenate([centred[1], np.zeros((5, 3))]), rcond=None)[0]
    assert_close(reco_aids.ridge(x, y).double(), torch.from_numpy(want), atol=1e-5, rtol=1e-4)
    moved = reco_aids.ridge(x + 10 * torch.randn(5), y - torch.randn(3))
    assert_close(moved, reco_aids.ridge(x, y), atol=1e-4, rtol=1e-3)


def test_the_ridge_in_closed_form():
    """One number from one: the covariance over the variance and 0.001."""
    x = torch.randn(200, 1)
    y = 2 * x + 0.1 * torch.randn(200, 1)
    covariance = ((x - x.mean()) * (y - y.mean())).mean()
    want = covariance / (x.var(correction=0) + 1e-3)
    assert reco_aids.ridge(x, y).item() == pytest.approx(want.item(), rel=1e-4)


CAPTIONS = ["a red ball and a tree", "a blue boat on the sea", "two stars at night", ""]
TURN = torch.randn(24, 24, generator=torch.Generator().manual_seed(7))[:16]


def turned(base: TextToImagePipeline) -> torch.nn.Module:
    """An encoder whose states are the base's, turned into 24 numbers and moved."""
    encoder = copy.deepcopy(base.text_encoder)

    def forward(ids: torch.Tensor) -> SimpleNamespace:
        states = base.text_encoder(ids).last_hidden_state
        return SimpleNamespace(last_hidden_state=states @ TURN + 0.3)

    encoder.forward = forward
    return encoder


def layers_of(unet: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """Keys and values of the text, by name."""
    return {k: v for k, v in unet.named_modules() if k.endswith(("attn2.to_k", "attn2.to_v"))}


def test_refitted_keys_and_values_read_the_new_states_as_the_old_ones_the_old(root, monkeypatch):
    """Without the fresh part, and but for what is the same for all tokens; then the base's states,
    which here follow from the new ones, are met as closely as the ridge is small."""
    base = TextToImagePipeline.from_pretrained(root / "text-to-image")
    before = {name: value.clone() for name, value in base.unet.state_dict().items()}
    linear = torch.nn.Linear

    def empty(*shape, **given) -> torch.nn.Linear:
        layer = linear(*shape, **given)
        torch.nn.init.zeros_(layer.weight)
        return layer

    captions, encoder = [*CAPTIONS, *(f"{c} at noon" for c in CAPTIONS)], turned(base)
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn, "Linear", empty)
        plain = reco_aids.refitted(base.unet, base, encoder, captions)
    ids = torch.tensor(base.tokenizer(CAPTIONS, padding="max_length").input_ids)
    with torch.no_grad():
        old = base.text_encoder(ids).last_hidden_state.flatten(0, 1)
        new = encoder(ids).last_hidden_state.flatten(0, 1)
        changed = layers_of(plain)
        for name, layer in layers_of(base.unet).items():
            want, got = layer(old), changed[name](new)
            want, got = want - want.mean(0), got - got.mean(0)
            assert want.square().mean().sqrt() > 0.02
            assert (got - want).square().mean() < 0.01 * want.square().mean()
    assert plain.config.cross_attention_dim == 24
    assert all(torch.equal(value, before[name]) for name, value in base.unet.state_dict().items())
    assert base.unet.config.cross_attention_dim == 16


def test_refitting_changes_keys_and_values_alone_and_adds_half_a_fresh_layer(root, monkeypatch):
    base = TextToImagePipeline.from_pretrained(root / "text-to-image")
    monkeypatch.setattr(reco_aids, "ridge", lambda x, y: torch.zeros(24, 16))
    changed = reco_aids.refitted(base.unet, base, turned(base), CAPTIONS)
    weights, number = dict(changed.state_dict()), 0
    for name, value in base.unet.state_dict().items():
        if ".attn2.to_k" in name or ".attn2.to_v" in name:
            number += 1
            # a fresh layer's weights are even in +- 1 / sqrt(inputs)
            assert 0.4 < weights[name].abs().max().item() * math.sqrt(24) <= 0.5 + 1e-6
        else:
            assert torch.equal(weights[name], value), name
    assert number == 2 * len([k for k, _ in base.unet.named_modules() if k.endswith("attn2")]) > 0


def test_an_aided_base_has_clips_text_transformer_and_coordinates(root):
    base = TextToImagePipeline.from_pretrained(root / "text-to-image")
    reader = Clip.from_pretrained(root / "spatext" / "clip")
    before = {name: value.clone() for name, value in base.unet.state_dict().items()}
    aided = reco_aids.aided_base(base, reader)
    theirs = reader.text_transformer(77).state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in aided.text_encoder.state_dict().items())
    assert aided.unet.config.in_channels == 4 + COORDINATES
    assert torch.equal(aided.unet.conv_in.weight[:, :4], base.unet.conv_in.weight)
    assert aided.unet.conv_in.weight[:, 4:].std().item() == pytest.approx(0.1, rel=0.1)
    assert all(torch.equal(v, before[k]) for k, v in base.unet.state_dict().items())
    assert base.unet.config.in_channels == 4


def test_weights_of_boxes_against_a_slow_loop():
    """A cell counts if its middle is in any box of its own picture; overlaps count once."""
    rows = [
        [Region("a", box=(0.1, 0.2, 0.55, 0.8)), Region("b", box=(0.3, 0.3, 0.9, 0.6))],
        [],
        [Region("c", box=(0, 0, 1, 0.5))],
    ]
    want = torch.ones(3, 1, 8, 12)
    for k, regions in enumerate(rows):
        for y in range(8):
            for x in range(12):
                u, v = (x + 0.5) / 12, (y + 0.5) / 8
                boxes = [region.box for region in regions]
                if any(x0 <= u < x1 and y0 <= v < y1 for x0, y0, x1, y1 in boxes):
                    want[k, 0, y, x] = reco_aids.BOX_WEIGHT
    got = reco_aids.box_weights(rows, (8, 12))
    assert_close(got, want * want.numel() / want.sum())
    assert got.mean().item() == pytest.approx(1, rel=1e-5)
    assert len(got.unique()) == 2
    assert_close(reco_aids.box_weights([[]], (8, 12)), torch.ones(1, 1, 8, 12))


@pytest.mark.parametrize("times", [1000, 50])
def test_noisy_times_in_closed_form(times):
    """That so much of u lies below a time as equation 23, solved for u, says."""
    u = (torch.arange(20_000) + 0.5) / 20_000
    t = reco_aids.noisy_times(u, times)
    assert 0 <= t.min() < t.max() == times - 1
    for k in range(1, times, times // 10):
        x = k / times
        below = x / (reco_aids.SHIFT - (reco_aids.SHIFT - 1) * x)
        assert (t < k).double().mean().item() == pytest.approx(below, abs=2e-4)
    assert reco_aids.noisy_times(torch.ones(1), times).item() == times - 1


class Watched:
    """An aided job, its model and its pool, and what the last step's loss was made of."""

    def __init__(self, monkeypatch, plan: Plan) -> None:
        fine_tune, loss = reco.fine_tune, reco.training_loss

        def watch_job(model, pool, *rest):
            self.model, self.pool = model, pool
            return fine_tune(model, pool, *rest)

        def watch_loss(*given):
            self.given = given
            return loss(*given)

        monkeypatch.setattr(reco, "fine_tune", watch_job)
        monkeypatch.setattr(reco, "training_loss", watch_loss)
        self.job = reco.make(plan, "cpu", aided=True)


@pytest.mark.parametrize("variant", reco.VARIANTS)
def test_aided_reco_learns(variant):
    curve = losses(reco.make(PLAN, "cpu", variant=variant, aided=True))
    assert np.isfinite(curve).all()
    assert np.mean(curve[-2:]) < 0.95 * np.mean(curve[:2])


def test_the_aided_loss_is_of_the_sentences_boxes_and_attention(monkeypatch):
    """With the step's own random numbers drawn again by hand: noisy times, weighed boxes, whole
    sentences where the recipe leaves out what is padding to all, and the attention beside."""
    watch = Watched(monkeypatch, PLAN)
    model, pool = watch.model, watch.pool
    generator = torch.Generator().manual_seed(3)
    index = torch.randint(len(pool), (reco.BATCH,), generator=generator)
    scenes = reco.told(pool, index, generator)
    x_0 = pool.latents[index]
    noise = torch.randn(x_0.shape, generator=generator)
    u = (torch.randint(1000, (reco.BATCH,), generator=generator) + 0.5) / 1000
    t = reco_aids.noisy_times(u, 1000)
    weight = reco_aids.box_weights([scene.regions for scene in scenes], (16, 16))
    ids = model.sentences.batch([*scenes, Scene("")])
    with torch.no_grad():
        whole = model.told(ids)
        with watched(model.unet) as seen:
            want = training_loss(model.denoiser(), x_0, whole, t, noise, model.scheduler, weight)
        paid = attention_loss(seen, model.sentences.regions(ids[:-1]), scenes)
        got = watch.job.loss_at(0, torch.Generator().manual_seed(3))
    assert paid > 0.1
    assert_close(got, want + reco_aids.ATTENTION * paid, atol=1e-4, rtol=1e-4)
    short = watch.given[2]
    assert short.text.shape[1] == int(whole.text_mask.sum(1).max()) < whole.text.shape[1] == 154


def test_aided_reco_is_masked_placed_and_saved_so(root, tmp_path):
    reco.make(PLAN, "cpu", bins=64, aided=True).save(tmp_path)
    model = ReCoPipeline.from_pretrained(tmp_path)
    assert model.padding == "masked"
    assert type(model.denoiser()) is PlacedDenoiser
    scene = Scene("a red ball", [Region("a ball", box=(0, 0, 0.5, 0.5))])
    assert model(scene, steps=1).size == (64, 64)
    onward = reco.started(tmp_path, "cpu", aided=True)
    assert onward.padding == "masked"
    assert all(
        torch.equal(onward.unet.state_dict()[name], value)
        for name, value in model.unet.state_dict().items()
    )
    assert reco.started(root / "text-to-image", "cpu").padding == "read"


@pytest.mark.parametrize(
    ("variant", "bins", "kind"),
    [
        ("reco", 16, ReCoPipeline),
        ("after", None, ReCoPipeline),
        ("contrastive", None, ReCoPipeline),
        ("words", None, PositionalWordsPipeline),
    ],
)
def test_relearning_keeps_all_but_the_position_tokens(root, variant, bins, kind):
    """Of a ReCo folder: its U-Net, its old words, its places and how it pads; not one row of its
    bins, nor a beginning that its own seed would give."""
    old = ReCoPipeline.from_pretrained(root / "reco")
    new = reco.started(root / "reco", "cpu", variant, bins, seed=0, relearn=True)
    assert type(new) is kind
    assert new.padding == old.padding
    assert new.positions == ("after" if variant == "after" else "before")
    assert new.sentences.bins == (0 if variant == "words" else bins or 128)
    theirs = old.unet.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in new.unet.state_dict().items())
    before, after = (m.text_encoder.state_dict() for m in (old, new))
    first = min(old.sentences.bin_ids)
    for name, value in after.items():
        if "token_embedding" in name:
            rows, known, tokens = value[first:], before[name][first:], value[:first]
            assert torch.equal(tokens, before[name][:first])
        else:
            assert torch.equal(value, before[name])
    if len(rows):
        grown = grow(forget(old.text_encoder, new_words(old)), new_words(old), len(rows), 154)[0]
        begun = grown.get_input_embeddings().weight[first:]
        assert not (rows[:, None] == known[None]).all(-1).any()
        assert not torch.allclose(rows, begun, rtol=0.1, atol=0)


def new_words(model: ReCoPipeline):
    return without_bins(model.tokenizer)


def test_what_has_no_bins_cannot_relearn(root):
    with pytest.raises(ValueError, match="relearn is given, and the base has no bins to forget"):
        reco.started(root / "text-to-image", "cpu", relearn=True)


def test_a_relearning_job_is_trained_and_saved(root, tmp_path):
    job = reco.make(PLAN, "cpu", base=str(root / "reco"), bins=32, relearn=True)
    assert np.isfinite(losses(job)).all()
    job.save(tmp_path)
    assert ReCoPipeline.from_pretrained(tmp_path).sentences.bins == 32


def test_the_last_states_against_a_loop():
    text = torch.randn(3, 6, 4)
    mask = torch.tensor([[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0]]).bool()
    masked = Condition(text, torch.zeros_like(text), text_mask=mask, null_mask=mask)
    want = [max((i, row) for i, row in enumerate(text[k]) if mask[k, i])[1] for k in range(3)]
    assert torch.equal(reco.last_states(masked), torch.stack(want))
    assert torch.equal(reco.last_states(Condition(text, torch.zeros_like(text))), text[:, 5])


# --- what ReCo learns from ------------------------------------------------------------------------


def test_pocket_views_are_of_scenes_and_of_every_skill():
    """One each; its texts are the scene's, and it is the same whenever it is asked for."""
    views = list(reco_views.pocket_views(5, 2, 64, 0))
    scenes = [pocket_item("train", i).layout for i in range(5)]
    scenes += [skill_item(skill, "train", i).scene for i in range(2) for skill in SKILLS]
    assert len(views) == len(scenes)
    for view, scene in zip(views, scenes, strict=True):
        assert view.image.shape == (64, 64, 3)
        assert Counter(r.text for r in view.regions) <= Counter(r.text for r in scene.regions)
        said = {caption.replace("left", "right") for caption in view.captions}
        assert scene.caption.replace("left", "right") in said
    again, other = (list(reco_views.pocket_views(5, 2, 64, seed)) for seed in (0, 1))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(views, again, strict=True))
    assert any(not np.array_equal(a.image, b.image) for a, b in zip(views, other, strict=True))


def test_coco_views_have_boxes_of_things_alone(monkeypatch, capsys):
    """Against the annotation file: its instances, none of the panoptic segments of stuff."""
    examples, total = reco_views.coco_views(COCO, 64, 0)
    views = list(examples)
    rows = json.loads((COCO / "annotations" / "instances_train2017.json").read_text())
    things: dict[int, list[dict]] = {}
    for row in rows["annotations"]:
        things.setdefault(row["image_id"], []).append(row)
    assert "train2017" in capsys.readouterr().out
    assert len(views) == total == reco_views.VIEWS * len(things)
    whole = 0
    for k, view in enumerate(views):
        known = sorted(things)[k // reco_views.VIEWS]
        texts = Counter(row["text"] for row in things[known])
        assert Counter(region.text for region in view.regions) <= texts
        boxes = {row["text"]: row["bbox"] for row in things[known]}
        for region in view.regions:
            x, y, w, h = (value / 64 for value in boxes[region.text])
            sides = (x, y, x + w, y + h), (1 - x - w, y, 1 - x, y + h)  # as it is, and mirrored
            whole += any(region.box == pytest.approx(side) for side in sides)
    assert 0.4 < whole / sum(len(view.regions) for view in views) < 0.6
