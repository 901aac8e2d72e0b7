# SPDX-License-Identifier: Apache-2.0
"""Texts of segments: real captioners, tiny, through the disk; ReCo's rule; names by CLIP."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertConfig, BertForMaskedLM

from spatext_lab.datasets.pocket import KINDS, pocket_item
from spatext_lab.evaluation.captioners import (
    LONGEST,
    Captioner,
    clip_names,
    cropped,
    described,
    reco_text,
)
from spatext_lab.scene import Region, Scene
from tests.evaluation.folders import WORDS, tiny_blip, tiny_git


@pytest.fixture(scope="module")
def git(tmp_path_factory):
    return tiny_git(tmp_path_factory.mktemp("captioners") / "git")


def images(count):
    """Each brighter than the one before it."""
    noise = np.random.default_rng(0).integers(0, 60, (count, 40, 60, 3))
    return [Image.fromarray((each + 50 * k).astype(np.uint8)) for k, each in enumerate(noise)]


def test_a_git_says_the_most_probable_word_after_word(git):
    """Against a slow loop over the model's own logits, from [CLS] to [SEP]."""
    captioner, truth = Captioner(git), []
    for image in images(4):
        pixels = captioner.processor(images=image, return_tensors="pt")["pixel_values"]
        words = [2]
        while words[-1] != 3 and len(words) <= LONGEST:
            with torch.no_grad():
                out = captioner.model(input_ids=torch.tensor([words]), pixel_values=pixels)
            words.append(out.logits[0, -1].argmax().item())
        truth.append(" ".join(WORDS[word] for word in words if word > 4))
    assert captioner(images(4)) == truth
    assert len(set(truth)) > 1


def test_a_blip_describes_each_image(tmp_path):
    captioner = Captioner(tiny_blip(tmp_path / "blip"))
    both = captioner(images(2))
    assert len(both) == 2
    assert both[1] == captioner(images(2)[1:])[0]


def text_model(place):
    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    shutil.rmtree(place)
    BertForMaskedLM(config).save_pretrained(place)


def half_a_file(place):
    (place / "model.safetensors").write_bytes(b"half")


def other_weights(place):
    """As of a model for questions, whose config has the same type."""
    from safetensors.torch import load_file, save_file

    weights = load_file(place / "model.safetensors")
    renamed = {k.replace("git.encoder", "git.coder"): v for k, v in weights.items()}
    save_file(renamed, place / "model.safetensors", {"format": "pt"})


def remote_code(place):
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "own.Own"}}))
    (place / "own.py").write_text("raise SystemExit('executed')")


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (text_model, "holds a model of type 'bert', and a captioner is blip or git"),
        (half_a_file, "model.safetensors is damaged"),
        (other_weights, "weights are missing, such as git.encoder"),
        (remote_code, "remove it"),
    ],
)
def test_a_folder_that_is_no_captioner_is_named(git, tmp_path, harm, says):
    shutil.copytree(git, place := tmp_path / "model")
    harm(place)
    with pytest.raises(ValueError, match=rf"model cannot be read as a captioner: .*{says}"):
        Captioner(place)


def test_a_captioner_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="captioner is 'git'; pass a captioner's folder"):
        Captioner("git")
    (tmp_path / "git").mkdir()
    with pytest.raises(FileNotFoundError, match=r"git has no config\.json"):
        Captioner("git")


# --- ReCo's rule ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("crop", "padded", "text"),
    [
        ("a dog in the snow", None, "a dog in the snow"),
        ('a sign that says "stop"', "a red sign", "a red sign"),
        ('a sign that says "stop"', 'the words "stop"', "a stop sign"),
        ("", "a red sign", "a red sign"),
        (" ", "", "a stop sign"),
    ],
)
def test_the_rule_for_a_regions_text(crop, padded, text):
    def wider():
        assert padded is not None, "the padded crop is described without need"
        return padded

    assert reco_text(crop, wider, "a stop sign") == text


def test_crops_are_the_boxes_pixels_and_the_padded_ones_have_a_quarter_more():
    pixels = np.random.default_rng(0).integers(0, 255, (80, 120, 3), np.uint8)
    mask = np.zeros((80, 120), bool)
    mask[20:40, 12:52] = True
    box = Region("a dog", mask=mask).box
    image = Image.fromarray(pixels)
    assert np.array_equal(cropped(image, box), pixels[20:40, 12:52])
    assert np.array_equal(cropped(image, box, 0.25), pixels[15:45, 2:62])
    assert np.array_equal(cropped(image, box, 1.0), pixels[0:60, 0:92])  # the image ends there


def test_each_region_gets_the_text_of_its_own_crop():
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20], pixels[20:] = 1, 2
    halves = [Region("above", box=(0, 0, 1, 0.5)), Region("below", box=(0, 0.5, 1, 1))]
    seen = []

    def describe(crops):
        seen.append([crop.size for crop in crops])
        values = [np.unique(crop).tolist() for crop in crops]
        return ['"one"' if value == [1] else f"pixels {value}" for value in values]

    assert described(Scene("", halves), Image.fromarray(pixels), describe) == [
        "pixels [1, 2]",
        "pixels [2]",
    ]
    assert seen == [[(60, 20), (60, 20)], [(60, 25)]]
    assert described(Scene(""), Image.fromarray(pixels), describe) == []


# --- names by CLIP --------------------------------------------------------------------------------


def test_the_pocket_clip_names_most_of_the_pocket_worlds_things():
    """Twelve names to choose from, by shape alone; one in twelve would be chance."""
    name, right, asked = clip_names(KINDS, "pocket"), 0, 0
    for index in range(12):
        item = pocket_item("val", index)
        things = [s for s in item.segments if s.is_thing and s.mask.mean() > 0.04]
        given = name(Image.fromarray(item.image), [s.mask for s in things])
        right += sum(s.label in text for s, text in zip(things, given, strict=True))
        asked += len(things)
    assert asked > 10
    assert right >= 0.6 * asked
