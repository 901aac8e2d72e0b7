# SPDX-License-Identifier: Apache-2.0
"""Plans by the number of a U-Net's weights, in files of the true size that take no room on disk."""

import json
import math
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from spatext_lab.training import sizes
from spatext_lab.training.plan import Plan
from spatext_lab.training.recipes import RECIPES
from spatext_lab.training.run import run

STABLE_DIFFUSION = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
}


def hollow(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file of these shapes; the system stores no zeros."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    folder.mkdir(parents=True)
    with (folder / "diffusion_pytorch_model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A model under a name that says nothing, with a U-Net of Stable Diffusion 1.5's shape."""
    root = tmp_path_factory.mktemp("models") / "unknown"
    with torch.device("meta"):
        unet = UNet2DConditionModel(**STABLE_DIFFUSION)
    hollow(root / "text-to-image/unet", {n: tuple(w.shape) for n, w in unet.named_parameters()})
    assert sum(w.numel() for w in unet.parameters()) == 859_520_964  # as released
    return root


def test_weights_are_counted_in_the_files(large):
    assert sizes.unet_weights(large) == 859_520_964
    half = large / "text-to-image/unet/diffusion_pytorch_model.fp16.safetensors"
    half.write_bytes(b"")  # the same weights once more: not read
    assert sizes.unet_weights(large) == 859_520_964


@pytest.mark.parametrize("name", ["spatext", "reco", "gligen", "text-to-image", "judge"])
def test_the_pocket_models_keep_their_recipes_plan(name):
    recipe = RECIPES[name]
    base = "pocket" if "base" in recipe.options else None
    suit = sizes.suited(name, recipe.plan, base, gpu=True)
    assert suit.plan is recipe.plan
    assert (suit.batch, suit.minutes, suit.lines) == (None, 1.0, ())


@pytest.mark.parametrize(
    ("name", "lr", "images"), [("spatext", 5e-5, 16), ("reco", 2e-5, 64), ("gligen", 5e-5, 32)]
)
def test_a_large_base_gets_a_plan_of_its_own(large, name, lr, images, monkeypatch):
    monkeypatch.setattr(sizes, "has_8bit", lambda: True)
    suit = sizes.suited(name, RECIPES[name].plan, large, gpu=True)
    assert suit.plan.lr == lr
    assert suit.batch * suit.plan.accumulate == images
    assert (suit.plan.checkpointing, suit.plan.average, suit.plan.adamw) == (True, "cpu", "8bit")
    assert suit.plan.rates == {}  # the pocket's
    assert suit.minutes == 30
    assert "860 million" in suit.lines[0]
    for setting, choice in sizes.TABLE[name].items():
        (line,) = [line for line in suit.lines if line.split()[0] == setting]
        assert str(choice.value) in line
        assert choice.theirs in line
    monkeypatch.setattr(sizes, "has_8bit", lambda: False)
    assert sizes.suited(name, RECIPES[name].plan, large, gpu=True).plan.adamw == "32bit"


def test_recos_rate_is_the_released_one_for_fewer_images():
    assert sizes.TABLE["reco"]["lr"].value == pytest.approx(1e-4 * math.sqrt(64 / 2048), rel=0.15)


def test_another_batch_keeps_the_images_of_a_step():
    plan = Plan(steps=1, lr=1.0, accumulate=8)
    assert [sizes.accumulated(plan, 8, b).accumulate for b in (None, 8, 2, 1, 64, 500)] == (
        [8, 8, 32, 64, 1, 1]
    )
    assert sizes.accumulated(plan, None, 4) is plan


def test_a_run_takes_the_plan_and_what_is_typed_overrides_it(tmp_path, small, monkeypatch, capsys):
    monkeypatch.setattr(sizes, "LARGE", 1)
    monkeypatch.setattr(sizes, "has_8bit", lambda: True)  # which needs a GPU
    how = {"steps": 1, "device": "cpu"}
    out = run("spatext", out=tmp_path / "a", **how)
    said, card = capsys.readouterr().out, json.loads((out / "card.json").read_text())
    assert "spatext: 1 steps of 4 x 4 images" in said
    assert f"lr            5e-05                  {sizes.TABLE['spatext']['lr'].theirs}" in said
    assert card["plan"] | {"lr": 5e-5, "accumulate": 4, "checkpointing": True} == card["plan"]
    assert card["plan"]["average"] == "cpu"
    assert card["plan"]["adamw"] == "32bit"
    assert card["given"]["batch"] == 4
    typed = {"batch": 2, "lr": 1e-4, "checkpointing": "off", "average": "off"}
    out = run("spatext", out=tmp_path / "b", **how, **typed)
    card = json.loads((out / "card.json").read_text())
    wanted = {"lr": 1e-4, "accumulate": 8, "checkpointing": False, "average": "off"}
    assert card["plan"] | wanted == card["plan"]
    assert "--lr 0.0001 --checkpointing off --average off" in (out / "README.md").read_text()
