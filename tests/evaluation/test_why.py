# SPDX-License-Identifier: Apache-2.0
"""Is the layout used? The losses against the training loss, the verdict on six prepared models."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image
from torch.testing import assert_close

from spatext_lab import zoo
from spatext_lab.course import stand_in
from spatext_lab.diffusion import UNetDenoiser, training_loss
from spatext_lab.evaluation.why import Report, diagnose, held_out, load, why
from spatext_lab.evaluation.why import losses as inner
from spatext_lab.evaluation.why.losses import (
    BINS,
    ORDERS,
    OWN,
    TURNS,
    edges,
    paired_losses,
    partners,
    variants,
)
from spatext_lab.evaluation.why.measures import _regression, table_measures
from spatext_lab.evaluation.why.verdict import causes, effect, findings
from spatext_lab.images import encode, to_tensor
from spatext_lab.reco.text_encoder import INITS
from spatext_lab.scene import Region, Scene
from tests.tiny import tiny_model

COCO = Path(__file__).parents[2] / "data" / "pocket-coco"
EDGES = edges(1000)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def two_bins(monkeypatch) -> None:
    """Two bins of t, which is faster."""
    monkeypatch.setattr(inner, "BINS", 2)


# --- which scenes are compared --------------------------------------------------------------------


@pytest.mark.parametrize("counts", [[1, 1], [2, 2, 2, 1], [1, 4, 3, 4, 2, 2, 1, 3]])
def test_a_partner_is_another_scene_with_enough_regions(counts):
    found = partners(counts)
    assert all(j != i and counts[j] >= counts[i] for i, j in enumerate(found))
    for i, j in enumerate(found):  # and never more than the next larger count
        enough = [count for k, count in enumerate(counts) if k != i and count >= counts[i]]
        assert counts[j] == min(enough)


def test_variants_exchange_one_part_and_keep_the_others():
    mask = np.zeros((4, 4), bool)
    mask[0] = True
    one = Scene("a sea", [Region("a boat", box=(0.1, 0.2, 0.3, 0.4))])
    two = Scene("a wood", [Region("a tree", mask=mask), Region("a cup", box=(0, 0, 0.5, 0.5))])
    three = Scene("a wall", [Region("a box", box=(0.5, 0.5, 1, 1)), Region("a hat", mask=~mask)])
    found = variants([one, two, three])
    assert found[OWN] == [one, two, three]
    assert found["other layout"][0] == Scene("a sea", [Region("a boat", mask=mask)])
    assert found["other texts"][0] == Scene("a sea", [Region("a tree", box=(0.1, 0.2, 0.3, 0.4))])
    assert found["other layout"][1].regions[1] == Region("a cup", mask=~mask)
    assert [scene.regions for scene in found["no regions"]] == [()] * 3
    assert [scene.caption for scene in found["no regions"]] == ["a sea", "a wood", "a wall"]
    assert [scene.caption for scene in found["other caption"]] == ["a wood", "a wall", "a wood"]
    assert [scene.regions for scene in found["other caption"]] == [s.regions for s in found[OWN]]
    assert {scene.caption for scene in found["no caption"]} == {""}


def test_held_out_images_have_the_models_size_and_boxes_that_it_can_express(tiny):
    reco = load(tiny / "reco")
    shown = held_out(reco, 10)
    assert len(shown) == 10
    assert {each.image.shape for each in shown} == {(reco.image_size, reco.image_size, 3)}
    counts = [len(each.scene.regions) for each in shown]
    assert min(counts) >= 1
    assert sorted(counts)[-1] == sorted(counts)[-2]  # each has a partner with as many
    reco.position_tokens.bin_ids = reco.position_tokens.bin_ids[:3]  # of 3 bins many boxes are thin
    coarse = held_out(reco, 10)
    assert sum(len(each.scene.regions) for each in coarse) < sum(counts)


def test_photos_of_a_coco_folder_stand_in_for_pocket_scenes(tiny):
    shown = held_out(load(tiny / "spatext"), 3, COCO)
    assert len(shown) == 3
    assert all(region.is_mask for each in shown for region in each.scene.regions)
    assert shown[0].image.shape == (64, 64, 3)


# --- losses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["spatext", "reco"])
def test_losses_are_the_training_loss_of_each_image(tiny, kind, two_bins):
    pipeline = load(tiny / kind)
    shown = held_out(pipeline, 3)
    found = paired_losses(pipeline, shown, seed=5)
    assert {values.shape for values in found.values()} == {(2, 3)}
    misread = ORDERS if kind == "reco" else TURNS
    assert set(found) == {*variants([each.scene for each in shown]), *misread}
    generator = torch.Generator().manual_seed(5)
    x_0 = encode(pipeline.vae, to_tensor(each.image for each in shown))
    noise = torch.randn((2, *x_0.shape), generator=generator)
    for b, (low, high) in enumerate([(0, 500), (500, 1000)]):
        t = torch.randint(low, high, (3,), generator=generator)
        for name in (OWN, "other layout", "no caption"):
            scenes = variants([each.scene for each in shown])[name]
            for k in range(3):
                one = slice(k, k + 1)
                condition = pipeline.condition(scenes[one])
                parts = (UNetDenoiser(pipeline.unet), x_0[one], condition, t[one], noise[b, one])
                expected = training_loss(*parts, pipeline.scheduler).detach()
                assert_close(torch.tensor(found[name][b, k]), expected, rtol=1e-4, atol=1e-6)


def test_an_image_has_the_same_noise_in_every_variant(tiny, two_bins):
    pipeline = load(tiny / "reco")
    shown = held_out(pipeline, 4)
    bare = [inner.Shown(each.image, Scene("", [Region("a", box=(0, 0, 1, 1))])) for each in shown]
    found = paired_losses(
        pipeline, bare
    )  # all variants that keep the regions are one and the same scene
    for name in ("other layout", "other texts", "other caption", "no caption"):
        np.testing.assert_allclose(found[name], found[OWN], rtol=1e-5)


def test_another_order_of_coordinates_is_that_of_exchanged_boxes(tiny):
    pipeline = load(tiny / "reco")
    scene = Scene("a sea", [Region("a boat", box=(0.1, 0.2, 0.6, 0.9)), Region("a cup", box=BOX)])
    turned = Scene("a sea", [Region("a boat", box=(0.2, 0.1, 0.9, 0.6)), Region("a cup", box=XOB)])
    found = inner._reordered(pipeline, [scene], ORDERS["x and y exchanged"])
    assert_close(found.text, pipeline.condition([turned]).text)


BOX, XOB = (0.3, 0.0, 1.0, 0.5), (0.0, 0.3, 0.5, 1.0)


# --- intervals and measurements -------------------------------------------------------------------


def test_an_effect_is_the_paired_increase_with_scipys_bootstrap_interval():
    rng = np.random.default_rng(0)
    own = rng.uniform(0.5, 1.5, (8, 40))
    other = own + rng.normal(0.1, 0.2, (8, 40))
    found = effect(own, other)
    relative = ((other - own) / own.mean(1, keepdims=True)).mean(0)
    assert found.mean == pytest.approx(relative.mean())
    known = scipy.stats.bootstrap(
        (relative,), np.mean, n_resamples=5000, method="percentile", rng=rng
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx(tuple(known), abs=0.004)
    assert all(low < mean < high for mean, low, high in found.by_t)


def test_intervals_of_single_bins_hold_all_at_once():
    """Of losses that differ by chance alone, some bin's interval misses 0 in about 5 % of cases."""
    rng = np.random.default_rng(1)
    missed = 0
    for trial in range(40):
        own = np.ones((8, 64))
        found = effect(own, own + rng.normal(0, 0.1, own.shape), trial)
        missed += any(low > 0 or high < 0 for _, low, high in found.by_t)
    assert missed <= 6


