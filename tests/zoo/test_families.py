# SPDX-License-Identifier: Apache-2.0
"""Models of other families, as diffusers' own classes write them, are refused by name."""

import json
import re
import shutil
from pathlib import Path

import pytest
from diffusers import (
    DDIMScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LatentConsistencyModelPipeline,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModelWithProjection

from spatext_lab import zoo
from spatext_lab.cli import parser as cli
from spatext_lab.course import stand_in
from spatext_lab.reco.pipeline import ReCoPipeline
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.text_to_image.pipeline import TextToImagePipeline

READ = "read here are text-to-image models of Stable Diffusion 1 and 2 in diffusers' folder layout"
NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


@pytest.fixture(scope="module")
def sd(tmp_path_factory) -> Path:
    return stand_in.stable_diffusion(tmp_path_factory.mktemp("sd") / "sd")


def unet(**settings) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        **{"sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1} | settings,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=stand_in.WIDTH,
        attention_head_dim=2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
    )


def xl(parts: dict) -> StableDiffusionXLPipeline:
    sizes = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    network = unet(**sizes, projection_class_embeddings_input_dim=64)
    encoder = CLIPTextModelWithProjection(parts["text_encoder"].config)
    second = {"text_encoder_2": encoder, "tokenizer_2": parts["tokenizer"]}
    return StableDiffusionXLPipeline(**parts | {"unet": network} | second)


def stable_diffusion_3(parts: dict) -> StableDiffusion3Pipeline:
    heads = {"attention_head_dim": 8, "num_attention_heads": 2, "caption_projection_dim": 16}
    inputs = {"joint_attention_dim": 16, "pooled_projection_dim": 16, "in_channels": 4}
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=1, num_layers=1, out_channels=4, **heads, **inputs
    )
    nothing = ("text_encoder", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    parts = {name: parts[name] for name in ("vae", "tokenizer", "scheduler")}
    return StableDiffusion3Pipeline(transformer=transformer, **parts, **dict.fromkeys(nothing))


def flux(parts: dict) -> FluxPipeline:
    heads = {"attention_head_dim": 8, "num_attention_heads": 2, "axes_dims_rope": (2, 2, 4)}
    inputs = {"joint_attention_dim": 16, "pooled_projection_dim": 16, "in_channels": 4}
    transformer = FluxTransformer2DModel(num_layers=1, num_single_layers=1, **heads, **inputs)
    nothing = ("text_encoder", "text_encoder_2", "tokenizer_2")
    parts = {name: parts[name] for name in ("vae", "tokenizer", "scheduler")}
    return FluxPipeline(transformer=transformer, **parts, **dict.fromkeys(nothing))


def inpainting(parts: dict) -> StableDiffusionInpaintPipeline:
    return StableDiffusionInpaintPipeline(**parts | {"unet": unet(in_channels=9)} | NO_CHECKER)


def editing(parts: dict) -> StableDiffusionInstructPix2PixPipeline:
    parts = parts | {"unet": unet(in_channels=8)} | NO_CHECKER
    return StableDiffusionInstructPix2PixPipeline(**parts)


def conditioned(parts: dict) -> StableDiffusionPipeline:
    network = unet(class_embed_type="projection", projection_class_embeddings_input_dim=8)
    return StableDiffusionPipeline(**parts | {"unet": network} | NO_CHECKER)


def distilled(parts: dict) -> LatentConsistencyModelPipeline:
    """As the published ones, whose index names the class of Stable Diffusion."""
    return StableDiffusionPipeline(**parts | {"unet": unet(time_cond_proj_dim=8)} | NO_CHECKER)


FAMILIES = {
    "Stable Diffusion XL (two text encoders)": xl,
    "Stable Diffusion 3 (a transformer in place of the U-Net)": stable_diffusion_3,
    "Flux (a transformer in place of the U-Net)": flux,
    "an inpainting model (9 input channels)": inpainting,
    "an image-editing model (InstructPix2Pix) (8 input channels)": editing,
    "a U-Net that reads an image embedding or a class": conditioned,
    "a model distilled for few steps, whose U-Net reads the guidance scale": distilled,
}


@pytest.mark.parametrize("what", FAMILIES)
@pytest.mark.filterwarnings("ignore")
def test_another_family_is_refused_by_name(sd, tmp_path, what):
    theirs = StableDiffusionPipeline.from_pretrained(sd)
    names = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    FAMILIES[what]({name: theirs.components[name] for name in names}).save_pretrained(tmp_path)
    for kind in (TextToImagePipeline, ReCoPipeline, SpaTextPipeline):
        with pytest.raises(ValueError, match=re.escape(f"{tmp_path} is {what}; {READ}")):
            kind.from_pretrained(tmp_path)


def test_what_is_read_is_not_refused(sd):
    zoo.refuse_other_families(sd)
    for part in ("text-to-image", "spatext", "spatext-pixel", "reco", "gligen"):
        zoo.refuse_other_families(zoo.folder("pocket", part))
    zoo.refuse_other_families(zoo.folder("pocket"))
    zoo.refuse_other_families(sd / "nowhere")


@pytest.mark.parametrize("as_base", [True, False])
def test_a_single_file_is_refused(sd, tmp_path, as_base, capsys):
    (tmp_path / "v1-5.safetensors").write_bytes(b"weights")
    (tmp_path / "a.ckpt").write_bytes(b"weights")
    folder = "a folder with a single-file checkpoint (a.ckpt)"
    for place, what in ((tmp_path / "v1-5.safetensors", "a single file"), (tmp_path, folder)):
        if as_base:
            words = ["train", "reco", "--base", str(place), "--out", str(tmp_path / "out")]
            assert cli.main(words) == 2
            assert f"{place} is {what}; {READ}" in capsys.readouterr().err
        else:
            with pytest.raises(ValueError, match=f"is {what.partition('(')[0]}"):
                TextToImagePipeline.from_pretrained(place)


def test_one_part_is_no_model(sd):
    with pytest.raises(ValueError, match=r"unet is one part of a model \(UNet2DConditionModel\)"):
        TextToImagePipeline.from_pretrained(sd / "unet")


def test_a_damaged_index_is_named_as_such(sd, tmp_path):
    shutil.copytree(sd, tmp_path / "sd")
    index = tmp_path / "sd" / "model_index.json"
    index.write_text(index.read_text()[:-20])
    with pytest.raises(ValueError, match=r"model_index.json is damaged, no JSON"):
        TextToImagePipeline.from_pretrained(tmp_path / "sd")
    index.write_text(json.dumps({"_class_name": 3, "transformer": 4, "text_encoder_2": [None]}))
    with pytest.raises(ValueError, match="_class_name is 3"):
        TextToImagePipeline.from_pretrained(tmp_path / "sd")


def test_schedulers_are_no_family(sd, tmp_path):
    theirs = StableDiffusionPipeline.from_pretrained(sd)
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config)
    theirs.save_pretrained(tmp_path)
    assert type(TextToImagePipeline.from_pretrained(tmp_path).scheduler) is DDIMScheduler
