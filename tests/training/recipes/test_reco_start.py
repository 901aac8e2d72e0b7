# SPDX-License-Identifier: Apache-2.0
"""ReCo before its first step: what it takes from its base, and what it cannot start from."""

import pytest
import torch
from torch.testing import assert_close

from spatext_lab.baselines.positions_after import PositionsAfterPipeline
from spatext_lab.reco.pipeline import ReCoPipeline
from spatext_lab.scene import Scene
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from spatext_lab.training.recipes.reco.start import build_model


@pytest.mark.parametrize("bins", [None, 16])
def test_reco_starts_as_its_base_with_more_tokens(root, bins):
    base = TextToImagePipeline.from_pretrained(root / "text-to-image")
    model = build_model(root / "text-to-image", "cpu", bins=bins)
    assert model.position_tokens.bins == (bins or 128)  # two a pixel
    assert model.position_tokens.length == 154
    assert type(model) is ReCoPipeline
    scenes = [Scene("a red ball"), Scene("two trees")]
    text = model.condition(scenes).text[:, :77]
    assert_close(text, base.condition(scenes).text, atol=1e-5, rtol=1e-5)
    for name, value in base.unet.state_dict().items():
        assert torch.equal(model.unet.state_dict()[name], value)


def test_reco_starts_from_spatexts_unet_without_its_map(root):
    wide = SpaTextPipeline.from_pretrained(root / "spatext-vectors").unet
    model = build_model(root / "spatext-vectors", "cpu")
    assert model.unet.config.in_channels == 4
    assert torch.equal(model.unet.conv_in.weight, wide.conv_in.weight[:, :4])
    assert torch.equal(model.unet.conv_out.weight, wide.conv_out.weight)


def test_init_and_seed_choose_the_new_rows(root):
    def rows(**given) -> torch.Tensor:
        model = build_model(root / "text-to-image", "cpu", bins=64, **given)
        return model.text_encoder.get_input_embeddings().weight.detach()[-64:]

    assert torch.equal(rows(), rows(init="smooth", seed=0))
    assert not torch.equal(rows(), rows(seed=1))
    assert rows(init="normal").std().item() == pytest.approx(0.02, rel=0.1)
    assert not torch.equal(rows(init="mean"), rows(init="normal"))


@pytest.mark.parametrize(
    ("part", "given", "message"),
    [
        ("reco", {"bins": 64}, "bins is 64; the base has 64 bins already, leave it out"),
        ("reco", {"init": "smooth"}, "init is 'smooth'; the base has 64 bins already"),
        ("reco", {"variant": "words"}, "variant is 'words'; the base can be continued as reco or"),
        ("reco", {"variant": "after"}, "variant is 'after'; .* as reco or contrastive only"),
        ("text-to-image", {"variant": "words", "bins": 8}, "bins is 8; variant 'words' has no"),
        ("text-to-image", {"variant": "words", "init": "mean"}, "init is 'mean'; variant 'words'"),
        ("text-to-image", {"variant": "digits", "bins": 8}, "bins is 8; variant 'digits' has no"),
        ("reco-digits", {"variant": "words"}, "variant is 'words'; .* as digits only"),
        ("text-to-image", {"variant": "plain"}, "variant is 'plain'; there are reco, contrastive"),
        ("text-to-image", {"bins": 0}, "bins is 0; pass at least 2"),
        ("text-to-image", {"bins": 1}, "bins is 1; pass at least 2"),
        ("text-to-image", {"init": "zero"}, "init is 'zero'; there are mean, normal, smooth"),
    ],
)
def test_what_reco_cannot_start_from(root, part, given, message):
    with pytest.raises(ValueError, match=message):
        build_model(root / part, "cpu", **given)


def test_a_model_with_positions_after_cannot_be_continued_with_them_before(root, tmp_path):
    model = ReCoPipeline.from_pretrained(root / "reco")
    PositionsAfterPipeline.from_pipe(model).save_pretrained(tmp_path)
    assert type(build_model(tmp_path, "cpu", "after")) is PositionsAfterPipeline
    with pytest.raises(ValueError, match=r"variant is 'reco'; .* can be continued as after only"):
        build_model(tmp_path, "cpu", "reco")
