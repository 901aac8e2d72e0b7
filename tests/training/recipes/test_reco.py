# SPDX-License-Identifier: Apache-2.0
"""ReCo's recipe: all variants learn and are saved, the scenes of a step, the loss by hand."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from spatext_lab.baselines.contrastive import contrastive_loss
from spatext_lab.baselines.digit_coordinates import digit_caption
from spatext_lab.baselines.positional_words import positional_caption
from spatext_lab.datasets.pocket import pocket_item
from spatext_lab.reco.pipeline import ReCoPipeline
from spatext_lab.scene import Region, Scene
from spatext_lab.text_to_image.tokenizer import new_tokenizer
from spatext_lab.training import cache
from spatext_lab.training.job import Job
from spatext_lab.training.recipes import reco
from spatext_lab.training.recipes.reco import views
from spatext_lab.training.recipes.reco.start import CLASSES, VARIANTS, WRITTEN, build_model
from tests.training.steps import PLAN, loss_of, losses

pytestmark = pytest.mark.usefixtures("small")


@pytest.mark.parametrize(
    "variant", ["after", "contrastive", "words", "digits"]
)  # "reco": test_recipes
def test_every_variant_of_reco_learns(variant):
    curve = losses(reco.make(PLAN, "cpu", variant=variant))
    assert np.isfinite(curve).all()
    assert np.mean(curve[-2:]) < 0.95 * np.mean(curve[:2])


@pytest.mark.parametrize("variant", ["reco", "after"])
def test_unet_and_the_whole_text_encoder_learn(variant):
    """Every weight of both; of the new tokens all that occur, and no other."""
    job = reco.make(PLAN, "cpu", variant=variant, bins=64)
    before = {name: value.clone() for name, value in job.module.state_dict().items()}
    inputs: list[torch.Tensor] = []
    job.module["text_encoder"].register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    loss_of(job).backward()
    for name, parameter in job.module.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    table = job.module["text_encoder"].get_input_embeddings().weight.grad
    learned = set(torch.nonzero(table.abs().sum(1)).flatten().tolist())
    assert learned == set(inputs[0].unique().tolist())
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


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_reco_model_can_be_continued(variant, tmp_path):
    kind = CLASSES[variant]
    given = {} if variant in WRITTEN else {"bins": 64}
    reco.make(PLAN, "cpu", variant=variant, **given).save(tmp_path)
    model = kind.from_pretrained(tmp_path)
    assert model.config.most_regions == 4
    assert model.position_tokens.bins == (0 if variant in WRITTEN else 64)
    scene = Scene("a red ball", [Region("a ball", box=(0, 0, 0.5, 0.5))])
    assert model(scene, num_inference_steps=1).images[0].size == (64, 64)
    onward = build_model(tmp_path, "cpu", variant)
    assert type(onward) is kind
    assert onward.position_tokens.bin_ids == model.position_tokens.bin_ids
    length = 231 if variant == "digits" else 154
    assert onward.position_tokens.length == model.position_tokens.length == length
    for part in ("unet", "text_encoder"):
        ours, theirs = (getattr(m, part).state_dict() for m in (onward, model))
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert torch.isfinite(loss_of(reco.make(PLAN, "cpu", base=str(tmp_path), variant=variant)))


@pytest.mark.parametrize(
    ("variant", "caption"), [("words", positional_caption), ("digits", digit_caption)]
)
def test_a_written_variant_reads_the_boxes_in_the_caption(variant, caption):
    """What its text encoder gets is the long caption of the step's scenes, and nothing else."""
    job = reco.make(PLAN, "cpu", variant=variant)
    seen = []
    encoder = job.module["text_encoder"]
    hook = encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    loss_of(job, 3)
    hook.remove()
    found = list(views.pocket_views(views.LARGE, views.SCENES, views.PER_SKILL, 64, PLAN.seed))
    captions, scenes = [each.captions for each in found], [each.scene for each in found]
    pool = cache.Cache(torch.zeros(len(found), 1, 1, 1), captions, scenes)
    generator = torch.Generator().manual_seed(3)
    index = torch.randint(len(pool), (reco.BATCH,), generator=generator)
    texts = [caption(scene) for scene in reco.draw_scenes(pool, index, generator)]
    tokenizer = new_tokenizer(merges=200, length=231 if variant == "digits" else 154)
    want = tokenizer([*texts, ""], padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(seen[0], want)


# --- the scenes of a step -------------------------------------------------------------------------


def pocket_pool() -> cache.Cache:
    items = [pocket_item("train", i) for i in range(12)]
    return cache.Cache(
        torch.zeros(12, 4, 2, 2),
        [item.captions for item in items],
        [item.layout for item in items],
    )


def test_captions_and_regions_are_dropped_with_their_probabilities():
    """Three draws per image: both are gone in 0.1 + 0.9 x 0.5 x 0.1 of them."""
    pool, n = pocket_pool(), 12_000
    index = torch.arange(12).repeat(n // 12)
    scenes = reco.draw_scenes(pool, index, torch.Generator().manual_seed(0))
    gone = Counter((not scene.caption, not scene.regions) for scene in scenes)
    p, c = reco.DROP, reco.DROP_CAPTION
    for case, want in {
        (True, True): p + (1 - p) * c * p,
        (True, False): (1 - p) * c * (1 - p),
        (False, True): (1 - p) * (1 - c) * p,
        (False, False): (1 - p) * (1 - c) * (1 - p),
    }.items():
        deviation = math.sqrt(want * (1 - want) / n)
        assert gone[case] / n == pytest.approx(want, abs=4 * deviation)


def test_the_scenes_of_a_step_keep_texts_and_boxes():
    """All regions of the image, each as it was, in any order; its own captions, all of them."""
    pool, index = pocket_pool(), torch.arange(12).repeat(300)
    scenes = reco.draw_scenes(pool, index, torch.Generator().manual_seed(1))
    orders, captions = {}, {}
    for i, scene in zip(index.tolist(), scenes, strict=True):
        assert not scene.caption or scene.caption in pool.captions[i]
        captions.setdefault(i, set()).add(scene.caption)
        if scene.regions:
            assert Counter(scene.regions) == Counter(pool.scenes[i].regions)
            orders.setdefault(i, set()).add(scene.regions)
    for i in range(12):
        assert captions[i] == {*pool.captions[i], ""}
        assert len(orders[i]) == math.factorial(len(pool.scenes[i].regions))


def test_of_too_many_regions_a_random_choice_is_kept(monkeypatch):
    monkeypatch.setattr(reco, "MOST_REGIONS", 2)
    regions = tuple(Region(f"thing {k}", box=(0, 0, 0.1 * k, 1)) for k in range(1, 6))
    pool = cache.Cache(torch.zeros(1, 4, 2, 2), [("c",)], [Scene("c", regions)])
    scenes = reco.draw_scenes(pool, torch.zeros(400).long(), torch.Generator().manual_seed(0))
    assert {len(scene.regions) for scene in scenes} == {0, 2}
    assert {region for scene in scenes for region in scene.regions} == set(regions)


def test_boxes_thinner_than_a_bin_are_dropped(root, capsys):
    """Those that position tokens refuse, and no others; then one can train with few bins."""
    pool, model = pocket_pool(), build_model(root / "text-to-image", "cpu", bins=5)
    kept = reco.without_thin(pool, 5)
    assert len(kept.scenes) == len(pool)
    dropped = 0
    for before, after in zip(pool.scenes, kept.scenes, strict=True):
        assert before.caption == after.caption
        model.position_tokens.encode([after])
        for region in Counter(before.regions) - Counter(after.regions):
            dropped += 1
            with pytest.raises(ValueError, match="thinner than one of 5 bins"):
                model.position_tokens.encode([Scene("c", [region])])
    assert dropped > 0
    assert f"{dropped} boxes are thinner than one of 5 bins" in capsys.readouterr().out
    assert reco.without_thin(pool, 0) is pool
    assert torch.isfinite(loss_of(reco.make(PLAN, "cpu", bins=3)))


def test_most_steps_have_no_more_padding_than_their_longest_sequence(monkeypatch):
    """The sequences of two equal steps, with all padding and with what the longest needs."""
    job, seen = reco.make(PLAN, "cpu", bins=64), []
    job.module["text_encoder"].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    for fraction in (1, 0):
        monkeypatch.setattr(reco, "FULL_LENGTH", fraction)
        loss_of(job, 3)
    full, short = seen
    n, pad = short.shape[1], full[-1, -1]
    assert full.shape[1] == 154 > n
    assert torch.equal(full[:, :n], short)
    assert (full[:, n:] == pad).all()
    assert (full[:, n - 2] != pad).any()  # the last token of the longest is its end


# --- the loss -------------------------------------------------------------------------------------


def test_the_contrastive_variant_adds_its_loss_to_the_diffusion_loss():
    """Of the last states of that step's token sequences; everything else is equal."""
    seen = []
    plain, both = (reco.make(PLAN, "cpu", variant=name) for name in ("reco", "contrastive"))
    hook = both.module["text_encoder"].register_forward_hook(
        lambda _, inputs, out: seen.append(out.last_hidden_state.detach())
    )
    with torch.no_grad():
        difference = loss_of(both, 5) - loss_of(plain, 5)
    hook.remove()
    codes = seen[0][:-1, -1]  # the last sequence is empty: guidance's null
    assert len(codes) == reco.BATCH
    assert_close(difference, contrastive_loss(codes, 0.07), atol=1e-4, rtol=1e-4)
    assert difference > 0.01


def test_the_loss_is_that_of_the_token_sequences(root):
    """With the step's own random numbers drawn again by hand, and the network called by hand."""
    job = reco.make(PLAN, "cpu", base=str(root / "reco"))
    model = ReCoPipeline.from_pretrained(root / "reco")
    found = list(views.pocket_views(views.LARGE, views.SCENES, views.PER_SKILL, 64, PLAN.seed))
    pool = cache.build(found, len(found), model.vae)
    generator = torch.Generator().manual_seed(3)
    index = torch.randint(len(pool), (reco.BATCH,), generator=generator)
    scenes = reco.draw_scenes(pool, index, generator)
    torch.rand((), generator=generator)  # whether the sequences keep all of their padding
    noise = torch.randn(pool.latents[index].shape, generator=generator)
    t = torch.randint(1000, (reco.BATCH,), generator=generator)
    alpha = model.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    x_0, text = pool.latents[index], model.condition(scenes).text
    with torch.no_grad():
        x_t = alpha.sqrt() * x_0 + (1 - alpha).sqrt() * noise
        v = model.unet(x_t, t, encoder_hidden_states=text).sample
        want = (v - (alpha.sqrt() * noise - (1 - alpha).sqrt() * x_0)).square().mean()
        for each in (job, reco.fine_tune(model, pool, PLAN, "the same views", batch=4)):
            assert_close(loss_of(each, 3), want, atol=1e-4, rtol=1e-4)
