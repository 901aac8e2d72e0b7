# SPDX-License-Identifier: Apache-2.0
"""Auxiliary losses and a changed base, with which a small network learns ReCo's boxes in an hour.

Not the paper's. The paper fine-tunes Stable Diffusion, whose text encoder is CLIP's and whose U-Net
was trained with billions of images. The pocket base has none of that: its text encoder gives "a red
ball" and "a blue ball" nearly the same hidden states (4 % apart). Without these aids, 1,400 steps
of 16 images taught it nothing about boxes; docs/log.md has the trials.
"""

import copy
from collections.abc import Sequence

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import CLIPTextModel

from spatext_lab.clip import Clip
from spatext_lab.datasets.pocket import pocket_item
from spatext_lab.reco.coordinates import COORDINATES
from spatext_lab.scene import Scene
from spatext_lab.spatext.prior import ridge_regression
from spatext_lab.spatext.widen import narrow_input, widen_input
from spatext_lab.text_to_image.pipeline import TextToImagePipeline

TEXTS = 600  # captions on which keys and values are fitted to another text encoder
BOX_WEIGHT = 10.0  # of a latent cell in a box; 1 elsewhere
SHIFT = 2.0  # of the timesteps towards noise
ATTENTION = 0.1  # weight of the cross-attention loss


def aided_base(base: TextToImagePipeline, clip: Clip) -> TextToImagePipeline:
    """A copy of `base` with CLIP's text transformer and with coordinates as inputs of its U-Net.

    Stable Diffusion's text encoder is CLIP's too. Initializes weights at random: seed torch before.

    Raises:
        ValueError: where the two have different vocabularies.
    """
    words = clip.settings["model_cfg"]["text_cfg"]["vocab_size"]
    if words != len(base.tokenizer):
        raise ValueError(
            f"the CLIP has {words} tokens, the base {len(base.tokenizer)}: they differ"
        )
    length = base.text_encoder.config.max_position_embeddings
    text_encoder = clip.text_transformer(length).to(base.device)
    captions = [pocket_item("train", i).captions[i % 5] for i in range(TEXTS)]
    unet = refitted(narrow_input(base.unet), base, text_encoder, captions)
    unet = widen_input(unet, COORDINATES)
    nn.init.normal_(unet.conv_in.weight[:, -COORDINATES:], std=0.1)
    return TextToImagePipeline(unet, base.vae, text_encoder, base.tokenizer, base.scheduler)


@torch.no_grad()
def refitted(
    unet: UNet2DConditionModel,
    base: TextToImagePipeline,
    text_encoder: CLIPTextModel,
    captions: Sequence[str],
) -> UNet2DConditionModel:
    """A copy of `unet` whose keys and values read the hidden states of another text encoder.

    They are the old ones after a ridge regression from the new hidden states to those of the base's
    own encoder, over all tokens of some captions, plus half of a freshly initialized layer, so that
    what the old hidden states did not separate can be separated now.
    """
    ids = base.tokenizer(
        list(captions), padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids.to(base.device)
    new, old = (
        torch.cat([encoder(part).last_hidden_state.flatten(0, 1) for part in ids.split(64)])
        for encoder in (text_encoder, base.text_encoder)
    )
    across = ridge_regression(new - new.mean(0), old - old.mean(0), 1e-3)
    changed = copy.deepcopy(unet)
    for name, module in changed.named_modules():
        if name.endswith("attn2"):
            for part in ("to_k", "to_v"):
                layer = getattr(module, part)
                fresh = nn.Linear(new.shape[1], layer.out_features, bias=False).to(new.device)
                fresh.weight.mul_(0.5).add_(layer.weight @ across.T)
                setattr(module, part, fresh)
    changed.register_to_config(cross_attention_dim=new.shape[1])
    return changed


# Esser et al., arXiv 2403.03206, equation 23, from u in [0, 1): t = s u / (1 + (s - 1) u)
def noisy_timesteps(t: Int[Tensor, "b"], steps: int) -> Int[Tensor, "b"]:
    """Uniform timesteps 0 ... steps - 1, shifted to the noisy end: there the layout is decided."""
    u = (t + 0.5) / steps
    return (steps * SHIFT * u / (1 + (SHIFT - 1) * u)).long().clamp(max=steps - 1)


def box_weights(scenes: Sequence[Scene], size: tuple[int, int]) -> Float[Tensor, "b 1 h w"]:
    """Loss weights: BOX_WEIGHT in the boxes of each image and 1 elsewhere, scaled to mean 1.

    The boxes are part of the condition, so the weights do not change which prediction is optimal; a
    small network spends its capacity on the objects.
    """
    weights = torch.ones(len(scenes), 1, *size)
    for weight, scene in zip(weights, scenes, strict=True):
        for region in scene.regions:
            weight[0, torch.from_numpy(region.mask_at(*size))] = BOX_WEIGHT
    return weights / weights.mean()