def test_tables_of_position_tokens_as_they_begin_and_as_they_end():
    old = torch.randn(500, 32)
    start = {name: table_measures(make(old, 64, torch.Generator())) for name, make in INITS.items()}
    assert start["normal"]["neighbours"] == pytest.approx(1, abs=0.15)
    assert start["mean"]["neighbours"] == pytest.approx(1, abs=0.15)
    assert start["smooth"]["neighbours"] < 0.05
    assert start["smooth"]["start"] < 1e-5
    # a line: neighbours are 1/63 apart, any two sqrt(1/6 * 65/63) in the root of the mean square
    line = torch.linspace(0, 1, 64)[:, None] * torch.ones(1, 32)
    expected = (1 / 63) ** 2 / (2 * np.var(np.linspace(0, 1, 64)))
    assert table_measures(line)["neighbours"] == pytest.approx(expected, rel=1e-4)
    assert "start" not in table_measures(line[::4])  # 16 bins: any table is such a curve


def test_positions_are_found_in_features_that_hold_them():
    x = torch.arange(8.0).repeat(8, 1)
    noise = torch.randn(6, 64, 5)
    known = torch.cat([noise, x.flatten().expand(6, 64)[..., None] * 3], dim=2)
    assert _regression(known, 1) > 0.99
    assert _regression(known, 0) < 0.1
    assert _regression(noise, 1) < 0.1


# --- the verdict, from losses made up -------------------------------------------------------------


