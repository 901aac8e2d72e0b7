# SPDX-License-Identifier: Apache-2.0
"""Boxes as digits in the caption: written, tokenized, read back, and dropped whole."""

import re

import pytest
import torch

from spatext_lab.baselines.digit_coordinates import (
    DigitCoordinatesPipeline,
    digit_caption,
    digit_scene,
)
from spatext_lab.evaluation.tasks import layout_tasks
from spatext_lab.reco.pipeline import ReCoPipeline
from spatext_lab.scene import Region, Scene
from spatext_lab.text_to_image.tokenizer import new_tokenizer
from tests.tiny import final, tiny_model

SCENE = Scene(
    "two boats",
    [
        Region("a red boat", box=(0.109, 0.3, 0.607, 0.87)),
        Region("a buoy", box=(0, 0.485001, 0.95, 1)),
    ],
)
WRITTEN = "two boats; a red boat [0.11, 0.30, 0.61, 0.87]; a buoy [0.00, 0.49, 0.95, 1.00]"


def read(prompt: str) -> list[tuple[str, tuple[float, ...]]]:
    """The texts and boxes of a prompt, however its tokens are spaced."""
    number = r"\s*([01])\s*\.\s*(\d)\s*(\d)\s*"
    box = re.compile(rf"([^;\[\]]+)\[{number},{number},{number},{number}\]")
    found = []
    for text, *digits in box.findall(prompt):
        triples = (digits[k : k + 3] for k in range(0, 12, 3))
        found.append((text.strip(), tuple(float(f"{a}.{b}{c}") for a, b, c in triples)))
    return found


def test_a_layout_as_a_caption():
    assert digit_caption(SCENE) == WRITTEN
    assert digit_caption(Scene("", SCENE.regions)) == WRITTEN.partition("; ")[2]
    assert digit_caption(Scene("two boats")) == "two boats"
    assert digit_caption(Scene("")) == ""


@pytest.mark.parametrize("merges", [200, 1500])
def test_prompts_are_read_back_from_their_tokens(merges):
    """Every digit, dot, comma and bracket has a token; boxes come back to half a hundredth."""
    tokenizer = new_tokenizer(merges=merges, length=231)
    for task in layout_tasks(100):
        scene = digit_scene(task.scene, tokenizer)
        assert scene.regions == ()
        ids = tokenizer(scene.caption, add_special_tokens=False).input_ids
        assert tokenizer.unk_token_id not in ids or tokenizer.unk_token_id == tokenizer.eos_token_id
        assert tokenizer.eos_token_id not in ids
        found = read(tokenizer.decode(ids).replace("</w>", " "))
        assert len(found) == len(task.scene.regions)
        for (text, box), region in zip(found, task.scene.regions, strict=True):
            assert text.replace(" ", "") == region.text.replace(" ", "")
            assert box == pytest.approx(region.box, abs=0.005 + 1e-9)


def test_a_box_takes_21_tokens():
    tokenizer = new_tokenizer(length=231)
    lengths = [
        len(tokenizer(text).input_ids) for text in ("a ball", "a ball [0.11, 0.30, 0.61, 0.87]")
    ]
    assert lengths[1] - lengths[0] == 21


@pytest.mark.parametrize("kept", range(4))
def test_regions_that_do_not_fit_are_dropped_whole(kept):
    regions = [Region(f"ball {k}", box=(0, 0, 0.1 * k + 0.1, 1)) for k in range(4)]
    whole = digit_caption(Scene("balls", regions[: kept + 1]))
    length = len(new_tokenizer()(whole).input_ids) - 1  # one too few
    with pytest.warns(UserWarning, match=r"regions dropped: ") as seen:
        scene = digit_scene(Scene("balls", regions), new_tokenizer(length=length))
    assert scene == Scene(digit_caption(Scene("balls", regions[:kept])))
    assert [int(k) for k in re.findall(r"regions\[(\d)\]", str(seen[0].message))] == [
        *range(kept, 4)
    ]


def test_the_pipeline_samples_the_caption_and_nothing_else(tmp_path):
    model = DigitCoordinatesPipeline.from_pretrained(tiny_model(tmp_path) / "reco-digits")
    assert model.position_tokens.bins == 0
    plain = ReCoPipeline.from_pipe(model)
    condition = model.condition([SCENE, Scene("two boats")], "a cup")
    want = plain.condition([Scene(WRITTEN), Scene("two boats")], "a cup")
    assert torch.equal(condition.text, want.text)
    assert torch.equal(condition.null_text, want.null_text)
    steps = {"num_inference_steps": 2}
    image = final(model, SCENE, **steps)
    assert torch.equal(image, final(plain, Scene(WRITTEN), **steps))
    moved = Scene(SCENE.caption, [Region(r.text, box=(0, 0, 0.5, 0.5)) for r in SCENE.regions])
    assert not torch.equal(image, final(model, moved, **steps))
    assert model.tokens(SCENE).ids == plain.tokens(Scene(WRITTEN)).ids
