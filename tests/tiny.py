# SPDX-License-Identifier: Apache-2.0
"""A model folder in the pocket model's layout, of random weights so small that it answers at once.

For tests of what is done with a model. Its images are noise.
"""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderTiny,
    PriorTransformer,
    UNet2DConditionModel,
    UNet2DModel,
)
from open_clip.model import CLIP
from torch import Tensor

from spatext_lab.baselines.digit_coordinates import DigitCoordinatesPipeline
from spatext_lab.baselines.gligen import GligenPipeline
from spatext_lab.baselines.other_maps import KINDS
from spatext_lab.baselines.positional_words import PositionalWordsPipeline
from spatext_lab.baselines.summaries.energy import EnergyNetwork
from spatext_lab.baselines.summaries.update_mask import UpdateMaskNetwork
from spatext_lab.clip import Clip
from spatext_lab.course.stand_in import WIDTH, text_encoder
from spatext_lab.diffusion import noise_schedule
from spatext_lab.evaluation.judge import COLOUR_CLASSES, FOLD, KIND_CLASSES, Judge
from spatext_lab.reco.pipeline import ReCoPipeline
from spatext_lab.reco.text_encoder import grow
from spatext_lab.scene import Region, Scene
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.spatext.pixel import PixelFold
from spatext_lab.spatext.prior import DiffusionPrior, LinearPrior
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from spatext_lab.text_to_image.tokenizer import new_tokenizer
from spatext_lab.training.recipes.other_maps import widened as widened_otherwise
from spatext_lab.training.recipes.spatext import widened

SCENE = Scene(
    "a red ball and a tree in a meadow",
    [Region("a red ball", box=(0.1, 0.2, 0.5, 0.8)), Region("a tree", box=(0.4, 0.5, 0.9, 1))],
)
WRITTEN = {PositionalWordsPipeline: "reco-words", DigitCoordinatesPipeline: "reco-digits"}
OTHER = Scene("a boat on the sea", [Region("a boat", box=(0.3, 0.3, 0.8, 0.7))])
BARE = Scene("a boat on the sea")


def final(pipeline, scenes, **settings) -> Tensor:
    """The last latents."""
    *_, last = pipeline.stream(scenes, **settings)
    return last.x_t


def tiny_model(root: Path, seed: int = 0) -> Path:
    """Writes root/text-to-image, root/spatext (again as root/spatext-vectors), root/spatext-pixel,
    root/spatext-KIND for every other kind of map, root/judge, root/reco, root/reco-words,
    root/reco-digits, root/gligen, root/update-mask, and root/energy.

    The U-Nets read their maps and boxes: what training starts from at zero is random.
    """
    torch.manual_seed(seed)
    base = _text_to_image()
    base.save_pretrained(root / "text-to-image")
    clip, prior = tiny_clip(), tiny_prior()
    spatext = widened(base, clip, prior)
    models = {"spatext": spatext, "spatext-vectors": spatext}
    models |= {f"spatext-{kind}": widened_otherwise(base, clip, prior, kind) for kind in KINDS}
    for name, model in models.items():
        if name != "spatext-vectors":
            torch.nn.init.normal_(model.unet.conv_in.weight, std=0.3)
        model.save_pretrained(root / name)
    unet = _unet(48 + WIDTH, 48)
    pixel = SpaTextPipeline(unet, PixelFold(), noise_schedule(), clip, prior=prior)
    pixel.save_pretrained(root / "spatext-pixel")
    _judge().save_pretrained(root / "judge")
    tiny_reco(base).save_pretrained(root / "reco")
    for kind in (PositionalWordsPipeline, DigitCoordinatesPipeline):
        _tiny_written(kind, base).save_pretrained(root / WRITTEN[kind])
    tiny_gligen(root / "text-to-image").save_pretrained(root / "gligen")
    UpdateMaskNetwork(4, WIDTH, width=16, depth=1).save_pretrained(root / "update-mask")
    EnergyNetwork(4, WIDTH, width=16, blocks=1).save_pretrained(root / "energy")
    return root


def tiny_prior(width: int = WIDTH) -> DiffusionPrior:
    """One layer; its embeddings are noise too, but each text's own."""
    shape = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1}
    transformer = PriorTransformer(
        embedding_dim=width, num_embeddings=0, encoder_hid_proj_type=None, **shape
    )
    torch.nn.init.constant_(transformer.clip_std, 0.3)
    line = LinearPrior(torch.randn(width, width), torch.randn(width))
    return DiffusionPrior(transformer, noise_schedule(), line)


def tiny_reco(base: TextToImagePipeline) -> ReCoPipeline:
    """64 bins, whose rows are as large as all others, and room for 154 tokens."""
    text_encoder, tokenizer = grow(base.text_encoder, base.tokenizer, 64, 154)
    parts = (base.unet, base.vae, text_encoder, tokenizer, base.scheduler)
    return ReCoPipeline(*parts, most_regions=6)


def _tiny_written(kind: type[ReCoPipeline], base: TextToImagePipeline) -> ReCoPipeline:
    text_encoder, tokenizer = grow(base.text_encoder, base.tokenizer, 0, 154)
    parts = (base.unet, base.vae, text_encoder, tokenizer, base.scheduler)
    return kind(*parts, most_regions=6)


def tiny_gligen(base: Path) -> GligenPipeline:
    """Its gates are open, so that the boxes count."""
    model = GligenPipeline.from_base(base)
    for name, weight in model.unet.named_parameters():
        if name.endswith(("alpha_attn", "alpha_dense")):
            torch.nn.init.constant_(weight, 1.0)
    return model


def _unet(in_channels: int, out_channels: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=in_channels,
        out_channels=out_channels,
        block_out_channels=(16, 16, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
    )


def _text_to_image() -> TextToImagePipeline:
    tokenizer = new_tokenizer(merges=200)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(0, 0, 1),
        num_decoder_blocks=(1, 0, 0),
        latent_channels=4,
    )
    return TextToImagePipeline(
        _unet(4, 4), vae, text_encoder(tokenizer, 77), tokenizer, noise_schedule()
    )


def tiny_clip() -> Clip:
    """One layer each for texts and images, 32 tokens, images of 16 pixels."""
    tokenizer = new_tokenizer(merges=200, length=32)
    vision = {"image_size": 16, "patch_size": 8, "width": WIDTH, "layers": 1, "head_width": 8}
    text = {"context_length": 32, "vocab_size": len(tokenizer), "width": WIDTH, "heads": 2}
    text |= {"layers": 1}
    model = CLIP(embed_dim=WIDTH, vision_cfg=vision, text_cfg=text)
    named = text | {"hf_tokenizer_name": "tokenizer"}
    config = {
        "model_cfg": {"embed_dim": WIDTH, "vision_cfg": vision, "text_cfg": named},
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    }
    return Clip(model, tokenizer, config)


def _judge() -> Judge:
    return Judge(
        UNet2DModel(
            in_channels=3 * FOLD**2,
            out_channels=(KIND_CLASSES + COLOUR_CLASSES) * FOLD**2,
            block_out_channels=(16, 16),
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
            layers_per_block=1,
            norm_num_groups=4,
            add_attention=False,
        )
    )