def made_up(layout: float = 0.0, noise: float = 0.02, at: slice = slice(None), **more) -> dict:
    """Losses of 64 images: `layout` is added by another's layout, in some bins of t."""
    rng = np.random.default_rng(2)
    own = rng.uniform(0.8, 1.2, (BINS, 64))
    names = ("other layout", "other texts", "no regions", "other caption", "no caption")
    found = {OWN: own} | {n: own + rng.normal(0, noise, own.shape) for n in (*names, *ORDERS)}
    found["other layout"][at] += layout
    for name, value in more.items():
        found[name.replace("_", " ")] += value
    return found


def states(values: dict) -> dict[str, str]:
    return {one.part: one.state for one in findings(values, EDGES, "boxes")[0]}


@pytest.mark.parametrize(
    ("layout", "noise", "at", "state"),
    [
        (0.05, 0.02, slice(None), "used"),
        (0.0, 0.02, slice(None), "unused"),
        (0.004, 0.02, slice(None), "unused"),  # certain, and too little to be of use
        (0.05, 0.02, slice(7, 8), "weak"),  # at the noisiest t alone
        (0.0, 3.0, slice(None), "unclear"),
    ],
)
def test_thresholds_decide(layout, noise, at, state):
    values = made_up(layout, noise, at)
    assert states(values)["layout"] == state
    sentence = findings(values, EDGES, "boxes")[0][0].sentence
    assert ("t = 875 to 999" in sentence) == (state == "weak")


def test_another_reading_counts_only_if_it_is_better_than_no_layout():
    swapped = {"x_and_y_exchanged": -0.3}
    assert states(made_up(0, no_regions=-0.1, **swapped))["layout"] == "misread"
    # position tokens that only disturb: the less they say, the better
    assert states(made_up(0, no_regions=-0.4, **swapped))["layout"] == "unused"
    parts, effects = findings(made_up(0, **swapped), EDGES, "boxes")
    assert "x and y exchanged" in parts[0].sentence
    found = causes(parts, effects, {"words": 0.0, "boxes": 0.0}, EDGES)
    assert [one.where for one in found] == ["order of coordinates"]


@pytest.mark.parametrize(
    ("measured", "where"),
    [
        ({"neighbours": 0.97}, "position tokens"),
        ({"neighbours": 0.01, "start": 0.0}, "position tokens"),
        ({"neighbours": 0.08, "start": 0.3, "boxes": 0.04}, "text encoder"),
        ({"boxes": 1.3, "position": 0.3}, "U-Net positions"),
        ({"map_weights": 0.0}, "map channels"),
        ({"boxes": 1.3, "position": 0.9, "words": 0.1}, "training and its timesteps"),
    ],
)
def test_each_cause_is_named_with_its_measurement(measured, where):
    parts, effects = findings(made_up(other_texts=0.5), EDGES, "boxes")
    found = causes(parts, effects, measured, EDGES)
    assert [one.where for one in found] == [where]


def test_what_is_used_has_no_cause():
    parts, effects = findings(made_up(0.5, other_texts=0.5), EDGES, "boxes")
    assert causes(parts, effects, {"boxes": 0.0, "words": 0.0}, EDGES) == []


# --- six prepared models --------------------------------------------------------------------------

# model: (part of the shipped one, states of layout and texts, where to look)
PREPARED = {
    "spatext": ("spatext", ("used", "used"), None),
    "reco": ("reco", ("used", "used"), None),
    "bins-never-trained": ("reco", ("unused", "used"), "position tokens"),
    "map-channels-zero": ("spatext", ("unused", "unused"), "map channels"),
    "words-forgotten": ("reco", ("used", "unused"), "text encoder"),
    "coordinates-reversed": ("reco", ("misread", None), "order of coordinates"),
}


def prepare(name: str, pipeline) -> None:
    """Makes a shipped model fail, by weights that its folder holds."""
    if name == "map-channels-zero":  # as they are before the first step of training
        torch.nn.init.zeros_(pipeline.unet.conv_in.weight[:, -pipeline.clip.embedding_dim :])
        return
    table = pipeline.text_encoder.get_input_embeddings().weight
    bins = pipeline.position_tokens.bin_ids
    if name == "bins-never-trained":  # as `grow` initializes them
        table[bins] = INITS["smooth"](table[: bins[0]], len(bins), torch.Generator().manual_seed(1))
    elif name == "words-forgotten":
        kept = {*bins, pipeline.tokenizer.bos_token_id, pipeline.tokenizer.eos_token_id}
        words = [i for i in range(len(table)) if i not in kept]
        table[words] = table[words].mean(0)
    elif name == "coordinates-reversed":
        # x and y share one table, so no table exchanges them; one in reverse order counts both
        # from the opposite edges. `test_boxes_passed_as_y_x` has the exchange itself.
        table[bins] = table[bins].flip(0)


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, Report]:
    root, found = tmp_path_factory.mktemp("prepared"), {}
    for name, (part, _, where) in PREPARED.items():
        folder = zoo.folder("pocket", part)
        if where:
            pipeline = load(folder)
            with torch.no_grad():
                prepare(name, pipeline)
            pipeline.save_pretrained(folder := root / name)
        found[name] = why(folder, scenes=16 if name == "bins-never-trained" else 8)
    return found


@pytest.mark.parametrize("name", PREPARED)
def test_the_verdict_on_a_prepared_model(reports, name):
    report, (_, (layout, texts), where) = reports[name], PREPARED[name]
    state = {one.part: one.state for one in report.findings}
    assert state["layout"] == layout, report.verdict
    assert texts in (None, state["texts"]), report.verdict
    assert (report.causes[0].where if report.causes else None) == where, report.verdict
    assert report.used == (where is None)


def test_boxes_passed_as_y_x():
    """A ReCo that gets y0, x0, y1, x1: its encoder of scenes is wrapped."""
    pipeline = load(zoo.folder("pocket", "reco"))
    tokens, bins = pipeline.position_tokens, torch.tensor(pipeline.position_tokens.bin_ids)
    right = tokens.encode

    def exchanged(scenes, *args):
        ids = right(scenes, *args)
        at = torch.isin(ids, bins)
        ids[at] = ids[at].view(-1, 4)[:, [1, 0, 3, 2]].flatten()
        return ids

    tokens.encode = exchanged
    report = diagnose(pipeline, held_out(pipeline, 8), "exchanged")
    assert report.findings[0].state == "misread"
    assert "x and y exchanged" in report.verdict


def test_a_report_is_written_for_people_and_for_programs(reports, tmp_path):
    report = reports["map-channels-zero"]
    report.write(tmp_path)
    text = (tmp_path / "why.md").read_text()
    assert text.startswith("The masks are NOT used: ")
    assert "Look at map channels: " in text
    assert text.count("\n| other layout | +0.0% (+0.0% to +0.0%) |") == 1
    found = json.loads((tmp_path / "why.json").read_text())
    assert found["used"] is False
    assert found["effects"]["other layout"]["mean"] == 0
    with Image.open(tmp_path / "why.png") as image:
        assert "masks are NOT used" in image.text["Description"]
        assert image.width > 600


# --- what is refused ------------------------------------------------------------------------------


@pytest.fixture
def foreign(tiny, tmp_path) -> Path:
    """A ReCo folder with the tokenizer of another model."""
    shutil.copytree(tiny / "reco", folder := tmp_path / "foreign")
    source = tiny / "text-to-image" / "tokenizer"
    shutil.copytree(source, folder / "tokenizer", dirs_exist_ok=True)
    return folder


def test_a_tokenizer_without_position_tokens_is_named(foreign):
    with pytest.raises(ValueError, match=r"foreign.tokenizer has no position tokens"):
        why(foreign)


def test_a_tokenizer_that_is_too_large_is_named(tiny, tmp_path):
    shutil.copytree(tiny / "reco", folder := tmp_path / "reco")
    pipeline = load(folder)
    pipeline.tokenizer.add_tokens(["<more>"])
    pipeline.tokenizer.save_pretrained(folder / "tokenizer")
    with pytest.raises(ValueError, match=r"text_encoder has \d+ embeddings for the tokenizer's"):
        why(folder)


def test_models_without_a_layout_say_so(tiny, tmp_path):
    plain = stand_in.stable_diffusion(tmp_path / "sd")
    for folder in (tiny / "text-to-image", tiny / "reco-words", plain):
        with pytest.raises(ValueError, match="this model has no layout, only a caption"):
            why(folder)


def test_published_reco_weights_are_read(tmp_path, two_bins):
    folder = stand_in.stable_diffusion(tmp_path / "sd", length=154, bins=64, levels=2)
    report = why(folder, scenes=8)
    assert report.noun == "boxes"
    assert report.findings[0].state == "unused"


def test_what_is_no_model_is_named(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        why(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"has no model_index.json: it is no model"):
        why(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"pass one of those in it: .*reco, "):
        why(tiny)
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ValueError, match="is a FluxPipeline: pass the folder of a SpaText or ReCo"):
        why(tmp_path)


def test_too_few_scenes_are_refused(tiny):
    with pytest.raises(ValueError, match="scenes is 7; pass at least 8"):
        why(tiny / "reco", scenes=7)
